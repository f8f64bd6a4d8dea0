"""Learned positions of other sizes, and relative position bias: index, resampling, the bias of any subset of tokens.

Letters: S_h, S_w the grid that a table was made for; h, w the grid at hand; K tokens; c channels; n heads. A
bias table has one row for every offset between two tokens of its grid: (2 S_h - 1)(2 S_w - 1) rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ..geometry import cubic_weights, smooth_cubic_weights, split_index, surely


def relative_position_index(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Row of the bias table for every pair of tokens of a grid.

    Returns:
        int64 [hw, hw]: entry (i, j) is (row_i - row_j + h - 1)(2w - 1) + (col_i - col_j + w - 1).
    """
    h, w = grid
    row, col = split_index(torch.arange(h * w, device=device), w)
    return (row[:, None] - row + h - 1) * (2 * w - 1) + (col[:, None] - col + w - 1)


def same_grid(old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether two grids agree; sizes that a graph leaves open count as different."""
    return surely(*(a == b for a, b in zip(old, new, strict=True)))


def resample_positions(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Resample learned positions to another grid: bicubic with antialiasing, the values of timm's
    ``resample_abs_pos_embed`` without an operator that exporters and compilers do not know.

    Args:
        table: [B, S_h S_w, c].
        old: (S_h, S_w).
        new: (h, w).

    Returns:
        [B, h w, c]; the table itself where the grids agree.
    """
    if same_grid(old, new):
        return table
    rows = table.transpose(0, 1).flatten(1)  # [S_h S_w, B c]
    rows = resample_grid(rows.unflatten(0, tuple(old)), new, smooth_cubic_weights).flatten(0, 1)  # [h w, B c]
    return rows.unflatten(1, (len(table), -1)).transpose(0, 1)


def resample_bias_table(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Resample a bias table to another grid, bicubic over the offsets.

    Args:
        table: [(2 S_h - 1)(2 S_w - 1), n].
        old: (S_h, S_w).
        new: (h, w).

    Returns:
        [(2h - 1)(2w - 1), n]; the table itself where the grids agree.
    """
    if same_grid(old, new):
        return table
    grid = table.unflatten(0, [2 * s - 1 for s in old])  # [2 S_h - 1, 2 S_w - 1, n]
    return resample_grid(grid, [2 * s - 1 for s in new], cubic_weights).flatten(0, 1)


def resample_grid(x: Tensor, new: Sequence[int], weights: Callable[..., Tensor]) -> Tensor:
    """[S_h, S_w, c] -> [h, w, c] by a product of matrices along each axis; ``weights`` of geometry.py makes them.

    No axis of 1, and none that is new, is joined with another: exporters that leave the new sides open cannot prove
    that they may.
    """
    rows, cols = (weights(a, b, x.device) for a, b in zip(x.shape[:2], new, strict=True))
    tall = along(rows, x.flatten(1)).unflatten(1, x.shape[1:])  # [h, S_w, c]
    return along(cols.expand(new[0], -1, -1), tall).to(x.dtype)


def along(weights: Tensor, x: Tensor) -> Tensor:
    """A product with the rows of the last two axes: [new, old], [..., old, c] -> [..., new, c], or both with an axis in
    front.

    The result is float32 at least, never autocast: interpolation is no layer to be rounded.
    """
    device, wide = x.device.type, torch.promote_types(x.dtype, torch.float32)
    rounds = device != "meta" and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if rounds else nullcontext():
        return (torch.bmm if weights.ndim == 3 else torch.matmul)(weights.to(wide), x.to(wide))


def relative_position_bias(table: Tensor, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Look the bias up in the form that fused attention wants.

    Args:
        table: [rows, n].
        index: int64 [B or 1, K, K].
        dtype: of the bias; None: the table's. Gradients are summed up in the table's.

    Returns:
        [B or 1, n, K, K], contiguous.
    """
    bias = table.T.contiguous().index_select(1, index.flatten())  # [n, B K K]
    bias = bias.unflatten(1, index.shape).transpose(0, 1)
    if dtype in (None, bias.dtype):
        return bias.contiguous()
    return bias.to(dtype, memory_format=torch.contiguous_format)  # one copy for both
