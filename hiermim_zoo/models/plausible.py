"""Weights are tried: whether a model with them does what such a model is for, on the package's photographs.

A file can hold the right names and shapes and still the wrong numbers. What a trial says is one of three things:
plausible, implausible, or that it cannot be told. It is made so that good weights are never called implausible; blocks
that stand in each other's place, for one, can leave all of this unchanged.

The limits stand between what was measured of the embedded weights and of weights that are wrong: docs/checkpoints.md
has the numbers, tests/test_plausible.py repeats the measurement.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.photographs import photographs, shown
from ..masking import random_keep
from ..progress import Progress
from .imagenet import IMAGENET_CLASSES, imagenet_names

IMAGES, CLIPS = 10, 6  # photographs that are shown; clips take longer
# A classifier, see ``answers``: both below are implausible.
LEAST_TOLD, LEAST_AGREEMENT = 0.05, 1.5
# An autoencoder's loss, as a share of that of predicting the mean of each patch: below is plausible, above implausible
# if it is not clearly below that of shuffled tensors either.
GOOD_LOSS, BAD_LOSS, CLEARLY = 0.95, 1.1, 0.9
PHOTOGRAPH = 64  # pixels along a side of one that an autoencoder sees: with more there is no detail to predict
# The other order of merging must do so much better before it is taken for the right one; and the answers of a model
# with two blocks exchanged.
BETTER, BETTER_BY = 1.25, 0.05
EXCHANGED, EXCHANGED_BY = 1.15, 0.02
WORK = 300_000_000  # values of a model, times the pairs that are exchanged: one of base size takes twice the time


Block = tuple[str, nn.Module]  # with its name in the model


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    plausible: bool | None  # None: cannot be told
    words: str
    figures: Mapping[str, float] = field(default_factory=dict)
    tops: tuple[str, ...] = ()  # the class that each photograph is taken for

    @property
    def verdict(self) -> str:
        return {True: "plausible", False: "implausible", None: "cannot be told"}[self.plausible]


def tried(model: Any, *, photographic: bool | None = None) -> Trial:
    """Try the weights of a model.

    Args:
        model: a classifier, an encoder, or a MaskedAutoencoder; on its own device, in its own type.
        photographic: its classes are those of photographs, so it has to tell them apart; None: if there are 1,000
            classes, as in ImageNet. What another classifier does with photographs cannot condemn it.
    """
    images = photographs(CLIPS if getattr(getattr(model, "encoder", model), "num_frames", None) else IMAGES)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            if hasattr(model, "kept"):
                return _autoencoder(model, mosaics(len(images), max(model.input_size[-2:])))
            if getattr(model, "num_classes", 0) > 1:
                known = model.num_classes == IMAGENET_CLASSES if photographic is None else photographic
                return _classifier(model, images, known)
            return _encoder(model, images)
    finally:
        model.train(training)


# ---- classifiers


def _classifier(model: Any, images: Tensor, known: bool) -> Trial:
    chances = _chances(model, images)
    if not chances.isfinite().all():
        return Trial(False, "its answers are not finite")
    figures = answers(chances)
    if known and (other := other_order(model)):
        figures["told_in_the_other_order"] = answers(_chances(other, images))["told"]
    tops = tuple(_class_names(model, chances[0].argmax(-1).tolist()))
    words = (
        f"tells {figures['told']:.0%} of what {len(images)} photographs could be told apart by, its mean confidence is "
        f"{figures['confidence']:.2f}, shifted images agree {figures['agreement']:.1f} times as well as different ones"
    )
    if figures.get("told_in_the_other_order", 0.0) > BETTER * figures["told"] + BETTER_BY:
        better = figures["told_in_the_other_order"]
        return Trial(False, f"{words}; {better:.0%} if patches are merged in the other order", figures, tops)
    if known and (pair := better_exchanged(model, images, figures["told"])):
        first, second, better = pair
        figures["told_with_blocks_exchanged"] = better
        return Trial(False, f"{words}; {better:.0%} if {first} and {second} are exchanged", figures, tops)
    if figures["told"] >= LEAST_TOLD or figures["agreement"] >= LEAST_AGREEMENT:
        return Trial(True, words, figures, tops)
    if known:
        return Trial(False, f"{words}: as a model without training does", figures, tops)
    return Trial(None, f"{words}; its classes may have nothing to do with photographs", figures, tops)


def _chances(model: Any, images: Tensor) -> Tensor:
    """Probabilities of classes, of the images and of those moved to the right and down by 1/32: [2, B, K]."""
    inputs = shown(images, model)
    step = max(1, inputs.shape[-1] // 32)
    both = [_one_by_one(model, x).softmax(-1) for x in (inputs, inputs.roll((step, step), (-2, -1)))]
    return torch.stack(both)


def answers(chances: Tensor) -> dict[str, float]:
    """Figures of a classifier.

    Args:
        chances: [2, B, K], probabilities of classes, of images and of the same ones shifted a little.

    Returns:
        "confidence": the mean of the largest probability. "told": the information that the answers hold about which
        image it is, as a share of what B images and K classes allow: near 0 where all answers are alike or unsure.
        "agreement": the probability that image and shifted image get the same class, answers drawn at random, as a
        multiple of that of two different images: near 1 where answers do not depend on the image.
    """
    plain, moved = chances
    count = len(plain)
    pairs = plain @ moved.T  # [B, B]
    same = pairs.diagonal().mean()
    different = (pairs.sum() - pairs.diagonal().sum()) / (count * (count - 1))
    found = {"confidence": plain.amax(-1).mean(), "told": told_by(plain), "agreement": same / different.clamp_min(1e-6)}
    return {name: value.item() for name, value in found.items()}


def told_by(chances: Tensor) -> Tensor:
    """The information that answers [B, K] hold about which image it is, as a share of what is possible."""
    count, classes = chances.shape
    return (_entropy(chances.mean(0)) - _entropy(chances).mean()) / math.log(min(count, classes))


def _entropy(chances: Tensor) -> Tensor:
    return -(chances * chances.clamp_min(1e-12).log()).sum(-1)


def better_exchanged(model: nn.Module, images: Tensor, told: float) -> tuple[str, str, float] | None:
    """Two blocks of a classifier in each other's place, with which its answers hold clearly more: they were exchanged.

    Pairs are tried from neighbours on, as many as ``WORK`` allows.

    Args:
        model: the same again afterwards.
        images: as :func:`~hiermim_zoo.data.photographs.photographs` gives them.
        told: what its answers hold as it is, see :func:`answers`.

    Returns:
        Names of the blocks, and what the answers hold then; None: no pair does so.
    """
    inputs = shown(images, model)
    most = WORK // sum(parameter.numel() for parameter in model.parameters())
    for (first, one), (second, other) in pairs_of_blocks(model)[:most]:
        _exchange(one, other)
        try:
            found = told_by(_one_by_one(model, inputs).softmax(-1)).item()
        finally:
            _exchange(one, other)
        if found > EXCHANGED * told + EXCHANGED_BY:
            return first, second, found
    return None


def pairs_of_blocks(model: nn.Module) -> list[tuple[Block, Block]]:
    """All pairs of blocks with parameters of the same names and shapes, neighbours first."""
    alike: dict[object, list[Block]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "mlp") and hasattr(module, "norm2"):
            shapes = tuple((key, tuple(value.shape)) for key, value in module.named_parameters())
            alike.setdefault(shapes, []).append((name, module))
    ranked = [
        (j - i, blocks[i], blocks[j])
        for blocks in alike.values()
        for i in range(len(blocks))
        for j in range(i + 1, len(blocks))
    ]
    return [(one, other) for _, one, other in sorted(ranked, key=lambda pair: pair[0])]


def _exchange(one: nn.Module, other: nn.Module) -> None:
    """Exchange the values of two modules, without a copy."""
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        a.data, b.data = b.data, a.data


def other_order(model: nn.Module) -> nn.Module | None:
    """The same model with the second and third of every four merged patches exchanged; None if it merges none."""
    if not any(_mergings(model)):
        return None
    other = copy.deepcopy(model)
    for merging in _mergings(other):
        width = merging.reduction.in_features // 4
        order = torch.arange(4 * width).view(4, width)[[0, 2, 1, 3]].flatten()
        merging.reduction.weight.copy_(merging.reduction.weight[:, order])
        for tensor in merging.norm.parameters():
            tensor.copy_(tensor[order])
    return other


def _mergings(model: nn.Module) -> Iterator[Any]:
    """Modules that join four patches: a norm over all four, then a matrix."""
    for module in model.modules():
        norm, matrix = getattr(module, "norm", None), getattr(module, "reduction", None)
        joins = isinstance(norm, nn.LayerNorm) and isinstance(matrix, nn.Linear)
        if joins and norm.weight.numel() == matrix.in_features:  # type: ignore[union-attr]
            yield module


def _class_names(model: Any, indices: Sequence[int]) -> list[str]:
    labels = model.pretrained_cfg.get("label_names")
    if not labels or len(labels) != model.num_classes:
        labels = imagenet_names() if model.num_classes == IMAGENET_CLASSES else None
    return [str(labels[i]).partition(",")[0] if labels else f"class {i}" for i in indices]


# ---- masked autoencoders and encoders


def _autoencoder(mae: Any, images: Tensor) -> Trial:
    keep = random_keep(len(images), mae.units, mae.kept, generator=torch.Generator().manual_seed(0))
    inputs = shown(images, mae)
    own = relative_loss(mae, inputs, keep)
    mixed = relative_loss(shuffled(mae), inputs, keep)
    figures = {"loss": own, "loss_of_shuffled_tensors": mixed}
    words = (
        f"its loss on {len(images)} images of photographs is {own:.2f} of that of predicting the mean of each patch "
        f"({mixed:.2f} with shuffled tensors)"
    )
    if math.isnan(own) or own >= max(BAD_LOSS, CLEARLY * mixed):
        return Trial(False, words, figures)
    return Trial(True if own < min(GOOD_LOSS, CLEARLY * mixed) else None, words, figures)


def mosaics(count: int, side: int) -> Tensor:
    """Images of several photographs each, side by side: uint8 [count, h, h, 3].

    Args:
        side: pixels along the longer side of the model's input, of which a photograph is to take about PHOTOGRAPH.
    """
    across = max(1, round(side / PHOTOGRAPH))
    tiles = photographs(count * across * across).unflatten(0, (count, across, across))  # [count, a, a, h, w, 3]
    return tiles.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def relative_loss(mae: Any, inputs: Tensor, keep: Tensor) -> float:
    """The loss on hidden patches, as a share of the loss of predicting each patch's own mean."""
    at = next(mae.parameters())
    own, plain = torch.zeros(()), torch.zeros(())
    for image, row in zip(inputs.split(1), keep.split(1), strict=True):
        out = mae(image.to(at.device, at.dtype), row.to(at.device))
        target = mae.target(image.to(at.device))  # [1, N, P]
        error = (target - target.mean(-1, keepdim=True)).square().mean(-1)[out.hidden].mean()
        own, plain = own + out.loss.float().cpu(), plain + error.cpu()
    return (own / plain).item()


def shuffled(model: nn.Module) -> nn.Module:
    """The same model with the values of every parameter in another order (drawn with seed 0)."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in other.parameters():
            values = tensor.flatten()
            tensor.copy_(values[torch.randperm(len(values), generator=generator).to(tensor.device)].view_as(tensor))
    return other


def _encoder(model: Any, images: Tensor) -> Trial:
    features = _one_by_one(model, shown(images, model)).flatten(1)
    if not features.isfinite().all():
        return Trial(False, "its features are not finite")
    spread = (features.std(0).norm() / features.norm(dim=1).mean().clamp_min(1e-12)).item()
    if not spread > 1e-6:
        return Trial(False, "its features are the same for all photographs", {"spread": spread})
    words = "its features are finite and differ between photographs, as those of a model without training do; without "
    return Trial(None, f"{words}a decoder or a classifier an encoder cannot be tried further", {"spread": spread})


def _one_by_one(model: Any, inputs: Tensor) -> Tensor:
    """What the model computes, in float32 on the CPU; large models need little memory so."""
    at = next(model.parameters())
    with Progress(len(inputs), "image", what="plausibility") as bar:
        return torch.cat([model(image.to(at.device, at.dtype)).float().cpu() for image in bar.over(inputs.split(1))])
