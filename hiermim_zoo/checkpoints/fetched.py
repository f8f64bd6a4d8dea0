"""What was first fetched from an address of whose file no full digest is known: from then on it has to be the same."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from .atomic import replacing, sweep
from .configs import read_json
from .download import DownloadError
from .refused import CannotWrite
from .store import writable_store

FILE = "fetched.json"  # in the user's store: address -> sha256, bytes

_logger = logging.getLogger(__name__)


def confirm(address: str, sha256: str, size: int, *, pinned: bool = False, cache_dir: str | Path | None = None) -> None:
    """Compare what came from an address with what came first; the first time it is recorded.

    Args:
        address: http(s), or "hf-hub:ORG/NAME[@REVISION]".
        sha256: of what came.
        size: its bytes.
        pinned: the user named this digest; it replaces the one recorded.
        cache_dir: instead of the user's cache.

    Raises:
        DownloadError: it differs, or the record cannot be read. The message says what to do.
    """
    try:
        path = writable_store(cache_dir) / FILE
        with WeakFileLock(path.with_name(f"{FILE}.lock")):
            _compare_or_record(path, address, {"sha256": sha256, "bytes": size}, pinned)
    except CannotWrite as error:  # no reason to do without the weights
        _logger.warning("the digest of %s is not recorded: %s", address, error)
    except DownloadError:
        raise
    except OSError as error:  # likewise
        _logger.warning("the digest of %s is not recorded: %s", address, error.strerror or error)


def _compare_or_record(path: Path, address: str, found: dict[str, str | int], pinned: bool) -> None:
    try:
        record = read_json(path) if path.is_file() else {}
        first = record.get(address, found)["sha256"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DownloadError(f"{path} is damaged; remove it, and all digests are recorded anew") from error
    if first != found["sha256"] and not pinned:
        raise DownloadError(
            f"{address} has changed: sha256 is {found['sha256']}, when it was first fetched it was {first}; if you "
            f"know that the new file is right, add --sha256 {found['sha256']} to python -m hiermim_zoo.convert"
        )
    if record.get(address) != found:
        sweep(path)
        with replacing(path) as part:
            part.write_text(json.dumps({**record, address: found}, indent=2) + "\n", encoding="utf-8")
