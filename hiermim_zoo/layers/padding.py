"""Inputs of any size: refuse what is too small, pad what does not divide."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(images: Tensor, multiple: int, minimum: int, only: tuple[int, int] | None = None) -> Tensor:
    """Pad height and width with zeros at the bottom and the right.

    Args:
        images: [B, C, H, W].
        multiple: what the sides of the result are multiples of.
        minimum: the smallest side accepted.
        only: (H, W), the one size accepted, if there is but one.

    Raises:
        ValueError: not four axes, a side below ``minimum``, or not the size that ``only`` asks for.
    """
    if images.ndim != 4:
        raise ValueError(f"expected images [B, C, H, W], got shape {list(images.shape)}")
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
