"""HiViT (arXiv 2205.14949) as a family: variants, recipes, checkpoints, names in timm. The model is in
hivit_model.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..checkpoints.layouts import Native
from ..checkpoints.tables.hivit import LAYOUTS
from ..layers.position import resample_bias_table, resample_positions
from ..text import counted
from .build import build_model, default_cfgs_for, timm_model
from .family import Choice, Family, add_family
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
    """Tables are resampled to the model's grid, and dropped where the model was built without them.

    Raises:
        ValueError: a checkpoint of other depths, or with bias tables of windows smaller than its grid.
    """
    check_depths(state, model)
    own, old, new = model.state_dict(), _grid(state, sizes_of(native, model)), model.patch_embed.grid_size
    position = state["absolute_pos_embed"]
    state["absolute_pos_embed"] = resample_positions(position, old, new)
    for name in [name for name in state if name.endswith(TABLE)]:
        if name not in own:
            del state[name]
        elif name in native.state and (grid := _table_grid(name, state[name], old)):
            state[name] = resample_bias_table(state[name], grid, new)
    return state


def check_depths(state: Mapping[str, Tensor], model: HiViT) -> None:
    """Refuse a checkpoint of the model's width whose stages have other depths.

    Raises:
        ValueError: says which, and how a model is built that has them.
    """
    stem, found = state.get("patch_embed.proj.weight"), depths_of(state)
    first, second = model.stage_ends[:2]
    own = ((first + 1) // 2, (second - first - 1) // 2, len(model.blocks) - model.first_attention)
    if stem is not None and len(stem) == model.patch_embed.proj.out_channels and found and found != own:
        wanted, built = (", ".join(map(str, depths)) for depths in (found, own))
        raise ValueError(
            f"tensors (blocks.*) of the checkpoint are of stages of {wanted} blocks, the model has {built}: "
            f"--depths {' '.join(map(str, found))} (in Python depths=({wanted})) builds one that fits"
        )


def depths_of(names: Iterable[str]) -> tuple[int, int, int] | None:
    """Blocks of each stage as the names of a state dict tell; None where they are of no HiViT."""
    merges = sorted({int(m[1]) for name in names if (m := re.fullmatch(r"blocks\.(\d+)\.reduction\.weight", name))})
    main = {int(m[1]) for name in names if (m := re.fullmatch(r"blocks\.(\d+)\.norm1\.weight", name))}
    if len(merges) != 2 or not main or merges[0] % 2 or (merges[1] - merges[0]) % 2 == 0:
        return None
    return merges[0] // 2, (merges[1] - merges[0] - 1) // 2, len(main)


def _table_grid(name: str, table: Tensor, grid: tuple[int, int]) -> tuple[int, int] | None:
    """The grid that a bias table was made for: that of the positions, or a larger square one, as of segmenters, whose
    tables belong to the size of their crops; None where it is neither, which check_fits names.

    Raises:
        ValueError: a smaller one: such blocks attended in windows.
    """
    if table.ndim != 2:
        return None
    if len(table) == (2 * grid[0] - 1) * (2 * grid[1] - 1):
        return grid
    side = (math.isqrt(len(table)) + 1) // 2
    if (2 * side - 1) ** 2 != len(table):
        return None
    if side < max(grid):
        raise ValueError(
            f"tensor {name!r} has {counted(len(table), 'rows')}, those of windows of {side} x {side} units, but the "
            f"positions are of {grid[0]} x {grid[1]}: its blocks attended in windows, as a "
            "detector's may, those of a HiViT do not"
        )
    return side, side


def notes(native: Native, config: Mapping[str, Any], model: HiViT) -> dict[str, str]:
    """What report, card and configuration say: of bias tables that are of another grid than the positions."""
    tables = {len(table) for name, table in native.state.items() if name.endswith(TABLE)}
    old, new = _grid(native.state, sizes_of(native, model)), model.patch_embed.grid_size
    rows = (2 * old[0] - 1) * (2 * old[1] - 1)
    sides = sorted((math.isqrt(count) + 1) // 2 for count in tables - {rows})
    if not sides or not any(name.endswith(TABLE) for name in model.state_dict()):
        return {}
    grids = " and ".join(f"{side} x {side}" for side in sides)
    return {
        "relative positions": f"tables of {grids} units beside positions of {old[0]} x {old[1]}, as segmenters have "
        f"them; resampled to {new[0]} x {new[1]}"
    }


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
        notes=notes,
        choices=(Choice("depths", "blocks of each stage", type=int, many=True),),
        mae=Rows(
            Recipe(
                fusion="concat",
                depth=6,
                encoder={"rel_pos_bias": False},
                source="HiViT self_supervised/models/models_hivit_mae.py",
            )
        ),
        # The authors' loops count epochs from 1, so the learning rate is an epoch ahead.
        pretraining=Rows(
            Pretraining(blr=1e-4, ahead=1, source="HiViT self_supervised/get_started.md, main_pretrain.py")
        ),
        fine_tuning=Rows(
            FineTuning(
                epochs=100,
                blr=5e-4,
                layer_decay=0.85,
                drop_path=0.2,
                ahead=1,
                source="HiViT self_supervised/get_started.md, main_finetune.py",
            )
        ),
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
