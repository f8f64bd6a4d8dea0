"""TIFFs of any depth and any number of bands or pages, by tifffile: whole, or a part of them.

Letters: C bands, S samples of a page, H and W pixels of the image, h and w of a part.
"""

from __future__ import annotations

import io
import logging
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from .formats import Array, Bands, as_image, check_pixels, extra, levels_of

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NODATA = 42113  # tag of GDAL
_ORIENTATION, _JPEG = 274, 7
# How rows and columns are brought upright: exchanged, then from the bottom up, then from right to left.
_TURNS = {
    2: (False, False, True), 3: (False, True, True), 4: (False, True, False), 5: (True, False, False),
    6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip
# Every reader makes the same numbers of these: none, LZW, Deflate (two numbers of it), PackBits, LZMA, Zstandard.
_LOSSLESS = (1, 5, 8, 32946, 32773, 34925, 50000)


def opened_tiff(file: Any) -> Any:
    """A TIFF by its path or from an open file.

    Raises:
        ValueError: tifffile is not installed; tifffile's own: it is none.
    """
    tifffile = extra("tifffile", "TIFFs of several pages, of many bands, or of 16 bits a colour")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said once, by its reader
    return tifffile.TiffFile(file)


def tiff_in(content: bytes) -> Bands:
    """A TIFF whose samples or pages PIL does not give. Pages of one size are bands.

    Raises:
        ValueError: tifffile is not installed, or it is no image.
    """
    with opened_tiff(io.BytesIO(content)) as file:
        check_size(file)
        check_extent(file)
        page, axes = file.pages.first, file.series[0].axes
        values = file.series[0].asarray()
        check_kind(values.dtype, values.shape, axes)
        others = [axis for axis, name in enumerate(axes) if name not in "YX"]
        values = values.transpose(*others, axes.index("Y"), axes.index("X"))
        found = described(file, values.reshape(-1, *values.shape[-2:]))
        mask = mask_of(file)
        found = found if mask is None else found._replace(known=mask.asarray()[None] > 0)
        turn = page.tags.valueof(_ORIENTATION)
    if turn not in _TURNS:
        return found
    known = None if found.known is None else turned(found.known, turn)
    return found._replace(values=turned(found.values, turn), known=known)


def check_size(file: Any) -> None:
    """Refuse what may take all memory.

    Raises:
        ValueError: it would.
    """
    series = file.series[0]
    sides = dict(zip(series.axes, series.shape, strict=True))
    check_pixels(sides.get("Y", 0), sides.get("X", 0), math.prod(series.shape))


def check_kind(dtype: Any, shape: tuple[int, ...], axes: str) -> None:
    if not {"Y", "X"} <= set(axes) or dtype.kind not in "buif":
        raise ValueError(f"{dtype} {list(shape)} with axes {axes} is no image")


def check_extent(file: Any) -> None:
    """Refuse a file that ends before its pages or their numbers do; tifffile would leave pages out.

    Raises:
        ValueError: it does.
    """
    handle, form, last = file.filehandle, file.tiff, file.pages[-1]
    for page in file.series[0].pages:
        ends = zip(page.dataoffsets, page.databytecounts, strict=False) if page is not None else ()
        if any(start + count > handle.size for start, count in ends):
            raise ValueError("its tags say that numbers lie behind the end of the file: it was cut off, or they lie")
    handle.seek(last.offset)
    (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    handle.seek(last.offset + form.tagnosize + tags * form.tagsize)
    if any(handle.read(form.offsetsize)):
        raise ValueError("its tags name a page that is not there: the file was cut off, or they lie")


def described(file: Any, values: Array) -> Bands:
    """Bands [C, H, W] of a file, with what its tags tell of them."""
    page = file.pages.first
    bits, dtype = page.bitspersample, values.dtype
    unusual = dtype.kind == "u" and bits and bits < 8 * dtype.itemsize
    colours = page.photometric.name == "RGB" and len(file.pages) == 1 and (len(values) != 4 or has_alpha(page))
    levels = (0, 2**bits - 1) if unusual else levels_of(dtype)
    return Bands(values, levels, colours, nodata_of(page.tags.valueof(NODATA)))


def has_alpha(page: Any) -> bool:
    """Whether the first sample beside the colours of a page is alpha, and not a band such as near infrared."""
    return bool(page.extrasamples) and page.extrasamples[0] != 0


def mask_of(file: Any) -> Any:
    """The page that says which pixels have a value; None where there is none."""
    height, width = file.pages.first.imagelength, file.pages.first.imagewidth
    masks = (series for series in file.series[1:] if series.keyframe.is_mask)
    return next((mask.keyframe for mask in masks if mask.keyframe.shape == (height, width)), None)


def turned(values: Array, turn: int) -> Array:
    """[C, H, W] as the camera was held, by the number that TIFF has for it."""
    exchanged, upwards, leftwards = _TURNS[turn]
    values = values.swapaxes(-1, -2) if exchanged else values
    return values[:, :: -1 if upwards else 1, :: -1 if leftwards else 1]


def nodata_of(said: Any) -> float | None:
    """What GDAL writes as text; None where it says nothing, or no number."""
    try:
        return float(str(said).strip("\0 "))
    except ValueError:
        return None


def byte_nodata_of(said: Any) -> float | None:
    """The same of samples of 8 bits; None also where they cannot hold it."""
    nodata = nodata_of(said)
    return nodata if nodata in range(256) else None


# ---- parts of them


class TiffParts:
    """A TIFF of which parts are read: of its tiles and strips only those that a part needs.

    Args:
        path: of the file.
        lossy: read JPEGs in it, too; another reader may make other numbers of them.

    Raises:
        ValueError: it cannot be read so; tifffile's own: it is none, or damaged.
    """

    def __init__(self, path: str, lossy: bool = False) -> None:
        self.file = opened_tiff(path)
        try:
            self._look(lossy)
        except BaseException:
            self.file.close()
            raise

    def _look(self, lossy: bool) -> None:
        series, page = self.file.series[0], self.file.pages.first
        check_kind(page.dtype, series.shape, series.axes)
        self.key, self.pages, self.mask = page, list(series.pages), mask_of(self.file)
        self.height, self.width = page.imagelength, page.imagewidth
        # PIL reads these: what it makes of other 8-bit pages is not always what they hold
        self.plain = page.dtype == np.uint8 and len(self.file.pages) == 1 and page.samplesperpixel in (1, 3)
        whole = len(self.pages) * page.samplesperpixel * self.height * self.width == math.prod(series.shape)
        jpeg = lossy and page.compression == _JPEG
        kinds = {"MINISBLACK", "RGB", *(("YCBCR",) if jpeg else ())}
        readable = (
            (page.compression in _LOSSLESS or jpeg)
            and page.photometric.name in kinds
            and None not in self.pages
            and page.bitspersample == 8 * page.dtype.itemsize
            and page.tags.valueof(_ORIENTATION, 1) == 1
            and (page.fillorder, page.imagedepth) == (1, 1)
            and (not self.plain or (page.photometric.name == "MINISBLACK") == (page.samplesperpixel == 1))
            and (page.dtype != np.uint8 or len(self.file.pages) > 1 or page.samplesperpixel != 4 or not has_alpha(page))
        )
        if not whole or not readable:
            raise ValueError("this kind of TIFF is not read by parts")
        check_extent(self.file)
        self.numbers = len(self.pages) * page.samplesperpixel  # of a pixel

    def held(self, left: int, top: int, right: int, bottom: int) -> Image.Image | Bands:
        """What lies between these pixels, as the whole file would be held."""
        box = (left, top, right, bottom)
        cut = [self.cut(page, self.key, box) for page in self.pages]
        values = np.concatenate(cut) if len(cut) > 1 else cut[0]
        if self.plain:
            nodata, colours = byte_nodata_of(self.key.tags.valueof(NODATA)), len(values) == 3
            return as_image(values) if nodata is None else Bands(values, (0, 255), colours, known=values != nodata)
        known = None if self.mask is None else self.cut(self.mask, self.mask, box) > 0
        return described(self.file, values)._replace(known=known)

    def cut(self, page: Any, key: Any, box: tuple[int, int, int, int]) -> Array:
        """[S, h, w] of one page; ``key`` has the tags that it shares with others."""
        left, top, right, bottom = box
        out = np.full((bottom - top, right - left, key.samplesperpixel), key.nodata, key.dtype)
        for plane, y, x, values in self.segments(page, key, box):
            height, width, count = values.shape
            rows = slice(max(top, y), min(bottom, y + height))
            columns = slice(max(left, x), min(right, x + width))
            inside = values[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
            place = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
            out[(*place, slice(plane, plane + count))] = inside
        return np.moveaxis(out, -1, 0)

    def segments(self, page: Any, key: Any, box: tuple[int, int, int, int]) -> Iterator[tuple[int, int, int, Array]]:
        """The tiles or strips that a part needs: plane, row and column at which each begins, numbers [h, w, S]."""
        left, top, right, bottom = box
        height, width = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, self.width)
        down, across = math.ceil(self.height / height), math.ceil(self.width / width)
        apart = key.planarconfig == 2
        samples = 1 if apart else key.samplesperpixel
        raw = key.compression == 1 and not key.is_tiled and key.predictor == 1 and key.dtype.kind != "b"
        for plane in range(key.samplesperpixel if apart else 1):
            for row in range(top // height, min(down, math.ceil(bottom / height))):
                if raw:
                    yield plane, *self._rows(page, key, plane * down + row, (row * height, height, samples), box)
                    continue
                for column in range(left // width, min(across, math.ceil(right / width))):
                    values = self._decoded(page, key, (plane * down + row) * across + column, height, width)
                    if values is not None:
                        yield plane, row * height, column * width, values

    def _decoded(self, page: Any, key: Any, index: int, height: int, width: int) -> Array | None:
        """[h, w, S] of one tile or strip; None if it is left out, as GDAL does with what is empty."""
        check_pixels(min(height, self.height), width)  # a strip may be all of the image
        handle = self.file.filehandle
        handle.seek(page.dataoffsets[index])
        data = handle.read(page.databytecounts[index])
        values, _, shape = key.decode(data or None, index, jpegtables=key.jpegtables)
        if values is None:
            return None
        inside: Array = values.reshape(-1, *values.shape[-3:])[0, : shape[-3], : shape[-2]]
        return inside

    def _rows(
        self, page: Any, key: Any, index: int, strip: tuple[int, int, int], box: tuple[int, int, int, int]
    ) -> tuple[int, int, Array]:
        """Rows of a strip that is stored as it is, of which only those are read that the part needs."""
        start, height, samples = strip
        first, last = max(box[1], start), min(box[3], start + height, self.height)
        length = self.width * samples * key.dtype.itemsize
        handle = self.file.filehandle
        handle.seek(page.dataoffsets[index] + (first - start) * length)
        data = handle.read((last - first) * length)
        if len(data) < (last - first) * length:
            raise ValueError("a strip is shorter than its tags say")
        values = np.frombuffer(data, key.dtype.newbyteorder(self.file.byteorder))
        return first, 0, values.reshape(last - first, self.width, samples)

    def close(self) -> None:
        self.file.close()
