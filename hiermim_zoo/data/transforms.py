"""From what is read to what a model takes: timm's preprocessing, for images and for the frames of clips."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import torch
from timm.data import create_transform, resolve_model_data_config
from timm.data.transforms import (
    CenterCropOrPad,
    MaybePILToTensor,
    MaybeToTensor,
    RandomResizedCropAndInterpolation,
    ResizeKeepRatio,
    str_to_interp_mode,
)
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    Resize,
)
from torchvision.transforms.functional import pil_to_tensor, resize

from .clips import evenly_spaced
from .decoding import Image_, part_of, size_of
from .parts import Parts
from .seeds import random_states, set_random_states

# Pixels that a JPEG is decoded to, for each that is wanted of it, along a side. With two, values of
# photographs change by less than two levels of 255 (root mean square), those of text by up to six, and edges of parts
# move by at most a quarter of a pixel.
ENOUGH = 2
ASPECTS = (3 / 4, 4 / 3)  # width / height of random parts, from and to


def data_config(model: Any, img_size: tuple[int, ...] | None = None) -> dict[str, Any]:
    """timm's preprocessing for the model, with the channels and frames that it really has.

    Args:
        img_size: (height, width) in place of the model's; frames before them are left to the model.

    Returns:
        Arguments of :func:`make_transform`; ``input_size`` is (channels, height, width), or (channels, frames, height,
        width).
    """
    config = resolve_model_data_config(model)
    chans = getattr(model, "in_chans", config["input_size"][0])
    frames = getattr(model, "num_frames", None)
    config["input_size"] = (chans, *((frames,) if frames else ()), *(img_size or config["input_size"])[-2:])
    for key in ("mean", "std"):  # averaged where they do not fit, as in timm's loader
        values = config[key]
        config[key] = values if len(values) == chans else (sum(values) / len(values),) * chans
    return config


def make_transform(input_size: tuple[int, ...], crops: int = 1, **options: Any) -> Any:
    """timm's transform of an image to [C, H, W]; for a model of clips, applied to their frames.

    Args:
        input_size: (channels, height, width) or (channels, frames, height, width).
        crops: of a clip in evaluation. With more than one its shorter side becomes the model's, whatever ``crop_pct``
            says, and the crops lie evenly from one end of the longer side to the other: nothing of it is lost.
        **options: of timm's create_transform.
    """
    channels, *frames, height, width = input_size
    if crops > 1:
        options |= {"crop_pct": 1.0, "crop_mode": "center"}
    whole: Any = create_transform((channels, height, width), **options)
    placed = [cropped_at(whole, (height, width), share) for share in evenly_spaced(crops)] if crops > 1 else [whole]
    each = [WithTensors(transform, options.get("use_prefetcher", False)) for transform in placed]
    return EveryFrame(*each) if frames else each[0]


def cropped_at(transform: Any, size: tuple[int, int], share: float) -> Compose:
    """timm's transform for evaluation, with another crop than that of the centre."""
    steps = transform.transforms
    return Compose([CropAt(size, share) if isinstance(step, CenterCrop) else step for step in steps])


class CropAt:
    """A part of an image, at a share of the way that it can go along both sides.

    The middle of an odd way is rounded up, as by SlowFast (slowfast/datasets/transform.py), whose test crops these are.

    Args:
        size: (height, width) of the part.
    """

    def __init__(self, size: tuple[int, int], share: float) -> None:
        self.size, self.share = size, share

    def __call__(self, image: Image_) -> Image_:
        height, width = self.size
        across, down = size_of(image)
        left, top = math.ceil((across - width) * self.share), math.ceil((down - height) * self.share)
        part: Image_ = part_of(image, left, top, left + width, top + height)
        return part


# What timm's transforms do to tensors as well as to PIL's images.
_FOR_TENSORS = (
    CenterCrop,
    CenterCropOrPad,
    CropAt,
    MaybePILToTensor,
    MaybeToTensor,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCropAndInterpolation,
    RandomVerticalFlip,
    Resize,
    ResizeKeepRatio,
)


class WithTensors:
    """timm's transform of images, which also takes those that are tensors from 0 to 1 (see ``decoding``).

    Args:
        transform: timm's.
        to_255: whether it gives numbers from 0 to 255, to be normalised later.
    """

    def __init__(self, transform: Any, to_255: bool) -> None:
        self.transform, self.to_255 = transform, to_255

    @property
    def transforms(self) -> list[Any]:
        """The steps of timm's transform."""
        steps: list[Any] = self.transform.transforms
        return steps

    def __call__(self, image: Any) -> Any:
        steps = self.transforms
        if isinstance(image, Parts):
            image, steps = first_part(image, steps)
        if not isinstance(image, Tensor):
            for step in steps:
                image = step(image)
            return image
        for step in steps:
            if not isinstance(step, _FOR_TENSORS):
                raise ValueError(
                    f"{type(step).__name__} changes colours of 8 bits, which this image has not: use --auto-augment '' "
                    "and --color-jitter 0"
                )
            if isinstance(step, Normalize):
                image = image.clamp(0, 1)  # bicubic filters overshoot; PIL clips, too
            image = step(image)
        return image.clamp(0, 1) * 255 if self.to_255 else image


def first_part(image: Parts, steps: list[Any]) -> tuple[Image_, list[Any]]:
    """What is left of an image after the first step of timm's transform, and the other steps; the image is closed.

    If that step takes a random part, nothing else is read; its random numbers are those that it would draw.
    """
    with image:
        if not isinstance(first := steps[0], RandomResizedCropAndInterpolation):
            return image.whole(), steps
        part = drawn_part(image, first.scale, first.ratio)
    kinds = first.interpolation
    interpolation = random.choice(kinds) if isinstance(kinds, (tuple, list)) else kinds
    return resize(part, list(first.size), interpolation), steps[1:]


def drawn_part(image: Parts, scale: tuple[float, float], aspects: tuple[float, float]) -> Image_:
    """The part of an image that timm's random resized crop would take; nothing else is read."""
    width, height = image.size
    alike = torch.empty(()).expand(1, height, width)  # of which timm asks nothing but the size
    top, left, height, width = RandomResizedCropAndInterpolation.get_params(alike, scale, aspects)
    return image.part(left, top, left + width, top + height)


def random_part(input_size: tuple[int, ...], scale: tuple[float, float], interpolation: str) -> Any:
    """A random part of an image, mirrored with probability one half -> [C, H, W]; of clips, that of their frames.

    Images of PIL give uint8, those that are tensors give float32 from 0 to 255.

    The parts are those of timm's transform for training, but its colours are left alone.

    Args:
        input_size: (channels, height, width) or (channels, frames, height, width).
        scale: smallest and largest share of the image's area.
        interpolation: as timm calls it, like "bicubic".
    """
    *_, height, width = input_size
    transform = Compose([RandomPart((height, width), scale, interpolation), RandomHorizontalFlip()])
    return EveryFrame(transform) if len(input_size) > 3 else transform


class RandomPart:
    """An image -> a random part of it, resized: uint8 [C, H, W]. timm's random resized crop, in less time.

    An image that is a tensor, float32 from 0 to 1, gives float32 from 0 to 255.

    The part is drawn first, with the same random numbers. Then a JPEG that is not decoded yet is decoded at 1/2, 1/4 or
    1/8 of its size, if the part still has ``ENOUGH`` pixels. Then torch resizes it: it is faster than PIL, and its
    values are the same but for rounding.

    Args:
        size: (height, width) of what is made.
        scale: smallest and largest share of the image's area.
        interpolation: as timm calls it, like "bicubic".
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float], interpolation: str) -> None:
        self.size, self.scale, self.interpolation = size, scale, str_to_interp_mode(interpolation)

    def __call__(self, image: Image_ | Parts) -> Tensor:
        if isinstance(image, Parts):
            with image:
                part = drawn_part(image, self.scale, ASPECTS)
            return self.resized(part).contiguous()
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, ASPECTS)
        if isinstance(image, Tensor):
            return self.resized(image[:, top : top + height, left : left + width])
        full = image.size
        drafted = image.draft(None, self.least(full, (width, height)))
        shrunk = drafted[1][2] / full[0] if drafted else 1
        left, top, right, bottom = (round(edge * shrunk) for edge in (left, top, left + width, top + height))
        return self.resized(image.crop((left, top, right, bottom))).contiguous()

    def least(self, full: tuple[int, int], part: tuple[int, int]) -> tuple[int, int]:
        """The smallest size of the whole image at which a part of it has enough pixels; all are (width, height)."""
        across, down = (
            math.ceil(ENOUGH * wanted * whole / side)
            for wanted, whole, side in zip(reversed(self.size), full, part, strict=True)
        )
        return across, down

    def resized(self, image: Image_) -> Tensor:
        if isinstance(image, Tensor):
            return resize(image, list(self.size), self.interpolation, antialias=True).clamp(0, 1) * 255
        smooth = self.interpolation in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
        if not smooth or image.mode == "RGBA":  # torch has no other that shrinks well, and knows nothing of alpha
            return pil_to_tensor(resize(image, list(self.size), self.interpolation))
        pixels = pil_to_tensor(image)[None]
        return F.interpolate(pixels, self.size, mode=self.interpolation.value, antialias=True)[0]


def samples_of(made: Any) -> list[Any]:
    """What a transform made of one item, as a list of samples: of an image one, of a video its clips."""
    return made if isinstance(made, list) else [made]


class EveryFrame:
    """Clips, each a list of T images -> as many tensors [C, T, H, W], by a transform of images to [C, H, W].

    Every frame of a clip sees the same random numbers: all are cut, mirrored and coloured alike.

    Args:
        *each: transforms; each clip goes through all of them, one after the other.
    """

    def __init__(self, *each: Any) -> None:
        self.transform, self.each = each[0], each

    @property
    def transforms(self) -> list[Any]:
        """The steps, as those of timm's transforms."""
        return self.transform.transforms

    def __call__(self, clips: list[list[Image_]]) -> list[Tensor]:
        made = (self.frames(clip, transform) for clip in clips for transform in self.each)
        return [torch.stack([torch.as_tensor(frame) for frame in frames], dim=1) for frames in made]

    @staticmethod
    def frames(clip: list[Image_], transform: Any) -> Iterator[Any]:
        state = random_states()
        for image in clip:
            set_random_states(state)
            yield transform(image)
