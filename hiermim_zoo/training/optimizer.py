"""Optimisers of timm, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, param_groups_layer_decay, param_groups_weight_decay
from torch import nn


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


def check_optimizer(name: str) -> None:
    """Refuse what is no optimiser of timm.

    Raises:
        ValueError: naming it.
    """
    try:
        get_optimizer_info(name)
    except ValueError as error:
        raise ValueError(f"optimiser {name!r} is unknown to timm: {error}") from error


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
        groups = param_groups_layer_decay(
            model, weight_decay, no_weight_decay_list=set(no_decay), layer_decay=layer_decay
        )
    try:
        extra: dict[str, Any] = {"betas": tuple(betas)} if get_optimizer_info(name).has_betas else {}
        return create_optimizer_v2(groups, name, lr=0.0, **extra)
    except (ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"optimiser {name!r} cannot be made: {error}") from error
