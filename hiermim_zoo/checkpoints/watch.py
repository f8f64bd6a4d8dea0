"""Connections that cannot hold a process: whoever sends too little is hung up on.

The time limits of sockets count from byte to byte, so that one byte a minute satisfies them for ever.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Watch:
    """Shuts the sockets that it follows when a window of time brought too few bytes, or when the time is over.

    Args:
        window: seconds.
        least: bytes that must come in each of them.
        deadline: on the clock of time.monotonic.
    """

    def __init__(self, window: float, least: int, deadline: float) -> None:
        self.reason = ""  # why it hung up; empty: it did not
        self._window, self._least, self._deadline = window, least, deadline
        self._came = 0
        self._sockets: list[socket.socket] = []
        self._originals: list[socket.socket] = []  # urllib3 forgets to close some of those whose headers it refuses
        self._lock = threading.Lock()
        self._turn = threading.Event()  # something is over: the transfer, or what comes before its body
        self._over = False
        self._thread = threading.Thread(target=self._run, name="hiermim_zoo.download", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._turn.set()
        self._thread.join()
        for own in self._sockets:
            own.close()
        for left in self._originals:
            if left.fileno() >= 0:
                socket.close(left.detach())  # also where an answer that nobody holds still reads from it

    def follow(self, connected: socket.socket) -> None:
        """Take a duplicate: it reaches the connection whatever TLS makes of the original."""
        with self._lock:
            self._sockets.append(connected.dup())
            self._originals.append(connected)
            if self.reason:
                self._hang_up()

    def body_begins(self) -> None:
        """The window begins anew, once: a slow answer is no slow transfer."""
        self._turn.set()

    def came(self, count: int) -> None:
        """So many bytes are there."""
        self._came += count

    def _run(self) -> None:
        while not self._over:
            before = self._came
            left = self._deadline - time.monotonic()
            if self._turn.wait(max(0.0, min(self._window, left))):
                self._turn.clear()
                continue
            late = time.monotonic() >= self._deadline
            if late or self._came - before < self._least:
                slow = f"it sent fewer than {self._least} bytes in {self._window:g} s"
                with self._lock:
                    self.reason = "the time for one download is over" if late else slow
                    self._hang_up()
                return

    def _hang_up(self) -> None:
        for own in self._sockets:
            with contextlib.suppress(OSError):  # closed by the other side
                own.shutdown(socket.SHUT_RDWR)


def watched_session(watch: Watch) -> requests.Session:
    """A session of requests all of whose connections are followed; proxies of SOCKS have sockets of their own."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            made = super()._new_conn()
            watch.follow(made)
            return made

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            made = super()._new_conn()
            watch.follow(made)
            return made

    pools = {
        "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": Plain}),
        "https": type("SecurePool", (HTTPSConnectionPool,), {"ConnectionCls": Secure}),
    }

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
            manager = super().proxy_manager_for(proxy, **kwargs)
            if not proxy.lower().startswith("socks"):
                manager.pool_classes_by_scheme = pools
            return manager

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """None: else requests prepares to follow, and reads the body of the redirect without a limit for that."""

    session = Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session
