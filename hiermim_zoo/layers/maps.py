"""Levels of a pyramid in the formats that timm's consumers ask for.

Letters: B inputs; D axes (2 of an image, 3 of a clip); N units of an input, K of them visible; s_i tokens of a unit
along axis i; c channels; r_i pixels (or frames) under a token along axis i.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..geometry import channels_first, covering, cropped, from_units

FORMATS = ("NCHW", "NHWC", "NLC")


def check_format(output_fmt: str) -> None:
    """Refuse a format that is not one of FORMATS."""
    if output_fmt not in FORMATS:
        raise ValueError(f"output_fmt={output_fmt!r} is unknown, use {', '.join(FORMATS)}")


def maps_of_units(levels: Sequence[Tensor], size: Sequence[int], unit: Sequence[int]) -> list[Tensor]:
    """Put the units of an input back in place.

    Args:
        levels: [B, N, s_1, ..., s_D, c], fine to coarse.
        size: pixels (and frames) of the input along each axis; units that reach beyond it were padded.
        unit: pixels (and frames) of a unit along each axis.

    Returns:
        [B, c, ceil(size_1 / r_1), ..., ceil(size_D / r_D)] for each level, what was padded cropped away.
    """
    grid = tuple(covering(side, u) for side, u in zip(size, unit, strict=True))
    maps = []
    for x in levels:
        cells = x.shape[2:-1]
        x = channels_first(from_units(x, grid))
        for axis, (side, u, s) in enumerate(zip(size, unit, cells, strict=True)):
            x = cropped(x, 2 + axis, covering(side, u // s))
        maps.append(x)
    return maps


def in_format(x: Tensor, output_fmt: str, axes: int = 2) -> Tensor:
    """[..., c, h, w] -> the same (NCHW), [..., h, w, c] (NHWC) or [..., h w, c] (NLC); contiguous. With three axes: t,
    h, w.
    """
    if output_fmt == "NCHW":
        return x.contiguous()
    c = x.ndim - 1 - axes
    x = x.permute(*range(c), *range(c + 1, x.ndim), c)
    return x.flatten(-1 - axes, -2) if output_fmt == "NLC" else x.contiguous()
