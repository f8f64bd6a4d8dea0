"""What comes before the first step of pre-training: the run that goes on, data, recipe and model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from ..commands.options.pretrain import DECODER, PretrainOptions
from ..commands.options.problems import together
from ..data.batches import Batching
from ..mae import MaskedAutoencoder
from ..models.shapes import without_memory
from .autoencoder import build_autoencoder
from .checks import check_batch
from .defaults import Followed, family_values, followed
from .distributed import World, gather_objects
from .lock import FolderLock
from .masks import check_masks
from .memory import free_bytes, kept_bytes, passes_for
from .resuming import begun_run
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


def begin(options: PretrainOptions, chosen: PretrainOptions, world: World, lock: FolderLock) -> Beginning:
    """Look at everything that a run needs.

    Args:
        options: as they were said.
        chosen: with what does not depend on the data.

    Raises:
        ValueError: naming the option, file or data that is wrong.
    """
    (chosen, begun, rows, sketch), _ = together(
        partial(_sketched, chosen, world, lock), partial(check_batch, chosen, world)
    )
    if not begun:
        options.check_rate()
    data = open_data(chosen, sketch, begun)
    size, said = Size(len(data.source), data.source.repeat, world.size), chosen
    chosen = with_recipe(chosen, size, world.device.type, sketch)
    rows = rows_of(chosen, rows)
    mae = sketch
    if not chosen.checkpoint or any(getattr(chosen, name) != getattr(said, name) for name in DECODER):
        torch.manual_seed(chosen.seed)
        mae = build_autoencoder(chosen, rows.recipe)
    if chosen.accumulate is None:
        chosen = replace(chosen, accumulate=_passes(chosen, mae, data, world))
    parts = (chosen.accumulate, world.rank, world.size)
    batching = Batching(size.images, chosen.batch_size, *parts, chosen.seed, size.repeat)
    if not begun:  # what began like that before it was refused goes on
        check_masks(mae.recipe.masks, batching, data.source.streamed)
    total = pretraining_schedule(chosen, rows.pretraining, batching).total
    chosen = with_intervals(chosen, total, batching.per_epoch)
    return Beginning(chosen, begun, rows, mae, data, batching)


def _sketched(
    options: PretrainOptions, world: World, lock: FolderLock
) -> tuple[PretrainOptions, Begun | None, Followed, MaskedAutoencoder]:
    """The run that is to go on, if there is one, what it follows, and what its autoencoder looks like.

    Raises:
        ValueError: see :func:`begun_run`, or the model cannot be built so.
    """
    options, begun = begun_run(options, world, lock)
    rows = followed(options.model, begun.state if begun else None)
    torch.manual_seed(options.seed)
    return options, begun, rows, sketched(undecided(options), rows)


def undecided(options: PretrainOptions) -> PretrainOptions:
    """The options without what they say of a decoder, where the recipe may have to say the rest."""
    if options.recipe == "paper" or options.checkpoint:
        return options
    nothing: Any = dict.fromkeys(DECODER)
    return replace(options, **nothing)


def sketched(options: PretrainOptions, rows: Followed) -> MaskedAutoencoder:
    """The autoencoder without values, as long as its size may depend on the data; of a folder, the autoencoder itself.

    Raises:
        ValueError: it cannot be built so.
    """
    if options.checkpoint:
        return build_autoencoder(options, rows.recipe)
    with without_memory():
        return build_autoencoder(replace(options, pretrained=False), rows.recipe)


def with_recipe(options: PretrainOptions, size: Size, device: str, sketch: MaskedAutoencoder) -> PretrainOptions:
    """The options with the values of the recipe, of the paper or of few images.

    Args:
        device: its type.
        sketch: see :func:`sketched`.
    """
    name = recipe_of_size(options.recipe, size.images, device)
    options = replace(options, recipe=name)
    if name == "paper":
        return options.filled(family_values(options.model))
    return small_pretraining(small_decoder(options, sketch), size)


def rows_of(options: PretrainOptions, rows: Followed) -> Followed:
    """The rows of a family as the recipe has them: with few images no schedule is an epoch ahead, which may be a step.

    Args:
        options: with all values.
    """
    return replace(rows, pretraining=replace(rows.pretraining, ahead=0.0)) if options.recipe == "small" else rows


def _passes(options: PretrainOptions, mae: MaskedAutoencoder, data: Data, world: World) -> int:
    """Of a step, so that what autograd keeps fits into the memory of every process."""
    if data.source.streamed and mae.recipe.masks == "step":  # whose masks must be those of one pass
        return 1
    learned = 16 * sum(parameter.numel() for parameter in mae.parameters())  # with gradients and moments
    free = max(0, free_bytes(world.device) - (0 if options.fsdp else learned))
    share = max(1, options.batch_size // world.size)
    return max(gather_objects(passes_for(share, data.source.repeat, kept_bytes(mae, options.amp), free)))
