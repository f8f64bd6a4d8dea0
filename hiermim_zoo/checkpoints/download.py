"""Download of a file from its origin: resumed where it broke off, verified, renamed into place when complete."""

from __future__ import annotations

import html
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit

from huggingface_hub.utils import tqdm

from .files import wrong_digest

if TYPE_CHECKING:
    import requests  # what downloads nothing, such as a benchmark on a bare machine, does without it

DRIVE_URL = "https://drive.usercontent.google.com/download"  # what serves the files of drive.google.com
_TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
_BLOCK = 1 << 15  # bytes; what has come of an unfinished block is lost when a connection breaks
_TRIES = 4  # connections in a row that bring nothing new before giving up
_PAUSE = 1.0  # seconds before the second of them, twice that before the third, ...


class DownloadError(OSError):
    """The file could not be had; the message says why."""


def download(url: str, target: Path, *, digests: Mapping[str, str] = MappingProxyType({}), size: int = 0) -> None:
    """Download ``url`` to ``target``.

    An interrupted download leaves ``target`` + ".part", from which the next call goes on (HTTP Range).

    Args:
        url: http(s), or a link to a file on Google Drive.
        target: where the complete file goes; written beside and renamed.
        digests: expected ones, where known, by kind ("sha256", "md5"): all hexadecimal digits or the first ones.
        size: expected bytes, where known.

    Raises:
        DownloadError: unreachable, refused, cut off again and again, a page instead of a file, wrong size or digest.
    """
    import requests

    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with requests.Session() as session:
            _fetch(session, _direct(url), part)
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {_reason(error)}") from error
    if size and part.stat().st_size != size:
        got = part.stat().st_size
        part.unlink()
        raise DownloadError(f"{url}: {got} bytes came instead of {size}")
    if wrong := wrong_digest(part, digests):
        part.unlink()
        raise DownloadError(f"{url}: {wrong}: not the file that is meant")
    os.replace(part, target)


def _direct(url: str) -> str:
    """The address that serves the bytes of a Google Drive link; any other address as it is."""
    if urlsplit(url).hostname != "drive.google.com":
        return url
    match = re.search(r"/file/d/([\w-]+)|[?&]id=([\w-]+)", url)
    if not match:
        raise DownloadError(f"{url}: no file id in this Google Drive address")
    return f"{DRIVE_URL}?{urlencode({'id': match[1] or match[2], 'export': 'download'})}"


def _fetch(session: requests.Session, url: str, part: Path) -> None:
    """Bring ``part`` to completion, reconnecting as long as each connection brings something."""
    import requests

    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _one_connection(session, url, part):
                return
            reason = "the connection was cut off"
        except broken as error:
            reason = _reason(error)
        gained = (part.stat().st_size if part.exists() else 0) > before
        fruitless = 0 if gained else fruitless + 1
        if fruitless >= _TRIES:
            raise DownloadError(f"{url}: {reason}; what has come so far is kept in {part}, run the same again to go on")
        time.sleep(fruitless * _PAUSE)


def _one_connection(session: requests.Session, url: str, part: Path) -> bool:
    """Append what one connection brings; True when the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    # identity: a compressed transfer would make byte ranges and sizes meaningless.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing behind what we have: complete, or the file has changed
            total = _total(answer.headers.get("Content-Range", ""))
            if have and total == have:
                return True
            part.unlink()
            return False
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            return _one_connection(session, _confirmed(answer.text, url), part)
        if answer.status_code != 206:
            have = 0  # the server starts from the beginning
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, name="hiermim_zoo.download"
            ) as bar,
        ):
            for block in answer.iter_content(_BLOCK):
                file.write(block)
                bar.update(len(block))
                have += len(block)
    return total is None or have == total


def _total(content_range: str) -> int | None:
    match = re.fullmatch(r"bytes \*/(\d+)", content_range)
    return int(match[1]) if match else None


def _confirmed(page: str, url: str) -> str:
    """The address behind Google Drive's "too large to scan for viruses, download anyway?" page."""
    form = re.search(r'<form[^>]*id="download-form"[^>]*action="([^"]+)"', page)
    fields = dict(re.findall(r'<input[^>]*type="hidden"[^>]*name="([^"]+)"[^>]*value="([^"]*)"', page))
    if not form or "confirm" not in fields or "confirm=" in url:  # the last: asked, and asked again
        title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
        said = f" ({html.unescape(title[1]).strip()})" if title else ""
        raise DownloadError(f"{url}: a web page came instead of a file{said}")
    return urljoin(url, html.unescape(form[1])) + "?" + urlencode({k: html.unescape(v) for k, v in fields.items()})


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error)
