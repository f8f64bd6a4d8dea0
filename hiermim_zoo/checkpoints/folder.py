"""A model becomes a folder in the form of the Hub: model.safetensors, config.json (timm's form), README.md (a model
card).
"""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from .atomic import save_tensors
from .card import model_card
from .configs import CONFIG_KEY, IMAGES_KEY, LABELS_KEY, read_json
from .manifest import MODEL_FILE
from .soundness import in_type

DECODER_FILE = "decoder.safetensors"  # fusion and decoder of a masked autoencoder
GOLDEN_FILE = "golden.safetensors"  # what the model computes for photographs, see golden.py
CONFIG_FILE, CARD = "config.json", "README.md"
RUN_FILE = "run.json"  # of a run of training, see training/run_record.py
OWN_FILES = (MODEL_FILE, DECODER_FILE, GOLDEN_FILE, CONFIG_FILE, CARD)
PART = ".hiermim-part-"  # begins the names of folders that are being written
_TOKEN = 8  # bytes that end them


@dataclass
class Contents:
    """What goes into a folder."""

    arch: str
    model: nn.Module  # its ``pretrained_cfg`` is written into config.json
    provenance: Mapping[str, Any]  # where the weights come from, "license" among it; for configuration and card
    made: str  # a sentence about how, for the card
    model_args: Mapping[str, Any] = field(default_factory=dict)  # what timm must be told to build the model again
    dtype: torch.dtype = torch.float32
    decoder: Mapping[str, Tensor] = field(default_factory=dict)  # "fusion.*" and "decoder.*"
    recipe: Mapping[str, Any] = field(
        default_factory=dict
    )  # values of the autoencoder's recipe that are not the family's
    images: Mapping[str, Any] = field(default_factory=dict)  # see configs.IMAGES_KEY
    labels: Mapping[str, Any] = field(default_factory=dict)  # see configs.LABELS_KEY
    omitted: Collection[str] = ()  # of the model's tensors: those that an autoencoder's encoder does not have

    def state(self) -> dict[str, Tensor]:
        """The model's tensors in the type written.

        Raises:
            ValueError: one has values that this type cannot hold.
        """
        state = self.model.state_dict()
        return {name: self._written(name, tensor) for name, tensor in state.items() if name not in self.omitted}

    def decoder_state(self) -> dict[str, Tensor]:
        return {name: self._written(name, tensor) for name, tensor in self.decoder.items()}

    def _written(self, name: str, tensor: Tensor) -> Tensor:
        return in_type(name, tensor.detach().cpu(), self.dtype).contiguous()


def own_cfg(
    arch: str, preprocessing: Mapping[str, Any], license: str, classes: int, input_size: tuple[int, ...]
) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` of weights that are about to be written.

    Args:
        preprocessing: of timm's config (mean, std, interpolation, crop_pct, crop_mode, ...) and label_names; what it
            does not say is the architecture's.
        classes: of the head, 0 for an encoder.
        input_size: (channels, height, width), or (channels, frames, height, width): timm's configs have no place for
            frames, an argument of the model says how many.
    """
    base = get_pretrained_cfg(arch)
    keys = ("interpolation", "crop_pct", "crop_mode", "mean", "std", "first_conv", "classifier", "pool_size")
    cfg = {key: preprocessing.get(key, getattr(base, key)) for key in keys}
    labels = preprocessing.get("label_names")
    if labels and classes == len(labels):
        cfg["label_names"] = labels
    cfg.update(architecture=arch, license=license, num_classes=classes, input_size=(input_size[0], *input_size[-2:]))
    return cfg


def check_target(folder: Path, force: bool, also: tuple[str, ...] = ()) -> None:
    """Refuse a target before any work is done.

    Args:
        force: files of an earlier model may be replaced.
        also: names of files that are going to be replaced beside OWN_FILES.

    Raises:
        ValueError: it exists and is no folder, or is not empty and ``force`` is off, or holds files of these names that
            this package did not write, or cannot be written.
    """
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{folder} is a link that leads nowhere; name a folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise ValueError(f"{folder} is not empty; use --force to replace what this package wrote there")
        others = [name for name in (*OWN_FILES, *also) if (folder / name).exists()]
        if others and not _is_own(folder):
            raise ValueError(f"{folder} holds a {others[0]} that this package did not write; name another folder")
        if odd := [name for name in others if not (folder / name).is_file()]:
            raise ValueError(f"{folder / odd[0]} is no file, so it cannot be replaced; name another folder")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"{folder} cannot be written: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK) or (folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)):
        raise ValueError(f"{folder} cannot be written: no permission")


def _is_own(folder: Path) -> bool:
    """Whether its files were written here, perhaps by a process that was killed before all were in place."""
    for file in (folder / CONFIG_FILE, folder / RUN_FILE, *folder.glob(f"{PART}*/{CONFIG_FILE}")):
        with suppress(OSError, ValueError):  # no such file, or none of ours
            if CONFIG_KEY in read_json(file):
                return True
    return False


def write_folder(contents: Contents, folder: Path, force: bool = False) -> None:
    """Write model, configuration and card (and decoder.safetensors, if there is one).

    A new folder is written beside its name and renamed. One that exists stays, be it the root of a volume, with all
    that others put there: only OWN_FILES are replaced, each by renaming.

    Raises:
        ValueError: see :func:`check_target` and :meth:`Contents.state`.
    """
    check_target(folder, force)
    states = ((MODEL_FILE, contents.state()), (DECODER_FILE, contents.decoder_state()))
    folder = folder.absolute()
    place = folder if folder.is_dir() else folder.parent
    part = place / f"{PART}{'' if place == folder else f'{folder.name}-'}{secrets.token_hex(_TOKEN)}"
    part.mkdir(parents=True)
    try:
        _write_config(contents, part / CONFIG_FILE)
        for file, state in states:
            if state:
                save_tensors(state, part / file, {"format": "pt"})
                (part / file).chmod((part / CONFIG_FILE).stat().st_mode)  # safetensors writes for the owner alone
        card = model_card(
            contents.model, contents.arch, contents.provenance, contents.made, contents.images, contents.labels
        )
        (part / CARD).write_text(card, encoding="utf-8")
        if place == folder:
            move_into(folder, part)
        else:
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed left of writing a new folder. The caller holds a lock that all who write
    it hold.
    """
    for part in folder.parent.glob(f"{PART}{glob.escape(folder.name)}-{'?' * 2 * _TOKEN}"):
        shutil.rmtree(part, ignore_errors=True)


def move_into(folder: Path, part: Path) -> None:
    """Replace OWN_FILES by those of a part. config.json leaves first and comes last: without it there is no model."""
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    for name in (MODEL_FILE, DECODER_FILE, GOLDEN_FILE, CARD, CONFIG_FILE):
        if (part / name).exists():
            (part / name).replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # of the model before: it had a decoder, or golden outputs


def _write_config(contents: Contents, path: Path) -> None:
    """config.json in timm's form, with the provenance added.

    timm repeats the number of classes among the model's arguments; transformers, which passes it itself, then fails to
    load the folder. So only those arguments are kept that differ from what the architecture and the rest of the file
    say.
    """
    more = {"recipe": dict(contents.recipe), IMAGES_KEY: dict(contents.images), LABELS_KEY: dict(contents.labels)}
    ours = {**contents.provenance, **{key: value for key, value in more.items() if value}}
    save_config_for_hf(contents.model, str(path), {CONFIG_KEY: ours})
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"] = dict(contents.model_args)
    if names := config["pretrained_cfg"].get("label_names"):
        config["label_names"] = names  # where transformers' wrapper looks
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
