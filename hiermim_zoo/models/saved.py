"""Models as a stranger's config.json describes them: checked before any of them takes memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm.models import is_model
from torch import Tensor, nn

from ..checkpoints.configs import check_model_args, read_config
from ..checkpoints.files import SUFFIXES
from ..checkpoints.folder import CONFIG_FILE
from ..checkpoints.inspection import BROKEN
from ..checkpoints.rules import check_fits
from ..text import counted, printable
from .family import families, family_of
from .shapes import without_memory

Blank = tuple[type[nn.Module], dict[str, Tensor]]

SPARE = 10_000_000  # values that a model may have beside those of its file: tables that are computed or resampled


def blank(arch: str) -> Blank:
    """The class of an architecture's models, and the state dict of its usual one with a classifier, without values."""
    return _blank(family_of(arch).construct, arch)


@functools.cache
def _blank(construct: Callable[..., nn.Module], arch: str) -> Blank:
    with without_memory():
        model = construct(arch, num_classes=1)
    return type(model), model.state_dict()


def saved_args(arch: str, config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The arguments of a model in its configuration.

    Args:
        arch: its architecture.
        config: as ``read_config`` gives it.
        file: it comes from, for messages.

    Raises:
        ValueError: one is none that the architecture takes, or has no value for it.
    """
    args: dict[str, Any] = config.get("model_args") or {}
    if not args:
        return {}
    chosen = {choice.name: choice.type.__name__ for choice in family_of(arch).choices if not choice.many}
    check_model_args(args, file, blank(arch)[0], chosen)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}


def check_buildable(build: Callable[[], nn.Module], values: int, file: Path) -> None:
    """Refuse arguments that cannot make a model, or one much larger than the weights beside them.

    Args:
        build: makes it; called without memory.
        values: in the file of its weights.
        file: that the arguments come from, for messages.

    Raises:
        ValueError: it cannot be built, or is too large.
    """
    try:
        with without_memory():
            size = sum(tensor.numel() for tensor in build().state_dict().values())
    except BROKEN as error:
        raise ValueError(f"{file}: no model can be built as it says: {printable(error, 200)}") from error
    if size > 4 * values + SPARE:
        raise ValueError(
            f"{file}: the model that it describes has {counted(size, 'values')}, its weights have {values}"
        )


def check_folder(folder: Path) -> None:
    """Refuse a folder in timm's form whose configuration does not fit the weights in it, before timm takes it.

    Only models that a family of this package describes are looked at closely.

    Raises:
        ValueError: naming what does not fit.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return
    config = read_config(file)
    arch = config["architecture"].partition(".")[0]
    if is_model(arch) and any(arch in family.variants for family in families()):
        args = saved_args(arch, config, file)
        values = sum(weights.stat().st_size for weights in folder.iterdir() if weights.suffix in SUFFIXES) // 2
        if args and values:
            check_buildable(lambda: family_of(arch).construct(arch, **{"num_classes": 0, **args}), values, file)


def check_encoder(state: Mapping[str, Tensor], own: Mapping[str, Tensor], folder: Path, arch: str) -> None:
    """Refuse what does not fit the encoder of an autoencoder.

    Args:
        state: of the folder, fitted to the encoder of an autoencoder.
        own: of that encoder.
        folder: for messages, like ``arch``.

    Raises:
        ValueError: there is a classifier, or another tensor that does not fit.
    """
    if any(name.startswith("head.") and name not in own for name in state):
        raise ValueError(
            f"{folder} holds a classifier, for which an autoencoder has no place: convert {folder} --num-classes 0 "
            "makes a folder without"
        )
    check_fits(state, own, model=f"the encoder of {arch}")
