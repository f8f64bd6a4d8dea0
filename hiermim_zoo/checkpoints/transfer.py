"""One connection of a download: what is asked, which answers are refused, and how much of a body is taken."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import requests
import urllib3

from ..progress import Progress
from ..text import printable
from . import drive
from .part import Part, Version, Wanted, date, validator
from .refused import Broken, CannotWrite, Changed, DownloadError, Unreachable
from .watch import Watch, watched_session

_TIMEOUT = (4, 60)  # seconds to connect, seconds without a byte
_WINDOW = 60.0  # seconds within which an answer must begin, and of each of which ...
_SLOWEST = 300_000  # ... so many bytes must come
_BLOCK = 1 << 15  # bytes; what has come of an unfinished block is lost when a connection breaks
_PAGE = 1 << 20  # bytes of a web page that are looked at
_UNANNOUNCED = 1 << 34  # bytes that a server may send that does not say how many there are
_REDIRECTS = 10

# What to do about an answer, besides waiting.
_HELP = {
    401: "it wants a login: http://USER:PASSWORD@HOST/... gives one, to this host alone",
    403: "it does not allow this; get the file with a browser and convert it from there",
    404: "no such file (any more): is the address right?",
    410: "the file was removed: is there a newer address?",
}
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # what another try may get over
_HTML = {"text/html", "application/xhtml+xml"}
_MARKUP = re.compile(rb"\s*<(!doctype|!--|\?xml|html|head|body|title|meta|script)", re.IGNORECASE)
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


def allowed(count: int) -> float:
    """Seconds that so many bytes may take."""
    return count * _WINDOW / _SLOWEST


def transfer(wanted: Wanted, part: Part, deadline: float) -> bool:
    """Append to ``part`` what one connection brings.

    Args:
        wanted: url is http(s).
        part: continued if it may be, else begun anew.
        deadline: on the clock of time.monotonic.

    Returns:
        Whether the file is complete.

    Raises:
        Broken: another connection may bring more.
        Changed: the part belongs to another file.
        DownloadError: the answer is refused.
    """
    if not part.usable(wanted):
        part.remove()
    have, version = part.size, part.version
    # identity: a compressed transfer would make byte ranges and sizes meaningless. close: nothing that a server sends
    # behind one answer can be taken for the next.
    headers = {"Accept-Encoding": "identity", "Connection": "close"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version and version.validator and version.url == wanted.url:
            headers["If-Range"] = version.validator
    with Watch(_WINDOW, _SLOWEST, deadline) as watch, watched_session(watch) as session:
        try:
            with closing(_Answer(session, wanted.url, headers)) as answer:
                watch.body_begins()
                complete = _received(answer, wanted, part, watch)
        except (requests.RequestException, urllib3.exceptions.HTTPError, DownloadError) as error:
            if watch.reason:
                raise Broken(watch.reason) from error
            raise error if isinstance(error, DownloadError) else _meaning(error) from error
        if watch.reason:  # hung up on without an error: a body without a length just ends then
            raise Broken(watch.reason)
    return complete


class _Answer:
    """The answer at the end of redirects and of Google Drive's question, with the first block of its body."""

    def __init__(self, session: requests.Session, url: str, headers: Mapping[str, str]) -> None:
        self.url, login = without_login(url)
        origin = _origin(self.url)
        for _ in range(_REDIRECTS + 1):
            # The function is what keeps requests from looking for a login in ~/.netrc.
            auth: Any = login if login and _origin(self.url) == origin else lambda request: request
            self.response = session.get(
                self.url, headers=headers, stream=True, timeout=_TIMEOUT, allow_redirects=False, auth=auth
            )
            self.first = b""
            try:
                target = self._forwarded()
            except BaseException:
                self.close()
                raise
            if not target:
                return
            self.close()
            self.url = _followed(self.url, target)
        raise DownloadError(f"more than {_REDIRECTS} redirects: is the address right?")

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    def _forwarded(self) -> str:
        """Where the answer sends us, "" if it is an answer in itself."""
        if self.status in (301, 302, 303, 307, 308):
            target = self.headers.get("Location", "").strip()
            if not target:
                raise DownloadError(f"the server answered {self.status} and names no address to go to")
            return target
        if self.status not in (200, 206):
            return ""
        encoding = self.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):  # unpacked, a few bytes could become any number
            raise DownloadError(f"the server compressed the file ({printable(encoding, 40)}), which was not asked for")
        self.first = self.read()
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind not in _HTML and (self.status == 206 or not _is_markup(self.first)):
            return ""
        page = self.first
        while len(page) < _PAGE and (block := self.read()):
            page += block
        text = page[:_PAGE].decode("utf-8", errors="replace")
        target = drive.confirmed(text, self.url)
        if not target:
            said = printable(drive.title(text), 100)
            raise DownloadError(
                f"a web page came instead of a file{f' ({said})' if said else ''}: open the address in a browser"
            )
        return target

    def read(self) -> bytes:
        """Up to a block of the body as it was sent. Through http.client: it limits the lines between chunks, too."""
        block: bytes = self.response.raw.read(_BLOCK, decode_content=False)
        return block

    def blocks(self) -> Iterator[bytes]:
        block = self.first
        while block:
            yield block
            block = self.read()

    def close(self) -> None:
        self.response.close()


def _received(answer: _Answer, wanted: Wanted, part: Part, watch: Watch) -> bool:
    """Judge an answer before a byte of it is written; then write."""
    have, version = part.size, part.version
    if answer.status == 416 and have:  # nothing behind what we have: complete, or the file has changed
        match = re.fullmatch(r"bytes \*/(\d{1,18})", answer.headers.get("Content-Range", ""))
        if match and int(match[1]) == have and (not version or version.total in (0, have)):
            return True
        raise Changed
    if answer.status not in (200, 206):
        raise _refusal(answer)
    try:
        if answer.status == 206:
            end, total = _continued(answer, wanted, version, have)
        else:
            have, end = 0, _whole(answer, wanted)
            total = end
            part.begin(Version(wanted.url, validator(answer.headers), total))
    except DownloadError:
        part.remove()  # or the next call would get the same answer
        raise
    _check_room(part, (end or wanted.size) - have)
    have = _written(answer, part, have, end or wanted.size or _UNANNOUNCED, watch)
    if end and have < end:
        raise Broken("the connection was cut off")
    return have == total if total else not wanted.size or have == wanted.size


def _whole(answer: _Answer, wanted: Wanted) -> int:
    """The bytes of a complete file, 0 if they are not announced.

    Raises:
        DownloadError: this is none, or another one.
    """
    total = _length(answer.headers)
    if wanted.size and total not in (0, wanted.size):
        raise DownloadError(f"the server announces {total} bytes instead of {wanted.size}: another file")
    if not answer.first:
        raise DownloadError("an empty file came")
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    if not (total or chunked or wanted.size or wanted.checked):  # it would end wherever the connection does
        raise DownloadError("the server does not say how long the file is, so nobody can tell when it is complete")
    return total


def _continued(answer: _Answer, wanted: Wanted, version: Version | None, have: int) -> tuple[int, int]:
    """Where a 206 ends, and the bytes of the complete file.

    Raises:
        Changed: the file is not the one that the part began as.
        DownloadError: this is not what was asked for.
    """
    said = answer.headers.get("Content-Range", "")
    match = _RANGE.fullmatch(said.strip())
    if not have or not match or int(match[1]) != have:
        asked = f"bytes {have}-" if have else "the whole file"
        raise DownloadError(f"{asked} was asked for, and the server sends {printable(said, 60) or 'an unnamed part'}")
    known = (version.total if version else 0) or wanted.size
    total = known if match[3] == "*" else int(match[3])
    end, length = int(match[2]) + 1, _length(answer.headers)
    if end <= have or end > total or (length and length != end - have):
        sent = f" with {length} bytes" if length else ""
        raise DownloadError(f"the server contradicts itself: {printable(said, 60)}{sent} of {total or 'unknown'} bytes")
    if version and version.total not in (0, total):
        raise Changed
    if wanted.size and total != wanted.size:
        raise DownloadError(f"the server announces {total} bytes instead of {wanted.size}: another file")
    if version and version.validator and version.url == wanted.url:
        # Servers that do not know If-Range send the range of whatever they have now. A 206 must name the ETag.
        name = "ETag" if version.validator.startswith('"') else "Last-Modified"
        if answer.headers.get(name, "" if name == "ETag" else version.validator) != version.validator:
            raise Changed
    return end, total


def _written(answer: _Answer, part: Part, have: int, limit: int, watch: Watch) -> int:
    """Append the body to the part, never more than ``limit`` bytes in all; the bytes that are there then."""
    with (
        part.path.open("ab" if have else "wb") as file,
        Progress(
            limit if limit != _UNANNOUNCED else None,
            "B",
            done=have,
            leave=True,
            what=part.path.stem,
            name="hiermim_zoo.download",
        ) as bar,
    ):
        for block in answer.blocks():
            if have + len(block) > limit:
                part.remove()
                raise DownloadError(f"more than {limit} bytes came, which is all that there should be")
            file.write(block)
            bar.update(len(block))
            watch.came(len(block))
            have += len(block)
    return have


def _check_room(part: Part, more: int) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if more > free:
        # What is announced beyond any bound may be a lie of this server, and another one has the file.
        kind = CannotWrite if more <= _UNANNOUNCED else DownloadError
        raise kind(f"{more} more bytes are needed and {free} are free in {part.path.parent}: make room")


def _length(headers: Mapping[str, str]) -> int:
    """Content-Length, 0 if there is none."""
    text = headers.get("Content-Length", "").strip()
    if not re.fullmatch(r"[0-9]{0,18}", text):
        raise DownloadError(f"the server announces a length that is no number of bytes: {printable(text, 40)}")
    return int(text or 0)


def _refusal(answer: _Answer) -> Exception:
    """What an answer without a file means."""
    said = f"the server answered {answer.status} {printable(answer.response.reason or '', 60)}".rstrip()
    if answer.status in _PASSING:
        return Broken(said, _wait(answer.headers.get("Retry-After", "")))
    return DownloadError(f"{said}: {_HELP.get(answer.status, 'is the address right?')}")


def _wait(text: str) -> float | None:
    """Retry-After in seconds, which servers also give as a date; None if it says nothing."""
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return float(text)
    until = date(text)
    return max(0.0, (until - datetime.now(timezone.utc)).total_seconds()) if until else None


def _followed(url: str, target: str) -> str:
    """The address of a redirect, without a login: ours is for the first host, and no other is wanted."""
    try:
        address, _ = without_login(urljoin(url, target))
        scheme, host, _ = _origin(address)
    except ValueError:
        scheme, host = "", None
    if scheme not in ("http", "https") or not host:
        raise DownloadError(f"it redirects to {printable(target, 100)}, which is no address of http or https")
    if scheme == "http" and urlsplit(url).scheme == "https":
        raise DownloadError(f"it redirects from https to {printable(address, 100)}, which anybody could answer")
    return address


def without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """An address without the USER:PASSWORD@ in it, and these two.

    Raises:
        ValueError: it is no address.
    """
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    return urlunsplit(parts._replace(netloc=host)), (unquote(user), unquote(password)) if login else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _is_markup(start: bytes) -> bool:
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16
        start = start[2:].replace(b"\0", b"")
    return _MARKUP.match(start.removeprefix(b"\xef\xbb\xbf")) is not None


def _meaning(error: Exception) -> Exception:
    """What an error of the HTTP client means for a download."""
    if isinstance(error, (requests.exceptions.SSLError, urllib3.exceptions.SSLError)):
        return DownloadError(f"no trusted connection, {printable(error, 200)}: check the clock and the certificates")
    if isinstance(error, requests.exceptions.ProxyError):
        return Unreachable("no connection to the proxy: check HTTPS_PROXY and HTTP_PROXY")
    reason = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(error, requests.ConnectTimeout) or isinstance(reason, urllib3.exceptions.NewConnectionError):
        return Unreachable("no connection: check the network and the address")
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return Broken("no answer in time")
    if isinstance(error, (requests.ConnectionError, urllib3.exceptions.ProtocolError)):
        return Broken("the connection was cut off")
    return DownloadError(printable(error, 200) or type(error).__name__)
