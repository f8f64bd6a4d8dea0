"""Servers on loopback: one serves files as origins do, one speaks the part of the Hub's protocol for downloads, one
sends whatever it is told.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD with byte ranges; ``server.files`` maps paths to contents, ``server.log`` keeps the requests."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server: Server = self.server  # type: ignore[assignment]
        path = self.path.partition("?")[0]
        server.log.append((self.command, self.path, self.headers.get("Range")))
        page = server.page(self.path) if server.page else None
        if page is not None:
            self.reply(200, page.encode(), body, {"Content-Type": "text/html; charset=utf-8"})
            return
        listing = server.listing(path) if server.hub else None
        if listing is not None:
            self.reply(200, json.dumps(listing).encode(), body, {"Content-Type": "application/json"})
            return
        if server.hub and f"/resolve/{COMMIT}/" in path:  # the client asks for files by commit once it knows it
            path = next((p for p in server.files if re.sub("/resolve/[^/]+/", f"/resolve/{COMMIT}/", p) == path), path)
        if path not in server.files:
            headers = {"X-Error-Code": "RepoNotFound"} if server.hub else {}
            self.reply(404, b"", body, headers)
            return
        content = server.files[path]
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": tag}
        if server.hub:
            headers |= {"X-Repo-Commit": COMMIT, "ETag": f'"{server.etag}"' if server.etag else tag}
        asked = self.headers.get("Range") if self.headers.get("If-Range", tag) == tag else None
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if start and start >= len(content):
            self.reply(416, b"", body, {"Content-Range": f"bytes */{len(content)}"})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(206 if start else 200, content[start:], body, headers)

    def reply(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        server: Server = self.server  # type: ignore[assignment]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        cut = server.cuts.pop(0) if server.cuts and len(content) > 1000 else None
        self.wfile.write(content[:cut])
        if cut is not None:  # promise more than is sent, and hang up
            self.wfile.flush()
            self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: dict[str, bytes], hub: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.hub = hub
        self.log: list[tuple[str, str, str | None]] = []
        self.cuts: list[int] = []  # bytes after which the next answers with a large body break off
        self.etag = ""  # of all files, in place of their digests
        self.page: Callable[[str], str | None] | None = None  # path and query -> a web page instead of the file

    def listing(self, path: str) -> object:
        """What the Hub's API says of a repository that has files here: about a revision, or its tree."""
        match = re.fullmatch(r"/api/models/(.+)/(revision|tree)/(.+)", path)
        found = {p: c for p, c in self.files.items() if match and p.startswith(f"/{match[1]}/resolve/")}
        if not match or not found or not (match[3] == COMMIT or f"/resolve/{match[3]}/" in next(iter(found))):
            return None
        names = {re.sub("^/.+/resolve/[^/]+/", "", p): c for p, c in found.items()}
        if match[2] == "revision":
            return {
                "id": match[1],
                "modelId": match[1],
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names],
            }
        return [
            {"type": "file", "path": name, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for name, c in names.items()
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


S = TypeVar("S", bound=ThreadingHTTPServer)


@contextmanager
def running(server: S) -> Iterator[S]:
    """A server at work, until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(files: dict[str, bytes], hub: bool = False) -> Iterator[Server]:
    with running(Server(files, hub)) as server:
        yield server


Reply = bytes | Callable[[dict[str, str]], Iterable[bytes]]


class Scripted:
    """A server that sends byte by byte what a test says: one reply for each connection, the last one again and again.

    ``requests`` are the headers that came, in lower case, with the path under "path".
    """

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies = replies
        self.requests: list[dict[str, str]] = []
        self.stop = threading.Event()  # replies that never end wait for it
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def run(self) -> None:
        threads = []
        while not self.stop.is_set():
            threads.append(threading.Thread(target=self.serve, args=(self.socket.accept()[0],), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            self.answer(connection)

    def answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            got = connection.recv(1 << 16)
            if not got:
                return
            head += got
        first, *lines = head.decode("latin1").split("\r\n\r\n")[0].split("\r\n")
        request = {"path": first.split()[1]} | {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        self.requests.append(request)
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        for piece in [reply] if isinstance(reply, bytes) else reply(request | {"server": self.url}):
            connection.sendall(piece)
            if self.stop.is_set():
                return


@contextmanager
def scripted(*replies: Reply) -> Iterator[Scripted]:
    server = Scripted(replies)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        with contextlib.suppress(OSError):
            socket.create_connection(server.socket.getsockname(), timeout=1).close()
        thread.join()
        server.socket.close()
