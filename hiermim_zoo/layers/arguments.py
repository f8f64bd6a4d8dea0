"""Arguments that every family takes: image size and pooling."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import to_2tuple

MIN_SIDE = 32  # the coarsest feature map has one cell for this many pixels


def checked_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels; refuses sides below MIN_SIDE."""
    height, width = to_2tuple(img_size)
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"img_size={img_size} is too small: both sides must be at least {MIN_SIDE}")
    return int(height), int(width)


def checked_pool(name: str) -> str:
    """The name of a pooling of tokens; refuses those that need a class token or weights."""
    if name not in ("", "avg", "max", "avgmax"):
        raise ValueError(f"global_pool={name!r} is unknown, use 'avg', 'max', 'avgmax' or ''")
    return name
