"""Which run of pre-training goes on, and whether it may."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..commands.options.pretrain import PIXELS, PretrainOptions
from ..data.clips import NATIVE
from . import snapshots
from .defaults import family_values
from .distributed import World, gather_objects
from .lock import FolderLock


def begun_run(
    options: PretrainOptions, world: World, lock: FolderLock
) -> tuple[PretrainOptions, snapshots.Begun | None]:
    """The run that is to go on, as the output folder and ``--resume`` say; None for a new one.

    Returns:
        The options too: what these leave to the recipe is as the run began.

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
        return options, None
    state = snapshots.load(snapshot)
    check_units(state["options"], options, snapshot)
    return as_it_began(options, state, snapshot, world.size), snapshots.Begun(snapshot, state)


def as_it_began(options: PretrainOptions, state: dict[str, Any], snapshot: Path, processes: int) -> PretrainOptions:
    """The options, with what a run began with where they say nothing.

    Args:
        state: of the snapshot; a run of before there was a choice of recipes followed that of the paper, and predicted
            pixels.
        processes: of the run that goes on.

    Raises:
        ValueError: they say something else.
    """
    began = {"recipe": "paper", "target": PIXELS, **state["options"]}
    said = {name: value for name, value in options.binding().items() if options.says(name)}
    snapshots.check_options(began, said, snapshot)
    values = {name: began[name] for name in options.binding().keys() - said if began.get(name) is not None}
    if "model_kwargs" in values:
        values["model_kwargs"] = dict(values["model_kwargs"]) or None
    if options.accumulate is None:
        values["accumulate"] = max(1, state.get("micro_batches", processes) // processes)
    if options.decoder == "load" and not options.fresh_decoder:
        values["decoder"] = began.get("decoder", "load")
    return replace(options, **values)


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
        if (said := getattr(options, name)) is not None and math.isclose(said, began[name]):
            began[name] = said
    said = {"epochs": began["epochs"], "warmup": began["warmup"], "frame_rate": NATIVE}
    if any(getattr(options, name) not in (None, value) for name, value in said.items()):
        raise ValueError(
            f"the run of {snapshot} was begun by a version whose epochs opened every video once and whose strides "
            f"counted frames of the file; it goes on without --epochs, --warmup and --frame-rate, or with "
            f"--epochs {began['epochs']:.12g} --warmup {began['warmup']:.12g} --frame-rate {NATIVE}"
        )
