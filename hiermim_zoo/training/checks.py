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

from ..checkpoints.configs import CONFIG_KEY, IMAGE_KINDS, read_config
from ..checkpoints.folder import CONFIG_FILE
from ..commands.options.pretrain import DECODER, OWN_ARGS, PIXELS, SCHEDULED, USUAL, PretrainOptions
from ..commands.options.problems import BadOptions, gathered
from ..data.batches import Batching
from ..data.clips import refuse_videos
from ..data.decoding import Form
from ..data.kinds import check_root
from ..teacher import BadTeacher, check_teacher
from . import snapshots
from .autoencoder import sketched_before_data
from .defaults import family_values, filled_by_paper
from .distributed import check_spread, pick_device, restored
from .drawing import shown_of
from .graphs import check_graphs
from .image_form import form_of
from .lock import FolderLock
from .optimizer import check_optimizer
from .run_clients import check_clients
from .small import PRETRAINING

# Options of which each alone may be one that a model cannot be built with.
SHAPING = (("img_size",), ("target",), DECODER, ("mask_ratio",), ("compile",), ("grad_checkpointing",), ("in_chans",))
KWARGS = ("model_kwargs",)


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    known = {name: value for name, value in said.items() if value is not None}
    options = PretrainOptions.unchecked({"data": "DATA", "output": Path("OUTPUT"), **known})  # that they lack is known
    output = [partial(_check_output, options)] if first_process() and "output" in known else []
    return gathered(*quick_checks(options), partial(check_shape, options), *output)


def check(options: PretrainOptions) -> PretrainOptions:
    """The options, with the values of the model's family; those that depend on the data, only of the paper's recipe.

    Everything that can be told without the data is looked at, so that all that is wrong is said at once. Of a run that
    goes on the options come back as they are: what they do not say is as it began.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    # What costs time is looked at here if it is needed to say all, else where the run begins.
    shape = [] if options.checkpoint or options.resume else [partial(check_shape, options)]
    alone = [partial(_check_output, options)] if processes_of_run() == 1 else []
    if gathered(*quick_checks(options), *shape, *alone):
        raise BadOptions(problems({field.name: getattr(options, field.name) for field in fields(options)}))
    return options if options.resume else completed(options)


def quick_checks(options: PretrainOptions) -> list[Callable[[], object]]:
    """Checks that cost no time.

    Of several processes all must find the same here: what one alone finds is told to the others only once all have met.
    """
    found: list[Callable[[], object]] = [partial(check_spread, options.fsdp), partial(check_batch, options)]
    found += [partial(family_values, options.model)] if options.model else []
    found += [partial(check_optimizer, options.opt)] if options.opt else []
    found += [partial(pick_device, options.device)] if options.device and processes_of_run() == 1 else []
    found.append(partial(check_graphs, options.compile, options.device))
    found.append(partial(check_root, options.data_dir, options.data))
    found.append(partial(check_clients, options.log or ()))
    channels = options.in_chans or (0 if options.checkpoint else 3)
    found.append(partial(check_form, vars(options), channels))
    if options.model and not options.resume:
        found += [options.check_rate, partial(completed, options)]
    return found


def completed(options: PretrainOptions) -> PretrainOptions:
    """The options with the values of the family where they say nothing.

    Raises:
        ValueError: together they do not go.
    """
    folder = Path(options.checkpoint) if options.checkpoint else None
    remembered = {"in_chans": said_channels(folder), "target": said_target(folder)}
    if options.recipe == "paper":
        return filled_by_paper(options).filled(remembered)
    # How many images there are is not known yet.
    family = {name: value for name, value in family_values(options.model).items() if name not in SCHEDULED}
    return options.filled({**family, **remembered})


def check_shape(options: PretrainOptions) -> None:
    """Refuse a model that cannot be built, and what it cannot take.

    Raises:
        ValueError: naming it; nothing of a model that is unknown, and nothing of a run that goes on.
    """
    if options.resume or not options.model or gathered(partial(family_values, options.model)):
        return
    device, sketches = device_type(options.device), []

    def sketch(shown: PretrainOptions) -> None:
        with restored():
            sketches.append(sketched_before_data(shown, device))

    def teach() -> None:
        try:
            check_teacher(sketches[0])
        except BadTeacher as error:
            raise ValueError(f"--target {error}") from error

    kwargs = {name: value for name, value in (options.model_kwargs or {}).items() if name not in OWN_ARGS}
    options = options.having(model_kwargs=kwargs)  # of the others something is said anyway
    if lines := gathered(partial(sketch, options)):
        # Which of the options it is, and whether others are wrong, too: each is tried without the others.
        plain = options.having(**{name: None for names in SHAPING for name in names})
        if gathered(partial(sketch, plain)):
            plain = plain.having(model_kwargs=None)
        alone = (plain.having(**{name: getattr(options, name) for name in names}) for names in (*SHAPING, KWARGS))
        lines = gathered(*(partial(sketch, one) for one in alone)) or lines
    lines += gathered(teach) if sketches else []
    if sketches and len(sketches[0].input_size) == 2:
        repeat = options.repeat not in (None, 1)
        said = {"--frame-stride": options.frame_stride, "--frame-rate": options.frame_rate, "--repeat": repeat}
        lines += gathered(*(partial(refuse_videos, {name: value}) for name, value in said.items()))
    if lines:
        raise BadOptions(lines)


def device_type(name: str | None) -> str:
    """Of the device of that name, or of the usual one where there is none of that name."""
    with restored():
        try:
            return pick_device(name).type
        except ValueError:
            return pick_device(None).type


def _check_output(options: PretrainOptions) -> None:
    if options.output:
        with FolderLock(options.output, not options.export_only) as lock:
            lock.look()  # a folder in use is no folder to go on with
        if not snapshots.where(options.output, options.resume):
            _check_apart(options)


def _check_apart(options: PretrainOptions) -> None:
    """Refuse an output whose previews the next run would take for images of the data."""
    if not options.data or not options.output:
        return
    data = Path(options.data)
    part = data / (options.split or USUAL["split"])
    read = part if part.is_dir() else data
    if read.is_dir() and options.output.resolve().is_relative_to(read.resolve()):
        raise ValueError(
            f"-o {options.output} is inside {read}, so its previews would become images of the data: "
            "name a folder elsewhere"
        )


def check_form(said: Mapping[str, Any], channels: int) -> None:
    """Refuse a rule of scaling, bands or channels to draw that there cannot be.

    Args:
        channels: of the model; 0: not known.

    Raises:
        ValueError: with a line for each.
    """
    whole = {key: said.get(key) for key in IMAGE_KINDS}
    ones: list[dict[str, Any]] = [{key: value} for key, value in whole.items()]
    alone, together = (
        [partial(form_of, SimpleNamespace(max_pixels=None, **form), channels, {}) for form in forms]
        for forms in (ones, [whole])
    )
    lines = gathered(*alone) or gathered(*together)
    if channels and (bands := said.get("show_bands")):
        lines += gathered(partial(shown_of, Form(channels), bands))
    if lines:
        raise BadOptions(lines)


def check_batch(options: PretrainOptions) -> None:
    """Refuse a batch that cannot be divided, however many images there are.

    Raises:
        ValueError: naming it.
    """
    accumulate, repeat = options.accumulate or 1, options.repeat or 1
    if options.batch_size:
        Batching(sys.maxsize, options.batch_size, accumulate, 0, processes_of_run(), 0, repeat)
    elif options.recipe == "small":
        PRETRAINING.check_parts(accumulate, repeat)


def first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def processes_of_run() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def said_channels(folder: Path | None) -> int:
    """The channels of the images that the model of a folder takes; of no folder the usual ones.

    Raises:
        ValueError: its configuration says what cannot be.
    """
    size = _config(folder).get("pretrained_cfg", {}).get("input_size")
    return int(size[0]) if size else 3


def said_target(folder: Path | None) -> str:
    """What the decoder of a folder predicts; of no folder the usual target.

    Raises:
        ValueError: its configuration says what cannot be.
    """
    recipe = _config(folder).get(CONFIG_KEY, {}).get("recipe")
    return str(recipe.get("target", PIXELS)) if isinstance(recipe, Mapping) else PIXELS


def _config(folder: Path | None) -> Mapping[str, Any]:
    """config.json of a folder, where there is one."""
    file = folder / CONFIG_FILE if folder else None
    return read_config(file) if file and file.is_file() else {}
