"""The local store: a list of folders, which are $HIERMIM_WEIGHTS, the user's cache, and the weights that ship with the
package. In each of them a tag is either a folder "arch.tag" as the convert command writes it, or a file
"arch.tag.safetensors".
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from .manifest import MODEL_FILE, Weights, weights_dir
from .refused import CannotWrite

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WeightsNotFound(OSError):
    """No place had the weights; the message says what to do, then lists the places."""


def folders(cache_dir: str | Path | None) -> list[Path]:
    """The folders of the local store, in the order in which they are searched; new weights go into the first."""
    return [*_own(cache_dir), weights_dir()]


def _own(cache_dir: str | Path | None) -> list[Path]:
    """Those that are not of the package; none where neither the environment nor the system knows a home."""
    chosen = os.environ.get("HIERMIM_WEIGHTS")
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    roots = [Path(chosen)] if chosen else []
    roots += [Path(cache_dir) / "hiermim_zoo"] if cache_dir is not None else []
    found = (os.path.expanduser(root) for root in (*roots, Path(user_cache) / "hiermim_zoo"))
    return [Path(root) for root in found if not root.startswith("~")]


def user_store(cache_dir: str | Path | None = None) -> Path:
    """The folder that new weights are put into: $HIERMIM_WEIGHTS, else ``cache_dir``, else the user's cache.

    Raises:
        CannotWrite: there is none.
    """
    own = _own(cache_dir)
    if not own:
        raise CannotWrite("no home folder is known, so there is no cache: set HIERMIM_WEIGHTS to a folder for weights")
    return own[0]


def writable_store(cache_dir: str | Path | None = None) -> Path:
    """:func:`user_store`, which exists then.

    Raises:
        CannotWrite: nothing can be written there; says what to set.
    """
    root = user_store(cache_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError as error:
        raise not_written(root, error) from error


def not_written(path: Path, error: OSError) -> CannotWrite:
    """What is said of a file or folder of the store that could not be written."""
    where = "a folder on a disk with more room" if error.errno in FULL else "a folder that can be written"
    room = "make room, or " if error.errno in FULL else ""
    reason = error.strerror or str(error)
    return CannotWrite(f"weights cannot be put into {path} ({reason}): {room}set HIERMIM_WEIGHTS to {where}")


def find_local(row: Weights, cache_dir: str | Path | None = None) -> Path | None:
    """The file with the weights in the local store, or None."""
    for root in folders(cache_dir):
        for path in (root / row.name / MODEL_FILE, root / f"{row.name}.safetensors"):
            if os.path.isfile(path):  # also False where nobody may look, as into the home of another
                return path
    return None
