"""What comes before the first step of pre-training: the run that goes on, data, recipe and model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..commands.options.pretrain import DECODER, PIXELS, PretrainOptions
from ..commands.options.problems import together
from ..data.batches import Batching
from ..mae import MaskedAutoencoder, encoder_args
from ..teacher import BadTeacher, Teacher, check_teacher
from .autoencoder import build_autoencoder, sketched, undecided
from .checks import check_batch, completed
from .defaults import Followed, filled_by_paper, followed
from .distributed import World, gather_objects, restored
from .lock import FolderLock
from .masks import check_masks
from .memory import free_bytes, kept_bytes, passes_for
from .precision import chosen_amp
from .resuming import begun_run
from .run_clients import told_before
from .run_data import Data, open_data
from .schedule import pretraining_schedule
from .small import Size, recipe_of_size, small_decoder, small_pretraining, with_intervals
from .snapshots import Begun


class Beginning(NamedTuple):
    """A run of pre-training that can start."""

    options: PretrainOptions  # with all values
    begun: Begun | None  # None: it is new
    rows: Followed
    mae: MaskedAutoencoder  # drawn from the seed, on the CPU
    data: Data
    batching: Batching
    teacher: Teacher | None = None  # None: pixels are predicted


def begin(options: PretrainOptions, chosen: PretrainOptions, world: World, lock: FolderLock) -> Beginning:
    """Look at everything that a run needs.

    Args:
        options: as they were said.
        chosen: with what does not depend on the data; of a run that is to go on, as they were said.

    Raises:
        ValueError: naming the option, file or data that is wrong.
    """
    chosen, begun = begun_run(chosen, world, lock)
    if not begun:
        options.check_rate()
    elif not chosen.log:
        chosen = replace(chosen, log=told_before(chosen.output) or None)
    chosen = completed(chosen)
    chosen = replace(chosen, amp=chosen_amp(chosen.amp, world.device))
    rows = followed(chosen.model, begun.state if begun else None)
    torch.manual_seed(chosen.seed)
    sketch, _ = together(partial(sketched, undecided(chosen), rows), partial(check_batch, chosen))
    data = open_data(chosen, sketch, begun)
    size, said = Size(len(data.source), data.source.repeat, world.size), chosen
    chosen = with_recipe(chosen, size, world.device.type, sketch)
    rows = rows_of(chosen, rows)
    mae = sketch
    read = chosen.checkpoint if rows.start is None else None  # then the sketch is the autoencoder
    if not read or any(getattr(chosen, name) != getattr(said, name) for name in DECODER):
        torch.manual_seed(chosen.seed)
        mae = build_autoencoder(chosen, rows.recipe, rows.start)
    if read:
        rows = replace(rows, start=encoder_args(chosen.model, Path(read)))
    teacher = None if chosen.export_only else teacher_of(mae, data, chosen.seed, begun)
    if chosen.accumulate is None:
        chosen = replace(chosen, accumulate=_passes(chosen, mae, data, world, teacher))
    parts = (chosen.accumulate, world.rank, world.size)
    batching = Batching(size.images, chosen.batch_size, *parts, chosen.seed, size.repeat)
    if not begun:  # what began like that before it was refused goes on
        check_masks(mae.recipe.masks, batching, data.source.streamed)
    total = pretraining_schedule(chosen, rows.pretraining, batching).total
    chosen = with_intervals(chosen, total, batching.per_epoch)
    return Beginning(chosen, begun, rows, mae, data, batching, teacher)


def teacher_of(mae: MaskedAutoencoder, data: Data, seed: int, begun: Begun | None) -> Teacher | None:
    """The teacher whose features are predicted, on the CPU; draws no random numbers that anyone else draws.

    Args:
        seed: of its weights, where they are to be random.

    Raises:
        ValueError: it cannot be had, or is not the one that the run began with.
    """
    if mae.recipe.target == PIXELS:
        return None
    try:
        with restored():
            check_teacher(mae)
            torch.manual_seed(seed)
            teacher = Teacher(mae, data.config["mean"], data.config["std"])
    except BadTeacher as error:
        raise ValueError(f"--target {error}") from error
    if begun and begun.state.get("teacher") != teacher.digest:
        raise ValueError(
            f"--target {teacher.target}: its weights are others than those with which the run of {begun.snapshot} began"
        )
    return teacher


def with_recipe(options: PretrainOptions, size: Size, device: str, sketch: MaskedAutoencoder) -> PretrainOptions:
    """The options with the values of the recipe, of the paper or of few images.

    Args:
        device: its type.
        sketch: see :func:`sketched`.
    """
    name = recipe_of_size(options.recipe, size.images, device)
    options = replace(options, recipe=name)
    if name == "paper":
        return filled_by_paper(options)
    return small_pretraining(small_decoder(options, sketch), size)


def rows_of(options: PretrainOptions, rows: Followed) -> Followed:
    """The rows of a family as the recipe has them: with few images no schedule is an epoch ahead, which may be a step.

    Args:
        options: with all values.
    """
    return replace(rows, pretraining=replace(rows.pretraining, ahead=0.0)) if options.recipe == "small" else rows


def _passes(options: PretrainOptions, mae: MaskedAutoencoder, data: Data, world: World, teacher: Teacher | None) -> int:
    """Of a step, so that what autograd keeps fits into the memory of every process."""
    if data.source.streamed and mae.recipe.masks == "step":  # whose masks must be those of one pass
        return 1
    learned = 16 * sum(parameter.numel() for parameter in mae.parameters())  # with gradients and moments
    frozen = 4 * sum(parameter.numel() for parameter in teacher.parameters()) if teacher else 0
    free = max(0, free_bytes(world.device) - frozen - (0 if options.fsdp else learned))
    share = max(1, options.batch_size // world.size)
    return max(gather_objects(passes_for(share, data.source.repeat, kept_bytes(mae, options.amp), free)))
