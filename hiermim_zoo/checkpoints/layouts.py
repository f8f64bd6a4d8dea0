"""One table for every layout in which weights are published.

A layout is recognised by the names in a file alone: all of ``has`` occur, none of ``lacks`` does. Layouts exclude each other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from .rules import Drop, Keep, Rename, Rule, Step, apply_rules


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
    decoder: tuple[
        Rename, ...
    ] = ()  # the rest of a masked autoencoder: to "fusion.*" and "decoder.*", or dropped with its reason
    back: tuple[Rename, ...] = ()  # the names of ``decoder`` the other way round
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # of timm's config, where the architecture's default is wrong

    def fits(self, names: Collection[str]) -> bool:
        return all(_any(p, names) for p in self.has) and not any(_any(p, names) for p in self.lacks)

    def may_miss(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.may_be_missing)


class Native(NamedTuple):
    """A checkpoint carried over into a family's own names."""

    state: dict[str, Tensor]
    layout: Layout
    steps: list[Step]
    decoder: dict[str, Tensor]  # "fusion.*" and "decoder.*"; empty unless asked for


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
_MAE_DECODER = (
    Rename("mask_token", "decoder.mask_token"),
    Rename("decoder_pos_embed", "decoder.pos_embed"),
    Rename(r"decoder_(embed|norm|pred)\.(weight|bias)", r"decoder.\1.\2"),
    Rename(r"decoder_blocks\.(\d+)\.(.+)", r"decoder.blocks.\1.\2"),
)
_MAE_DECODER_BACK = (
    Rename(r"decoder\.mask_token", "mask_token"),
    Rename(r"decoder\.pos_embed", "decoder_pos_embed"),
    Rename(r"decoder\.(embed|norm|pred)\.(weight|bias)", r"decoder_\1.\2"),
    Rename(r"decoder\.blocks\.(\d+)\.(.+)", r"decoder_blocks.\1.\2"),
)
_HEAD = (Keep(r"(fc_norm|head)\.(weight|bias)"),)
_INDEX_REASON = "integer index, recomputed from the grid"
_TABLES = r"blocks\.\d+\.attn\.relative_position_bias_table"

# ---- plain ViT (https://github.com/facebookresearch/mae)

_VIT_ENCODER = (
    Keep("cls_token|pos_embed"),
    Keep(r"(patch_embed\.proj|norm)\.(weight|bias)"),
    Keep(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"),
)
_VIT_SIGNATURE = ("cls_token", "pos_embed", r"patch_embed\.proj\.weight", r"blocks\.0\.norm1\.weight", r"norm\.weight")

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
        rules=(*_HIVIT_ENCODER,),
        may_be_missing=(_TABLES, r"fc_norm\.(weight|bias)"),
        decoder=(Rename(r"norm\.(weight|bias)", r"fusion.norm.\1"), *_MAE_DECODER),
        back=(Rename(r"fusion\.norm\.(weight|bias)", r"norm.\1"), *_MAE_DECODER_BACK),
    ),
    Layout(
        "vit_mae",
        "vision_transformer",
        "MAE authors, masked pre-training with decoder (mae_pretrain_vit_*_full.pth, mae_visualize_vit_*.pth)",
        has=(*_VIT_SIGNATURE, "mask_token"),
        lacks=(),
        rules=_VIT_ENCODER,
        decoder=_MAE_DECODER,
        back=_MAE_DECODER_BACK,
        preprocessing={"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bicubic"},
    ),
    Layout(
        "vit_timm",
        "vision_transformer",
        "timm's names of a plain ViT without classifier, which are those of MAE's encoder files",
        has=_VIT_SIGNATURE,
        lacks=("mask_token", r"(head|fc_norm)\.weight"),
        rules=_VIT_ENCODER,
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


def to_native(state: Mapping[str, Tensor], family: str, layout: str | None = None, *, decoder: bool = False) -> Native:
    """Carry a checkpoint of any known layout over into the family's own names.

    Args:
        state: as read from the file.
        family: "hivit", ...
        layout: forces a layout instead of recognising it.
        decoder: keep the decoder of a masked autoencoder, apart from the encoder.

    Raises:
        ValueError: unknown layout, one of another family or without decoder, or a tensor that it does not know.
    """
    table = find_layout(layout) if layout else recognise(state.keys(), family)
    if table.family != family:
        raise ValueError(f"layout {table.name!r} is of {table.family}, not of {family}")
    if decoder and not table.decoder:
        raise ValueError(f"the file is {table.name!r} ({table.about}), which holds no decoder")
    rest: tuple[Rule, ...] = table.decoder
    if not decoder:
        rest = tuple(Drop(rule.pattern, "decoder of the masked autoencoder") for rule in table.decoder)
    native, steps = apply_rules(state, (*table.rules, *rest), table.name)
    apart = {name: native.pop(name) for name in list(native) if name.startswith(("fusion.", "decoder."))}
    return Native(native, table, steps, apart)
