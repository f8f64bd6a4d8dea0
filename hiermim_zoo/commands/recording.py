"""What run.json says of a run: its options and where each comes from, the data, the model, versions, the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..data.splits import Labelled
from ..models.recipes import Recipe
from ..training.beginning import Beginning
from ..training.distributed import World
from ..training.finetuning import FineTune
from ..training.run_record import BEGAN, SESSION
from .explaining import OPTION, RECIPE, Counted, Line, Tuned, pretraining_lines, tuning_lines
from .machine import libraries, machine, versions
from .options import OptionSet
from .options.evaluate import EvaluateOptions
from .options.fields import flag_of, option_of
from .options.pretrain import FREE, PretrainOptions
from .tuning_recipe import RECIPE_OPTIONS

DEFAULT = "default"
FRESH = FREE - {"log"}  # options that a run which goes on does not have from its beginning


def record_of_pretraining(options: PretrainOptions, start: Beginning, world: World) -> dict[str, Any]:
    """Of a run of pre-training, or of a part of it.

    Args:
        options: as they were said.
        start: with everything that the run needs.
    """
    chosen, mae, source = start.options, start.mae, start.data.source
    row = start.rows.pretraining
    lines = pretraining_lines(options, chosen, row, mae, world.device.type, Counted(len(source), source.noun))
    values = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    own = {field.name for field in dataclasses.fields(Recipe)} | {"decoder_depth", "decoder_dim", "decoder_heads"}
    files = {line.name: mae.recipe.source if line.name in own else row.source for line in lines}
    said = options_and_rest(options, values, lines, files)
    if start.begun:
        said["options"] = {
            name: {**one, "from": one["from"] if name in FRESH or one["from"].startswith(OPTION) else BEGAN}
            for name, one in said["options"].items()
        }
    return {
        "command": "pretrain",
        "model": options.model,
        "recipe": {"name": chosen.recipe, "sources": {"pre-training": row.source, "autoencoder": mae.recipe.source}},
        **said,
        "data": {"data": options.data, "split": chosen.split, **_data(source), **plain(start.data.described())},
        "input_size": list(start.data.config["input_size"]),
        "parameters": {"encoder": _count(mae.encoder), "autoencoder": _count(mae)},
        SESSION: _session(options, world),
    }


def record_of_tuning(
    options: EvaluateOptions, tuning: FineTune, tuned: Tuned, train: Labelled, world: World
) -> dict[str, Any]:
    """Of a fine-tuning.

    Args:
        options: as they were said.
        tuned: its recipe.
        train: labelled images.
    """
    device = world.device.type
    lines = tuning_lines(options, tuned, device, Counted(len(train.source), train.source.noun))
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    values |= {name: value for name, value in vars(tuned.settings).items() if name in values}
    values |= {option: getattr(tuned.recipe, field) for option, field in RECIPE_OPTIONS.items()}
    values |= {"recipe": tuned.followed}
    files = {line.name: tuned.row.source for line in lines}
    return {
        "command": "evaluate",
        "model": options.model,
        "recipe": {"name": tuned.followed, "sources": {"fine-tuning": tuned.row.source}},
        **options_and_rest(options, values, lines, files),
        "data": {"data": train.spec, "split": train.split, "kind of labels": train.kind, **_data(train.source)},
        "parameters": {"model": _count(tuning.model)},
        SESSION: _session(options, world),
    }


def options_and_rest(
    options: OptionSet, values: Mapping[str, Any], lines: Iterable[Line], files: Mapping[str, str]
) -> dict[str, Any]:
    """All options with their values and where these come from, and what follows from them.

    Args:
        options: as they were said.
        values: of the run.
        lines: see ``explaining.py``.
        files: whose recipe a line is from, by the name of the line.
    """
    told = {line.name: line for line in lines}
    given, found = options.given(), {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        line, value = told.pop(field.name, None), values.get(field.name)
        origin = f"{OPTION} {flag_of(field.name, option_of(field))}" if field.name in given else DEFAULT
        if line:
            line = line._replace(origin=origin) if field.name in given else line
            found[field.name] = _entry(line.value if value is None else value, line, files)
        else:
            found[field.name] = {"value": plain(value), "from": origin}
    return {"options": found, "derived": {name: _entry(line.value, line, files) for name, line in told.items()}}


def _entry(value: Any, line: Line, files: Mapping[str, str]) -> dict[str, Any]:
    entry = {"value": plain(value), "from": line.origin}
    if line.instead:
        entry["recipe"] = line.instead
    if line.origin == RECIPE:
        entry["source"] = files[line.name]
    return entry


def _session(options: Any, world: World) -> dict[str, Any]:
    """Of this part of a run: what was given by hand, and what it runs on."""
    device = str(world.device)
    return {
        "given": plain(options.given()),
        "processes": world.size,
        "versions": {**versions(), **libraries()},
        "machine": {**machine(device), "device": device, "threads": torch.get_num_threads()},
    }


def _data(source: Any) -> dict[str, Any]:
    """What is known of data without reading all of it."""
    names = getattr(source, "class_names", None)
    found = {
        "kind": "stream" if source.streamed else source.noun,
        "count": len(source),
        "classes": len(names) if names else None,
    }
    if not source.streamed and source.noun == "images":
        try:
            first, _ = source.read(0)
        except Exception:  # decoders of damaged files raise whatever comes up; the run will name it
            return found
        size = first.size[::-1] if isinstance(first, Image.Image) else getattr(first, "shape", ())[-2:]
        found["first image"] = list(size)
    return found


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(name): plain(content) for name, content in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    if isinstance(value, (Path, torch.dtype, torch.device)):
        return str(value)
    return value
