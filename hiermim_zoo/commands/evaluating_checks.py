"""What can be wrong with an evaluation, as far as it can be told without the data: all of it at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..checkpoints.folder import check_target
from ..data.batches import Batching
from ..data.clips import refuse_videos
from ..data.kinds import check_root
from ..data.transforms import data_config
from ..models.build import input_shape
from ..training.checks import check_form, device_type, first_process, processes_of_run
from ..training.distributed import pick_device
from ..training.finetuning import augmentation, recipe_for
from ..training.graphs import check_graphs
from ..training.linear import needed
from ..training.optimizer import check_optimizer
from ..training.run_clients import check_clients
from ..training.run_log import LOG
from ..training.run_record import has_no_step
from ..training.small import FEW, TUNING, Size, recipe_of_size
from .evaluating_frozen import check_classifier
from .evaluating_shared import OWN_ARGS, own_model_kwargs
from .loading import check_img_size, check_model, check_weights, without_weights
from .options.evaluate import EvaluateOptions
from .options.problems import BadOptions, check_all, gathered
from .options.shared import RECIPES
from .output_files import check_ending, check_not_read, check_writable
from .tuning_recipe import architecture_of, chosen_settings

WRITTEN = (("json", ".json", "results"), ("predictions", ".csv", "predictions"), ("confusion", ".png", "drawings"))


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    options = EvaluateOptions.unchecked(said)
    return gathered(*checks(options), *(check_files(options) if first_process() else ()))


def check(options: EvaluateOptions) -> None:
    """Refuse what cannot be done or written before any work is done, and before processes meet.

    What one process alone finds is told to the others only once all have met; so of several the first looks later
    at what is to be written, with :func:`check_files`.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    if lines := gathered(*checks(options), *(check_files(options) if processes_of_run() == 1 else ())):
        raise BadOptions(dict.fromkeys([*lines, *problems(vars(options))]))


def checks(options: EvaluateOptions) -> list[Callable[[], object]]:
    """Checks of what needs neither data nor weights."""
    found: list[Callable[[], object]] = [partial(_one_process, options), partial(check_form, vars(options), 0)]
    found += [partial(own_model_kwargs, options), partial(check_root, options.data_dir, options.data, options.train)]
    if options.opt:
        found.append(partial(check_optimizer, options.opt))
    if options.device and processes_of_run() == 1:
        found.append(partial(pick_device, options.device))
    found.append(partial(check_graphs, options.compile, options.device))
    found.append(partial(check_clients, options.log or ()))
    if options.method == "linear":
        found.append(needed)
    return [*found, partial(check_sketch, options)] if options.model else found


def check_files(options: EvaluateOptions) -> list[Callable[[], object]]:
    """Checks of what is to be written."""
    found: list[Callable[[], object]] = []
    if options.output:
        force = options.force or has_no_step(options.output)
        found.append(partial(check_target, options.output, force, (LOG,)))
    read = [one for one in (options.data, options.train, options.labels) if one]
    for name, ending, what in WRITTEN:
        if file := getattr(options, name):
            found.append(partial(check_writable, file, f"--{name} {file}"))
            found.append(partial(check_ending, file, f"--{name} {file}", (ending,), what))
            found.append(partial(check_not_read, file, f"--{name} {file}", read))
    return found


# ---- the model


def check_sketch(options: EvaluateOptions) -> None:
    """Refuse a model that does not exist or does not go with the options, as far as it can be told without its weights.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    check_model(options.model)
    kwargs = {name: value for name, value in (options.model_kwargs or {}).items() if name not in OWN_ARGS}
    options = options.having(model_kwargs=kwargs)  # of the others something is said anyway
    sketch: Any = without_weights(options.model, kwargs).eval()
    looks: list[Callable[[], object]] = [partial(check_size, options, sketch)]
    if options.pretrained:
        looks.append(partial(check_weights, options.model))
    if len(input_shape(sketch)) == 3:
        given = {"--frame-stride": options.frame_stride, "--frame-rate": options.frame_rate, "--views": options.views}
        given |= {"--repeat": options.repeat not in (None, 1)}
        looks += [partial(refuse_videos, {name: value}) for name, value in given.items()]
    if options.method == "classify":
        looks.append(partial(check_classifier, options.model, sketch))
    if options.method == "finetune":
        looks.append(partial(check_tuning, options, sketch))
    check_all(*looks)


def check_size(options: EvaluateOptions, sketch: Any) -> None:
    """Refuse a size that the model cannot take, or blocks that cannot be computed again.

    Raises:
        ValueError: naming the option.
    """
    if options.grad_checkpointing:
        sketch.set_grad_checkpointing()
        sketch.set_grad_checkpointing(False)
    if side := options.img_size:
        check_img_size(options.model, sketch, side)


def check_tuning(options: EvaluateOptions, sketch: Any) -> None:
    """Refuse what cannot be fine-tuned so, however many images there are.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    arch = architecture_of(options.model, sketch)
    row, batch, accumulate = recipe_for(arch), options.batch_size, options.accumulate or 1
    repeat = options.repeat or row.repeat
    followed = recipe_of_size(options.recipe or RECIPES[0], None, device_type(options.device))
    # The augmentation of the small recipe does not depend on the size, and is lighter than the other.
    size = None if followed == "paper" else Size(FEW, repeat, 1)
    divided: Callable[[], object] = partial(TUNING.check_parts, accumulate, repeat)
    if batch or followed == "paper":
        divided = partial(Batching, sys.maxsize, batch or row.batch, accumulate, 0, processes_of_run(), 0, repeat)

    def settled() -> None:
        unsized = options.having(batch_size=256 * repeat, accumulate=None, crop_scale=None)
        unsized = unsized.having(warmup=None) if size else unsized  # whose epochs depend on the data
        recipe, settings = chosen_settings(unsized, arch, size)
        augmentation(data_config(sketch), recipe, settings)

    check_all(divided, settled)


def _one_process(options: EvaluateOptions) -> None:
    if processes_of_run() > 1 and options.method not in (None, "finetune"):
        raise ValueError(f"--method {options.method} runs in one process; torchrun is for finetune")
