"""Convolutions on visible units alone, with the weights of ordinary Conv2d modules (GreenMIM, arXiv 2205.13515, section
3.3).

Two kinds occur in hierarchical transformers. A convolution whose kernel is its stride sees whole patches, and a unit
holds whole patches: it is a linear map of each. Any other looks beyond its unit: hidden neighbours count as zeros, like
those beyond the edge of the image, and results are computed inside visible units only.

Letters: B images; H, W pixels; U units, K of them visible; t tokens along a side of a unit; N = K t t visible tokens,
unit after unit; C, D channels; k side of a kernel; r = (k - 1) / 2, tokens that it reaches beyond a unit; s its stride.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..geometry import to_units
from ..masking import gather_units


class Halo(NamedTuple):
    """Which token stands where in units that are widened on all sides, for one batch and stage."""

    source: Tensor  # int64 [B (t + 2 r)^2 K] in B (N + 1) tokens, of which the last of each image is zero
    tokens: int  # t
    reach: int  # r


def unit_grid(images: Tensor, unit: int) -> tuple[int, int]:
    """Rows and columns of units of [B, C, H, W].

    Raises:
        ValueError: not four axes, or a side that is no multiple of the unit.
    """
    if images.ndim != 4:
        raise ValueError(f"expected images [B, C, H, W], got shape {list(images.shape)}")
    height, width = images.shape[-2:]
    if height % unit or width % unit or not height or not width:
        raise ValueError(f"image of {height} x {width} pixels cannot be masked: both sides must be multiples of {unit}")
    return height // unit, width // unit


def visible_pixels(images: Tensor, keep: Tensor, unit: int) -> Tensor:
    """[B, C, H, W], int64 [B, K] -> [B, K, unit, unit, C]."""
    return gather_units(to_units(images.movedim(1, -1), (unit, unit)), keep)


def patch_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution whose kernel is its stride, as a linear map of whole patches.

    Args:
        x: [B, K, t, t, C].
        conv: kernel k that divides t.

    Returns:
        [B, K, t / k, t / k, D].

    Raises:
        ValueError: a convolution of another kind, or one whose patches do not fill a unit.
    """
    k, t = conv.kernel_size[0], x.shape[2]
    if conv.kernel_size != (k, k) or conv.stride != (k, k) or conv.padding != (0, 0) or conv.groups != 1 or t % k:
        raise ValueError(f"{conv} is no convolution of whole patches of units of {t} x {t}")
    if not is_plain(conv):
        return conv(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    x = x.unflatten(3, (t // k, k)).unflatten(2, (t // k, k)).transpose(3, 4)  # [B, K, t / k, t / k, k, k, C]
    return F.linear(x.flatten(4), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def is_plain(conv: nn.Module) -> bool:
    """Whether a convolution is its weights alone: no adapter in its place, no hook that wants to see its call."""
    hooks = (conv._forward_hooks, conv._forward_pre_hooks, conv._backward_hooks, conv._backward_pre_hooks)
    return type(conv) is nn.Conv2d and not any(hooks)


def make_halo(keep: Tensor, units: tuple[int, int], tokens: int, reach: int = 1) -> Halo:
    """Find the neighbours of visible units, by gathers alone.

    Args:
        keep: int64 [B, K].
        units: rows and columns of units of the image.
        tokens: t of the stage.
        reach: r.
    """
    batch, kept = keep.shape
    edge = torch.arange(-reach, tokens + reach, device=keep.device)
    rows = (keep // units[1] * tokens)[..., None] + edge  # [B, K, t + 2 r]
    cols = (keep % units[1] * tokens)[..., None] + edge
    inside = ((rows >= 0) & (rows < units[0] * tokens))[..., None] & ((cols >= 0) & (cols < units[1] * tokens))[
        :, :, None
    ]
    unit = (rows // tokens)[..., None] * units[1] + (cols // tokens)[:, :, None]  # [B, K, t + 2 r, t + 2 r]
    unit = torch.where(inside, unit, 0).flatten(1)
    rank = torch.arange(kept, device=keep.device).expand(batch, -1)
    rank = torch.full((batch, units[0] * units[1]), kept, device=keep.device).scatter(1, keep, rank).gather(1, unit)
    token = ((rows % tokens)[..., None] * tokens + (cols % tokens)[:, :, None]).flatten(1)
    zero = kept * tokens * tokens
    index = torch.where(inside.flatten(1) & (rank < kept), rank * tokens * tokens + token, zero)
    start = torch.arange(batch, device=keep.device)[:, None] * (zero + 1)
    return Halo((index + start).flatten(), tokens, reach)


def halo_conv(x: Tensor, conv: nn.Conv2d, halo: Halo) -> Tensor:
    """A convolution that looks beyond its unit, at visible units, hidden tokens counting as zeros.

    Args:
        x: [B, N, C].
        conv: kernel 2 r + 1, padding r, a stride s that divides t; depthwise or not.
        halo: of these tokens.

    Returns:
        [B, N / s s, D], unit after unit.

    Raises:
        ValueError: a convolution of another kind, or one of a stride that has adapters or hooks.
    """
    k, s = 2 * halo.reach + 1, conv.stride[0]
    padded = conv.padding == (halo.reach, halo.reach) and conv.dilation == (1, 1)
    if conv.kernel_size != (k, k) or conv.stride != (s, s) or halo.tokens % s or not padded:
        raise ValueError(f"{conv} does not fit a halo of {halo.reach} around units of {halo.tokens} x {halo.tokens}")
    side = halo.tokens + 2 * halo.reach
    tiles = F.pad(x, (0, 0, 0, 1)).flatten(0, 1).index_select(0, halo.source)  # [B K (t + 2 r)^2, C]
    tiles = tiles.unflatten(0, (-1, side, side)).permute(0, 3, 1, 2)  # [B K, C, t + 2 r, t + 2 r]
    if is_plain(conv):
        out = F.conv2d(tiles, conv.weight, conv.bias, s, groups=conv.groups)  # [B K, D, t / s, t / s]
    elif s == 1:
        inside = slice(halo.reach, halo.reach + halo.tokens)
        out = conv(tiles)[:, :, inside, inside]
    else:
        raise ValueError(f"{conv} with adapters or hooks does not fit units: its stride is not 1")
    return out.permute(0, 2, 3, 1).reshape(x.shape[0], -1, out.shape[1])
