"""The way back: weights of this package under the names of a published layout, for the code of its authors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .layouts import Layout
from .rules import apply_rules


def to_published(
    state: Mapping[str, Tensor], decoder: Mapping[str, Tensor], layout: Layout, fresh: nn.Module
) -> dict[str, Tensor]:
    """Rename an encoder and its decoder.

    Args:
        state: encoder, in this package's names.
        decoder: "fusion.*" and "decoder.*".
        layout: its files hold a decoder.
        fresh: a new model of the architecture: what the layout's files never hold is left out where it has its initial value.

    Raises:
        ValueError: a layout of encoders alone, no decoder, or a tensor that the layout has no place for.
    """
    if not layout.back:
        raise ValueError(f"--to {layout.name}: only layouts of masked autoencoders can be written")
    if not decoder:
        raise ValueError(f"--to {layout.name} needs a decoder, which the source does not hold")
    initial = fresh.state_dict()
    kept = {}
    for name, tensor in state.items():
        if not layout.may_miss(name):
            kept[name] = tensor
        elif name not in initial or not torch.equal(tensor, initial[name].to(tensor.dtype)):
            raise ValueError(f"tensor {name!r} is trained, but the layout {layout.name!r} has no place for it")
    renamed, _ = apply_rules({**kept, **decoder}, (*layout.rules, *layout.back), layout.name)
    return renamed


def write_published(state: dict[str, Tensor], file: Path, force: bool) -> None:
    """Write {"model": state} as torch does, beside and renamed.

    Raises:
        ValueError: the file exists, or cannot be written.
    """
    check_file(file, force)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        torch.save({"model": {name: tensor.contiguous().clone() for name, tensor in state.items()}}, part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def check_file(file: Path, force: bool) -> None:
    """Refuse a file before any work is done."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file")
    if file.exists() and not force:
        raise ValueError(f"{file} exists; use --force to replace it")
    if not os.access(file.absolute().parent, os.W_OK | os.X_OK):
        raise ValueError(f"{file} cannot be written: no such folder, or no permission")
