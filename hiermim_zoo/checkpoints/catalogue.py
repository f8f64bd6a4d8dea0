"""The rows of the manifest, chosen by what people ask for, and what is said of each in a line. Needs no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from .licenses import UNSTATED, WORDS, commercial_use
from .manifest import Accuracy, Weights, parameters, records
from .store import find_local

BYTES_OF_A_VALUE = 4  # in float32


def chosen(
    *,
    family: str | None = None,
    license: str | None = None,
    commercial: bool | None = None,
    here: bool | None = None,
) -> list[Weights]:
    """Rows of the manifest, in its order.

    Args:
        family: "hivit", ...; None: any.
        license: wildcards as in file names ("cc-by-nc*"); None: any.
        commercial: True: the licence allows commercial use; False: it forbids that; None: any, also those of which
            nothing is stated.
        here: True: in the local store or embedded; False: not; None: any.
    """
    return [
        row
        for row in records().values()
        if family in (None, row.family)
        and (license is None or fnmatch.fnmatchcase(row.license, license.lower()))
        and (commercial is None or commercial_use(row.license, row.license_also) is commercial)
        and (here is None or (find_local(row) is not None) is here)
    ]


def matching(rows: Iterable[Weights], pattern: str) -> list[Weights]:
    """Those with a name that fits a pattern, as timm reads it: without a tag it means all tags of the architecture."""
    patterns = (pattern,) if "." in pattern else (pattern, f"{pattern}.*")
    return [row for row in rows if any(fnmatch.fnmatchcase(row.name, one) for one in patterns)]


def record(row: Weights) -> dict[str, Any]:
    """What is known of a row, as plain values."""
    local = find_local(row)
    return {
        "name": row.name,
        "architecture": row.arch,
        "tag": row.tag,
        "family": row.family,
        "classes": row.classes,
        "parameters": parameters().get(row.name),
        "bytes": row.bytes or None,
        "license": row.license,
        "license_also": row.license_also,
        "commercial_use": commercial_use(row.license, row.license_also),
        "license_note": row.license_note,
        "accuracies": [{"top1": one.top1, "by": one.by, "crop": one.crop} for one in row.accuracies],
        "embedded": bool(row.file),
        "here": None if local is None else str(local),
        "hub": row.hub,
        "origin": row.url or None,
        "paper": row.paper,
        "source": row.source,
    }


# ---- in words


def size_of(row: Weights, counted: int | None) -> str:
    """The size of the file that is fetched; where it is not known, about that of the parameters in float32 ("~").

    Args:
        counted: parameters of the model with the classes of the row.
    """
    if row.bytes:
        return amount(row.bytes)
    return f"~{amount(BYTES_OF_A_VALUE * counted)}" if counted else "-"


def amount(bytes: int) -> str:
    """Bytes for people, in powers of 1000."""
    return f"{three_digits(bytes / 1e9)} GB" if bytes >= 1e9 else f"{three_digits(bytes / 1e6)} MB"


def three_digits(value: float) -> str:
    """With at most two of them behind the point."""
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}"


def millions(counted: int | None) -> str:
    return f"{three_digits(counted / 1e6)} M" if counted else "-"


def license_of(row: Weights) -> str:
    return "not stated" if row.license == UNSTATED else row.licenses


def use_of(row: Weights) -> str:
    """Whether the licence allows commercial use: yes, no, or ask."""
    return WORDS[commercial_use(row.license, row.license_also)]


def accuracy_words(one: Accuracy) -> str:
    """With its crop, which a figure means nothing without."""
    crop = "crop not stated" if one.crop is None else f"crop {one.crop:g}"
    return f"{one.top1:g} % ({crop}; {one.by})"


def measured_by(one: Accuracy) -> str:
    """Who, in a word or two."""
    return one.by.partition(",")[0].partition(" (")[0].removeprefix("the ")


def where(row: Weights, *, look: bool = True) -> str:
    """Where the weights are, or could be had from, in a word.

    Args:
        look: into the local store; else only what ships with the package counts as here.
    """
    if row.file:
        return "embedded"
    if look and find_local(row) is not None:
        return "here"
    if row.hub_pinned or row.url.startswith("hf-hub:"):
        return "Hub"
    return "Drive" if urlsplit(row.url).hostname == "drive.google.com" else "web"
