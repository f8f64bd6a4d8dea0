"""Optimisers and schedules: the recipes of the papers as rows, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, param_groups_layer_decay, param_groups_weight_decay
from torch import nn


@dataclass(frozen=True)
class Pretraining:
    """How a family is pre-trained by masking; tensors of one dimension and biases have no weight decay."""

    blr: float  # peak learning rate per 256 pictures of a batch
    epochs: int = 1600
    batch: int = 4096
    warmup: int = 40  # epochs
    repeat: int = 1  # clips of a video each time it is opened
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the area
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    drop_path: float = 0.0
    decay_positions: bool = True


@dataclass(frozen=True)
class FineTuning:
    """How a pre-trained encoder becomes a classifier."""

    epochs: int
    blr: float  # peak learning rate per 256 pictures of a batch
    layer_decay: float
    drop_path: float
    batch: int = 1024
    repeat: int = 1  # clips of a video each time it is opened
    warmup: int = 5  # epochs
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    min_lr: float = 1e-6
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    erase: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    head_std: float = 2e-5  # of the new classifier


# arXiv 2306.00989, appendix A. Its learning rates are those of a whole batch (it does not say so, but its figures for detection
# are); a row has the 256th part of a batch: 8e-4 * 256 / 4096 for images, 8e-4 * 256 / 512 for clips.
_HIERA = Pretraining(blr=5e-5, decay_positions=False)
_HIERA_VIDEO = replace(_HIERA, blr=4e-4, epochs=3200, batch=512, warmup=120, repeat=4, crop_scale=(0.5, 1.0))
_TUNE_HIERA = FineTuning(epochs=300, blr=5e-4, layer_decay=0.65, drop_path=0.1, erase=0.0)
_TUNE_HIERA_VIDEO = FineTuning(
    epochs=150,
    blr=8e-4,
    layer_decay=0.8,
    drop_path=0.2,
    batch=256,
    repeat=2,
    warmup=10,
    erase=0.0,
    auto_augment="rand-m7-mstd0.5-inc1",
)
# arXiv 2205.13515: the authors' scripts, which differ in more than the model. For sizes without one: Swin-B's.
_GREEN = Pretraining(blr=1e-4, epochs=800, batch=2048, decay_positions=False)
_GREEN_TWINS = Pretraining(blr=1.5e-4, epochs=100)
_TUNE_GREEN = FineTuning(epochs=100, blr=6.25e-4, layer_decay=0.9, drop_path=0.1, batch=768, warmup=20, min_lr=2.5e-7)

PRETRAINING = {  # by architecture, else by family
    "hivit": Pretraining(blr=1e-4),  # arXiv 2205.14949, and the released code
    "vision_transformer": Pretraining(blr=1.5e-4),  # arXiv 2111.06377, table 8
    "hiera": _HIERA,
    **dict.fromkeys(("hiera_base", "hiera_base_plus", "hiera_large"), replace(_HIERA, drop_path=0.2)),
    "hiera_huge": replace(_HIERA, drop_path=0.3),
    "hiera_atto_video": _HIERA_VIDEO,
    "hiera_base_video": replace(_HIERA_VIDEO, drop_path=0.1),
    **dict.fromkeys(("hiera_base_plus_video", "hiera_large_video"), replace(_HIERA_VIDEO, drop_path=0.2)),
    "hiera_huge_video": replace(_HIERA_VIDEO, blr=1.6e-4, drop_path=0.4),
    "green": _GREEN,
    "green_swin_base_win14": replace(_GREEN, blr=1.5e-4),
    **dict.fromkeys(("green_twins_small", "green_twins_base", "green_twins_large"), _GREEN_TWINS),
}
FINE_TUNING = {  # by architecture, else by family
    "hivit": FineTuning(epochs=100, blr=5e-4, layer_decay=0.85, drop_path=0.2),
    "vision_transformer": FineTuning(epochs=100, blr=5e-4, layer_decay=0.65, drop_path=0.1),  # arXiv 2111.06377, table 9
    "vit_large_patch16_224": FineTuning(epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.2),
    "vit_huge_patch14_224": FineTuning(epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.3),
    # Nothing was published for HPViT: what the plain ViT of its size is fine-tuned with.
    "hpvit": FineTuning(epochs=100, blr=5e-4, layer_decay=0.65, drop_path=0.1),
    "hpvit_large": FineTuning(epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.2),
    "hpvit_huge": FineTuning(epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.3),
    "hiera": _TUNE_HIERA,
    "hiera_small": replace(_TUNE_HIERA, epochs=200),
    "hiera_base": replace(_TUNE_HIERA, epochs=100, layer_decay=0.7),
    "hiera_base_plus": replace(_TUNE_HIERA, epochs=100, blr=2.5e-4, layer_decay=0.7),
    "hiera_large": replace(_TUNE_HIERA, epochs=50, blr=2.5e-4, layer_decay=0.85),
    "hiera_huge": replace(_TUNE_HIERA, epochs=50, blr=2.5e-4, layer_decay=0.85, drop_path=0.3),
    # As after 3200 epochs of pre-training; the paper's dropout before the head and clipped gradients are not part of a row.
    **dict.fromkeys(("hiera_atto_video", "hiera_base_video", "hiera_base_plus_video"), _TUNE_HIERA_VIDEO),
    "hiera_large_video": replace(_TUNE_HIERA_VIDEO, epochs=100, layer_decay=0.875),
    "hiera_huge_video": replace(_TUNE_HIERA_VIDEO, epochs=100, blr=4e-4, layer_decay=0.875, drop_path=0.3),
    "green": _TUNE_GREEN,
    "green_swin_large_win14": replace(_TUNE_GREEN, blr=5e-4, layer_decay=0.8, drop_path=0.3, min_lr=3.5e-7),
}


def lr_at(step: int, total: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """The learning rate of a step: linear warm-up from 0, then a cosine down to ``floor``.

    Args:
        step: counted from 0; ``total`` and ``warmup`` are numbers of steps too.
    """
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate, times its own scale where it has one (layer decay)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def make_optimizer(
    model: nn.Module,
    name: str,
    weight_decay: float,
    betas: Iterable[float],
    layer_decay: float | None = None,
    no_decay: Iterable[str] = (),
) -> torch.optim.Optimizer:
    """An optimiser of timm; learning rates are set before each step.

    Args:
        name: any that timm knows.
        betas: for those that have them.
        layer_decay: factor from one layer to the one below, by the model's ``group_matcher``.
        no_decay: names without weight decay, beside tensors of one dimension and biases.

    Raises:
        ValueError: unknown optimiser.
    """
    if layer_decay is None:
        groups: Any = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=set(no_decay))
    else:
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=set(no_decay), layer_decay=layer_decay)
    try:
        extra: dict[str, Any] = {"betas": tuple(betas)} if get_optimizer_info(name).has_betas else {}
        return create_optimizer_v2(groups, name, lr=0.0, **extra)
    except (ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"optimiser {name!r} cannot be made: {error}") from error
