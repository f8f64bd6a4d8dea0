"""What can be wrong with a run of pre-training, as far as it can be told without the data: all of it at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from types import SimpleNamespace
from typing import Any

from ..commands.options.pretrain import PretrainOptions
from ..commands.options.problems import BadOptions, gathered
from ..data.batches import Batching
from . import snapshots
from .autoencoder import build_autoencoder
from .defaults import family_values
from .distributed import World, pick_device, restored
from .drawing import shown_of
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
    """The options, with the values of the model's family.

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
    """Checks of single options, and of how images are read."""
    checks = {"model": family_values, "opt": check_optimizer, "device": pick_device}
    found: list[Callable[[], object]] = [partial(f, said[name]) for name, f in checks.items() if said.get(name)]
    return [*found, partial(check_form, said)]


def check_form(said: Mapping[str, Any]) -> None:
    """Refuse a rule of scaling, bands or channels to draw that there cannot be.

    Raises:
        ValueError: naming it.
    """
    options = SimpleNamespace(**{"max_pixels": None, "in_chans": 3, "show_bands": None, **said})
    form = form_of(options, options.in_chans, {})
    if options.show_bands:
        shown_of(form, options.show_bands)


def check_batch(options: PretrainOptions, world: World) -> None:
    """Refuse a batch that cannot be divided, however many images there are.

    Raises:
        ValueError: naming it.
    """
    Batching(sys.maxsize, options.batch_size, options.accumulate, world.rank, world.size, options.seed)


def first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _complete(options: PretrainOptions) -> PretrainOptions:
    return options.filled(family_values(options.model))
