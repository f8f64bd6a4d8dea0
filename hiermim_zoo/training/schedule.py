"""The learning rate of every step, of pre-training and of fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..commands.options.pretrain import PretrainOptions
from ..data.batches import Batching
from ..models.recipes import FineTuning, Pretraining

SHARE_AHEAD = 1 / 5  # of warm-up and of the rest, that a schedule can be ahead at most


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step: linear warm-up, then a cosine.

    Args:
        total: steps of the run.
        warmup: steps in which the rate rises.
        peak: rate after the warm-up.
        floor: rate at the end.
        start: rate of the first step of the warm-up.
        ahead: steps that the rate is ahead: in step s it is that of s + ahead, and the cosine runs beyond its end,
            where it rises again. Short runs, which this would spoil, are ahead by a fifth of the warm-up, or of the
            rest, at most.
        simmim: the cosine begins with the first step, so it is below the peak when the warm-up ends, and floor and
            start are the same for all layers (SimMIM, arXiv 2111.09886, lr_scheduler.py).
    """

    total: int
    warmup: int
    peak: float
    floor: float = 0.0
    start: float = 0.0
    ahead: float = 0.0
    simmim: bool = False

    @property
    def shift(self) -> float:
        """Steps that the rate is ahead, in this run."""
        spans = [self.warmup, self.total - self.warmup] if self.total > self.warmup else [self.warmup]
        return min(self.ahead, SHARE_AHEAD * min(spans))

    def at(self, step: int, scale: float = 1.0) -> float:
        """The rate of a step.

        Args:
            step: counted from 0.
            scale: of a layer, where rates decay from layer to layer.
        """
        if not self.simmim:
            return scale * self._at(step, self.peak)
        return self._at(step, scale * self.peak)

    def _at(self, step: int, peak: float) -> float:
        now = step + self.shift
        if now < self.warmup:
            return self.start + (peak - self.start) * now / self.warmup
        begin = 0 if self.simmim else self.warmup
        progress = (now - begin) / max(1, self.total - begin)
        return self.floor + (peak - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def pretraining_schedule(options: PretrainOptions, row: Pretraining, batching: Batching) -> Schedule:
    """The learning rate of every step of a run.

    Args:
        options: with the values of the family.

    Raises:
        ValueError: there is not one step.
    """
    everything = batching.steps_of_run(options.epochs)
    total = min(options.steps or everything, everything)
    ahead = row.ahead * batching.per_epoch
    return Schedule(total, batching.steps_of(options.warmup), options.lr, ahead=ahead)


def tuning_schedule(recipe: FineTuning, batching: Batching) -> Schedule:
    """The learning rate of every step."""
    return Schedule(
        batching.steps_of_run(recipe.epochs),
        batching.steps_of(recipe.warmup),
        recipe.blr * batching.batch / 256,
        recipe.min_lr,
        recipe.start_lr,
        recipe.ahead * batching.per_epoch,
        recipe.schedule == "simmim",
    )


def set_lr(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Give every group its rate of a step, by its own scale where it has one (layer decay)."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.at(step, group.get("lr_scale", 1.0))
