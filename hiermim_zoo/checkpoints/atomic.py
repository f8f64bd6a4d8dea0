"""How files are written: beside their name, then renamed, so that a reader finds the old content or the new, never a
part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    try:
        save_file(dict(state), path, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to: it becomes ``path`` when the block ends; of a block that fails nothing is
    left.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
