"""The content of one file of a stranger: tensors and what stands beside them; nothing in the file ever runs."""

from __future__ import annotations

import re
import shlex
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..text import printable
from .inspection import BROKEN, DAMAGED, refuse_other_kinds
from .stubs import STUBS

_ONE_AT_A_TIME = threading.Lock()  # torch keeps one list of names for all threads
_SHOWN = 8  # names that a message lists


def read_content(file: Path) -> Any:
    """Read a file of safetensors or of torch; where the suffix does not tell which, the content does.

    Files of torch are read with ``weights_only=True``; bookkeeping beside the weights comes back as the stubs of
    ``stubs.py``.

    Raises:
        ValueError: the file cannot be read, or would run code.
    """
    refuse_other_kinds(file)
    return _read_safetensors(file) if _is_safetensors(file) else _read_pickle(file)


def read_whole(file: Path) -> tuple[Any, Mapping[str, str] | None, bool]:
    """Read a file so that it can be written again as it is: nothing stands in for anything.

    Returns:
        Its content, the metadata of a file of safetensors, and whether it is one.

    Raises:
        ValueError: the file cannot be read, or holds what cannot be read safely.
    """
    refuse_other_kinds(file)
    if not _is_safetensors(file):
        return _read_pickle(file, stubs=()), None, False
    tensors = _read_safetensors(file)
    with safe_open(file, "pt") as opened:
        return tensors, opened.metadata(), True


def remedy(file: Path) -> str:
    """The command that saves the tensors of a file alone, under their keys, for who trusts the file."""
    code = (
        "import torch; f = lambda v: {k: f(x) for k, x in v.items()} if isinstance(v, dict) else f(v.state_dict()) if "
        'isinstance(v, torch.nn.Module) else torch.as_tensor(v) if hasattr(v, "__array__") and v.ndim else None; '
        f'torch.save(f(torch.load({str(file)!r}, map_location="cpu", weights_only=False)), {_saved_again(file)!r})'
    )
    return (
        f"if you trust whoever made the file, save its weights alone and read those (careful: this runs the code in "
        f"the file): python -c {shlex.quote(code)}"
    )


def _saved_again(file: Path) -> str:
    """The name for it, in the folder where the command is typed."""
    return f"{file.stem}-weights.pth"


def _is_safetensors(file: Path) -> bool:
    """By suffix; or it begins as such files do: the length of a header in JSON, then the header."""
    if file.suffix == ".safetensors":
        return True
    with file.open("rb") as stream:
        begins = stream.read(9)
    return begins[8:] == b"{" and int.from_bytes(begins[:8], "little") <= file.stat().st_size - 8


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, *BROKEN) as error:
        raise ValueError(f"{file} is no complete .safetensors file ({printable(error, 200)}); get it again") from error


def _read_pickle(file: Path, stubs: Sequence[Any] = STUBS) -> Any:
    with _ONE_AT_A_TIME, torch.serialization.safe_globals(list(stubs)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that are then refused, or read all the same
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can end in any
            raise ValueError(f"{file} {_reason(file, error)}") from error


def _reason(file: Path, error: Exception) -> str:
    """Why torch does not read a file, and what helps."""
    if asked := _asked_for(file, str(error)):
        return (
            f"asks for {asked}, which could run code; only tensors, numbers, plain containers and well-known "
            f"bookkeeping are read; {remedy(file)}"
        )
    if "TorchScript" in str(error):
        return "is a program (TorchScript), of which the weights can be saved alone: python -c " + shlex.quote(
            f'import torch; torch.save(torch.jit.load({str(file)!r}, map_location="cpu").state_dict(), '
            f"{_saved_again(file)!r})"
        )
    if "Unsupported operand 149" in str(error) and zipfile.is_zipfile(file):
        return f"is pickled by protocol 4 or later, which torch does not read safely; {remedy(file)}"
    if "must be imported" in str(error):
        return (
            "holds tensors in parts, as several processes trained them; save them whole: full_state_dict of "
            "torch.distributed.checkpoint.state_dict"
        )
    if tarfile.is_tarfile(file):
        return "is a tar archive, no PyTorch checkpoint; unpack it"
    return DAMAGED


def _asked_for(file: Path, said: str) -> str:
    """The names that stand in the way, all of them where torch can tell; empty where it is something else."""
    if "persistent_load of storage" in said:
        return "a class with its source"
    wanted = re.search(r"GLOBAL (\S+)", said)
    names = {wanted[1]} if wanted else set()
    if names:
        with suppress(Exception):  # a file of an old version of torch, or damaged beside
            names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(str(file)))
    names -= {name.removeprefix("builtins.") for name in names if name.startswith("builtins.")}  # said in two ways
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([printable(name, 100) for name in sorted(names)[:_SHOWN]] + more)
