"""Models measured as they are: by their own classifier, or by what others make of their pooled features.

Each method gives what it said of the images, and its settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..checkpoints.atomic import replacing, save_tensors
from ..data.splits import Chosen, Labelled, classes_by_label
from ..models.build import make_model
from ..text import counted
from ..training.distributed import World
from ..training.image_form import form_for, to_remember
from ..training.linear import Bank, needed
from ..training.probe import Inference, Shown, outputs, pooled_features
from ..training.tasks import TASKS, outputs_of
from .evaluating_shared import Measured, measured, open_data, own_model_kwargs, place, reading, weights_of
from .options.evaluate import EvaluateOptions

BATCH = 64  # images fed at once
NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al. 2018, arXiv 1805.01978


def classify(options: EvaluateOptions, world: World) -> tuple[Measured, dict[str, Any]]:
    """By the model's own classifier, whose classes are found by name where both model and data name them.

    Raises:
        ValueError: it has none, or one of other classes than those of the data.
    """
    model, how = load(options, world)
    check_classifier(options.model, model)
    own = (model.pretrained_cfg or {}).get("label_names")
    test, _ = open_data(options, how.config["input_size"], world, names=own)
    classes = len(test.names) if test.names else classes_by_label(test)
    if classes is not None and classes != model.num_classes:
        raise ValueError(
            f"{options.model} tells {model.num_classes} {test.kind} apart, but {options.data} has {classes}"
        )
    output_of = output_by_label(options, own, test, model.num_classes)
    shown = outputs(outputs_of(model, test.kind), test.source, how)
    return measured(test, shown._replace(rows=shown.rows[:, output_of]) if len(shown.rows) else shown), {}


def check_classifier(name: str, model: Any) -> None:
    """Refuse an encoder.

    Raises:
        ValueError: it is one.
    """
    if not model.num_classes:
        raise ValueError(f"{name} has no classifier; --method knn, linear or finetune measures encoders")


def output_by_label(options: EvaluateOptions, own: Sequence[str] | None, test: Labelled, count: int) -> Tensor:
    """For each label of the data the position of the model's output: int64 [classes].

    Args:
        own: names of the model's outputs, ``count`` of them.

    Raises:
        ValueError: the model calls its classes otherwise.
    """
    if not own or not test.names:
        return torch.arange(count)
    if set(own) != set(test.names):
        odd = sorted(set(test.names) - set(own))[:3]
        raise ValueError(f"{options.model} does not know the classes of {options.data}: {', '.join(odd)}")
    return torch.tensor([list(own).index(name) for name in test.names])


def neighbours(options: EvaluateOptions, world: World) -> tuple[Measured, dict[str, Any]]:
    """By the vote of the nearest training images.

    Raises:
        ValueError: model and data do not go together.
    """
    model, how = load(options, world)
    test, train = open_data(options, how.config["input_size"], world)
    assert train is not None
    bank, asking = pooled_features(model, train.source, how), pooled_features(model, test.source, how)
    truth = train.truth_at(bank.positions, bank.labels)
    k, temperature = min(options.k or NEIGHBOURS, len(truth)), options.temperature or TEMPERATURE
    rows, said, queries = (part.to(world.device) for part in (bank.rows, truth, asking.rows))
    count = outputs_told(train, test, bank, asking)
    votes = TASKS[train.kind].votes(rows, said, queries, k, temperature, count)
    fewer = f"-k {options.k} is more than the {counted(len(truth), 'images')} to train on, so all of them vote"
    lines = (fewer,) if (options.k or 0) > len(truth) else ()
    found = replace(measured(test, asking._replace(rows=votes.cpu())), trained=len(truth), warnings=lines)
    return found, {"k": k, "temperature": temperature}


def linear(options: EvaluateOptions, world: World) -> tuple[Measured, dict[str, Any]]:
    """By a linear model trained on features.

    Raises:
        ValueError: model and data do not go together, or scikit-learn is missing.
    """
    needed()
    model, how = load(options, world)
    test, train = open_data(options, how.config["input_size"], world)
    assert train is not None
    bank, asking = (cached_features(options, data, model, how) for data in (train, test))
    truth = train.truth_at(bank.positions, bank.labels)
    count = outputs_told(train, test, bank, asking)
    names = train.names or [str(n) for n in range(count)]
    groups, weights = train.groups_at(bank.positions.tolist()), weights_of(options, train, names, truth)
    whole = Bank(bank.rows, truth, count, groups, weights, options.seed)
    found, settings = TASKS[train.kind].probe(whole, asking.rows)
    if not len(asking.rows):
        raise ValueError(f"none of the images of {test.spec} could be read")
    settings |= {"class_weights": options.class_weights} if options.class_weights else {}
    true = test.truth_at(asking.positions, asking.labels)
    return Measured(test, found, true, asking.positions, trained=len(truth)), settings


def outputs_told(train: Labelled, test: Labelled, *shown: Shown) -> int:
    """How many classes, tags or values there are; where nobody names the classes, up to the largest label."""
    names = train.names or test.names
    return len(names) if names else max(int(part.labels.max()) for part in shown if len(part.labels)) + 1


def load(options: EvaluateOptions, world: World) -> tuple[Any, Inference]:
    """The model for inference, and how images are read for it.

    Raises:
        ValueError: there is no such model, or it does not take the size asked for.
    """
    torch.manual_seed(options.seed)
    kwargs = own_model_kwargs(options)
    model: Any = make_model(options.model, pretrained=options.pretrained, **kwargs).eval()
    return model, reading(options, place(model, options, world), world, options.batch_size or BATCH)


# ---- features that are kept


def cached_features(options: EvaluateOptions, data: Labelled, model: nn.Module, how: Inference) -> Shown:
    """Pooled features [N, D], from the folder of ``--cache`` if they are there."""
    if not options.cache:
        return pooled_features(model, data.source, how)
    where = os.path.abspath(data.spec) if Path(data.spec).exists() else data.spec
    key: list[Any] = [options.model, weights_hash(model), where, options.data_dir, data.split, len(data.source)]
    key += [options.frame_stride, options.frame_rate, options.views, to_remember(form_for(options, 0))]
    key += [{name: str(value) for name, value in how.config.items()}, how.amp]
    if isinstance(data.source, Chosen):  # rows of a table come and go
        names = "\n".join(data.source.name_of(n) for n in range(len(data.source)))
        key.append(hashlib.sha256(names.encode()).hexdigest())
    path = options.cache / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.safetensors"
    parts = ("features", "labels", "positions")
    if path.exists():
        with safe_open(path, "pt") as file:
            if set(parts) <= set(file.keys()):  # earlier versions kept no positions
                return Shown(*(file.get_tensor(part) for part in parts))
    found = pooled_features(model, data.source, how)
    options.cache.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        save_tensors(dict(zip(parts, found, strict=True)), part, {"key": json.dumps(key)})
    return found


def weights_hash(model: nn.Module) -> str:
    """One word for all that a model computes with: names, shapes, types and values of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
