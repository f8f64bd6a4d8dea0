"""Every consumer with every family; writes the table of docs/neighbours.md.

    python -m tests.neighbours [--write] [--only PATTERN]

Ends with code 1 where something works that was said not to, or the other way round.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import multiprocessing
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .consumers import CHECKS, PEERS, SMALL
from .tries import Outcome, known, outcome

ALL = [*SMALL, *PEERS]
PAGE = Path(__file__).parents[2] / "docs" / "neighbours.md"
MARKS = ("<!-- neighbours: made by make neighbours -->", "<!-- end of neighbours -->")


def version(package: str) -> str:
    for dist in importlib.metadata.packages_distributions().get(package, [package]):
        try:
            return importlib.metadata.version(dist)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


class Row(NamedTuple):
    cells: list[str]
    wrong: int  # against what is said


def is_missing(title: str) -> list[str]:
    """Packages."""
    return [package for package in CHECKS[title].needs if importlib.util.find_spec(package) is None]


def row_of(title: str, tries: Mapping[str, Future[Outcome]], notes: list[str]) -> Row:
    """What the tries of a consumer came to; ``notes`` are added to."""
    cells, wrong = [], 0
    for name in ALL:
        if name not in tries:
            cells.append("-")
            continue
        said, seconds = tries[name].result()
        reason = said if name in PEERS else known(title, name)
        wrong += bool(said) != bool(reason)
        word = "BROKEN" if said and not reason else "works, against what is said" if reason and not said else "as said"
        print(f"{title} | {name}: {word}: {said or 'works'} ({seconds:.0f} s)", flush=True)
        if reason and name in SMALL and reason not in notes:
            notes.append(reason)
        cells.append("yes" if not reason else "no" if name in PEERS else f"no ({notes.index(reason) + 1})")
    return Row(cells, wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/neighbours.md")
    parser.add_argument("--only", default="", metavar="PATTERN", help="consumers whose name matches this pattern")
    args = parser.parse_args()
    names = " | ".join(f"`{name}`" for name in ALL)
    lines, wrong, notes, began = [f"| consumer | tried with | {names} |"], 0, [], time.monotonic()
    lines.append("|" + " --- |" * (2 + len(SMALL) + len(PEERS)))
    asked = [title for title in CHECKS if re.search(args.only, title)]
    for title in asked:
        if is_missing(title):
            print(f"{title}: left out, {', '.join(is_missing(title))} is not installed", flush=True)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        tries: dict[str, dict[str, Future[Outcome]]] = {
            title: {name: pool.submit(outcome, title, name) for name in (SMALL if CHECKS[title].own else ALL)}
            for title in asked
            if not is_missing(title)
        }
        for title, of_models in tries.items():
            needs = CHECKS[title].needs
            used = ", ".join(f"{package} {version(package)}" for package in needs) or f"torch {version('torch')}"
            row = row_of(title, of_models, notes)
            lines.append(f"| {title} | {used} | {' | '.join(row.cells)} |")
            wrong += row.wrong
    lines += ["", *(f"{i}. {n}" for i, n in enumerate(notes, 1))]
    if args.write and not wrong and not args.only:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        PAGE.write_text("\n".join([f"{before}{MARKS[0]}", *lines, f"{MARKS[1]}{after}"]), encoding="utf-8")
    print(f"{wrong} against what is said" if wrong else "all as is said", f"({time.monotonic() - began:.0f} s)")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
