"""Windows of a grid of tokens, folded into the batch so that attention stays four-dimensional.

Letters: B images; h, w the grid; a, b rows and columns of one window; n windows of an image; T = a b tokens of one; C
channels. A window is never larger than the grid along either axis, where that is known; a grid that it does not divide
is padded at the bottom and the right.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry import covering, from_units, may_vary, split_index, surely, to_units, unflatten, up_to


class Cut(NamedTuple):
    """How a grid that windows do not divide is cut: by indices, whose number alone depends on its sides."""

    windows: int  # n
    slots: Tensor  # int64 [n T]: the token of the grid, in raster order, in each slot of the windows; h w for none
    back: Tensor  # int64 [h w]: the slot of each token


def cut_grid(grid: tuple[int, int], cells: tuple[int, int], device: torch.device | None = None) -> Cut:
    """Windows of a x b tokens over a grid of h x w, from its top left corner on.

    Arithmetic alone: exporters take it with sides that they leave open.
    """
    (h, w), (a, b) = grid, cells
    down, right = covering(h, a), covering(w, b)  # windows along both sides
    window, slot = split_index(torch.arange(down * right * (a * b), device=device), a * b)
    (first, left), (row, col) = split_index(window, right), split_index(slot, b)
    row, col = first * a + row, left * b + col
    slots = torch.where((row < h) & (col < w), row * w + col, h * w)
    row, col = split_index(torch.arange(h * w, device=device), w)
    back = (row // a * right + col // b) * (a * b) + row % a * b + col % b
    return Cut(down * right, slots, back)


def to_windows(x: Tensor, window: int | tuple[int, int] | None) -> Tensor:
    """Cut a grid into windows, padding with zeros.

    Args:
        x: [B, h, w, C].
        window: rows and columns of a window, cut down to the grid; or both, and then as large as said; None for one
            that covers the grid.

    Returns:
        [B n, T, C], the windows of one image next to each other.
    """
    if window is None:
        return x.flatten(1, 2)
    batch, h, w, _ = x.shape
    a, b = _cells(h, w, window)
    if not surely(h % a == 0, w % b == 0):
        if may_vary(h, w):
            cut = cut_grid((h, w), (a, b), x.device)
            x = F.pad(x.flatten(1, 2), (0, 0, 0, 1)).index_select(1, cut.slots)  # [B, n T, C]
            return x.flatten().reshape(batch * cut.windows, a * b, x.shape[-1])  # in two steps, see from_units
        x = F.pad(x, (0, 0, 0, up_to(w, b) - w, 0, up_to(h, a) - h))
    return to_units(x, (a, b)).flatten(0, 1).flatten(1, 2)


def from_windows(x: Tensor, like: Tensor, window: int | tuple[int, int] | None) -> Tensor:
    """Put windows back in place and leave out what was padded, the inverse of :func:`to_windows`.

    Args:
        x: [B n, T, C].
        like: [B, h, w, C], whose grid it was.
        window: as given to :func:`to_windows`.

    Returns:
        [B, h, w, C].
    """
    batch, h, w, _ = like.shape
    if window is None:
        return unflatten(x, 1, (h, w))
    a, b = _cells(h, w, window)
    divides = surely(h % a == 0, w % b == 0)
    if not divides and may_vary(h, w):
        cut = cut_grid((h, w), (a, b), x.device)
        x = x.flatten().reshape(batch, cut.windows * (a * b), x.shape[-1]).index_select(1, cut.back)  # [B, h w, C]
        return unflatten(x, 1, (h, w))
    grid = (covering(h, a), covering(w, b))
    x = from_units(unflatten(unflatten(x, 1, (a, b)), 0, (-1, grid[0] * grid[1])), grid)  # of [B, n, a, b, C]
    return x if divides else x[:, :h, :w]


def window_mask(x: Tensor, window: int | None, prefix: int = 0) -> Tensor | None:
    """Which tokens of each window may be attended to: those of the grid, not its padding.

    Every window holds a token of the grid, so no row of the attention is empty.

    Args:
        x: [B, h, w, C], before it is cut.
        window: as given to :func:`to_windows`.
        prefix: tokens put in front of every window, which may be attended to.

    Returns:
        bool [B n, 1, 1, prefix + T], or None where nothing was padded.
    """
    if window is None:
        return None
    batch, h, w, _ = x.shape
    a, b = _cells(h, w, window)
    if surely(h % a == 0, w % b == 0):
        return None
    real = to_windows(x.new_ones(1, h, w, 1), window)[..., 0] > 0  # [n, T]
    real = F.pad(real, (prefix, 0), value=True)
    return real[:, None, None].repeat(batch, 1, 1, 1)


def shift_mask(x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """What shifted windows (arXiv 2103.14030, section 3.2) add to their attention: tokens that only the cyclic shift
    has brought side by side do not see each other.

    Args:
        x: [B, h, w, C], shifted; the grid is padded where windows do not divide it.
        window: rows and columns of a window.
        shift: tokens by which rows and columns were shifted.

    Returns:
        [n, T, T], 0 or -100, of the dtype of ``x``.
    """
    sides = (up_to(side, a) for side, a in zip(x.shape[1:3], window, strict=True))
    rows, columns = (_parts(side, a, s, x.device) for side, a, s in zip(sides, window, shift, strict=True))
    parts = to_units((rows[:, None] * 3 + columns)[None, ..., None], window)[0].flatten(1)  # [n, T]
    return torch.where(parts[:, :, None] == parts[:, None], 0.0, -100.0).to(x.dtype)


def _parts(side: int, window: int, shift: int, device: torch.device) -> Tensor:
    """int64 [side]: 0 for what is before the last window, 1 in it, 2 in it and from the other end of the grid."""
    place = torch.arange(side, device=device)
    return (place >= side - window).long() + (place >= side - shift) if shift else place * 0


def _cells(h: int, w: int, window: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a window. Of a grid that a graph leaves open it may be the larger: what it pads is masked."""
    if isinstance(window, tuple):
        return window
    return h if surely(h <= window) else window, w if surely(w <= window) else window
