"""Inputs: refuse what is none, what is too small, pad what does not divide."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry import surely, up_to
from ..text import counted


def check_images(images: Tensor, chans: int, axes: int = 2) -> Tensor:
    """The images, refused where a model cannot take them. What a graph leaves open is not looked at in it.

    Args:
        images: [B, C, H, W], or clips [B, C, T, H, W].
        chans: C.
        axes: 2 for images, 3 for clips.

    Raises:
        ValueError: other axes, other channels, whole numbers, no image at all.
    """
    what, sides = ("images", "H, W") if axes == 2 else ("clips", "T, H, W")
    if not isinstance(images, Tensor):
        raise ValueError(f"expected {what} [B, C, {sides}] as a tensor, got {type(images).__name__}")
    if images.ndim != 2 + axes:
        single = images.ndim == 1 + axes and images.shape[0] == chans
        one = "; images[None] is a batch of one" if single else ""
        raise ValueError(f"expected {what} [B, C, {sides}], got shape {list(images.shape)}{one}")
    if images.shape[1] != chans:
        raise ValueError(f"expected {what} of {counted(chans, 'channels')}, got shape {list(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{what} must be floating-point numbers, got {images.dtype}: scale and normalise them first")
    if not torch.compiler.is_compiling() and not images.shape[0]:
        raise ValueError(f"the batch is empty: got {what} of shape {list(images.shape)}")
    return images


def pad_to_multiple(
    images: Tensor, chans: int, multiple: int, minimum: int, only: tuple[int, int] | None = None, axes: int = 2
) -> Tensor:
    """Pad height and width with zeros at the bottom and the right.

    Args:
        images: [B, C, H, W], or clips [B, C, T, H, W].
        chans: C.
        multiple: what the sides of the result are multiples of.
        minimum: the smallest side accepted.
        only: (H, W), the one size accepted, if there is but one.
        axes: 2 for images, 3 for clips, whose frames stay as they are.

    Raises:
        ValueError: of :func:`check_images`, a side below ``minimum``, or not the size that ``only`` asks for.
    """
    check_images(images, chans, axes)
    height, width = images.shape[-2:]
    if height < minimum or width < minimum:
        raise ValueError(f"image of {height} x {width} pixels is too small: both sides must be at least {minimum}")
    if only is not None and (height, width) != tuple(only):
        raise ValueError(
            f"image of {height} x {width} pixels, but the model was built for {only[0]} x {only[1]} alone; "
            "leave out strict_img_size=True (or dynamic_img_size=False) to accept any size"
        )
    bottom, right = up_to(height, multiple) - height, up_to(width, multiple) - width
    return images if surely(bottom == 0, right == 0) else F.pad(images, (0, right, 0, bottom))
