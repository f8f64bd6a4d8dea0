"""Download of a file from its origin: resumed where it broke off, verified, renamed into place when complete."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ..text import printable
from . import drive
from .files import wrong_digest
from .part import Part, Wanted
from .refused import Broken, CannotWrite, Changed, DownloadError, Unreachable

_TRIES = 4  # connections in a row that bring nothing new before giving up
_CONNECTIONS = 50  # in all: each that brings one byte is no reason to go on for ever
_PAUSE = 1.0  # seconds before the second of the tries, twice that before the third, ...
_PATIENCE = 120.0  # seconds that a server may make us wait in all (Retry-After)
_GRACE = 300.0  # seconds that all connections together may take beyond what their bytes may (see transfer.allowed)
_WHOLE = 86_400.0  # seconds that one download may take
_DIGITS = {"sha256": 64, "md5": 32}
_PREFIX = 6  # hexadecimal digits that say something; authors put so many, or 8, into names of files


def download(
    url: str, target: Path, *, sha256: str = "", size: int = 0, digests: Mapping[str, str] | None = None
) -> None:
    """Download ``url`` to ``target``.

    An interrupted download leaves ``target`` + ".part", from which the next call goes on (HTTP Range) if the server can
    be asked whether its file is still the same (If-Range), or if a digest can tell in the end; and beside it a note of
    which version of the file it is from. One process at a time may do this: the caller holds a lock.

    Args:
        url: http(s), or a link to a file on Google Drive. USER:PASSWORD@ in it go to this host alone.
        target: where the complete file goes; written beside and renamed.
        sha256: expected digest, where known; the same as "sha256" among ``digests``.
        size: expected bytes, where known. Nothing beyond them is read; without, nothing beyond what is announced.
        digests: expected digests, from "sha256" or "md5" to hexadecimal digits: all, or at least the first 6.

    Raises:
        DownloadError: unreachable, refused, too slow, cut off again and again, a page instead of a file, wrong size or
            digest; one line that begins with the address. CannotWrite: likewise, no room on the disk.
        ValueError: what is expected is no digest.
    """
    expected = _expected([("sha256", sha256), *(digests or {}).items()])
    part = Part(target)
    shown = printable(re.sub("//[^/?#]*@", "//", url, count=1), 300)
    wanted = None
    try:
        address = _address(url)
        wanted = Wanted(address, size, bool(expected))
        target.parent.mkdir(parents=True, exist_ok=True)
        _complete(wanted, part, expected)
        os.replace(part.path, target)
        part.remove()
    except OSError as error:
        kind = type(error) if isinstance(error, DownloadError) else CannotWrite
        said = kind(f"{shown}: {_reason(error, part)}")
        if wanted and part.usable(wanted):
            said.part = part.path
        else:
            with contextlib.suppress(OSError):  # what cannot be written cannot be removed
                part.remove()
        raise said from error


def _expected(known: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Digests in lower case, without those that say nothing.

    Raises:
        ValueError: not a digest.
    """
    for name, digest in known:
        if name not in _DIGITS:
            raise ValueError(f"digests: {printable(name, 40)} is none of {', '.join(_DIGITS)}")
        if digest and not re.fullmatch(f"[0-9a-fA-F]{{{_PREFIX},{_DIGITS[name]}}}", digest):
            raise ValueError(f"{name}: {printable(digest, 80)} is not {_PREFIX} to {_DIGITS[name]} hexadecimal digits")
    return [(name, digest.lower()) for name, digest in known if digest]


def _address(url: str) -> str:
    """The address that is asked for a file."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known:
        raise DownloadError("this is no address of http or https")
    address = drive.direct(url)
    if not address:
        raise DownloadError("no file id in this Google Drive address: it should hold /file/d/ID or id=ID")
    return address


def _complete(wanted: Wanted, part: Part, expected: list[tuple[str, str]]) -> None:
    """Bring ``part`` to completion and check it.

    A file that was put together from several connections and is wrong is fetched once more, in one piece: the server's
    file may have changed between them, unnoticed.
    """
    pieced = _fetch(wanted, part)
    said = _wrong(wanted, part, expected)
    if said and pieced:
        _fetch(wanted, part)
        said = _wrong(wanted, part, expected)
    if said:
        raise DownloadError(said)


def _wrong(wanted: Wanted, part: Part, expected: list[tuple[str, str]]) -> str:
    """What is wrong with a complete part, which is removed then; "" if nothing is."""
    said = f"{part.size} bytes came instead of {wanted.size}" if wanted.size and part.size != wanted.size else ""
    if not said and (wrong := wrong_digest(part.path, expected)):
        said = f"{wrong}: not the file that is meant"
    if said:
        part.remove()
    return said


def _fetch(wanted: Wanted, part: Part) -> bool:
    """Connect again and again, as long as that brings something; whether the file came in several pieces.

    Raises:
        DownloadError: it does not, or an answer is refused.
    """
    # What downloads nothing, such as a benchmark on a bare machine, needs no requests.
    from .transfer import allowed, transfer

    deadline = time.monotonic() + _WHOLE
    patience, best, fruitless, pieced, reason, grace = _PATIENCE, part.size, 0, False, "", _GRACE
    for number in range(_CONNECTIONS):
        wait = None
        pieced = pieced or part.usable(wanted)
        had, begun = part.size, time.monotonic()
        try:
            if transfer(wanted, part, deadline):
                return pieced
            reason = "the connection was cut off"
        except Changed:
            part.remove()
            best, reason = 0, "the file on the server changes again and again"
        except Broken as error:
            reason, wait = str(error), error.wait
            if isinstance(error, Unreachable) and number == 0:  # no network: said at once
                break
        grace -= time.monotonic() - begun - allowed(max(0, part.size - had))
        if grace < 0:  # one that sends a little through each of its connections
            reason += f", and all in all it is {_GRACE:g} s slower than the slowest that is waited for"
            break
        grace = min(grace, _GRACE)
        fruitless = 0 if part.size > best else fruitless + 1
        best = max(best, part.size)
        if fruitless >= _TRIES or time.monotonic() >= deadline:
            break
        patience = _paused(fruitless * _PAUSE, wait, patience, reason)
    else:
        reason = f"{_CONNECTIONS} connections did not bring the file, the last one: {reason}"
    raise DownloadError(reason)


def _paused(pause: float, told: float | None, patience: float, reason: str) -> float:
    """Wait before the next connection, as told where the server tells; the patience that is left."""
    if told is not None and told > patience:
        raise DownloadError(f"{reason} and asks for {told:.0f} s of patience: run the same again then")
    time.sleep(pause if told is None else told)
    return patience - (told or 0.0)


def _reason(error: OSError, part: Part) -> str:
    if isinstance(error, DownloadError):
        return str(error)
    help_ = ": make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{error.filename or part.path} cannot be written: {error.strerror or error}{help_}"
