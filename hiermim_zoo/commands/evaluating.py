"""A model is measured on labelled images, or on videos, by one of four methods."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import replace
from typing import Any

import timm
import torch

from ..checkpoints.atomic import replacing
from ..checkpoints.folder import check_target
from ..training.distributed import World, gather_objects, processes
from ..training.image_form import form_for, to_remember
from ..training.precision import chosen_amp
from ..training.run_log import LOG
from ..version import __version__
from .evaluating_finetune import finetune
from .evaluating_frozen import classify, linear, neighbours
from .evaluating_shared import Measured, own_model_kwargs, understood
from .options import Outcome
from .options.evaluate import TRAINED, EvaluateOptions
from .output_files import check_writable

METHODS = {"classify": classify, "knn": neighbours, "linear": linear, "finetune": finetune}


def evaluate(options: EvaluateOptions) -> Outcome:
    """Measure a model; the result is a dictionary of what JSON knows, the same in every process.

    Raises:
        ValueError: model, data, options or files do not go together.
    """
    began = time.perf_counter()
    with processes(options.device) as world:
        check_outputs(options, world)
        amp = options.amp or ("auto" if options.method == "finetune" else "none")
        options = replace(options, amp=chosen_amp(amp, world.device))
        found, settings = METHODS[options.method](options, world)
        result = {}
        if world.first:
            result = summary(options, found, settings, time.perf_counter() - began)
            found.write(options)
            if options.json:
                with replacing(options.json) as part:
                    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        result = gather_objects(result)[0]
    return Outcome(result, json.dumps(result) if world.first else "")


def check_outputs(options: EvaluateOptions, world: World) -> None:
    """Refuse what cannot be written before any work is done.

    Raises:
        ValueError: naming it.
    """
    if world.size > 1 and options.method != "finetune":
        raise ValueError(f"--method {options.method} runs in one process; torchrun is for finetune")
    if world.first and options.output:
        check_target(options.output, options.force, (LOG,))
    for name in ("json", "predictions", "confusion"):
        if file := getattr(options, name):
            check_writable(file, f"--{name} {file}")


def summary(options: EvaluateOptions, measured: Measured, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The result, with all that is needed to get it again; what is in it are the types that JSON knows."""
    trained = options.method in TRAINED
    found = {
        "model": options.model,
        "pretrained": options.pretrained,
        "method": options.method,
        "data": options.data,
        "split": options.split,
        "train": (options.train or options.data) if trained else None,
        "train_split": (options.train_split or "train") if trained else None,
        "img_size": options.img_size,
        "model_kwargs": own_model_kwargs(options),
        "frame_stride": options.frame_stride,
        "views": options.views,
        "images": to_remember(form_for(options, 0)),
        "labels": understood(measured.test),
        "group": options.group,
        "split_fraction": options.split_fraction,
        "pictures": len(measured.truth),
        **measured.scores,
        "seed": options.seed,
        "settings": {"amp": options.amp, "max_bad": options.max_bad, **settings},
        "command": options.command("evaluate"),
        "versions": {
            "hiermim_zoo": __version__,
            "torch": str(torch.__version__),
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "seconds": round(seconds, 1),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples become lists, as in the file
    return plain
