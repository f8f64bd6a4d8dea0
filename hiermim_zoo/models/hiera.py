"""Hiera (arXiv 2306.00989) as a family: variants, recipes, checkpoints, names in timm. The model is in
hiera_model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ..checkpoints.layouts import Native
from ..checkpoints.rules import Copy, Rename, Reshape, apply_rules, then
from ..checkpoints.tables.hiera import LAYOUTS
from ..text import counted
from .build import build_model, default_cfgs_for, timm_model
from .family import Family, add_family
from .grids import Sizes, position_table, sizes_of, source_grid
from .hiera_model import Hiera
from .hiera_parts import KERNEL, SIDE, STRIDE, UNIT, resize_frames, resize_table
from .recipes import FineTuning, Pretraining, Recipe, Rows

__all__ = ["FAMILY", "Hiera"]

INFLATIONS = ("center", "mean")

_IMAGES: dict[str, dict[str, Any]] = {
    "hiera_tiny": {"embed_dim": 96, "depths": (1, 2, 7, 2), "num_heads": 1},
    "hiera_small": {"embed_dim": 96, "depths": (1, 2, 11, 2), "num_heads": 1},
    "hiera_base": {"embed_dim": 96, "depths": (2, 3, 16, 3), "num_heads": 1},
    "hiera_base_plus": {"embed_dim": 112, "depths": (2, 3, 16, 3), "num_heads": 2},
    "hiera_large": {"embed_dim": 144, "depths": (2, 6, 36, 4), "num_heads": 2},
    "hiera_huge": {"embed_dim": 256, "depths": (2, 6, 36, 4), "num_heads": 4},
}
# A unit has 32 x 32 pixels: 3 x 3 of them in an image, 4 x 2 x 2 in a clip, so that there is something to hide.
_ATTO: dict[str, Any] = {"img_size": 96, "embed_dim": 24, "depths": (1, 1, 3, 1), "num_heads": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "hiera_atto": _ATTO,
    "hiera_atto_video": {**_ATTO, "img_size": 64, "num_frames": 8},
    "hiera_lite": {"embed_dim": 46, "depths": (1, 2, 7, 2), "num_heads": 1},  # of MAE-Lite (arXiv 2404.12210)
    **_IMAGES,
    **{f"{name}_video": {**_IMAGES[name], "num_frames": 16} for name in list(_IMAGES)[2:]},  # from base on
}


def construct(variant: str, **kwargs: Any) -> nn.Module:
    return timm_model(Hiera, variant, FAMILY.load_filter, **{**VARIANTS[variant], **kwargs})


# ---- checkpoints


def fit(state: dict[str, Tensor], native: Native, model: Hiera) -> dict[str, Tensor]:
    """Positions are resampled to the model's grid and frames; a classifier is left out where the model has none.

    timm adapts the stem of images, but not that of clips: it is adapted here.
    """
    if not model.num_classes:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    name = "pos_embed" if model.num_frames is None else "pos_embed_spatial"
    old = _grid(state, name, sizes_of(native, model))
    state[name] = resize_table(state[name], old, model.patch_embed.grid_size, model.pos_resize)
    if model.num_frames is not None:
        state["pos_embed_temporal"] = resize_frames(
            position_table(state, "pos_embed_temporal"), model.num_frames // UNIT[0]
        )
    stem = state.get("patch_embed.proj.weight")
    if stem is not None and stem.ndim == 5 and stem.shape[1] != model.in_chans:
        frames = [adapt_input_conv(model.in_chans, part, base_chans=stem.shape[1]) for part in stem.unbind(2)]
        state["patch_embed.proj.weight"] = torch.stack(frames, dim=2)
    return state


def img_size(native: Native, sizes: Sizes, model_args: Mapping[str, Any]) -> tuple[int, int]:
    name = "pos_embed_spatial" if "pos_embed_spatial" in native.state else "pos_embed"
    height, width = _grid(native.state, name, sizes)
    return height * UNIT[1], width * UNIT[2]


def checkpoint_args(native: Native, arch: str) -> dict[str, Any]:
    """The number of frames, where the table of times is not the architecture's."""
    table = native.state.get("pos_embed_temporal")
    frames = None if table is None or table.ndim != 3 else table.shape[1] * STRIDE[0]
    return {"num_frames": frames} if frames and frames != VARIANTS[arch].get("num_frames") else {}


def inflate(native: Native, arch: str, how: str) -> Native:
    """A checkpoint of images as one of clips.

    Positions become those in space, positions in time start at zero. With "center" a model of clips computes of a clip
    that stands still what the model of images computes of its image, at every time; with "mean" its convolution does
    so, but for the first frames, before which there is nothing.

    Args:
        native: of a model of images.
        arch: model of clips.
        how: what the convolution does in time: "center", it sees the frame in the middle alone; "mean", all of them
            alike.

    Raises:
        ValueError: unknown ``how``, a checkpoint of clips already, or a model of images.
    """
    if how not in INFLATIONS:
        raise ValueError(f"--inflate {how} is unknown, use {' or '.join(INFLATIONS)}")
    frames = VARIANTS[arch].get("num_frames")
    if not frames or "pos_embed" not in native.state:
        raise ValueError(
            f"--inflate makes a checkpoint of images one of clips: {arch} or the source is not of that kind"
        )
    taps = torch.eye(KERNEL[0])[KERNEL[0] // 2] if how == "center" else torch.full((KERNEL[0],), 1 / KERNEL[0])
    rules = (
        Rename("pos_embed", "pos_embed_spatial"),
        Reshape(
            r"patch_embed\.proj\.weight",
            "patch_embed.proj.weight",
            lambda w: w[:, :, None] * taps.to(w)[:, None, None],  # [c, C, 3, 7, 7]
            f"inflated in time, {how}",
        ),
        Copy(".*"),
    )
    state, more = apply_rules(native.state, rules, native.layout.name)
    state["pos_embed_temporal"] = torch.zeros(1, frames // STRIDE[0], state["pos_embed_spatial"].shape[-1])
    return native._replace(state=state, steps=then(native.steps, more))


def _grid(state: Mapping[str, Tensor], name: str, sizes: Sizes) -> tuple[int, int]:
    """Units along both sides."""
    tokens = position_table(state, name).shape[1]
    if tokens % SIDE**2:
        raise ValueError(f"tensor {name!r} has {counted(tokens, 'rows')}, which are no units of {SIDE} x {SIDE} tokens")
    return source_grid(tokens // SIDE**2, UNIT[-1], sizes, rows=SIDE**2)


# ---- recipes

IMAGE_MAE = Recipe(
    fusion="conv",
    depth=8,
    learned_positions=True,
    pixel_order="chw",
    mask_ratio=0.6,
    encoder={"q_pool": 2},
    xavier=True,
    source="hiera/hiera_mae.py of facebookresearch/hiera",
)
# The paper names 8 decoder heads for video, the released code builds 16 for the same files; outputs follow the code.
_MAE_VIDEO = replace(IMAGE_MAE, pixel_order="hwc", first_frame=True, mask_ratio=0.9)

_MAE_LITE = replace(
    IMAGE_MAE, depth=1, dim=96, heads=3, mask_ratio=0.4, source="projects/mae_lite/hiera_mae.py of wangsr126/MAE-Lite"
)

# No training code was released. The paper's learning rates are those of a whole batch (it does not say so, but its
# figures for detection are); a row has the 256th part of a batch: 8e-4 * 256 / 4096 for images, 8e-4 * 256 / 512 for
# clips.
_PAPER = "arXiv 2306.00989, appendix A"
_CONFIGS = f"{_PAPER}; epochs counted as in SlowFast, configs/masked_ssl/k400_VIT_"
IMAGE_PRETRAINING = Pretraining(blr=5e-5, decay_positions=False, source=_PAPER)
# Epochs of clips are effective ones (arXiv 2205.09113, appendix; SlowFast, configs/masked_ssl): 3200 are 800 openings
# of each video, which give 4 clips, and 120 of warm-up are 30. Unverified: that a batch of 512 counts clips, and that
# gradients are not clipped. (MAE on clips, in these configurations, clips at 0.02; the paper says nothing.)
_PRE_VIDEO = replace(
    IMAGE_PRETRAINING,
    blr=4e-4,
    epochs=3200,
    batch=512,
    warmup=120,
    repeat=4,
    crop_scale=(0.5, 1.0),
    source=f"{_CONFIGS}L_16x4_MAE_PT.yaml",
)
IMAGE_FINE_TUNING = FineTuning(epochs=300, blr=5e-4, layer_decay=0.65, drop_path=0.1, erase=0.0, source=_PAPER)
# As after 3200 epochs of pre-training. 150 epochs are 75 openings of each video, which give 2 clips; the warm-up is 5.
# Dropout is that of the paper; the configurations of ViTs, MAX_EPOCH 75 (base) and 50 (large), have 0.3 for all.
_TUNE_VIDEO = FineTuning(
    epochs=150,
    blr=8e-4,
    layer_decay=0.8,
    drop_path=0.2,
    batch=256,
    repeat=2,
    warmup=10,
    erase=0.0,
    auto_augment="rand-m7-mstd0.5-inc1",
    clip=5.0,
    dropout=0.3,
    source=f"{_CONFIGS}B_16x4_FT.yaml",
)
_TUNE_LARGE = replace(_TUNE_VIDEO, epochs=100, layer_decay=0.875, dropout=0.5, source=f"{_CONFIGS}L_16x4_FT.yaml")
PRETRAINING = {
    "hiera_lite": replace(
        IMAGE_PRETRAINING,
        blr=1.5e-4,
        epochs=400,
        crop_scale=(0.08, 1.0),
        source="MAE-Lite projects/mae_lite/hiera_mae_exp.py",
    ),
    **dict.fromkeys(("hiera_base", "hiera_base_plus", "hiera_large"), replace(IMAGE_PRETRAINING, drop_path=0.2)),
    "hiera_huge": replace(IMAGE_PRETRAINING, drop_path=0.3),
    "hiera_atto_video": _PRE_VIDEO,
    "hiera_base_video": replace(_PRE_VIDEO, drop_path=0.1),
    **dict.fromkeys(("hiera_base_plus_video", "hiera_large_video"), replace(_PRE_VIDEO, drop_path=0.2)),
    "hiera_huge_video": replace(_PRE_VIDEO, blr=1.6e-4, drop_path=0.4),
}
FINE_TUNING = {
    "hiera_lite": replace(
        IMAGE_FINE_TUNING,
        blr=1e-3,
        layer_decay=0.85,
        drop_path=0.0,
        auto_augment="rand-m10-mstd0.5-inc1",
        mixup=0.2,
        cutmix=0.0,
        smoothing=0.0,
        source="MAE-Lite projects/eval_tools/finetuning_exp.py",
    ),
    "hiera_small": replace(IMAGE_FINE_TUNING, epochs=200),
    "hiera_base": replace(IMAGE_FINE_TUNING, epochs=100, layer_decay=0.7),
    "hiera_base_plus": replace(IMAGE_FINE_TUNING, epochs=100, blr=2.5e-4, layer_decay=0.7),
    "hiera_large": replace(IMAGE_FINE_TUNING, epochs=50, blr=2.5e-4, layer_decay=0.85),
    "hiera_huge": replace(IMAGE_FINE_TUNING, epochs=50, blr=2.5e-4, layer_decay=0.85, drop_path=0.3),
    **dict.fromkeys(("hiera_atto_video", "hiera_base_video", "hiera_base_plus_video"), _TUNE_VIDEO),
    "hiera_large_video": _TUNE_LARGE,
    "hiera_huge_video": replace(_TUNE_LARGE, blr=4e-4, drop_path=0.3),
}

# ---- the family

FAMILY = add_family(
    Family(
        name="hiera",
        variants=VARIANTS,
        construct=construct,
        layouts=LAYOUTS,
        img_size=img_size,
        fit=fit,
        checkpoint_args=checkpoint_args,
        inflate=inflate,
        mae=Rows(
            IMAGE_MAE,
            {"hiera_lite": _MAE_LITE, **{name: _MAE_VIDEO for name, args in VARIANTS.items() if "num_frames" in args}},
        ),
        pretraining=Rows(IMAGE_PRETRAINING, PRETRAINING),
        fine_tuning=Rows(IMAGE_FINE_TUNING, FINE_TUNING),
        fine_tuning_args={"q_pool": 3},
    )
)
checkpoint_filter_fn = FAMILY.load_filter  # where timm's users look for it

default_cfgs = default_cfgs_for(
    {
        name: {
            "input_size": (3, *to_2tuple(args.get("img_size", 224))),
            "num_classes": 400 if "num_frames" in args else 1000,
            "first_conv": None
            if "num_frames" in args
            else "patch_embed.proj",  # timm adapts two-dimensional ones alone
            "classifier": "head",
        }
        for name, args in VARIANTS.items()
    }
)


@FAMILY.register
def hiera_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera of a million parameters for 96 x 96 images."""
    return build_model("hiera_atto", pretrained, **kwargs)


@FAMILY.register
def hiera_atto_video(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera of a million parameters for 64 x 64 clips of 8 frames."""
    return build_model("hiera_atto_video", pretrained, **kwargs)


@FAMILY.register
def hiera_lite(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MAE-Lite's Hiera, half as wide as Hiera-T: 6.7 M parameters, 1.2 GMACs at 224."""
    return build_model("hiera_lite", pretrained, **kwargs)


@FAMILY.register
def hiera_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-T: 27.9 M parameters, 4.9 GMACs at 224."""
    return build_model("hiera_tiny", pretrained, **kwargs)


@FAMILY.register
def hiera_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-S: 35.0 M parameters, 6.4 GMACs at 224."""
    return build_model("hiera_small", pretrained, **kwargs)


@FAMILY.register
def hiera_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-B: 51.5 M parameters, 9.4 GMACs at 224."""
    return build_model("hiera_base", pretrained, **kwargs)


@FAMILY.register
def hiera_base_plus(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-B+: 69.9 M parameters, 12.7 GMACs at 224."""
    return build_model("hiera_base_plus", pretrained, **kwargs)


@FAMILY.register
def hiera_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-L: 213.7 M parameters, 40.3 GMACs at 224."""
    return build_model("hiera_large", pretrained, **kwargs)


@FAMILY.register
def hiera_huge(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-H: 672.8 M parameters, 124.9 GMACs at 224."""
    return build_model("hiera_huge", pretrained, **kwargs)


@FAMILY.register
def hiera_base_video(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-B for clips of 16 frames: 51.1 M parameters, 102 GFLOPs."""
    return build_model("hiera_base_video", pretrained, **kwargs)


@FAMILY.register
def hiera_base_plus_video(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-B+ for clips of 16 frames: 69.4 M parameters, 133 GFLOPs."""
    return build_model("hiera_base_plus_video", pretrained, **kwargs)


@FAMILY.register
def hiera_large_video(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-L for clips of 16 frames: 213.1 M parameters, 413 GFLOPs."""
    return build_model("hiera_large_video", pretrained, **kwargs)


@FAMILY.register
def hiera_huge_video(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hiera-H for clips of 16 frames: 671.6 M parameters, 1159 GFLOPs."""
    return build_model("hiera_huge_video", pretrained, **kwargs)
