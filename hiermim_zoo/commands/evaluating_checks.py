"""What can be wrong with an evaluation, as far as it can be told without the data: all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoints.folder import check_target
from ..models.family import check_arch
from ..models.saved import check_folder
from ..training.checks import check_form, first_process
from ..training.distributed import World, pick_device
from ..training.graphs import check_graphs
from ..training.optimizer import check_optimizer
from ..training.run_log import LOG
from .options.evaluate import EvaluateOptions
from .options.problems import BadOptions, gathered
from .output_files import check_writable


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    model = [partial(check_model, said["model"])] if said.get("model") else []
    return gathered(*model, *checks(said))


def check(options: EvaluateOptions, world: World) -> None:
    """Refuse what cannot be done or written before any work is done.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    said = {name: getattr(options, name) for name in options.__dataclass_fields__}
    if lines := gathered(partial(_one_process, options, world), *checks(said)):
        raise BadOptions(dict.fromkeys([*lines, *problems(said)]))


def checks(said: Mapping[str, Any]) -> list[Callable[[], object]]:
    """Checks of the optimiser, the device, the form of images and of what is to be written."""
    found: list[Callable[[], object]] = [partial(check_form, said, 0)]
    if said.get("opt"):
        found.append(partial(check_optimizer, said["opt"]))
    if said.get("device"):
        found.append(partial(pick_device, said["device"]))
    found.append(partial(check_graphs, said.get("compile"), said.get("device")))
    if said.get("output") and first_process():
        found.append(partial(check_target, said["output"], bool(said.get("force")), (LOG,)))
    for name in ("json", "predictions", "confusion"):
        if said.get(name):
            found.append(partial(check_writable, said[name], f"--{name} {said[name]}"))
    return found


def check_model(name: str) -> None:
    """Refuse a name that stands for no model.

    Raises:
        ValueError: naming it.
    """
    if name.startswith("local-dir:"):
        check_folder(Path(name.removeprefix("local-dir:")))
    elif ":" not in name:
        check_arch(name)


def _one_process(options: EvaluateOptions, world: World) -> None:
    if world.size > 1 and options.method != "finetune":
        raise ValueError(f"--method {options.method} runs in one process; torchrun is for finetune")
