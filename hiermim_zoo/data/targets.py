"""What is told of an image: one class, several labels (tags), or numbers (values)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("classes", "tags", "values")


@dataclass(frozen=True)
class Targets:
    """What a model is to tell.

    Args:
        kind: "classes" (an image has one of them), "tags" (it has any number of them) or "values" (numbers).
        names: of the classes, tags or values, in the order of a model's outputs.
    """

    kind: str
    names: Sequence[str]
