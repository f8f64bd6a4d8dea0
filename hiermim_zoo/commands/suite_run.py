"""A suite: its rows one after the other, each written down round by round."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..training.distributed import pick_device, restored
from ..training.precision import chosen_amp
from .loader_rate import loader_rate
from .machine import machine, matrix_product, versions
from .options import Outcome
from .options.benchmark import SUITES as MINUTES
from .options.benchmark import BenchmarkOptions
from .output_files import check_writable
from .steps import Setup, Side
from .suite_report import Entry, Report
from .suites import SUITES, Comparison, Reading, Suite, rehearsed
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
        return f"the {self.minutes:g} minutes were used up"

    def fits(self, compiled: bool) -> bool:
        """Whether another model can be made ready, if it takes no longer than those before it."""
        return self.seconds + self.longest.get(compiled, 0.0) < 60 * self.minutes

    def note(self, compiled: bool, seconds: float) -> None:
        self.longest[compiled] = max(seconds, self.longest.get(compiled, 0.0))


def run_suite(options: BenchmarkOptions) -> Outcome:
    """Measure all rows; the result is the folder with results.md and results.json, which are written after every row.

    Raises:
        ValueError: there is no such device or comparison, or the folder holds results already.
    """
    name, folder = options.suite, options.output
    assert name is not None
    assert folder is not None
    suite = chosen_rows(SUITES[name], options.rows)
    suite = rehearsed(suite) if options.rehearse else suite
    device = chosen_device(options, suite)
    clock = Clock(options.minutes or MINUTES[name])
    with restored():
        pick_device(device)
        check_folder(folder)
        if suite.threads:
            torch.set_num_threads(suite.threads)
        about = about_run(options, clock, device, suite)
        report = Report(folder, [row.title for row in suite.rows], suite.goals, about)
        report.write()
        for number, row in enumerate(suite.rows):
            if clock.over:
                report.entries[number].missing = clock.why
                continue
            say(f"{number + 1} of {len(suite.rows)}: {row.title}")
            Measuring(suite, device, clock, partial(written, report, number)).measure(row)
        report.write()
    return Outcome(folder, f"wrote {report.markdown} and {report.json}: {report.summary()}")


def chosen_rows(suite: Suite, numbers: tuple[int, ...] | None) -> Suite:
    """The comparisons with these numbers, counted from 1, in their order in the suite; None: all.

    Raises:
        ValueError: there is no such comparison.
    """
    if numbers is None:
        return suite
    if max(numbers) > len(suite.rows):
        raise ValueError(f"--rows {max(numbers)}: the suite has {len(suite.rows)} comparisons")
    return suite._replace(rows=tuple(suite.rows[n - 1] for n in sorted(set(numbers))))


def written(report: Report, number: int, entry: Entry) -> None:
    """Write a row as far as it has come."""
    report.entries[number] = entry
    report.write()


def about_run(options: BenchmarkOptions, clock: Clock, device: str, suite: Suite) -> dict[str, Any]:
    """What a run was told, and what it runs on."""
    return {
        "suite": options.suite,
        "rehearsal": options.rehearse,
        "command": options.command("benchmark"),
        "minutes": clock.minutes,
        "amp": chosen_amp(suite.amp, torch.device(device)),
        "threads": torch.get_num_threads(),
        "float32_products": torch.get_float32_matmul_precision(),
        "machine": machine(device),
        "versions": versions(),
        "matrix_product": matrix_product(suite.product, device, suite.amp),
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def chosen_device(options: BenchmarkOptions, suite: Suite) -> str:
    """That of the suite; rehearsals run anywhere.

    Raises:
        ValueError: it is not there, or another kind was asked for.
    """
    there = torch.cuda.is_available() or suite.device == "cpu"
    device = options.device or (suite.device if there else "cpu")
    if device.partition(":")[0] != suite.device and not options.rehearse:
        raise ValueError(
            f"--suite {options.suite} measures on {suite.device}, not on {device}; "
            "with --rehearse it shows on any device whether all of it runs"
        )
    return device


def check_folder(folder: Path) -> None:
    """Make the folder for results, if need be.

    Raises:
        ValueError: it cannot be written to, or has results already.
    """
    for name in Report.FILES:
        if (folder / name).exists():
            raise ValueError(f"{folder} holds the results of another run ({name}): give another folder with -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file, not a folder" if folder.is_file() else error.strerror
        raise ValueError(f"-o {folder} cannot hold results: {why}") from error
    for name in Report.FILES:
        check_writable(folder / name, str(folder))


# ---- one row


class TooLarge(Exception):
    """A batch does not fit into memory."""


@dataclass(frozen=True)
class Measuring:
    """How rows are measured."""

    suite: Suite
    device: str
    clock: Clock
    write: Callable[[Entry], None]

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
