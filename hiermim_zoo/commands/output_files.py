"""A file that a command writes at its end is refused at its beginning if it cannot be written."""

from __future__ import annotations

import os
from pathlib import Path


def check_writable(file: Path, called: str) -> None:
    """Refuse a file before any work is done.

    Args:
        called: what messages call it.

    Raises:
        ValueError: it cannot be written.
    """
    folder = file.absolute().parent
    if str(file) == "-":
        why = "- is the name of no file; what is printed is on stdout anyway"
    elif file.is_dir():
        why = "a folder"
    elif not folder.is_dir():
        why = "no such folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        why = "no permission"
    else:
        return
    raise ValueError(f"{called} cannot be written: {why}")
