"""A file that a command writes at its end is refused at its beginning if it cannot be written."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

# Endings that promise something; what a command writes is called so only if it is that.
ENDINGS = (
    ".arrow", ".bmp", ".csv", ".feather", ".gif", ".h5", ".hdf5", ".htm", ".html", ".jpeg", ".jpg", ".json", ".jsonl",
    ".mat", ".md", ".npy", ".npz", ".parquet", ".pdf", ".pickle", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".svg",
    ".tar", ".tif", ".tiff", ".toml", ".tsv", ".txt", ".webp", ".xlsx", ".yaml", ".zarr", ".zip",
)  # fmt: skip


def check_writable(file: Path, called: str) -> None:
    """Refuse a file before any work is done.

    Args:
        called: what messages call it.

    Raises:
        ValueError: it cannot be written.
    """
    folder = file.absolute().parent
    if str(file) == "-":
        why = "- is the name of no file; what is printed is on stdout anyway"
    elif file.is_dir():
        why = "a folder"
    elif not folder.is_dir():
        why = "no such folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        why = "no permission"
    else:
        return
    raise ValueError(f"{called} cannot be written: {why}")


def check_not_read(file: Path, called: str, inputs: Iterable[str | Path]) -> None:
    """Refuse a file that is among those that are to be read.

    Args:
        called: what messages call it.
        inputs: files, folders of images, and patterns.

    Raises:
        ValueError: it is.
    """
    if not file.exists():
        return
    drawn = file.suffix.lower() in Image.registered_extensions()
    for name in inputs:
        for path in map(Path, [name] if os.path.exists(name) else glob.iglob(str(name), recursive=True)):
            inside = drawn and path.is_dir() and file.resolve().is_relative_to(path.resolve())
            if inside or path.samefile(file):
                raise ValueError(f"{called} is one of the files to read ({name}): name another that is not among them")


def check_ending(file: Path, called: str, endings: Sequence[str], what: str) -> None:
    """Refuse a name whose ending promises another form than what is written.

    Args:
        called: what messages call it.
        endings: that are true, the usual one first.
        what: is written, in words.

    Raises:
        ValueError: it does.
    """
    if file.suffix.lower() in ENDINGS and file.suffix.lower() not in endings:
        *others, last = endings
        forms = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{called}: {what} are written as {forms}; {file.stem}{endings[0]} would work")


def image_kind(output: Path, more: str = "") -> str:
    """What PIL calls the kind of image that a name's ending stands for.

    Args:
        more: what else could be written, for the message.

    Raises:
        ValueError: it stands for none, or for one that PIL only reads.
    """
    kind = Image.registered_extensions().get(output.suffix.lower())  # which also loads what SAVE lists
    if kind not in Image.SAVE:
        raise ValueError(f"-o {output}: name an image file that can be written, like {output.stem or 'out'}.png{more}")
    return kind
