"""What the values of images are like: mean and standard deviation of each channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..progress import Progress
from .decoding import Image_
from .source import Source

SAMPLE = 1000  # images that are looked at


class Statistics(NamedTuple):
    """Of all pixels, each channel by itself; values are from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def values_of(image: Image_) -> Tensor:
    """float64 [C, N], from 0 to 1."""
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(np.array(image))
        return pixels.view(-1, len(image.getbands())).T.double() / 255
    return image.flatten(1).double()


def statistics_of(images: Iterable[Image_]) -> Statistics:
    """Mean and standard deviation over all pixels of some images.

    Raises:
        ValueError: there is no image.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for image in images:
        values = values_of(image)
        count += values.shape[1]
        total, squares = total + values.sum(1), squares + values.square().sum(1)
    if not count:
        raise ValueError("no image can be read, so there is no mean of them")
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()))


def measured(source: Source, most: int = SAMPLE) -> Statistics:
    """Of some images of the data, evenly spaced; those that cannot be read are left out.

    Raises:
        ValueError: none can be read.
    """
    with Progress(None if source.streamed else min(most, len(source)), "image", what="mean of images") as bar:
        return statistics_of(bar.over(sample(source, most)))


def sample(source: Source, most: int) -> Iterable[Image_]:
    """Images of the data, evenly spaced; of videos, the frames of their clips."""
    if source.streamed:
        yield from frames_of(source.some(min(most, len(source))))
        return
    count = min(most, len(source))
    for n in range(count):
        try:
            item, _ = source.read(n * len(source) // count)
        except Exception:  # decoders of damaged files raise whatever comes up; who needs the image will name it
            continue
        yield from frames_of([item])


def frames_of(items: Sequence[Any]) -> Iterable[Image_]:
    """Images as they are; of clips, all frames."""
    for item in items:
        yield from (frame for clip in item for frame in clip) if isinstance(item, list) else (item,)
