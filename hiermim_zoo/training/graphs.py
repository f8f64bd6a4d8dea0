"""Graphs of a compiled model. Of CUDA graphs, which some modes of ``--compile`` record, what they compute lies in the
same place every time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..layers.groups import ON_HOST

CUDAGRAPHS = "cudagraphs"  # torch's backend that records kernels as they are; the other modes are torch.compile's
RECORDING = ("reduce-overhead", "max-autotune", CUDAGRAPHS)


def how(mode: str) -> dict[str, Any]:
    """The arguments of torch.compile for a mode of ``--compile``."""
    return {"backend": CUDAGRAPHS} if mode == CUDAGRAPHS else {"mode": mode}


def check_compilable(encoder: nn.Module) -> None:
    """To be asked before a masked pass is compiled.

    Raises:
        ValueError: the encoder is to look at the mask.
    """
    method = getattr(encoder, "plan_method", None)
    if method in ON_HOST:
        raise ValueError(
            f"plan_method={method!r} looks at the mask, which a graph cannot do: use 'sort', or no --compile"
        )


def check_graphs(mode: str | None, device: str | None) -> None:
    """Refuse to record graphs of what is no GPU.

    Args:
        mode: of ``--compile``; None: eager.
        device: None: a GPU where there is one.

    Raises:
        ValueError: torch would run each step as it is, unnoticed.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if mode == CUDAGRAPHS and not device.startswith("cuda"):
        raise ValueError(f"--compile {mode} records what a GPU does, and {device} is none: --compile alone would work")


def begin_pass(mode: str | None) -> None:
    """Tell the graphs of a model compiled in this mode (None: eager) that what its last pass gave is no longer used."""
    if mode in RECORDING:
        torch.compiler.cudagraph_mark_step_begin()


def hold_gradients(parameters: Iterable[nn.Parameter], mode: str | None, accumulate: int) -> bool:
    """Give gradients a place of their own where those of one pass would lie where the graph of the next one writes.

    Args:
        mode: of ``--compile``; None: eager.
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
