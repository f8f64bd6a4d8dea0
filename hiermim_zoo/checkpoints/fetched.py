"""What was first taken from an address of whose file no full digest is known: from then on it has to be the same."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock

from .atomic import replacing, sweep
from .configs import read_json
from .download import DownloadError
from .refused import CannotWrite
from .store import user_store, writable_store

FILE = "fetched.json"  # in the user's store: address -> sha256, bytes

_logger = logging.getLogger(__name__)


def compare(address: str, sha256: str, cache_dir: str | Path | None = None) -> None:
    """Compare what came from an address with what was taken from it first; nothing is written.

    Args:
        address: http(s), or "hf-hub:ORG/NAME[@REVISION]".
        sha256: of what came.
        cache_dir: instead of the user's cache.

    Raises:
        DownloadError: it differs, or the record cannot be read. The message says what to do.
    """
    try:
        record = _read(user_store(cache_dir) / FILE)
    except OSError as error:
        if isinstance(error, DownloadError) and not isinstance(error, CannotWrite):
            raise
        return  # there is no cache, or none that can be read: ``confirm`` says so
    _compare(record, address, sha256)


def confirm(address: str, sha256: str, size: int, *, pinned: bool = False, cache_dir: str | Path | None = None) -> None:
    """Record what was taken from an address, if it is the first; else compare it.

    Only what turned out to be usable is taken: a file that is refused must not stand in the way of the right one.

    Args:
        address: http(s), or "hf-hub:ORG/NAME[@REVISION]".
        sha256: of what came.
        size: its bytes.
        pinned: the user named this digest; it replaces the one recorded.
        cache_dir: instead of the user's cache.

    Raises:
        DownloadError: see :func:`compare`.
    """
    try:
        path = writable_store(cache_dir) / FILE
        with WeakFileLock(path.with_name(f"{FILE}.lock")):
            record, found = _read(path), {"sha256": sha256, "bytes": size}
            if not pinned:
                _compare(record, address, sha256)
            if record.get(address) != found:
                sweep(path)
                with replacing(path) as part:
                    part.write_text(json.dumps({**record, address: found}, indent=2) + "\n", encoding="utf-8")
    except CannotWrite as error:  # no reason to do without the weights
        _logger.warning("the digest of %s is not recorded: %s", address, error)
    except DownloadError:
        raise
    except OSError as error:  # likewise
        _logger.warning("the digest of %s is not recorded: %s", address, error.strerror or error)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path) if os.path.isfile(path) else {}
        for one in record.values():
            one["sha256"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DownloadError(f"{path} is damaged; remove it, and all digests are recorded anew") from error
    return record


def _compare(record: Mapping[str, Any], address: str, sha256: str) -> None:
    first = record.get(address, {"sha256": sha256})["sha256"]
    if first != sha256:
        raise DownloadError(
            f"{address} has changed: sha256 is {sha256}, when it was first fetched it was {first}; if you "
            f"know that the new file is right, add --sha256 {sha256} to python -m hiermim_zoo.convert"
        )
