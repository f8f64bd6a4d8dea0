"""Which units are visible: checks, random choice, gathering, hiding.

``keep`` is int64 [B, K], ascending raster indices of the visible units. It is the only form in which a mask travels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .text import counted


def on_host(keep: Tensor) -> bool:
    """Whether the values of a mask may be looked at: not where the host would wait for a device, nor inside a graph."""
    return keep.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def check_keep(keep: Tensor, batch: int, units: int) -> None:
    """Refuse a ``keep`` that does not fit.

    Shape and type are always checked, values only :func:`on_host`.

    Args:
        keep: int64 [B, K].
        batch: B.
        units: number of units of the input.

    Raises:
        ValueError: naming what is wrong.
    """
    if not isinstance(keep, Tensor):
        raise ValueError(
            f"keep must be a tensor int64 [{batch}, K], got {type(keep).__name__}: torch.as_tensor(keep) makes one"
        )
    if keep.dtype != torch.int64 or keep.ndim != 2 or keep.shape[0] != batch or not 0 < keep.shape[1] <= units:
        raise ValueError(f"keep must be int64 [{batch}, K] with 1 <= K <= {units}, got {keep.dtype} {list(keep.shape)}")
    if not on_host(keep):
        return
    low, high = int(keep.min()), int(keep.max())
    if low < 0 or high >= units:
        raise ValueError(f"keep names unit {low if low < 0 else high}, but the input has units 0 to {units - 1}")
    if not bool((keep.diff(dim=1) > 0).all()):
        row = int((keep.diff(dim=1) <= 0).any(dim=1).nonzero()[0])
        raise ValueError(f"keep must be ascending without repeats, row {row} is {keep[row].tolist()}")


def random_keep(
    batch: int,
    units: int,
    visible: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Choose ``visible`` of ``units`` at random for every sample, by ranking uniform noise.

    Returns:
        int64 [batch, visible], ascending.
    """
    if not 0 < visible <= units:
        raise ValueError(f"{visible} of {counted(units, 'units')} cannot stay visible")
    noise = torch.rand(batch, units, generator=generator, device=device)
    return noise.argsort(dim=1)[:, :visible].sort(dim=1).values


def gather_units(x: Tensor, keep: Tensor) -> Tensor:
    """Take the visible units.

    Args:
        x: [B, N, ...] (B may be 1: the same for every sample).
        keep: int64 [B, K].

    Returns:
        [B, K, ...].
    """
    index = keep.reshape(*keep.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return x.expand(keep.shape[0], *x.shape[1:]).gather(1, index)


def hide_units(images: Tensor, keep: Tensor, unit: Sequence[int]) -> Tensor:
    """Zeros in place of the pixels of hidden units.

    Args:
        images: [B, C, *sides].
        keep: int64 [B, K].
        unit: pixels (and frames) of a unit along each axis, which divide the sides.

    Returns:
        Like the images.
    """
    grid = [side // u for side, u in zip(images.shape[2:], unit, strict=True)]
    hidden = torch.zeros(keep.shape[0], math.prod(grid), dtype=torch.bool, device=keep.device)
    shown = hidden.scatter(1, keep, torch.ones_like(keep, dtype=torch.bool))
    shown = shown.unflatten(1, (1, *grid))
    for axis, u in enumerate(unit):
        shown = shown.repeat_interleave(u, dim=2 + axis)
    return torch.where(shown, images, 0)
