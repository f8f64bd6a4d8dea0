"""Snapshots of a training run: all that it needs to go on as if nothing had happened.

A file is written beside its name and renamed: at any moment the folder holds the old state or the new one. The name has
the step and the first digits of the content's SHA-256, so that damage is seen. Only tensors, numbers and strings go in:
``weights_only=True`` reads everything.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ..checkpoints.files import sha256_of
from ..checkpoints.folder import check_target

FOLDER = "checkpoints"  # in the output folder of a run
DIGITS = 16  # of the SHA-256, in hexadecimal
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def found(folder: Path) -> list[Path]:
    """The snapshots in a folder, the oldest first."""
    return sorted(folder.glob("step-*.pt"), key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def save(folder: Path, step: int, state: dict[str, Any], most: int) -> Path:
    """Write the snapshot of a step, then remove all but those of the last ``most`` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"step-{step:08d}.part"
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    path = folder / f"step-{step:08d}-{sha256_of(part)[:DIGITS]}.pt"
    part.replace(path)
    last = sorted({step_of(p) for p in found(folder)})[-most:]
    for old in found(folder):
        if old != path and (step_of(old) == step or step_of(old) not in last):
            old.unlink()
    for leftover in folder.glob("*.part"):  # of a process that was killed while it wrote
        leftover.unlink()
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a snapshot.

    Raises:
        ValueError: it does not exist or is damaged; the message names the one before.
    """
    if not path.is_file():
        raise ValueError(f"snapshot {path} does not exist")
    digest = sha256_of(path)[:DIGITS]
    if not path.stem.endswith(f"-{digest}"):
        before = [p for p in found(path.parent) if p.name < path.name]
        hint = f"the one before it is {before[-1]}: --resume {before[-1]}" if before else "there is none before it"
        raise ValueError(f"snapshot {path} is damaged: its SHA-256 begins with {digest}, not as its name says; {hint}")
    return torch.load(path, map_location="cpu", weights_only=True)


def set_aside(folder: Path, after: int) -> None:
    """Rename the snapshots of steps that a run resumed from ``after`` will take again."""
    for path in found(folder):
        if step_of(path) > after:
            path.rename(path.with_suffix(".abandoned"))


def where(output: Path, resume: str | None) -> Path | None:
    """The snapshot to go on from, None for a fresh start.

    Args:
        output: folder of the run.
        resume: "auto" for the last snapshot in there, if there is one; or the path of a snapshot; or None.

    Raises:
        ValueError: the folder belongs to another run and ``resume`` does not say to go on with it.
    """
    if resume not in (None, "auto"):
        return Path(resume)
    if resume is None:
        if output.is_dir() and any(output.iterdir()):
            raise ValueError(f"{output} holds another run: --resume auto goes on with it, another -o starts a new one")
        check_target(output, force=False)
        return None
    snapshots = found(output / FOLDER)
    return snapshots[-1] if snapshots else None


def check_options(saved: Mapping[str, Any], now: Mapping[str, Any], snapshot: Path) -> None:
    """Refuse to go on with other options than the run was started with.

    Raises:
        ValueError: naming the first one that differs.
    """
    for key, value in now.items():
        if saved.get(key) != value:
            name = "the number of images" if key == "pictures" else f"--{key.replace('_', '-')}"
            raise ValueError(f"{name} is {value}, but the run of {snapshot} was started with {saved.get(key)}")


# ---- what is in a snapshot


def learned(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and optimiser state by the names of the parameters, whole, on the CPU; every process must call it."""
    weights, moments = get_state_dict(model, optimizer, options=_WHOLE)
    return {"model": weights, "optimizer": moments}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of :func:`learned`; model and optimiser may be spread over other processes than before."""
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
