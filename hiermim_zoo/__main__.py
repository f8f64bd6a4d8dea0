"""The commands, a line each: python -m hiermim_zoo, or hiermim."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from .commands.front_door import PACKAGE, SCRIPT, VERBS, known
from .commands.options import run_command
from .version import __version__


def main(argv: Sequence[str] | None = None) -> Any:
    """List the commands, or run the one that is named first.

    Raises:
        ValueError: there is no such command, or it was given bad input.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    first, rest = words[0], words[1:]
    if first in ("-h", "--help"):
        print(overview())
        return None
    if first == "--version":
        print(__version__)
        return None
    if first not in VERBS:
        raise ValueError(f"{first} is no command; {known(first)}")
    return importlib.import_module(f"{PACKAGE}.{first}").main(rest)


def overview() -> str:
    """All commands in one page."""
    width = max(map(len, VERBS))
    return "\n".join(
        [
            "Hierarchical vision transformers for masked image modelling, as a plug-in for timm.",
            "",
            f"usage: python -m {PACKAGE} COMMAND ... (or {SCRIPT} COMMAND ...)",
            "",
            *(f"  {name:{width}}  {summary(name)}" for name in VERBS),
            "",
            f"python -m {PACKAGE} COMMAND --help shows the options of a command;",
            "with --model NAME also the values of the model's family.",
        ]
    )


def summary(name: str) -> str:
    """What a command does, in one line."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    return (module.__doc__ or "").strip().partition("\n")[0]


def script() -> None:
    """The console script."""
    run_command(main)


if __name__ == "__main__":
    script()
