"""Layers of the last axis, of tokens that stand in a grid or in units."""

from __future__ import annotations

import torch.fx
from torch import Tensor, nn

from ..geometry import unflatten

torch.fx.wrap("unflatten")  # what it does depends on the number of axes


def tokenwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer to every token, with three axes: adapters (peft's OFT) take four for those of an image.

    Args:
        layer: of the last axis.
        x: [B, ..., c].

    Returns:
        [B, ..., c'].
    """
    return unflatten(layer(x.flatten(1, -2)), 1, x.shape[1:-1])
