"""Runs of several processes, and what they leave."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from hiermim_zoo.training import snapshots

from .forks import COMMAND, Forks

SMALL = shlex.split(
    "--model hivit_atto --model-kwargs 'depths=(1, 0, 1)' --img-size 32 --decoder-depth 1 --decoder-dim 32 "
    "--decoder-heads 2 --batch-size 12 --epochs 1 --warmup 0 --workers 0 --device cpu --look-every 0 --lr 1e-2 "
    "--save-steps 1 --steps 3"
)
LINEAR = ("--opt", "momentum", "--lr", "0.1")  # rounding stays rounding


def saved(output: Path) -> list[Path]:
    return snapshots.found(output / "checkpoints")


def errors(said: str) -> list[str]:
    """The lines that are no part of a warning."""
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("error")]


def several(forked: Forks) -> Callable[..., str]:
    """Runs the command in several processes; what it says."""

    def run(output: Path, *argv: object, processes: int = 2, code: int = 0, before: str = "", **env: str) -> str:
        words = ("hiermim_zoo.pretrain", "digits", *SMALL, "-o", output, *argv)
        done = forked.run(f"{before}\n{COMMAND}", *words, processes=processes, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    return run
