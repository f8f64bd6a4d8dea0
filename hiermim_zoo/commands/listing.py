"""``list``: weights as a table, or as records."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Collection, Sequence

from ..checkpoints.catalogue import (
    chosen,
    license_of,
    matching,
    measured_by,
    millions,
    record,
    size_of,
    use_of,
    where,
)
from ..checkpoints.manifest import Weights, parameters, records
from .options import Outcome
from .options.listing import ListOptions
from .options.problems import BadOptions

HEADS = ("weights", "params", "size", "licence", "use", "top-1", "crop", "by", "from")
TO_THE_RIGHT = ("params", "size", "top-1", "crop")
LEGEND = (
    "size: of the file; ~: of the parameters in float32, where the size of the file is not known.",
    "use: whether the licence allows commercial use; ask: it is not clear, the authors know.",
    "top-1 in percent; crop: the part of the shorter side that is seen; -: none, or not stated.",
    "from: embedded or here (nothing is fetched), or the Hub, Google Drive or the authors' own server (web).",
)
OF_TIMM = (
    "vit_*: timm.create_model knows no such tags of its own models; they are names for the commands. For timm:",
    '  python -m hiermim_zoo.convert NAME -o DIR, then timm.create_model("local-dir:DIR", pretrained=True).',
    "  Those without classes: also hiermim_zoo.create_mae(NAME, pretrained=True).",
)


def list_weights(options: ListOptions) -> Outcome:
    """The result is a list of records (see ``catalogue.record``), in the order of the manifest.

    Raises:
        ValueError: a pattern, a family or a licence fits no weights at all.
    """
    check_names(options)
    rows = chosen(
        family=options.family,
        license=options.license,
        commercial=True if options.commercial else None,
        here=True if options.here else None,
    )
    if options.patterns:
        wanted = {row.name for pattern in options.patterns for row in matching(rows, pattern)}
        rows = [row for row in rows if row.name in wanted]
    if options.size:
        low, high = options.size
        rows = [row for row in rows if low <= parameters().get(row.name, 0) / 1e6 <= high]
    if not rows:
        total = f"without options there are {len(records())}: {families('*')}"
        print(f"no weights fit all of this; {total}", file=sys.stderr)
    found = [record(row) for row in rows]
    return Outcome(found, json.dumps(found, indent=2) if options.json else table(rows))


def check_names(options: ListOptions) -> None:
    """Refuse what can only be a slip of the pen.

    Raises:
        ValueError: a line for each name that fits nothing, with those that come near.
    """
    rows = records().values()
    names = [*dict.fromkeys(row.arch for row in rows), *records()]
    lines = [
        f"PATTERN {pattern} fits no weights; {near(pattern, names)}"
        for pattern in options.patterns or ()
        if not matching(rows, pattern)
    ]
    if options.family and not chosen(family=options.family):
        lines.append(f"--family {options.family}: no weights are of it; there are {families()}")
    if options.license and not chosen(license=options.license):
        there = ", ".join(sorted({row.license for row in rows}))
        lines.append(f"--license {options.license}: no weights have it; there are {there}")
    if lines:
        raise BadOptions(lines)


def near(pattern: str, names: Collection[str]) -> str:
    """Which names somebody may have meant."""
    begin = pattern.rstrip("*")
    close = [name for name in names if begin and name.startswith(begin)][:3]
    close = close or difflib.get_close_matches(pattern, names, n=3)
    return (
        f"near it are {', '.join(close)}"
        if close
        else f"there are {families('*')}; python -m hiermim_zoo.list shows all"
    )


def families(end: str = "") -> str:
    """All families that have weights; with "*" as patterns."""
    return ", ".join(dict.fromkeys(f"{row.family}{end}" for row in records().values()))


def table(rows: Sequence[Weights]) -> str:
    """Columns as wide as what stands in them, then what they mean."""
    cells = [HEADS, *map(line, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADS))]
    lines = [
        "  ".join(
            text.rjust(width) if head in TO_THE_RIGHT else text.ljust(width)
            for head, text, width in zip(HEADS, row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
    legend = [*LEGEND, *(OF_TIMM if any(row.timm for row in rows) else ())]
    return "\n".join([*lines, *(["", *legend] if rows else [])])


def line(row: Weights) -> tuple[str, ...]:
    counted = parameters().get(row.name)
    first = row.accuracies[0] if row.accuracies else None
    measured = ("-", "-", "-")
    if first:
        measured = (f"{first.top1:g}", "-" if first.crop is None else f"{first.crop:g}", measured_by(first))
    return (row.name, millions(counted), size_of(row, counted), license_of(row), use_of(row), *measured, where(row))
