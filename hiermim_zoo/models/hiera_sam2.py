"""SAM 2's image encoder (arXiv 2408.00714) as a family: variants, recipes, checkpoints, names in timm. The model is in
hiera_sam2_model.py. timm has the encoder itself as ``sam2_hiera_*``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor, nn

from ..checkpoints.layouts import Native
from ..checkpoints.tables.hiera_sam2 import LAYOUTS
from .build import build_model, default_cfgs_for, timm_model
from .family import Family, add_family
from .grids import Sizes, size_of_decoder
from .hiera import FINE_TUNING, IMAGE_FINE_TUNING, IMAGE_MAE, IMAGE_PRETRAINING, PRETRAINING
from .hiera_sam2_model import HieraSam2
from .recipes import Row, Rows

__all__ = ["FAMILY", "HieraSam2"]

VARIANTS: dict[str, dict[str, Any]] = {
    # 4 x 4 units of 32 x 32 pixels, 2 x 2 in a window: the least that has windows, masks and a block that sees all.
    "hiera_sam2_atto": {
        "img_size": 128,
        "embed_dim": 24,
        "depths": (1, 1, 3, 2),
        "num_heads": 1,
        "window_spec": (8, 4, 4, 2),
        "global_att_blocks": (4,),
        "global_pos_size": (4, 4),
    },
    "hiera_sam2_tiny": {"embed_dim": 96, "depths": (1, 2, 7, 2), "num_heads": 1, "global_att_blocks": (5, 7, 9)},
    "hiera_sam2_small": {"embed_dim": 96, "depths": (1, 2, 11, 2), "num_heads": 1, "global_att_blocks": (7, 10, 13)},
    "hiera_sam2_base_plus": {
        "embed_dim": 112,
        "depths": (2, 3, 16, 3),
        "num_heads": 2,
        "global_att_blocks": (12, 16, 20),
        "global_pos_size": (14, 14),
    },
    "hiera_sam2_large": {
        "img_size": 1024,
        "embed_dim": 144,
        "depths": (2, 6, 36, 4),
        "num_heads": 2,
        "window_spec": (8, 4, 16, 8),
        "global_att_blocks": (23, 33, 43),
    },
}
CELL = 16  # pixels along a side of a token that the decoder has: the last stage is not pooled in masked pre-training
SIZE = 896  # as timm's; the authors feed 1024 x 1024, which windows of 14 tokens do not divide


def construct(variant: str, **kwargs: Any) -> nn.Module:
    return timm_model(HieraSam2, variant, FAMILY.load_filter, **{**VARIANTS[variant], **kwargs})


def fit(state: dict[str, Tensor], native: Native, model: HieraSam2) -> dict[str, Tensor]:
    """A classifier is left out where the model has none; positions are resampled whenever images are seen."""
    if not model.num_classes:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    return state


def img_size(native: Native, sizes: Sizes, model_args: Mapping[str, Any]) -> Any:
    return size_of_decoder(native, CELL, sizes)


def checkpoint_args(native: Native, arch: str) -> dict[str, Any]:
    """Rows and columns of the coarse positions, where they are not the architecture's."""
    coarse = native.state.get("pos_embed")
    size = None if coarse is None or coarse.ndim != 4 else tuple(coarse.shape[2:])
    return {"global_pos_size": size} if size and size != VARIANTS[arch].get("global_pos_size", (7, 7)) else {}


# ---- recipes
#
# SAM 2's encoder starts from a Hiera of the same size that was pre-trained by masking (arXiv 2408.00714, section 4 and
# appendix D); how that was done with windows, at which size and with which rates, is not published. So each size has
# the rows of the Hiera of its size (arXiv 2306.00989, appendix A).


def _of_hiera(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows of Hiera, under this family's names."""
    same = {name: name.replace("_sam2", "") for name in VARIANTS}
    return {name: rows[hiera] for name, hiera in same.items() if hiera in rows}


FAMILY = add_family(
    Family(
        name="hiera_sam2",
        variants=VARIANTS,
        construct=construct,
        layouts=LAYOUTS,
        img_size=img_size,
        fit=fit,
        checkpoint_args=checkpoint_args,
        mae=Rows(IMAGE_MAE),
        pretraining=Rows(IMAGE_PRETRAINING, _of_hiera(PRETRAINING)),
        fine_tuning=Rows(IMAGE_FINE_TUNING, _of_hiera(FINE_TUNING)),
        fine_tuning_args={"q_pool": 3},
    )
)
checkpoint_filter_fn = FAMILY.load_filter  # where timm's users look for it

default_cfgs = default_cfgs_for(
    {
        name: {
            "input_size": (3, *to_2tuple(args.get("img_size", SIZE))),
            "crop_pct": 1.0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for name, args in VARIANTS.items()
    }
)


@FAMILY.register
def hiera_sam2_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SAM 2's encoder of a million parameters for 128 x 128 images, windows of 2 x 2 units."""
    return build_model("hiera_sam2_atto", pretrained, **kwargs)


@FAMILY.register
def hiera_sam2_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Encoder of SAM 2-T, maskable."""
    return build_model("hiera_sam2_tiny", pretrained, **kwargs)


@FAMILY.register
def hiera_sam2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Encoder of SAM 2-S, maskable."""
    return build_model("hiera_sam2_small", pretrained, **kwargs)


@FAMILY.register
def hiera_sam2_base_plus(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Encoder of SAM 2-B+, maskable."""
    return build_model("hiera_sam2_base_plus", pretrained, **kwargs)


@FAMILY.register
def hiera_sam2_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Encoder of SAM 2-L, maskable."""
    return build_model("hiera_sam2_large", pretrained, **kwargs)
