"""No test leaves the machine, writes outside its own folder, or takes more than its share of the processor."""

from __future__ import annotations

import gc
import math
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hiermim_zoo import progress

from .forks import Forks, Stem, new_stem

progress.EVERY = math.inf  # what a command says does not depend on how busy the machine is

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


def pytest_collection_finish() -> None:
    """What is imported stays: without these million objects a collection takes hundredths of a second, not tenths."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to anything but this machine fail."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address):  # type: ignore[no-untyped-def]
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionRefusedError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def own_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's cache of weights is an empty folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HIERMIM_WEIGHTS", raising=False)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Random numbers and compiled graphs of one test do not depend on the tests before it."""
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that compare bits: the numbers of two may differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def stem() -> Iterator[Stem]:
    """What makes processes that have torch imported; each reads environment variables of its own."""
    with new_stem() as process:
        yield process


@pytest.fixture(scope="session")
def forked(stem: Stem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes of their own that have torch and timm imported."""
    with stem.forks(tmp_path_factory.mktemp("forks")) as parent:
        yield parent
