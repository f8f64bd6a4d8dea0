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
from ..text import printable
from ..training.distributed import gather_objects, processes
from ..training.endings import FROM_SCRATCH, LITTLE, about_model, warn
from ..training.image_form import form_for, to_remember
from ..training.precision import chosen_amp
from ..training.probe import interval
from ..version import __version__
from .evaluating_checks import check
from .evaluating_finetune import finetune
from .evaluating_frozen import classify, linear, neighbours
from .evaluating_shared import Score, own_model_kwargs
from .options import Outcome
from .options.evaluate import TRAINED, EvaluateOptions

METHODS = {"classify": classify, "knn": neighbours, "linear": linear, "finetune": finetune}


def evaluate(options: EvaluateOptions) -> Outcome:
    """Measure a model; the result is a dictionary of what JSON knows, the same in every process.

    Raises:
        ValueError: model, data, options or files do not go together.
    """
    began = time.perf_counter()
    with processes(options.device) as world:
        check(options, world)
        amp = options.amp or ("auto" if options.method == "finetune" else "none")
        options = replace(options, amp=chosen_amp(amp, world.device))
        score, settings = METHODS[options.method](options, world)
        result = {}
        if world.first:
            result = summary(options, score, settings, time.perf_counter() - began)
            warn(result["warnings"])
            if options.json:
                with replacing(options.json) as part:
                    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        result = gather_objects(result)[0]
    return Outcome(result, f"{in_words(result)}\n{json.dumps(result)}" if world.first else "")


def summary(options: EvaluateOptions, score: Score, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The result, with all that is needed to get it again; what is in it are the types that JSON knows."""
    trained = options.method in TRAINED
    so = FROM_SCRATCH if options.method == "finetune" else LITTLE
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
        "frame_rate": options.frame_rate,
        "views": options.views,
        "images": to_remember(form_for(options, 0)),
        "pictures": score.total,
        "top1": round(score.percent, 4),
        "interval": [round(100 * bound, 4) for bound in interval(score.right, score.total)],
        "warnings": [*about_model(options.model, options.pretrained, so), *score.warnings],
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


def in_words(result: dict[str, Any]) -> str:
    """The result as a line for people."""
    low, high = result["interval"]
    right = f"{result['top1']:.1f} % of {result['pictures']} images right (95 % interval {low:.1f} to {high:.1f})"
    return printable(f"{result['model']}, {result['method']} on {result['data']}: {right}")
