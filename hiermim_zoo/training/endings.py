"""What a run that has ended should not keep to itself: that it has learned nothing, or little, and what to try.

What the functions give are lines, for stderr and for the field ``warnings`` of a result.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor

from ..models.build import has_weights
from ..text import counted, printable
from .image_form import said_of

FEWEST = 200  # steps of the optimiser, below which hardly anything is learned
FEW_MEASURED = 100  # images, of which a score varies by ten points to each side, or more
FEW_TRAINED = 10  # images for each thing that is to be told, below which little more than the images is learned
FEW_GROUPS = 10  # below which drawing them tells little of how others would be
ENOUGH = 8  # lines of a log that tell how much the loss varies by chance
# What it means that a model was never trained.
LITTLE = "what it gives means little"
FROM_SCRATCH = "this measures training from scratch"
NO_RATE = "the learning rate was 0, so nothing could change; try a larger --lr, or none for that of the recipe"
NORMAL = 1.4826  # standard deviation of a normal distribution, of the median of absolute values


class Chance(NamedTuple):
    """What a score comes to without looking."""

    share: float
    words: str  # how
    score: str = "top1"


CHANCES = {  # of other labels than classes
    "tags": Chance(0.5, "drawn by lot", "auc"),
    "values": Chance(0.0, "always the mean", "r2"),
}


def fell(losses: Sequence[float]) -> bool | None:
    """Whether the loss of a run fell, by more than it varies by chance; None where that cannot be told.

    The first value is compared with the mean of the last quarter. How much values vary is taken from the steps between
    neighbours, which a slow trend hardly touches.

    Args:
        losses: means over equal stretches of the run, in order.
    """
    if len(losses) < 2 or not all(map(math.isfinite, losses)):
        return None
    fall = losses[0] - _late(losses)
    if len(losses) < ENOUGH:
        return fall > 0
    steps = [abs(b - a) for a, b in pairwise(losses)]
    noise = NORMAL * median(steps) / math.sqrt(2)  # of one value: a step is the difference of two
    return fall > 2 * noise * math.sqrt(1 + 1 / (len(losses) // 4))


def _late(losses: Sequence[float]) -> float:
    """The mean of the last quarter."""
    return fmean(losses[-max(1, len(losses) // 4) :])


def about_training(
    steps: int, done: int, warmup: int, rising: bool, losses: Sequence[float], longer: str = "more --epochs"
) -> list[str]:
    """Lines about the course of a training.

    Args:
        steps: of the whole run.
        done: of them, those in which the weights were changed.
        warmup: steps in which the learning rate rises.
        rising: whether the run ended within them.
        losses: see :func:`fell`.
        longer: what makes the run longer.
    """
    lines = []
    if done < FEWEST <= steps:
        lines.append(
            f"the weights were changed {counted(done, 'times')} in {steps} steps, because in the others loss or "
            "gradients were not finite; try a lower --lr, --clip 1 or --amp none"
        )
    elif done < FEWEST:
        # with a smaller batch an epoch has more steps, but a step is a step
        smaller = ", or a smaller --batch-size" if longer == "more --epochs" else ""
        lines.append(
            f"the weights were changed {counted(done, 'times')}, and fewer than {FEWEST} times teach little; "
            f"try {longer}{smaller}"
        )
    if rising:
        lines.append(
            f"the learning rate was still rising when the run ended, after {steps} of {counted(warmup, 'steps')} of "
            f"warm-up: try a shorter --warmup, or {longer}"
        )
    if fell(losses) is False:
        more = " by more than it varies" if len(losses) >= ENOUGH else ""
        lines.append(
            f"the loss did not fall{more}: it was {losses[0]:.4g} at first and {_late(losses):.4g} in "
            f"the mean of the last quarter; "
            f"try another --lr (a tenth, or ten times as much), or {longer}"
        )
    return lines


def chance_of(labels: Tensor | Iterable[int] | None, classes: int, names: Sequence[str] | None = None) -> Chance:
    """The share that is told right by always naming the most frequent class, where labels are known; else by drawing
    lots.

    Args:
        labels: of the images that are measured on.
        names: of the classes.
    """
    counts = torch.bincount(torch.as_tensor(list(labels)).long()) if labels is not None else torch.zeros(0)
    if not len(counts):
        return Chance(1 / classes, f"1 of {classes} classes, drawn by lot")
    most = int(counts.argmax())
    name = names[most] if names and most < len(names) else most
    return Chance(int(counts[most]) / int(counts.sum()), f"always the most frequent class, {name}")


def about_score(found: str, bounds: Sequence[float], chance: Chance, count: int, advice: Sequence[str]) -> list[str]:
    """A line, if a score may be chance: if that lies within its confidence interval, or above it.

    Args:
        found: the score in words.
        bounds: of its interval; of top1 in percent.
        count: of the images that were measured.
        advice: what to try, if it is not that they are too few.
    """
    share, unit = (100 * chance.share, " %") if chance.score == "top1" else (chance.share, "")
    if share < bounds[0]:
        return []
    by_chance = f"chance, {share:.4g}{unit} ({chance.words})"
    if count < FEW_MEASURED and share <= bounds[1]:
        images = f"{counted(count, 'images')} {'was' if count == 1 else 'were'}"
        return [
            f"{found} cannot be told from {by_chance}, because only {images} measured; measure "
            f"on {FEW_MEASURED} or more, with --train DATA for those to train on"
        ]
    return [f"{found} is no better than {by_chance}; try {', or '.join(advice)}"]


def about_trained(images: int | None, told: int, things: str) -> list[str]:
    """A line, if there were too few images to train on.

    Args:
        images: None: there was no training, or nobody knows how many there are.
        told: how many classes, tags or values were to be told.
        things: how they are called.
    """
    if images is None or images >= FEW_TRAINED * told:
        return []
    return [
        f"trained on {counted(images, 'images')} for {counted(told, things)}, which is little to learn from; try "
        f"{FEW_TRAINED} or more for each, or a model that was pre-trained on similar images"
    ]


def about_groups(count: int) -> list[str]:
    """A line, if there are too few groups for intervals that mean something.

    Args:
        count: of the groups that were measured on; 0: images are not grouped.
    """
    if not 0 < count < FEW_GROUPS:
        return []
    return [
        f"intervals of {counted(count, 'groups')} mean little, for they say how much groups differ; "
        f"measure on {FEW_GROUPS} or more"
    ]


def about_model(name: str, pretrained: bool = True, so: str = LITTLE) -> list[str]:
    """A line, if a model has learned nothing, as far as can be told.

    Args:
        name: as timm has it.
        pretrained: whether weights are asked for.
        so: what that means.

    Raises:
        ValueError: the configuration of its folder says what cannot be.
    """
    if not pretrained:
        known = ":" in name or has_weights(name)
        instead = "without --no-pretrained, or with " if known else ""
        return [_never_trained(name, "its weights are random", so, f"{instead}--model local-dir:DIR")]
    if ":" in name:
        return about_steps(name, said_of(name), so)
    if has_weights(name) is False:
        return [_never_trained(name, "no pretrained weights of it are known, so they are random", so)]
    return []


def about_steps(name: object, said: Mapping[str, Any], so: str = LITTLE) -> list[str]:
    """A line, if a folder says that its model was trained for no step.

    Args:
        said: by this package in config.json.
    """
    why = "its folder says that it was trained for 0 steps"
    return [_never_trained(name, why, so)] if said.get("step") == 0 else []


def about_no_checkpoint(name: str) -> list[str]:
    """A line about an autoencoder that was started from no folder."""
    return [_never_trained(name, "its weights are random", LITTLE, "--checkpoint DIR")]


def _never_trained(name: object, why: str, so: str, advice: str = "--model local-dir:DIR") -> str:
    return f"{name} was never trained ({why}): {so}; try {advice}, the folder encoder/ of a run"


def warn(lines: Iterable[str], first: bool = True) -> None:
    """Say so on stderr, in one process of the run."""
    for line in lines if first else ():
        tqdm.write(f"warning: {printable(line)}", file=sys.stderr)
