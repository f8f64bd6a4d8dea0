"""What can be wrong with a run of pre-training, as far as it can be told without the data: all of it at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..checkpoints.configs import read_config
from ..checkpoints.folder import CONFIG_FILE
from ..commands.options.pretrain import SCHEDULED, PretrainOptions
from ..commands.options.problems import BadOptions, gathered
from ..data.batches import Batching
from . import snapshots
from .autoencoder import build_autoencoder
from .defaults import family_values
from .distributed import World, pick_device, restored
from .drawing import shown_of
from .graphs import check_graphs
from .image_form import form_of
from .optimizer import check_optimizer


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    checks = [*cheap_checks(said)]
    if "output" in said and first_process():
        checks.append(partial(snapshots.where, said["output"], said.get("resume")))
    return gathered(*checks)


def check(options: PretrainOptions) -> PretrainOptions:
    """The options, with the values of the model's family; those that depend on the data, only of the paper's recipe.

    Where something is wrong, what costs more to be found out is looked at too, so that all is said at once.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    said = {field.name: getattr(options, field.name) for field in fields(options)}
    complete = partial(_complete, options)
    if lines := gathered(complete, *cheap_checks(said)):
        with restored():
            more = gathered(lambda: build_autoencoder(complete())) if not gathered(complete) else []
        raise BadOptions(dict.fromkeys([*lines, *problems(said), *more]))
    return complete()


def cheap_checks(said: Mapping[str, Any]) -> list[Callable[[], object]]:
    """Checks of single options, and of how images are read.

    Of several processes all must find the same here: what one alone finds is told to the others only once all have met.
    """
    checks: dict[str, Callable[[Any], object]] = {"model": family_values, "opt": check_optimizer}
    if os.environ.get("WORLD_SIZE", "1") == "1":
        checks["device"] = pick_device
    found: list[Callable[[], object]] = [partial(f, said[name]) for name, f in checks.items() if said.get(name)]
    found.append(partial(check_graphs, said.get("compile"), said.get("device")))
    channels = said.get("in_chans") or (0 if said.get("checkpoint") else 3)
    return [*found, partial(check_form, said, channels)]


def check_form(said: Mapping[str, Any], channels: int) -> None:
    """Refuse a rule of scaling, bands or channels to draw that there cannot be.

    Args:
        channels: of the model; 0: not known.

    Raises:
        ValueError: naming it.
    """
    options = SimpleNamespace(**{"max_pixels": None, "show_bands": None, **said})
    form = form_of(options, channels, {})
    if options.show_bands and channels:
        shown_of(form, options.show_bands)


def check_batch(options: PretrainOptions, world: World) -> None:
    """Refuse a batch that cannot be divided, however many images there are.

    Raises:
        ValueError: naming it.
    """
    if options.batch_size:
        Batching(sys.maxsize, options.batch_size, options.accumulate or 1, world.rank, world.size, options.seed)


def first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _complete(options: PretrainOptions) -> PretrainOptions:
    channels = said_channels(Path(options.checkpoint)) if options.checkpoint else 3
    values = dict(family_values(options.model))
    if options.recipe != "paper" or options.resume:  # how many images there are, or how a run began, is not known yet
        values = {name: value for name, value in values.items() if name not in SCHEDULED}
    return options.filled({**values, "in_chans": channels})


def said_channels(folder: Path) -> int:
    """The channels of the images that the model of a folder takes.

    Raises:
        ValueError: its configuration says what cannot be.
    """
    file = folder / CONFIG_FILE
    size = read_config(file)["pretrained_cfg"].get("input_size") if file.is_file() else None
    return int(size[0]) if size else 3
