"""Downloads from servers that are hostile, broken or odd: what is said, what is written, what is sent to whom.

A row of ``BEHAVIOURS`` is one server. Whatever it does, the file is there only if it is the right one, no more bytes
than announced reach the disk, and the error is one line that begins with the address.
"""

from __future__ import annotations

import errno
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from hiermim_zoo.checkpoints import download as downloads
from hiermim_zoo.checkpoints import drive, transfer
from hiermim_zoo.checkpoints.download import DownloadError, download
from hiermim_zoo.checkpoints.part import Part, Version, validator

from .servers import Reply, scripted

CONTENT = bytes(range(256)) * 400
OTHER = bytes(reversed(CONTENT))
SIZE = len(CONTENT)
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
TAG = '"version-1"'
HALF = 50_000
PAGE = b"<!DOCTYPE html><html><head><title>Quota exceeded</title></head></html>"
EVER = threading.Event()  # never set: what waits for it, waits for the time given


def sent(body: bytes = CONTENT, status: str = "200 OK", /, **headers: str) -> bytes:
    """An answer as bytes; a header without text is left out."""
    named = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream"}
    named |= {name.replace("_", "-"): text for name, text in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in named.items() if text)]
    return "\r\n".join(lines).encode("latin1") + b"\r\n\r\n" + body


def cut(reply: bytes, after: int) -> bytes:
    """The same, broken off after so many bytes of the body."""
    head, _, body = reply.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + body[:after]


def part_of(start: int, end: int = SIZE, total: object = SIZE, /, body: bytes | None = None, **headers: str) -> bytes:
    body = CONTENT[start:end] if body is None else body
    return sent(
        body, "206 Partial Content", **{"Content_Range": f"bytes {start}-{end - 1}/{total}", "ETag": TAG} | headers
    )


def honest(request: Mapping[str, str]) -> Iterable[bytes]:
    """What a server should do."""
    start = int(re.sub(r"\D", "", request.get("range", "0"))) if request.get("if-range", TAG) == TAG else 0
    yield part_of(start) if start else sent(ETag=TAG)


def chunks(body: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    pieces = (body[i : i + 10_000] for i in range(0, len(body), 10_000))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def chunked(body: bytes = CONTENT, end: bytes = b"0\r\n\r\n") -> bytes:
    return sent(chunks(body, end), Content_Length="", Transfer_Encoding="chunked")


def redirect(to: str, status: str = "302 Found") -> Callable[[Mapping[str, str]], Iterable[bytes]]:
    return lambda request: [sent(b"", status, Location=to.replace("{url}", request["server"]))]


def endless(start: bytes, again: bytes, pause: float = 0) -> Callable[[Mapping[str, str]], Iterator[bytes]]:
    def reply(request: Mapping[str, str]) -> Iterator[bytes]:
        yield start
        while True:
            yield again
            if pause:
                EVER.wait(pause)

    return reply


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)


@dataclass(frozen=True)
class Behaviour:
    """What a server does, and what comes of it."""

    replies: tuple[Reply, ...]
    says: str = ""  # the error; empty: the file arrives
    known: Mapping[str, object] = field(default_factory=dict)  # of size and digests
    before: bytes = b""  # part of an earlier call, of the version TAG
    noted: bool = True  # with its note
    most: int = SIZE  # bytes on the disk at any time
    connections: int = 0  # that are made; 0: whatever
    kept: bool = False  # whether the error says that a part is kept


STALLED = "it sent fewer than"
CHECK: Mapping[str, object] = {"digests": {"sha256": SHA256}}
KNOWN: Mapping[str, object] = {"size": SIZE}
CUT = cut(sent(ETag=TAG), HALF)
BARE = cut(sent(), HALF)  # the same from a server that has no validators
HEAD = sent(b"", Content_Length=str(SIZE), ETag=TAG)

BEHAVIOURS = {
    # ---- honest: the controls
    "whole": Behaviour((honest,), connections=1),
    "cut, then ranges": Behaviour((CUT, honest), connections=2),
    "part of an earlier call": Behaviour((honest,), before=CONTENT[:HALF], connections=1),
    "chunked": Behaviour((chunked(),)),
    "until the connection ends, with a digest": Behaviour((sent(Content_Length=""),), known=CHECK),
    "less than asked": Behaviour((CUT, part_of(50000, 60_000), honest), connections=3),
    "range of an unnamed total": Behaviour((CUT, part_of(50000, SIZE, "*"))),
    "no ranges": Behaviour((CUT, sent(ETag=TAG)), connections=2),
    "complete already": Behaviour((sent(b"", "416 No", Content_Range=f"bytes */{SIZE}"),), before=CONTENT),
    "a redirect": Behaviour((redirect("{url}/there", "308 Permanent Redirect"), honest)),
    "a passing error": Behaviour((sent(b"", "502 Bad Gateway"), honest)),
    "busy for a moment": Behaviour((sent(b"", "429 Slow down", Retry_After="3"), honest)),
    "busy until a date": Behaviour((sent(b"", "503 Busy", Retry_After=http_date(4)), honest)),
    "busy, nobody knows how long": Behaviour((sent(b"", "503 Busy", Retry_After="soon"), honest)),
    "no type": Behaviour((sent(Content_Type=""),)),
    "old part and a digest": Behaviour((honest,), known=CHECK, before=CONTENT[:HALF], noted=False, connections=1),
    # ---- a file that changes
    "changed, and knows If-Range": Behaviour((honest,), before=OTHER[:HALF], known=CHECK, noted=False),
    "changed between two connections": Behaviour((cut(sent(OTHER, ETag='"old"'), HALF), honest), connections=2),
    "changed, ignores If-Range": Behaviour(
        (cut(sent(OTHER, ETag='"old"'), HALF), part_of(50000), honest), connections=3
    ),
    "changed, and hides it": Behaviour((cut(sent(OTHER, ETag=TAG), HALF), part_of(50000, ETag=""), honest)),
    "changed its total": Behaviour((CUT, part_of(50000, SIZE, SIZE + 9, body=CONTENT[50000:]), honest)),
    "changed, without validators": Behaviour((cut(sent(OTHER), HALF), honest), connections=2),
    "changed, weak ETag": Behaviour((cut(sent(OTHER, ETag='W/"1"'), HALF), honest), connections=2),
    "changed, without validators, with a digest": Behaviour((cut(sent(OTHER), HALF), honest, honest), known=CHECK),
    "old part without a note": Behaviour((honest,), before=OTHER[:HALF], noted=False, connections=1),
    "old part, size alone known": Behaviour((honest,), known=KNOWN, before=OTHER[:HALF], noted=False),
    "part too long": Behaviour((honest,), known=KNOWN, before=CONTENT + b"x", most=SIZE + 1),
    "smaller by now": Behaviour((sent(b"", "416 No", Content_Range="bytes */7"), honest), before=CONTENT[:HALF]),
    "changes for ever": Behaviour(
        (lambda r: [cut(sent(ETag=f'"{time.monotonic_ns()}"'), HALF)],),
        "the connection was cut off",
        kept=True,
        connections=5,
    ),
    # ---- a 206 that is not what was asked
    "206 unasked": Behaviour((part_of(0),), "the whole file was asked for"),
    "206 from elsewhere": Behaviour((CUT, part_of(40_000)), "bytes 50000- was asked for, .* bytes 40000-"),
    "206 from the start": Behaviour((CUT, part_of(0)), "bytes 50000- was asked for"),
    "206 without a range": Behaviour((CUT, part_of(50000, Content_Range="")), "an unnamed part"),
    "206 in words": Behaviour((CUT, part_of(50000, Content_Range="all of it")), "sends all of it"),
    "206 beyond its total": Behaviour((CUT, part_of(50000, SIZE, 40_000)), "contradicts itself"),
    "206 backwards": Behaviour((CUT, part_of(50000, 50000, body=b"abc")), "contradicts itself"),
    "206 of another length": Behaviour((CUT, part_of(50000, SIZE, body=CONTENT)), "contradicts itself"),
    "206 in several parts": Behaviour(
        (CUT, part_of(50000, Content_Range="", Content_Type="multipart/byteranges; boundary=x")), "an unnamed part"
    ),
    "416 for the whole": Behaviour((sent(b"", "416 No", Content_Range=f"bytes */{SIZE}"),), "answered 416"),
    "416 that ends it early": Behaviour(
        (CUT, sent(b"", "416 No", Content_Range="bytes */50000")), "changes again and again|contradict|cut off|416"
    ),
    # ---- lengths
    "empty": Behaviour((sent(b""),), "an empty file came", most=0),
    "empty, chunked": Behaviour((chunked(b""),), "an empty file came", most=0),
    "empty, without a length": Behaviour((sent(b"", Content_Length=""),), "an empty file came", most=0),
    "more announced than known": Behaviour((sent(),), f"announces {SIZE} bytes instead of 7", {"size": 7}, most=0),
    "less announced than known": Behaviour((sent(OTHER[:9]),), "announces 9 bytes", KNOWN, most=0),
    "more sent than announced": Behaviour((sent(CONTENT + OTHER, Content_Length=str(SIZE)),)),
    "more sent than known": Behaviour(
        (endless(sent(b"", Content_Length=""), CONTENT),), f"more than {SIZE} bytes came", KNOWN
    ),
    "endless chunks": Behaviour(
        (endless(sent(b"", Content_Length="", Transfer_Encoding="chunked"), b"2710\r\n" + b"x" * 10_000 + b"\r\n"),),
        "more than 300000 bytes came",
        most=300_000,
    ),
    "endless line between chunks": Behaviour(
        (endless(sent(b"", Content_Length="", Transfer_Encoding="chunked"), b"1;" * 50_000),), "cut off", most=0
    ),
    "chunks that break off": Behaviour((chunked(end=b""),), "the connection was cut off"),
    "fewer chunks than known": Behaviour((chunked(CONTENT[:HALF]),), f"{HALF} bytes came instead of {SIZE}|cut", KNOWN),
    "nobody says how long": Behaviour((sent(Content_Length=""),), "does not say how long", most=0),
    "a length in words": Behaviour((sent(Content_Length="many"),), "length that is no number .*many", most=0),
    "a negative length": Behaviour((sent(Content_Length="-1"),), "length that is no number", most=0),
    "two lengths": Behaviour((sent(Content_Length=f"{SIZE}, 7"),), "Content-Length", most=0),
    "a length beyond the disk": Behaviour((sent(Content_Length=str(10**17)),), "make room", most=0),
    "always cut": Behaviour((CUT, cut(HEAD, 0)), "cut off; 50000 bytes are kept in", kept=True),
    "always cut, without validators": Behaviour((BARE,), "the connection was cut off$"),
    "a block at a time": Behaviour(
        (
            lambda r: [
                cut(
                    part_of(n, 10**7, 10**7, body=CONTENT, Content_Length=str(10**7 - n))
                    if (n := number(r))
                    else long_file(),
                    32768,
                )
            ],
        ),
        "8 connections did not bring the file",
        most=8 * 32768,
        kept=True,
    ),
    # ---- pages
    **{
        f"page, {kind or 'no type'}": Behaviour((sent(body, Content_Type=kind),), "a web page came .*Quota", most=0)
        for kind, body in {
            "text/html": PAGE,
            "TEXT/HTML; Charset=UTF-8": PAGE,
            "application/xhtml+xml": b'<?xml version="1.0"?>' + PAGE,
            "": b"\r\n  " + PAGE.lower().replace(b"quota", b"Quota"),
            "application/octet-stream": b"\xef\xbb\xbf<HTML><TITLE>Quota</TITLE>",
            "text/plain": b"<!-- x --><title>Quota</title>",
        }.items()
    },
    "page in UTF-16": Behaviour((sent("\ufeff<html>".encode("utf-16-le")),), "a web page came", most=0),
    "page behind a part": Behaviour((CUT, sent(PAGE, Content_Type="text/html")), "a web page came", kept=True),
    "endless page": Behaviour((endless(sent(b"", Content_Length=""), b"<title><form" * 99),), "a web page", most=0),
    "a title that moves the cursor": Behaviour(
        (sent(b"<title>\x1b[2J\r\nerror: all is well", Content_Type="text/html"),), r"\\x1b\[2J\\r\\nerror", most=0
    ),
    # ---- redirects and refusals
    "redirects in a circle": Behaviour((redirect("{url}/w.pth"),), "more than 10 redirects", connections=11),
    "redirect with an endless body": Behaviour(
        (endless(sent(b"", "302 Found", Location="/x", Content_Length=""), CONTENT), honest), connections=2
    ),
    "refusal with an endless body": Behaviour((endless(sent(b"", "404 No", Content_Length=""), CONTENT),), "404 No"),
    "redirect to a file": Behaviour((redirect("file:///etc/passwd"),), "redirects to file:///etc/passwd"),
    "redirect to ftp": Behaviour((redirect("ftp://127.0.0.1/x"),), "redirects to ftp"),
    "redirect to nowhere": Behaviour((redirect(""),), "names no address"),
    "redirect to no address": Behaviour((redirect("http://[::1"),), "no address of http"),
    "redirect to a port of no kind": Behaviour((redirect("http://127.0.0.1:x/"),), "no address of http"),
    "missing": Behaviour((sent(b"no", "404 Not Found"),), "answered 404 Not Found: no such file", connections=1),
    "forbidden": Behaviour((sent(b"", "403 Forbidden"),), "answered 403 Forbidden: it does not allow"),
    "a reason of escapes": Behaviour((sent(b"", "400 \x1b[31m" + "x" * 999),), r"400 \\x1b\[31mx+\.\.\.: "),
    "accepted, not done": Behaviour((sent(b"", "202 Accepted"),), "answered 202"),
    "no content": Behaviour((sent(b"", "204 No Content", Content_Length=""),), "answered 204"),
    "always busy": Behaviour((sent(b"", "429 Slow down", Retry_After="0"),), "answered 429 Slow down", connections=4),
    "busy for years": Behaviour(
        (sent(b"", "429 No", Retry_After="99999999"),), "99999999 s of patience", connections=1
    ),
    "broken for ever": Behaviour((sent(b"", "500 Oh"),), "answered 500", connections=4),
    # ---- what is no answer, or a slow one
    "hangs up": Behaviour((b"",), "the connection was cut off", most=0, connections=4),
    "another protocol": Behaviour((b"SSH-2.0-OpenSSH\r\n",), "the connection was cut off", most=0),
    "endless headers": Behaviour((endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 99),), "cut off", most=0),
    "endless header": Behaviour((endless(b"HTTP/1.1 200 OK\r\nA: ", b"b" * 9999),), "cut off", most=0),
    "asks to go on for ever": Behaviour((endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),), STALLED, most=0),
    "silent": Behaviour((endless(b"", b"", 0.05),), STALLED, most=0),
    "headers drop by drop": Behaviour((endless(b"HTTP/1.1 200 OK\r\nA: ", b"b", 0.05),), STALLED, most=0),
    "body drop by drop": Behaviour((endless(HEAD, b"x", 0.05),), STALLED, most=100, kept=True),
    "drops without a length": Behaviour(
        (endless(sent(b"", Content_Length=""), b"x", 0.05),), STALLED, CHECK, most=100, kept=True
    ),
    "stalls, then goes on": Behaviour((endless(HEAD + CONTENT[:HALF], b"", 0.05), honest)),
    # ---- compressed, or another file
    "compressed": Behaviour((sent(Content_Encoding="gzip"),), "compressed the file .gzip.", most=0),
    "compressed twice": Behaviour((sent(Content_Encoding="br, GZIP"),), "compressed the file", most=0),
    "another file": Behaviour((sent(OTHER),), f"sha256 is .* instead of {SHA256}", CHECK),
    "another by md5": Behaviour((sent(OTHER),), "md5 is", {"digests": {"sha256": "", "md5": MD5[:6]}}),
}


def number(request: Mapping[str, str]) -> int:
    return int(re.sub(r"\D", "", request.get("range", "0")))


def long_file() -> bytes:
    return sent(CONTENT, Content_Length=str(10**7), ETag=TAG)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Limits of a second, and pauses that are noted but not made."""
    found: list[float] = []
    monkeypatch.setattr(downloads, "time", SimpleNamespace(monotonic=time.monotonic, sleep=found.append))
    monkeypatch.setattr(downloads, "_CONNECTIONS", 8)
    monkeypatch.setattr(transfer, "_WINDOW", 0.2)
    monkeypatch.setattr(transfer, "_SLOWEST", 1000)
    monkeypatch.setattr(transfer, "_UNANNOUNCED", 300_000)
    return found


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of parts when they are removed."""
    sizes: list[int] = []
    remove = Part.remove

    def noted(self: Part) -> None:
        sizes.append(self.size)
        remove(self)

    monkeypatch.setattr(Part, "remove", noted)
    return sizes


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_server(name: str, tmp_path: Path, peak: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    row, target = BEHAVIOURS[name], tmp_path / "w.pth"
    if row.says and row.says != STALLED:  # a busy machine must not look like a server that stalls
        monkeypatch.setattr(transfer, "_WINDOW", 5.0)
    part = Part(target)
    with scripted(*row.replies) as server:
        url = f"{server.url}/w.pth"
        if row.before:
            part.begin(Version(url, TAG, SIZE))
            part.path.write_bytes(row.before)
        if not row.noted:
            part.note.unlink()
        if row.says:
            with pytest.raises(DownloadError) as error:
                download(url, target, **row.known)  # type: ignore[arg-type]
            said = str(error.value)
            assert said.startswith(f"{url}: ")
            assert re.search(row.says, said), said
            assert said.isprintable()
            assert len(said) < 400
            assert ("kept in" in said) == row.kept == bool(part.size)
            assert not target.exists()
            assert row.kept or not list(tmp_path.glob("w.pth*"))
        else:
            download(url, target, **row.known)  # type: ignore[arg-type]
            assert target.read_bytes() == CONTENT
            assert [path.name for path in tmp_path.glob("*w.pth*")] == ["w.pth"]
        assert max(part.size, *peak) <= row.most
        assert len(server.requests) == row.connections or not row.connections


def test_there_are_enough_behaviours() -> None:
    assert len([row for row in BEHAVIOURS.values() if row.says]) >= 40


def test_if_range_names_the_version_that_the_part_is_of(tmp_path: Path) -> None:
    with scripted(CUT, honest) as server:
        download(f"{server.url}/w.pth", tmp_path / "w.pth")
        first, second = server.requests
    assert "range" not in first
    assert (second["range"], second["if-range"]) == ("bytes=50000-", TAG)
    old = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "Date": "Mon, 01 Jan 2024 00:00:05 GMT"}
    assert validator(old) == old["Last-Modified"]
    assert validator(old | {"Date": old["Last-Modified"]}) == ""  # it may have been written again in that second
    assert validator(old | {"ETag": 'W/"1"'}) == validator({"Last-Modified": old["Last-Modified"]}) == ""
    assert validator({"ETag": '"a\r\nb"'}) == validator({"ETag": "bare"}) == validator({}) == ""


def test_a_file_that_changed_between_two_calls_starts_anew(tmp_path: Path) -> None:
    """Also where size and prefix agree; and an address of another file does not continue the part of the first."""
    cut_off = cut(HEAD, 0)
    for replies, path in [((cut(sent(OTHER, ETag='"old"'), HALF), cut_off), "w"), ((CUT, cut_off), "other")]:
        with scripted(*replies) as server:
            with pytest.raises(DownloadError, match="kept in"):
                download(f"{server.url}/{path}", tmp_path / "w.pth")
            server.replies, server.requests = [honest], []
            download(f"{server.url}/w", tmp_path / "w.pth")
            assert ("range" in server.requests[0]) == (path == "w")
        assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_nothing_is_kept_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    with scripted(CUT, cut(HEAD, 0)) as server, pytest.raises(DownloadError) as error:
        download(f"{server.url}/w.pth", tmp_path / "w.pth")
    assert "kept in" in str(error.value)
    Part(tmp_path / "w.pth").remove()
    assert str(error.value).endswith("the connection was cut off")


@pytest.mark.parametrize(
    ("known", "fits"),
    [
        ({"sha256": SHA256[:8]}, True),
        ({"sha256": SHA256.upper(), "md5": MD5}, True),
        ({"md5": MD5[:6]}, True),
        ({}, True),
        ({"sha256": SHA256, "md5": "0" * 6}, False),
        ({"sha256": "0" * 8, "md5": MD5}, False),
    ],
)
def test_all_digests_must_fit(known: dict[str, str], fits: bool, tmp_path: Path) -> None:
    with scripted(honest) as server:
        if fits:
            download(f"{server.url}/w.pth", tmp_path / "w.pth", digests=known)
        else:
            with pytest.raises(DownloadError, match=r"instead of 0+: not the file that is meant"):
                download(f"{server.url}/w.pth", tmp_path / "w.pth", digests=known, size=SIZE)
    assert (tmp_path / "w.pth").exists() == fits


@pytest.mark.parametrize("known", [{"sha1": "0" * 40}, {"md5": "0" * 64}, {"sha256": "12345"}, {"md5": "no hex"}])
def test_what_is_no_digest_is_refused(known: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(known))):
        download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth", digests=known)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "w.pth", "http://", "http://[::1", "http://a:b/c"])
def test_other_addresses_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"no address of http or https$"):
        download(url, tmp_path / "w.pth")


def test_a_login_goes_to_its_own_host_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to where it redirects, and not from the user's ~/.netrc; no error shows it."""
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with scripted(honest) as other, scripted(redirect(f"{other.url}/w.pth")) as server:
        download(f"{server.url.replace('//', '//user:p%40ss@')}/w.pth", tmp_path / "w.pth")
        download(f"{server.url}/w.pth", tmp_path / "v.pth")
        assert [r.get("authorization") for r in server.requests] == ["Basic dXNlcjpwQHNz", None]
        assert [r.get("authorization") for r in other.requests] == [None, None]
    with scripted(sent(b"", "401 Unauthorized")) as server, pytest.raises(DownloadError) as error:
        download(f"{server.url.replace('//', '//user:pass@')}/w.pth", tmp_path / "w.pth")
    assert "pass@" not in str(error.value)


def test_https_is_not_left() -> None:
    with pytest.raises(DownloadError, match="from https to http://a/b"):
        transfer._followed("https://a/c", "http://a/b")
    assert transfer._followed("http://a/c", "https://u:p@a/b") == "https://a/b"
    assert transfer._followed("https://a/c", "/d") == "https://a/d"


FORM = '<form action="{to}" ID=x id="download-form"><input value="t" name=\'confirm\' type="hidden"></form>'


@pytest.mark.parametrize(
    ("to", "follows"),
    [
        ("/download", True),
        ("https://drive.google.com/x", True),
        ("https://evil.example/x", False),
        ("https://google.com.evil.example/x", False),
        ("https://evilgoogle.com/x", False),
        ("https://drive.google.com@evil.example/", False),
        ("//evil.example", False),
        ("file:///etc/passwd", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_the_form_of_google_drive_leads_to_its_own_site(to: str, follows: bool) -> None:
    page, url = FORM.format(to=to), drive.direct("https://drive.google.com/file/d/1aB-c_2")
    found = drive.confirmed(page, url)
    assert bool(found) == follows
    assert not follows or found.endswith("?confirm=t")
    assert not drive.confirmed(page, f"{url}&confirm=t"), "asked, and asked again"
    assert not drive.confirmed(page, "https://example.org/file"), "another site is not confirmed"


@pytest.mark.parametrize("piece", ["<form", "<title>", "<input a", "a=", "<form a='", "aaaa", '<input "', "<form x=y"])
def test_pages_are_read_in_a_time_that_grows_with_their_length(piece: str) -> None:
    """A pattern that goes back and forth would take hours for each of these."""
    page = piece * ((1 << 20) // len(piece))
    assert drive.confirmed(page, drive.DRIVE_URL) == ""
    assert len(drive.title(page)) < 1 << 14


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_written", full)
    with scripted(honest) as server, pytest.raises(DownloadError) as error:
        download(f"{server.url}/w.pth", tmp_path / "w.pth")
    assert str(error.value).endswith("w.pth.part cannot be written: No space left on device: make room")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"^http://127\.0\.0\.1:9/w: .*file cannot be written: "):
        download("http://127.0.0.1:9/w", tmp_path / "file" / "w.pth")


def test_servers_that_are_busy_are_waited_for(tmp_path: Path, waits: list[float]) -> None:
    busy = [sent(b"", "429 Slow down", Retry_After="50"), sent(b"", "503 Busy", Retry_After=http_date(60)), honest]
    with scripted(*busy) as server:
        download(f"{server.url}/w.pth", tmp_path / "w.pth")
    assert waits[0] == 50
    assert 0 < waits[1] <= 60
    with scripted(*busy[:1]) as server, pytest.raises(DownloadError, match="asks for 50 s of patience"):
        download(f"{server.url}/w.pth", tmp_path / "v.pth")
    assert len(waits) == 4, "twice fifty of a hundred and twenty seconds"


def test_no_network_is_not_tried_again(tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(DownloadError, match="no connection: check the network"):
        download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth")
    assert not waits


@pytest.mark.parametrize(("grace", "connections"), [(0.3, (2, 5)), (60.0, (8, 8))])
def test_a_server_that_sends_a_little_through_each_connection_has_little_time_in_all(
    grace: float, connections: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each brings something new, so none is fruitless; without the limit all connections are made."""

    def a_block(request: Mapping[str, str]) -> Iterator[bytes]:
        start, total = int(re.sub(r"\D", "", request.get("range", "0"))), 10**7
        sizes = {"Content_Length": str(total - start), "Content_Range": f"bytes {start}-{total - 1}/{total}"}
        yield sent(bytes(1 << 15), "206 Partial Content" if start else "200 OK", **sizes, ETag=TAG)
        server.stop.wait(5)  # for no longer than the test lasts

    monkeypatch.setattr(transfer, "_SLOWEST", 100_000)
    monkeypatch.setattr(downloads, "_GRACE", grace)
    with scripted(a_block) as server, pytest.raises(DownloadError) as error:
        download(f"{server.url}/w.pth", tmp_path / "w.pth")
    low, high = connections
    assert low <= len(server.requests) <= high
    assert ("slower than the slowest that is waited for" in str(error.value)) == (grace < 1)


def test_a_note_that_is_damaged_is_none(tmp_path: Path) -> None:
    part = Part(tmp_path / "w.pth")
    for text in ("", "{", "[1]", '{"url": 1, "validator": 2, "total": 3}', "[" * 9999, "\0", '{"url": "x"}'):
        part.note.write_text(text)
        assert part.version is None
