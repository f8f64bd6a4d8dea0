"""Models that have shapes and no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def without_memory() -> Iterator[None]:
    """Models that are built and run in here have shapes, but no values (the meta device), and cost little time.

    Drawing random numbers that nobody keeps would take most of the time, so nothing is drawn.
    """
    with torch.device("meta"), torch.no_grad(), _NothingIsDrawn():
        yield


FILLING = {
    getattr(Tensor, name) for name in ("add_", "clamp_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_")
}


class _NothingIsDrawn(TorchFunctionMode):
    """Leaves tensors without values as they are where an initialisation would fill them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FILLING or getattr(func, "__module__", None) == nn.init.__name__:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
