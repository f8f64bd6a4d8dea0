"""Models measured after fine-tuning by the recipe of their family, and what is written of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.models._input import get_model_args

from ..checkpoints.configs import TRAINING_KEY
from ..checkpoints.folder import Contents, own_cfg, write_folder
from ..checkpoints.licenses import UNSTATED
from ..data.splits import Labelled, classes_by_label
from ..data.transforms import data_config
from ..text import counted
from ..training.distributed import World, gather_objects
from ..training.endings import about_training
from ..training.finetuning import FineTune, new_classifier, recipe_for
from ..training.image_form import form_for, said_of, to_remember
from ..training.probe import Inference, Shown, outputs
from ..training.run_log import RunLog, say
from ..training.run_record import RunRecord
from ..training.small import Size, chosen_in_words, recipe_of_size
from ..training.tasks import Goal, outputs_of
from ..version import __version__
from .evaluating_shared import (
    Measured,
    amp_of,
    headline,
    measured,
    open_data,
    own_model_kwargs,
    place,
    reading,
    weights_of,
)
from .explaining import Tuned
from .loading import without_weights
from .options.evaluate import EvaluateOptions
from .recording import record_of_tuning
from .tuning_recipe import architecture_of, chosen_settings, recipe_of_kind


def finetune(options: EvaluateOptions, world: World) -> tuple[Measured, dict[str, Any]]:
    """After fine-tuning; all of its processes share the work.

    Raises:
        ValueError: model, recipe and data do not go together.
    """
    sketch = without_weights(options.model, own_model_kwargs(options))
    arch = architecture_of(options.model, sketch)
    repeat = options.repeat or recipe_for(arch).repeat
    test, train = open_data(options, data_config(sketch)["input_size"], world, repeat)
    assert train is not None
    size = Size(len(train.source), repeat, world.size)
    followed = recipe_of_size(options.recipe or "auto", size.images, world.device.type)
    settled = options.having(amp=amp_of(options, world.device))
    recipe, tuning_settings = chosen_settings(settled, arch, size if followed == "small" else None)
    goal = goal_of(options, train)
    recipe = recipe_of_kind(options, recipe, train.kind)
    kwargs = own_model_kwargs(options)
    model = new_classifier(
        options.model, arch, goal.outputs, recipe, pretrained=options.pretrained, seed=options.seed, **kwargs
    )
    config = place(model, options, world)
    tuning = FineTune(model, train.source, goal, config, recipe, tuning_settings, world, options.output)
    how = reading(options, config, world, tuning.batching.micro)

    def report(epoch: int) -> dict[str, Any]:
        if not options.eval_every or (epoch + 1) % options.eval_every:
            return {}
        now = told(tuning, test, world, how)
        return {goal.task.headline: now.scores[goal.task.headline]} if world.first else {}

    if followed == "small":
        say(chosen_by_size(tuning, train, world), world.first)
    tuned = Tuned(recipe_for(arch), recipe, tuning_settings, followed, train.kind)
    with noted(options, tuning, tuned, train, world) as log:
        tuning.train(log, report)
        tuning.settle()
        found = told(tuning, test, world, how)
        about = about_training(tuning.total, tuning.total, 0, False, tuning.losses)
        images = None if train.source.streamed else len(train.source)
        found = dataclasses.replace(found, warnings=tuple(about), trained=images)
        settings = {"recipe": followed, **dataclasses.asdict(recipe), **dataclasses.asdict(tuning_settings)}
        settings |= {"steps": tuning.total, "samples": tuning.total * tuning.batching.batch}
        settings |= {"processes": world.size, "computed in": tuning.computed}
        settings |= {"class_weights": options.class_weights} if options.class_weights else {}
        if options.output and world.first:
            export(options, options.output, tuning, arch, config, train, settings, found)
    return found, settings


@contextmanager
def noted(options: EvaluateOptions, tuning: FineTune, tuned: Tuned, train: Labelled, world: World) -> Iterator[RunLog]:
    """Inside, the run runs: run.json in the output folder says so, and in the end how it ended.

    Returns:
        The log, which is on the disk if there is such a folder.
    """
    about = record_of_tuning(options, tuning, tuned, train, world) if options.output and world.first else {}
    record = RunRecord(options.output, world.first)
    record.begin(about, {"command": options.command("evaluate"), "total": tuning.total})
    with record.during(lambda: tuning.done, tuning.total):
        yield RunLog(options.output, 0, tuning.total, world.first, options.log or (), about)


def chosen_by_size(tuning: FineTune, train: Labelled, world: World) -> str:
    """What the small recipe chose, in a line."""
    images, recipe = counted(len(train.source), train.source.noun), tuning.recipe
    parts = recipe.batch, tuning.settings.accumulate, tuning.schedule, recipe.epochs
    return chosen_in_words(images, world.device.type, *parts)


def goal_of(options: EvaluateOptions, train: Labelled) -> Goal:
    """What is to be told of images.

    Raises:
        ValueError: nobody knows how many classes there are, or weights cannot be given.
    """
    if train.kind == "classes":
        count = classes_of(options, train)
        names = train.names or [str(n) for n in range(count)]
        known = train.truth if train.truth is not None else train.source.labels
        if options.class_weights and known is None:
            raise ValueError("--class-weights needs data that tell all classes before they are read")
        truth = torch.as_tensor(known if known is not None else (), dtype=torch.int64)
        return Goal("classes", count, None, weights_of(options, train, names, truth))
    assert train.truth is not None
    assert train.names is not None
    if options.num_classes:
        raise ValueError(f"--num-classes {options.num_classes}, but the labels of {train.spec} are {train.kind}")
    weights = weights_of(options, train, train.names, train.truth)
    return Goal(train.kind, len(train.names), train.truth, weights)


def classes_of(options: EvaluateOptions, train: Labelled) -> int:
    """The number of classes.

    Raises:
        ValueError: nobody knows it, or two disagree.
    """
    known = len(train.names) if train.names else classes_by_label(train)
    if known is not None and options.num_classes not in (None, known):
        raise ValueError(f"--num-classes {options.num_classes}, but {train.spec} has {known}")
    found = known or options.num_classes
    if found is None:
        raise ValueError(f"{train.spec} does not tell the number of its classes; give --num-classes N")
    return found


def told(tuning: FineTune, test: Labelled, world: World, how: Inference) -> Measured:
    """What the model says of images; the processes share the work (a stream is read by the first).

    Raises:
        ValueError: no image could be read.
    """
    model, stream = tuning.result.eval(), test.source.streamed
    shown = Shown(torch.empty(0, 0), *torch.empty(2, 0, dtype=torch.int64))
    if world.first or not stream:
        positions = None if stream else range(world.rank, len(test.source), world.size)
        shown = outputs(outputs_of(model, test.kind, tuning.scale), test.source, how, positions)
    parts = [part for part in gather_objects(shown) if len(part.rows)]
    if parts:
        together = Shown(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        order = together.positions.argsort()
        shown = Shown(*(column[order] for column in together))
    return measured(test, shown)


# ---- what is written


def export(
    options: EvaluateOptions,
    folder: Path,
    tuning: FineTune,
    arch: str,
    config: Mapping[str, Any],
    train: Labelled,
    settings: Mapping[str, Any],
    found: Measured,
) -> None:
    """The fine-tuned model in the form of the Hub, with the log of its training.

    Args:
        folder: to be written; holds the log.
        config: the preprocessing of the model.
        settings: of the fine-tuning.
        found: what was measured.
    """
    model: Any = tuning.result
    license = (model.pretrained_cfg.get("license") if options.pretrained else None) or UNSTATED
    described = {**config, "label_names": train.names}
    model.pretrained_cfg = own_cfg(arch, described, license, model.num_classes, config["input_size"])
    plain = get_model_args(without_weights(arch, {}))
    own_args = {
        key: value for key, value in get_model_args(model).items() if key != "num_classes" and plain.get(key) != value
    }
    called, score, interval = headline(found)
    peak = settings["blr"] * settings["batch"] / 256
    training = {"recipe": settings["recipe"], "steps": settings["steps"], "batch": settings["batch"], "lr": peak}
    before = said_of(options.model).get(TRAINING_KEY) if options.pretrained else None
    measured_on = counted(len(found.truth), found.test.source.noun)
    provenance = {
        "start": options.model if options.pretrained else f"{options.model}, random weights",
        "trained on": f"{train.spec} ({train.split}, {counted(len(train.source), train.source.noun)})",
        TRAINING_KEY: training,
        **({"training before": before} if before else {}),
        "epochs": settings["epochs"],
        "batch": settings["batch"],
        "seed": options.seed,
        called: f"{score} of {measured_on} of {options.data} ({part_measured(found)}){interval}",
        "command": options.command("evaluate"),
        "license": license,
        "hiermim_zoo": __version__,
    }
    made = "Fine-tuned by `python -m hiermim_zoo.evaluate`."
    images, labels = to_remember(form_for(options, config["input_size"][0])), labels_to_remember(train, tuning.goal)
    contents = Contents(arch, model, provenance, made, own_args, images=images, labels=labels)
    write_folder(contents, folder, force=True)


def part_measured(found: Measured) -> str:
    """Which part of the data was measured on, in words."""
    test = found.test
    return f"--split-fraction {test.measured:g} of {test.split}" if test.measured else test.split


def labels_to_remember(train: Labelled, goal: Goal) -> dict[str, Any]:
    """What the outputs are, for config.json; nothing where they are classes."""
    if train.kind == "classes":
        return {}
    found = {"kind": train.kind, "names": train.names}
    if goal.scale:
        mean, deviation = goal.scale
        found |= {"mean": mean.tolist(), "std": deviation.tolist()}
    return found
