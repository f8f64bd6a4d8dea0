"""A model in one of its modes, as a step that can be taken again and again."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..mae import create_mae
from ..models.build import input_shape, make_model
from ..models.family import check_arch
from ..training.graphs import begin_pass, check_compilable, how
from ..training.precision import autocast
from .baselines import is_peer, make_peer
from .options.benchmark import MODES
from .options.values import ASSIGNMENT

MASKED = ("pretrain", "dense")  # modes of the masked autoencoder
TRACED = "traced "  # before a mode of torch.compile: graphs are made as for it and run as they are


class Side(NamedTuple):
    """A model, and the way it runs."""

    spec: str  # NAME[,ARGUMENT=VALUE...][:MODE]
    compile: str | None = None  # a mode of torch.compile, perhaps with TRACED before it


@dataclass(frozen=True)
class Setup:
    """What the sides of a comparison have in common."""

    device: str
    batch_size: int
    img_size: tuple[int, int] | None = None  # None: that of each model
    amp: str = "none"


def split(name: str) -> tuple[str, dict[str, Any], str]:
    """Model, its arguments and mode of "NAME[,ARGUMENT=VALUE...][:MODE]".

    Raises:
        ValueError: one of them is unknown, or not of this form.
    """
    rest, _, mode = name.partition(":")
    if mode and mode not in MODES:
        raise ValueError(f"mode {mode!r} of {name!r} is unknown, use {', '.join(MODES)}")
    model, *given = re.split(r",(?![^(]*\))", rest)  # not at the commas of a tuple
    if not is_peer(model):
        check_arch(model)
    try:
        return model, dict(ASSIGNMENT(text) for text in given), mode or MODES[0]
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def build(side: Side, img_size: tuple[int, int] | None = None) -> Any:
    """The classifier, or the masked autoencoder.

    Raises:
        ValueError: it cannot be made, or cannot be what the mode asks for.
    """
    model, given, mode = split(side.spec)
    if img_size:
        given = {**given, "img_size": img_size}
    if is_peer(model):
        return build_peer(model, given, mode).train(mode != "inference")
    made: Any = masked(model, given) if mode in MASKED else make_model(model, **given)
    if side.compile and mode in MASKED:
        check_compilable(made.encoder)
    return made.train(mode != "inference")


def masked(model: str, given: dict[str, Any]) -> Any:
    """The masked autoencoder.

    Raises:
        ValueError: there is none, or none with these arguments or of this size.
    """
    try:
        return create_mae(model, **given)
    except (AssertionError, RuntimeError, TypeError) as error:  # timm's, of arguments that a model does not take
        raise ValueError(f"model {model!r} cannot be made: {error}") from error


def build_peer(name: str, given: dict[str, Any], mode: str) -> nn.Module:
    """A model of another package.

    Raises:
        ValueError: it cannot be made, or has no such mode.
    """
    model = make_peer(name, **given)
    if hasattr(model, "encoder") != (mode == "pretrain"):
        fit = "pretrain" if hasattr(model, "encoder") else "inference or train"
        raise ValueError(f"{name}:{mode}: its mode is {fit}")
    return model


def prepare(model: Any, side: Side, setup: Setup) -> Callable[[], None]:
    """One step of a model: a forward pass; where it trains, the backward pass too, and gradients are dropped."""
    mode, device = split(side.spec)[2], torch.device(setup.device)
    masked = mode in MASKED
    shape = input_shape(model.encoder if masked else model)
    sides = setup.img_size or shape[-2:]
    images = torch.randn(setup.batch_size, *shape[:-2], *sides, device=device)
    everything = torch.arange(model.units, device=device).expand(setup.batch_size, -1) if mode == "dense" else None
    call = compiled(model, side.compile)

    def step() -> None:
        begin_pass(side.compile)
        with autocast(device, setup.amp):
            if mode == "inference":
                with torch.inference_mode():
                    call(images)
                return
            loss = call(images, everything).loss if masked else call(images).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def compiled(model: nn.Module, mode: str | None) -> Any:
    """For one shape of inputs, as every step has the same."""
    if mode is None:
        return model
    if mode.startswith(TRACED):
        return torch.compile(model, backend="eager", dynamic=False)
    return torch.compile(model, dynamic=False, **how(mode))
