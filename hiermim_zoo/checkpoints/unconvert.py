"""The way back: weights of this package under the names of a published layout, for the code of its authors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .atomic import replacing, save_tensors
from .layout import Layout
from .layouts import all_layouts
from .rules import Copy, Drop, apply_rules


def to_published(
    state: Mapping[str, Tensor], decoder: Mapping[str, Tensor], layout: Layout, fresh: nn.Module
) -> dict[str, Tensor]:
    """Rename a classifier or an encoder, and the decoder of a masked autoencoder.

    Args:
        state: of the model, in this package's names.
        decoder: "fusion.*" and "decoder.*"; left out where the layout holds none.
        layout: one that can be written.
        fresh: a new model of the architecture: what the layout's files may lack, and has no way back into them, is left
            out where it has its initial value, and what they hold beyond weights (tables of indices, masks) is read off
            it.

    Raises:
        ValueError: a layout that is only read, no decoder where its files have one, or a tensor that is missing or that
            the layout has no place for.
    """
    if not layout.back:
        raise ValueError(
            f"--to {layout.name}: only {', '.join(table.name for table in all_layouts() if table.back)} can be written"
        )
    initial, kept, lost = fresh.state_dict(), {}, ""
    for name, tensor in state.items():
        if not layout.may_miss(name) or any(re.fullmatch(rule.pattern, name) for rule in layout.back):
            kept[name] = tensor
        elif name not in initial or not torch.equal(tensor, initial[name].to(tensor.dtype)):
            lost = lost or name
    rest = decoder if layout.decoder else {}
    same = tuple(rule for rule in layout.rules if isinstance(rule, Copy))
    renamed, _ = apply_rules({**kept, **rest}, (*layout.back, *same), layout.name)
    if layout.added:
        renamed |= layout.added(fresh)
    if missing := layout.missing(renamed):
        if not decoder and any("mask_token" in pattern or "decoder" in pattern for pattern in missing):
            raise ValueError(f"--to {layout.name} needs a decoder, which the source does not hold")
        raise ValueError(f"--to {layout.name} needs what the source does not hold: {', '.join(missing)}")
    if lost:
        raise ValueError(f"tensor {lost!r} is trained, but the layout {layout.name!r} has no place for it")
    return renamed


def left_out(names: Iterable[str], layout: Layout) -> list[str]:
    """Those of a model's tensors that are left out of files of a layout, which have no place for them."""
    patterns = [rule.pattern for rule in layout.back if isinstance(rule, Drop)]
    return [name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)]


def write_published(state: dict[str, Tensor], file: Path, force: bool, top_key: str = "model") -> None:
    """Write {top_key: state}, or the state alone, as torch does, beside and renamed; a .safetensors file if it is
    called so.

    Raises:
        ValueError: the file exists, or cannot be written.
    """
    check_file(file, force)
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    with replacing(file) as part:
        if file.suffix.lower() == ".safetensors":
            save_tensors(state, part, {"format": "pt"})
        else:
            torch.save({top_key: state} if top_key else state, part)


def check_file(file: Path, force: bool) -> None:
    """Refuse a file before any work is done."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file")
    if file.exists() and not force:
        raise ValueError(f"{file} exists; use --force to replace it")
    if not os.access(file.absolute().parent, os.W_OK | os.X_OK):
        raise ValueError(f"{file} cannot be written: no such folder, or no permission")
