"""What GDAL reads and others do not, or not as it is: JPEG 2000 of many bands or odd depths, VRT, ERDAS, ENVI.

By rasterio, an extra. Letters: C bands, H and W pixels, h and w of a part.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .formats import Bands, check_pixels, extra, levels_of

RASTERS = (".vrt", ".img")  # endings of files that others do not know
_JP2, _J2K = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
_VRT, _ERDAS = b"<VRTDataset", b"EHFA_HEADER_TAG"
VRT_BYTES = 2**24  # of a VRT that is looked through
_SIZES = b"\xff\x4f\xff\x51"  # begins the sizes of a JPEG 2000


def is_raster(content: bytes, path: str) -> bool:
    """Whether a file is to be read by rasterio.

    Args:
        content: of it, or its beginning.
        path: of it, if it lies in none other.
    """
    if content.startswith((_JP2, _J2K)):
        return not _is_plain(content)
    beside = path.lower().endswith(".img") and any(map(os.path.exists, (f"{path}.hdr", f"{path[:-4]}.hdr")))
    return content.lstrip()[: len(_VRT)] == _VRT or content.startswith(_ERDAS) or beside


def _is_plain(content: bytes) -> bool:
    """Whether PIL gives the numbers of a JPEG 2000: of 8 bits, and of one band of 16. Others it shifts or cuts."""
    start = content.find(_SIZES)
    sizes = content[start + 2 : start + 42]
    if start < 0 or len(sizes) < 40:
        return True  # it is damaged, which PIL says
    count = struct.unpack(">H", sizes[38:40])[0]
    depths = set(content[start + 42 : start + 42 + 3 * count : 3])
    return (depths == {7} and count in (1, 2, 3, 4)) or (depths == {15} and count == 1)


def _driver(content: bytes) -> str:
    """What GDAL calls the format of such a file. It is told, so that no other of its many readers sees the file."""
    if content.startswith((_JP2, _J2K)):
        return "JP2OpenJPEG"
    if content.startswith(_ERDAS):
        return "HFA"
    return "VRT" if content.lstrip()[: len(_VRT)] == _VRT else "ENVI"


def raster_in(content: bytes, path: str) -> Bands:
    """All of such a file.

    Raises:
        ValueError: it cannot be read, or has more pixels than its bound allows.
    """
    with opened_raster(content, path) as file:
        check_pixels(file.height, file.width, file.count * file.height * file.width)
        return bands_of(file, None)


@contextmanager
def opened_raster(content: bytes, path: str) -> Iterator[Any]:
    """A file as rasterio has it.

    Raises:
        ValueError: rasterio is not installed, or cannot read it.
    """
    rasterio: Any = extra("rasterio", "VRT, ERDAS, ENVI, and JPEG 2000 of several bands or odd depths", "geo")
    driver = _driver(content)
    if driver == "VRT":
        _check_sources(content)
    with warnings.catch_warnings(), rasterio.Env(GDAL_VRT_ENABLE_PYTHON="NO"):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            if path:
                with rasterio.open(path, driver=driver) as file:
                    yield file
            else:
                with rasterio.MemoryFile(content) as held, held.open(driver=driver) as file:
                    yield file
        except rasterio.errors.RasterioError as error:  # it points at another one, which says what is wrong
            raise ValueError(str(error.__cause__ or error)) from error


def _check_sources(content: bytes) -> None:
    """Refuse a VRT that leads away from this disk: it may be a stranger's.

    Raises:
        ValueError: it does, or is too long to be looked through.
    """
    if b"/vsi" in content or b"://" in content or b"<GDAL_W" in content or len(content) > VRT_BYTES:
        raise ValueError("it names what does not lie on this disk; files beside it would work")


def bands_of(file: Any, window: Any) -> Bands:
    """The bands of an open file, with what it tells of them.

    Args:
        window: rasterio's, [h, w]; None: all.
    """
    values = file.read(window=window)
    bits, dtype = file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"), values.dtype
    unusual = dtype.kind == "u" and bits and int(bits) < 8 * dtype.itemsize
    levels = (0, 2 ** int(bits) - 1) if unusual else levels_of(dtype)
    colours = [band.name for band in file.colorinterp[:3]] == ["red", "green", "blue"]
    told = [bool({"nodata", "per_dataset"} & {flag.name for flag in flags}) for flags in file.mask_flag_enums]
    alpha = [flag.name for flags in file.mask_flag_enums for flag in flags].count("alpha")
    if not any(told) or alpha:
        return Bands(values, levels, colours)
    known = np.stack([file.read_masks(n, window=window) > 0 for n in file.indexes])
    return Bands(values, levels, colours, known=known)


class RasterParts:
    """Such a file, of which parts are read.

    Args:
        content: its beginning; of a VRT all, or more than ``VRT_BYTES``.
        path: of it.
    """

    def __init__(self, content: bytes, path: str) -> None:
        self._opened = opened_raster(content, path)
        self.file = self._opened.__enter__()
        self.height, self.width, self.numbers = self.file.height, self.file.width, self.file.count

    def held(self, left: int, top: int, right: int, bottom: int) -> Bands:
        """What lies between these pixels, as the whole file would be held."""
        return bands_of(self.file, ((top, bottom), (left, right)))

    def close(self) -> None:
        self._opened.__exit__(None, None, None)
