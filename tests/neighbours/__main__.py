"""Every consumer with every family; writes the table of docs/neighbours.md.

    python -m tests.neighbours [--write] [--only PATTERN]

Ends with code 1 where something works that was said not to, or the other way round.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import sys
import time
import warnings
from pathlib import Path

import hiermim_zoo  # noqa: F401

from .consumers import CHECKS, SMALL
from .known import KNOWN

PAGE = Path(__file__).parents[2] / "docs" / "neighbours.md"
MARKS = ("<!-- neighbours: made by make neighbours -->", "<!-- end of neighbours -->")


def version(package: str) -> str:
    for dist in importlib.metadata.packages_distributions().get(package, [package]):
        try:
            return importlib.metadata.version(dist)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def outcome(title: str, name: str) -> str:
    """Empty where it works, else what was said."""
    try:
        CHECKS[title][1](name)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300] or type(error).__name__
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/neighbours.md")
    parser.add_argument("--only", default="", metavar="PATTERN", help="consumers whose name matches this pattern")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, wrong, notes = [], 0, []
    for title, (needs, _) in CHECKS.items():
        if not re.search(args.only, title):
            continue
        missing = [package for package in needs if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{title}: left out, {', '.join(missing)} is not installed", flush=True)
            continue
        used = ", ".join(f"{package} {version(package)}" for package in needs) or f"torch {version('torch')}"
        cells = []
        for name in SMALL:
            began = time.monotonic()
            said = outcome(title, name)
            reason = next((why for (a, b), why in KNOWN.items() if re.search(a, title) and re.fullmatch(b, name)), "")
            wrong += bool(said) != bool(reason)
            word = "works" if not said else "does not" if reason else "BROKEN"
            if bool(reason) and not said:
                word = "works, against what is said"
            print(f"{title} | {name}: {word} {said} ({time.monotonic() - began:.0f} s)", flush=True)
            if reason and reason not in notes:
                notes.append(reason)
            cells.append("yes" if not reason else f"no ({notes.index(reason) + 1})")
        rows.append(f"| {title} | {used} | {' | '.join(cells)} |")
    head = f"| consumer | tried with | {' | '.join(f'`{name}`' for name in SMALL)} |"
    table = "\n".join(
        [head, "|" + " --- |" * (2 + len(SMALL)), *rows, "", *(f"{i}. {n}" for i, n in enumerate(notes, 1))]
    )
    if args.write and not wrong and not args.only:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        PAGE.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")
    print(f"{wrong} against what is said" if wrong else "all as is said")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
