"""The recipe of a fine-tuning: that of the paper or of few images, with what options say instead."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..models.family import check_arch
from ..models.recipes import FineTuning
from ..training.finetuning import TuningSettings, check_warmup, recipe_for
from ..training.small import LIGHT_CROP, Size, small_tuning
from ..training.tasks import TASKS
from .loading import without_weights
from .options.evaluate import EvaluateOptions
from .options.problems import rate_of
from .options.shared import BY_PAPER

OPTIONS = {field.name for field in dataclasses.fields(EvaluateOptions)}
RECIPE_OPTIONS = {  # option -> the value of the recipe that it replaces
    **{field.name: field.name for field in dataclasses.fields(FineTuning) if field.name in OPTIONS},
    "batch_size": "batch",
}


def recipe_of_kind(options: EvaluateOptions, recipe: FineTuning, kind: str) -> FineTuning:
    """The recipe as it suits the targets: what blends images and labels is off where numbers are told.

    Raises:
        ValueError: an option asks for it all the same.
    """
    if TASKS[kind].blends:
        return recipe
    for name in ("mixup", "cutmix", "smoothing"):
        if value := getattr(options, name):
            raise ValueError(f"--{name} {value:g} is for classes and tags, not for {kind}")
    return dataclasses.replace(recipe, mixup=0.0, cutmix=0.0, smoothing=0.0)


def architecture_of(name: str, model: Any) -> str:
    """The architecture of a model, whatever the form of its name."""
    arch: str = model.pretrained_cfg["architecture"] if ":" in name else check_arch(name)
    return arch


def chosen_settings(options: EvaluateOptions, arch: str, size: Size | None = None) -> tuple[FineTuning, TuningSettings]:
    """The recipe of the architecture, and what it leaves open, with what the options say instead.

    Args:
        size: of few data, by which the small recipe goes; None: the recipe is the paper's.

    Raises:
        ValueError: the architecture has no recipe, or options do not go with it.
    """
    said = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    said = {name: value for name, value in said.items() if value is not None}
    if said.get("auto_augment") == "none":
        said["auto_augment"] = ""
    changes = {field: said[option] for option, field in RECIPE_OPTIONS.items() if option in said}
    row = recipe_for(arch)
    if size:
        row = small_tuning(row, size, options.batch_size, options.epochs, options.accumulate or 1)
    recipe = dataclasses.replace(row, **changes)
    check_warmup(recipe, changes)
    if recipe.schedule == "simmim":  # floor and start are those of the row's batch, and scale with it
        scale = recipe.batch / recipe_for(arch).batch
        floor = said.get("min_lr", recipe.min_lr * scale)
        recipe = dataclasses.replace(recipe, min_lr=floor, start_lr=recipe.start_lr * scale)
    if options.lr:
        recipe = dataclasses.replace(recipe, blr=options.lr * 256 / recipe.batch)
    rate_of(recipe.blr, recipe.batch)
    own = {field.name for field in dataclasses.fields(TuningSettings)}
    said = {"crop_scale": LIGHT_CROP, **said} if size else said
    return recipe, TuningSettings(**{name: value for name, value in said.items() if name in own})


def recipe_in_words(name: str) -> dict[str, str]:
    """What the family of a model says in place of the options, by option; nothing where it has no recipe.

    Raises:
        ValueError: there is no such model.
    """
    arch = architecture_of(name, without_weights(name, {}) if ":" in name else None)
    try:
        recipe = recipe_for(arch)
    except ValueError:
        return {}
    values = {option: getattr(recipe, field) for option, field in RECIPE_OPTIONS.items()}
    words = {option: value if isinstance(value, str) else f"{value or 0:g}" for option, value in values.items()}
    words |= {option: f"{words[option]}{BY_PAPER}" for option in ("epochs", "warmup", "blr")}
    return {
        **words,
        "clip": words["clip"] if recipe.clip else "any",
        "auto_augment": words["auto_augment"] or "none",
        "batch_size": f"64 images; of a step {recipe.batch}{BY_PAPER}",
    }
