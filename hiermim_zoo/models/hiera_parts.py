"""What Hiera is built of: the order of tokens, learned positions of other sizes, patch convolution, attention, block.

Letters: B inputs; N units in raster order, n of them seen; T tokens of a unit in pooling order, t of them after
pooling; s_i tokens of a unit along axis i; c channels, C of the input; h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from ..geometry import covering, linear_weights, unflatten
from ..layers.position import along, resample_positions, same_grid
from ..layers.tokens import tokenwise
from ..layers.unit_attention import UnitGroups, unit_attention
from ..masking import gather_units, hide_units

# Per axis: frames, rows, columns. An image has the last two.
UNIT = (2, 32, 32)  # pixels of a mask unit
KERNEL, STRIDE = (3, 7, 7), (2, 4, 4)  # of the patch convolution, in pixels
POOL = (1, 2, 2)  # tokens that one pooling brings together
POOLINGS = 3  # how often a unit can be pooled: once between two stages
SIDE = UNIT[-1] // STRIDE[-1]  # tokens along a side of a unit

# Their branches depend on shapes: leaves for torch.fx.
for _leaf in ("unit_attention", "unflatten"):
    torch.fx.wrap(_leaf)

# ---- geometry


def to_pooling_order(x: Tensor, pool: Sequence[int], times: int) -> Tensor:
    """Sort the tokens of each unit so that poolings are views.

    A coordinate y in a unit of 8 tokens is 4 y3 + 2 y2 + y1; tokens are sorted by (y1, x1), then (y2, x2), then (y3,
    x3).

    Args:
        x: [B, n, s_1, ..., s_D, c] with s_i = pool_i ** times.

    Returns:
        [B, n, T, c].
    """
    if not times:
        return x.flatten(2, -2)
    axes = len(pool)
    for axis in reversed(range(axes)):
        x = unflatten(x, 2 + axis, (pool[axis],) * times)  # [B, n, (y3, y2, y1), (x3, x2, x1), c]
    order = [2 + axis * times + digit for digit in reversed(range(times)) for axis in range(axes)]
    return x.permute(0, 1, *order, 2 + axes * times).flatten(2, -2)


def from_pooling_order(x: Tensor, pool: Sequence[int], times: int) -> Tensor:
    """[B, n, T, c] -> [B, n, s_1, ..., s_D, c], the inverse of :func:`to_pooling_order`."""
    axes = len(pool)
    if not times:
        return unflatten(x, 2, (1,) * axes)
    x = unflatten(x, 2, tuple(pool) * times)  # [B, n, (y1, x1), (y2, x2), (y3, x3), c]
    order = [2 + digit * axes + axis for axis in range(axes) for digit in reversed(range(times))]
    x = x.permute(0, 1, *order, 2 + axes * times)  # [B, n, (y3, y2, y1), (x3, x2, x1), c]
    for axis in range(axes):
        x = x.flatten(2 + axis, 1 + axis + times)
    return x


def max_pool(x: Tensor, count: int) -> Tensor:
    """The largest of ``count`` tokens: [B, n, T, c] -> [B, n, T / count, c]."""
    return x if count == 1 else unflatten(x, 2, (count, -1)).amax(dim=2)


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int], how: str) -> Tensor:
    """Learned positions of a grid of units for another one.

    Args:
        table: [1, 8h 8w, c] for the units (h, w) of ``old``, in raster order.
        old, new: units along the rows and columns.
        how: "plain" resamples the table as it is (bicubic). But what is learned repeats with the period of the units,
            and what is stretched no longer fits them. "window" (arXiv 2311.05613) takes out before what all units have
            in common beside the course of their means, a table of 8 x 8, and tiles it over the new grid after.

    Returns:
        [1, 8h 8w, c] for the units of ``new``; the table itself where the grids agree.
    """
    if same_grid(old, new):
        return table
    before, after = ([SIDE * units for units in grid] for grid in (old, new))
    if how == "plain":
        return resample_positions(table, before, after)
    means = unflatten(table, 1, (old[0], SIDE, old[1], SIDE)).mean(dim=(2, 4)).flatten(1, 2)  # [1, h w, c]
    course = resample_positions(means, old, before)  # [1, 8h 8w, c]
    window = unflatten((table - course), 1, (old[0], SIDE, old[1], SIDE)).mean(dim=(1, 3))  # [1, 8, 8, c]
    rest = table - window.repeat(1, *old, 1).flatten(1, 2)
    return resample_positions(rest, before, after) + window.repeat(1, *new, 1).flatten(1, 2)


def resize_frames(table: Tensor, frames: int) -> Tensor:
    """Learned positions in time for another number of them, linearly: [1, old, c] -> [1, frames, c]."""
    if same_grid((table.shape[1],), (frames,)):
        return table
    return along(linear_weights(table.shape[1], frames, table.device), table).to(table.dtype)


# ---- layers


def with_rims(x: Tensor, axis: int, unit: int, rim: int) -> Tensor:
    """Units along one axis, each behind the rim that is before it: what ``x.unfold`` gives, which few exporters know.

    Args:
        x: [..., rim + g unit, ...].
        axis: which.
        unit, rim: cells.

    Returns:
        [..., g, rim + unit, ...].
    """
    side = x.shape[axis] - rim
    units = (side // unit, unit)
    rims = unflatten(x.narrow(axis, 0, side), axis, units).narrow(axis + 1, 0, rim)
    return torch.cat([rims, unflatten(x.narrow(axis, rim, side), axis, units)], dim=axis + 1)


class HaloEmbed(nn.Module):
    """The patch convolution, unit by unit.

    Its kernel is larger than its stride: the first tokens of a unit also see a rim of the units before, the last none
    of those behind. Each unit is therefore cut out with that rim, and visible units alone are convolved.
    """

    def __init__(self, img_size: tuple[int, int], axes: int, in_chans: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.patch_size = UNIT[1:]  # what consumers of plain ViTs read: pixels under a token of the last stage
        self.unit, kernel, stride = (triple[-axes:] for triple in (UNIT, KERNEL, STRIDE))
        self.rim = tuple(k // 2 for k in kernel)
        conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        self.proj = conv(in_chans, dim, kernel, stride, **dd)
        self.set_size(img_size)

    def set_size(self, img_size: tuple[int, int]) -> None:
        self.img_size = img_size
        self.grid_size = (covering(img_size[0], self.patch_size[0]), covering(img_size[1], self.patch_size[1]))
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, C, *sides] -> [B, n, s_1, ..., s_D, c]; what is hidden is zero in the rims."""
        if keep is not None:
            images = hide_units(images, keep, self.unit)
        x = F.pad(images, [side for rim in reversed(self.rim) for side in (rim, 0)])
        for axis, (unit, rim) in enumerate(zip(self.unit, self.rim, strict=True)):
            x = with_rims(x, 2 + 2 * axis, unit, rim)  # [B, C, g_1, unit + rim, ...]
        axes = len(self.unit)
        grid = range(2, 2 + 2 * axes, 2)
        x = x.permute(0, *grid, 1, *(at + 1 for at in grid)).flatten(1, axes)  # [B, N, C, unit + rim, ...]
        if keep is not None:
            x = gather_units(x, keep)
        batch = x.shape[0]
        return unflatten(self.proj(x.flatten(0, 1)).movedim(1, -1), 0, (batch, -1))


class PooledAttention(nn.Module):
    """Multi-head attention inside each unit, over all of them or inside groups, with queries max-pooled inside their
    unit (section 3).
    """

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, pool: int, local: bool, attn_drop: float, drop: float, **dd: Any
    ) -> None:
        super().__init__()
        self.num_heads, self.pool, self.attn_drop = num_heads, pool, attn_drop
        self.fold = (0, 1) if local else (1, 2)  # units join the batch, or their tokens one sequence
        self.qkv = nn.Linear(dim, 3 * dim_out, **dd)
        self.proj = nn.Linear(dim_out, dim_out, **dd)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor, groups: UnitGroups | None = None) -> Tensor:
        """[B, n, T, c] -> [B, n, t, c']; ``groups``: units that attend to each other, in place of one or all."""
        dropout = self.attn_drop if self.training else 0.0
        if groups is not None:
            x = unit_attention(tokenwise(self.qkv, x), groups, self.num_heads, self.pool, self._of_nothing(x), dropout)
            return self.proj_drop(tokenwise(self.proj, x))
        q, k, v = tokenwise(self.qkv, x).chunk(3, dim=-1)  # [B, n, T, c']
        q = max_pool(q, self.pool)  # [B, n, t, c']
        x = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v), dropout_p=dropout)
        return self.proj_drop(tokenwise(self.proj, x.transpose(1, 2).reshape(q.shape)))

    def _of_nothing(self, like: Tensor) -> Tensor:
        """What the projection makes of zeros, [3 c']: its bias, which quantised layers give as a method."""
        bias = self.qkv.bias
        return bias if isinstance(bias, Tensor) else self.qkv(like.new_zeros(1, like.shape[-1]))[0]

    def _heads(self, x: Tensor) -> Tensor:
        """[B, n, T, c] -> [B n, h, T, c / h] or [B, h, n T, c / h], a view."""
        return unflatten(x.flatten(*self.fold), -1, (self.num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block. One that widens has a linear shortcut, from what is normalised."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        mlp_ratio: float,
        pool: int,
        local: bool,
        attn_drop: float,
        drop: float,
        drop_path: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.proj = nn.Linear(dim, dim_out, **dd) if dim != dim_out else None
        self.attn = PooledAttention(dim, dim_out, num_heads, pool, local, attn_drop, drop, **dd)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6, **dd)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio), drop=drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, groups: UnitGroups | None = None) -> Tensor:
        """[B, n, T, c] -> [B, n, t, c']."""
        normed = self.norm1(x)
        if self.proj is not None:
            x = max_pool(tokenwise(self.proj, normed), self.pool)
        x = x + self.drop_path(self.attn(normed, groups))
        return x + self.drop_path(tokenwise(self.mlp, self.norm2(x)))
