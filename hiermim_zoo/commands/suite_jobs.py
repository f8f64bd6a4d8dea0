"""Comparisons that need a compiler: several processes make them ready at the same time, each is measured alone."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ..training.distributed import pick_device
from .suite_report import Entry
from .suite_row import Clock, Measuring
from .suites import Comparison, Suite

SHARE = 0.75  # of the minutes, after which what is not ready is left out
LOOK = 1.0  # seconds between two looks at the clock


@dataclass
class Job:
    """A process with one comparison."""

    title: str
    process: BaseProcess
    pipe: Connection  # of its entries; None says that it is ready and waits
    write: Callable[[Entry], None]
    ready: bool = False
    over: bool = False

    def hear(self) -> None:
        """Take what the process has to say next."""
        try:
            entry = self.pipe.recv()
        except EOFError:
            self.over = True
            return
        if entry is None:
            self.ready = True
        else:
            self.write(entry)

    def measure(self) -> None:
        """Let the process measure to its end; with a smaller batch it has to get ready once more."""
        while not self.over:
            if self.ready:
                self.ready = False
                self.pipe.send(True)
            self.hear()
        self.process.join()
        if self.process.exitcode:
            self.leave_out(f"its process ended with exit code {self.process.exitcode}")

    def leave_out(self, why: str) -> None:
        """End the process, so that it does not disturb the others."""
        self.process.kill()
        self.write(Entry(self.title, missing=why))


@dataclass(frozen=True)
class Jobs:
    """How comparisons are measured by several processes."""

    suite: Suite
    device: str
    clock: Clock
    write: Callable[[int, Entry], None]  # (number, entry), round by round
    processes: int
    begun: list[Job] = field(default_factory=list)

    def measure(self, rows: Mapping[int, Comparison]) -> None:
        """Measure comparisons, in groups of as many as there may be processes.

        Args:
            rows: by their number in the suite.
        """
        numbers = list(rows)
        for first in range(0, len(numbers), self.processes):
            group = {number: rows[number] for number in numbers[first : first + self.processes]}
            try:
                self.measure_group(group)
            finally:
                for job in self.begun:
                    job.process.kill()
                    job.process.join()
                self.begun.clear()

    def measure_group(self, rows: Mapping[int, Comparison]) -> None:
        if self.clock.over:
            for number, row in rows.items():
                self.write(number, Entry(row.title, missing=self.clock.why))
            return
        self.begun.extend(self.begin(number, row) for number, row in rows.items())
        self.get_ready()
        for job in self.begun:
            if not (job.ready or job.over):
                job.leave_out(self.clock.why)
        for job in self.begun:
            if job.ready or job.over:
                job.measure()

    def begin(self, number: int, row: Comparison) -> Job:
        """Start the process of a comparison."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.processes)
        about = self.suite._replace(rows=()), self.device, self.clock
        process = context.Process(target=work, args=(row, *about, threads, theirs))
        process.start()
        theirs.close()  # so that its end is noticed here
        return Job(row.title, process, ours, partial(self.write, number))

    def get_ready(self) -> None:
        """Wait until all processes are ready, or most of the time is used up."""
        while self.clock.seconds < SHARE * 60 * self.clock.minutes:
            waiting = {job.pipe: job for job in self.begun if not (job.ready or job.over)}
            if not waiting:
                return
            heard = wait(list(waiting), timeout=LOOK)
            for job in waiting.values():
                if job.pipe in heard:
                    job.hear()


def work(row: Comparison, suite: Suite, device: str, clock: Clock, threads: int, pipe: Connection) -> None:
    """What a process does: make the models of a comparison ready, wait for its turn, measure.

    Args:
        threads: of the compiler.
    """
    import torch._inductor.config  # slow, and needed here alone

    torch._inductor.config.compile_threads = threads
    pick_device(device)

    def turn() -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the others need it while they get ready
        pipe.send(None)
        pipe.recv()

    try:
        Measuring(suite, device, clock, pipe.send, turn).measure(row)
    except (EOFError, BrokenPipeError):  # whoever started it is gone
        return
