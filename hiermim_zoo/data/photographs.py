"""The package's own photographs, and how any model is shown them: the same way for all, whatever its channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from .transforms import data_config

_FASTEST = 32  # of a clip: a frame moves on by one part in so many of the width


def sample_folder() -> str:
    """Where they are: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).parents[1]
    return str(next(folder for folder in (here / "pictures", here.parent / "examples" / "pictures") if folder.is_dir()))


def photographs(count: int) -> Tensor:
    """Some of them, evenly spaced over their classes: uint8 [count, 32, 32, 3]."""
    files = sorted(Path(sample_folder()).rglob("*.jpg"))
    chosen = [files[i * len(files) // count] for i in range(count)]
    return torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in chosen])


def shown(images: Tensor, model: Any) -> Tensor:
    """Images as a model takes them.

    Each is resized to the model's input (bicubic, in floats, without a crop) and normalised by the mean and deviation
    of its ``pretrained_cfg``. A model of more or less than three channels sees red, green, blue, red, ...; a model of
    clips an image that moves to the right and enters again on the left.

    Args:
        images: uint8 [B, h, w, 3].
        model: of timm, or an autoencoder (whose ``encoder`` has the configuration).

    Returns:
        [B, C, H, W] or [B, C, T, H, W], float32.
    """
    encoder = getattr(model, "encoder", model)
    config = data_config(encoder, getattr(getattr(encoder, "patch_embed", None), "img_size", None))
    channels, *frames, height, width = config["input_size"]
    pixels = images.movedim(-1, 1).float() / 255
    pixels = interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    pixels = pixels[:, [i % 3 for i in range(channels)]]
    pixels = (pixels - _column(config["mean"])) / _column(config["std"])
    if not frames:
        return pixels
    step = max(1, width // _FASTEST)
    return torch.stack([pixels.roll(step * t, -1) for t in range(frames[0])], dim=2)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]
