"""Attention between mask units that share a window, unit by unit: of all units, or of the visible ones by a plan.

A unit moves as a whole, with all its tokens; queries may be pooled inside it. Without a mask, windows that the grid
does not divide into are filled up with empty units, which are attended to (arXiv 2408.00714, the image encoder); a plan
knows no such padding: hidden units and those beyond the edge are equally absent.

Letters: B inputs; n units of one, M those that groups are for: n where the inputs share them, else B n; R = B n / M; G
groups; g slots of one; S slots that a slot can see, g or 3 g; T tokens of a unit, t of them after pooling; h heads; C
channels, d of one head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry import from_units, surely, to_units, unflatten
from .group_attention import around, pair_mask
from .groups import Plan
from .windows import cut_grid


class UnitGroups(NamedTuple):
    """Which units attend to each other."""

    number: int  # G
    size: int  # g
    slots: Tensor | None = None  # int64 [G g]: the unit in every slot, M for an empty one; None: as they come
    back: Tensor | None = None  # int64 [M]: the slot of every unit
    reach: int = 0  # groups on either side that a group sees too
    mask: Tensor | None = None  # bool [G, 1, g, S]: pairs of slots that see each other; None: all of a group


def window_groups(grid: tuple[int, int], side: int, device: torch.device | None = None) -> UnitGroups:
    """The windows of whole inputs.

    Args:
        grid: units along rows and columns.
        side: units along both sides of a window.
        device: of the indices.

    Returns:
        Groups of ``side * side`` slots. Where windows divide the grid, of units in the order of
        :func:`to_window_order`; else of units in raster order, with empty slots.
    """
    if surely(grid[0] % side == 0, grid[1] % side == 0):
        return UnitGroups((grid[0] // side) * (grid[1] // side), side**2)
    cut = cut_grid(grid, (side, side), device)
    return UnitGroups(cut.windows, side**2, cut.slots, cut.back)


def to_window_order(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Units window by window, so that windows are views; as they are where windows do not divide the grid.

    Args:
        x: [B, N, T, C], units in raster order.
        grid: units along rows and columns.
        side: units along both sides of a window.

    Returns:
        [B, N, T, C].
    """
    if not _ordered(grid, side):
        return x
    ordered = to_units(unflatten(x.flatten(2), 1, grid), (side, side))  # [B, windows, side, side, T C]
    return unflatten(ordered.flatten(1, 3), 2, x.shape[2:])


def from_window_order(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """[B, N, T, C] -> the same in raster order, the inverse of :func:`to_window_order`."""
    if not _ordered(grid, side):
        return x
    windows = (grid[0] // side, grid[1] // side)
    raster = from_units(unflatten(x.flatten(2), 1, (-1, side, side)), windows)  # [B, rows, columns, T C]
    return unflatten(raster.flatten(1, 2), 2, x.shape[2:])


def _ordered(grid: tuple[int, int], side: int) -> bool:
    """Whether windows are views of units that are put in order, and the order is not that of the raster."""
    return surely(grid[0] % side == 0, grid[1] % side == 0) and not surely(grid[1] == side)


def plan_groups(plan: Plan) -> UnitGroups:
    """A plan of units, which they follow: :func:`hiermim_zoo.layers.groups.make_plans` of geometries with one
    "token" a unit.
    """
    mask = pair_mask(plan)
    assert isinstance(mask, Tensor)  # no plan for FlexAttention
    count, size = plan.window.shape
    return UnitGroups(count, size, plan.slots, plan.back, plan.reach, mask)


def unit_attention(
    qkv: Tensor, groups: UnitGroups, heads: int, pool: int, empty: Tensor, dropout: float = 0.0
) -> Tensor:
    """Attention of every token to those of the units in its group.

    Args:
        qkv: [B, n, T, 3 C], queries, keys and values side by side.
        groups: of these units.
        heads: h.
        pool: tokens of a unit that become one query, their maximum; they are T / pool apart.
        empty: [3 C], what each token of an empty unit has.
        dropout: of attention weights.

    Returns:
        [B, n, t, C].
    """
    batch, units, tokens, _ = qkv.shape
    count, size, slots, back, reach, mask = groups
    x = qkv.reshape(-1, count * size if back is None else back.shape[0], *qkv.shape[2:])  # [R, M, T, 3 C]
    if slots is not None:
        if mask is None:
            x = torch.cat([x, empty.to(x.dtype).expand(x.shape[0], 1, tokens, -1)], dim=1)
        x = x.index_select(1, slots)
    q, k, v = unflatten(x, 1, (count, size)).chunk(3, dim=-1)  # [R, G, g, T, C]
    if pool > 1:
        q = unflatten(q, 3, (pool, -1)).amax(dim=3)  # [R, G, g, t, C]
    if reach:
        k, v = around(k, 1, 2, 0), around(v, 1, 2, 0)  # [R, G, S, T, C]
    queries = q.shape[3]
    q, k, v = (unflatten(y.flatten(2, 3), -1, (heads, -1)).transpose(2, 3) for y in (q, k, v))  # [R, G, h, g t, d]
    bias = None if mask is None else token_mask(mask, queries, tokens)  # [G, 1, g t, S T]
    if bias is None or q.shape[0] == 1:  # the batch is one of groups
        q, k, v = (y.flatten(0, 1) for y in (q, k, v))
    else:  # the batch is one of inputs, which share groups and their mask
        q, k, v = (y.flatten(1, 2) for y in (q, k, v))
        bias = bias.expand(-1, heads, -1, -1).flatten(0, 1)[None]  # [1, G h, g t, S T]
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    x = x.reshape(-1, count, heads, size * queries, x.shape[-1]).transpose(2, 3)  # [R, G, g t, h, d]
    x = x.reshape(-1, count * size, queries, heads * x.shape[-1])
    return (x if back is None else x.index_select(1, back)).reshape(batch, units, queries, -1)


def token_mask(mask: Tensor, queries: int, keys: int) -> Tensor:
    """Pairs of units -> pairs of their tokens: bool [G, 1, g, S] -> [G, 1, g t, S T]."""
    if queries == keys == 1:
        return mask
    return mask[:, :, :, None, :, None].expand(-1, -1, -1, queries, -1, keys).flatten(4).flatten(2, 3)
