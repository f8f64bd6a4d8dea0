"""What is different about classes, tags and values: one record for each kind of targets.

Letters: B images of a batch, N of the training data, T outputs: classes, tags or values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batches import LABEL, READ
from .linear import Bank, Found, class_probe, standard, tag_probe, value_probe
from .probe import class_votes, mean_votes

SURE = 1e-6  # probabilities nearer to 0 or 1 have no other log-odds


@dataclass(frozen=True)
class Goal:
    """What a model is trained to tell.

    Args:
        kind: of the targets.
        outputs: T.
        truth: of each training image, float32 [N, T] of tags or values (NaN: unknown); None: classes are read.
        weights: of the classes, or of a yes of each tag beside a no, float32 [T]; None: all are 1.
    """

    kind: str
    outputs: int
    truth: Tensor | None = None
    weights: Tensor | None = None

    @property
    def task(self) -> Task:
        return TASKS[self.kind]

    @property
    def scale(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of values, two [T]; None: outputs are not scaled."""
        return standard(self.truth) if self.kind == "values" and self.truth is not None else None

    def learned(self) -> Tensor | None:
        """What the outputs are compared with, [N, T]: values with mean 0 and standard deviation 1."""
        if self.scale is None or self.truth is None:
            return self.truth
        mean, deviation = self.scale
        return (self.truth - mean) / deviation

    @property
    def known(self) -> float:
        """The share of the tags or values that are known."""
        return 1.0 if self.truth is None else 1 - float(self.truth.isnan().float().mean())


# ---- losses


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy with a weight for each class, of labels [B] or of shares [B, T]; the mean over the images.

    It does not divide by the weights in the batch, so an image counts the same whatever comes beside it.
    """

    def __init__(self, weights: Tensor, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("weights", weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        weights: Any = self.weights
        if target.ndim == 1:
            target = F.one_hot(target, logits.shape[1]) * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        return -(weights * target * logits.log_softmax(1)).sum(1).mean()


class KnownLoss(nn.Module):
    """A loss of each number of [B, T], averaged over those that are known.

    Args:
        each: (outputs, targets) [B, T] -> [B, T].
        share: of the targets that are known in the training data. Dividing by it, not by what is known in a batch,
            makes a number count the same whatever comes beside it.
    """

    def __init__(self, each: nn.Module, share: float) -> None:
        super().__init__()
        self.each, self.share = each, share

    def forward(self, found: Tensor, target: Tensor) -> Tensor:
        known = ~target.isnan()
        losses = self.each(found, torch.where(known, target, 0.0))
        return torch.where(known, losses, 0.0).mean() / self.share


def _class_loss(goal: Goal, recipe: Any, mixed: bool) -> nn.Module:
    if goal.weights is not None:
        return WeightedCrossEntropy(goal.weights, recipe.smoothing)
    return SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(recipe.smoothing)


def _tag_loss(goal: Goal, recipe: Any, mixed: bool) -> nn.Module:
    return KnownLoss(nn.BCEWithLogitsLoss(reduction="none", pos_weight=goal.weights), goal.known)


def _value_loss(goal: Goal, recipe: Any, mixed: bool) -> nn.Module:
    return KnownLoss(nn.MSELoss(reduction="none"), goal.known)


# ---- the records


@dataclass(frozen=True)
class Task:
    """What is different about a kind of targets.

    Args:
        headline: the score that stands for all.
        averaged: outputs of a model [B, T] -> what can be averaged over views: probabilities, or values.
        said: the same way back, as scores take it: logits, or values.
        loss: (goal, recipe, whether images are mixed) -> of outputs and targets.
        blends: whether images and what is said of them can be blended, and labels smoothed.
        votes: (features of the bank, truth, queries, k, temperature, T) -> [M, T], averaged.
        probe: a linear model.
        weighted: whether classes or tags can have weights.
    """

    headline: str
    averaged: Callable[[Tensor], Tensor]
    said: Callable[[Tensor], Tensor]
    loss: Callable[[Goal, Any, bool], nn.Module]
    blends: bool
    votes: Callable[[Tensor, Tensor, Tensor, int, float, int], Tensor]
    probe: Callable[[Bank, Tensor], Found]
    weighted: bool = True


TASKS = {
    "classes": Task(
        headline="top1",
        averaged=lambda logits: logits.softmax(1),
        said=lambda shares: shares.clamp(min=torch.finfo(shares.dtype).tiny).log(),
        loss=_class_loss,
        blends=True,
        votes=class_votes,
        probe=class_probe,
    ),
    "tags": Task(
        headline="map",
        averaged=torch.sigmoid,
        said=lambda shares: shares.logit(SURE),
        loss=_tag_loss,
        blends=True,
        votes=lambda bank, truth, queries, k, temperature, outputs: mean_votes(bank, truth, queries, k, temperature),
        probe=tag_probe,
    ),
    "values": Task(
        headline="r2",
        averaged=lambda values: values,
        said=lambda values: values,
        loss=_value_loss,
        blends=False,
        votes=lambda bank, truth, queries, k, temperature, outputs: mean_votes(bank, truth, queries, k, temperature),
        probe=value_probe,
        weighted=False,
    ),
}


# ---- fine-tuning


def objective(
    recipe: Any, mix_prob: float, goal: Goal, micro: int
) -> tuple[Callable[[Tensor, Tensor], Any], nn.Module]:
    """What is done to images and targets before the model sees them, and the loss.

    Args:
        recipe: of fine-tuning.
        mix_prob: share of the batches with mixup or cutmix.
        micro: images of a batch of a process.

    Raises:
        ValueError: images are mixed in pairs, but their number is odd; or targets cannot be mixed.
    """
    if not goal.task.blends and (recipe.mixup or recipe.cutmix or recipe.smoothing):
        raise ValueError(f"mixup, cutmix and smoothing are for classes and tags, not for {goal.kind}")
    mixed = bool(mix_prob and (recipe.mixup or recipe.cutmix))
    loss = goal.task.loss(goal, recipe, mixed)
    many = goal.kind == "tags"
    if not mixed:
        smoothed = recipe.smoothing if many else 0.0  # the loss of classes does so by itself
        return (lambda images, target: (images, target * (1 - smoothed) + smoothed / 2 if smoothed else target)), loss
    if micro % 2:
        raise ValueError(
            f"mixup and cutmix pair the images of a batch, which {micro} in each process cannot be; "
            "--mix-prob 0 does not"
        )
    mix = Mixup(
        recipe.mixup,
        recipe.cutmix,
        prob=mix_prob,
        label_smoothing=recipe.smoothing,
        num_classes=goal.outputs,
        multi_label=many,
    )

    def blended(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        flat, target = mix(images.flatten(1, -3), target)  # to timm the frames of a clip are channels
        return flat.view(images.shape), target

    return blended, loss


class Wanted:
    """The targets of a batch, from the columns that come with it.

    Args:
        goal: of the training.
        device: of the columns.
    """

    def __init__(self, goal: Goal, device: torch.device) -> None:
        learned = goal.learned()
        self.table = None if learned is None else learned.to(device)

    def __call__(self, columns: Tensor) -> Tensor:
        return columns[:, LABEL] if self.table is None else self.table[columns[:, READ]]


def outputs_of(model: nn.Module, kind: str, scale: tuple[Tensor, Tensor] | None = None) -> Callable[[Tensor], Tensor]:
    """What a model says of images [B, T], which can be averaged over the views of a video.

    Args:
        scale: mean and standard deviation of values, if the model tells standardised ones.
    """

    def found(images: Tensor) -> Tensor:
        values = TASKS[kind].averaged(model(images).float())
        if scale is None:
            return values
        mean, deviation = (part.to(values.device) for part in scale)
        return values * deviation + mean

    return found


@torch.no_grad()
def tell_values(model: Any, scale: tuple[Tensor, Tensor]) -> None:
    """From here on a model that told standardised values tells them as they are: its classifier is scaled."""
    head = model.get_classifier()
    mean, deviation = (part.to(head.weight) for part in scale)
    head.weight.mul_(deviation[:, None])
    head.bias.mul_(deviation).add_(mean)
