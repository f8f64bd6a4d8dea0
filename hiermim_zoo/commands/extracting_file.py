"""The file that ``extract`` writes: made of the parts that each process left in a folder beside it.

Nothing grows in memory: each process appends its rows to files "RANK.KEY", and the first one strings the batches
together.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..text import counted
from ..training.image_form import to_remember
from ..version import __version__
from .extracting_rows import ImageFiles
from .options.extract import ExtractOptions
from .output_files import check_writable

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BLOCK = 2**24  # bytes that are copied at once
# Endings that promise something else than a file of safetensors.
OTHER_FORMS = (
    ".arrow", ".csv", ".feather", ".h5", ".hdf5", ".json", ".jsonl", ".mat", ".npy", ".npz", ".parquet", ".pickle",
    ".pkl", ".pt", ".pth", ".tsv", ".txt", ".zarr",
)  # fmt: skip
MAX_HEADER = 100_000_000  # bytes; safetensors reads no longer one
STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # in safetensors' words


class Part(NamedTuple):
    """What a process wrote."""

    batches: list[list[int]]  # positions of the rows of each
    shapes: dict[str, list[int]]  # of a row, by the key of the tensor; empty where no image could be read


def check_output(output: Path, force: bool) -> None:
    """Refuse a file before any work is done.

    Raises:
        ValueError: it cannot, or must not be written, or is called like a file of another form.
    """
    if output.suffix.lower() in OTHER_FORMS:
        raise ValueError(f"-o {output} would be a file of safetensors: call it {output.stem}.safetensors")
    if output.exists() and not output.is_dir() and not force:
        raise ValueError(f"-o {output} exists; --force replaces it")
    check_writable(output, f"-o {output}")


def reserve(output: Path) -> str:
    """Make a folder beside the output, which proves that the output can be written.

    Raises:
        ValueError: it cannot.
    """
    try:
        return tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".parts", dir=output.absolute().parent)
    except OSError as error:
        raise ValueError(f"-o {output} cannot be written: {error.strerror}") from error


class Piece(NamedTuple):
    """Bytes of a file."""

    file: Path
    start: int
    size: int


class Tensors(NamedTuple):
    """A tensor of the output, and where its bytes are."""

    name: str
    shape: list[int]
    pieces: list[Piece]


def merge(parts: list[Part], rows: ImageFiles, options: ExtractOptions, folder: Path) -> str:
    """Write the output from the rows of all processes; returns what there is to say about it.

    Args:
        parts: of the processes, by rank.
        folder: where their rows are.

    Raises:
        ValueError: no image could be read.
    """
    world = len(parts)
    batches = [parts[b % world].batches[b // world] for b in range(sum(len(part.batches) for part in parts))]
    done = [rows.files[i] for batch in batches for i in batch]
    tensors = []
    for key, shape in {key: shape for part in parts for key, shape in part.shapes.items()}.items():
        size = math.prod(shape) * DTYPES[options.dtype].itemsize  # bytes of a row
        pieces, ends = [], [0] * world
        for b, batch in enumerate(batches):
            if batch:  # a process all of whose images were skipped has no file
                pieces.append(Piece(folder / f"{b % world}.{key}", ends[b % world], len(batch) * size))
                ends[b % world] += len(batch) * size
        tensors.append(Tensors(key, [len(done), *shape], pieces))
    write_file(tensors, done, rows, options, folder)
    said = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in tensors)
    return f"wrote {options.output}: {said} in {options.dtype}, from {len(done)} of {len(rows.files)} {rows.things}"


def write_file(
    tensors: list[Tensors], done: list[str], rows: ImageFiles, options: ExtractOptions, folder: Path
) -> None:
    """Write the output.

    The file (length, JSON header, bytes of the tensors) is written by hand: safetensors' own writer wants all of it in
    memory.

    Args:
        done: the files that the rows belong to.
        folder: on the disk of the output.

    Raises:
        ValueError: there is nothing to write, or too much to name.
    """
    if not done:
        raise ValueError(f"none of the {len(rows.files)} {rows.things} could be read")
    with open(folder / "merged", "wb") as out:
        out.write(header(tensors, done, rows, options))
        for tensor in tensors:
            for piece in tensor.pieces:
                with open(piece.file, "rb") as source:
                    source.seek(piece.start)
                    for left in range(piece.size, 0, -BLOCK):
                        out.write(source.read(min(left, BLOCK)))
    os.replace(folder / "merged", options.output)


def header(tensors: list[Tensors], done: list[str], rows: ImageFiles, options: ExtractOptions) -> bytes:
    """The first bytes of a safetensors file; its metadata name the files ``done``.

    Raises:
        ValueError: it is too long.
    """
    about = {
        "files": json.dumps(done),
        "model": options.model,
        "weights": "pretrained" if options.pretrained else f"random, seed {options.seed or 0}",
        "images": json.dumps(to_remember(rows.form)),
        **rows.about(),
        "hiermim_zoo": __version__,
    }
    content: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, shape, pieces in tensors:
        start, end = end, end + sum(piece.size for piece in pieces)
        content[name] = {"dtype": STORED_AS[options.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    if len(text) > MAX_HEADER:
        raise ValueError(
            f"the names of {counted(len(done), 'images')} and {counted(len(tensors), 'tensors')} do not fit the "
            "header of one file"
        )
    return len(text).to_bytes(8, "little") + text
