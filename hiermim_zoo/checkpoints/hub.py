"""Files from repositories of the Hugging Face Hub, by its own client, whose errors become one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .download import DownloadError
from .files import SUFFIXES
from .folder import MODEL_FILE
from .network import unreachable
from .shards import INDEX

HUB = "hf-hub:"
_ANSWER = 10  # seconds until the Hub says what it knows of a file


def split(address: str) -> tuple[str, str | None]:
    """Repository and revision of "hf-hub:ORG/NAME[@REVISION]"."""
    name, _, revision = address.removeprefix(HUB).partition("@")
    return name, revision or None


def endpoint() -> str:
    """The server that is asked."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask any server."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def cached(address: str, cache_dir: str | Path | None) -> Path | None:
    """model.safetensors of a repository, if the Hub's cache has it."""
    from huggingface_hub import try_to_load_from_cache

    name, revision = split(address)
    with hub_errors():
        found = try_to_load_from_cache(name, MODEL_FILE, cache_dir=cache_dir, revision=revision)
    return Path(found) if isinstance(found, str) else None


def forget(path: Path) -> None:
    """Take a file out of the Hub's cache, where a revision has a link to it."""
    file = path.resolve()
    path.unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def fetch_file(address: str, cache_dir: str | Path | None, *, sha256: str = "", size: int = 0) -> Path:
    """model.safetensors of a repository, into the Hub's cache. It is for the caller to check what came.

    Args:
        address: "hf-hub:ORG/NAME[@REVISION]".
        cache_dir: instead of the Hub's own cache.
        sha256: expected; a file that the Hub itself says to be another is not fetched.
        size: likewise, in bytes.

    Raises:
        DownloadError: it cannot be had.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    name, revision = split(address)
    with hub_errors():
        # Asked once: the download itself would ask again and again, for a minute, where a server only has an error.
        about = get_hf_file_metadata(hf_hub_url(name, MODEL_FILE, revision=revision), timeout=_ANSWER)
        if size and about.size not in (None, size):
            raise DownloadError(f"{address}: {MODEL_FILE} has {about.size} bytes instead of {size}")
        if sha256 and about.etag and len(about.etag) == len(sha256) and about.etag != sha256:  # of large files
            raise DownloadError(f"{address}: sha256 is {about.etag} instead of {sha256}: not the file that is meant")
        return Path(hf_hub_download(name, MODEL_FILE, revision=revision, cache_dir=cache_dir))


def fetch_beside(address: str, file: Path, names: Iterable[str], cache_dir: str | Path | None = None) -> None:
    """What a repository has beside a file of it that is in the Hub's cache, of the same commit; what it does not have
    is no error.

    Args:
        address: "hf-hub:ORG/NAME[@REVISION]".
        file: in the cache, in the folder of its commit.
        names: of the other files.
        cache_dir: instead of the Hub's own cache.

    Raises:
        DownloadError: one cannot be had.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, commit = split(address)[0], file.parent.name
    for wanted in names:
        if try_to_load_from_cache(name, wanted, cache_dir=cache_dir, revision=commit) is None:  # neither yes nor no
            with hub_errors():
                try:
                    hf_hub_download(name, wanted, revision=commit, cache_dir=cache_dir)
                except LocalEntryNotFoundError:  # nobody could be asked
                    raise
                except EntryNotFoundError:
                    pass


def fetch_repository(address: str) -> Path:
    """The folder with the checkpoints and the configuration of a repository.

    Raises:
        DownloadError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    name, revision = split(address)
    suffixes = [".pth.tar" if suffix == ".tar" else suffix for suffix in (*SUFFIXES, INDEX)]  # others hold data
    wanted = [*(f"*{suffix}" for suffix in suffixes), "config.json"]
    closed = "" if offline() else unreachable([endpoint()]).get(endpoint(), "")
    try:
        with hub_errors():
            found = snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=bool(closed))
            return Path(str(found))
    except DownloadError as error:
        raise DownloadError(f"{address}: {closed or error}") from error


@contextmanager
def hub_errors() -> Iterator[None]:
    """What the Hub's client raises, as DownloadError; what it logs of its attempts is left out.

    Its HTTP errors derive from the base class of the HTTP client that it uses, and a broken transfer is not an OSError
    in every version.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import logging

    http_error: Any = HfHubHTTPError.__bases__[0]
    loudness = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except DownloadError:
        raise
    except (OSError, HFValidationError, http_error) as error:
        raise DownloadError(first_line(error)) from error
    finally:
        logging.set_verbosity(loudness)


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
