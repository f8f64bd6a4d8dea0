"""One table for every layout in which weights are published.

A layout is recognised by the names in a file alone: all of ``has`` occur, none of ``lacks`` does. Layouts exclude each other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .rules import Drop, Keep, Rule, Step, apply_rules


@dataclass(frozen=True)
class Layout:
    """How one kind of published file names its tensors."""

    name: str
    family: str
    about: str  # whose files these are
    has: tuple[str, ...]  # signature: each pattern matches some name
    lacks: tuple[str, ...]  # ... and none of these matches any
    rules: tuple[Rule, ...]
    may_be_missing: tuple[str, ...] = ()  # target names that start from their initial value

    def fits(self, names: Collection[str]) -> bool:
        return all(_any(p, names) for p in self.has) and not any(_any(p, names) for p in self.lacks)

    def may_miss(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.may_be_missing)


class Native(NamedTuple):
    """A checkpoint carried over into a family's own names."""

    state: dict[str, Tensor]
    layout: Layout
    steps: list[Step]


def _any(pattern: str, names: Collection[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


# ---- HiViT (https://github.com/zhangxiaosong18/hivit)

_HIVIT_SIGNATURE = ("absolute_pos_embed", r"patch_embed\.norm\.weight", r"blocks\.0\.norm2\.weight")
_HIVIT_NOT = (r"blocks\.0\.norm1\.weight",)  # the first block of a HiViT has no attention
_BLOCK_INDEX = r"blocks\.\d+\.attn\.relative_position_index"
_HIVIT_ENCODER = (
    Keep("absolute_pos_embed"),
    Keep(r"patch_embed\.(proj|norm)\.(weight|bias)"),
    Keep(r"blocks\.\d+\.(norm|norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"),
    Keep(r"blocks\.\d+\.reduction\.weight"),
    Keep(r"blocks\.\d+\.attn\.relative_position_bias_table"),
)
_HEAD = (Keep(r"(fc_norm|head)\.(weight|bias)"),)
_INDEX_REASON = "integer index, recomputed from the grid"
_TABLES = r"blocks\.\d+\.attn\.relative_position_bias_table"

LAYOUTS = (
    Layout(
        "hivit_supervised",
        "hivit",
        "HiViT authors, supervised training (an index in every attention block)",
        has=(*_HIVIT_SIGNATURE, _BLOCK_INDEX),
        lacks=(*_HIVIT_NOT, "relative_position_index"),
        rules=(*_HIVIT_ENCODER, *_HEAD, Drop(_BLOCK_INDEX, _INDEX_REASON)),
    ),
    Layout(
        "hivit_finetuned",
        "hivit",
        "HiViT authors, fine-tuned after masked pre-training (one index at the top)",
        has=(*_HIVIT_SIGNATURE, "relative_position_index"),
        lacks=(*_HIVIT_NOT, _BLOCK_INDEX),
        rules=(*_HIVIT_ENCODER, *_HEAD, Drop("relative_position_index", _INDEX_REASON)),
    ),
    Layout(
        "hivit_mae",
        "hivit",
        "HiViT authors, masked pre-training: encoder (trained without relative bias), norm of the joined levels, decoder",
        has=(*_HIVIT_SIGNATURE, r"norm\.weight|mask_token"),
        lacks=(*_HIVIT_NOT, _BLOCK_INDEX, "relative_position_index"),
        rules=(
            *_HIVIT_ENCODER,
            Drop(r"norm\.(weight|bias)", "norm of the joined levels, used by the decoder alone"),
            Drop(r"mask_token|decoder_.*", "decoder"),
        ),
        may_be_missing=(_TABLES, r"fc_norm\.(weight|bias)"),
    ),
    Layout(
        "hivit_timm",
        "hivit",
        "this package's own files",
        has=_HIVIT_SIGNATURE,
        lacks=(*_HIVIT_NOT, _BLOCK_INDEX, "relative_position_index", r"norm\.weight", "mask_token"),
        rules=(*_HIVIT_ENCODER, *_HEAD),
        may_be_missing=(_TABLES,),
    ),
)


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ValueError: there is none.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise ValueError(f"layout {name!r} is unknown, there are {', '.join(layout.name for layout in LAYOUTS)}")


def recognise(names: Collection[str], family: str) -> Layout:
    """The layout of a file with these tensor names.

    Raises:
        ValueError: no layout fits, or one of another family does.
    """
    fitting = [layout for layout in LAYOUTS if layout.fits(names)]
    assert len(fitting) < 2, f"layouts must exclude each other: {[layout.name for layout in fitting]}"
    if fitting and fitting[0].family == family:
        return fitting[0]
    if fitting:
        raise ValueError(f"the file is {fitting[0].name!r} ({fitting[0].about}), which is no {family} checkpoint")
    known = ", ".join(layout.name for layout in LAYOUTS if layout.family == family)
    first = ", ".join(list(names)[:4])
    raise ValueError(f"the names of the {len(names)} tensors ({first}, ...) fit no layout of {family}; known are {known}")


def to_native(state: Mapping[str, Tensor], family: str, layout: str | None = None) -> Native:
    """Carry a checkpoint of any known layout over into the family's own names.

    Args:
        state: as read from the file.
        family: "hivit", ...
        layout: forces a layout instead of recognising it.

    Raises:
        ValueError: unknown layout, one of another family, or a tensor that it does not know.
    """
    table = find_layout(layout) if layout else recognise(state.keys(), family)
    if table.family != family:
        raise ValueError(f"layout {table.name!r} is of {table.family}, not of {family}")
    native, steps = apply_rules(state, table.rules, table.name)
    return Native(native, table, steps)
