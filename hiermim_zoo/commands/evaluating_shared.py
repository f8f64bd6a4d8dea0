"""What the methods of ``evaluate`` share: the data, a model at its input size, how images are read, what is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.splits import Labelled, check_apart, open_labelled
from ..data.transforms import data_config
from ..training.distributed import World
from ..training.image_form import form_for
from ..training.probe import Inference
from .loading import model_errors, set_img_size
from .options.evaluate import TRAINED, EvaluateOptions


class Score(NamedTuple):
    """How many images are told right, of how many."""

    right: int
    total: int
    warnings: tuple[str, ...] = ()  # what should be known beside it

    @property
    def percent(self) -> float:
        return 100 * self.right / self.total


def open_data(
    options: EvaluateOptions, input_size: tuple[int, ...], repeat: int | None = None
) -> tuple[Labelled, Labelled | None]:
    """The images (or videos) to measure on, and those to train on if the method needs any.

    Args:
        input_size: of the model: (channels, height, width), or (channels, frames, height, width).
        repeat: clips of a video each time it is opened for training.

    Raises:
        ValueError: data are missing or without labels, or those of both differ in their classes.
    """
    how: dict[str, Any] = {
        "form": form_for(options, input_size[0]),
        "root": options.data_dir,
        "seed": options.seed,
        "stride": options.frame_stride,
        "rate": options.frame_rate,
        "views": options.views,
    }
    test = open_labelled(options.data, options.split, input_size, training=False, **how)
    if options.method not in TRAINED:
        return test, None
    how |= {"training": options.method == "finetune", "repeat": repeat}
    train = open_labelled(options.train or options.data, options.train_split or "train", input_size, **how)
    check_apart(train, test)
    return test, train


def own_model_kwargs(options: EvaluateOptions) -> dict[str, Any]:
    """Arguments of the model that have no option of their own.

    Raises:
        ValueError: one has.
    """
    return options.own_model_kwargs("drop_path_rate", "drop_rate", "img_size", "num_classes")


def place(model: Any, options: EvaluateOptions, world: World) -> dict[str, Any]:
    """Set a model to its input size and device, try it out, and give its preprocessing.

    Raises:
        ValueError: it does not take the size.
    """
    side = options.img_size
    config = data_config(model, (side, side) if side else None)
    with model_errors(options.model, f"--img-size {side}" if side else f"{config['input_size'][-1]} pixels"):
        set_img_size(model, side)
        model.to(world.device).eval()
        with torch.no_grad():
            model(torch.zeros(1, *config["input_size"], device=world.device))
    return config


def reading(options: EvaluateOptions, config: dict[str, Any], world: World, batch_size: int) -> Inference:
    """How images are read for a model.

    Args:
        config: its preprocessing.
    """
    return Inference(
        config, world.device, batch_size, options.workers, options.amp or "none", options.max_bad, world.first
    )


def class_probabilities(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a classifier holds probable [B, classes], which can be averaged over the views of a video."""
    return lambda images: model(images).float().softmax(1)
