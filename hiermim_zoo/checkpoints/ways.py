"""How a checkpoint could be read whose names fit no layout as they are: another set of the file, a prefix taken off."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from .layout import Layout
from .tables.strangers import Strange, refuse_strangers

_DEEPEST = 6  # parts of a prefix
_MOST = 10_000  # names in a set: no model here has as many


class Way(NamedTuple):
    """What has to be said for a layout to fit."""

    key: str  # of the set of weights
    prefix: str  # that is taken off its names
    layout: str


def ways(names: Mapping[str, Collection[str]], readable: Sequence[Layout]) -> list[Way]:
    """All ways to read a file.

    Args:
        names: of the tensors, by set.
        readable: layouts that are looked for.
    """
    return [
        Way(key, prefix, layout.name)
        for key, found in names.items()
        if len(found) <= _MOST
        for prefix, rest in by_prefix(found).items()
        if (layout := _only_one(rest, readable))
    ]


def _only_one(names: Collection[str], readable: Sequence[Layout]) -> Layout | None:
    """The layout that fits, if only one does and the names are of no stranger."""
    fitting = [layout for layout in readable if not layout.by_name and layout.fits(names)]
    with suppress(Strange):
        if len(fitting) == 1 and knows(fitting[0], names):
            refuse_strangers(names)
            return fitting[0]
    return None


def knows(layout: Layout, names: Iterable[str]) -> bool:
    """Whether a layout has a rule for each of these names."""
    rules = (*layout.rules, *layout.decoder)
    short = (name.removeprefix(layout.prefix) for name in names)
    return all(any(re.fullmatch(rule.pattern, name) for rule in rules) for name in short)


def by_prefix(names: Iterable[str]) -> dict[str, list[str]]:
    """All that dotted names begin with ("", "blocks.", "blocks.0.", ...) -> what is left of the names that do."""
    found: dict[str, list[str]] = {"": []}
    for name in names:
        parts = name.split(".", _DEEPEST)
        for i in range(len(parts)):
            prefix = "".join(f"{part}." for part in parts[:i])
            found.setdefault(prefix, []).append(name[len(prefix) :])
    return found
