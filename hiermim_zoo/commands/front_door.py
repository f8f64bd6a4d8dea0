"""Which commands there are, and whether this process was started as one of them.

``import hiermim_zoo`` registers models with timm and so imports torch. A process that was started as a command does so
later: the command reads its options first, and ``--help`` answers at once.
"""

from __future__ import annotations

import difflib
import os
import sys
from multiprocessing.process import parent_process

PACKAGE = __name__.partition(".")[0]
SCRIPT = "hiermim"  # the console script
VERBS = (
    "list", "doctor", "pretrain", "evaluate", "report", "extract", "features", "reconstruct", "convert", "publish",
    "mirror", "stats", "benchmark", "cards",
)  # fmt: skip


def started() -> str | None:
    """The module of this package that ``python -m`` is about to run; the package for the console script; else None.

    The processes that a command starts itself (a data loader's workers) are not started as commands.
    """
    if not sys.argv or parent_process() is not None:
        return None
    name, ending = os.path.splitext(os.path.basename(sys.argv[0]))
    if name == SCRIPT and ending in ("", ".exe"):
        return PACKAGE
    if sys.argv[0] != "-m":  # what it is while Python looks for the module that -m names
        return None
    words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    module = words[-1].removeprefix("-m")
    return module if module.partition(".")[0] == PACKAGE else None


def refuse_helper(module: str) -> None:
    """End a process that was started as a module which is no command.

    Raises:
        SystemExit: with exit code 2, after a line that says so.
    """
    if module not in (PACKAGE, f"{PACKAGE}.__main__", *(f"{PACKAGE}.{verb}" for verb in VERBS)):
        print(f"error: {module} is no command; {known(module.rpartition('.')[2])}", file=sys.stderr)
        sys.exit(2)


def known(near: str) -> str:
    """What commands there are, in a message: the one that comes ``near``, else all."""
    close = difflib.get_close_matches(near, VERBS, n=1)
    return f"did you mean {close[0]}?" if close else f"python -m {PACKAGE} lists the commands: {', '.join(VERBS)}"
