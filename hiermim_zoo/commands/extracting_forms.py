"""The forms of the file that ``extract`` writes: the same numbers, names of images and facts in each.

All are written block by block from the parts on the disk, so none of them has to fit into memory: their own writers
(safetensors', numpy's) want all of a tensor at once. Of parquet a group of rows is in memory, which is one image at the
least, and with it all of the map that tiles are put together to.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..text import counted

BLOCK = 2**24  # bytes that are copied at once
MAX_HEADER = 100_000_000  # bytes; safetensors reads no longer one
STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # in safetensors' words
OLDEST = (1980, 1, 1, 0, 0, 0)  # the time of all in an archive, so that the same content is the same bytes


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
    row: int | None = None  # of the one image that it is of; None: its rows are the images


class Content(NamedTuple):
    """What is written."""

    tensors: list[Tensors]
    dtype: str
    files: list[str]  # that the rows belong to
    about: dict[str, str]  # how the features came about


def blocks(pieces: Sequence[Piece], size: int = BLOCK) -> Iterator[bytes]:
    """The bytes of all pieces, ``size`` at a time; the last ones may be fewer."""
    held = bytearray()
    for piece in pieces:
        with open(piece.file, "rb") as source:
            source.seek(piece.start)
            left = piece.size
            while left:
                held += source.read(min(left, size - len(held)))
                left = piece.start + piece.size - source.tell()
                if len(held) == size:
                    yield bytes(held)
                    held.clear()
    if held:
        yield bytes(held)


# ---- safetensors


def write_safetensors(content: Content, file: Path) -> None:
    """Length, JSON header, bytes of the tensors.

    Raises:
        ValueError: the header is too long.
    """
    with open(file, "wb") as out:
        out.write(header(content))
        for tensor in content.tensors:
            out.writelines(blocks(tensor.pieces))


def header(content: Content) -> bytes:
    """The first bytes of a safetensors file; its metadata name the files.

    Raises:
        ValueError: it is too long.
    """
    said: dict[str, Any] = {"__metadata__": {"files": json.dumps(content.files), **content.about}}
    end = 0
    for tensor in content.tensors:
        start, end = end, end + sum(piece.size for piece in tensor.pieces)
        said[tensor.name] = {
            "dtype": STORED_AS[content.dtype],
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(said).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    if len(text) > MAX_HEADER:
        raise ValueError(
            f"the names of {counted(len(content.files), 'images')} and {counted(len(content.tensors), 'tensors')} do "
            "not fit the header of one file"
        )
    return len(text).to_bytes(8, "little") + text


# ---- numpy's


def write_npy(content: Content, file: Path) -> None:
    """The only tensor; the names stand in a file beside, see :func:`names_beside`."""
    [tensor] = content.tensors
    with open(file, "wb") as out:
        write_array(out, tensor, content.dtype)


def write_npz(content: Content, file: Path) -> None:
    """The tensors by their names, "files" [images] of text, and "about", text of JSON; nothing is pickled."""
    with zipfile.ZipFile(file, "w") as archive:

        def member(name: str) -> Any:
            return archive.open(zipfile.ZipInfo(f"{name}.npy", OLDEST), "w", force_zip64=True)

        for tensor in content.tensors:
            with member(tensor.name) as out:
                write_array(out, tensor, content.dtype)
        for name, text in {"files": content.files, "about": json.dumps(content.about)}.items():
            with member(name) as out:
                np.lib.format.write_array(out, np.array(text), allow_pickle=False)


def write_array(out: Any, tensor: Tensors, dtype: str) -> None:
    kind = np.lib.format.dtype_to_descr(np.dtype(dtype))
    said = {"descr": kind, "fortran_order": False, "shape": tuple(tensor.shape)}
    np.lib.format.write_array_header_1_0(out, said)
    for block in blocks(tensor.pieces):
        out.write(block)


# ---- parquet


def write_parquet(content: Content, file: Path) -> None:
    """A row for each image: "file", and a list of numbers for each tensor, flattened.

    Lists of one length have their shape in the metadata of the column; where images differ in size, as with tiles, a
    column of its own ("map0_shape") has it. The metadata of the table say how the features came about.
    """
    import pyarrow as pa
    from pyarrow import parquet

    value, item = pa.from_numpy_dtype(np.dtype(content.dtype)), np.dtype(content.dtype).itemsize
    whole = [tensor for tensor in content.tensors if tensor.row is None]
    own: dict[str, list[Tensors]] = {}  # by their column, in the order of the rows
    for tensor in content.tensors:
        if tensor.row is not None:
            own.setdefault(tensor.name.removesuffix(f".{tensor.row}"), []).append(tensor)
    fields = [pa.field("file", pa.string())]
    for tensor in whole:
        kind = pa.list_(value, math.prod(tensor.shape[1:]))
        fields.append(pa.field(tensor.name, kind, metadata={"shape": json.dumps(tensor.shape[1:])}))
    for key in own:
        fields += [pa.field(key, pa.large_list(value)), pa.field(f"{key}_shape", pa.list_(pa.int64()))]
    schema = pa.schema(fields, metadata=content.about)

    widths = [math.prod(tensor.shape[1:]) for tensor in whole]
    step = 1 if own else max(1, BLOCK // (item * max(widths, default=1)))  # rows of a group
    streams = [blocks(tensor.pieces, step * item * width) for tensor, width in zip(whole, widths, strict=True)]
    with parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(content.files), step):
            names = content.files[start : start + step]
            # bytes of a name that are no text
            columns: list[Any] = [[name.encode(errors="backslashreplace").decode() for name in names]]
            for stream, width in zip(streams, widths, strict=True):
                numbers = pa.array(np.frombuffer(next(stream), content.dtype))
                columns.append(pa.FixedSizeListArray.from_arrays(numbers, width))
            for tensors in own.values():
                numbers = np.frombuffer(b"".join(blocks(tensors[start].pieces)), content.dtype)
                ends = pa.array([0, len(numbers)], pa.int64())
                columns += [pa.LargeListArray.from_arrays(ends, pa.array(numbers)), [tensors[start].shape]]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=step)


# ---- which


class FileForm(NamedTuple):
    """A form of file.

    Args:
        write: (content, file) -> None.
        needs: a module, of the extra ``extra``.
        single: holds one array, and nothing beside it.
        brain: whether it has numbers in bfloat16.
    """

    write: Callable[[Content, Path], None]
    needs: str = ""
    extra: str = ""
    single: bool = False
    brain: bool = False


FORMS = {
    ".safetensors": FileForm(write_safetensors, brain=True),
    ".npz": FileForm(write_npz),
    ".npy": FileForm(write_npy, single=True),
    ".parquet": FileForm(write_parquet, "pyarrow", "parquet"),
}


def form_of(output: Path) -> FileForm:
    """That the ending names; safetensors where it names none."""
    return FORMS.get(output.suffix.lower(), FORMS[".safetensors"])


def names_beside(output: Path) -> Path | None:
    """The file that has the names and facts of a file which has no room for them."""
    return output.with_name(f"{output.name}.json") if form_of(output).single else None
