"""Reading checkpoints of strangers: tensors come out, nothing in the file ever runs."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from ..text import printable
from .configs import read_config
from .inspection import BROKEN, DAMAGED, damage_named, refuse_other_kinds
from .soundness import check_names, check_sound

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_TOP_KEYS = ("model", "state_dict", "model_state")  # where training code puts the state dict, in this order


class _Inert:
    """Stands in for argparse.Namespace: training code saves its options beside the weights. Holds them, does
    nothing.
    """


# A CfgNode is a dict with attributes; the one such class that torch's safe unpickler can fill is OrderedDict.
_STUBS = [(_Inert, "argparse.Namespace"), (OrderedDict, "yacs.config.CfgNode")]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one file and where they come from."""

    path: Path
    state: dict[str, Tensor]
    top_key: str  # under which the state dict stood, empty at the root
    sha256: str
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json beside it, if any
    nonfinite: Mapping[str, int] = field(default_factory=dict)  # values that are NaN or infinite, of tensors with any


def find_file(path: Path) -> Path:
    """The checkpoint meant by a path: the file itself, or the one in a folder.

    Raises:
        ValueError: no such path, an empty file, a folder without a checkpoint or with several.
    """
    if path.is_dir():
        preferred = path / "model.safetensors"
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        if preferred.is_file():
            return preferred
        if len(files) != 1:
            found = (
                f"holds {', '.join(p.name for p in files)}: name one of them"
                if files
                else f"holds no {'/'.join(SUFFIXES)} file"
            )
            raise ValueError(f"folder {path} {found}")
        return files[0]
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_checkpoint(path: str | Path, *, allow_nonfinite: bool = False) -> Checkpoint:
    """Read a .pth, .pt, .bin or .safetensors file, or a folder with one.

    PyTorch files are read with ``weights_only=True``; options saved beside the weights (argparse, yacs) come back
    inert.

    Raises:
        ValueError: the file cannot be read, would run code, holds no state dict, or tensors that are not sound.
    """
    file = find_file(Path(path))
    refuse_other_kinds(file)
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    with damage_named(file):
        state, key = _state_dict(content, file)
        nonfinite = check_sound(state, file, allow_nonfinite)
    config = file.parent / "config.json"
    return Checkpoint(file, state, key, sha256_of(file), read_config(config) if config.is_file() else {}, nonfinite)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, *BROKEN) as error:
        raise ValueError(f"{file} is no complete .safetensors file ({printable(error, 200)}); get it again") from error


def _read_pickle(file: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_STUBS), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # about pickles that are then refused, or read all the same
            return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, *BROKEN) as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            name = printable(wanted[1], 100)
            reason = f"asks for {name}, which could run code; only tensors, numbers and plain containers are read"
        else:
            reason = DAMAGED
        raise ValueError(f"{file} {reason}") from error


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _state_dict(content: Any, file: Path) -> tuple[dict[str, Tensor], str]:
    if _is_state_dict(content):
        check_names(content, file)
        return clean_state_dict(content), ""
    keys = list(content) if isinstance(content, dict) else []
    for key in _TOP_KEYS:
        if key in keys and _is_state_dict(content[key]):
            check_names(content[key], file)
            return clean_state_dict(content[key]), key
    found = (
        f"its keys are {', '.join(printable(short(key), 40) for key in keys[:6])}"
        if keys
        else f"it is a {type(content).__name__}"
    )
    raise ValueError(
        f"{file} holds no state dict: {found}; expected tensors at the top or under {', '.join(_TOP_KEYS)}"
    )
