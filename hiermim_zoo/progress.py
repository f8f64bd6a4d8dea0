"""How far something is, for people: a bar on a terminal, and a line every half minute where there is none."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub.utils import are_progress_bars_disabled, tqdm

from .text import printable

Item = TypeVar("Item")
EVERY = 30.0  # seconds between two lines


class Progress:
    """On stderr. The environment variable HF_HUB_DISABLE_PROGRESS_BARS silences both forms.

    Args:
        total: of the units; None: nobody knows.
        unit: what is counted, in the singular: "step", "image"; "B" for bytes.
        done: units that were done before.
        shown: False says nothing, as in all processes of a run but the first.
        leave: the bar stays on the terminal when all is done.
        what: what it is about, where the unit does not tell: the name of a file.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        shown: bool = True,
        leave: bool = False,
        what: str = "",
        name: str | None = None,
    ) -> None:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            unit=unit,
            unit_scale=unit == "B",
            desc=what or None,
            leave=leave,
            disable=not (shown and terminal),
            name=name,
        )
        self.lines = shown and not terminal and sys.stderr is not None and not are_progress_bars_disabled(name)
        self.total, self.unit, self.what = total, unit, what
        self.first = self.done = done
        self.began = self.said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.bar.close()

    def update(self, count: int = 1, **shown: Any) -> None:
        """So many units more are done.

        Args:
            count: of them.
            **shown: what else is worth a look now, by name; None: nothing yet.
        """
        self.done += count
        shown = {name: value for name, value in shown.items() if value is not None}
        if shown:
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update(count)
        if not count:
            self.bar.refresh()
        now = time.monotonic()
        if self.lines and now - self.said >= EVERY:
            self.said = now
            print(self.line(now, shown), file=sys.stderr, flush=True)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; each is done when the next is asked for."""
        for item in items:
            yield item
            self.update()

    def line(self, now: float, shown: dict[str, Any]) -> str:
        """What there is to say."""
        scale, unit = (1e6, "MB") if self.unit == "B" else (1, self.unit)
        counted = f"{self.done / scale:.0f}"
        if self.total:
            counted += f" of {self.total / scale:.0f}, {self.done / self.total:.0%}".replace("%", " %")
        more = [f"{name} {value}" for name, value in shown.items()]
        if self.unit in ("image", "B") and now > self.began:
            speed = (self.done - self.first) / (now - self.began) / scale
            more.append(f"{speed:.3g} {'MB' if self.unit == 'B' else 'images'}/s")
        if self.total and self.done > self.first:
            left = (self.total - self.done) * (now - self.began) / (self.done - self.first)
            more.append(f"{duration(left)} left")
        place = f"{counted} {unit}" if self.unit == "B" else f"{unit} {counted}"
        return printable(f"{f'{self.what}: ' if self.what else ''}{place}{': ' if more else ''}{', '.join(more)}")


def shown(items: Iterable[Item], unit: str) -> Iterator[Item]:
    """The items; how many of them are done is shown.

    Args:
        unit: what they are, in the singular.
    """
    known = list(items)
    with Progress(len(known), unit) as bar:
        yield from bar.over(known)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Inside, something goes on that does not say how far it is: where there is no terminal, a line every half minute
    says for how long.

    Args:
        what: goes on.
    """
    silent = sys.stderr is None or sys.stderr.isatty() or are_progress_bars_disabled()
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(min(EVERY, threading.TIMEOUT_MAX)):
            print(printable(f"{what}: {duration(time.monotonic() - began)} so far"), file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    if not silent:
        teller.start()
    try:
        yield
    finally:
        over.set()
        if not silent:
            teller.join()


def duration(seconds: float) -> str:
    """A time for people: in the largest unit of which there are two or more."""
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
