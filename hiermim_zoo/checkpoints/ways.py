"""How a checkpoint could be read whose names fit no layout as they are: another set of the file, a prefix taken off."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from .layout import Layout


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
        for prefix in ("", *beginnings(found))
        for layout in readable
        if not layout.by_name and layout.fits([name[len(prefix) :] for name in found if name.startswith(prefix)])
    ]


def beginnings(names: Iterable[str]) -> list[str]:
    """All that dotted names begin with: "blocks.", "blocks.0.", ..."""
    return list(dict.fromkeys(name[: i + 1] for name in names for i, letter in enumerate(name) if letter == "."))
