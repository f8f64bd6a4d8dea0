"""Processes that read for a DataLoader, and what becomes of a run when one of them is killed."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
KILLED = "DataLoader worker (pid"  # begins torch's errors about them


class ReaderKilled(ValueError):
    """A process that reads was killed, and what it should have read is missing."""


def readings(loader: Iterable[Item]) -> Iterator[Item]:
    """What a DataLoader gives.

    torch tells of a killed process wherever the program happens to be, be it amid an update of the weights. Here it is
    told where an item is missing, and nowhere else.

    Raises:
        ReaderKilled: when the item is asked for.
    """
    items = iter(loader)  # from here on torch listens
    with _listening() as heard:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                if KILLED not in str(error):
                    raise
                found = re.search(r"signal: (\w+)", " ".join([*heard, str(error)]))
                how = f"by a signal ({found[1]})" if found else "or ended by itself"
                hint = "often because memory ran out, of which fewer --workers need less"
                raise ReaderKilled(f"a process that reads images was killed {how}, {hint}") from error
            yield item


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Inside, what torch has to say when a process has ended is put into the list, not raised."""
    heard: list[str] = []
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield heard
        return
    torchs: Any = signal.getsignal(signal.SIGCHLD)

    def note(number: int, frame: Any) -> None:
        try:
            if callable(torchs):
                torchs(number, frame)
        except RuntimeError as error:
            heard.append(str(error))

    signal.signal(signal.SIGCHLD, note)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGCHLD, torchs)
