"""Labelled pictures or clips, to train a classifier on or to measure one with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .clips import open_source
from .data import Digits, class_names, is_stream, labels_of, read, things
from .moving import MOVING

SPLITS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")  # what folders of splits are called


class Labelled(NamedTuple):
    """Pictures of a split, and what their classes are called."""

    spec: str
    split: str
    source: Any
    names: list[str] | None  # of the classes, in the order of the labels, where the data tell


def open_labelled(spec: str, split: str, input_size: tuple[int, ...], **how: Any) -> Labelled:
    """Labelled pictures or clips of one split; see :func:`hiermim_zoo.clips.open_source` for the arguments.

    Raises:
        ValueError: they are missing, or have no labels.
    """
    source = open_source(spec, input_size, split=split, **how)
    names = class_names(source)
    inside = [name for name in SPLITS if (Path(spec) / name).is_dir()]
    if inside and str(getattr(getattr(source, "reader", None), "root", "")) == spec:
        raise ValueError(f"{spec} has no split {split!r}, but {', '.join(inside)}; choose with --split and --train-split")
    if names is not None and len(names) < 2:
        raise ValueError(f"{spec} has no labels: its {things(source)} must lie in folders named after their classes, two or more")
    if not is_stream(source) and labels_of(source) is None and first_label(source) < 0:
        raise ValueError(f"{spec} has no labels in its split {split!r}; choose another with --split and --train-split")
    return Labelled(spec, split, source, names)


def check_apart(train: Labelled, test: Labelled) -> None:
    """Refuse to measure on the pictures that were trained on, or on pictures of other classes.

    Raises:
        ValueError: naming them.
    """
    if place(train) == place(test):
        raise ValueError(f"--train DATA is needed: {test.spec} has no two splits {train.split!r} and {test.split!r}")
    if train.names and test.names and train.names != test.names:
        odd = sorted(set(train.names) ^ set(test.names))[:3]
        raise ValueError(f"the classes of {train.spec} and {test.spec} differ: {', '.join(odd)} is in one of them only")


def place(data: Labelled) -> tuple[str, str]:
    """What tells pictures to train on from those to measure on."""
    if data.spec.startswith(MOVING):
        data = data._replace(spec=data.spec.removeprefix(MOVING), source=data.source.reader.pictures)
    if isinstance(data.source, Digits):
        return data.spec, "train" if data.split == "train" else "the rest"
    if Path(data.spec).exists():
        return os.path.realpath(data.source.reader.root), ""
    return data.spec, data.split


def first_label(source: Any) -> int:
    """The label of the first picture (test sets of competitions have -1 for all), or 0 if it cannot be read."""
    try:
        return read(source, 0)[1]
    except Exception:  # decoders of damaged files raise whatever comes up; whoever needs the picture will name it
        return 0


def check_labels(data: Labelled, labels: Tensor) -> Tensor:
    """Labels as read.

    Raises:
        ValueError: they tell nothing apart.
    """
    if not len(labels) or int(labels.min()) < 0 or len(labels.unique()) < 2:
        raise ValueError(f"{data.spec} has no labels, or all of its pictures have the same")
    return labels


def classes_by_label(data: Labelled) -> int | None:
    """The number of classes of data that name none, from their labels if those can be had."""
    labels = None if is_stream(data.source) else labels_of(data.source) or getattr(data.source, "targets", None)
    return int(max(labels)) + 1 if labels is not None and len(labels) else None
