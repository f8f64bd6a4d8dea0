"""What can be wrong with an extraction, as far as it can be told without files and weights: all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from ..data.clips import refuse_videos
from ..data.transforms import data_config
from ..models.build import input_shape
from ..models.shapes import without_memory
from ..training.checks import check_form, first_process, processes_of_run
from ..training.distributed import pick_device
from .extracting_file import check_output
from .extracting_tiles import cutting_of
from .input_files import missing
from .loading import (
    check_img_size,
    check_levels,
    check_model,
    check_weights,
    model_errors,
    set_img_size,
    without_weights,
)
from .options.extract import ExtractOptions
from .options.problems import check_all, gathered

NEEDED = {  # what is asked for -> the methods of timm's models that give it
    "pooled": ("forward_features", "forward_head"),
    "tokens": ("forward_features",),
    "maps": ("forward_intermediates",),
}


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    options = ExtractOptions.unchecked(said)
    return gathered(*checks(options), *(check_files(options) if first_process() else ()))


def check(options: ExtractOptions) -> None:
    """Refuse what cannot be done before any work is done; of several processes the first looks at files later.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    check_all(*checks(options), *(check_files(options) if processes_of_run() == 1 else ()))


def checks(options: ExtractOptions) -> list[Callable[[], object]]:
    """Checks of what needs neither files nor weights."""
    found: list[Callable[[], object]] = [partial(check_form, vars(options), 0)]
    if options.device and processes_of_run() == 1:
        found.append(partial(pick_device, options.device))
    return [*found, partial(check_sketch, options)] if options.model else found


def check_files(options: ExtractOptions) -> list[Callable[[], object]]:
    """Checks of what is to be read and written."""
    found: list[Callable[[], object]] = [partial(missing, options.images or (), "IMAGES")]
    return [*found, partial(check_output, options.output, options.force)] if options.output else found


def check_sketch(options: ExtractOptions) -> None:
    """Refuse a model that does not exist or does not go with the options, as far as it can be told without its weights.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    check_model(options.model)
    sketch: Any = without_weights(options.model, {}).eval()
    channels, *frames, _, _ = input_shape(sketch)
    looks: list[Callable[[], object]] = [partial(check_form, vars(options), channels)]
    if options.pretrained:
        looks.append(partial(check_weights, options.model))
    if not frames:
        given = {"--frame-stride": options.frame_stride, "--frame-rate": options.frame_rate}
        looks += [partial(refuse_videos, {name: value}) for name, value in given.items()]
    lacking = list(lacking_methods(options, sketch))
    looks.append(lambda: lacking)
    if options.levels and "maps" in options.what and not lacking:
        looks.append(partial(check_levels, options.model, sketch, options.levels))
    if options.tile:
        looks.append(partial(check_tile, options, sketch))
    elif options.img_size:
        looks.append(partial(check_img_size, options.model, sketch, options.img_size))
    check_all(*looks)


def lacking_methods(options: ExtractOptions, model: Any) -> Iterator[str]:
    """A line for each kind of features that a model cannot give."""
    for what in dict.fromkeys(options.what):
        lacks = [method for method in NEEDED[what] if not hasattr(model, method)]
        able = [name for name, methods in NEEDED.items() if all(hasattr(model, method) for method in methods)]
        if lacks:
            works = f"--what {' '.join(able)} would work" if able else "another --model is needed"
            yield f"--what {what}: model {options.model!r} has no {lacks[0]}(), which it needs; {works}"


def check_tile(options: ExtractOptions, sketch: Any) -> None:
    """Refuse tiles that a model does not take, or that do not go with its stride.

    Raises:
        ValueError: naming the option.
    """
    tile = options.tile
    assert tile
    if (options.overlap or 0) > tile // 2:
        options = options.having(overlap=None)  # of which something is said anyway
    with model_errors(options.model, f"--tile {tile}"):
        set_img_size(sketch, tile)
    with without_memory():
        cutting_of(sketch, options, data_config(sketch, (tile, tile)), torch.device("meta"))
