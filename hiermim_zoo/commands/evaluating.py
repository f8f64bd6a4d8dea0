"""A model is measured on labelled images, or on videos, by one of four methods."""

from __future__ import annotations

import json
import platform
import time
from typing import Any

import timm
import torch

from ..checkpoints.atomic import replacing
from ..text import counted, printable
from ..training.distributed import gather_objects, processes
from ..training.endings import (
    CHANCES,
    FROM_SCRATCH,
    LITTLE,
    about_groups,
    about_model,
    about_score,
    about_trained,
    chance_of,
    warn,
)
from ..training.image_form import form_for, to_remember
from ..version import __version__
from .evaluating_checks import check, check_files
from .evaluating_finetune import finetune
from .evaluating_frozen import classify, linear, neighbours
from .evaluating_shared import Measured, amp_of, headline, own_model_kwargs, understood
from .options import Outcome
from .options.evaluate import TRAINED, EvaluateOptions
from .options.problems import together

METHODS = {"classify": classify, "knn": neighbours, "linear": linear, "finetune": finetune}


def evaluate(options: EvaluateOptions) -> Outcome:
    """Measure a model; the result is a dictionary of what JSON knows, the same in every process.

    Raises:
        ValueError: model, data, options or files do not go together.
    """
    began = time.perf_counter()
    check(options)
    with processes(options.device) as world:
        together(*check_files(options) if world.first else ())
        found, settings = METHODS[options.method](options, world)
        result = {}
        if world.first:
            settings = {"amp": amp_of(options, world.device), **settings}
            result = summary(options, found, settings, time.perf_counter() - began)
            warn(result["warnings"])
            found.write(options)
            if options.json:
                with replacing(options.json) as part:
                    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        result = gather_objects(result)[0]
    return Outcome(result, f"{in_words(options, found)}\n{json.dumps(result)}" if world.first else "")


def summary(options: EvaluateOptions, measured: Measured, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The result, with all that is needed to get it again; what is in it are the types that JSON knows."""
    trained = options.method in TRAINED
    untaught = about_model(options.model, options.pretrained, FROM_SCRATCH if options.method == "finetune" else LITTLE)
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
        "labels": understood(measured.test),
        "group": options.group,
        "split_fraction": measured.test.measured,
        "pictures": len(measured.truth),
        **measured.scores,
        "warnings": [*untaught, *about_found(options, measured, not untaught)],
        "seed": options.seed,
        "settings": {"max_bad": options.max_bad, **settings},
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


def advice_for(options: EvaluateOptions, kind: str, taught: bool) -> list[str]:
    """What to try where a score is no better than chance.

    Args:
        kind: of the labels.
        taught: whether the model had learned something before.
    """
    other = "a model that was trained longer, or on images like these" if taught else "a model with trained weights"
    if options.method == "classify":
        order = "whether its outputs mean these classes in this order" if kind == "classes" else "its scale"
        return [f"look at {order}", "--method finetune"]
    ways = ["more --epochs", "another --lr"] if options.method == "finetune" else ["--method finetune"]
    return [*ways, other, "look at the labels"]


def about_found(options: EvaluateOptions, found: Measured, taught: bool) -> list[str]:
    """What should be known beside the scores: that they may be chance, few groups, and what training had to say.

    Args:
        taught: whether the model had learned something before.
    """
    kind = found.test.kind
    by = "top1" if kind == "classes" else CHANCES[kind].score
    bounds = found.scores[f"{by}_interval"]
    chance = chance_of(found.truth, len(found.names), found.names) if kind == "classes" else CHANCES[kind]
    advice = advice_for(options, kind, taught)
    called, score, interval = headline(found, by)
    lines = about_score(f"{called} {score}{interval}", bounds, chance, len(found.truth), advice) if bounds else []
    lines += about_trained(found.trained, len(found.names), kind) if lines else []
    grouped = found.test.groups_at(found.positions.tolist())
    groups = 0 if grouped is None else len(grouped.unique())
    return [*lines, *about_groups(groups), *found.warnings]


def in_words(options: EvaluateOptions, found: Measured) -> str:
    """The result as a line for people."""
    called, score, interval = headline(found)
    said = f"{called} {score} of {counted(len(found.truth), found.test.source.noun)}{interval}"
    return printable(f"{options.model}, {options.method} on {options.data}: {said}")
