"""HPViT (arXiv 2211.01785) as a family: variants, checkpoints, names in timm. The model is in hpvit_model.py."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor, nn

from ..checkpoints.layout import DECODER_REASON
from ..checkpoints.layouts import Native
from ..checkpoints.rules import Rule
from ..checkpoints.tables.vit import LAYOUTS, hpvit_from_plain, reads_class_token
from ..checkpoints.tables.vit_shared import CLASS_TOKEN_HEAD, HEAD_DROPPED, PROBE
from ..layers.arguments import checked_size
from ..layers.position import resample_positions
from .build import build_model, default_cfgs_for, timm_model
from .family import Choice, Family, add_family
from .grids import Sizes, grid_at, position_table, sizes_of, source_grid
from .hpvit_model import POOLS, STRIDE, HPViT, grid_of
from .hpvit_verify import similarity, verify
from .recipes import FineTuning, Rows

__all__ = ["FAMILY", "HPViT"]

_logger = logging.getLogger(__name__)

VARIANTS: dict[str, dict[str, Any]] = {
    "hpvit_atto": {"img_size": 64, "embed_dim": 96, "depths": (1, 1, 3, 1), "num_heads": 3, "window_size": 8},
    "hpvit_tiny": {"embed_dim": 192, "depths": (1, 1, 9, 1), "num_heads": 3},
    "hpvit_small": {"embed_dim": 384, "depths": (1, 1, 9, 1), "num_heads": 6},
    "hpvit_base": {"embed_dim": 768, "depths": (1, 1, 9, 1), "num_heads": 12},
    "hpvit_large": {"embed_dim": 1024, "depths": (2, 2, 18, 2), "num_heads": 16},
    "hpvit_huge": {"embed_dim": 1280, "depths": (2, 2, 26, 2), "num_heads": 16, "patch_size": 14},
}


def construct(variant: str, **kwargs: Any) -> nn.Module:
    args = {**VARIANTS[variant], **kwargs}
    return timm_model(HPViT, variant, FAMILY.load_filter, levels=len(args["depths"]), **args)


# ---- checkpoints


def loading_args(model: HPViT) -> dict[str, Any]:
    return {"class_token": model.class_token}


def more_rules(state: Mapping[str, Tensor], args: Mapping[str, Any]) -> Sequence[Rule]:
    """What HPViT takes of a plain ViT."""
    if reads_class_token(state):
        _logger.warning("%s", HEAD_DROPPED)
    return hpvit_from_plain(state, args)


def fit(state: dict[str, Tensor], native: Native, model: HPViT) -> dict[str, Tensor]:
    """Positions are resampled to the model's grid."""
    embed = model.patch_embed
    old, _ = _source_grid(native, sizes_of(native, model), embed.multiple, embed.patch_size[0])
    state["pos_embed"] = resample_positions(state["pos_embed"], old, embed.grid_size)
    return state


def img_size(native: Native, sizes: Sizes, model_args: Mapping[str, Any]) -> tuple[int, int]:
    """Candidates are tried with the stride of the family's own table, then as sizes of a plain ViT."""
    patch = _kernel(native)
    stride = model_args.get("patch_stride", _stride(patch))
    multiple = stride * 2 ** (len(model_args.get("depths", range(4))) - 1)
    (rows, columns), cell = _source_grid(native, sizes, multiple, stride)
    for size in filter(None, (*sizes, sizes.asked)):  # perhaps no multiple of the cells
        if (rows, columns) in (grid_of(to_2tuple(size), multiple, stride), grid_at(size, patch)):
            return checked_size(size)
    return rows * cell, columns * cell


def checkpoint_args(native: Native, arch: str) -> dict[str, Any]:
    """Patch and stride, where they are not the architecture's."""
    patch = _kernel(native)
    if patch == VARIANTS[arch].get("patch_size", 16):
        return {}
    stride = _stride(patch)
    return {"patch_size": patch, **({} if stride == STRIDE else {"patch_stride": stride})}


def _kernel(native: Native) -> int:
    """Pixels along a side of the patch convolution."""
    name = "patch_embed.proj.weight"
    if name not in native.state or native.state[name].ndim != 4:
        found = list(native.state[name].shape) if name in native.state else "missing"
        raise ValueError(f"tensor {name!r} with 4 axes is needed from the checkpoint, it is {found}")
    return native.state[name].shape[-1]


def _stride(patch: int) -> int:
    """A quarter of the patch, so that the third level has the grid of the plain ViT; where that is no whole number, or
    the patch could not be centred on its cell, that of 16-pixel patches.
    """
    return patch // 4 if patch % 8 == 0 else STRIDE


def notes(native: Native, config: Mapping[str, Any], model: HPViT) -> dict[str, str]:
    """What report, card and configuration say of a conversion.

    What became of patch embedding and positions, and whether the plain ViT was pre-trained by masking, as the paper's
    were.

    Args:
        native: the source.
        config: timm's ``pretrained_cfg`` beside it; may be empty.
        model: what it became.
    """
    if native.layout.own:
        return {}
    tag, reasons = str(config.get("tag") or ""), {step.why for step in native.steps}
    if "mae" in tag.split("_") or reasons & {DECODER_REASON, PROBE}:
        said = "masked autoencoding (MAE)"
    elif tag or CLASS_TOKEN_HEAD in reasons:
        why = f"tag {tag}" if tag else "the source has a classifier of the class token"
        said = f"not MAE ({why}), which the paper builds on"
    else:
        said = "not stated in the source; the paper builds on MAE"
    patch, embed = model.patch_embed.proj.kernel_size[0], model.patch_embed
    grids = (_source_grid(native, Sizes((native.size,)), embed.multiple, embed.patch_size[0])[0], embed.grid_size)
    return {
        "pre-training of the plain ViT": said,
        "patch embedding": f"kept, {patch} x {patch} pixels, stride {patch} -> {embed.patch_size[0]}",
        "positions": " -> ".join(f"{rows} x {columns}" for rows, columns in grids),
    }


def _source_grid(native: Native, sizes: Sizes, multiple: int, stride: int) -> tuple[tuple[int, int], int]:
    """The grid of a checkpoint's table, and the pixels from one cell of it to the next.

    Under the family's own names stands a table of HPViT's grid, or that of a plain ViT without class token.
    """
    rows, patch = position_table(native.state, "pos_embed").shape[1], _kernel(native)
    if not native.layout.own:
        return source_grid(rows, patch, sizes, prefix=1), patch
    for size in filter(None, sizes):
        for grid, cell in ((grid_of(to_2tuple(size), multiple, stride), stride), (grid_at(size, patch), patch)):
            if math.prod(grid) == rows:
                return grid, cell
    if sizes.asked is not None and math.isqrt(rows) ** 2 != rows:
        grid = grid_of(to_2tuple(sizes.asked), multiple, stride)
        if math.prod(grid) == rows:
            return grid, stride
    return source_grid(rows, stride, sizes), stride


# ---- the family

# Nothing was published for HPViT: what the plain ViT of its size is fine-tuned with.
_TUNE = FineTuning(
    epochs=100,
    blr=5e-4,
    layer_decay=0.65,
    drop_path=0.1,
    source="of a plain ViT: arXiv 2111.06377, table 9; MAE FINETUNE.md, main_finetune.py",
)

FAMILY = add_family(
    Family(
        name="hpvit",
        variants=VARIANTS,
        construct=construct,
        layouts=LAYOUTS,
        img_size=img_size,
        fit=fit,
        checkpoint_args=checkpoint_args,
        loading_args=loading_args,
        more_rules=more_rules,
        notes=notes,
        verify=verify,
        similarity=similarity,
        choices=(
            Choice("pool", "what stands between the stages", among=POOLS),
            Choice("depths", "blocks of each stage", type=int, many=True),
            Choice("patch_stride", "pixels from one token of the first level to the next", type=int),
            Choice("window_size", "tokens along a side of a window, 0 for none", type=int),
            Choice("class_token", "keep it as one more token of every window", type=bool),
        ),
        fine_tuning=Rows(
            _TUNE,
            {
                "hpvit_large": replace(_TUNE, epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.2),
                "hpvit_huge": replace(_TUNE, epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.3),
            },
        ),
    )
)
checkpoint_filter_fn = FAMILY.load_filter  # where timm's users look for it

default_cfgs = default_cfgs_for(
    {
        name: {
            "input_size": (3, 64, 64) if name == "hpvit_atto" else (3, 224, 224),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for name in VARIANTS
    }
)


@FAMILY.register
def hpvit_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HPViT of 0.8 million parameters for 64 x 64 images, from a plain ViT of 6 blocks and width 96 with 16-pixel
    patches.
    """
    return build_model("hpvit_atto", pretrained, **kwargs)


@FAMILY.register
def hpvit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HPViT from ViT-Ti/16."""
    return build_model("hpvit_tiny", pretrained, **kwargs)


@FAMILY.register
def hpvit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HPViT from ViT-S/16."""
    return build_model("hpvit_small", pretrained, **kwargs)


@FAMILY.register
def hpvit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HPViT from ViT-B/16."""
    return build_model("hpvit_base", pretrained, **kwargs)


@FAMILY.register
def hpvit_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HPViT from ViT-L/16."""
    return build_model("hpvit_large", pretrained, **kwargs)


@FAMILY.register
def hpvit_huge(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HPViT from ViT-H/14."""
    return build_model("hpvit_huge", pretrained, **kwargs)
