"""Labelled images or clips, to train a classifier on or to measure one with."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..text import counted
from .kinds import open_source
from .labels import Ask, LabelRow, LabelTable, Meaning, matched, meaning_of, names_in, read_labels, truth_of
from .seeds import seed_of
from .source import Source, telling
from .tables import is_table, same_split
from .targets import Targets


class Told(NamedTuple):
    """How labels stand in a table."""

    file: str
    meaning: Meaning
    group: str | None
    repeated: int  # items that were there already, and were left out


@dataclass(frozen=True)
class Labelled:
    """The images or clips of a split.

    Args:
        targets: what is told of them; None: the data name no classes.
        truth: of each item, int64 [N] of classes or float32 [N, T] of tags or values (NaN: unknown); None: what the
            source reads has its class beside it.
        groups: what each item belongs to; None: to nothing.
        told: by which table, and how it was understood; None: classes are as the data have them.
        measured: share of the data that is measured on, where they were cut in two and these are a part.
    """

    spec: str
    split: str
    source: Source
    targets: Targets | None = None
    truth: Tensor | None = None
    groups: Sequence[str] | None = None
    told: Told | None = None
    measured: float | None = None

    @property
    def kind(self) -> str:
        """Of the targets."""
        return self.targets.kind if self.targets else "classes"

    @property
    def names(self) -> list[str] | None:
        """Of the classes, tags or values, in the order of the labels, where the data tell."""
        return list(self.targets.names) if self.targets else None

    def truth_at(self, positions: Tensor, labels: Tensor) -> Tensor:
        """What is true of items that were read.

        Args:
            positions: int64 [N] of these.
            labels: int64 [N] that were beside them.

        Raises:
            ValueError: classes that tell nothing apart.
        """
        found = labels if self.truth is None else self.truth[positions]
        return check_labels(self, found) if self.kind == "classes" else found

    def groups_at(self, positions: Sequence[int]) -> Tensor | None:
        """Numbers of the groups of items: int64 [N]."""
        if self.groups is None:
            return None
        number = {name: n for n, name in enumerate(dict.fromkeys(self.groups))}
        return torch.tensor([number[self.groups[position]] for position in positions], dtype=torch.int64)


class Chosen(Source):
    """Some items of a source, perhaps with other classes.

    Args:
        source: that has them.
        positions: of the items, in there.
        labels: of the items, in place of the source's; None: these.
        part: what tells this choice from others, for ``identity``.
    """

    def __init__(
        self, source: Source, positions: Sequence[int], labels: Sequence[int] | None = None, part: Hashable = None
    ) -> None:
        self.source, self.positions = source, list(positions)
        if labels is None and source.labels is not None:
            labels = [source.labels[position] for position in self.positions]
        self.own = None if labels is None else list(labels)
        self.labels = None if labels is None else telling(labels)
        self.noun, self.repeat, self.class_names = source.noun, source.repeat, source.class_names
        self.identity = (source.identity, part)

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, position: int, seed: int | None = None) -> tuple[Any, int]:
        item, label = self.source.read(self.positions[position], seed)
        return item, label if self.own is None else self.own[position]

    def name_of(self, position: int) -> str:
        return self.source.name_of(self.positions[position])

    def reopen(self) -> None:
        self.source.reopen()


# ---- opening


def open_labelled(
    spec: str, split: str, input_size: tuple[int, ...], ask: Ask | None = None, like: Labelled | None = None, **how: Any
) -> Labelled:
    """Labelled images or clips of one split; see :func:`hiermim_zoo.data.kinds.open_source` for the other arguments.

    Args:
        ask: what is said of labels.
        like: training images, whose kind and names of targets are taken.

    Raises:
        ValueError: they are missing, or have no labels, or these cannot be understood.
    """
    ask = ask or Ask()
    source = open_source(spec, input_size, split=split, **how)
    if source.other_splits:
        found = ", ".join(source.other_splits)
        raise ValueError(f"{spec} has no split {split!r}, but {found}; choose with --split and --train-split")
    if file := ask.file or (spec if is_table(spec) else ""):
        if source.streamed:
            raise ValueError(f"{spec} is a stream, and --labels {file} speaks of files")
        return _by_table(Labelled(spec, split, source), read_labels(file), ask, like, how.get("root"))
    if option := ask.needs_table:
        raise ValueError(f"{spec} is no table; {option} needs one: --labels FILE.csv with the columns file, label, ...")
    names = source.class_names
    if names is not None and len(names) < 2:
        raise ValueError(
            f"{spec} has no labels: its {source.noun} must lie in folders named after their classes, two or more; "
            "or give --labels FILE.csv"
        )
    if not source.streamed and source.labels is None and first_label(source) < 0:
        raise ValueError(f"{spec} has no labels in its split {split!r}; choose another with --split and --train-split")
    return Labelled(spec, split, source, Targets("classes", names) if names else None)


def _by_table(data: Labelled, table: LabelTable, ask: Ask, like: Labelled | None, root: str | None) -> Labelled:
    """Labels of a source as a table has them."""
    if ask.group:
        table.check_columns((ask.group,), "--group")
    source = data.source
    classed = source.labels is not None and bool(source.class_names)
    meaning = like.told.meaning if like and like.told else meaning_of(table, ask, classed)
    table.check_columns(meaning.columns, "the labels, as in the training images")
    folders = [os.path.join(data.spec, name) for name in sorted(same_split(data.split))]  # one of these was entered
    roots = [os.path.dirname(table.path), data.spec, *folders, *filter(None, [root])]
    files = [source.name_of(n) for n in range(len(source))]
    found = matched(files, table, roots, meaning, ask.group or "")
    if meaning.columns:
        which = "training images" if data.split in same_split("train") else f"images of the split {data.split!r}"
        known = like.names if like else list(ask.names)
        meaning, names = _named(meaning, table, found.rows, known, which)
        truth = truth_of(meaning, names, table, found.rows)
    else:
        names, own = list(source.class_names or ()), source.labels or ()
        truth = torch.tensor([own[position] for position in found.positions])
    labels = truth.tolist() if meaning.kind == "classes" else [-1] * len(found.rows)
    chosen = Chosen(source, found.positions, labels, table.path)
    chosen.class_names = names if meaning.kind == "classes" else None
    groups = [_group(row, table, ask.group) for row in found.rows] if ask.group else None
    told = Told(table.path, meaning, ask.group, found.repeated)
    return replace(data, source=chosen, targets=Targets(meaning.kind, names), truth=truth, groups=groups, told=told)


def _named(
    meaning: Meaning, table: LabelTable, rows: Sequence[LabelRow], known: list[str] | None, which: str
) -> tuple[Meaning, list[str]]:
    """Labels and their names in the order of those that are known already.

    Args:
        which: what messages call the images of the rows.

    Raises:
        ValueError: columns have other names than those, or there is nothing to tell apart.
    """
    names = known or names_in(meaning, table, rows)
    if meaning.kind != "classes" and not meaning.listed:
        if set(names) != set(meaning.columns):
            raise ValueError(
                f"{table.path}: the columns {', '.join(meaning.columns[:5])} are not those that are known: "
                f"{', '.join(names[:5])}"
            )
        return replace(meaning, columns=tuple(names)), names
    if len(names) < (2 if meaning.kind == "classes" else 1):
        said = f"all {which} have the class {names[0]!r}" if names else f"none of the {which} has a label"
        raise ValueError(f"{table.path}: {said} in column {meaning.columns[0]}; there is nothing to tell apart")
    return meaning, names


def _group(row: LabelRow, table: LabelTable, column: str) -> str:
    if not row.cells[column]:
        raise ValueError(f"{table.at(row)}: column {column} of --group is empty")
    return row.cells[column]


# ---- two splits


def check_apart(train: Labelled, test: Labelled) -> None:
    """Refuse to measure on the images that were trained on, or on images of other classes.

    Raises:
        ValueError: naming them.
    """
    if train.source.identity == test.source.identity:
        raise ValueError(
            f"--train DATA is needed: {test.spec} has no two splits {train.split!r} and {test.split!r}; "
            "--split-fraction 0.2 makes them"
        )
    if train.kind != test.kind:
        raise ValueError(f"{train.spec} has {train.kind}, and {test.spec} has {test.kind}")
    if train.truth is not None and test.truth is not None:
        _check_no_file_in_both(train, test)
    if train.names and test.names and train.names != test.names:
        odd = sorted(set(train.names) ^ set(test.names))[:3]
        raise ValueError(f"the classes of {train.spec} and {test.spec} differ: {', '.join(odd)} is in one of them only")


def _check_no_file_in_both(train: Labelled, test: Labelled) -> None:
    trained = {train.source.name_of(n) for n in range(len(train.source))}
    both = [name for n in range(len(test.source)) if (name := test.source.name_of(n)) in trained]
    if both:
        more = f" and {counted(len(both) - 1, 'others')} are" if len(both) > 1 else " is"
        raise ValueError(f"{both[0]}{more} to be trained on and to measure on; remove one row")


def check_groups(train: Labelled, test: Labelled) -> None:
    """Refuse groups that are on both sides.

    Raises:
        ValueError: naming one, and how many there are.
    """
    both = sorted(set(train.groups or ()) & set(test.groups or ()))
    if both:
        are, have = ("is", "has") if len(both) == 1 else ("are", "have")
        shared = sum(group in set(both) for group in test.groups or ())
        raise ValueError(
            f"{counted(len(both), 'groups')} ({', '.join(both[:3])}{', ...' if len(both) > 3 else ''}) {are} in the "
            f"training images and {have} {shared} of the {len(test.source)} to measure on, so what is measured would "
            "be too good; "
            "--allow-shared-groups measures all the same"
        )


def cut(data: Labelled, fraction: float, seed: int) -> tuple[Labelled, Labelled]:
    """Data in two parts, to train and to measure on: no group in both, else with equal shares of all that is told.

    Args:
        fraction: of the images, to measure on; as near as whole groups allow.
        seed: of the choice.

    Raises:
        ValueError: one of both would be empty.
    """
    count = len(data.source)
    if data.source.streamed:
        raise ValueError(f"--split-fraction {fraction:g}: {data.spec} is a stream, which cannot be cut")
    numbers = torch.Generator().manual_seed(seed_of(seed, count))
    groups = data.groups_at(range(count))
    taken = _spread(_keys(data), fraction, numbers) if groups is None else whole_groups(groups, fraction, numbers)
    if not taken.any() or taken.all():
        images = counted(count, "images")
        what = images if groups is None else f"{counted(int(groups.max()) + 1, 'groups')} of {images}"
        works = "give --train DATA, or another --split-fraction"
        if groups is None and data.kind == "classes" and len(_keys(data).unique()) == count:
            works = "each class has one image, and both sides need one of each: give --train DATA"
        raise ValueError(
            f"a share of {fraction:g} of the {what} of {data.spec}, to measure on, leaves nothing on one side; {works}"
        )
    whole = replace(data, measured=fraction)
    test, train = _part(whole, taken, "measured"), _part(whole, ~taken, "trained")
    _check_known(train, test)
    return train, test


def check_told_apart(test: Labelled) -> None:
    """Refuse a part to measure on whose images all have the same class.

    Raises:
        ValueError: they do; names the share.
    """
    if test.kind == "classes" and len(_keys(test).unique()) < 2:
        raise ValueError(
            f"a share of {test.measured or 0:g} of {test.spec} to measure on, {counted(len(test.source), 'images')}, "
            "has one class alone; give --train DATA with images to train on, or try another --split-fraction or --seed"
        )


def _part(data: Labelled, taken: Tensor, name: str) -> Labelled:
    positions = taken.nonzero()[:, 0].tolist()
    return replace(
        data,
        source=Chosen(data.source, positions, part=name),
        truth=None if data.truth is None else data.truth[taken],
        groups=None if data.groups is None else [data.groups[n] for n in positions],
    )


def _keys(data: Labelled) -> Tensor:
    """What images are sorted by, so that equal steps give all of it in equal shares: [N, any]."""
    if data.truth is not None:
        return data.truth.float().nan_to_num(nan=-1e9).reshape(len(data.truth), -1)
    labels = data.source.labels or [data.source.read(n)[1] for n in range(len(data.source))]
    return torch.tensor(labels, dtype=torch.float32)[:, None]


def _spread(keys: Tensor, fraction: float, numbers: torch.Generator) -> Tensor:
    """Evenly spaced items in the order of their keys, random among equal ones: bool [N]. One of each class stays."""
    order = torch.randperm(len(keys), generator=numbers)
    for column in reversed(range(keys.shape[1])):
        order = order[keys[order, column].argsort(stable=True)]
    sorted_keys = keys[order]
    stays = torch.ones(len(keys), dtype=torch.bool)
    stays[1:] = (sorted_keys[1:] != sorted_keys[:-1]).any(1)  # the first of each kind is trained on
    if stays.sum() > len(keys) * (1 - fraction):  # nearly all differ, as numbers do
        stays[:] = False
    free = order[~stays]
    wanted = min(round(fraction * len(keys)), len(free))
    offset = torch.rand(1, generator=numbers)
    places = ((torch.arange(wanted) + offset) * (len(free) / max(1, wanted))).long()
    taken = torch.zeros(len(keys), dtype=torch.bool)
    taken[free[places.clamp(max=len(free) - 1)]] = True
    return taken


def whole_groups(groups: Tensor, fraction: float, numbers: torch.Generator) -> Tensor:
    """Items of random groups, as near to the fraction as these come: bool [N]."""
    sizes = groups.bincount()
    wanted, have, chosen = fraction * len(groups), 0, []
    for group in torch.randperm(len(sizes), generator=numbers).tolist():
        if abs(have + int(sizes[group]) - wanted) < abs(have - wanted):
            chosen.append(group)
            have += int(sizes[group])
    if not chosen and len(sizes) > 1:
        chosen = [int(sizes.argmin())]
    return torch.isin(groups, torch.tensor(chosen, dtype=torch.int64))


def _check_known(train: Labelled, test: Labelled) -> None:
    """Refuse classes or tags to measure that no training image has.

    Raises:
        ValueError: naming one, and an image.
    """
    if train.kind != "classes" or train.truth is None or test.truth is None:
        return
    unknown = (~torch.isin(test.truth, train.truth)).nonzero()[:, 0].tolist()
    if unknown:
        name, alone = (test.names or [])[int(test.truth[unknown[0]])], len(unknown) == 1
        have = " has a class" if alone else f" and {counted(len(unknown) - 1, 'other images')} have classes"
        raise ValueError(
            f"{test.source.name_of(unknown[0])}{have}, {name!r}{'' if alone else ' among them'}, "
            "that no training image has: all of them fell on one side; another --seed or --split-fraction may help"
        )


# ---- labels


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
