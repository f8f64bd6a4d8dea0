"""The whole course of a run at published settings, compared with closed forms that a test states as data.

Nothing is trained: models have shapes alone, and what would happen in a step is asked of the code that a run asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from hiermim_zoo.commands.loading import without_weights
from hiermim_zoo.commands.options.evaluate import EvaluateOptions
from hiermim_zoo.commands.options.pretrain import PretrainOptions
from hiermim_zoo.commands.tuning_recipe import chosen_settings
from hiermim_zoo.data.batches import Batching
from hiermim_zoo.models.family import family_of
from hiermim_zoo.models.shapes import without_memory
from hiermim_zoo.training.autoencoder import build_autoencoder, undecayed
from hiermim_zoo.training.defaults import family_values, followed
from hiermim_zoo.training.optimizer import make_optimizer
from hiermim_zoo.training.schedule import pretraining_schedule, set_lr, tuning_schedule

IMAGENET = 1_281_167  # training images
MOMENTS = (
    0.0,
    0.3,
    1.0,
    4.5,
    19.9,
    20.0,
    40.0,
    47.3,
    60.0,
    99.0,
)  # epochs at which rates are compared, and the last step


@dataclass(frozen=True)
class Pretraining:
    """What the authors' pre-training does.

    Args:
        arch: architecture.
        rate: learning rate of a moment, counted in epochs from the start of the run.
        decays: whether a trained tensor has weight decay, by its name and its number of axes.
        visible: units that stay visible, and all of them.
        masks: who shares one.
        images: of the data (or videos).
        frozen: tensors that are not trained.
    """

    arch: str
    epochs: float
    batch: int
    rate: Callable[[float], float]
    decays: Callable[[str, int], bool]
    visible: tuple[int, int]
    masks: str = "sample"
    images: int = IMAGENET
    frozen: tuple[str, ...] = ("decoder.pos_embed",)
    weight_decay: float = 0.05


@dataclass(frozen=True)
class FineTuning:
    """What the authors' fine-tuning does.

    Args:
        rate: learning rate of a moment and of a layer with this scale.
        layer: number of a tensor's layer, by its name.
        layers: the number of the last one, that of the classifier.
        layer_decay: factor from one layer to the one below.
    """

    arch: str
    epochs: int
    batch: int
    rate: Callable[[float, float], float]
    decays: Callable[[str, int], bool]
    layer: Callable[[str], int]
    layers: int
    layer_decay: float
    clip: float | None = None
    images: int = IMAGENET
    weight_decay: float = 0.05
    options: dict[str, Any] = field(default_factory=dict)  # of evaluate, beside the model


def check_pretraining(case: Pretraining) -> None:
    """Compare a run of ``pretrain`` without options with the authors'."""
    said = PretrainOptions(data="images", model=case.arch, output=Path("run"))
    options, row = said.filled(family_values(case.arch)), followed(case.arch, None).pretraining
    batching = Batching(case.images, options.batch_size, 1, 0, 1, 0, options.repeat or 1)
    schedule = pretraining_schedule(options, row, batching)
    assert (options.epochs, options.batch_size) == (case.epochs, case.batch)
    assert schedule.total * batching.batch == seen(case)
    for step in steps(schedule.total, batching.per_epoch):
        assert schedule.at(step) == pytest.approx(case.rate(step / batching.per_epoch), rel=1e-9, abs=1e-12), step
    with without_memory():
        mae = build_autoencoder(options)
    assert ((mae.kept, mae.units), mae.recipe.masks) == (case.visible, case.masks)
    groups = groups_of(
        mae, make_optimizer(mae, options.opt, options.weight_decay, options.betas, no_decay=undecayed(mae, row))
    )
    assert set(case.frozen) == {name for name, p in mae.named_parameters() if not p.requires_grad}
    for name, (parameter, group) in groups.items():
        assert group["weight_decay"] == case.weight_decay * case.decays(name, parameter.ndim), name


def check_finetuning(case: FineTuning) -> None:
    """Compare a run of ``evaluate --method finetune`` with the authors'."""
    recipe, _ = chosen_settings(
        EvaluateOptions(data="images", model=case.arch, method="finetune", **case.options), case.arch
    )
    batching = Batching(case.images, recipe.batch, 1, 0, 1, 0, recipe.repeat)
    schedule = tuning_schedule(recipe, batching)
    assert (recipe.epochs, recipe.batch, recipe.clip) == (case.epochs, case.batch, case.clip)
    assert schedule.total * batching.batch == seen(case)
    model = without_weights(case.arch, dict(family_of(case.arch).fine_tuning_args))
    optimizer = make_optimizer(
        model, "adamw", recipe.weight_decay, recipe.betas, recipe.layer_decay, model.no_weight_decay()
    )
    groups = groups_of(model, optimizer)
    assert groups.keys() == {name for name, _ in model.named_parameters()}
    for step in steps(schedule.total, batching.per_epoch):
        set_lr(optimizer, schedule, step)
        for name, (parameter, group) in groups.items():
            scale = case.layer_decay ** (case.layers - case.layer(name))
            expected = case.rate(step / batching.per_epoch, scale)
            assert group["lr"] == pytest.approx(expected, rel=1e-9, abs=1e-13), (step, name)
            assert group["weight_decay"] == case.weight_decay * case.decays(name, parameter.ndim), name


def seen(case: Pretraining | FineTuning) -> float:
    """Samples of a run, whose epochs leave out what does not fill a batch."""
    return case.epochs * (case.images // case.batch) * case.batch


def steps(total: int, per_epoch: float) -> list[int]:
    """Steps of a run, counted from 0: at the moments and, last of all, the last one."""
    return [step for moment in MOMENTS if (step := round(moment * per_epoch)) < total] + [total - 1]


def groups_of(model: nn.Module, optimizer: Any) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Every trained tensor and the group of the optimiser that it is in, by its name."""
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: (p, of[id(p)]) for name, p in model.named_parameters() if p.requires_grad}
