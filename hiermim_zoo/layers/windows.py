"""Windows of a grid of tokens, folded into the batch so that attention stays four-dimensional.

Letters: B images; h, w the grid; a, b rows and columns of one window; n windows of an image; T = a b tokens of one; C
channels. A window is never larger than the grid along either axis; a grid that it does not divide is padded at the
bottom and the right.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry import from_units, to_units, unflatten


def to_windows(x: Tensor, window: int | None) -> Tensor:
    """Cut a grid into windows, padding with zeros.

    Args:
        x: [B, h, w, C].
        window: rows and columns of a window; None for one that covers the grid.

    Returns:
        [B n, T, C], the windows of one image next to each other.
    """
    h, w = x.shape[1:3]
    a, b = _cells(h, w, window)
    if h % a or w % b:
        x = F.pad(x, (0, 0, 0, -w % b, 0, -h % a))
    return to_units(x, (a, b)).flatten(0, 1).flatten(1, 2)


def from_windows(x: Tensor, like: Tensor, window: int | None) -> Tensor:
    """Put windows back in place and crop what was padded, the inverse of :func:`to_windows`.

    Args:
        x: [B n, T, C].
        like: [B, h, w, C], whose grid it was.
        window: as given to :func:`to_windows`.

    Returns:
        [B, h, w, C].
    """
    h, w = like.shape[1:3]
    a, b = _cells(h, w, window)
    grid = (-(-h // a), -(-w // b))
    x = unflatten(unflatten(x, 1, (a, b)), 0, (-1, grid[0] * grid[1]))  # [B, n, a, b, C]
    return from_units(x, grid)[:, :h, :w]


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
    h, w = x.shape[1:3]
    a, b = _cells(h, w, window)
    if not (h % a or w % b):
        return None
    rows = torch.arange(h + -h % a, device=x.device) < h
    cols = torch.arange(w + -w % b, device=x.device) < w
    real = to_units((rows[:, None] & cols)[None, :, :, None], (a, b))  # [1, n, a, b, 1]
    real = F.pad(real.flatten(2), (prefix, 0), value=True)  # [1, n, prefix + T]
    return real[0, :, None, None].repeat(x.shape[0], 1, 1, 1)


def _cells(h: int, w: int, window: int | None) -> tuple[int, int]:
    return (h, w) if window is None else (min(h, window), min(w, window))
