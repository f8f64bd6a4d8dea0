"""What the methods of ``evaluate`` share: the data, a model at its input size, how images are read, what is said."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.labels import Ask
from ..data.splits import Labelled, check_apart, check_groups, check_told_apart, cut, open_labelled
from ..data.tables import SAME_SPLIT
from ..data.targets import Targets
from ..data.transforms import data_config
from ..data.weights import weights_for
from ..text import counted
from ..training.distributed import World
from ..training.image_form import form_for, told_by
from ..training.linear import needed
from ..training.precision import chosen_amp
from ..training.probe import Inference, Shown
from ..training.scores import scored
from ..training.tasks import TASKS
from .loading import model_errors, set_img_size
from .options.evaluate import DEFAULT_SPLIT, TRAINED, EvaluateOptions
from .predictions import draw_confusion, write_predictions

OWN_ARGS = ("drop_path_rate", "drop_rate", "img_size", "num_classes")  # of models, with an option of their own
MEASURED = 0.2  # share of the images of one split, where no option says it


@dataclass(frozen=True)
class Measured:
    """What was said of images, and what is true.

    Args:
        test: the images.
        outputs: float32 [N, T], logits of classes or tags, or values.
        truth: int64 [N] of classes, or float32 [N, T].
        positions: int64 [N], of those that could be read.
        warnings: what should be known beside it.
        trained: images that were trained on, if that is known.
    """

    test: Labelled
    outputs: Tensor
    truth: Tensor
    positions: Tensor
    warnings: tuple[str, ...] = ()
    trained: int | None = None

    @property
    def names(self) -> list[str]:
        """Of the outputs; where the data name no classes, their numbers."""
        return self.test.names or [str(n) for n in range(self.outputs.shape[1])]

    @cached_property
    def scores(self) -> dict[str, Any]:
        """All scores of the kind with their intervals; of classes the older keys ``top1`` and ``interval``, too."""
        groups = self.test.groups_at(self.positions.tolist())
        found = scored(self.test.kind, self.outputs, self.truth, self.names, groups)
        return found | ({"interval": found["top1_interval"]} if "top1" in found else {})

    def write(self, options: EvaluateOptions) -> None:
        """The files that were asked for."""
        if options.predictions:
            files = [self.test.source.name_of(position) for position in self.positions.tolist()]
            targets = Targets(self.test.kind, self.names)
            write_predictions(options.predictions, files, targets, self.outputs, self.truth)
        if options.confusion:
            draw_confusion(options.confusion, self.names, self.outputs, self.truth)


def measured(test: Labelled, shown: Shown) -> Measured:
    """What was shown, with what is true of it.

    Args:
        shown: rows are what can be averaged: shares of classes, probabilities of tags, or values.

    Raises:
        ValueError: nothing could be read, or all images have the same class.
    """
    if not len(shown.rows):
        raise ValueError(f"none of the images of {test.spec} could be read")
    truth = test.truth_at(shown.positions, shown.labels)
    return Measured(test, TASKS[test.kind].said(shown.rows), truth, shown.positions)


class Headline(NamedTuple):
    """A score in words."""

    called: str
    score: str
    interval: str  # in brackets, with a blank before them; empty where there is none


def headline(found: Measured, name: str | None = None) -> Headline:
    """A score in words; default: the one that stands for all."""
    name = name or TASKS[found.test.kind].headline
    value, bounds = found.scores[name], found.scores[f"{name}_interval"]
    if value is None:
        return Headline(name, "not to be told", "")
    called, words, unit = ("top-1", "{:.2f}", " %") if name == "top1" else (name, "{:.4f}", "")
    interval = f" (95 % interval {words} to {words})".format(*bounds) if bounds else ""
    return Headline(called, words.format(value) + unit, interval)


# ---- the data


def asked(options: EvaluateOptions, names: Sequence[str] | None) -> Ask:
    """What is said of labels, by the options or by the folder of a model that is measured as it is.

    Args:
        names: of the classes that the model tells apart, if they are known.

    Raises:
        ValueError: both say different things.
    """
    told, kind = {}, options.task
    if options.method == "classify":
        told = told_by(options.model)
        kind = told.get("kind", "classes")
        if options.task not in ("auto", kind):
            raise ValueError(f"--task {options.task}, but the outputs of {options.model} are {kind}")
    return Ask(
        kind,
        options.target_columns or (),
        options.separator,
        options.group,
        options.labels,
        tuple(told.get("names", names or ())),
    )


def open_data(
    options: EvaluateOptions,
    input_size: tuple[int, ...],
    world: World,
    repeat: int | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Labelled, Labelled | None]:
    """The images (or videos) to measure on, and those to train on if the method needs any.

    Args:
        input_size: of the model: (channels, height, width), or (channels, frames, height, width).
        world: its first process says how labels were understood.
        repeat: clips of a video each time it is opened for training.
        names: of classes that a model tells apart; a table may have some of them only.

    Raises:
        ValueError: data are missing or without labels, or those of both differ in their kind or classes, or share
            groups.
    """
    how: dict[str, Any] = {
        "ask": asked(options, names),
        "form": form_for(options, input_size[0]),
        "root": options.data_dir,
        "seed": options.seed,
        "stride": options.frame_stride,
        "rate": options.frame_rate,
        "views": options.views,
    }
    if options.method not in TRAINED:
        test, train = open_labelled(options.data, options.split, input_size, training=False, **how), None
    else:
        own = how | {"training": options.method == "finetune", "repeat": repeat}
        train = open_labelled(options.train or options.data, options.train_split or "train", input_size, **own)
        test = open_labelled(options.data, options.split, input_size, training=False, like=train, **how)
        train, test = apart(options, train, test)
    if options.confusion and test.kind != "classes":
        raise ValueError(f"--confusion {options.confusion}: {test.kind} have no confusion matrix, classes have")
    if test.kind != "classes":
        needed(f"measuring {test.kind}")
    if world.first:
        say(options, test)
    return test, train


def apart(options: EvaluateOptions, train: Labelled, test: Labelled) -> tuple[Labelled, Labelled]:
    """Training images and those to measure on: two splits, or one that is cut in two.

    Raises:
        ValueError: they are not apart.
    """
    if train.source.identity == test.source.identity and (options.split_fraction or can_be_cut(options, train)):
        train, test = cut(train, options.split_fraction or MEASURED, options.seed)
        check_told_apart(test)
        return train, test
    if options.split_fraction:
        raise ValueError(
            f"--split-fraction {options.split_fraction:g} cuts data of one split, and {options.data} has two: "
            f"{train.split} and {test.split}"
        )
    check_apart(train, test)
    if not options.allow_shared_groups:
        check_groups(train, test)
    return train, test


def can_be_cut(options: EvaluateOptions, train: Labelled) -> bool:
    """Whether data of one split are cut in two though no option says so.

    Not where an option asks for other splits, nor where the data are called one: beside DATA/val there is DATA/train.
    """
    asked = options.train or options.train_split or options.split != DEFAULT_SPLIT
    named = Path(options.data).resolve().name.partition(".")[0] in set().union(*SAME_SPLIT)
    return not asked and not named and not train.source.streamed


def say(options: EvaluateOptions, test: Labelled) -> None:
    """How the labels of a table were understood, and which images are measured on, on stderr."""
    if test.measured and not options.split_fraction:
        print(
            f"{options.data} has one split: {test.measured:.0%} of its images are measured on, drawn by --seed, the "
            "others trained on; --split-fraction takes another share, --train other images",
            file=sys.stderr,
        )
    if test.told:
        rows, alone = counted(test.told.repeated, "rows"), test.told.repeated == 1
        more = f"; {rows} {'repeats another and counts' if alone else 'repeat others and count'} once"
        more *= test.told.repeated > 0
        words = test.told.meaning.in_words(len(test.names or ()))
        print(f"labels of {test.told.file}: {words}{more}", file=sys.stderr)


def understood(test: Labelled) -> dict[str, Any]:
    """How labels were understood, for JSON."""
    found: dict[str, Any] = {"kind": test.kind, "count": len(test.names) if test.names else None}
    if test.told:
        meaning = test.told.meaning
        found |= {"file": test.told.file, "columns": list(meaning.columns), "separator": meaning.separator or None}
        found |= {"repeated": test.told.repeated}
    return found


def weights_of(options: EvaluateOptions, train: Labelled, names: list[str], truth: Tensor) -> Tensor | None:
    """Weights of classes or tags [T]; None where all weigh as much.

    Args:
        truth: of the training images.

    Raises:
        ValueError: targets have none, or the table of weights does not name them.
    """
    if not options.class_weights:
        return None
    if not TASKS[train.kind].weighted:
        raise ValueError(f"--class-weights {options.class_weights} is for classes and tags, not for {train.kind}")
    return weights_for(options.class_weights, train.kind, names, truth)


# ---- the model


def own_model_kwargs(options: EvaluateOptions) -> dict[str, Any]:
    """Arguments of the model that have no option of their own.

    Raises:
        ValueError: one has.
    """
    return options.own_model_kwargs(*OWN_ARGS)


def place(model: Any, options: EvaluateOptions, world: World) -> dict[str, Any]:
    """Set a model to its input size and device, try it out, and give its preprocessing.

    Raises:
        ValueError: it does not take the size.
    """
    side = options.img_size
    config = data_config(model, (side, side) if side else None)
    with model_errors(options.model, f"--img-size {side}" if side else f"{config['input_size'][-1]} pixels"):
        set_img_size(model, side)
        model.to(world.device).eval()
        with torch.no_grad():
            model(torch.zeros(1, *config["input_size"], device=world.device))
    return config


def reading(options: EvaluateOptions, config: dict[str, Any], world: World, batch_size: int) -> Inference:
    """How images are read for a model.

    Args:
        config: its preprocessing.
    """
    amp = amp_of(options, world.device)
    return Inference(config, world.device, batch_size, options.workers, amp, options.max_bad, world.first)


def amp_of(options: EvaluateOptions, device: torch.device) -> str:
    """The precision to compute in, where the options leave it to the method."""
    return chosen_amp(options.amp or ("auto" if options.method == "finetune" else "none"), device)
