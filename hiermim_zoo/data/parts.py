"""Images of which parts are read, so that all of one need not be decoded: random crops of large files, and tiles.

A part has the numbers that it has in the whole image, to the last bit. Letters: C bands, H and W pixels.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .decoding import Form, Image_, in_form, part_of, set_bound, size_of
from .formats import NPY, Bands, array_header, bands_first, check_pixels, levels_of
from .rasters import VRT_BYTES, RasterParts, is_raster
from .tiffs import MAGIC, TiffParts

# Bytes of a file below which it is not worth while. Of smaller ones all is decoded about as soon as the tags are read.
LARGE = 2**20
_BEGINNING = 2**16  # bytes that tell what a file is


class Held(Protocol):
    """What a file holds, part by part."""

    height: int
    width: int
    numbers: int  # of a pixel

    def held(self, left: int, top: int, right: int, bottom: int) -> Image.Image | Bands: ...

    def close(self) -> None: ...


class ArrayParts:
    """An .npy of which parts are read."""

    def __init__(self, path: str, axes: str) -> None:
        with open(path, "rb") as file:
            header = array_header(file, axes, os.path.getsize(path))
        order: Any = "F" if header.fortran else "C"
        array = np.memmap(path, header.dtype, "r", header.start, header.shape, order)
        self.values = array if header.first else bands_first(array)
        self.numbers, self.height, self.width = self.values.shape

    def held(self, left: int, top: int, right: int, bottom: int) -> Bands:
        values = np.array(self.values[:, top:bottom, left:right])
        return Bands(values, levels_of(values.dtype))

    def close(self) -> None:
        del self.values  # and with it the map of the file


class Parts:
    """An image of which parts are read, in the form that a model takes. To be closed.

    Args:
        held: what the file holds.
        form: of its parts.
    """

    has_values = False  # whether some pixel of the parts that were read is none without a value

    def __init__(self, held: Held, form: Form) -> None:
        self.of, self.form, self.size = held, form, (held.width, held.height)

    def part(self, left: int, top: int, right: int, bottom: int) -> Image_:
        """What lies between these pixels.

        Raises:
            Exception: of any kind; it cannot be decoded, is not of the form, or has more pixels than its bound allows.
        """
        check_pixels(bottom - top, right - left, (bottom - top) * (right - left) * self.of.numbers)
        held = self.of.held(left, top, right, bottom)
        empty = held.empty() if isinstance(held, Bands) else None
        self.has_values |= empty is None or not empty.all()
        return in_form(held, self.form, part=True)

    def whole(self) -> Image_:
        """All of it; see :meth:`part`."""
        return in_form(self.of.held(0, 0, *self.size), self.form)

    def close(self) -> None:
        self.of.close()

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class WholeParts(Parts):
    """An image that is decoded already, or will be at once where its format has no parts."""

    has_values = True

    def __init__(self, image: Image_) -> None:
        self.image, self.size = image, size_of(image)

    def part(self, left: int, top: int, right: int, bottom: int) -> Image_:
        found: Image_ = part_of(self.image, left, top, right, bottom)
        return found

    def whole(self) -> Image_:
        return self.image

    def close(self) -> None:
        if isinstance(self.image, Image.Image):
            self.image.close()


def large(path: str, form: Form) -> Held | None:
    """A file of which parts are read, where that takes less time than to read all of it and changes no bit; else None.

    Images with more pixels than their bound allows are none: whole they would be refused, too.

    Args:
        path: of the file; "" if it lies in another one.
    """
    if not path or not form.scale.by_pixel or os.path.getsize(path) < LARGE:
        return None
    set_bound(form)
    held = by_parts(path, form, lossy=False)
    if held is None:
        return None
    try:
        check_pixels(held.height, held.width, held.height * held.width * held.numbers)
    except ValueError:
        held.close()
        return None
    return held


def by_parts(path: str, form: Form, lossy: bool) -> Held | None:
    """What a file holds, part by part; None where it is not read so, or is damaged: who reads all of it says how.

    Args:
        lossy: also where another reader, which reads all of it, may give other numbers.
    """
    try:
        with open(path, "rb") as file:
            beginning = file.read(_BEGINNING)
            if is_raster(beginning, path):
                return RasterParts(beginning + file.read(VRT_BYTES), path)
        if beginning.startswith(NPY):
            return ArrayParts(path, form.axes)
        return TiffParts(path, lossy) if beginning.startswith(MAGIC) else None
    except Exception:  # readers of damaged files raise whatever comes up
        return None
