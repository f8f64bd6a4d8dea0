"""One row of a suite: its models in turns, with a smaller batch if need be; whatever goes wrong stands in its entry."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from ..text import counted
from .loader_rate import loader_rate
from .steps import Setup, Side
from .suite_report import Entry
from .suites import Comparison, Reading, Suite
from .turns import Contender, Row, in_one_line, make_ready, row_of, take_turns

FEWEST_ROUNDS = 3  # that are run although the time is used up
HALVINGS = 3  # of a batch that does not fit
# All sides of a comparison share the code of their blocks; what gave up would run without a compiler, unnoticed.
COMPILING = {"recompile_limit": 64, "fail_on_recompile_limit_hit": True}


@dataclass
class Clock:
    """The time that a run may take."""

    minutes: float
    started: float = field(default_factory=time.monotonic)
    longest: dict[bool, float] = field(default_factory=dict)  # seconds to get a model ready; compiled or not

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def over(self) -> bool:
        return self.seconds >= 60 * self.minutes

    @property
    def why(self) -> str:
        return f"the {counted(self.minutes, 'minutes')} {'was' if self.minutes == 1 else 'were'} used up"

    def fits(self, compiled: bool) -> bool:
        """Whether another model can be made ready, if it takes no longer than those before it."""
        return self.seconds + self.longest.get(compiled, 0.0) < 60 * self.minutes

    def note(self, compiled: bool, seconds: float) -> None:
        self.longest[compiled] = max(seconds, self.longest.get(compiled, 0.0))


class TooLarge(Exception):
    """A batch does not fit into memory."""


@dataclass(frozen=True)
class Measuring:
    """How rows are measured."""

    suite: Suite
    device: str
    clock: Clock
    write: Callable[[Entry], None]
    turn: Callable[[], None] | None = None  # called when all models of a comparison are ready, before they run in turns

    def measure(self, row: Comparison | Reading) -> None:
        """Measure a row. Whatever goes wrong in it stands there."""
        start = self.clock.seconds
        entry = self.compared(row) if isinstance(row, Comparison) else self.read(row)
        entry.seconds = self.clock.seconds - start
        self.write(entry)

    def read(self, row: Reading) -> Entry:
        entry = Entry(row.title, row.note, batch_size=row.batch)
        try:
            entry.loader = loader_rate(row, self.device)
        except Exception as error:  # reading files can fail in many ways
            entry.missing = in_one_line(error)
        return entry

    def compared(self, row: Comparison) -> Entry:
        """All sides in turns, with a smaller batch if theirs does not fit."""
        for halving in range(HALVINGS + 1):
            batch = max(1, row.batch >> halving)
            entry = Entry(row.title, row.note, batch, rows=[row_of(side) for side in row.sides])
            entry.peers = list(dict.fromkeys(peer.spec for peer in row.peers))
            if batch < row.batch:
                entry.remarks.append(f"A batch of {row.batch} did not fit into memory.")
            setup = Setup(self.device, batch, row.img_size, self.suite.amp)
            try:
                self.attempt(row, entry, setup, last=halving == HALVINGS or batch == 1)
                break
            except TooLarge:
                entry.rows = []
            finally:
                clean_up()
        return entry

    def attempt(self, row: Comparison, entry: Entry, setup: Setup, last: bool) -> None:
        """Fill the rows of an entry.

        Args:
            last: the batch cannot be halved any more.

        Raises:
            TooLarge: it does not fit, and can be halved.
        """

        def failed(measured: Row, error: Exception) -> None:
            if out_of_memory(error) and not last:
                raise TooLarge from None
            measured.seconds.clear()
            measured.missing = in_one_line(error)

        contenders: list[Contender] = []
        counts: dict[str, int] = {}  # of operations, by model
        with torch._dynamo.config.patch(COMPILING):
            for side, measured in zip(row.sides, entry.rows, strict=True):
                if not self.clock.fits(side.compile is not None):
                    measured.missing = self.clock.why
                    continue
                try:
                    contenders.append(self.ready(measured, side, setup, counts.get(side.spec)))
                    counts[side.spec] = measured.flop
                except Exception as error:  # models of strangers and compilers fail in all ways
                    failed(measured, error)
            if self.turn:
                self.turn()
            take_turns(contenders, self.rounds(row, entry), setup, failed)

    def ready(self, measured: Row, side: Side, setup: Setup, flop: int | None) -> Contender:
        start = time.monotonic()
        made = make_ready(measured, side, setup, self.suite.warmup, count=flop is None, sample=self.suite.sample)
        measured.flop = measured.flop if flop is None else flop
        self.clock.note(side.compile is not None, time.monotonic() - start)
        return made

    def rounds(self, row: Comparison, entry: Entry) -> Iterator[int]:
        """Rounds for which there is time; what a run that is cut off leaves are those that were complete."""
        for n in range(row.rounds):
            if n >= FEWEST_ROUNDS and self.clock.over:
                return
            if n:
                self.write(entry)
            yield n


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def clean_up() -> None:
    """What the last comparison left behind, graphs and memory, is given back."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
