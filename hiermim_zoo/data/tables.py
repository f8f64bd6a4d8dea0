"""A table of files as data: one name a line (.txt), or columns with a header (.csv, .tsv)."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from timm.utils.misc import natural_key

from .images import FileImages
from .source import Request, telling

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": ""}  # of columns; "": there is only one
FILE_COLUMNS = ("file", "filename", "file_name", "path", "image")  # one of these names the file
LABEL_COLUMNS = ("label", "class")
SPLIT_COLUMN = "split"
SAME_SPLIT = ({"train", "training"}, {"val", "valid", "validation"}, {"eval", "evaluation", "test"})


def is_table(path: str) -> bool:
    """Whether this is a file with the ending of a table."""
    return Path(path).suffix.lower() in SEPARATORS and os.path.isfile(path)


def same_split(name: str) -> set[str]:
    """All names of the split that is meant by one."""
    return next((names for names in SAME_SPLIT if name in names), {name})


class Row(NamedTuple):
    """One image of a table."""

    file: str
    label: str  # "" where there is none
    split: str


class TableImages(FileImages):
    """Images whose files a table names, with their labels, if it has them.

    A table has the columns "file" (or "filename", "path", "image"), and perhaps "label" (or "class") and "split". Names
    are relative to the folder of the table, or to ``root``.

    Raises:
        ValueError: it cannot be read, has no column of files, or names a file that is not there.
    """

    def __init__(self, path: str, request: Request) -> None:
        table = read_table(path)
        splits = list(dict.fromkeys(row.split for row in table))
        meant = same_split(request.split)
        rows = [row for row in table if row.split in meant] if splits != [""] else table
        if not rows:
            raise ValueError(f"{path} has no images of the split {request.split!r}, but of {', '.join(splits)}")
        self.files = located(path, rows, request.root)
        self.form, self.identity = request.form, (os.path.realpath(path), request.split if splits != [""] else "")
        named = [row.label for row in rows]
        labels = {row.label for row in table}  # of all splits: each has the same classes
        self.class_names = None if "" in labels else sorted(labels, key=natural_key)
        number = {name: label for label, name in enumerate(self.class_names or ())}
        self.numbers = [number.get(name, -1) for name in named]
        self.labels = telling(self.numbers)

    def __len__(self) -> int:
        return len(self.files)

    def open(self, position: int) -> tuple[IO[bytes], int]:
        return open(self.files[position], "rb"), self.numbers[position]

    def label_of(self, position: int) -> int:
        return self.numbers[position]

    def name_of(self, position: int) -> str:
        return self.files[position]


def located(path: str, rows: Iterable[Row], root: str | None = None) -> list[str]:
    """The files that rows of a table name, relative to its folder or to ``root``.

    Raises:
        ValueError: one is not there.
    """
    files = []
    for row in rows:
        files.append(file := os.path.join(root or os.path.dirname(path), row.file))
        if not os.path.isfile(file):
            raise ValueError(f"{path} names {file}, which does not exist{about_backslashes(row.file)}")
    return files


def about_backslashes(name: str) -> str:
    """What a message about a name that is not found adds, if folders in it are divided as only Windows divides them."""
    return "; write / in place of \\ between folders" if "\\" in name and os.sep == "/" else ""


def file_column(path: str, columns: Sequence[str]) -> str:
    """The column of files.

    Raises:
        ValueError: there is none.
    """
    found = next((name for name in FILE_COLUMNS if name in columns), None)
    if found is None:
        other = next((mark for mark in (";", "\t", ",", "|") if mark in "".join(columns)), None)
        raise ValueError(
            f"{path} has the columns {', '.join(columns)}; one must be called {' or '.join(FILE_COLUMNS)}"
            + (f"; {other!r} divides no columns: in .csv a comma does, in .tsv a tab" if other else "")
        )
    return found


@contextmanager
def opened(path: str) -> Iterator[IO[str]]:
    """The text of a table.

    Raises:
        ValueError: what is read inside is no text, or no columns.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table of text: {error}") from error


def read_table(path: str) -> list[Row]:
    """The rows of a table.

    Raises:
        ValueError: it is no text, is empty, or has no column of files.
    """
    separator = SEPARATORS[Path(path).suffix.lower()]
    with opened(path) as file:
        if not separator:
            rows = [Row(line.strip(), "", "") for line in file if line.strip()]
        else:
            rows = _columns(path, csv.DictReader(file, delimiter=separator))
    if not rows:
        raise ValueError(f"{path} names no files")
    return rows


def _columns(path: str, table: csv.DictReader[str]) -> list[Row]:
    names = [name or "" for name in table.fieldnames or ()]
    file = file_column(path, names)
    label = next((name for name in LABEL_COLUMNS if name in names), "")
    rows = []
    for row in table:
        if not row[file]:
            raise ValueError(f"{path}, line {table.line_num}: there is no file")
        rows.append(Row(row[file], row.get(label) or "", row.get(SPLIT_COLUMN) or ""))
    return rows
