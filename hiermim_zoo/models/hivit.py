"""HiViT (arXiv 2205.14949) as a family: variants, recipes, checkpoints, names in timm. The model is in
hivit_model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ..checkpoints.layouts import Native
from ..checkpoints.tables.hivit import LAYOUTS
from ..layers.position import resample_bias_table
from .build import build_model, default_cfgs_for, timm_model
from .family import Family, add_family
from .grids import Sizes, position_table, sizes_of, source_grid
from .hivit_model import TABLE, UNIT, HiViT
from .recipes import FineTuning, Pretraining, Recipe, Rows

__all__ = ["FAMILY", "HiViT"]

VARIANTS: dict[str, dict[str, Any]] = {
    "hivit_atto": {"img_size": 64, "embed_dim": 96, "depths": (1, 1, 4), "num_heads": 3},
    "hivit_tiny": {"embed_dim": 384, "depths": (1, 1, 10), "num_heads": 6},
    "hivit_small": {"embed_dim": 384, "depths": (2, 2, 20), "num_heads": 6},
    "hivit_base": {"embed_dim": 512, "depths": (2, 2, 20), "num_heads": 8},
}


def construct(variant: str, **kwargs: Any) -> nn.Module:
    return timm_model(HiViT, variant, FAMILY.load_filter, **{**VARIANTS[variant], **kwargs})


# ---- checkpoints


def fit(state: dict[str, Tensor], native: Native, model: HiViT) -> dict[str, Tensor]:
    """Tables are resampled to the model's grid, and dropped where the model was built without them."""
    own, old, new = model.state_dict(), _grid(state, sizes_of(native, model)), model.patch_embed.grid_size
    position = state["absolute_pos_embed"]
    state["absolute_pos_embed"] = resample_abs_pos_embed(position, list(new), list(old), num_prefix_tokens=0)
    for name in [name for name in state if name.endswith(TABLE)]:
        if name not in own:
            del state[name]
        elif len(state[name]) == (2 * old[0] - 1) * (2 * old[1] - 1):
            state[name] = resample_bias_table(state[name], old, new)
    return state


def img_size(native: Native, sizes: Sizes, model_args: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _grid(native.state, sizes)
    return height * UNIT, width * UNIT


def _grid(state: Mapping[str, Tensor], sizes: Sizes) -> tuple[int, int]:
    """Units along both sides."""
    return source_grid(position_table(state, "absolute_pos_embed").shape[1], UNIT, sizes)


# ---- the family

FAMILY = add_family(
    Family(
        name="hivit",
        variants=VARIANTS,
        construct=construct,
        layouts=LAYOUTS,
        img_size=img_size,
        fit=fit,
        mae=Rows(Recipe(fusion="concat", depth=6, encoder={"rel_pos_bias": False})),
        pretraining=Rows(Pretraining(blr=1e-4)),  # arXiv 2205.14949, and the released code
        fine_tuning=Rows(FineTuning(epochs=100, blr=5e-4, layer_decay=0.85, drop_path=0.2)),
        fine_tuning_args={"rel_pos_bias": True},
    )
)
checkpoint_filter_fn = FAMILY.load_filter  # where timm's users look for it

default_cfgs = default_cfgs_for(
    {
        name: {
            "input_size": (3, 64, 64) if name == "hivit_atto" else (3, 224, 224),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for name in VARIANTS
    }
)


@FAMILY.register
def hivit_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiViT of half a million parameters for 64 x 64 images; its weights ship with the package."""
    return build_model("hivit_atto", pretrained, **kwargs)


@FAMILY.register
def hivit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiViT-T: 19.2 M parameters, 4.6 GMACs at 224."""
    return build_model("hivit_tiny", pretrained, **kwargs)


@FAMILY.register
def hivit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiViT-S: 37.5 M parameters, 9.1 GMACs at 224."""
    return build_model("hivit_small", pretrained, **kwargs)


@FAMILY.register
def hivit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiViT-B: 66.4 M parameters, 15.9 GMACs at 224."""
    return build_model("hivit_base", pretrained, **kwargs)
