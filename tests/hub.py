"""A small Hub on loopback, which takes repositories, files and commits as the Hub does, and gives them back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from .servers import running

TOKEN = "hf_of_somebody_who_may_write"
LARGE = 10_000  # bytes from which a file is stored apart
PART = 1_000_000  # bytes of a part; larger files come in several

Answer = tuple[int, bytes, dict[str, str]]
Files = dict[str, bytes]


@dataclass
class Repo:
    private: bool = False
    commits: list[tuple[str, Files]] = field(default_factory=list)  # the last one is main

    def add(self, files: Files) -> str:
        told = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((told, files))
        return told

    @property
    def files(self) -> Files:
        return self.commits[-1][1] if self.commits else {}

    @property
    def head(self) -> str:
        return self.commits[-1][0] if self.commits else ""


class Hub(ThreadingHTTPServer):
    """``repos`` by their names; ``log`` has every request as "METHOD /path".

    ``instead`` is asked first: what it returns is the answer, None leaves the answer to the Hub, an exception hangs up.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.instead: Callable[[str, int], Answer | None] = lambda request, number: None
        self.damage: Callable[[str, bytes], bytes] = lambda name, content: content  # of what is downloaded
        self.asked: Counter[str] = Counter()

    def handle_error(self, request: Any, address: Any) -> None:
        pass  # connections that a test hangs up

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # type: ignore[assignment]

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(b"")

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_PUT(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(body)

    def answer(self, body: bytes) -> None:
        path = unquote(self.path.partition("?")[0])
        request = f"{self.command} {path}"
        self.server.log.append(request)
        self.server.asked[request] += 1
        try:
            status, content, headers = self.server.instead(request, self.server.asked[request]) or self.own(path, body)
        except ConnectionError:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def own(self, path: str, body: bytes) -> Answer:
        """What a Hub answers."""
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/whoami-v2":
            return say({"name": "somebody", "type": "user", "orgs": []}) if known else refuse(401)
        if path == "/api/validate-yaml":
            return say({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            return self.store(*path.removeprefix("/lfs/").split("/"), body=body)
        if path == "/api/repos/create":
            return self.create(json.loads(body)) if known else refuse(401)
        name, _, rest = path.removeprefix("/api/models/").lstrip("/").replace("/resolve/", " resolve/").partition(" ")
        if not rest:
            parts = name.removesuffix("/info/lfs/objects/batch").removesuffix(".git").split("/")
            name, rest = "/".join(parts[:2]), "/".join(parts[2:])
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not known):
            return refuse(404 if known else 401, {"X-Error-Code": "RepoNotFound"})
        if path.endswith("/batch"):
            return self.batch(json.loads(body)) if known else refuse(401)
        if rest.startswith("resolve/"):
            return self.resolve(repo, *rest.removeprefix("resolve/").split("/", 1))
        if rest.startswith(("preupload/", "commit/")):
            if not known:
                return refuse(401)
            return self.preupload(repo, json.loads(body)) if rest[0] == "p" else self.commit(repo, name, body)
        if rest.startswith("tree/"):
            return say([{"type": "file", "path": n, "size": len(c), "oid": git(c)} for n, c in repo.files.items()])
        return say({"id": name, "sha": repo.head or None, "private": repo.private, "siblings": siblings(repo.files)})

    def create(self, wanted: dict[str, Any]) -> Answer:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repos:
            return refuse(409)
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.server.repos[name] = Repo(private)
        return say({"url": f"{self.server.url}/{name}"})

    def preupload(self, repo: Repo, wanted: dict[str, Any]) -> Answer:
        files = []
        for one in wanted["files"]:
            content = repo.files.get(one["path"])
            mode = "lfs" if one["size"] >= LARGE else "regular"
            oid = None if content is None else digest(content) if mode == "lfs" else git(content)
            files.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return say({"files": files})

    def store(self, oid: str, part: str = "", *, body: bytes) -> Answer:
        """A file, a part of one, or (POST) the word that all parts are there."""
        blobs = self.server.blobs
        if self.command == "PUT":
            blobs[f"{oid}/{part}" if part else oid] = body
            return 200, b"", {"ETag": f'"{digest(body)}"'}
        parts = [blobs[f"{oid}/{one['partNumber']}"] for one in json.loads(body)["parts"]]
        blobs[oid] = b"".join(parts)
        return say({}) if digest(blobs[oid]) == oid else refuse(400)

    def batch(self, wanted: dict[str, Any]) -> Answer:
        objects = []
        for one in wanted["objects"]:
            href = f"{self.server.url}/lfs/{one['oid']}"
            numbers = range(1, -(-one["size"] // PART) + 1)
            parts = {"chunk_size": str(PART), **{f"{number:05}": f"{href}/{number}" for number in numbers}}
            upload = {"href": href, "header": parts if one["size"] > PART else {}}
            objects.append(one if one["oid"] in self.server.blobs else {**one, "actions": {"upload": upload}})
        return say({"transfer": "basic", "objects": objects})

    def commit(self, repo: Repo, name: str, body: bytes) -> Answer:
        files, (header, *lines) = dict(repo.files), map(json.loads, body.splitlines())
        if header["value"].get("parentCommit", repo.head) != repo.head:
            return refuse(412)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    return refuse(400)
                files[value["path"]] = self.server.blobs[value["oid"]]
            else:
                assert line["key"] == "deletedFile", line["key"]
                del files[value["path"]]
        made = repo.add(files)
        return say({"commitUrl": f"{self.server.url}/{name}/commit/{made}", "commitOid": made})

    def resolve(self, repo: Repo, revision: str, file: str) -> Answer:
        found = next((one for one in reversed(repo.commits) if revision in ("main", one[0])), None)
        if found is None:
            return refuse(404, {"X-Error-Code": "RevisionNotFound"})
        if file not in found[1]:
            return refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found[0]})
        content = self.server.damage(file, found[1][file])
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{digest(content)}"', "Accept-Ranges": "bytes"}
        return 200, content, headers


def say(content: object) -> Answer:
    return 200, json.dumps(content).encode(), {"Content-Type": "application/json"}


def refuse(status: int, headers: dict[str, str] | None = None) -> Answer:
    return status, b"{}", {"Content-Type": "application/json", **(headers or {})}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def siblings(files: Files) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, content in files.items():
        lfs = {"size": len(content), "sha256": digest(content), "pointerSize": 130}
        about = {"rfilename": name, "size": len(content), "blobId": git(content)}
        found.append({**about, **({"lfs": lfs} if len(content) >= LARGE else {})})
    return found


@contextmanager
def hub() -> Iterator[Hub]:
    with running(Hub()) as server:
        yield server
