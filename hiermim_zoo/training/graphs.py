"""CUDA graphs, which some modes of torch.compile record: what they compute lies in the same place every time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

RECORDING = ("reduce-overhead", "max-autotune")  # modes of torch.compile


def begin_pass(mode: str | None) -> None:
    """Tell the graphs of a model compiled in this mode (None: eager) that what its last pass gave is no longer used."""
    if mode in RECORDING:
        torch.compiler.cudagraph_mark_step_begin()


def hold_gradients(parameters: Iterable[nn.Parameter], mode: str | None, accumulate: int) -> bool:
    """Give gradients a place of their own where those of one pass would lie where the graph of the next one writes.

    Args:
        mode: of torch.compile; None: eager.
        accumulate: passes of a step.

    Returns:
        Whether they have one: then they must be set to zero, not to None.
    """
    if mode not in RECORDING or accumulate == 1:
        return False
    for p in parameters:
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    return True
