"""Models measured as they are: by their own classifier, or by what others make of their pooled features.

Each method gives its score and its settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..checkpoints.atomic import replacing, save_tensors
from ..data.splits import Labelled, check_labels, classes_by_label
from ..models.build import make_model
from ..training.distributed import World
from ..training.endings import about_score, chance_of
from ..training.image_form import form_for, to_remember
from ..training.probe import Inference, knn, linear_probe, outputs, pooled_features
from .evaluating_shared import Score, class_probabilities, open_data, own_model_kwargs, place, reading
from .options.evaluate import EvaluateOptions

BATCH = 64  # images fed at once
ADVICE = "--method finetune, a model that was trained longer or on similar images, or look at the labels"
NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al. 2018, arXiv 1805.01978


def classify(options: EvaluateOptions, world: World) -> tuple[Score, dict[str, Any]]:
    """By the model's own classifier, whose classes are found by name where both model and data name them.

    Raises:
        ValueError: it has none, or one of other classes than those of the data.
    """
    model, how = load(options, world)
    if not model.num_classes:
        raise ValueError(f"{options.model} has no classifier; --method knn, linear or finetune measures encoders")
    test, _ = open_data(options, how.config["input_size"])
    classes = len(test.names) if test.names else classes_by_label(test)
    if classes is not None and classes != model.num_classes:
        raise ValueError(f"{options.model} tells {model.num_classes} classes apart, but {options.data} has {classes}")
    output_of = output_by_label(options, model, test)
    found, labels = outputs(class_probabilities(model), test.source, how)
    return score(found.argmax(1), output_of[check_labels(test, labels)], model.num_classes), {}


def output_by_label(options: EvaluateOptions, model: Any, test: Labelled) -> Tensor:
    """For each label of the data the position of the model's output: int64 [classes].

    Raises:
        ValueError: the model calls its classes otherwise.
    """
    own = (model.pretrained_cfg or {}).get("label_names")
    if not own or not test.names:
        return torch.arange(model.num_classes)
    if set(own) != set(test.names):
        odd = sorted(set(test.names) - set(own))[:3]
        raise ValueError(f"{options.model} does not know the classes of {options.data}: {', '.join(odd)}")
    return torch.tensor([list(own).index(name) for name in test.names])


def neighbours(options: EvaluateOptions, world: World) -> tuple[Score, dict[str, Any]]:
    """By the vote of the nearest training images.

    Raises:
        ValueError: model and data do not go together.
    """
    model, how = load(options, world)
    test, train = open_data(options, how.config["input_size"])
    assert train is not None
    bank, bank_labels = pooled_features(model, train.source, how)
    queries, labels = pooled_features(model, test.source, how)
    check_labels(train, bank_labels)
    k, temperature = min(options.k or NEIGHBOURS, len(bank)), options.temperature or TEMPERATURE
    device = world.device
    found = knn(bank.to(device), bank_labels.to(device), queries.to(device), k, temperature).cpu()
    return score(found, check_labels(test, labels), *of_data(test)), {"k": k, "temperature": temperature}


def linear(options: EvaluateOptions, world: World) -> tuple[Score, dict[str, Any]]:
    """By a linear classifier trained on features.

    Raises:
        ValueError: model and data do not go together, or scikit-learn is missing.
    """
    model, how = load(options, world)
    test, train = open_data(options, how.config["input_size"])
    assert train is not None
    (bank, bank_labels), (queries, labels) = (cached_features(options, data, model, how) for data in (train, test))
    check_labels(train, bank_labels)
    found, settings = linear_probe(bank, bank_labels, queries, options.seed)
    return score(found, check_labels(test, labels), *of_data(test)), settings


def of_data(test: Labelled) -> tuple[int, list[str] | None]:
    """The number of classes, and their names, as far as the data tell."""
    return (len(test.names) if test.names else classes_by_label(test)) or 2, test.names


def score(found: Tensor, labels: Tensor, classes: int, names: Sequence[str] | None = None) -> Score:
    """How many are right, and whether that is more than chance."""
    right, total = int((found == labels).sum()), len(labels)
    return Score(right, total, tuple(about_score(right, total, chance_of(labels, classes, names), ADVICE)))


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


def cached_features(
    options: EvaluateOptions, data: Labelled, model: nn.Module, how: Inference
) -> tuple[Tensor, Tensor]:
    """Pooled features [N, D] and labels [N], from the folder of ``--cache`` if they are there."""
    if not options.cache:
        return pooled_features(model, data.source, how)
    where = os.path.abspath(data.spec) if Path(data.spec).exists() else data.spec
    key: list[Any] = [options.model, weights_hash(model), where, options.data_dir, data.split, len(data.source)]
    key += [options.frame_stride, options.frame_rate, options.views, to_remember(form_for(options, 0))]
    key += [{name: str(value) for name, value in how.config.items()}, options.amp]
    path = options.cache / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            return file.get_tensor("features"), file.get_tensor("labels")
    features, labels = pooled_features(model, data.source, how)
    options.cache.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        save_tensors({"features": features, "labels": labels}, part, {"key": json.dumps(key)})
    return features, labels


def weights_hash(model: nn.Module) -> str:
    """One word for all that a model computes with: names, shapes, types and values of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
