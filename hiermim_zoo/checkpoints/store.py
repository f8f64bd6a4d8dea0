"""Where weights are: the local store, the Hub, their origin.

The local store is a list of folders: $HIERMIM_WEIGHTS, the user's cache, and the weights that ship with the package. In
each of them a tag is either a folder "arch.tag" as the convert command writes it, or a file "arch.tag.safetensors".
Looking into it needs no torch, so only what fetches imports what reads files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .licenses import UNSTATED, commercial_use
from .manifest import MODEL_FILE, Weights, weights_dir

HUB = "hf-hub:"

_logger = logging.getLogger(__name__)


class WeightsNotFound(OSError):
    """No place had the weights; the message lists the places and the command that helps."""


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


def fetch_origin(row: Weights, folder: Path, cache_dir: str | Path | None = None) -> Path:
    """Download the origin file of a tag, verified as far as the manifest knows it.

    Args:
        row: its origin is an address, or a repository of the Hub ("hf-hub:ORG/NAME").
        folder: where a file from an address goes; one from the Hub goes into the Hub's cache.
        cache_dir: instead of the Hub's own cache.

    Raises:
        DownloadError: it cannot be had, or is another file.
    """
    from .download import DownloadError, download

    if not row.url:
        raise DownloadError("the manifest names no origin")
    if row.url.startswith(HUB):
        return _from_repository(row, cache_dir)
    if _offline():
        raise DownloadError("offline mode, HF_HUB_OFFLINE is set")
    suffix = Path(urlsplit(row.url).path).suffix or ".pth"
    target = folder / f"{row.name}{suffix}"
    if not target.is_file():  # else another process just downloaded and verified it
        download(row.url, target, sha256=row.sha256, size=row.bytes)
    return target


def _from_repository(row: Weights, cache_dir: str | Path | None) -> Path:
    """The one file of another repository that a tag is made from."""
    from huggingface_hub import hf_hub_download

    from .download import DownloadError
    from .files import sha256_of

    with hub_errors():
        path = Path(hf_hub_download(row.url.removeprefix(HUB), MODEL_FILE, cache_dir=cache_dir))
    if row.sha256 and (digest := sha256_of(path)) != row.sha256:
        raise DownloadError(
            f"{row.url}: sha256 is {digest} instead of {row.sha256}: not the file that the manifest means"
        )
    return path


def fetch_repository(name: str, revision: str | None) -> Path:
    """The folder with the checkpoints and the configuration of a repository of the Hub.

    Raises:
        DownloadError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    from .files import SUFFIXES
    from .shards import INDEX

    suffixes = [".pth.tar" if suffix == ".tar" else suffix for suffix in (*SUFFIXES, INDEX)]  # others hold data
    wanted = [*(f"*{suffix}" for suffix in suffixes), "config.json"]
    with hub_errors():
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


@contextmanager
def hub_errors() -> Iterator[None]:
    """What the Hub's client raises, as DownloadError.

    Its HTTP errors derive from the base class of the HTTP client that it uses, and a broken transfer is not an OSError
    in every version.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from .download import DownloadError

    http_error: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except (OSError, HFValidationError, http_error) as error:
        raise DownloadError(first_line(error)) from error


def fetch_hub(row: Weights, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    known = isinstance(try_to_load_from_cache(row.hub, MODEL_FILE, cache_dir=cache_dir), str)
    with hub_errors():
        path = Path(hf_hub_download(row.hub, MODEL_FILE, cache_dir=cache_dir))
    if not known:
        show_license(row)
    return path


def show_license(row: Weights) -> None:
    """Say it once, when weights that are not plainly free are first fetched."""
    if row.license == UNSTATED:
        _logger.warning("%s: the authors state no licence for these weights; ask them before commercial use", row.name)
    elif commercial_use(row.license) is False:
        _logger.warning("%s: these weights are licensed %s, for non-commercial use only", row.name, row.license)


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
