"""Weights of classes and tags, for data in which some are rare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .labels import read_cells

BALANCED = "balanced"
NAME_COLUMNS, WEIGHT_COLUMN = ("label", "class", "tag", "name"), "weight"


def weights_for(said: str, kind: str, names: Sequence[str], truth: Tensor) -> Tensor:
    """A weight for each class, or for a yes of each tag beside a no: float32 [T].

    Args:
        said: "balanced", or a table with the columns label and weight.
        kind: "classes" or "tags".
        names: of these.
        truth: of the training images, int64 [N] or float32 [N, T]. Balanced weights of classes are N / (T * count), so
            that all classes weigh as much and an image weighs 1 on average. Those of tags are the number of images
            without a tag for one that has it. A class or tag that no image has weighs 1.

    Raises:
        ValueError: the table cannot be read, or does not say a weight for each.
    """
    if said != BALANCED:
        return _read(said, names)
    if kind == "classes":
        counts = truth.bincount(minlength=len(names)).float()
        return torch.where(counts > 0, len(truth) / ((counts > 0).sum() * counts.clamp(min=1)), 1.0)
    yes, no = (truth > 0.5).sum(0).float(), (truth <= 0.5).sum(0).float()  # NaN is neither
    return torch.where((yes > 0) & (no > 0), no / yes.clamp(min=1), 1.0)


def _read(path: str, names: Sequence[str]) -> Tensor:
    if not Path(path).suffix:
        raise ValueError(f"--class-weights {path}: use {BALANCED}, or a table (.csv, .tsv) of labels and weights")
    columns, cells = read_cells(path)
    name = next((column for column in NAME_COLUMNS if column in columns), None)
    if name is None or WEIGHT_COLUMN not in columns:
        raise ValueError(f"{path} has the columns {', '.join(columns)}; label and {WEIGHT_COLUMN} are wanted")
    found: dict[str, float] = {}
    for line, row in cells:
        if row[name] in found:
            raise ValueError(f"{path}, line {line}: {row[name]!r} stands there twice")
        found[row[name]] = _weight(row[WEIGHT_COLUMN], f"{path}, line {line}")
    if odd := set(names) ^ set(found):
        first = min(odd)
        raise ValueError(f"{path} {'has no weight for' if first in names else 'names the unknown label'} {first!r}")
    return torch.tensor([found[name] for name in names])


def _weight(cell: str, where: str) -> float:
    try:
        found = float(cell)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise ValueError(f"{where}: {cell!r} is no weight; a number above 0 would work")
    return found
