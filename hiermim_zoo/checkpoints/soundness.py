"""What must hold of the tensors of a stranger's file before anything is computed with them."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor, nn

from ..text import counted

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
LONGEST = 255  # characters of a name


def check_names(names: Any, where: object) -> None:
    """Refuse names of tensors that are no names.

    Args:
        names: keys of a state dict.
        where: the file, for messages.

    Raises:
        ValueError: one is no string, empty, very long, or would not be printed as it is.
    """
    for name in names:
        if not isinstance(name, str):
            raise ValueError(
                f"{where} holds a tensor whose name is {short(name)} ({type(name).__name__}); names are strings"
            )
        if not name:
            raise ValueError(f"{where} holds a tensor whose name is empty")
        if len(name) > LONGEST:
            raise ValueError(f"{where} holds a tensor whose name has {len(name)} characters; names have at most 255")
        if not name.isprintable():
            raise ValueError(f"{where} holds a tensor called {short(name)}; names have printable characters alone")


def check_sound(state: Mapping[str, Tensor], where: object, nonfinite: bool = False) -> dict[str, int]:
    """Refuse tensors that are no plain tables of numbers.

    Args:
        state: of a file; nothing is changed.
        where: the file, for messages.
        nonfinite: values that are NaN or infinite are counted, not refused.

    Returns:
        How many values are not finite, of the tensors that have any.

    Raises:
        ValueError: naming the first tensor that is not sound.
    """
    check_names(state, where)
    found = {}
    for name, tensor in state.items():
        if complaint := _complaint(tensor):
            raise ValueError(f"{where}: tensor {name!r} {complaint}")
        if count := _not_finite(tensor):
            found[name] = count
    if found and not nonfinite:
        name, count = next(iter(found.items()))
        others = f" (and those of {len(found) - 1} other tensors)" if len(found) > 1 else ""
        are = "is" if count == 1 else "are"
        raise ValueError(
            f"{where}: tensor {name!r} {list(state[name].shape)}: {counted(count, 'values')} {are} NaN or "
            f"infinite{others}; "
            "use --allow-nonfinite to take them as they are"
        )
    return found


def _complaint(tensor: Any) -> str:
    """Why a tensor is no plain table of numbers; empty if it is one."""
    if not isinstance(tensor, Tensor):
        return f"is no tensor but a {type(tensor).__name__}"
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return f"is a {type(tensor).__name__}, not a plain tensor"
    if tensor.is_nested:
        return "is nested: it has no shape"
    if tensor.layout != torch.strided:
        return f"is sparse ({tensor.layout}); save it with .to_dense()"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}); save it with .dequantize()"
    if tensor.device.type != "cpu":
        return f"has no values (it is on the device {tensor.device.type!r})"
    if tensor.dtype not in (*FLOATS, *INTEGERS):
        return f"is {_named(tensor.dtype)}; weights are {', '.join(map(_named, FLOATS))}"
    if tensor.is_neg() or tensor.is_conj():
        return "is a view whose sign is still to be turned; save it with .clone()"
    return _complaint_of_shape(tensor)


def _complaint_of_shape(tensor: Tensor) -> str:
    if 0 in tensor.shape:
        return f"is {list(tensor.shape)}: an axis without values"
    asked, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if asked > held:
        return f"{_cut(tensor.shape)} asks for {asked} bytes, the file holds {held} of it"
    if _overlaps(tensor):
        return f"{_cut(tensor.shape)} with strides {_cut(tensor.stride())} uses values more than once"
    return ""


def _overlaps(tensor: Tensor) -> bool:
    """Whether an axis steps over less than the axes inside it span."""
    span = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < span:
            return True
        span += (size - 1) * stride
    return False


def _cut(sizes: Any) -> str:
    return f"[{', '.join(map(str, sizes[:6]))}{', ...' if len(sizes) > 6 else ''}]"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _not_finite(tensor: Tensor) -> int:
    """Values that are NaN or infinite. One pass where there are none: a sum is finite only if all its parts are."""
    if not tensor.is_floating_point():
        return 0
    with torch.no_grad():
        wide = torch.promote_types(tensor.dtype, torch.float32)
        if torch.isfinite(tensor.sum(dtype=wide)):
            return 0
        return int((~torch.isfinite(tensor)).sum())


def in_type(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another type of floats.

    Raises:
        ValueError: a finite value becomes infinite; names the tensor and the value.
    """
    cast = tensor.to(dtype)
    limit = torch.finfo(dtype).max
    if tensor.is_floating_point() and torch.finfo(tensor.dtype).max > limit:
        lost = cast.isinf() & tensor.isfinite()
        if lost.any():
            largest = tensor[lost].abs().max().item()
            wider = "" if dtype == torch.float32 else "; choose a wider --dtype"
            raise ValueError(
                f"tensor {name!r} holds {largest:.4g}, which is more than {_named(dtype)} can hold ({limit:.4g}){wider}"
            )
    return cast


def check_kinds(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, model: str) -> None:
    """Refuse integers in place of floats (or the other way round), and tensors of another number of axes.

    Args:
        state: to be loaded, in the model's names; names that it does not have are not looked at.
        own: the model's state dict, perhaps without values.
        model: its name, for messages.

    Raises:
        ValueError: naming the tensor.
    """
    for name, tensor in state.items():
        if name not in own:
            continue
        if tensor.is_floating_point() != own[name].is_floating_point():
            kinds = _named(tensor.dtype), _named(own[name].dtype)
            raise ValueError(f"tensor {name!r} is {kinds[0]} in the checkpoint, but {model} has {kinds[1]}")
        axes = tensor.ndim, own[name].ndim
        if axes[0] != axes[1] and min(axes) < 4:  # convolutions of images and of clips: arguments decide
            raise ValueError(
                f"tensor {name!r} is {_cut(tensor.shape)} in the checkpoint, but {model} has {_cut(own[name].shape)}"
            )
