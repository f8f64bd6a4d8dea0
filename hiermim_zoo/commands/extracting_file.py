"""The file that ``extract`` writes: made of the parts that each process left in a folder beside it.

Nothing grows in memory: each process appends its rows to files "RANK.KEY", and the first one strings the batches
together.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..version import __version__
from .extracting_rows import ImageFiles
from .options.extract import ExtractOptions

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # in safetensors' words


class Part(NamedTuple):
    """What a process wrote."""

    batches: list[list[int]]  # positions of the rows of each
    shapes: dict[str, list[int]]  # of a row, by the key of the tensor; empty where no image could be read


def reserve(output: Path, force: bool) -> str:
    """Make a folder beside the output, which proves that the output can be written.

    Raises:
        ValueError: it cannot, or must not.
    """
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file")
    if output.exists() and not force:
        raise ValueError(f"{output} exists; use --force to replace it")
    try:
        return tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".parts", dir=output.absolute().parent)
    except OSError as error:
        raise ValueError(f"{output} cannot be written: {error.strerror}") from error


def merge(parts: list[Part], rows: ImageFiles, options: ExtractOptions, folder: Path) -> str:
    """Write the output from the rows of all processes; returns what there is to say about it.

    The file (length, JSON header, bytes of the tensors) is written by hand: safetensors' own writer wants all of it in
    memory.

    Args:
        parts: of the processes, by rank.
        folder: where their rows are.

    Raises:
        ValueError: no image could be read.
    """
    world = len(parts)
    batches = [parts[b % world].batches[b // world] for b in range(sum(len(part.batches) for part in parts))]
    done = [rows.files[i] for batch in batches for i in batch]
    if not done:
        raise ValueError(f"none of the {len(rows.files)} {rows.things} could be read")
    shapes = {key: shape for part in parts for key, shape in part.shapes.items()}
    sizes = {key: math.prod(shape) * DTYPES[options.dtype].itemsize for key, shape in shapes.items()}  # bytes of a row
    with open(folder / "merged", "wb") as out:
        out.write(header(done, shapes, sizes, rows, options))
        for key, size in sizes.items():
            with ExitStack() as stack:  # a process all of whose images were skipped has no file
                sources = [
                    part.shapes and stack.enter_context(open(folder / f"{rank}.{key}", "rb"))
                    for rank, part in enumerate(parts)
                ]
                for b, batch in enumerate(batches):
                    if batch:
                        source: Any = sources[b % world]
                        out.write(source.read(len(batch) * size))
    os.replace(folder / "merged", options.output)
    tensors = ", ".join(f"{key} {[len(done), *shape]}" for key, shape in shapes.items())
    return f"wrote {options.output}: {tensors} in {options.dtype}, from {len(done)} of {len(rows.files)} {rows.things}"


def header(
    done: list[str], shapes: dict[str, list[int]], sizes: dict[str, int], rows: ImageFiles, options: ExtractOptions
) -> bytes:
    """The first bytes of a safetensors file with one row for each of the files ``done``."""
    about = {
        "files": json.dumps(done),
        "model": options.model,
        "weights": "pretrained" if options.pretrained else f"random, seed {options.seed or 0}",
        **rows.about(),
        "hiermim_zoo": __version__,
    }
    content: dict[str, Any] = {"__metadata__": about}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + len(done) * sizes[key]
        content[key] = {"dtype": STORED_AS[options.dtype], "shape": [len(done), *shape], "data_offsets": [start, end]}
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text
