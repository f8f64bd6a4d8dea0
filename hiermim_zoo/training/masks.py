"""The masks of a pre-training run: drawn where images are read, and planned there where that helps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.batches import EXTRA
from ..mae import MaskedAutoencoder
from ..masking import random_keep


def visible_units(units: int, kept: int, shared: bool, own: int, step: int) -> list[int]:
    """The mask of an image, from its own seed or from that of its step, which is the same on every process."""
    generator = torch.Generator().manual_seed(step if shared else own)
    mask: list[int] = random_keep(1, units, kept, generator=generator)[0].tolist()
    return mask


def keep_of(columns: Tensor, shared: bool) -> Tensor:
    """The masks of a batch.

    Args:
        columns: int64 [b, 3 + K], with each image's visible units behind what else goes with it.
        shared: all images of the batch have the same one.

    Returns:
        int64 [b, K], or [1, K] where it is shared.
    """
    return columns[:1, EXTRA:] if shared else columns[:, EXTRA:]


def planned_ahead(mae: MaskedAutoencoder, device: torch.device, compiled: str | None) -> Callable[[Tensor], Any] | None:
    """What the workers make of the columns of a batch, if there is something to plan.

    On accelerators and in graphs plans are made without a look at the mask, there and then.
    """
    if mae.planner is None or compiled or device.type != "cpu":
        return None
    return partial(_plans_of, mae.planner, mae.recipe.shared_mask)


def _plans_of(planner: Callable[[Tensor], Any], shared: bool, columns: Tensor) -> Any:
    return planner(keep_of(columns, shared))
