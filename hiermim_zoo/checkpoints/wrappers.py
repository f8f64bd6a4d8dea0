"""What frameworks put around the names of tensors and beside the tensors themselves; none of it belongs to a layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .stubs import Inert, InertArray

# DistributedDataParallel, torch.compile, FullyShardedDataParallel, activation checkpointing: a model in a model.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What averages of weights keep among them, a tensor without axes: how many models went in.
_COUNTERS = frozenset({"n_averaged", "num_updates", "steps"})
_KINDS = {str: "a text", type(None): "None", InertArray: "an array of numpy", Inert: "an object of a library"}


def bare(name: str) -> str:
    """A name without its parts that are a wrapper's, wherever they stand; the last part is the tensor's own."""
    *modules, last = name.split(".")
    return ".".join([*(part for part in modules if part not in WRAPPERS), last])


def unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict under their bare names, without the bookkeeping among them.

    Raises:
        ValueError: a name that is no text, or two that differ by wrappers alone.
    """
    found: dict[str, Tensor] = {}
    wrapped: dict[str, str] = {}  # bare name -> as it stood
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"the name of a tensor is {name!r}, which is no text")
        if not _is_weight(name, value):
            continue
        short = bare(name)
        if short in found:
            raise ValueError(f"tensors {wrapped[short]!r} and {name!r} are both {short!r} without their wrappers")
        found[short], wrapped[short] = value, name
    return found


def bare_names(state: Mapping[str, Any]) -> tuple[str, ...]:
    """The bare names of its tensors, each once."""
    return tuple(dict.fromkeys(bare(name) for name, value in state.items() if _is_weight(name, value)))


def bookkeeping(state: Mapping[str, Any]) -> dict[str, str]:
    """What :func:`unwrapped` leaves out: bare name -> why."""
    return {bare(name): _kind(value) for name, value in state.items() if not _is_weight(name, value)}


def _is_weight(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and not (value.ndim == 0 and name.rpartition(".")[2] in _COUNTERS)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a counter of averages, no weight"
    if isinstance(value, (bool, int, float, complex)):
        return f"a number ({type(value).__name__}), no tensor"
    return f"{_KINDS.get(type(value), f'an object ({type(value).__name__})')}, no tensor"
