"""A masked autoencoder goes on at another size of its images, or with another number of channels, than it was made for.

The encoder's positions are resampled where weights are loaded (``Family.load_filter``). Here are its stem, and what
the decoder knows of sizes and channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import adapt_input_conv
from torch import Tensor

from ..checkpoints.rules import check_fits
from ..layers.position import resample_positions
from ..text import counted

POSITIONS, PREDICTION = "decoder.pos_embed", "decoder.pred"
INSTEAD = "--decoder fresh of pretrain, decoder='fresh' of create_mae"


def fit_stem(state: Mapping[str, Tensor], encoder: Any) -> dict[str, Tensor]:
    """Weights of an encoder whose first convolution takes the channels of another one.

    As timm does it: of fewer channels the filters are added up, for more they are repeated, in the same proportion.
    Stems of clips are left to their family.

    Args:
        state: of the encoder, as a folder holds it.
        encoder: that is to be loaded.
    """
    name = f"{(getattr(encoder, 'pretrained_cfg', None) or {}).get('first_conv') or 'patch_embed.proj'}.weight"
    stem = state.get(name)
    if stem is None or stem.ndim != 4 or stem.shape[1] == encoder.in_chans:
        return dict(state)
    return {**state, name: adapt_input_conv(encoder.in_chans, stem, base_chans=stem.shape[1])}


def fit_decoder(state: Mapping[str, Tensor], mae: Any, size: Any, called: str) -> dict[str, Tensor]:
    """Weights of fusion and decoder for the images of another autoencoder.

    Args:
        state: as a folder holds it.
        mae: the autoencoder that is to be loaded.
        size: height and width of the images that the folder was made for, or one number for both; None: not known.
        called: what messages call the autoencoder.

    Raises:
        ValueError: the weights do not fit; says how to do without them.
    """
    own = {name: tensor for name, tensor in mae.state_dict().items() if not name.startswith("encoder.")}
    fitted = dict(state)
    try:
        if size is not None and POSITIONS in state:
            fitted[POSITIONS] = _positions(state[POSITIONS], mae, to_2tuple(size))
        for part in ("weight", "bias"):
            if (name := f"{PREDICTION}.{part}") in state:
                fitted[name] = _predictions(state[name], mae)
        check_fits(fitted, own, model=called)
    except ValueError as error:
        raise ValueError(f"{error}; a new decoder works: {INSTEAD}") from error
    return fitted


def _positions(table: Tensor, mae: Any, size: tuple[int, int]) -> Tensor:
    """Fixed positions are those of the new grid; learned ones [1, prefix + N, D] are resampled, frame by frame."""
    own, prefix = mae.decoder.pos_embed, mae.layout.prefix
    *frames, height, width = (pixels // step for pixels, step in zip(mae.input_size, mae.layout.stride, strict=True))
    old = tuple(pixels // step for pixels, step in zip(size, mae.layout.stride[-2:], strict=True))
    if table.ndim != 3 or table.shape[2] != own.shape[2] or old == (height, width):
        return table  # check_fits says what does not fit
    if not own.requires_grad:
        return own.detach().clone()
    times = frames[0] if frames else 1
    if table.shape[1] != prefix + times * math.prod(old):
        raise ValueError(
            f"the decoder's {table.shape[1]} positions are no {times} x {old[0]} x {old[1]} of images of "
            f"{size[0]} x {size[1]} pixels, so they cannot be resampled"
        )
    first, rest = table[:, :prefix], table[:, prefix:].unflatten(1, (times, -1))[0]  # [t, h w, D]
    moved = resample_positions(rest, old, (height, width))
    return torch.cat([first, moved.flatten(0, 1)[None]], dim=1)


def _predictions(weight: Tensor, mae: Any) -> Tensor:
    """Rows of the last layer [P, ...] for the pixels of other channels: each starts as the mean of the old channels."""
    pixels, channels = math.prod(mae.patch), mae.in_chans
    if len(weight) == pixels * channels or mae.recipe.target_dim:  # features are no pixels of any channels
        return weight
    if len(weight) % pixels:
        raise ValueError(
            f"the decoder predicts {counted(len(weight), 'values')}, which are no patches of {pixels} pixels"
        )
    last = mae.recipe.pixel_order == "hwc"
    parted = weight.unflatten(0, (pixels, -1) if last else (-1, pixels))
    axis = 1 if last else 0
    mean = parted.mean(axis, keepdim=True)
    return mean.repeat_interleave(channels, axis).flatten(0, 1)
