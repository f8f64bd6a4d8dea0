"""Snapshots of a training run: all that it needs to go on as if nothing had happened.

One is a file, or, of a run that spreads its model over processes, a folder. Either is written beside its name and
renamed: at any moment there is the old state or the new one. The name has the step and the first digits of a SHA-256,
so that damage is seen. Only tensors, numbers and strings go in: ``weights_only=True`` reads everything.
"""

from __future__ import annotations

import pickle
import random
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ..checkpoints.folder import check_target
from ..commands.options.problems import BadOptions
from .run_log import LOG
from .run_record import has_no_step
from .snapshot_files import DIGITS, damage_of_file, load_file, remove, save_file
from .snapshot_shards import ShardWriter, damage_of_shards, load_rest, read_weights, restore_shards

FOLDER = "checkpoints"  # in the output folder of a run
SNAPSHOT = re.compile(rf"step-\d{{8,}}-[0-9a-f]{{{DIGITS}}}(\.pt)?")
PART = re.compile(rf"step-\d{{8,}}(-[0-9a-f]{{{DIGITS}}})?\.part")  # being written, or being removed
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Begun(NamedTuple):
    """A run that goes on."""

    snapshot: Path
    state: dict[str, Any]  # what ``load`` found in there


def found(folder: Path) -> list[Path]:
    """The snapshots in a folder, the oldest first."""
    return sorted((path for path in _all(folder) if SNAPSHOT.fullmatch(path.name)), key=step_of)


def _all(folder: Path) -> Iterator[Path]:
    return folder.glob("step-*")


def step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def load(path: Path) -> dict[str, Any]:
    """Read a snapshot; all processes of a run call it. Of a folder: all but the tensors, see :func:`restore`.

    Raises:
        ValueError: it does not exist or is damaged; the message names the one before.
    """
    if not path.exists():
        raise ValueError(f"snapshot {path} does not exist")
    if path.is_dir() and path not in found(path.parent):
        raise ValueError(f"{path} is no snapshot: those of a run are in its folder {FOLDER}")
    if damage := damage_of_shards(path) if path.is_dir() else damage_of_file(path):
        before = [p for p in found(path.parent) if p.name < path.name]
        hint = f"the one before it is {before[-1]}: --resume {before[-1]}" if before else "there is none before it"
        raise ValueError(f"snapshot {path} is damaged: {damage}; {hint}")
    try:
        state = load_rest(path) if path.is_dir() else load_file(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"snapshot {path} cannot be read: {str(error).partition(chr(10))[0]}") from error
    if not (isinstance(state, dict) and state.keys() >= {"options", "step", "optimizer", "random"}):
        raise ValueError(f"{path} is no snapshot of a run of pre-training")
    return state


def weights_of(path: Path) -> dict[str, Tensor]:
    """The model's weights in a snapshot that is not damaged, by the names of its parameters, whole, on the CPU."""
    return read_weights(path) if path.is_dir() else load_file(path)["model"]


def set_aside(folder: Path, after: int) -> None:
    """Rename the snapshots of steps that a run resumed from ``after`` will take again."""
    for path in found(folder):
        if step_of(path) > after:
            path.rename(next(name for name in _abandoned(path) if not name.exists()))


def _abandoned(path: Path) -> Iterator[Path]:
    """Names for a snapshot that is set aside; the same one may have been before."""
    return (path.with_suffix(f".abandoned{number or ''}") for number in count())


def tidy(folder: Path, newest: Path, most: int) -> None:
    """Remove all snapshots but the last ``most``, and what processes left that were killed while they wrote."""
    last = sorted({step_of(path) for path in found(folder)})[-most:]
    for old in found(folder):
        if old != newest and (step_of(old) == step_of(newest) or step_of(old) not in last):
            old.rename(old.with_suffix(".part"))  # half of a folder must not look like a snapshot
    for leftover in _all(folder):
        if PART.fullmatch(leftover.name):
            remove(leftover)


def where(output: Path, resume: str | None) -> Path | None:
    """The snapshot to go on from, None for a fresh start.

    Args:
        output: folder of the run.
        resume: "auto" for the last snapshot in there, if there is one; or the path of a snapshot; or None.

    Raises:
        ValueError: the folder belongs to another run and ``resume`` does not say to go on with it, or holds something
            that is of no run.
    """
    if resume not in (None, "auto"):
        return Path(resume)
    snapshots = found(output / FOLDER)
    if resume and snapshots:
        return snapshots[-1]
    if has_no_step(output):
        check_target(output, force=True)
    else:
        log = output / LOG
        if not (snapshots or (log.is_file() and log.stat().st_size) or (output / "encoder").is_dir()):
            raise ValueError(f"{output} is not empty and holds no run; name another -o, a folder that is new or empty")
        if resume is None:
            raise ValueError(f"{output} holds another run: --resume auto goes on with it, another -o starts a new one")
    return None


def check_options(saved: Mapping[str, Any], now: Mapping[str, Any], snapshot: Path) -> None:
    """Refuse to go on with other options than the run was started with.

    Raises:
        ValueError: naming those that differ.
    """
    lines = []
    for key, value in now.items():
        if (begun := saved.get(key)) == value:
            continue
        name = "the number of images" if key == "pictures" else f"--{key.replace('_', '-')}"
        if begun is None:
            why = f"the run of {snapshot} was started without it: leave it out"
        else:
            again = "" if key in ("pictures", "model") else "; leave it out, and the run goes on as it began"
            why = f"the run of {snapshot} was started with {begun}{again}"
        lines.append(f"{name} is {value}, but {why}")
    if lines:
        raise BadOptions(lines)


# ---- what is in a snapshot


def learned(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and optimiser state by the names of the parameters, whole, on the CPU; every process must call it."""
    weights, moments = get_state_dict(model, optimizer, options=_WHOLE)
    return {"model": weights, "optimizer": moments}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, state: dict[str, Any]) -> None:
    """Give model and optimiser what they had learned; they may be spread over other processes than before.

    Args:
        path: of the snapshot.
        state: what :func:`load` found in it.
    """
    if path.is_dir():
        restore_shards(model, optimizer, path, state["optimizer"])
        return
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=_WHOLE
    )  # strict: names must agree


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of all random number generators of this process."""
    numpy_state = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],  # type: ignore[index]
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)


# ---- writing


class SnapshotWriter:
    """Writes the snapshots of a run. All of its processes must call it alike.

    Args:
        folder: that holds them.
        most: of them that stay.
        first: this is the first process.
        spread: the model is spread over the processes, and each writes its share, while the run goes on.
    """

    def __init__(self, folder: Path, most: int, first: bool, spread: bool) -> None:
        self.folder, self.most, self.first = folder, most, first
        self.shards = ShardWriter() if spread else None
        self.writing: Future[Path] | None = None
        self.last: Path | None = None  # that is complete; of one file, the first process alone knows it

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, rest: dict[str, Any]) -> None:
        """Write the snapshot of a step.

        Args:
            rest: everything that is not in model and optimiser.

        Raises:
            ValueError: the one before cannot be written.
        """
        self.wait()
        if self.shards:
            self.writing = self.shards.save(self.folder, step, model, optimizer, rest)
            return
        state = learned(model, optimizer) | rest
        if self.first:
            self.last = save_file(self.folder, step, state)
            tidy(self.folder, self.last, self.most)

    def wait(self) -> None:
        """Return when everything is on the disk.

        Raises:
            ValueError: it cannot be written.
        """
        writing, self.writing = self.writing, None
        if writing:
            self.last = writing.result()
            if self.first:
                tidy(self.folder, self.last, self.most)
