"""What a training run says of itself: a progress bar, JSON lines of one form, and whoever --log names."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from huggingface_hub.utils import tqdm

from ..checkpoints.atomic import replacing
from ..progress import Progress, duration
from .run_clients import Client, Place, opened

LOG, LOOKS, NONFINITE, UNREADABLE = "log.jsonl", "looks", "nonfinite", "unreadable"  # in the folder of a run
COLUMNS = {  # of a line, of pre-training and of fine-tuning; docs/pretraining.md has the same table
    "step": "steps of the optimiser that are done",
    "epoch": "epochs that are done, with the part of the one that is under way",
    "samples": "images or clips that were shown",
    "time": "seconds since the beginning of 1970",
    "loss": "mean of the steps since the line before; null if none of them was finite",
    "lr": "peak over the layers of the learning rate of this step",
    "norm": "of the gradient of this step, before it was clipped; null if it is not finite",
    "images_s": "images or clips a second since the line before, without previews",
    "waiting": "share of that time in which steps waited for data, from 0 to 1",
    "gib": "largest amount of memory so far, of the GPU, else of the process",
    "left": "seconds until the end of the run, at the pace that it has had",
    "knn": "images in percent whose class 20 nearest neighbours tell, in a preview of pre-training",
    "top1": "images in percent whose class fine-tuning tells, of those that are measured on (--eval-every)",
    "map": "the same for tags: mean average precision",
    "r2": "the same for numbers: share of their variance",
}
DIGITS = 5  # that are significant
_OLDER = {"images/s": "images_s"}  # names in logs of fine-tuning of before version 0.1
UNCOUNTED, COUNTED = 3, 10  # first steps of a run, and those after them that tell how long it takes
Item = TypeVar("Item")


class RunLog:
    """Notes of the first process; those of other processes go nowhere.

    Args:
        folder: gets log.jsonl and what clients write; None: notes are not kept.
        start: step from which the run goes on; what an interrupted run noted beyond it is dropped.
        total: steps of the whole run.
        active: False in all processes but the first.
        clients: who is told beside log.jsonl, names of ``run_clients.CLIENTS``.
        about: what they are told of the run, by name.

    Raises:
        ValueError: a client cannot begin.
    """

    def __init__(
        self,
        folder: Path | None,
        start: int,
        total: int,
        active: bool,
        clients: Sequence[str] = (),
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.active, self.file = active, folder and folder / LOG
        self.start, self.total, self.began = start, total, time.monotonic()
        self.clients: list[Client] = []
        if active and self.file and folder:
            folder.mkdir(parents=True, exist_ok=True)
            _forget(self.file, start)
            place = Place(folder, start, tuple(COLUMNS), read_log(folder), about or {})
            self.clients = opened(clients, place)
        self.bar = Progress(total, "step", done=start, shown=active, leave=True)

    def progress(self, **shown: Any) -> None:
        """One step is done."""
        self.bar.update(**shown)

    def note(self, step: int, **values: Any) -> None:
        """Append a line of values, which COLUMNS names."""
        if not (self.active and self.file):
            return
        if "loss" in values and step > self.start:
            values["left"] = self.left(step)
        if odd := values.keys() - COLUMNS:
            raise TypeError(f"the log has no column {', '.join(sorted(odd))}")
        line = {"step": step, "time": round(time.time(), 3), **_plain(values)}
        line = {name: line[name] for name in COLUMNS if name in line}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        for client in list(self.clients):
            try:
                client.note(line)
            except Exception as error:  # a service that fails ends no run
                self.clients.remove(client)
                self.say(f"--log {client.name} is told no more: {type(error).__name__}: {error}")

    def left(self, step: int) -> int:
        """Seconds to the end, after a step."""
        return round((time.monotonic() - self.began) * (self.total - step) / (step - self.start))

    def say(self, text: str) -> None:
        say(text, self.active)

    def close(self) -> None:
        self.bar.close()
        for client in self.clients:
            try:
                client.close()
            except Exception as error:  # likewise
                self.say(f"--log {client.name} did not end well: {type(error).__name__}: {error}")
        self.clients = []


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
    """The lines of log.jsonl in the names of COLUMNS; one that a killed process left unfinished is left out.

    Logs of fine-tuning of before version 0.1 have no steps, and count epochs from 0 and from their beginning.
    """
    file = folder / LOG
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    notes = []
    for line in lines:
        try:
            note = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(note, dict):
            notes.append(_renamed(note))
    return notes


def unreadable_file(folder: Path, rank: int) -> Path:
    """Where a process of a run lists what it cannot read."""
    return folder / UNREADABLE / f"rank-{rank}.txt"


def _renamed(note: dict[str, Any]) -> dict[str, Any]:
    note = {_OLDER.get(name, name): value for name, value in note.items()}
    if "step" not in note and isinstance(note.get("epoch"), int):
        note["epoch"] += 1
    return note


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As many digits as mean something; numbers that JSON does not know become null."""
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in values.items()}


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _forget(file: Path, start: int) -> None:
    kept = [note for note in read_log(file.parent) if note.get("step", start + 1) <= start]
    with replacing(file) as part:
        part.write_text("".join(json.dumps(note) + "\n" for note in kept), encoding="utf-8")


def peak_memory(device: torch.device) -> float:
    """Largest amount of memory so far, in GiB: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
