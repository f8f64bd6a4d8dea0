"""A snapshot that is one file: the first process writes what all of them know.

It is written beside its name and renamed: at any moment the folder holds the old state or the new one.
"""

from __future__ import annotations

import os
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


def save_file(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the snapshot of a step."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"step-{step:08d}.part"
    write_file(state, part)
    path = folder / f"step-{step:08d}-{sha256_of(part)[:DIGITS]}.pt"
    part.replace(path)
    return path


def damage_of_file(path: Path) -> str:
    """What is wrong with a snapshot; empty if nothing is."""
    digest = sha256_of(path)[:DIGITS]
    return "" if path.stem.endswith(f"-{digest}") else f"its SHA-256 begins with {digest}, not as its name says"


def load_file(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)
