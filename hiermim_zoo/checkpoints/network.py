"""Whether servers can be reached at all, found out in seconds: clients of HTTP try again for half a minute, and the
look-up of names has no limit of time of its own.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 4.0  # seconds, for all servers together
_FAMILIES = (socket.AF_INET, socket.AF_INET6)  # asked at the same time: one of the two is often a hole
_PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}

Server = tuple[str, int]  # host, port
Door = tuple[Server, socket.AddressFamily]


def unreachable(addresses: Iterable[str]) -> dict[str, str]:
    """Those of some http(s) addresses whose server takes no connection, each with the reason.

    All servers are asked at once. Behind a proxy it is the proxy that has to answer.
    """
    servers = {address: _first_server(address) for address in addresses}
    doors = {(server, family) for server in servers.values() for family in _FAMILIES}
    answers: SimpleQueue[tuple[Door, str]] = SimpleQueue()
    for door in doors:  # daemons: a look-up that hangs must not keep the process from ending
        Thread(target=_knock, args=(door, answers), daemon=True).start()
    reasons: dict[Door, str] = {}
    reached: set[Server] = set()
    end = time.monotonic() + PATIENCE
    while any(door not in reasons and door[0] not in reached for door in doors):
        try:
            door, reason = answers.get(timeout=max(0.0, end - time.monotonic()))
        except Empty:
            break
        reasons[door] = reason
        reached |= set() if reason else {door[0]}
    silence = f"no answer within {PATIENCE:g} s"
    return {
        address: f"no connection to {server[0]}: {reasons.get((server, socket.AF_INET), silence)}"
        for address, server in servers.items()
        if server not in reached
    }


def _first_server(address: str) -> Server:
    """Where a request to an address goes first."""
    parts = urlsplit(address)
    proxies = {} if proxy_bypass(parts.netloc) else getproxies()
    if proxy := proxies.get(parts.scheme) or proxies.get("all"):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80)


def _knock(door: Door, answers: SimpleQueue[tuple[Door, str]]) -> None:
    """Connect and hang up; the answer is the reason why not, or nothing."""
    (host, port), family = door
    reason = "no address"
    try:
        for *kind, _, place in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM):
            with socket.socket(*kind) as connection:
                connection.settimeout(2 * PATIENCE)  # the caller no longer waits then
                try:
                    connection.connect(place)
                    reason = ""
                    break
                except OSError as error:
                    reason = error.strerror or str(error)
    except (OSError, UnicodeError) as error:  # no such name; one that cannot be a name
        reason = getattr(error, "strerror", None) or str(error)
    answers.put((door, reason))
