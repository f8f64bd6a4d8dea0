"""TorchScript: ``torch.jit.script`` gets the traced inference of a model, with the checks that tracing leaves out."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn


class Scriptable:
    """A model that ``torch.jit.script`` takes, by the hook that torch has for this."""

    in_chans: int
    axes = 2  # of an input, batch and channels apart: rows and columns; 3 with frames before them
    min_side = 1  # pixels
    only_size: tuple[int, int] | None = None  # the one size that is accepted, if there is but one
    multiples: tuple[int, ...] = (1, 1)  # what frames, height and width must be multiples of
    example_size: tuple[int, int] = (148, 220)  # of no multiple of anything, so that what is traced takes all sizes

    def __prepare_scriptable__(self) -> Any:
        """What is compiled instead of this model; the model itself, as a part of another, whose eager form torch would
        change for good.
        """
        caller = sys._getframe(2).f_code.co_name
        return Scripted(self) if caller == "call_prepare_scriptable_func" else self


class Scripted(nn.Module):
    """The inference of a model as a traced graph, which shares its parameters.

    Args:
        model: in any mode, which it keeps.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.chans: int = model.in_chans
        self.ndim: int = 2 + model.axes
        self.min_side: int = model.min_side
        self.height: int
        self.width: int
        self.height, self.width = model.only_size or (0, 0)  # 0: any
        self.multiples = list(model.multiples)
        weight, frames = next(model.parameters()), [model.num_frames] if model.axes == 3 else []
        if weight.is_meta:
            raise ValueError("a model on the meta device has no values: script it when it has weights")
        example = weight.new_zeros(2, self.chans, *frames, *(model.only_size or model.example_size))
        modes = {module: module.training for module in model.modules()}
        try:
            with warnings.catch_warnings(), torch.autocast(weight.device.type, enabled=False):
                warnings.simplefilter("ignore")  # of sizes that become constants: those that may be, geometry.py
                self.graph = torch.jit.trace(model.eval(), example, check_trace=False)
        finally:
            for module, mode in modes.items():
                module.training = mode
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """As the model's.

        Raises:
            RuntimeError: in training mode.
            ValueError: what the model would refuse.
        """
        if self.training:
            raise RuntimeError("what torch.jit.script makes of this model is its inference: call eval() first")
        if x.dim() != self.ndim or x.size(0) == 0 or x.size(1) != self.chans:
            raise ValueError(f"expected {self.ndim} axes, of channels {self.chans}, none empty; got shape {x.size()}")
        if not x.is_floating_point():
            raise ValueError("the input must be floating-point numbers: scale and normalise it first")
        height, width = x.size(-2), x.size(-1)
        if height < self.min_side or width < self.min_side:
            raise ValueError(f"image of {height} x {width} pixels is too small: at least {self.min_side} are needed")
        if self.height > 0 and (height != self.height or width != self.width):
            raise ValueError(f"image of {height} x {width} pixels: this model takes {self.height} x {self.width} alone")
        for axis, multiple in enumerate(self.multiples):
            if x.size(2 + axis) % multiple != 0:
                raise ValueError(f"axis {2 + axis} of an input must be a multiple of {multiple}, got shape {x.size()}")
        out: Tensor = self.graph(x)
        return out
