"""Weights are tried: what is said of good ones, and of ones that are wrong in known ways.

The limits in ``models/plausible.py`` come from these controls; docs/checkpoints.md has their numbers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from torch import nn

from hiermim_zoo import create_mae
from hiermim_zoo.data.photographs import photographs, shown
from hiermim_zoo.models import plausible
from hiermim_zoo.models.imagenet import IMAGENET_CLASSES
from hiermim_zoo.models.plausible import (
    BAD_LOSS,
    LEAST_AGREEMENT,
    LEAST_TOLD,
    answers,
    mosaics,
    other_order,
    pairs_of_blocks,
    shuffled,
    tried,
)

from .embedded import CLASSIFIERS

MERGING = ("hivit_atto.mae_cifar10_ft_cifar10", "green_swin_atto.mae_cifar10_ft_cifar10")
ENCODERS = tuple(f"{name}_atto.mae_cifar10" for name in ("hivit", "hpvit", "green_swin", "hiera"))
AUTOENCODERS = ("hivit_atto", "green_swin_atto", "hiera_atto", "vit_tiny_patch16_224")


@functools.cache
def good(name: str) -> Any:
    return timm.create_model(name, pretrained=True).eval()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_good_classifiers_are_plausible_and_their_classes_are_said(name: str) -> None:
    trial = tried(good(name), photographic=True)
    assert trial.plausible is True
    assert trial.figures["told"] > 2 * LEAST_TOLD  # no limit is near a good one
    assert trial.figures["agreement"] > 1.5 * LEAST_AGREEMENT
    assert set(trial.tops) <= set(good(name).pretrained_cfg["label_names"])
    assert len(set(trial.tops)) > 2


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_random_and_shuffled_classifiers_are_not(name: str) -> None:
    torch.manual_seed(0)
    for wrong in (timm.create_model(name.partition(".")[0]), shuffled(good(name))):
        trial = tried(wrong, photographic=True)
        assert trial.plausible is False
        assert trial.figures["told"] < LEAST_TOLD / 2
        assert trial.figures["agreement"] < (1 + LEAST_AGREEMENT) / 2
        assert "as a model without training does" in trial.words
        assert tried(wrong).plausible is None  # of ten classes that may be anything


@pytest.mark.parametrize("name", MERGING)
def test_the_other_order_of_merging_is_noticed(name: str) -> None:
    with torch.no_grad():
        other = other_order(good(name))
    trial = tried(other, photographic=True)
    assert trial.plausible is False
    assert "if patches are merged in the other order" in trial.words


@pytest.mark.slow
@pytest.mark.parametrize(("name", "found", "of"), [(CLASSIFIERS[0], 7, 8), (CLASSIFIERS[2], 3, 3)])
def test_two_blocks_in_each_others_place_are_mostly_noticed(name: str, found: int, of: int) -> None:
    """HiViT's first two can stand in either order."""
    model, wrong = copy.deepcopy(good(name)), []
    pairs = pairs_of_blocks(model)
    for one, other in pairs:
        with exchanged(one[1], other[1]):
            trial = tried(model, photographic=True)
            if trial.plausible is False:
                wrong.append(trial.words)
                assert "are exchanged" in trial.words or "as a model without training does" in trial.words
    assert (len(wrong), len(pairs)) == (found, of)
    own = good(name).state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in model.state_dict().items()), "nothing was moved"


@contextmanager
def exchanged(one: nn.Module, other: nn.Module) -> Iterator[None]:
    first, second = ({k: v.clone() for k, v in block.state_dict().items()} for block in (one, other))
    one.load_state_dict(second)
    other.load_state_dict(first)
    yield
    one.load_state_dict(first)
    other.load_state_dict(second)


def test_only_so_many_pairs_are_tried_as_take_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours first; the blocks of a large model far from each other are not."""
    model = good(CLASSIFIERS[0])
    moved: list[nn.Module] = []
    monkeypatch.setattr(plausible, "_exchange", lambda one, other: moved.append(one))
    size = sum(parameter.numel() for parameter in model.parameters())
    for allowed in (0, 2, 100):
        moved.clear()
        monkeypatch.setattr(plausible, "WORK", allowed * size)
        assert tried(model, photographic=True).plausible is True
        assert len(moved) == 2 * min(allowed, 8), "each is put back"
    names = [(one[0], other[0]) for one, other in pairs_of_blocks(model)]
    steps = [int(second.rpartition(".")[2]) - int(first.rpartition(".")[2]) for first, second in names]
    assert steps == sorted(steps)


def test_a_model_that_gives_one_answer_to_all_is_implausible_where_it_should_know_better() -> None:
    model = timm.create_model("hivit_atto", num_classes=IMAGENET_CLASSES)
    with torch.no_grad():
        model.head.bias[3] = 50
    trial = tried(model)
    assert trial.plausible is False
    assert set(trial.tops) == {"tiger shark"}
    assert trial.figures["confidence"] > 0.99
    with torch.no_grad():
        model.head.bias[3] = torch.nan
    assert tried(model).words == "its answers are not finite"


def test_figures_of_answers() -> None:
    """Certain and different answers tell everything; equal ones nothing, certain or not."""
    certain = torch.eye(4).expand(2, 4, 4)
    assert answers(certain)["told"] == pytest.approx(1)
    assert answers(certain)["agreement"] > 1000
    for equal in (torch.full((2, 4, 4), 0.25), torch.eye(4)[:1].expand(2, 4, 4)):
        assert answers(equal)["told"] == pytest.approx(0, abs=1e-6)
        assert answers(equal)["agreement"] == pytest.approx(1)
    moved = torch.stack([torch.eye(4), torch.eye(4).roll(1, 0)])  # another class when the image is shifted
    assert answers(moved)["agreement"] < 1


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_alone_cannot_be_told_from_a_shuffled_one_and_that_is_said(name: str) -> None:
    for model in (good(name), shuffled(good(name))):
        trial = tried(model)
        assert trial.plausible is None
        assert "cannot be tried further" in trial.words


def test_an_encoder_without_a_sign_of_life_is_implausible() -> None:
    model = copy.deepcopy(good(ENCODERS[0]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert "the same for all photographs" in tried(model).words
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert tried(model).plausible is False


@pytest.mark.parametrize("arch", AUTOENCODERS)
def test_an_autoencoder_without_training_is_implausible(arch: str) -> None:
    torch.manual_seed(0)
    trial = tried(create_mae(arch))
    assert trial.plausible is False
    assert trial.figures["loss"] > BAD_LOSS
    assert "of that of predicting the mean of each patch" in trial.words


@pytest.mark.slow
def test_an_autoencoder_that_learnt_a_little_is_not_implausible_until_it_is_shuffled() -> None:
    torch.manual_seed(0)
    mae = create_mae("green_swin_atto.mae_cifar10", pretrained=True)
    images = shown(mosaics(10, 128), mae)
    optimizer = torch.optim.AdamW(mae.parameters(), 2e-3)
    mae.train()
    for _ in range(20):
        optimizer.zero_grad()
        mae(images).loss.backward()
        optimizer.step()
    trial = tried(mae)
    assert trial.plausible is not False
    assert trial.figures["loss"] < 1 < trial.figures["loss_of_shuffled_tensors"]
    assert mae.training
    assert tried(shuffled(mae)).plausible is False


@pytest.mark.parametrize(
    ("own", "mixed", "verdict"),
    [
        (0.6, 1.2, True),
        (0.6, 0.6, None),
        (0.99, 1.2, None),
        (1.2, 1.8, None),
        (1.2, 1.2, False),
        (float("nan"), 1, False),
    ],
)
def test_both_limits_of_an_autoencoder_count(
    own: float, mixed: float, verdict: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter((own, mixed))
    monkeypatch.setattr(plausible, "relative_loss", lambda *_: next(losses))
    assert tried(create_mae("hivit_atto")).plausible is verdict


def test_photographs_side_by_side() -> None:
    images = mosaics(2, 130)
    assert images.shape == (2, 64, 64, 3)
    eight = photographs(8)
    assert torch.equal(images[1, :32, 32:], eight[5])
    assert torch.equal(images[1, 32:, :32], eight[6])
    assert torch.equal(mosaics(3, 64), photographs(3))
