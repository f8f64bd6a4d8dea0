"""A pre-trained encoder becomes a classifier: the recipe of its paper (:mod:`hiermim_zoo.optim`), timm's pieces, one loop."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from PIL import Image, ImageOps
from timm.data import Mixup
from timm.layers import trunc_normal_
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import is_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .cli import AMP, make_model
from .data import LABEL, Plan, batches, make_transform, repeat_of, seed_of
from .distributed import World, summed, unsynchronised
from .optim import FINE_TUNING, FineTuning, lr_at, make_optimizer, set_lr
from .registry import family_of, row_of

ARGUMENTS: dict[str, dict[str, Any]] = {  # of the models of a family, whatever those of its pre-training were
    "hivit": {"rel_pos_bias": True},
    "hiera": {"q_pool": 3},
    "vision_transformer": {"global_pool": "avg"},  # the class token is not used (arXiv 2111.06377, appendix A.1)
}


@dataclass(frozen=True)
class Run:
    """What the recipes of the papers leave open, or have in common."""

    opt: str = "adamw"
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the picture's area
    hflip: float = 0.5  # probability; not where left and right are classes
    color_jitter: float = 0.0
    mix_prob: float = 1.0  # share of the batches with mixup or cutmix
    clip: float | None = None  # norm of the gradient
    ema: float | None = None  # decay of the average of the weights
    amp: str = "none"
    compile: bool = False
    accumulate: int = 1
    workers: int = 0
    max_bad: float = 0.0
    seed: int = 0


def recipe_for(arch: str) -> FineTuning:
    """The recipe of an architecture, else of its family.

    Raises:
        ValueError: neither has one.
    """
    found = row_of(FINE_TUNING, arch)
    if found is None:
        families = ", ".join(name for name in FINE_TUNING if not is_model(name))
        raise ValueError(f"there is no recipe to fine-tune {arch}; there are recipes for the families {families}")
    return found


def new_classifier(
    name: str, arch: str, classes: int, recipe: FineTuning, *, pretrained: bool, seed: int, **model_kwargs: Any
) -> nn.Module:
    """The encoder under a classifier of small random weights.

    Args:
        model_kwargs: of the encoder, in place of those that its family is fine-tuned with.

    Raises:
        ValueError: there is no such model.
    """
    torch.manual_seed(seed)
    kwargs = {**ARGUMENTS.get(family_of(arch), {}), **model_kwargs}
    model: Any = make_model(name, pretrained=pretrained, num_classes=classes, drop_path_rate=recipe.drop_path, **kwargs)
    head = model.get_classifier()
    trunc_normal_(head.weight, std=recipe.head_std)
    nn.init.zeros_(head.bias)
    return model


def augmentation(config: Mapping[str, Any], recipe: FineTuning, run: Run) -> Any:
    """timm's training transform; erasing, which wants normalised batches, is not in it.

    Raises:
        ValueError: timm knows no such augmentation, or would leave one out.
    """
    if run.color_jitter and recipe.auto_augment:
        raise ValueError(
            f"--color-jitter {run.color_jitter} has no effect beside --auto-augment {recipe.auto_augment}; choose one"
        )
    try:
        transform = make_transform(
            config["input_size"],
            is_training=True,
            scale=run.crop_scale,
            hflip=run.hflip,
            color_jitter=run.color_jitter or None,
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


def _posterize(picture: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm asks for 0 bits at the highest magnitude, which Pillow 13 refuses (older versions gave black)."""
    return ImageOps.posterize(picture, max(1, bits)) if bits < 8 else picture


def objective(recipe: FineTuning, run: Run, classes: int, micro: int) -> tuple[Callable[[Tensor, Tensor], Any], nn.Module]:
    """What is done to images and labels before the model sees them, and the loss.

    Raises:
        ValueError: pictures are mixed in pairs, but their number is odd.
    """
    if not run.mix_prob or not (recipe.mixup or recipe.cutmix):
        return (lambda images, labels: (images, labels)), LabelSmoothingCrossEntropy(recipe.smoothing)
    if micro % 2:
        raise ValueError(
            f"mixup and cutmix pair the pictures of a batch, which {micro} in each process cannot be; --mix-prob 0 does not"
        )
    mix = Mixup(recipe.mixup, recipe.cutmix, prob=run.mix_prob, label_smoothing=recipe.smoothing, num_classes=classes)

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        flat, target = mix(images.flatten(1, -3), labels)  # to timm the frames of a clip are channels
        return flat.view(images.shape), target

    return mixed, SoftTargetCrossEntropy()


class FineTune:
    """A fine-tuning run; everything that can be refused is refused when it is made.

    Args:
        model: from :func:`new_classifier`, on the device, set to its input size.
        source: labelled pictures.
        classes: their number.
        config: of timm's preprocessing.

    Raises:
        ValueError: recipe, data and processes do not go together.
    """

    def __init__(
        self, model: nn.Module, source: Any, classes: int, config: Mapping[str, Any], recipe: FineTuning, run: Run, world: World
    ) -> None:
        if recipe.warmup >= recipe.epochs:
            raise ValueError(
                f"a warm-up of {recipe.warmup} epochs leaves none of {recipe.epochs}; give --warmup less than --epochs"
            )
        self.model, self.recipe, self.run, self.world = model, recipe, run, world
        self.plan = Plan(len(source), recipe.batch, run.accumulate, world.rank, world.size, run.seed, repeat_of(source))
        self.mix, self.loss = objective(recipe, run, classes, self.plan.micro)
        kept: Any = getattr(model, "no_weight_decay", set)
        self.optimizer = make_optimizer(model, run.opt, recipe.weight_decay, recipe.betas, recipe.layer_decay, kept())
        self.ema = ModelEmaV3(model, run.ema, use_warmup=True) if run.ema else None
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=run.amp == "fp16")
        self.total = recipe.epochs * self.plan.per_epoch
        self.batches = batches(
            source,
            augmentation(config, recipe, run),
            self.plan,
            range(self.total),
            mean=config["mean"],
            std=config["std"],
            input_size=config["input_size"],
            device=world.device,
            workers=run.workers,
            max_bad=run.max_bad,
            erase=recipe.erase,
            classes=classes,
        )
        ids = [world.device.index] if world.device.type == "cuda" else None
        self.parallel = DistributedDataParallel(model, ids) if world.size > 1 else model
        self.net: Any = self.parallel
        if run.compile:
            self.net = torch.compile(self.net)

    @property
    def result(self) -> nn.Module:
        """The model to use: the average of the weights, if there is one."""
        return self.ema.module if self.ema else self.model

    def train(self, log: Path | None = None, report: Callable[[int], dict[str, Any]] = lambda epoch: {}) -> None:
        """Run through all epochs; the first process shows a bar and writes a line of JSON to the log after each.

        Args:
            report: what else to log after an epoch (counted from 0); called in all processes.

        Raises:
            ValueError: the loss is not finite, or a picture has no label.
        """
        seed = seed_of(self.run.seed, self.world.rank)  # mixing, erasing and dropping differ between processes
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        with tqdm(total=self.total, unit="step", disable=None if self.world.first else True, leave=False) as bar:
            for epoch in range(self.recipe.epochs):
                line = {"epoch": epoch, **self._epoch(epoch, bar), **report(epoch)}
                if log and self.world.first:
                    log.parent.mkdir(parents=True, exist_ok=True)
                    with log.open("a" if epoch else "w", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")

    def _epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        start, steps = time.perf_counter(), self.plan.per_epoch
        self.model.train()
        total = 0.0
        for step in range(epoch * steps, (epoch + 1) * steps):
            total += self._step(step)
            bar.update()
        mean = summed(torch.tensor([total], device=self.world.device)).item() / (steps * self.world.size)
        seconds = time.perf_counter() - start
        speed = steps * self.plan.batch / seconds
        return {"loss": mean, "lr": self._lr((epoch + 1) * steps - 1), "images/s": round(speed, 1), "seconds": round(seconds, 3)}

    def _lr(self, step: int) -> float:
        recipe = self.recipe
        return lr_at(step, self.total, recipe.warmup * self.plan.per_epoch, recipe.blr * self.plan.batch / 256, recipe.min_lr)

    def _step(self, step: int) -> float:
        """One step of the optimiser; the mean loss of its batches in this process."""
        set_lr(self.optimizer, self._lr(step))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.stack([self._backward(more=part > 0) for part in reversed(range(self.run.accumulate))]).sum().item()
        if not math.isfinite(total):
            raise ValueError(f"the loss of step {step} is {total}; a lower --lr, --clip 1 or --amp none may help")
        if self.run.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.run.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model, step=step + 1)
        return total

    def _backward(self, more: bool) -> Tensor:
        """Gradients of one batch; ``more`` are to come in this step."""
        images, columns, _ = next(self.batches)
        images, target = self.mix(images, columns[:, LABEL])
        amp = torch.autocast(images.device.type, dtype=AMP[self.run.amp], enabled=self.run.amp != "none")
        with unsynchronised(self.parallel, more):
            with amp:
                logits = self.net(images)
            loss = self.loss(logits.float(), target) / self.run.accumulate
            self.scaler.scale(loss).backward()
        return loss.detach()
