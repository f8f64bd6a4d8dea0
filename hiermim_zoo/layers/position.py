"""Relative position bias: index, resampling, and the bias of any subset of tokens.

Letters: S_h, S_w the grid that a table was made for; h, w the grid at hand; K tokens; n heads. A table has one row for
every offset between two tokens of its grid: (2 S_h - 1)(2 S_w - 1) rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def relative_position_index(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Row of the bias table for every pair of tokens of a grid.

    Returns:
        int64 [hw, hw]: entry (i, j) is (row_i - row_j + h - 1)(2w - 1) + (col_i - col_j + w - 1).
    """
    h, w = grid
    token = torch.arange(h * w, device=device)
    row, col = token // w, token % w
    return (row[:, None] - row + h - 1) * (2 * w - 1) + (col[:, None] - col + w - 1)


def resample_bias_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a bias table to another grid, bicubic over the offsets.

    Args:
        table: [(2 S_h - 1)(2 S_w - 1), n].
        old: (S_h, S_w).
        new: (h, w).

    Returns:
        [(2h - 1)(2w - 1), n]; the table itself where the grids agree.
    """
    if tuple(old) == tuple(new):
        return table
    rows, cols = (2 * s - 1 for s in old)
    grid = table.float().T.reshape(1, -1, rows, cols)  # [1, n, 2 S_h - 1, 2 S_w - 1]
    grid = F.interpolate(grid, size=[2 * s - 1 for s in new], mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T.to(table.dtype)


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
