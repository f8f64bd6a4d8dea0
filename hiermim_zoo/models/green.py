"""GreenMIM's encoders: Swin and Twins that see visible patches alone (arXiv 2205.13515). The models are in
green_swin.py and green_twins.py; here are their variants, names and checkpoints.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from timm.layers import resize_rel_pos_bias_table, to_2tuple
from torch import Tensor, nn

from ..checkpoints.layouts import Native
from ..checkpoints.tables.green import LAYOUTS, swap_mergings
from ..text import counted
from .build import build_model, default_cfgs_for, timm_model
from .family import Choice, Family, add_family
from .green_swin import GreenSwin
from .green_twins import GreenTwins
from .grids import Sizes, size_of_decoder
from .recipes import FineTuning, Pretraining, Recipe, Rows

__all__ = ["FAMILY", "GreenSwin", "GreenTwins"]

TABLE = "relative_position_bias_table"
UNIT = 32  # pixels along a side of a mask unit, over which the decoder has one token


def fit(state: dict[str, Tensor], native: Native, model: nn.Module) -> dict[str, Tensor]:
    """Bias tables made for windows of another size are resampled where the model was built with a ``window_size`` or an
    ``img_size`` of the caller's.
    """
    own = model.state_dict()
    for name in [name for name in state if name.endswith(TABLE) and name in own]:
        state[name] = _fit_table(name, state[name], model)
    return state


def _fit_table(name: str, table: Tensor, model: nn.Module) -> Tensor:
    """A bias table for the windows that the model has."""
    attn: Any = model.get_submodule(name.removesuffix(f".{TABLE}"))
    rows, heads = attn.relative_position_bias_table.shape
    if table.shape == (rows, heads) or table.ndim != 2 or table.shape[1] != heads:
        return table  # what does not fit otherwise is named by check_fits
    side = (math.isqrt(len(table)) + 1) // 2
    if (2 * side - 1) ** 2 != len(table):
        raise ValueError(f"tensor {name!r} has {counted(len(table), 'rows')}, which belong to no square window")
    if not getattr(model, "resample_windows", False):
        h, w = attn.window_size
        raise ValueError(
            f"tensor {name!r} is of windows of {side} x {side} tokens, but the model has {h} x {w}; "
            f"window_size={side} builds such a model, window_size={h} allows resampling"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's code makes torch warn of its speed and of its indexing
        resized: Tensor = resize_rel_pos_bias_table(
            table, new_window_size=attn.window_size, new_bias_shape=(rows, heads)
        )
    return resized


def img_size(native: Native, sizes: Sizes, model_args: Mapping[str, Any]) -> Any:
    return size_of_decoder(native, UNIT, sizes)


# ---- what the names of a file do not tell

_SWAPPED = "{} with the middle quarters of patch merging swapped"
_READINGS = {  # layouts whose patch merging may be meant otherwise -> what it then is
    "green_mim": "green_mim_2022",
    "green_mim_2022": "green_mim",
    "green_swin_timm": _SWAPPED.format("green_swin_timm"),
    "swin_microsoft": _SWAPPED.format("swin_microsoft"),  # GreenMIM's encoders are fine-tuned under these names
}


def readings(native: Native) -> dict[str, Mapping[str, Tensor]]:
    """The two orders in which a Swin from GreenMIM may join the four neighbours of a patch merging.

    Returns:
        The encoder's tensors by the name of the reading, as it was read first; empty where nothing is in doubt.
    """
    if native.layout.name not in _READINGS:
        return {}
    return {native.layout.name: native.state, _READINGS[native.layout.name]: swap_mergings(native.state)}


def notes(native: Native, config: Mapping[str, Any], model: nn.Module) -> dict[str, str]:
    """What report, card and configuration say of a decoder that is kept."""
    if not native.decoder:
        return {}
    return {
        "decoder": "kept as it is; "
        "the authors' code trained it with visible tokens permuted among the visible positions"
    }


# ---- variants: embed_dim doubles from stage to stage

_SWIN = {"patch_size": 4, "window_size": 7}
SWINS: dict[str, dict[str, Any]] = {
    # 128 pixels: a unit has 32, and with fewer than 4 x 4 of them there is nothing to mask. Windows of 4 divide every
    # grid.
    "green_swin_atto": {
        **_SWIN,
        "img_size": 128,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2, 2, 1),
        "num_heads": (1, 2, 4, 8),
    },
    "green_swin_tiny": {**_SWIN, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "green_swin_small": {**_SWIN, "embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "green_swin_base": {**_SWIN, "embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
_BASE, _LARGE = SWINS["green_swin_base"], {**SWINS["green_swin_base"], "embed_dim": 192, "num_heads": (6, 12, 24, 48)}
SWINS |= {
    "green_swin_base_win6": {**_BASE, "img_size": 192, "window_size": 6},  # as SimMIM pre-trains it
    "green_swin_base_win14": {**_BASE, "window_size": 14},
    "green_swin_large_win12": {**_LARGE, "img_size": 192, "window_size": 12},  # as SimMIM pre-trains it
    "green_swin_large_win14": {**_LARGE, "window_size": 14},
}
_TWINS = {"patch_size": 4, "mlp_ratios": (4, 4, 4, 4), "sr_ratios": (8, 4, 2, 1), "wss": (7, 7, 7, 7)}
TWINS: dict[str, dict[str, Any]] = {
    "green_twins_small": {
        **_TWINS,
        "embed_dims": (64, 128, 256, 512),
        "depths": (2, 2, 10, 4),
        "num_heads": (2, 4, 8, 16),
    },
    "green_twins_base": {
        **_TWINS,
        "embed_dims": (96, 192, 384, 768),
        "depths": (2, 2, 18, 2),
        "num_heads": (3, 6, 12, 24),
    },
    "green_twins_large": {
        **_TWINS,
        "embed_dims": (128, 256, 512, 1024),
        "depths": (2, 2, 18, 2),
        "num_heads": (4, 8, 16, 32),
    },
}
VARIANTS = {**SWINS, **TWINS}


def construct(variant: str, **kwargs: Any) -> nn.Module:
    if variant in TWINS:
        window = kwargs.pop("window_size", None)
        windows = {} if window is None else {"wss": (window,) * 4}
        return timm_model(GreenTwins, variant, FAMILY.load_filter, **{**TWINS[variant], **windows, **kwargs})
    chosen = "window_size" in kwargs or "img_size" in kwargs  # by the caller, who then wants tables to fit
    args = {**SWINS[variant], "resample_windows": chosen, **kwargs}
    return timm_model(GreenSwin, variant, FAMILY.load_filter, **args)


# ---- recipes (arXiv 2205.13515: the authors' scripts, which differ in more than the model; for sizes without one,
# Swin-B's)

_MAE = Recipe(
    fusion="last",
    depth=1,
    xavier=True,
    masks="batch",
    encoder={"norm_eps": 1e-6, "drop_path_rate": 0.0},
    source="GreenMIM modeling/base_green_models.py",
)
_PRE = Pretraining(
    blr=1e-4,
    epochs=800,
    batch=2048,
    decay_positions=False,
    decay_mask_token=False,
    source="GreenMIM scripts/srun_greenmim_swin_base.sh (of 2022; run_greenmim_swin_base.sh of 2023 has other values)",
)
_TWINS_PRE = replace(  # timm counts its position blocks among the positions; they decay
    _PRE,
    blr=1.5e-4,
    epochs=100,
    batch=4096,
    decay_positions=True,
    source="GreenMIM scripts/run_greenmim_twins_large.sh",
)
# GreenMIM fine-tunes with SimMIM's code. Its rates are those of 512 images; here blr is that of 256, min_lr and
# start_lr are those of the batch.
_TUNE = FineTuning(
    epochs=100,
    blr=6.25e-4,
    layer_decay=0.9,
    drop_path=0.1,
    batch=768,
    warmup=20,
    schedule="simmim",
    min_lr=3.75e-7,
    start_lr=3.75e-7,
    clip=5.0,
    source="GreenMIM ft_configs/greenmim_finetune_swin_base_img224_win7.yaml, SimMIM main_finetune.py",
)
_TUNE_LARGE = replace(
    _TUNE,
    blr=5e-4,
    layer_decay=0.8,
    drop_path=0.3,
    min_lr=5.25e-7,
    start_lr=3e-7,
    source="GreenMIM ft_configs/greenmim_finetune_swin_large_img224_win14.yaml, SimMIM main_finetune.py",
)

FAMILY = add_family(
    Family(
        name="green",
        variants=VARIANTS,
        construct=construct,
        layouts=LAYOUTS,
        img_size=img_size,
        fit=fit,
        notes=notes,
        readings=readings,
        choices=(
            Choice("window_size", "tokens along a side of a window, to which bias tables are resampled", type=int),
        ),
        mae=Rows(_MAE),
        pretraining=Rows(
            _PRE,
            {
                "green_swin_base_win14": replace(
                    _PRE, blr=1.5e-4, source="GreenMIM scripts/srun_greenmim_swin_base_win14.sh"
                ),
                "green_swin_large_win14": replace(_PRE, source="GreenMIM scripts/srun_greenmim_swin_large_win14.sh"),
                **dict.fromkeys(TWINS, _TWINS_PRE),
            },
        ),
        fine_tuning=Rows(_TUNE, dict.fromkeys(("green_swin_large_win12", "green_swin_large_win14"), _TUNE_LARGE)),
    )
)
checkpoint_filter_fn = FAMILY.load_filter  # where timm's users look for it

default_cfgs = default_cfgs_for(
    {
        name: {
            "input_size": (3, *to_2tuple(args.get("img_size", 224))),
            "crop_pct": 0.875,  # of SimMIM, data/data_finetune.py: 256 pixels, of which the middle 224 are seen
            "first_conv": "patch_embed.proj" if name in SWINS else "patch_embeds.0.proj",
            "classifier": "head.fc" if name in SWINS else "head",
        }
        for name, args in VARIANTS.items()
    }
)


@FAMILY.register
def green_swin_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin of 0.8 million parameters for 128 x 128 images, windows of 4."""
    return build_model("green_swin_atto", pretrained, **kwargs)


@FAMILY.register
def green_swin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-T, maskable."""
    return build_model("green_swin_tiny", pretrained, **kwargs)


@FAMILY.register
def green_swin_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-S, maskable."""
    return build_model("green_swin_small", pretrained, **kwargs)


@FAMILY.register
def green_swin_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-B, maskable."""
    return build_model("green_swin_base", pretrained, **kwargs)


@FAMILY.register
def green_swin_base_win6(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-B with windows of 6 for 192 x 192 images, maskable."""
    return build_model("green_swin_base_win6", pretrained, **kwargs)


@FAMILY.register
def green_swin_base_win14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-B with windows of 14, maskable."""
    return build_model("green_swin_base_win14", pretrained, **kwargs)


@FAMILY.register
def green_swin_large_win12(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-L with windows of 12 for 192 x 192 images, maskable."""
    return build_model("green_swin_large_win12", pretrained, **kwargs)


@FAMILY.register
def green_swin_large_win14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-L with windows of 14, maskable."""
    return build_model("green_swin_large_win14", pretrained, **kwargs)


@FAMILY.register
def green_twins_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Twins-SVT-S, maskable."""
    return build_model("green_twins_small", pretrained, **kwargs)


@FAMILY.register
def green_twins_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Twins-SVT-B, maskable."""
    return build_model("green_twins_base", pretrained, **kwargs)


@FAMILY.register
def green_twins_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Twins-SVT-L, maskable."""
    return build_model("green_twins_large", pretrained, **kwargs)
