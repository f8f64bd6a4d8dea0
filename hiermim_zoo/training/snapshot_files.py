"""A snapshot that is one file: the first process writes what all of them know.

It is written beside its name and renamed: at any moment the folder holds the old state or the new one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.files import sha256_of

DIGITS = 16  # of the SHA-256 that is part of a snapshot's name, in hexadecimal


def write_file(state: dict[str, Any], path: Path) -> None:
    """torch.save, onto the disk."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def why_not(error: Exception) -> str:
    """Why something cannot be written, in one line; torch's own words are about its position in the file."""
    said = str(error).partition("\n")[0] or type(error).__name__
    return said if isinstance(error, OSError) else f"the disk may be full ({said})"


def save_file(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the snapshot of a step.

    Raises:
        ValueError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"step-{step:08d}.part"
    remove(part)  # a folder, of a run that was killed while it wrote
    try:
        write_file(state, part)
    except (OSError, RuntimeError) as error:  # the second is how torch.save tells of the first
        remove(part)
        raise ValueError(f"the snapshot of step {step} cannot be written: {why_not(error)}") from error
    path = folder / f"step-{step:08d}-{sha256_of(part)[:DIGITS]}.pt"
    part.replace(path)
    return path


def damage_of_file(path: Path) -> str:
    """What is wrong with a snapshot; empty if nothing is."""
    digest = sha256_of(path)[:DIGITS]
    return "" if path.stem.endswith(f"-{digest}") else f"its SHA-256 begins with {digest}, not as its name says"


def load_file(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)
