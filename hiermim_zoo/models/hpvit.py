"""HPViT (arXiv 2211.01785) as a family: variants, checkpoints, names in timm. The model is in hpvit_model.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import resample_abs_pos_embed, to_2tuple
from torch import Tensor, nn

from ..checkpoints.layout import DECODER_REASON
from ..checkpoints.layouts import Native
from ..checkpoints.tables.vit import LAYOUTS, hpvit_from_plain
from ..layers.arguments import checked_size
from .build import build_model, default_cfgs_for, known_sizes, source_grid, timm_model
from .family import Choice, Family, add_family
from .hpvit_model import POOLS, STRIDE, HPViT, grid_of
from .hpvit_verify import similarity, verify
from .recipes import FineTuning, Rows

__all__ = ["FAMILY", "HPViT"]

VARIANTS: dict[str, dict[str, Any]] = {
    "hpvit_atto": {"img_size": 64, "embed_dim": 96, "depths": (1, 1, 3, 1), "num_heads": 3, "window_size": 8},
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


def fit(state: dict[str, Tensor], native: Native, model: HPViT) -> dict[str, Tensor]:
    """Positions are resampled to the model's grid."""
    embed = model.patch_embed
    old, new = _source_grid(native, known_sizes(model), embed.multiple, embed.patch_size[0]), embed.grid_size
    position = state["pos_embed"]
    state["pos_embed"] = resample_abs_pos_embed(position, list(new), list(old), num_prefix_tokens=0)
    return state


def img_size(native: Native, sizes: Sequence[Any], model_args: Mapping[str, Any]) -> tuple[int, int]:
    """Candidates are tried with the stride of the family's own table, then as sizes of a plain ViT."""
    patch = _tensor(native, "patch_embed.proj.weight", 4).shape[-1]
    tokens = _tensor(native, "pos_embed", 3).shape[1]
    stride = model_args.get("patch_stride", STRIDE) if native.layout.own else patch
    if native.layout.own:
        multiple = stride * 2 ** (len(model_args.get("depths", range(4))) - 1)
        for step in (
            (multiple, stride),
            (patch, patch),
        ):  # the second: a plain ViT without class token, under the same names
            for size in filter(None, sizes):
                if math.prod(grid_of(to_2tuple(size), *step)) == tokens:
                    return checked_size(size)
    side = source_grid(tokens, stride, ())[0] * stride
    return side, side


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
    tag, probed = str(config.get("tag") or ""), any(step.source.startswith("head.0.running") for step in native.steps)
    if "mae" in tag.split("_") or probed or any(step.why == DECODER_REASON for step in native.steps):
        said = "masked autoencoding (MAE)"
    elif tag or native.layout.name in ("vit_class_token", "vit_class_token_transformers"):
        why = f"tag {tag}" if tag else "the source has a classifier of the class token"
        said = f"not MAE ({why}), which the paper builds on"
    else:
        said = "not stated in the source; the paper builds on MAE"
    patch, embed = model.patch_embed.proj.kernel_size[0], model.patch_embed
    grids = (_source_grid(native, (), embed.multiple, embed.patch_size[0]), embed.grid_size)
    return {
        "pre-training of the plain ViT": said,
        "patch embedding": f"kept, {patch} x {patch} pixels, stride {patch} -> {embed.patch_size[0]}",
        "positions": " -> ".join(f"{rows} x {columns}" for rows, columns in grids),
    }


def _source_grid(native: Native, sizes: Sequence[Any], multiple: int, stride: int) -> tuple[int, int]:
    """The grid of a checkpoint's table. Tables of plain ViTs are square: that a size also fits by number would be
    chance.
    """
    tokens = _tensor(native, "pos_embed", 3).shape[1]
    if native.layout.own:
        for size in filter(None, sizes):
            grid = grid_of(to_2tuple(size), multiple, stride)
            if math.prod(grid) == tokens:
                return grid
    return source_grid(tokens, stride, ())


def _tensor(native: Native, name: str, axes: int) -> Tensor:
    if name not in native.state or native.state[name].ndim != axes:
        found = list(native.state[name].shape) if name in native.state else "missing"
        raise ValueError(f"tensor {name!r} with {axes} axes is needed from the checkpoint, it is {found}")
    return native.state[name]


# ---- the family

FAMILY = add_family(
    Family(
        name="hpvit",
        variants=VARIANTS,
        construct=construct,
        layouts=LAYOUTS,
        img_size=img_size,
        fit=fit,
        loading_args=loading_args,
        more_rules=hpvit_from_plain,
        notes=notes,
        verify=verify,
        similarity=similarity,
        choices=(
            Choice("pool", "what stands between the stages", among=POOLS),
            Choice("depths", "blocks of each stage", type=int, many=True),
            Choice("window_size", "tokens along a side of a window, 0 for none", type=int),
            Choice("class_token", "keep it as one more token of every window", type=bool),
        ),
        # Nothing was published for HPViT: what the plain ViT of its size is fine-tuned with (arXiv 2111.06377, table
        # 9).
        fine_tuning=Rows(
            FineTuning(epochs=100, blr=5e-4, layer_decay=0.65, drop_path=0.1),
            {
                "hpvit_large": FineTuning(epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.2),
                "hpvit_huge": FineTuning(epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.3),
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
