"""The masks of a pre-training run: drawn where images are read, and planned there where that helps.

``masks`` says who shares one: "sample" nobody, "batch" the images of a micro-batch, "step" those of a step. A step
consists of as many micro-batches as there are processes times passes, numbered in the order of its images; masks follow
from the seed, the step and that number. So 8 processes with one pass see the masks of one process with 8 passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.batches import EXTRA, Batching, Seeds
from ..mae import MaskedAutoencoder
from ..masking import random_keep


def visible_units(units: int, kept: int, masks: str, seeds: Seeds) -> list[int]:
    """The mask of an image, from its own seed, or from one that it shares with others, whatever process reads them."""
    seed = {"sample": seeds.own, "batch": seeds.batch, "step": seeds.step}[masks]
    mask: list[int] = random_keep(1, units, kept, generator=torch.Generator().manual_seed(seed))[0].tolist()
    return mask


def check_masks(masks: str, batching: Batching, streamed: bool) -> None:
    """Refuse one mask for a step whose images are read by several that do not know which step they read for.

    Raises:
        ValueError: it is so.
    """
    if masks == "step" and streamed and batching.micro != batching.batch:
        raise ValueError(
            f"--masks step: the readers of a stream do not know to which step an image belongs, and a step has "
            f"{batching.batch // batching.micro} parts (processes times --accumulate); --masks batch and sample work"
        )


def keep_of(columns: Tensor, shared: bool) -> Tensor:
    """The masks of a batch.

    Args:
        columns: int64 [b, 3 + K], with each image's visible units behind what else goes with it.
        shared: all images of the batch have the same one.

    Returns:
        int64 [b, K], or [1, K] where it is shared.
    """
    return columns[:1, EXTRA:] if shared else columns[:, EXTRA:]


def is_shared(mae: MaskedAutoencoder) -> bool:
    """Whether all images of a micro-batch have the same mask."""
    return mae.recipe.masks != "sample"


def planned_ahead(mae: MaskedAutoencoder, device: torch.device, compiled: str | None) -> Callable[[Tensor], Any] | None:
    """What the workers make of the columns of a batch, if there is something to plan.

    On accelerators and in graphs plans are made without a look at the mask, there and then.
    """
    if mae.planner is None or compiled or device.type != "cpu":
        return None
    return partial(_plans_of, mae.planner, is_shared(mae))


def _plans_of(planner: Callable[[Tensor], Any], shared: bool, columns: Tensor) -> Any:
    return planner(keep_of(columns, shared))
