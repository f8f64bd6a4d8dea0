"""Inputs of any size: refuse what is too small, pad what does not divide."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(
    images: Tensor, multiple: int, minimum: int, only: tuple[int, int] | None = None, axes: int = 2
) -> Tensor:
    """Pad height and width with zeros at the bottom and the right.

    Args:
        images: [B, C, H, W], or clips [B, C, T, H, W].
        multiple: what the sides of the result are multiples of.
        minimum: the smallest side accepted.
        only: (H, W), the one size accepted, if there is but one.
        axes: 2 for images, 3 for clips, whose frames stay as they are.

    Raises:
        ValueError: other axes, a side below ``minimum``, or not the size that ``only`` asks for.
    """
    if images.ndim != 2 + axes:
        expected = "images [B, C, H, W]" if axes == 2 else "clips [B, C, T, H, W]"
        raise ValueError(f"expected {expected}, got shape {list(images.shape)}")
    height, width = images.shape[-2:]
    if height < minimum or width < minimum:
        raise ValueError(f"image of {height} x {width} pixels is too small: both sides must be at least {minimum}")
    if only is not None and (height, width) != tuple(only):
        raise ValueError(
            f"image of {height} x {width} pixels, but the model was built for {only[0]} x {only[1]} alone; "
            "leave out strict_img_size=True (or dynamic_img_size=False) to accept any size"
        )
    bottom, right = -height % multiple, -width % multiple
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images
