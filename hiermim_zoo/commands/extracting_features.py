"""What a model finds in a batch of images or clips, and what becomes of images that cannot be read."""

from __future__ import annotations

import sys
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor

from ..training.precision import autocast
from .extracting_file import DTYPES
from .extracting_rows import ImageFiles
from .loading import model_errors
from .options.extract import ExtractOptions


def complain(rows: ImageFiles, unreadable: list[tuple[int, str]], on_error: str) -> None:
    """Name the images that cannot be read.

    Raises:
        ValueError: naming the first, where ``on_error`` is "stop".
    """
    for i, reason in unreadable:
        tiles = "--max-pixels" in reason and rows.can_be_tiled(i)
        more = "; so does --tile N, which cuts images into tiles" if tiles else ""
        message = f"{rows.files[i]} cannot be read ({' '.join(reason.split())}{more})"
        if on_error == "stop":
            raise ValueError(f"{message}; --on-error skip leaves such files out")
        tqdm.write(f"skipped: {message}", file=sys.stderr)


def features(model: Any, images: Tensor, options: ExtractOptions) -> dict[str, Tensor]:
    """Features of a batch as they are stored, on the CPU; see :func:`computed`."""
    return {key: storable(key, x, options.dtype) for key, x in computed(model, images, options).items()}


@torch.inference_mode()
def computed(model: Any, images: Tensor, options: ExtractOptions) -> dict[str, Any]:
    """Features of a batch.

    Args:
        images: [B, C, H, W], or clips [B, C, T, H, W].

    Returns:
        "pooled" [B, D], "tokens" [B, N, D] (or as the model has them), "map0" [B, D, h, w], "map1", ...; maps of clips
        are [B, D, t, h, w].

    Raises:
        ValueError: the model refuses the images.
    """
    found: dict[str, Any] = {}
    task = f"a batch of shape {list(images.shape)}"
    with model_errors(options.model, task), autocast(images.device, options.amp):
        if "pooled" in options.what or "tokens" in options.what:
            tokens = model.forward_features(images)
            if "pooled" in options.what:
                found["pooled"] = model.forward_head(tokens, pre_logits=True)
            if "tokens" in options.what:
                found["tokens"] = tokens
        if "maps" in options.what:
            levels = sorted(set(options.levels)) if options.levels else None
            maps = model.forward_intermediates(images, indices=levels, intermediates_only=True, output_fmt="NCHW")
            found.update((f"map{level}", x) for level, x in zip(levels or range(len(maps)), maps, strict=True))
    return found


def storable(key: str, x: Any, dtype: str) -> Tensor:
    """A feature as it is stored.

    Raises:
        ValueError: it is no tensor, or does not fit the type.
    """
    if not isinstance(x, Tensor) or (key == "pooled" and x.ndim != 2):
        raise ValueError(
            f"the model gives {key} features of shape {list(getattr(x, 'shape', []))}, which cannot be stored as such"
        )
    x = x.to(DTYPES[dtype])
    if not x.isfinite().all():
        raise ValueError(
            f"{key} features are not finite in {dtype}; try --dtype bfloat16 or float32, and --amp bf16 or none"
        )
    return x.cpu()
