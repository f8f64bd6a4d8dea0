"""Checkpoints in several files: an index in JSON says which tensor is in which of them.

model.safetensors.index.json      {"weight_map": {"cls_token": "model-00001-of-00002.safetensors", ...}}
model-00001-of-00002.safetensors
model-00002-of-00002.safetensors
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .configs import read_json
from .content import read_content
from .sets import plain

INDEX = ".index.json"  # ends the name of an index
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})(?P<suffix>\.\w+)")


def is_index(file: Path) -> bool:
    return file.name.endswith(INDEX)


def parts_of(index: Path) -> dict[str, list[str]]:
    """File -> names of its tensors, as an index says.

    Raises:
        ValueError: it is no index, or names a file that is not in its own folder.
    """
    found = read_json(index, "index of a checkpoint").get("weight_map")
    if not found or not isinstance(found, dict) or not all(isinstance(part, str) for part in found.values()):
        raise ValueError(f"{index} is no index of a checkpoint: it has no weight_map from tensors to files")
    parts: dict[str, list[str]] = {}
    for tensor, part in found.items():
        parts.setdefault(part, []).append(tensor)
    for part in parts:
        if not re.fullmatch(r"[\w-][\w.+-]*", part) or is_index(Path(part)):
            raise ValueError(f"{index} names {part!r}, which is no file beside it")
    return parts


def read_parts(index: Path) -> dict[str, Any]:
    """All tensors of a checkpoint in several files.

    Raises:
        ValueError: index and files do not say the same, a file is missing, is a link that leads out of the folder, or
            cannot be read.
    """
    state: dict[str, Any] = {}
    for part, tensors in parts_of(index).items():
        content = read_content(_inside(index, part))
        if not isinstance(content, dict):
            raise ValueError(f"{index.with_name(part)} holds no tensors by name")
        for name in tensors:
            if name not in content:
                raise ValueError(f"tensor {name!r} is not in {part}, where {index} says that it is")
        for name in content:
            if name not in tensors:
                raise ValueError(
                    f"tensor {name!r} of {part} is missing from {index}, or it says that another file has it"
                )
        state |= plain(content)
    return state


def check_whole(file: Path) -> None:
    """Refuse one of several files.

    Raises:
        ValueError: the name says so; says what to name instead.
    """
    match = _PART.fullmatch(file.name)
    if match and int(match["of"]) > 1:
        index = file.with_name(f"{match['stem']}{match['suffix']}{INDEX}")
        there = "name that" if index.is_file() else "which is missing beside it: get it, too"
        raise ValueError(
            f"{file} is one of {int(match['of'])} files of a checkpoint; {index.name} has them all: {there}"
        )


def _inside(index: Path, part: str) -> Path:
    """The path of a part. What a link leads to must be in the same folder, or in the cache of the Hub beside it."""
    file = index.with_name(part)
    if not file.is_file():
        raise ValueError(f"{file}, which {index.name} names, does not exist")
    folder, real = index.parent.resolve(), file.resolve()
    blobs = folder.parent.parent / "blobs"  # models--ORG--NAME/snapshots/REVISION links to models--ORG--NAME/blobs
    if real.parent != folder and not (folder.parent.name == "snapshots" and real.parent == blobs):
        raise ValueError(f"{file} is a link to {real}, which is in another folder")
    return file
