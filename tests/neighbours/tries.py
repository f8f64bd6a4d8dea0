"""One consumer with one model, in a process that tries one after the other."""

from __future__ import annotations

import contextlib
import re
import signal
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch

import hiermim_zoo  # noqa: F401

from .consumers import CHECKS, PEERS
from .known import KNOWN

LIMIT, SHORT = 150, 30  # seconds for a try; the second of what is said not to work, and of timm's own models


class OutOfTimeError(BaseException):
    """No Exception: what a consumer catches of itself is not to catch it."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise OutOfTimeError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Outcome(NamedTuple):
    said: str  # empty where it works
    seconds: float


def outcome(title: str, name: str) -> Outcome:
    """One try, on one thread: as many run side by side as there are cores."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began, said = time.monotonic(), ""
    try:
        with at_most(SHORT if name in PEERS or known(title, name) else LIMIT):
            CHECKS[title].check(name)
    except (Exception, OutOfTimeError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return Outcome(said, time.monotonic() - began)


def known(title: str, name: str) -> str:
    """Why it does not work, as the page says; empty where it should."""
    return next((why for (a, b), why in KNOWN.items() if re.search(a, title) and re.fullmatch(b, name)), "")
