"""Weights of a tag of the manifest: found in the local store or on the Hub, else fetched from their origin and
converted.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from ..checkpoints import store
from ..checkpoints.files import Checkpoint, read_checkpoint
from ..checkpoints.folder import MODEL_FILE, write_folder
from ..checkpoints.manifest import Weights
from .conversion import Wanted, convert


def locate(row: Weights, cache_dir: str | Path | None = None) -> Path:
    """The file with the weights of a tag, fetched and converted if need be.

    Args:
        row: of the manifest.
        cache_dir: instead of the Hub's own cache and the user's.

    Raises:
        hiermim_zoo.checkpoints.store.WeightsNotFound: naming every place tried and what to do.
    """
    path = store.find_local(row, cache_dir)
    if path is not None:
        return path
    tried = [f"local store {', '.join(map(str, store.folders(cache_dir)))} (not there)"]
    places = ((f"Hub repository {row.hub}", store.fetch_hub), (f"origin {row.url or '(none)'}", _from_origin))
    for place, fetch in places:
        try:
            return fetch(row, cache_dir)
        except (OSError, ValueError) as error:
            tried.append(f"{place} ({store.first_line(error)})")
    raise store.WeightsNotFound(
        f"the weights {row.name} were not found. Tried: {'; '.join(tried)}. "
        f"Get the origin file by other means and put it into the local store with: "
        f"python -m hiermim_zoo.convert FILE --install {row.name}"
    )


def _from_origin(row: Weights, cache_dir: str | Path | None) -> Path:
    path = install(row, cache_dir) / MODEL_FILE
    store.show_license(row)
    return path


def install(row: Weights, cache_dir: str | Path | None = None) -> Path:
    """Fetch the origin file of a tag, verify it, convert it and put it into the local store.

    Processes that do so at the same time fetch it once: one downloads while the others wait. Nobody waits for a
    conversion; of several results that are equal the first one stays.

    Returns:
        The folder "arch.tag" in the local store.

    Raises:
        hiermim_zoo.checkpoints.download.DownloadError: it cannot be had.
        ValueError: it does not hold what the manifest says.
    """
    root = store.user_store(cache_dir)
    folder, lock = root / row.name, root / f"{row.name}.lock"
    root.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if (folder / MODEL_FILE).is_file():  # another process was faster
            return folder
        checkpoint = _read_origin(row, root / "downloads", cache_dir)
    try:
        contents = convert(checkpoint, row.arch, Wanted(layout=row.layout), row=row).contents()
        with WeakFileLock(lock):
            if not (folder / MODEL_FILE).is_file():
                write_folder(contents, folder)
    finally:  # also a file that turned out to be another one: kept, it would be taken for the right one next time
        with WeakFileLock(lock):
            _tidy(checkpoint.path, root / "downloads")
    return folder


def _read_origin(row: Weights, downloads: Path, cache_dir: str | Path | None) -> Checkpoint:
    """The origin file, downloaded unless another process just did."""
    raw = store.fetch_origin(row, downloads, cache_dir)
    try:
        return read_checkpoint(raw)
    except ValueError:
        _tidy(raw, downloads)
        raise


def _tidy(raw: Path, downloads: Path) -> None:
    """Remove a download; the Hub's cache is not ours to tidy."""
    if raw.parent == downloads:
        raw.unlink(missing_ok=True)
