"""Levels of a pyramid in the formats that timm's consumers ask for.

Letters: B images; N units of an image, K of them visible; s tokens along a side of a unit; c channels; r pixels under a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..geometry import from_units

FORMATS = ("NCHW", "NHWC", "NLC")


def check_format(output_fmt: str) -> None:
    """Refuse a format that is not one of FORMATS."""
    if output_fmt not in FORMATS:
        raise ValueError(f"output_fmt={output_fmt!r} is unknown, use {', '.join(FORMATS)}")


def maps_of_units(levels: Sequence[Tensor], size: tuple[int, int], unit: int) -> list[Tensor]:
    """Put the units of an image back in place.

    Args:
        levels: [B, N, s, s, c], fine to coarse.
        size: (H, W) of the image; units that reach beyond it were padded.
        unit: pixels along a side of a unit.

    Returns:
        [B, c, ceil(H / r), ceil(W / r)] for each level, what was padded cropped away.
    """
    grid = tuple(-(-side // unit) for side in size)
    maps = []
    for x in levels:
        r = unit // x.shape[2]
        x = from_units(x, grid)[:, : -(-size[0] // r), : -(-size[1] // r)]  # [B, ceil(H/r), ceil(W/r), c]
        maps.append(x.permute(0, 3, 1, 2))
    return maps


def in_format(x: Tensor, output_fmt: str) -> Tensor:
    """[..., c, h, w] -> the same (NCHW), [..., h, w, c] (NHWC) or [..., h w, c] (NLC); contiguous."""
    if output_fmt == "NCHW":
        return x.contiguous()
    x = x.movedim(-3, -1)
    return x.flatten(-3, -2) if output_fmt == "NLC" else x.contiguous()
