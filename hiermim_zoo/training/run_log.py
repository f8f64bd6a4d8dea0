"""What a training run says of itself: a progress bar, JSON lines, and TensorBoard where that is installed."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from huggingface_hub.utils import tqdm

from ..checkpoints.atomic import replacing
from ..progress import Progress, duration

LOG = "log.jsonl"
UNCOUNTED, COUNTED = 3, 10  # first steps of a run, and those after them that tell how long it takes
Item = TypeVar("Item")


class RunLog:
    """Notes of the first process; those of other processes go nowhere.

    Args:
        folder: gets log.jsonl and TensorBoard's events.
        start: step from which the run goes on; what an interrupted run noted beyond it is dropped.
        total: steps of the whole run.
        active: False in all processes but the first.
    """

    def __init__(self, folder: Path, start: int, total: int, active: bool) -> None:
        self.active, self.file = active, folder / LOG
        self.bar = Progress(total, "step", done=start, shown=active, leave=True)
        self.board: Any = None
        if active:
            _forget(self.file, start)
            self.board = _tensorboard(folder, start)

    def progress(self, **shown: Any) -> None:
        """One step is done."""
        self.bar.update(**shown)

    def note(self, step: int, **values: Any) -> None:
        """Append a line of values."""
        if not self.active:
            return
        with self.file.open("a", encoding="utf-8") as file:
            line = {"step": step, "time": round(time.time(), 3), **_plain(values)}
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self.board is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(key, value, step)
            self.board.flush()

    def say(self, text: str) -> None:
        say(text, self.active)

    def close(self) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()


def say(text: str, first: bool = True) -> None:
    """Say something on stderr, in one process of a run; nothing where there is nothing to say."""
    if text and first:
        tqdm.write(text, file=sys.stderr)


class Rates(NamedTuple):
    """What a Meter says, for the log."""

    loss: float | None  # the mean; None where no step counted
    images_s: float
    waiting: float  # share of the time, for data


class Meter:
    """Losses, time, and how much of it went by for data, from one line of the log to the next.

    Args:
        step: after which it measures.
        batch: images of a step.
    """

    def __init__(self, step: int, batch: int) -> None:
        self.batch = batch
        self.shown = time.perf_counter()  # when the last step was
        self._start(step)

    def _start(self, step: int) -> None:
        self.losses: list[float] = []
        self.step, self.since, self.waited = step, time.perf_counter(), 0.0

    def next_of(self, stream: Iterator[Item]) -> Item:
        """The next of a stream of data; the time it takes is noted as waiting."""
        asked = time.perf_counter()
        item = next(stream)
        self.waited += time.perf_counter() - asked
        return item

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done inside takes no time."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.since, self.shown = self.since + seconds, self.shown + seconds

    def lap(self) -> float:
        """Images a second since the last step that was shown."""
        now = time.perf_counter()
        speed, self.shown = self.batch / (now - self.shown), now
        return speed

    def read(self, step: int) -> Rates:
        """Everything up to a step; what comes is measured anew."""
        seconds = time.perf_counter() - self.since
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        reading = Rates(loss, (step - self.step) * self.batch / seconds, self.waited / seconds)
        self._start(step)
        return reading


class Forecast:
    """How long a run will take, from its first steps; the very first ones, in which all is set up, do not count.

    Args:
        first: steps that are done already.
        last: step after which it ends.
    """

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.times: list[float] = []

    def after(self, step: int) -> str:
        """What can be said once a step is done, said once; empty at all other steps, and in a run that is short."""
        if self.last - self.first < 2 * (UNCOUNTED + COUNTED) or len(self.times) > COUNTED:
            return ""
        if step - self.first >= UNCOUNTED:
            self.times.append(time.perf_counter())
        if len(self.times) <= COUNTED:
            return ""
        each = median(later - sooner for sooner, later in pairwise(self.times))
        whole = duration(each * (self.last - self.first))
        counted = f"steps {self.first + UNCOUNTED + 1} to {step}"
        return f"the run takes about {whole}, {each:.2g} s a step in {counted}; fewer --steps take less"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; one that a killed process left unfinished is left out."""
    file = folder / LOG
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    notes = []
    for line in lines:
        try:
            notes.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return notes


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that JSON does not know become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _forget(file: Path, start: int) -> None:
    kept: list[Mapping[str, Any]] = [note for note in read_log(file.parent) if note["step"] <= start]
    with replacing(file) as part:
        part.write_text("".join(json.dumps(note) + "\n" for note in kept), encoding="utf-8")


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)


def peak_memory(device: torch.device) -> float:
    """Largest amount of memory so far, in GiB: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
