"""The file that ``extract`` writes: made of the parts that each process left in a folder beside it.

Nothing grows in memory: each process appends its rows to files "RANK.KEY", and the first one strings the batches
together, in the form that the ending of the output names (``extracting_forms``).
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from ..training.image_form import to_remember
from ..version import __version__
from .extracting_forms import FORMS, Content, Piece, Tensors, form_of, names_beside
from .extracting_rows import ImageFiles
from .options.extract import ExtractOptions
from .output_files import check_ending, check_writable

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Part(NamedTuple):
    """What a process wrote."""

    batches: list[list[int]]  # positions of the rows of each
    shapes: dict[str, list[int]]  # of a row, by the key of the tensor; empty where no image could be read


def check_output(output: Path, force: bool) -> None:
    """Refuse a file before any work is done.

    Raises:
        ValueError: it cannot, or must not be written, is called like a file of another form, or its form needs what is
            not installed.
    """
    form = form_of(output)
    check_ending(output, f"-o {output}", tuple(FORMS), "features")
    if form.needs and importlib.util.find_spec(form.needs) is None:
        extra = f'pip install "hiermim-zoo[{form.extra}]"'
        raise ValueError(f"-o {output}: {form.extra} is written by {form.needs}: {extra}")
    for file in (output, names_beside(output)):
        if file and file.exists() and not file.is_dir() and not force:
            raise ValueError(f"-o {file} exists; --force replaces it")
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
    """Write the output, in the form that its ending names.

    Args:
        done: the files that the rows belong to.
        folder: on the disk of the output.

    Raises:
        ValueError: there is nothing to write, or too much to name.
    """
    if not done:
        raise ValueError(f"none of the {len(rows.files)} {rows.things} could be read")
    about = {
        "model": options.model,
        "weights": "pretrained" if options.pretrained else f"random, seed {options.seed or 0}",
        "images": json.dumps(to_remember(rows.form)),
        **rows.about(),
        "hiermim_zoo": __version__,
    }
    content = Content(tensors, options.dtype, done, about)
    form_of(options.output).write(content, folder / "merged")
    if beside := names_beside(options.output):
        (folder / "names").write_text(json.dumps({"files": done, **about}, indent=1), encoding="utf-8")
        os.replace(folder / "names", beside)
    os.replace(folder / "merged", options.output)
