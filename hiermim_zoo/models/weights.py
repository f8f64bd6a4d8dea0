"""Weights of a tag of the manifest: found in the local store, else fetched from the first place that has them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock

from ..checkpoints import hub, manifest, mirrors, places, store
from ..checkpoints.download import DownloadError
from ..checkpoints.files import read_checkpoint, sha256_of
from ..checkpoints.folder import (
    CONFIG_FILE,
    DECODER_FILE,
    MODEL_FILE,
    Contents,
    move_into,
    remove_parts,
    write_folder,
)
from ..checkpoints.layouts import find_layout
from ..checkpoints.licenses import commercial_use
from ..checkpoints.manifest import Weights
from ..checkpoints.places import Place
from ..checkpoints.refused import CannotWrite
from .conversion import Converted, Wanted, convert

DOWNLOADS = "downloads"  # folder in the store
BESIDE = (CONFIG_FILE, DECODER_FILE)  # what a folder of timm's architectures has beside the weights

# Makes one model of the encoder and the decoder of a conversion. The room above has it: mae.py says so here.
assemble: Callable[[Converted], Any] | None = None

_logger = logging.getLogger(__name__)


def locate(row: Weights, cache_dir: str | Path | None = None) -> Path:
    """The file with the weights of a tag, fetched and converted if need be.

    Args:
        row: of the manifest.
        cache_dir: instead of the Hub's own cache and the user's.

    Raises:
        hiermim_zoo.checkpoints.store.WeightsNotFound: what to do, and every place asked.
    """
    path = store.find_local(row, cache_dir)
    if path is not None:
        return path
    found = places_of(row)
    closed = places.closed(found, cache_dir)
    tried = []
    for place in found:
        try:
            if place.address in closed:
                raise DownloadError(closed[place.address])
            return _ready(row, place, cache_dir) if place.ready else install(row, cache_dir, place) / MODEL_FILE
        except CannotWrite as error:  # wherever it comes from
            raise store.WeightsNotFound(f"{row.name}: {error}") from error
        except (OSError, ValueError) as error:
            tried.append(f"{place.address} ({hub.first_line(error).removeprefix(f'{place.address}: ')})")
    raise store.WeightsNotFound(_advice(row, found, closed) + _search(row, tried, cache_dir))


def places_of(row: Weights) -> list[Place]:
    """All places outside the local store that have the weights of a tag, in the order in which they are asked.

    Raises:
        ValueError: $HIERMIM_MIRROR names nothing that can be a mirror.
    """
    return [*mirrors.mirrored(row), *places.places(row)]


def _advice(row: Weights, found: Sequence[Place], closed: Mapping[str, str]) -> str:
    """What to do, as a line."""
    if not found:  # weights that ship with the package
        first = "Install hiermim-zoo again"
    elif hub.offline():
        mirror = f"Name a mirror that has them in {mirrors.VARIABLE}, unset" if mirrors.mirrored(row) else "Unset"
        first = f"{mirror} HF_HUB_OFFLINE"
    else:
        away = [place for place in found if not place.local]
        first = "Connect to the internet" if len(closed) == len(away) > 0 else "Try again later"
    return f"{first}, or get the file by other means: python -m hiermim_zoo.convert FILE --install {row.name}\n"


def _search(row: Weights, tried: Sequence[str], cache_dir: str | Path | None) -> str:
    """Where the weights were looked for, as two lines."""
    folders = ", ".join(map(str, store.folders(cache_dir)))
    return (
        f"The weights {row.name} are in none of {folders} (HIERMIM_WEIGHTS names another folder)\n"
        f"Asked: {'; '.join(tried) or 'nobody'}"
    )


def _ready(row: Weights, place: Place, cache_dir: str | Path | None) -> Path:
    """A file that timm can load as it is: of the Hub in its cache, of a bundle in the local store."""
    if not place.on_hub:
        return _from_bundle(row, place, cache_dir)
    here = hub.cached(place.address, cache_dir)
    fetched = places.fetch(place, store.user_store(cache_dir) / row.name, cache_dir)
    if here is None:
        try:
            if not place.digests:
                converted = convert(read_checkpoint(fetched.path), row.arch, Wanted(), source=place.address, row=row)
                _try(row, place, converted)
        except ValueError:
            hub.forget(fetched.path)  # else it would be taken as it is next time
            raise
    places.accept(place, fetched, cache_dir=cache_dir)
    if row.timm:
        hub.fetch_beside(place.address, fetched.path, BESIDE, cache_dir)
    if here is None:
        _say(row, place, fetched.bytes, fetched.sha256)
    return fetched.path


def _from_bundle(row: Weights, place: Place, cache_dir: str | Path | None) -> Path:
    """The folder of a tag as the bundle has it; half of one waits among the downloads."""
    root = store.writable_store(cache_dir)
    part = root / DOWNLOADS / f"{row.name}.bundle"
    with _locked(root, row):
        path = store.find_local(row, cache_dir)
        if path is None:  # else another process was faster
            try:
                mirrors.fetch(place, row, part)
            finally:
                with suppress(OSError):  # what came waits for the next call
                    part.rmdir()
            path = root / row.name / MODEL_FILE
            if path.parent.exists():  # without the weights, as somebody may have left it
                move_into(path.parent, part)
            else:
                part.rename(path.parent)
            _say(row, place, path.stat().st_size, sha256_of(path))
            _clear(root, row)
    return path


def install(row: Weights, cache_dir: str | Path | None = None, place: Place | None = None) -> Path:
    """Fetch the origin file of a tag, verify it, convert it and put it into the local store.

    Processes that do so at the same time fetch it once: one downloads while the others wait. Nobody waits for a
    conversion; of several results that are equal the first one stays.

    Args:
        row: of the manifest.
        cache_dir: instead of the Hub's own cache and the user's.
        place: one of the tag's origins; default: the first.

    Returns:
        The folder "arch.tag" in the local store.

    Raises:
        hiermim_zoo.checkpoints.download.DownloadError: it cannot be had.
        ValueError: it does not hold what the manifest says.
    """
    place = place or places.origins(row)[0]
    root = store.writable_store(cache_dir)
    folder = root / row.name
    with _locked(root, row):
        if (folder / MODEL_FILE).is_file():  # another process was faster
            return folder
        fetched = places.fetch(place, root / DOWNLOADS / row.name, cache_dir)
        try:
            checkpoint = read_checkpoint(fetched.path)
        except ValueError:
            _clear(root, row)
            raise
    try:
        wanted = Wanted(layout=row.layout, decoder=keeps_decoder(row))
        converted = convert(checkpoint, row.arch, wanted, source=place.address, row=row)
        if not place.digests:
            _try(row, place, converted)
        contents = converted.contents()
        places.accept(place, fetched, cache_dir=cache_dir)
    except BaseException:  # also a file that turned out to be another one: kept, it would be taken for the right one
        with _locked(root, row):
            _clear(root, row)
        raise
    if put(contents, row, cache_dir):
        _say(row, place, fetched.bytes, fetched.sha256)
    return folder


def _try(row: Weights, place: Place, converted: Converted) -> None:
    """Refuse weights from a place of whose file no digest is known, if a model with them does not do what it is for.

    Raises:
        ValueError: what was found, and how to take them all the same.
    """
    from .plausible import tried  # with it comes Pillow, of which most have no need

    model = assemble(converted) if assemble and converted.native.decoder else converted.model
    trial = tried(model, photographic=bool(row.accuracies))  # one that nobody measured need not do anything
    if trial.plausible is False:
        raise ValueError(
            f"the weights are implausible: {trial.words}; to take them all the same: python -m hiermim_zoo.convert "
            f"{place.address} --install {row.name}"
        )


def put(contents: Contents, row: Weights, cache_dir: str | Path | None = None, *, force: bool = False) -> bool:
    """Write a model into the folder of a tag in the local store, unless it is there.

    What was downloaded goes first: whoever is killed in between leaves nothing that nobody would look at again.

    Args:
        force: replace one that is there.

    Returns:
        Whether it was written.

    Raises:
        hiermim_zoo.checkpoints.refused.CannotWrite: the disk does not take it.
        ValueError: the model cannot be written, see :func:`hiermim_zoo.checkpoints.folder.write_folder`.
    """
    root = store.writable_store(cache_dir)
    folder = root / row.name
    with _locked(root, row):
        _clear(root, row)
        if (folder / MODEL_FILE).is_file() and not force:
            return False
        try:
            remove_parts(folder)
            write_folder(contents, folder, force)
        except OSError as error:
            raise store.not_written(folder, error) from error
    return True


@contextmanager
def _locked(root: Path, row: Weights) -> Iterator[None]:
    """One process at a time writes what belongs to a tag; a lock of one that was killed is free."""
    with WeakFileLock(root / f"{row.name}.lock"):
        yield


def keeps_decoder(row: Weights) -> bool:
    """Whether the folder of a tag has the decoder of its origin, too: those of timm's architectures, for which the
    encoder alone is timm's business.
    """
    return row.timm and bool(find_layout(row.layout).decoder)


def folder_of(name: str) -> Path | None:
    """The folder of a tag of an architecture of timm, fetched and converted if need be; None for all other names.

    timm knows no such tag, but loads the folder.

    Raises:
        hiermim_zoo.checkpoints.store.WeightsNotFound: see :func:`locate`.
    """
    row = manifest.records().get(name)
    return locate(row).parent if row is not None and row.timm else None


def _clear(root: Path, row: Weights) -> None:
    """Remove what was downloaded of a tag, whole, in part, or by processes that were killed."""
    for pattern in (f"{row.name}.*", f".{row.name}.*.part"):
        for file in (root / DOWNLOADS).glob(pattern):
            with suppress(OSError):
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def _say(row: Weights, place: Place, size: int, sha256: str) -> None:
    """The one line when weights are first fetched: what, from where, and what their licence says."""
    license = f"licence {row.license}"
    if row.license == "unstated":
        license = "the authors state no licence: ask them before commercial use"
    elif row.license_also:
        license = f"licence {row.licenses}: ask the authors before commercial use"
    elif commercial_use(row.license) is False:
        license += ", for non-commercial use only"
    # A warning, since nothing less is shown by default.
    _logger.warning("%s: fetched from %s, %d bytes, sha256 %s; %s", row.name, place.address, size, sha256, license)
