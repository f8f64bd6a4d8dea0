"""Mirrors: places of one's own that are asked before all others.

A bundle is a folder with the weights of some tags, as a local store has them, and a record of what they are. It works
as a folder, behind a web server, or as the store itself::

    DIR/bundle.json                      licence of each tag, and sha256 and bytes of its files
    DIR/hivit_base.mae_in1k/model.safetensors, config.json, README.md, ...
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.utils import WeakFileLock

from ..text import printable
from .atomic import replacing, sweep
from .configs import read_json
from .download import DownloadError, download
from .files import sha256_of, wrong_digest
from .folder import OWN_FILES
from .hub import HUB
from .manifest import MODEL_FILE, Weights
from .places import Place, copy

VARIABLE = "HIERMIM_MIRROR"
RECORD = "bundle.json"
FORMAT = 1

_ORGANISATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Mirror:
    """Where a mirror is: one of the three."""

    organisation: str = ""  # on the Hub; the repository of a tag has the tag's name
    address: str = ""  # http(s) of a bundle
    folder: Path | None = None  # a bundle

    def of(self, row: Weights) -> str:
        """The address of a tag's weights, see :class:`~hiermim_zoo.checkpoints.places.Place`."""
        if self.organisation:
            return f"{HUB}{self.organisation}/{row.name}"
        if self.address:
            return f"{self.address}/{row.name}/{MODEL_FILE}"
        return str((self.folder or Path()) / row.name / MODEL_FILE)


def mirror_named(name: str) -> Mirror:
    """What is meant by a name: an address, an organisation (hf-hub:ORG, or a word that is no folder here), a folder.

    Raises:
        ValueError: an organisation that cannot be one.
    """
    if urlsplit(name).scheme in ("http", "https"):
        return Mirror(address=name.rstrip("/"))
    organisation = name.removeprefix(HUB)
    fits = _ORGANISATION.fullmatch(organisation) is not None
    if name.startswith(HUB) and not fits:
        raise ValueError(f"{printable(name, 120)} is no organisation of the Hub; {HUB}ORG would work")
    if name.startswith(HUB) or (fits and not Path(name).exists()):
        return Mirror(organisation=organisation)
    return Mirror(folder=Path(name).expanduser())


def mirrored(row: Weights) -> list[Place]:
    """The place of a tag in $HIERMIM_MIRROR, if that is set, with what the manifest knows of the file there.

    Raises:
        ValueError: the variable names nothing that can be a mirror.
    """
    if not (name := os.environ.get(VARIABLE, "")):
        return []
    try:
        mirror = mirror_named(name)
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from error
    return [known(row, Place(mirror.of(row), ready=True))]


def known(row: Weights, place: Place) -> Place:
    """A place of the file that the package ships or that is published, with what the manifest says of it."""
    sha256, size = (row.sha256, row.bytes) if row.file else (row.hub_sha256, row.hub_bytes)
    return replace(place, digests={"sha256": sha256} if sha256 else {}, bytes=size)


def fetch(place: Place, row: Weights, folder: Path) -> None:
    """Bring the folder of a tag out of a bundle, each file checked against the record of the bundle; those that are
    there already, and right, stay.

    Args:
        place: of the tag's weights in the bundle.
        row: the tag.
        folder: gets the files under the names that this package gives them; made if need be.

    Raises:
        DownloadError: there is no record, it does not have the tag, says another digest than the manifest, or a file
            cannot be had or is another one.
        OSError: a file cannot be written.
    """
    base = place.address.removesuffix(f"/{row.name}/{MODEL_FILE}")
    said = _record_at(base, place.local).get(row.name)
    if said is None:
        raise DownloadError(f"{base}/{RECORD} does not have {row.name}")
    about: dict[str, Any] = said["files"]
    digest = about[MODEL_FILE]["sha256"]
    if (known := place.digests.get("sha256", digest)) != digest:
        raise DownloadError(f"{base}/{RECORD} says sha256 {digest}, the manifest {known}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (name for name in OWN_FILES if name in about):
        source, target, digests = f"{base}/{row.name}/{name}", folder / name, {"sha256": about[name]["sha256"]}
        if target.is_file() and not wrong_digest(target, digests.items()):
            continue
        if place.local:
            copy(Path(source), target, digests)
        else:
            download(source, target, digests=digests, size=about[name]["bytes"])


def _record_at(base: str, local: bool) -> dict[str, Any]:
    if local:
        return read_record(Path(base))
    with tempfile.TemporaryDirectory() as scratch:
        download(f"{base}/{RECORD}", Path(scratch) / RECORD)
        try:
            return read_record(Path(scratch))
        except DownloadError as error:
            raise DownloadError(str(error).replace(scratch, base)) from error


def read_record(folder: Path) -> dict[str, Any]:
    """Tag -> "license" and "files", of each of which "sha256" and "bytes" are told.

    Raises:
        DownloadError: there is none, or it is no record of a bundle.
    """
    file = folder / RECORD
    if not file.is_file():
        raise DownloadError(f"{file} does not exist, so this is no bundle")
    try:
        record = read_json(file, "record of a bundle")
        found: dict[str, Any] = record["weights"]
        for about in found.values():
            files = {MODEL_FILE: about["files"][MODEL_FILE], **about["files"]}
            sound = all(_sound(one["sha256"], one["bytes"]) for one in files.values())
            if not sound or not isinstance(about["license"], str):
                raise ValueError("a digest, a size or a licence is none")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{file} is no record of a bundle: {printable(error, 120)}") from error
    if record.get("format") != FORMAT:
        raise DownloadError(f"{file} has format {printable(record.get('format'), 20)}; {FORMAT} is understood")
    return found


def _sound(sha256: Any, size: Any) -> bool:
    return re.fullmatch("[0-9a-f]{64}", sha256) is not None and type(size) is int and size > 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes what a bundle has; the lock of one that was killed is free."""
    with WeakFileLock(folder / f".{RECORD}.lock"):
        yield


def add_to_record(folder: Path, tag: str, license: str, files: Mapping[str, Path]) -> None:
    """Put what is known of a tag into the record of a bundle, which is made if there is none.

    Args:
        folder: of the bundle, whose lock the caller holds.
        tag: name of the weights.
        license: of them.
        files: of the tag, by their names in its folder.

    Raises:
        DownloadError: there is a record that cannot be read.
    """
    weights = read_record(folder) if (folder / RECORD).exists() else {}
    about = {name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for name, path in files.items()}
    weights[tag] = {"license": license, "files": about}
    sweep(folder / RECORD)
    with replacing(folder / RECORD) as part:
        part.write_text(json.dumps({"format": FORMAT, "weights": weights}, indent=2) + "\n", encoding="utf-8")
