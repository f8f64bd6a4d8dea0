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
def measure(arch: str) -> Size:
    """Sizes of an architecture at its configured input, on the meta device."""
    with torch.device("meta"), torch.no_grad():
        model: Any = create_model(arch).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *input_shape(model)))
    parameters = sum(p.numel() for p in model.parameters())
    return Size(parameters, counter.get_total_flops() // 2, input_shape(model))
