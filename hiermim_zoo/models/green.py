"""GreenMIM's encoders: Swin and Twins that see visible patches alone (arXiv 2205.13515). The models are in green_swin.py and
green_twins.py; here are their variants, names and checkpoints.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import resize_rel_pos_bias_table
from torch import Tensor, nn

from ..build import build_model, default_cfgs_for
from ..checkpoints.layouts import Native, to_native
from ..checkpoints.rules import check_fits
from ..checkpoints.tables.green import swap_mergings
from ..registry import register
from .green_swin import GreenSwin
from .green_twins import GreenTwins

__all__ = ["GreenSwin", "GreenTwins", "adapt", "checkpoint_filter_fn", "checkpoint_img_size", "notes", "readings"]

TABLE = "relative_position_bias_table"
CONVERT_ARGS = ("window_size",)  # what a conversion may choose


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Bring a checkpoint of any known layout into the form of ``model`` (called by timm when it loads weights)."""
    return adapt(to_native(state, family="green"), model)


def adapt(native: Native, model: nn.Module) -> dict[str, Tensor]:
    """Fit a checkpoint to a model.

    Bias tables made for windows of another size are resampled where the model was built with a ``window_size`` or an ``img_size``
    of the caller's. Stem and classifier are left for timm to adapt.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    own, state = model.state_dict(), dict(native.state)
    for name in [name for name in state if name.endswith(TABLE) and name in own]:
        state[name] = _fit_table(name, state[name], model)
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    stem, head = cfg.get("first_conv", ""), cfg.get("classifier", "")
    check_fits(state, own, (f"{head}.weight", f"{head}.bias", f"{stem}.weight"), model=f"this {type(model).__name__}")
    return state


def _fit_table(name: str, table: Tensor, model: nn.Module) -> Tensor:
    """A bias table for the windows that the model has."""
    attn: Any = model.get_submodule(name.removesuffix(f".{TABLE}"))
    rows, heads = attn.relative_position_bias_table.shape
    if table.shape == (rows, heads) or table.ndim != 2 or table.shape[1] != heads:
        return table  # what does not fit otherwise is named by check_fits
    side = (math.isqrt(len(table)) + 1) // 2
    if (2 * side - 1) ** 2 != len(table):
        raise ValueError(f"tensor {name!r} has {len(table)} rows, which belong to no square window")
    if not getattr(model, "resample_windows", False):
        h, w = attn.window_size
        raise ValueError(
            f"tensor {name!r} is of windows of {side} x {side} tokens, but the model has {h} x {w}; "
            f"window_size={side} builds such a model, window_size={h} allows resampling"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's code makes torch warn of its speed and of its indexing
        resized: Tensor = resize_rel_pos_bias_table(table, new_window_size=attn.window_size, new_bias_shape=(rows, heads))
    return resized


def checkpoint_img_size(native: Native, sizes: Sequence[Any], model_args: Mapping[str, Any]) -> Any:
    """Pixels of the images that a checkpoint was made for: no tensor tells, so what is known beside it, the likeliest first."""
    return next(size for size in sizes if size is not None)


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
    return {"decoder": "kept as it is; the authors' code trained it with visible tokens permuted among the visible positions"}


# ---- variants: embed_dim doubles from stage to stage

_SWIN = {"patch_size": 4, "window_size": 7}
SWINS: dict[str, dict[str, Any]] = {
    # 128 pixels: a unit has 32, and with fewer than 4 x 4 of them there is nothing to mask. Windows of 4 divide every grid.
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
    "green_swin_base_win14": {
        "window_size": 14,
        "patch_size": 4,
        "embed_dim": 128,
        "depths": (2, 2, 18, 2),
        "num_heads": (4, 8, 16, 32),
    },
    "green_swin_large_win14": {
        "window_size": 14,
        "patch_size": 4,
        "embed_dim": 192,
        "depths": (2, 2, 18, 2),
        "num_heads": (6, 12, 24, 48),
    },
}
_TWINS = {"patch_size": 4, "mlp_ratios": (4, 4, 4, 4), "sr_ratios": (8, 4, 2, 1), "wss": (7, 7, 7, 7)}
TWINS: dict[str, dict[str, Any]] = {
    "green_twins_small": {**_TWINS, "embed_dims": (64, 128, 256, 512), "depths": (2, 2, 10, 4), "num_heads": (2, 4, 8, 16)},
    "green_twins_base": {**_TWINS, "embed_dims": (96, 192, 384, 768), "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "green_twins_large": {**_TWINS, "embed_dims": (128, 256, 512, 1024), "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
VARIANTS = {**SWINS, **TWINS}

default_cfgs = default_cfgs_for(
    {
        name: {
            "input_size": (3, 128, 128) if name == "green_swin_atto" else (3, 224, 224),
            "crop_pct": 0.9,
            "first_conv": "patch_embed.proj" if name in SWINS else "patch_embeds.0.proj",
            "classifier": "head.fc" if name in SWINS else "head",
        }
        for name in VARIANTS
    }
)


def _swin(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    chosen = "window_size" in kwargs or "img_size" in kwargs  # by the caller, who then wants tables to fit
    args = {**SWINS[variant], "resample_windows": chosen, **kwargs}
    return build_model(GreenSwin, variant, pretrained, checkpoint_filter_fn, **args)


def _twins(variant: str, pretrained: bool, window_size: int | None = None, **kwargs: Any) -> nn.Module:
    windows = {} if window_size is None else {"wss": (window_size,) * 4}
    return build_model(GreenTwins, variant, pretrained, checkpoint_filter_fn, **{**TWINS[variant], **windows, **kwargs})


@register
def green_swin_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin of 0.8 million parameters for 128 x 128 images, windows of 4."""
    return _swin("green_swin_atto", pretrained, **kwargs)


@register
def green_swin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-T, maskable."""
    return _swin("green_swin_tiny", pretrained, **kwargs)


@register
def green_swin_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-S, maskable."""
    return _swin("green_swin_small", pretrained, **kwargs)


@register
def green_swin_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-B, maskable."""
    return _swin("green_swin_base", pretrained, **kwargs)


@register
def green_swin_base_win14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-B with windows of 14, maskable."""
    return _swin("green_swin_base_win14", pretrained, **kwargs)


@register
def green_swin_large_win14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-L with windows of 14, maskable."""
    return _swin("green_swin_large_win14", pretrained, **kwargs)


@register
def green_twins_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Twins-SVT-S, maskable."""
    return _twins("green_twins_small", pretrained, **kwargs)


@register
def green_twins_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Twins-SVT-B, maskable."""
    return _twins("green_twins_base", pretrained, **kwargs)


@register
def green_twins_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Twins-SVT-L, maskable."""
    return _twins("green_twins_large", pretrained, **kwargs)
