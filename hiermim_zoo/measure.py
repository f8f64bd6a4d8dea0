"""Sizes of a model: parameters and multiply-adds, counted without running it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from timm.models import create_model
from torch.utils.flop_counter import FlopCounterMode

from .build import input_shape


class Size(NamedTuple):
    parameters: int
    macs: int  # multiply-adds of one forward pass of one input
    input_size: tuple[int, ...]


@functools.cache
def measure(arch: str, img_size: tuple[int, int] | None = None, **model_kwargs: Any) -> Size:
    """Sizes of an architecture, on the meta device.

    Args:
        img_size: pixels (height, width) of the input; default: what the architecture is configured for.
        model_kwargs: of the model, hashable.
    """
    size: dict[str, Any] = {"img_size": img_size} if img_size else {}
    with torch.device("meta"), torch.no_grad():
        model: Any = create_model(arch, **size, **model_kwargs).eval()
        shape = input_shape(model)
        shape = (*shape[:-2], *(img_size or shape[-2:]))
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *shape))
    parameters = sum(p.numel() for p in model.parameters())
    return Size(parameters, counter.get_total_flops() // 2, shape)
