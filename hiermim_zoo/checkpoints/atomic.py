"""How files are written: beside their name, then renamed, so that a reader finds the old content or the new, never a
part.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None) -> None:
    """Write a .safetensors file: of the same tensors and metadata the same bytes. None: without metadata.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    try:
        save_file(dict(state), path, metadata=None if metadata is None else dict(metadata))
        if metadata and len(metadata) > 1:
            _sort_metadata(path)
    except SafetensorError as error:
        said = OSError(f"{path.name} cannot be written: {error}")
        number = re.search(r"os error (\d+)", str(error))
        said.errno = int(number[1]) if number else None
        raise said from error


def _sort_metadata(path: Path) -> None:
    """Put the metadata, which safetensors writes in an order that differs from process to process, into that of their
    names. The header keeps its length.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:  # other escapes than safetensors has: the file is sound as it is
            return
        file.seek(8)
        file.write(text.ljust(length))


def sweep(path: Path) -> None:
    """Remove what processes that were killed left of :func:`replacing`. All who write ``path`` hold a lock, the caller
    too.
    """
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)


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
