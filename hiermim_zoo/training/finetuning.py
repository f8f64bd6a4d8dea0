"""A pre-trained encoder becomes a classifier: the recipe of its paper, timm's pieces, one loop.

Recipes are in :mod:`hiermim_zoo.training.optimizer`.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.layers import trunc_normal_
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..commands.options.problems import warmup_line
from ..data.batches import Batching, batches
from ..data.seeds import seed_of
from ..data.transforms import make_transform
from ..models.build import make_model
from ..models.family import families, family_of
from ..models.recipes import FineTuning
from .distributed import OnItsWay, World, steps_behind, summed, unsynchronised
from .graphs import begin_pass, hold_gradients, how
from .optimizer import gradient_norm, make_optimizer
from .precision import autocast, train_in
from .run_log import Forecast, Meter, RunLog, peak_memory, unreadable_file
from .schedule import set_lr, tuning_schedule
from .tasks import Goal, Wanted, objective, tell_values


@dataclass(frozen=True)
class TuningSettings:
    """What the recipes of the papers leave open, or have in common."""

    opt: str = "adamw"
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    hflip: float = 0.5  # probability; not where left and right are classes
    color_jitter: float = 0.0
    mix_prob: float = 1.0  # share of the batches with mixup or cutmix
    ema: float | None = None  # decay of the average of the weights
    amp: str = "none"
    compile: str | None = None  # mode of torch.compile
    grad_checkpointing: bool = False
    accumulate: int = 1
    workers: int = 0
    max_bad: float = 0.0
    seed: int = 0
    sampling: str = "all"  # each image once an epoch; "balanced": each class as often


def recipe_for(arch: str) -> FineTuning:
    """The recipe of an architecture, else of its family.

    Raises:
        ValueError: neither has one.
    """
    found = family_of(arch).fine_tuning(arch)
    if found is None:
        known = ", ".join(family.name for family in families() if family.fine_tuning)
        raise ValueError(f"there is no recipe to fine-tune {arch}; there are recipes for the families {known}")
    return found


def check_warmup(recipe: FineTuning, given: Collection[str] = ("epochs", "warmup")) -> None:
    """Refuse a warm-up that is all of the run.

    Args:
        given: what options say of it.

    Raises:
        ValueError: naming one that is not.
    """
    if line := warmup_line(recipe.epochs, recipe.warmup, given, whole=True):
        raise ValueError(line)


def new_classifier(
    name: str, arch: str, outputs: int, recipe: FineTuning, *, pretrained: bool, seed: int, **model_kwargs: Any
) -> nn.Module:
    """The encoder under a classifier of small random weights.

    Args:
        outputs: of the classifier: classes, tags or values.
        model_kwargs: of the encoder, in place of those that its family is fine-tuned with.

    Raises:
        ValueError: there is no such model.
    """
    torch.manual_seed(seed)
    kwargs = {**family_of(arch).fine_tuning_args, **model_kwargs}
    kwargs |= {"drop_path_rate": recipe.drop_path, **({"drop_rate": recipe.dropout} if recipe.dropout else {})}
    model: Any = make_model(name, pretrained=pretrained, num_classes=outputs, **kwargs)
    head = model.get_classifier()
    trunc_normal_(head.weight, std=recipe.head_std)
    nn.init.zeros_(head.bias)
    return model


def augmentation(config: Mapping[str, Any], recipe: FineTuning, settings: TuningSettings) -> Any:
    """timm's training transform; erasing, which wants normalised batches, is not in it.

    Raises:
        ValueError: timm knows no such augmentation, or would leave one out.
    """
    if settings.color_jitter and recipe.auto_augment:
        raise ValueError(
            f"--color-jitter {settings.color_jitter} has no effect beside --auto-augment {recipe.auto_augment}; "
            "choose one"
        )
    try:
        transform = make_transform(
            config["input_size"],
            is_training=True,
            scale=settings.crop_scale,
            hflip=settings.hflip,
            color_jitter=settings.color_jitter or None,
            auto_augment=recipe.auto_augment or None,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            use_prefetcher=True,
        )
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"timm knows no augmentation {recipe.auto_augment!r} {error}") from error
    for op in (op for step in transform.transforms for op in getattr(step, "ops", [])):
        if getattr(op, "name", "").startswith("Posterize"):
            op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm asks for 0 bits at the highest magnitude, which Pillow 13 refuses (older versions gave black)."""
    return ImageOps.posterize(image, max(1, bits)) if bits < 8 else image


def balance_of(source: Any, goal: Goal) -> Any:
    """The classes of all images, to see each as often.

    Raises:
        ValueError: images have no classes, or nobody knows them before the images are read.
    """
    if goal.kind != "classes":
        raise ValueError(f"--sampling balanced is for classes, not for {goal.kind}")
    if source.streamed or source.labels is None:
        raise ValueError("--sampling balanced needs data that tell all classes before they are read")
    return source.labels


class FineTune:
    """A fine-tuning run; everything that can be refused is refused when it is made.

    Args:
        model: from :func:`new_classifier`, on the device, set to its input size.
        source: labelled images.
        goal: what is to be told of them.
        config: of timm's preprocessing.
        output: folder in which what cannot be read is listed; None: nowhere.

    Raises:
        ValueError: recipe, data and processes do not go together.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Any,
        goal: Goal,
        config: Mapping[str, Any],
        recipe: FineTuning,
        settings: TuningSettings,
        world: World,
        output: Path | None = None,
    ) -> None:
        check_warmup(recipe)
        self.model, self.recipe, self.settings, self.world = model, recipe, settings, world
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        self.batching = Batching(
            len(source),
            recipe.batch,
            settings.accumulate,
            world.rank,
            world.size,
            settings.seed,
            source.repeat,
            balance_of(source, goal) if settings.sampling == "balanced" else None,
        )
        self.goal, self.wanted = goal, Wanted(goal, world.device)
        self.mix, loss = objective(recipe, settings.mix_prob, goal, self.batching.micro)
        self.loss = loss.to(world.device)
        no_decay: Any = getattr(model, "no_weight_decay", set)
        self.optimizer = make_optimizer(
            model, settings.opt, recipe.weight_decay, recipe.betas, recipe.layer_decay, no_decay()
        )
        self.ema = ModelEmaV3(model, settings.ema, use_warmup=True) if settings.ema else None
        self.told = False  # whether the model tells values as they are
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=settings.amp == "fp16")
        self.holds_gradients = hold_gradients(model.parameters(), settings.compile, settings.accumulate)
        self.schedule = tuning_schedule(recipe, self.batching)
        self.total = self.schedule.total
        self.losses: list[float] = []  # of each epoch
        self.done = 0  # the last step that was taken
        self.meter = Meter(0, self.batching.batch)
        self.batches = batches(
            source,
            augmentation(config, recipe, settings),
            self.batching,
            range(self.total),
            mean=config["mean"],
            std=config["std"],
            input_size=config["input_size"],
            device=world.device,
            workers=settings.workers,
            max_bad=settings.max_bad,
            erase=recipe.erase,
            classes=goal.outputs if goal.truth is None else None,
            unreadable=output and unreadable_file(output, world.rank),
        )
        ids = [world.device.index] if world.device.type == "cuda" else None
        self.parallel = DistributedDataParallel(model, ids) if world.size > 1 else model
        self.net: Any = torch.compile(self.parallel, **how(settings.compile)) if settings.compile else self.parallel

    @property
    def result(self) -> nn.Module:
        """The model to use: the average of the weights, if there is one."""
        return self.ema.module if self.ema else self.model

    @property
    def scale(self) -> tuple[Tensor, Tensor] | None:
        """Of the values that the model tells; None: it tells them as they are."""
        return None if self.told else self.goal.scale

    def settle(self) -> None:
        """Values that the result told as deviations from their mean it tells as they are. For the end of a run."""
        if self.scale:
            tell_values(self.result, self.scale)
        self.told = True

    def train(self, log: RunLog | None = None, report: Callable[[int], dict[str, Any]] = lambda epoch: {}) -> None:
        """Run through all epochs; the first process shows a bar and writes a line of the log after each.

        Args:
            log: that is closed in the end; None: there is a bar alone.
            report: what else to log after an epoch (counted from 0); called in all processes.

        Raises:
            ValueError: the loss is not finite, or an image has no label.
        """
        seed = seed_of(self.settings.seed, self.world.rank)  # mixing, erasing and dropping differ between processes
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.computed = train_in(self.world.device, self.settings.amp)
        self.forecast = Forecast(0, self.total)
        self.meter = Meter(0, self.batching.batch)
        log = log or RunLog(None, 0, self.total, self.world.first)
        try:
            for epoch in range(self.recipe.epochs):
                steps = range(*map(self.batching.steps_of, (epoch, epoch + 1)))
                if not steps:  # several clips of a video make short epochs
                    continue
                at = {"epoch": steps.stop / self.batching.per_epoch, "samples": steps.stop * self.batching.batch}
                line = self._epoch(steps, log)
                self.losses.append(line["loss"])
                log.note(steps.stop, **at, **line)
                with self.meter.stopped():
                    if more := report(epoch):
                        log.note(steps.stop, **at, **more)
        finally:
            log.close()

    def _epoch(self, steps: range, log: RunLog) -> dict[str, float]:
        """What a line of the log has of an epoch."""
        self.model.train()
        coming: deque[tuple[int, OnItsWay]] = deque()  # losses and norms
        behind, norm = steps_behind(self.world.device), 0.0
        for step in steps:
            coming.append((step, self._step(step)))
            if len(coming) > behind:
                norm = self._read(*coming.popleft())
            self.done = step + 1
            speed, latest = self.meter.lap(), self.meter.losses[-1:]
            log.progress(loss=f"{latest[0]:.4f}" if latest else None, images_s=f"{speed:.0f}")
            log.say(self.forecast.after(step + 1))
        for late in coming:
            norm = self._read(*late)
        total = summed(torch.tensor([sum(self.meter.losses)], device=self.world.device)).item()
        reading = self.meter.read(steps.stop)
        return {
            "loss": total / (len(steps) * self.world.size),
            "lr": self.schedule.at(steps[-1]),
            "norm": norm,
            "images_s": reading.images_s,
            "waiting": reading.waiting,
            "gib": peak_memory(self.world.device),
        }

    def _step(self, step: int) -> OnItsWay:
        """One step of the optimiser; the mean loss of its batches in this process, and the norm of the gradient."""
        set_lr(self.optimizer, self.schedule, step)
        losses = [self._backward(more=part > 0) for part in reversed(range(self.settings.accumulate))]
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=not self.holds_gradients)
        if self.ema:
            self.ema.update(self.model, step=step + 1)
        return OnItsWay(torch.stack([torch.stack(losses).sum(), norm.float()]))

    def _read(self, step: int, numbers: OnItsWay) -> float:
        """Note the loss of a step; the norm of its gradient.

        Raises:
            ValueError: the loss is not finite.
        """
        total, norm = numbers.read()
        if not math.isfinite(total):
            raise ValueError(f"the loss of step {step} is {total}; a lower --lr, --clip 1 or --amp none may help")
        self.meter.losses.append(total)
        return norm

    def _backward(self, more: bool) -> Tensor:
        """Gradients of one batch; ``more`` are to come in this step."""
        images, columns, _ = self.meter.next_of(self.batches)
        images, target = self.mix(images, self.wanted(columns))
        begin_pass(self.settings.compile)
        with unsynchronised(self.parallel, more):
            with autocast(images.device, self.settings.amp):
                logits = self.net(images)
            loss = self.loss(logits.float(), target) / self.settings.accumulate
            self.scaler.scale(loss).backward()
        return loss.detach()
