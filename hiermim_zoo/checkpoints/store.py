"""The local store: a list of folders, which are $HIERMIM_WEIGHTS, the user's cache, and the weights that ship with the
package. In each of them a tag is either a folder "arch.tag" as the convert command writes it, or a file
"arch.tag.safetensors".
"""

from __future__ import annotations

import os
from pathlib import Path

from .manifest import MODEL_FILE, Weights, weights_dir


class WeightsNotFound(OSError):
    """No place had the weights; the message says what to do, then lists the places."""


def folders(cache_dir: str | Path | None) -> list[Path]:
    """The folders of the local store, in the order in which they are searched; new weights go into the first."""
    chosen = os.environ.get("HIERMIM_WEIGHTS")
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    roots = [Path(chosen)] if chosen else []
    roots += [Path(cache_dir) / "hiermim_zoo"] if cache_dir is not None else []
    return [root.expanduser() for root in (*roots, user_cache / "hiermim_zoo", weights_dir())]


def user_store(cache_dir: str | Path | None = None) -> Path:
    """The folder that new weights are put into: $HIERMIM_WEIGHTS, else ``cache_dir``, else the user's cache."""
    return folders(cache_dir)[0]


def find_local(row: Weights, cache_dir: str | Path | None = None) -> Path | None:
    """The file with the weights in the local store, or None."""
    for root in folders(cache_dir):
        for path in (root / row.name / MODEL_FILE, root / f"{row.name}.safetensors"):
            if path.is_file():
                return path
    return None
