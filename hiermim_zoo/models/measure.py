"""Sizes of a model: parameters and multiply-adds, counted without memory and without running equal blocks twice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from timm.models import create_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints import manifest
from .build import input_shape
from .shapes import without_memory


class Size(NamedTuple):
    parameters: int
    macs: int  # multiply-adds of one forward pass of one input
    input_size: tuple[int, ...]


@functools.cache
def measure(arch: str, img_size: tuple[int, int] | None = None, **model_kwargs: Any) -> Size:
    """Sizes of an architecture, on the meta device.

    Args:
        img_size: pixels (height, width) of the input; default: what the architecture is configured for.
        model_kwargs: of the model, hashable.
    """
    size: dict[str, Any] = {"img_size": img_size} if img_size else {}
    with without_memory():
        model: Any = create_model(arch, **size, **model_kwargs).eval()
        shape = input_shape(model)
        shape = (*shape[:-2], *(img_size or shape[-2:]))
        _, macs = sketch(model, torch.empty(1, *shape))
    return Size(sum(p.numel() for p in model.parameters()), macs, shape)


@functools.cache
def parameters(name: str) -> int:
    """Parameters of an architecture, or of "arch.tag" with the classes of that tag, on the meta device."""
    args: dict[str, Any] = {}
    row = manifest.records().get(name)
    if row is not None and row.timm:  # whose tags timm does not know
        size = {"img_size": row.input_size[1:]} if row.input_size else {}
        name, args = row.arch, {"num_classes": row.classes, **size}
    with without_memory():
        return sum(p.numel() for p in create_model(name, **args).parameters())


def sketch(model: nn.Module, inputs: Tensor) -> tuple[Any, int]:
    """One forward pass without values, of a model in eval mode on the meta device.

    Blocks of one form that are given inputs of one form run once, and count as often as they are called.

    Returns:
        What the model returns (tensors without values), and the multiply-adds of the pass.
    """
    blocks = [block for part in model.modules() if isinstance(part, (nn.ModuleList, nn.Sequential)) for block in part]
    known: dict[Any, tuple[Any, int, Any]] = {}
    again = 0
    with FlopCounterMode(display=False) as counter:

        def total() -> int:
            return counter.get_total_flops() + again

        def once(block: nn.Module) -> Callable[..., Any]:
            forward, form = block.forward, form_of(block)

            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal again
                key = (form, form_of(args), form_of(kwargs))
                if key in known:
                    again += known[key][1]
                else:
                    before = total()
                    out = forward(*args, **kwargs)
                    known[key] = out, total() - before, (args, kwargs)  # what its id stands for must stay alive
                return known[key][0]

            return run

        runs = {block: once(block) for block in blocks if not isinstance(block, nn.ModuleList)}
        try:
            for block, run in runs.items():
                block.forward = run
            out = model(inputs)
        finally:
            for block in runs:
                vars(block).pop("forward", None)
        return out, total() // 2


def form_of(thing: Any) -> Any:
    """What a computation without values depends on: equal forms are one computation.

    A tensor is its shape and type, a module is all that it consists of. What is not plain data equals itself alone.
    """
    if isinstance(thing, Tensor):
        return ("tensor", tuple(thing.shape), thing.stride(), thing.dtype, thing.requires_grad)
    if isinstance(thing, DropPath) and not thing.training:
        return DropPath  # whatever its rate
    if isinstance(thing, nn.Module):
        return (type(thing), form_of(vars(thing)))
    if isinstance(thing, (list, tuple)):
        return (type(thing), *map(form_of, thing))
    if isinstance(thing, (set, frozenset)):
        return (type(thing), frozenset(map(form_of, thing)))
    if isinstance(thing, dict):
        return (type(thing), *((key, form_of(value)) for key, value in thing.items()))
    if isinstance(thing, (bool, int, float, str, torch.dtype)):
        return (type(thing), thing)
    return id(thing)
