"""Whom a run tells beside log.jsonl: a service, a board, a table, each by its own client (``--log``)."""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..checkpoints.atomic import replacing
from ..commands.options.problems import gathered
from ..commands.options.shared import LOGS
from .distributed import restored

TABLE, BOARD, SERVICE = "log.csv", "tensorboard", "wandb"  # in the folder of a run
PROJECT = "hiermim_zoo"  # of W&B, where the environment names none
RUN_ID = "hiermim-run-id"  # in the folder of SERVICE: a run that goes on is the same one there


class Place(NamedTuple):
    """Where a client begins.

    Args:
        folder: of the run.
        start: step from which it goes on.
        columns: all names that lines may have.
        notes: the lines that are there already.
        about: what there is to say of the run, by name.
    """

    folder: Path
    start: int
    columns: tuple[str, ...]
    notes: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any]


class Client(Protocol):
    """One that is told."""

    name: str

    def note(self, line: Mapping[str, Any]) -> None:
        """A line of the log."""

    def close(self) -> None:
        """The run, or this part of it, is over."""


class Table:
    """log.csv: the columns are always the same, so a run that goes on has those that it had."""

    name = "csv"

    def __init__(self, place: Place) -> None:
        self.file, self.columns = place.folder / TABLE, place.columns
        with replacing(self.file) as part:
            self._write(part, "w", place.notes)

    def note(self, line: Mapping[str, Any]) -> None:
        self._write(self.file, "a", [line])

    def close(self) -> None:
        """Every line is on the disk already."""

    def _write(self, path: Path, mode: str, lines: Iterable[Mapping[str, Any]]) -> None:
        with path.open(mode, encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n")
            if mode == "w":
                writer.writeheader()
            writer.writerows(lines)


class Board:
    """Events for TensorBoard."""

    name = "tensorboard"

    def __init__(self, place: Place) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(place.folder / BOARD), purge_step=place.start or None)

    def note(self, line: Mapping[str, Any]) -> None:
        for name, value in numbers(line).items():
            self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Service:
    """Weights & Biases, with whatever its own environment variables say (``WANDB_MODE=offline``)."""

    name = "wandb"

    def __init__(self, place: Place) -> None:
        wandb: Any = importlib.import_module("wandb")
        known = place.folder / SERVICE / RUN_ID
        known.parent.mkdir(exist_ok=True)
        begun = known.read_text(encoding="utf-8").strip() if place.start and known.is_file() else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=place.folder.resolve().name,
            dir=str(place.folder),
            config=dict(place.about),
            id=begun,
            resume="allow" if begun else None,
            settings=wandb.Settings(console="off", save_code=False),
        )
        known.write_text(f"{self.run.id}\n", encoding="utf-8")
        # Its own count of steps may not go back, as that of a run does that goes on from a snapshot.
        self.run.define_metric("*", step_metric="step")

    def note(self, line: Mapping[str, Any]) -> None:
        self.run.log({"step": line["step"], **numbers(line)})

    def close(self) -> None:
        self.run.finish(quiet=True)


CLIENTS: dict[str, Callable[[Place], Client]] = {"wandb": Service, "tensorboard": Board, "csv": Table}
NEEDED = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}  # what is imported; the extra has the name
assert tuple(CLIENTS) == LOGS


def numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """Of a line, all but those that only say where it stands."""
    return {name: value for name, value in line.items() if name not in ("step", "time") and value is not None}


def told_before(folder: Path) -> tuple[str, ...]:
    """Clients that a run told before it was interrupted, as far as they can still be told."""
    places = {"wandb": SERVICE, "tensorboard": BOARD, "csv": TABLE}
    found = [name for name, place in places.items() if (folder / place).exists()]
    return tuple(name for name in found if not gathered(partial(check_clients, [name])))


def check_clients(names: Iterable[str]) -> None:
    """Refuse a client that is not installed.

    Raises:
        ValueError: naming the first, and what installs it.
    """
    for name in names:
        try:
            with restored():
                importlib.import_module(NEEDED.get(name, "csv"))
        except ImportError as error:
            raise ValueError(f'--log {name} needs a package: pip install "hiermim-zoo[{name}]"') from error


def opened(names: Iterable[str], place: Place) -> list[Client]:
    """The clients of these names. No random number of the run is drawn.

    Raises:
        ValueError: one cannot begin.
    """
    found: list[Client] = []
    for name in dict.fromkeys(names):
        with _refusing(name, found), restored():
            found.append(CLIENTS[name](place))
    return found


@contextmanager
def _refusing(name: str, begun: Sequence[Client]) -> Any:
    try:
        yield
    except Exception as error:  # whatever a client raises
        for client in begun:
            client.close()
        hint = "; WANDB_MODE=offline writes without its server" if name == Service.name else ""
        said = " ".join(str(error).split())
        raise ValueError(f"--log {name} cannot begin: {type(error).__name__}: {said}{hint}") from error
