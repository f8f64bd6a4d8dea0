"""Every consumer with every family; writes the table of docs/neighbours.md.

    python -m tests.neighbours [--write] [--only PATTERN]

Ends with code 1 where something works that was said not to, or the other way round.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hiermim_zoo  # noqa: F401

from .consumers import CHECKS, PEERS, SMALL
from .known import KNOWN

PAGE = Path(__file__).parents[2] / "docs" / "neighbours.md"
LIMIT, SHORT = 150, 30  # seconds for a try; the second of what is said not to work, and of timm's own models
MARKS = ("<!-- neighbours: made by make neighbours -->", "<!-- end of neighbours -->")


def version(package: str) -> str:
    for dist in importlib.metadata.packages_distributions().get(package, [package]):
        try:
            return importlib.metadata.version(dist)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


class OutOfTimeError(BaseException):
    """No Exception: what a consumer catches of itself is not to catch it."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise OutOfTimeError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(title: str, name: str) -> str:
    """Empty where it works, else what was said."""
    try:
        with at_most(SHORT if name in PEERS or known(title, name) else LIMIT):
            CHECKS[title].check(name)
    except (Exception, OutOfTimeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return ""


def known(title: str, name: str) -> str:
    """Why it does not work, as the page says; empty where it should."""
    return next((why for (a, b), why in KNOWN.items() if re.search(a, title) and re.fullmatch(b, name)), "")


class Row(NamedTuple):
    cells: list[str]
    wrong: int  # against what is said


def run(title: str, notes: list[str]) -> Row:
    """Try a consumer with every model; ``notes`` are added to."""
    cells, wrong = [], 0
    for name in [*SMALL, *PEERS]:
        if name in PEERS and CHECKS[title].own:
            cells.append("-")
            continue
        began = time.monotonic()
        said = outcome(title, name)
        reason = said if name in PEERS else known(title, name)
        wrong += bool(said) != bool(reason)
        word = "BROKEN" if said and not reason else "works, against what is said" if reason and not said else "as said"
        print(f"{title} | {name}: {word}: {said or 'works'} ({time.monotonic() - began:.0f} s)", flush=True)
        if reason and name in SMALL and reason not in notes:
            notes.append(reason)
        cells.append("yes" if not reason else "no" if name in PEERS else f"no ({notes.index(reason) + 1})")
    return Row(cells, wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/neighbours.md")
    parser.add_argument("--only", default="", metavar="PATTERN", help="consumers whose name matches this pattern")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    names = " | ".join(f"`{name}`" for name in [*SMALL, *PEERS])
    lines, wrong, notes, began = [f"| consumer | tried with | {names} |"], 0, [], time.monotonic()
    lines.append("|" + " --- |" * (2 + len(SMALL) + len(PEERS)))
    for title in (title for title in CHECKS if re.search(args.only, title)):
        needs = CHECKS[title].needs
        missing = [package for package in needs if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{title}: left out, {', '.join(missing)} is not installed", flush=True)
            continue
        used = ", ".join(f"{package} {version(package)}" for package in needs) or f"torch {version('torch')}"
        row = run(title, notes)
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
