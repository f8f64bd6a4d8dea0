"""Rasters, units and position tables, for any number of axes.

Letters: B batch, C channels, g_i units along axis i, p_i cells of one unit along axis i, N = g_1 * ... * g_D units in
raster order (last axis fastest).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

torch.fx.wrap("unflatten")  # what it does depends on the number of axes


def surely(*conditions: Any) -> bool:
    """Whether all of these hold. Of sizes that a graph leaves open none is guessed: what may be false does not hold.

    While a model is traced (``torch.jit.trace``, the older exporter to ONNX) all sizes of its input are open.
    """
    if any(isinstance(condition, Tensor) for condition in conditions):
        return False
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return all(statically_known_true(condition) for condition in conditions)
    return all(conditions)


def may_vary(*sides: Any) -> bool:
    """Whether a graph is being made, in which these sides may be open; else they are plain numbers."""
    return torch.compiler.is_compiling() or any(isinstance(side, Tensor) for side in sides)


def covering(side: int, unit: int) -> int:
    """Units that cover a side: rounded up, also in graphs, where a negative number may be divided towards zero."""
    return (side + unit - 1) // unit


def up_to(side: int, multiple: int) -> int:
    """The multiple that is not below a side; exporters can tell what divides it."""
    return covering(side, multiple) * multiple


def split_index(index: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of raster indices (torch's exporter to ONNX knows no remainder by a width that is open)."""
    row = index // width
    return row, index - row * width


def channels_first(x: Tensor) -> Tensor:
    """[B, ..., C] -> [B, C, ...], a view; axes are counted from 0, for exporters may not know how many there are."""
    return x.permute(0, x.ndim - 1, *range(1, x.ndim - 1))


def cropped(x: Tensor, axis: int, length: int) -> Tensor:
    """The first cells along an axis, by indices where a graph cannot tell that there are as many."""
    if surely(length <= x.shape[axis]):
        return x.narrow(axis, 0, length)
    return x.index_select(axis, torch.arange(length, device=x.device))


def unflatten(x: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """One axis becomes several, as torch's method of this name does it.

    By a reshape, because the tracing exporter to ONNX takes the batch of what torch's method gives for a constant.

    Args:
        x: any tensor.
        axis: from 0, or from -1 backwards.
        sizes: of the new axes, -1 for one that follows from the others.
    """
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def to_units(x: Tensor, cells: Sequence[int]) -> Tensor:
    """Cut a channels-last raster into units.

    Args:
        x: [B, g_1 p_1, ..., g_D p_D, C].
        cells: p_i, cells of one unit along each axis.

    Returns:
        [B, N, p_1, ..., p_D, C].
    """
    axes = len(cells)
    split = [x.shape[0]]
    for axis, p in enumerate(cells):
        split += [x.shape[1 + axis] // p, p]
    x = x.reshape(*split, x.shape[-1])  # [B, g_1, p_1, ..., g_D, p_D, C]
    grid_axes = [1 + 2 * axis for axis in range(axes)]
    x = x.permute(0, *grid_axes, *(a + 1 for a in grid_axes), 2 * axes + 1)
    return x.flatten(1, axes)  # [B, N, p_1, ..., p_D, C]


def from_units(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Put units back into a channels-last raster, the inverse of :func:`to_units`.

    Args:
        x: [B, N, p_1, ..., p_D, C].
        grid: g_i, units along each axis.

    Returns:
        [B, g_1 p_1, ..., g_D p_D, C].
    """
    axes = len(grid)
    if math.prod(x.shape[2 : 2 + axes]) == 1:  # exporters cannot prove that a side and an axis of 1 may be joined
        return unflatten(x.flatten(1, 1 + axes), 1, tuple(grid))
    x = unflatten(x, 1, tuple(grid))  # [B, g_1, ..., g_D, p_1, ..., p_D, C]
    order = [a for axis in range(axes) for a in (1 + axis, 1 + axes + axis)]
    x = x.permute(0, *order, 2 * axes + 1)  # [B, g_1, p_1, ..., g_D, p_D, C]
    sides = [x.shape[1 + 2 * axis] * x.shape[2 + 2 * axis] for axis in range(axes)]
    # In two steps: of sides that a graph leaves open, exporters can split what is one row, and not join two axes.
    return x.flatten().reshape(x.shape[0], *sides, x.shape[-1])


def sincos_table(grid: tuple[int, int], dim: int, temperature: float = 10000.0) -> Tensor:
    """Fixed two-dimensional sine-cosine positions, column first (MAE, arXiv 2111.06377).

    Args:
        grid: rows and columns.
        dim: channels, a multiple of 4.

    Returns:
        [1, rows * columns, dim]: sin and cos of the column, then sin and cos of the row, dim / 4 each.
    """
    if dim % 4:
        raise ValueError(f"a sine-cosine table needs a width that is a multiple of 4, got {dim}")
    # On the CPU and in double precision whatever the default device: published tables were made so.
    frequency = temperature ** -(torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))
    rows, cols = (torch.arange(n, dtype=torch.float64, device="cpu") for n in grid)
    row = (rows[:, None] * frequency)[:, None].expand(*grid, dim // 4)
    col = (cols[:, None] * frequency)[None, :].expand(*grid, dim // 4)
    table = torch.cat([col.sin(), col.cos(), row.sin(), row.cos()], dim=-1)
    return table.reshape(1, math.prod(grid), dim).float()


def cubic_weights(old: int, new: int, device: torch.device | None = None) -> Tensor:
    """What bicubic interpolation does along one axis (Keys' kernel with a = -0.75, corners not aligned, edges
    repeated), as a matrix: a table of ``old`` rows and columns becomes W @ table @ W.T.

    Small tables that grow large are resampled by products of matrices much faster, and any exporter and compiler knows
    them, gradients and sizes that a graph leaves open included.

    Returns:
        float64 [new, old].
    """
    at = _cells_at(old, new, device)
    first = at.floor()
    near = torch.arange(-1, 3, dtype=torch.float64, device=device)
    weights = _keys(at[:, None] - (first[:, None] + near), a=-0.75)  # [new, 4]
    taps = (first[:, None] + near).clamp(0, old - 1).long()
    return torch.zeros(new, old, dtype=torch.float64, device=device).scatter_add(1, taps, weights)


def smooth_cubic_weights(old: int, new: int, device: torch.device | None = None) -> Tensor:
    """What bicubic interpolation with antialiasing does along one axis, as a matrix like :func:`cubic_weights`.

    Keys' kernel with a = -0.5, as wide as a new cell where cells grow; what reaches beyond the edges is left out, and
    the rest made up to 1.

    Returns:
        float64 [new, old].
    """
    away = _cells_at(old, new, device)[:, None] - torch.arange(old, dtype=torch.float64, device=device)
    weights = _keys(torch.minimum(away.abs(), away.abs() * new / old), a=-0.5)  # [new, old]
    return weights / weights.sum(dim=1, keepdim=True)


def linear_weights(old: int, new: int, device: torch.device | None = None) -> Tensor:
    """What linear interpolation does along one axis (corners not aligned, edges repeated): float64 [new, old]."""
    at = _cells_at(old, new, device).clamp(0, old - 1)
    return (1 - (at[:, None] - torch.arange(old, dtype=torch.float64, device=device)).abs()).clamp(min=0)


def _cells_at(old: int, new: int, device: torch.device | None) -> Tensor:
    """Where the centres of ``new`` cells lie among ``old`` ones: float64 [new]."""
    return (torch.arange(new, dtype=torch.float64, device=device) + 0.5) * old / new - 0.5


def _keys(away: Tensor, a: float) -> Tensor:
    """Keys' cubic kernel, zero from a distance of 2 on."""
    away = away.abs()
    inner = ((a + 2) * away - (a + 3)) * away * away + 1
    outer = a * (((away - 5) * away + 8) * away - 4)
    return torch.where(away <= 1, inner, torch.where(away < 2, outer, 0))
