"""Places outside the local store that have the weights of a tag, in the order in which they are trusted, and the way
from there onto the disk.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from . import drive, hub, manifest
from .atomic import replacing
from .download import DownloadError, download
from .fetched import compare, confirm
from .files import sha256_of, wrong_digest
from .hub import HUB
from .manifest import Weights
from .network import unreachable

# Organisations of the Hub that exist and are known: without a pin, their repositories are asked last. Whoever registers
# another name serves nothing.
KNOWN = ("facebook", "timm")
_DIGITS = 64  # of a full SHA-256


@dataclass(frozen=True)
class Place:
    """One address, and what is known of the file there."""

    address: str  # http(s), or "hf-hub:ORG/NAME[@REVISION]", or a file on this machine
    digests: Mapping[str, str] = field(default_factory=dict)  # by kind, the first hexadecimal digits or all
    bytes: int = 0  # where known
    ready: bool = False  # loaded as it is; others are converted

    @property
    def known(self) -> bool:
        """Whether its file is known to the bit."""
        return len(self.digests.get("sha256", "")) == _DIGITS

    @property
    def on_hub(self) -> bool:
        return self.address.startswith(HUB)

    @property
    def local(self) -> bool:
        """Whether no server has to be asked."""
        return not self.on_hub and urlsplit(self.address).scheme not in ("http", "https")


@dataclass(frozen=True)
class Fetched:
    """A file that came from a place."""

    path: Path
    sha256: str
    bytes: int


def origins(row: Weights) -> list[Place]:
    """Where the file of a tag comes from, as its authors published it."""
    first = Place(row.url, digests_of(row.url, sha256=row.sha256, md5=row.md5), row.bytes)
    return [place for place in (first, Place(row.also, digests_of(row.also))) if place.address]


def places(row: Weights) -> list[Place]:
    """All places of a tag: the repository on the Hub if it is pinned, the origins, an unpinned one of a known
    organisation.
    """
    if row.hub_pinned:
        address, digests = f"{HUB}{row.hub}@{row.hub_revision}", {"sha256": row.hub_sha256}
        return [Place(address, digests, row.hub_bytes, ready=True), *origins(row)]
    last = [Place(f"{HUB}{row.hub}", ready=True)] if row.hub.partition("/")[0] in KNOWN else []
    return [*origins(row), *last]


def place_of(address: str) -> Place:
    """An address that a user typed, with what the manifest knows of it."""
    known = (place for row in manifest.records().values() for place in places(row) if place.address == address)
    return next(known, Place(address, digests_of(address)))


def digests_of(url: str, sha256: str = "", md5: str = "") -> dict[str, str]:
    """All that is known of the digests of a file; OpenMMLab writes the first eight digits into its name."""
    parts = urlsplit(url)
    if not sha256 and parts.hostname == "download.openmmlab.com":
        in_name = re.search(r"[-_]([0-9a-f]{8})\.pth$", parts.path)
        sha256 = in_name[1] if in_name else ""
    return {kind: digits for kind, digits in (("sha256", sha256), ("md5", md5)) if digits}


def closed(found: Iterable[Place], cache_dir: str | Path | None) -> dict[str, str]:
    """Of some places the addresses that cannot be asked now, each with the reason."""
    absent = [place for place in found if not (place.local or (place.on_hub and hub.cached(place.address, cache_dir)))]
    if hub.offline():
        return {place.address: "offline mode, HF_HUB_OFFLINE is set" for place in absent}
    servers = {place.address: _server(place.address) for place in absent}
    silent = unreachable(set(servers.values()))
    return {address: silent[server] for address, server in servers.items() if server in silent}


def _server(address: str) -> str:
    if address.startswith(HUB):
        return hub.endpoint()
    return drive.DRIVE_URL if urlsplit(address).hostname == "drive.google.com" else address


def fetch(place: Place, target: Path, cache_dir: str | Path | None = None, *, sha256: str = "") -> Fetched:
    """Bring the one file of a place, which is not in a bundle, onto the disk, checked against all that is known of it.

    Whoever can use it says so by :func:`accept`.

    Args:
        place: of the file.
        target: where a file from an address goes, with the suffix of its name; one from the Hub goes into its cache.
        cache_dir: instead of the Hub's own cache and the user's store.
        sha256: that a user named.

    Raises:
        DownloadError: it cannot be had, or is another file.
    """
    if not sha256.startswith(known := place.digests.get("sha256", "")) and sha256:
        raise DownloadError(f"{place.address}: sha256 is known to be {known}, not {sha256}")
    digests = {**place.digests, **({"sha256": sha256} if sha256 else {})}
    if place.on_hub:
        whole = digests.get("sha256", "")
        path = hub.cached(place.address, cache_dir)
        path = path or hub.fetch_file(place.address, cache_dir, sha256=whole, size=place.bytes)
        if wrong := wrong_digest(path, digests.items()):
            raise DownloadError(f"{place.address}: {wrong}: not the file that is meant; {path} can be removed")
    else:
        path = target.with_name(target.name + (Path(urlsplit(place.address).path).suffix or ".pth"))
        if not path.is_file():  # else another process just downloaded and verified it
            download(place.address, path, digests=digests, size=place.bytes)
    if place.known:
        return Fetched(path, digests["sha256"], path.stat().st_size)
    digest = sha256_of(path)
    try:
        if not sha256:
            compare(place.address, digest, cache_dir)
    except DownloadError:
        if path.parent == target.parent:
            path.unlink()
        raise
    return Fetched(path, digest, path.stat().st_size)


def accept(place: Place, fetched: Fetched, *, pinned: bool = False, cache_dir: str | Path | None = None) -> None:
    """Record the digest of what came from a place of whose file none was known, see :func:`fetched.confirm`.

    Raises:
        DownloadError: another file came from there before.
    """
    if not place.known:
        confirm(place.address, fetched.sha256, fetched.bytes, pinned=pinned, cache_dir=cache_dir)


def copy(source: Path, target: Path, digests: Mapping[str, str]) -> None:
    """A file of this machine, checked after it was written.

    Raises:
        DownloadError: it is missing, or not the file that is meant.
        OSError: the copy cannot be written.
    """
    if not source.is_file():
        raise DownloadError(f"{source}: no such file")
    with replacing(target) as part:
        shutil.copyfile(source, part)
        if wrong := wrong_digest(part, digests.items()):
            raise DownloadError(f"{source}: {wrong}: not the file that is meant")
