"""Labels in the columns of a table: what they are, and what they say of each image.

A table has a row for each image. Its labels are one class (a column), several labels that are called tags here (a
column with separators between them, or a column of 0 and 1 for each), or numbers (a column for each). Which of these
they are is told by an option or by the table; where both could be meant, the table is refused.

Letters: N images, T tags or values.
"""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from timm.utils.misc import natural_key
from torch import Tensor

from ..text import plural
from .tables import LABEL_COLUMNS, SEPARATORS, about_backslashes, file_column, opened
from .targets import KINDS

AUTO = "auto"
LIST_COLUMNS = ("labels", "tags")  # one of these holds the labels of an image, too
BETWEEN = (";", "|")  # labels of an image in one column
UNKNOWN = ("", "nan", "na", "n/a")  # cells of columns of tags or values that say nothing
SWITCHES = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0}
LONGEST = 200  # characters of a name


@dataclass(frozen=True)
class Ask:
    """What a command says of labels.

    Args:
        task: a kind of targets, or "auto".
        columns: that hold the labels; none: the usual ones.
        separator: between the labels in one column; None: one of BETWEEN.
        group: column of what belongs together (a patient, a scene); None: nothing does.
        file: a table of labels beside the data; None: data that are a table have their own.
        names: of the outputs of a model that is asked, where they are known.
    """

    task: str = AUTO
    columns: tuple[str, ...] = ()
    separator: str | None = None
    group: str | None = None
    file: str | None = None
    names: tuple[str, ...] = ()

    @property
    def needs_table(self) -> str:
        """The option that only a table can answer; empty if there is none."""
        asked = {
            "--target-columns": self.columns,
            "--separator": self.separator,
            "--group": self.group,
            f"--task {self.task}": self.task in ("tags", "values"),
        }
        return next((option for option, given in asked.items() if given), "")


class LabelRow(NamedTuple):
    """One row of a table."""

    line: int
    file: str
    cells: Mapping[str, str]


@dataclass(frozen=True)
class LabelTable:
    """A table with labels in it."""

    path: str
    columns: tuple[str, ...]
    rows: Sequence[LabelRow]

    def at(self, row: LabelRow) -> str:
        """What messages call a row."""
        return f"{self.path}, line {row.line} ({row.file})"

    def check_columns(self, names: Collection[str], option: str) -> None:
        """Refuse columns that are not there.

        Raises:
            ValueError: naming one, and those that there are.
        """
        if missing := [name for name in names if name not in self.columns]:
            raise ValueError(f"{self.path} has no column {missing[0]!r} for {option}, but {', '.join(self.columns)}")


@dataclass(frozen=True)
class Meaning:
    """How labels stand in a table."""

    kind: str
    columns: tuple[str, ...] = ()  # none: classes are those of the data, and the table has but groups
    separator: str = ""  # between the tags in one column; empty: there are none, or each has its column

    @property
    def listed(self) -> bool:
        """Whether the tags of an image stand in one column."""
        return self.kind == "tags" and bool(self.separator)

    def in_words(self, count: int) -> str:
        """How it was understood, for people.

        Args:
            count: of the classes, tags or values.
        """
        if not self.columns:
            return f"{count} {self.kind}, those of the folders"
        columns = f"{plural('columns', len(self.columns))} {', '.join(self.columns[:8])}"
        more = f" and {len(self.columns) - 8} more" if len(self.columns) > 8 else ""
        between = f", with {self.separator!r} between them" if self.listed else ""
        return f"{count} {self.kind if count != 1 else self.kind[:-1]} in {columns}{more}{between}"


def read_cells(path: str) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]]]:
    """The columns of a table, and of each row its line and its cells.

    Raises:
        ValueError: it is no table of text with a header.
    """
    separator = SEPARATORS.get(Path(path).suffix.lower())
    if not separator:
        raise ValueError(f"{path}: a table with a header is wanted, .csv or .tsv")
    try:
        with opened(path) as file:
            reader = csv.DictReader(file, delimiter=separator)
            columns = tuple(name or "" for name in reader.fieldnames or ())
            cells = [(reader.line_num, {name: (row.get(name) or "").strip() for name in columns}) for row in reader]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return columns, cells


def read_labels(path: str) -> LabelTable:
    """A table of labels.

    Raises:
        ValueError: it is no table with a header and a column of files.
    """
    columns, cells = read_cells(path)
    file = file_column(path, columns)
    return LabelTable(path, columns, [LabelRow(line, row[file], row) for line, row in cells])


# ---- what the labels are


def meaning_of(table: LabelTable, ask: Ask, classed: bool = False) -> Meaning:
    """What the labels of a table are.

    Args:
        classed: the data have classes of their own, which count if the table has none and but groups are asked for.

    Raises:
        ValueError: they could be of two kinds, or of none; says which options tell.
    """
    bare = not ask.columns and not {*LABEL_COLUMNS, *LIST_COLUMNS} & set(table.columns)
    if classed and ask.group and bare and ask.task in (AUTO, "classes"):
        return Meaning("classes")
    columns = _columns(table, ask)
    table.check_columns(columns, "--target-columns" if ask.columns else "the labels")
    if ask.task == AUTO:
        kind = _kind_of_many(table, columns) if len(columns) > 1 else _kind_of_one(table, columns[0], ask.separator)
    else:
        kind = ask.task
    assert kind in KINDS
    if kind == "classes" and len(columns) > 1:
        raise ValueError(f"--task classes takes one column, and {', '.join(columns)} are {len(columns)}")
    if ask.separator and (kind != "tags" or len(columns) > 1):
        raise ValueError(f"--separator {ask.separator} is for several labels in one column, with --task tags")
    separator = ""
    if kind == "tags" and len(columns) == 1:
        switched = columns[0] not in LIST_COLUMNS and _all(table, columns[0], SWITCHES)
        separator = ask.separator or ("" if switched else _between(table, columns[0]) or BETWEEN[0])
    return Meaning(kind, tuple(columns), separator)


def _columns(table: LabelTable, ask: Ask) -> Sequence[str]:
    if ask.columns:
        return ask.columns
    if ask.task in ("tags", "values") and ask.names and set(ask.names) <= set(table.columns):
        return ask.names  # as the model was trained
    usual = (*LABEL_COLUMNS, *LIST_COLUMNS)
    found = [name for name in usual if name in table.columns]
    if not found:
        raise ValueError(
            f"{table.path} has no column {' or '.join(usual)}, but {', '.join(table.columns)}; "
            "--target-columns COLUMN says where the labels are"
        )
    if len(found) > 1:
        raise ValueError(f"{table.path} has the columns {' and '.join(found)}; choose one with --target-columns")
    return found


def _all(table: LabelTable, column: str, known: Collection[str]) -> bool:
    return all(row.cells[column].lower() in known for row in table.rows if row.cells[column].lower() not in UNKNOWN)


def _between(table: LabelTable, column: str) -> str:
    """The separator that stands in a column; empty if none does.

    Raises:
        ValueError: there are two.
    """
    found = [mark for mark in BETWEEN if any(mark in row.cells[column] for row in table.rows)]
    if len(found) > 1:
        raise ValueError(
            f"{table.path}: column {column} has both {' and '.join(BETWEEN)}; "
            "--separator says which of them stands between labels, --task classes that neither does"
        )
    return found[0] if found else ""


def _kind_of_one(table: LabelTable, column: str, separator: str | None) -> str:
    if separator or column in LIST_COLUMNS or _between(table, column):
        return "tags"
    rows = [row for row in table.rows if row.cells[column].lower() not in UNKNOWN]
    numbers = [_number(row.cells[column].replace(",", ".")) for row in rows]
    odd = next((row for row in rows if _number(row.cells[column]) is None), None)
    if column == "class" or (odd and sum(number is not None for number in numbers) < len(numbers) / 2) or not rows:
        return "classes"
    if odd:
        raise ValueError(
            f"{table.at(odd)}: column {column} holds numbers, but {odd.cells[column]!r} here is none (1.5 would be); "
            "mend it, or say --task classes"
        )
    if all(number == int(number) for number in numbers if number is not None):
        raise ValueError(
            f"{table.path}: column {column} holds whole numbers, which could be classes or values; "
            "say --task classes or --task values (or --task tags, if 0 and 1 mean no and yes)"
        )
    return "values"


def _kind_of_many(table: LabelTable, columns: Sequence[str]) -> str:
    if all(_all(table, column, SWITCHES) for column in columns):
        return "tags"
    for row in table.rows:
        for column in columns:
            if row.cells[column].lower() not in UNKNOWN and _number(row.cells[column]) is None:
                raise ValueError(
                    f"{table.at(row)}: column {column} holds {row.cells[column]!r}; several columns are 0 and 1 "
                    "(tags) or numbers (values), and classes or separated labels stand in one column"
                )
    return "values"


def _number(cell: str) -> float | None:
    try:
        found = float(cell)
    except ValueError:
        return None
    if "_" in cell:  # Python reads 1_2 as 12
        return None
    return found if math.isfinite(found) else None


# ---- what they say


def pieces(cell: str, separator: str) -> list[str]:
    """The tags in a cell."""
    return [piece for part in cell.split(separator) if (piece := part.strip())]


def names_in(meaning: Meaning, table: LabelTable, rows: Sequence[LabelRow]) -> list[str]:
    """The classes, tags or values that rows speak of, in natural order; columns in their own.

    Raises:
        ValueError: a class is missing, or a name cannot be written into a configuration.
    """
    if meaning.kind != "classes" and not meaning.listed:
        return list(meaning.columns)
    [column] = meaning.columns
    found: dict[str, LabelRow] = {}
    for row in rows:
        cell = row.cells[column]
        if not cell and meaning.kind == "classes":
            raise _no_class(table, row, column)
        for name in pieces(cell, meaning.separator) if meaning.listed else [cell]:
            found.setdefault(name, row)
    for name, row in found.items():
        if not name.isprintable() or len(name) > LONGEST:
            raise ValueError(f"{table.at(row)}: {name[:40]!r} is no name: up to {LONGEST} printable characters")
    return sorted(found, key=natural_key)


def truth_of(meaning: Meaning, names: Sequence[str], table: LabelTable, rows: Sequence[LabelRow]) -> Tensor:
    """What rows say of their images: int64 [N] of classes, else float32 [N, T], NaN where it is unknown.

    Raises:
        ValueError: naming the row that says nothing, or what cannot be.
    """
    if not rows:
        return torch.empty(0, dtype=torch.int64)
    number = {name: n for n, name in enumerate(names)}
    said = [READERS[meaning.kind](meaning, number, table, row) for row in rows]
    return torch.tensor(said, dtype=torch.int64 if meaning.kind == "classes" else torch.float32)


Numbers = Mapping[str, int]  # of names, in their order


def _class(meaning: Meaning, names: Numbers, table: LabelTable, row: LabelRow) -> int:
    [column] = meaning.columns
    cell = row.cells[column]
    if not cell:
        raise _no_class(table, row, column)
    if cell not in names:
        raise ValueError(f"{table.at(row)}: the class {cell!r} is not among the known ones: {_few(names)}")
    return names[cell]


def _no_class(table: LabelTable, row: LabelRow, column: str) -> ValueError:
    return ValueError(f"{table.at(row)}: column {column} is empty, so the image has no class")


def _tags(meaning: Meaning, names: Numbers, table: LabelTable, row: LabelRow) -> list[float]:
    if not meaning.listed:
        return _known([_switch(row.cells[column]) for column in meaning.columns], meaning, table, row)
    found = pieces(row.cells[meaning.columns[0]], meaning.separator)
    if odd := [name for name in found if name not in names]:
        raise ValueError(f"{table.at(row)}: the tag {odd[0]!r} is not among the known ones: {_few(names)}")
    return [float(name in found) for name in names]


def _values(meaning: Meaning, names: Numbers, table: LabelTable, row: LabelRow) -> list[float]:
    return _known([_value(row.cells[column]) for column in meaning.columns], meaning, table, row)


READERS: Mapping[str, Callable[[Meaning, Numbers, LabelTable, LabelRow], int | list[float]]] = {
    "classes": _class,
    "tags": _tags,
    "values": _values,
}


def _switch(cell: str) -> float | None:
    return math.nan if cell.lower() in UNKNOWN else SWITCHES.get(cell.lower())


def _value(cell: str) -> float | None:
    return math.nan if cell.lower() in UNKNOWN else _number(cell)


def _known(found: list[float | None], meaning: Meaning, table: LabelTable, row: LabelRow) -> list[float]:
    """What a row says in its columns.

    Raises:
        ValueError: one of them cannot be read, or all are empty.
    """
    for column, value in zip(meaning.columns, found, strict=True):
        if value is None:
            wanted = "no 0 or 1" if meaning.kind == "tags" else "no number"
            raise ValueError(f"{table.at(row)}: column {column} holds {row.cells[column]!r}, which is {wanted}")
    said = [value for value in found if value is not None]
    if all(math.isnan(value) for value in said):
        raise ValueError(f"{table.at(row)}: {', '.join(meaning.columns[:3])} say nothing: the image has no label")
    return said


def _few(names: Numbers) -> str:
    return ", ".join(list(names)[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")


# ---- which row is that of an image


class Matched(NamedTuple):
    """Images of a source, and the rows that speak of them."""

    positions: list[int]  # in the source
    rows: list[LabelRow]
    repeated: int  # images of the source that are left out, because they are there already


def matched(files: Sequence[str], table: LabelTable, roots: Sequence[str], meaning: Meaning, group: str) -> Matched:
    """The row of each file.

    Rows of one file that say the same count once; with ``--task tags`` and one column, tags of several rows are joined.

    Args:
        files: of a source, in its order.
        roots: folders that the table's names may start from.
        group: column that must be equal in rows of one file; empty: there is none.

    Raises:
        ValueError: a file has no row, or two that differ.
    """
    by_file: dict[str, list[LabelRow]] = defaultdict(list)
    for row in table.rows:
        by_file[os.path.normpath(row.file)].append(row)
    asked = (*meaning.columns, *filter(None, [group]))
    found = Matched([], [], 0)
    seen: set[str] = set()
    missing = []
    for position, file in enumerate(files):
        whole = os.path.abspath(file)
        names = (file, whole, *(os.path.relpath(whole, root or ".") for root in roots))
        rows = next((by_file[name] for name in names if name in by_file), [])
        if whole in seen:
            found = found._replace(repeated=found.repeated + 1)
        elif rows:
            seen.add(whole)
            found.positions.append(position)
            found.rows.append(_one(rows, table, meaning, asked))
        else:
            missing.append(file)
    if missing:
        raise ValueError(
            f"{table.path} has no row for {missing[0]}"
            + (f" and {len(missing) - 1} others of {len(files)} images" if len(missing) > 1 else "")
            + "; its names start in the folder of the table, of the data, or in --data-dir"
            + about_backslashes(next(iter(by_file), ""))
        )
    return found


def _one(rows: Sequence[LabelRow], table: LabelTable, meaning: Meaning, asked: Sequence[str]) -> LabelRow:
    """Rows of one file as one."""
    first = rows[0]
    odd = [row for row in rows if any(row.cells[name] != first.cells[name] for name in asked)]
    if not odd:
        return first
    if meaning.listed and all(row.cells[name] == first.cells[name] for row in rows for name in asked[1:]):
        [column] = meaning.columns
        joined = meaning.separator.join(row.cells[column] for row in rows)
        return first._replace(cells={**first.cells, column: joined})
    raise ValueError(
        f"{table.path}: lines {first.line} and {odd[0].line} say different things of {first.file}"
        + ("; if both hold, say --task tags" if meaning.kind == "classes" else "")
    )
