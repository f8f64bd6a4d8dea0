"""From what is read to what a model takes: timm's preprocessing, for images and for the frames of clips."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from .seeds import random_states, set_random_states
from .source import mode_of


def data_config(model: Any, img_size: tuple[int, ...] | None = None) -> dict[str, Any]:
    """timm's preprocessing for the model, with the channels and frames that it really has.

    Args:
        img_size: (height, width) in place of the model's; frames before them are left to the model.

    Returns:
        Arguments of :func:`make_transform`; ``input_size`` is (channels, height, width), or (channels, frames, height,
        width).

    Raises:
        ValueError: images cannot be given so many channels.
    """
    config = resolve_model_data_config(model)
    chans = getattr(model, "in_chans", config["input_size"][0])
    mode_of(chans)
    frames = getattr(model, "num_frames", None)
    config["input_size"] = (chans, *((frames,) if frames else ()), *(img_size or config["input_size"])[-2:])
    for key in ("mean", "std"):  # averaged where they do not fit, as in timm's loader
        values = config[key]
        config[key] = values if len(values) == chans else (sum(values) / len(values),) * chans
    return config


def make_transform(input_size: tuple[int, ...], **options: Any) -> Any:
    """timm's transform of an image to [C, H, W]; for a model of clips, applied to their frames.

    Args:
        input_size: (channels, height, width) or (channels, frames, height, width).
        **options: of timm's create_transform.
    """
    channels, *frames, height, width = input_size
    transform = create_transform((channels, height, width), **options)
    return EveryFrame(transform) if frames else transform


def samples_of(made: Any) -> list[Any]:
    """What a transform made of one item, as a list of samples: of an image one, of a video its clips."""
    return made if isinstance(made, list) else [made]


class EveryFrame:
    """Clips, each a list of T images -> as many tensors [C, T, H, W], by a transform of images to [C, H, W].

    Every frame of a clip sees the same random numbers: all are cut, mirrored and coloured alike.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    @property
    def transforms(self) -> list[Any]:
        """The steps, as those of timm's transforms."""
        return self.transform.transforms

    def __call__(self, clips: list[list[Image.Image]]) -> list[Tensor]:
        return [torch.stack([torch.as_tensor(frame) for frame in self.frames(clip)], dim=1) for clip in clips]

    def frames(self, clip: list[Image.Image]) -> Iterator[Any]:
        state = random_states()
        for image in clip:
            set_random_states(state)
            yield self.transform(image)
