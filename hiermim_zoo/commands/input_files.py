"""Files and folders that a command is to read: whether they are there."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..text import counted

NAMED = 5  # of those that are missing


def missing(names: Sequence[str], called: str) -> Iterator[str]:
    """A line for each name or pattern that leads to nothing; of many, for the first ones.

    Args:
        called: what messages call such a name.
    """
    lost = [name for name in names if not leads_somewhere(name)]
    for name in lost[:NAMED]:
        yield f"{called} {name}: no such file or folder; {what_is_there(Path(name))}"
    if more := len(lost[NAMED:]):
        yield f"{called}: {counted(more, 'more names')} of {len(names)} lead to no file or folder"


def leads_somewhere(name: str) -> bool:
    """Whether there is a file or folder of that name, or one that a pattern stands for."""
    # a file may have a [ in its name
    return os.path.exists(name) or next(glob.iglob(name, recursive=True), None) is not None


def what_is_there(path: Path) -> str:
    """How far a path leads, for somebody who mistyped it."""
    if glob.has_magic(str(path)):
        return "nothing is of that pattern"
    there = next(parent for parent in path.absolute().parents if parent.exists())
    lacking = path.absolute().relative_to(there).parts[0]
    return f"{there} has no {lacking}" if there.is_dir() else f"{there} is a file"
