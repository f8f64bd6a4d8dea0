"""The one encoder protocol: how a masked autoencoder talks to any hierarchical encoder.

An image is divided into mask units, the smallest squares (or boxes) that are hidden or shown as a whole.
An encoder says how many units an input has and how many tokens one unit holds at each level; given the
indices of the visible units it returns their tokens and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Stage(NamedTuple):
    """One level of the pyramid, seen from a single mask unit."""

    tokens: tuple[int, ...]  # tokens of ONE mask unit at this level, per axis
    dim: int  # channels


@dataclass(frozen=True)
class MaskLayout:
    """What an encoder's tokens look like for inputs of its configured size."""

    units: tuple[int, ...]  # mask units per axis of the input: (14, 14), (7, 7) or (8, 7, 7)
    stages: tuple[Stage, ...]  # the levels handed on, fine to coarse
    stride: tuple[int, ...]  # input pixels (and frames) under one token of the last stage
    prefix: int = 0  # tokens that are never hidden (class token)


class Visible(NamedTuple):
    """Tokens of the visible units; the units stand in the order of ``keep``."""

    prefix: Tensor | None  # [B, prefix, C]
    stages: tuple[Tensor, ...]  # stage s: [B, K, *tokens_s, C_s]


@runtime_checkable
class MaskableEncoder(Protocol):
    """An encoder that can look at part of its input."""

    @property
    def mask_layout(self) -> MaskLayout:
        """Units, levels and stride for inputs of the configured size."""
        ...

    def forward_visible(self, images: Tensor, keep: Tensor) -> Visible:
        """Encode the units named by ``keep``.

        Args:
            images: [B, C, H, W], or [B, C, T, H, W] for clips.
            keep: int64 [B, K], ascending raster indices of the visible units; each row may differ.

        Raises:
            ValueError: ``keep`` has the wrong shape or type, or (checked where that needs no device
                synchronisation) an index out of range, repeated or out of order.
        """
        ...


@runtime_checkable
class PlanningEncoder(Protocol):
    """A maskable encoder some of whose work depends on the mask alone, and can be done where data are loaded."""

    @property
    def planner(self) -> Callable[[Tensor], Any]:
        """int64 [B or 1, K] -> what ``forward_visible`` takes as ``plans``; both can be pickled, and hold no
        weights.
        """
        ...

    def plan(self, keep: Tensor) -> Any:
        """The same, here and now: int64 [B, K], or [1, K] where every sample has the same mask."""
        ...

    def forward_visible(self, images: Tensor, keep: Tensor, plans: Any = None) -> Visible:
        """As a MaskableEncoder's; ``plans`` are what the planner makes of ``keep``, on any device. None: made here.

        Plans are followed as they are: whether they are of this very ``keep`` is not looked at.

        Raises:
            ValueError: plans of another number of units, or of other windows.
        """
        ...
