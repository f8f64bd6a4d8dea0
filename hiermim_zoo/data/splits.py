"""Labelled images or clips, to train a classifier on or to measure one with."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .kinds import open_source
from .source import Source


class Labelled(NamedTuple):
    """The images or clips of a split."""

    spec: str
    split: str
    source: Source

    @property
    def names(self) -> list[str] | None:
        """Of the classes, in the order of the labels, where the data tell."""
        return self.source.class_names


def open_labelled(spec: str, split: str, input_size: tuple[int, ...], **how: Any) -> Labelled:
    """Labelled images or clips of one split; see :func:`hiermim_zoo.data.kinds.open_source` for the arguments.

    Raises:
        ValueError: they are missing, or have no labels.
    """
    source = open_source(spec, input_size, split=split, **how)
    names = source.class_names
    if source.other_splits:
        found = ", ".join(source.other_splits)
        raise ValueError(f"{spec} has no split {split!r}, but {found}; choose with --split and --train-split")
    if names is not None and len(names) < 2:
        raise ValueError(
            f"{spec} has no labels: its {source.noun} must lie in folders named after their classes, two or more"
        )
    if not source.streamed and source.labels is None and first_label(source) < 0:
        raise ValueError(f"{spec} has no labels in its split {split!r}; choose another with --split and --train-split")
    return Labelled(spec, split, source)


def check_apart(train: Labelled, test: Labelled) -> None:
    """Refuse to measure on the images that were trained on, or on images of other classes.

    Raises:
        ValueError: naming them.
    """
    if train.source.identity == test.source.identity:
        raise ValueError(f"--train DATA is needed: {test.spec} has no two splits {train.split!r} and {test.split!r}")
    if train.names and test.names and train.names != test.names:
        odd = sorted(set(train.names) ^ set(test.names))[:3]
        raise ValueError(f"the classes of {train.spec} and {test.spec} differ: {', '.join(odd)} is in one of them only")


def first_label(source: Source) -> int:
    """The label of the first image (test sets of competitions have -1 for all), or 0 if it cannot be read."""
    try:
        return source.read(0)[1]
    except Exception:  # decoders of damaged files raise whatever comes up; whoever needs the image will name it
        return 0


def check_labels(data: Labelled, labels: Tensor) -> Tensor:
    """Labels as read.

    Raises:
        ValueError: they tell nothing apart.
    """
    if not len(labels) or int(labels.min()) < 0 or len(labels.unique()) < 2:
        raise ValueError(f"{data.spec} has no labels, or all of its images have the same")
    return labels


def classes_by_label(data: Labelled) -> int | None:
    """The number of classes of data that name none, from their labels if those are known."""
    return max(data.source.labels) + 1 if data.source.labels else None
