"""A model becomes a folder in the form of the Hub: model.safetensors, config.json (timm's form), README.md (a model
card).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from .card import model_card

MODEL_FILE = "model.safetensors"
DECODER_FILE = "decoder.safetensors"  # fusion and decoder of a masked autoencoder
CONFIG_KEY = "hiermim_zoo"  # in config.json: what this package says of the weights


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

    def state(self) -> dict[str, Tensor]:
        """The model's tensors in the type written."""
        return {name: self._written(tensor) for name, tensor in self.model.state_dict().items()}

    def decoder_state(self) -> dict[str, Tensor]:
        return {name: self._written(tensor) for name, tensor in self.decoder.items()}

    def _written(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", self.dtype).contiguous()


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


def check_target(folder: Path, force: bool) -> None:
    """Refuse a target before any work is done.

    Raises:
        ValueError: it exists and is no folder, or is not empty and ``force`` is off, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ValueError(f"{folder} is not empty; use --force to replace it")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK) or (folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)):
        raise ValueError(f"{folder} cannot be written: no permission")


def write_folder(contents: Contents, folder: Path, force: bool = False) -> None:
    """Write model, configuration and card (and decoder.safetensors, if there is one).

    They are written beside ``folder`` and renamed into place together.

    Raises:
        ValueError: see :func:`check_target`.
    """
    check_target(folder, force)
    folder = folder.absolute()
    part, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    part.mkdir(parents=True)
    try:
        _write_config(contents, part / "config.json")
        for file, state in ((MODEL_FILE, contents.state()), (DECODER_FILE, contents.decoder_state())):
            if state:
                save_file(state, part / file, metadata={"format": "pt"})
                (part / file).chmod((part / "config.json").stat().st_mode)  # safetensors writes for the owner alone
        card = model_card(contents.model, contents.arch, contents.provenance, contents.made)
        (part / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _write_config(contents: Contents, path: Path) -> None:
    """config.json in timm's form, with the provenance added.

    timm repeats the number of classes among the model's arguments; transformers, which passes it itself, then fails to
    load the folder. So only those arguments are kept that differ from what the architecture and the rest of the file
    say.
    """
    ours = {**contents.provenance, **({"recipe": dict(contents.recipe)} if contents.recipe else {})}
    save_config_for_hf(contents.model, str(path), {CONFIG_KEY: ours})
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"] = dict(contents.model_args)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
