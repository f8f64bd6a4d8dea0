"""Which run of pre-training goes on, and whether it may."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..commands.options.pretrain import PretrainOptions
from ..data.clips import NATIVE
from . import snapshots
from .defaults import family_values
from .distributed import World, gather_objects
from .lock import FolderLock


def begun_run(options: PretrainOptions, world: World, lock: FolderLock) -> snapshots.Begun | None:
    """The run that is to go on, as the output folder and ``--resume`` say; None for a new one.

    Raises:
        ValueError: the folder belongs to another run, be it one that is under way or one that is not, or the snapshot
            is of one, missing or damaged.
    """
    snapshot, refusal = gather_objects(_looked(options, world, lock))[0]
    if refusal:
        raise ValueError(refusal)
    if snapshot is None:
        if options.export_only:
            raise ValueError(f"--export-only: {options.output} holds no snapshot")
        return None
    state = snapshots.load(snapshot)
    check_units(state["options"], options, snapshot)
    snapshots.check_options(state["options"], options.binding(), snapshot)
    return snapshots.Begun(snapshot, state)


def _looked(options: PretrainOptions, world: World, lock: FolderLock) -> tuple[Path | None, str]:
    """What the first process finds in the output folder, or why it cannot be had: all processes are to say it."""
    try:
        lock.look()
        return snapshots.where(options.output, options.resume) if world.first else None, ""
    except (ValueError, OSError) as error:
        return None, str(error)


def check_units(began: dict[str, Any], options: PretrainOptions, snapshot: Path) -> None:
    """What a run of clips was told before epochs counted what is shown, and strides frames at a rate, in today's units.

    Until then an epoch opened every video once, and strides counted frames of the file.

    Args:
        began: options in the snapshot, which are changed.

    Raises:
        ValueError: today's options mean something else; names those that go on.
    """
    if "frame_rate" in began or family_values(options.model)["repeat"] is None:
        return
    began |= {"frame_rate": NATIVE, **{name: began[name] * began["repeat"] for name in ("epochs", "warmup")}}
    for name in ("epochs", "warmup"):  # products such as 0.7 * 3, which are never quite what one writes
        if math.isclose(getattr(options, name), began[name]):
            began[name] = getattr(options, name)
    if any(getattr(options, name) != began[name] for name in ("frame_rate", "epochs", "warmup")):
        raise ValueError(
            f"the run of {snapshot} was begun by a version whose epochs opened every video once and whose strides "
            f"counted frames of the file; it goes on with --epochs {began['epochs']:.12g} "
            f"--warmup {began['warmup']:.12g} --frame-rate {NATIVE}"
        )
