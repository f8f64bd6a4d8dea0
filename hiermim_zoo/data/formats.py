"""Readers of files that PIL does not read, or not at full depth: arrays, PNGs of 16 bits, DICOM.

Each gives the bands of an image as the file holds them. Those of TIFFs and of what GDAL reads are in ``tiffs`` and
``rasters``. Letters: C bands, H and W pixels.
"""

from __future__ import annotations

import importlib
import io
import math
import zipfile
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from ..text import counted

AXES = ("chw", "hwc")
FEW = 64  # an axis as short as this may be that of the bands; one that is longer is a side of the image
ZIP, NPY = b"PK\x03\x04", b"\x93NUMPY"

Array = np.ndarray[Any, Any]


class Bands(NamedTuple):
    """What a file of an image holds."""

    values: Array  # [C, H, W]
    levels: tuple[float, float] | None  # the range of their type, as far as it is known
    colours: bool = False  # three or four bands are red, green, blue (and alpha), so that grey can be made of them
    nodata: float | None = None  # what pixels without a value hold
    inverted: bool = False  # the least number is white
    curved: str = ""  # why what the file says of black and white is no straight line: then levels are None
    known: Array | None = None  # bool [C, H, W] or [1, H, W], where pixels have a value; None: wherever nodata says so

    def is_plain(self) -> bool:
        """Whether its numbers are what PIL would hold."""
        return self.levels == (0, 255) and self.nodata is None and not self.inverted and self.known is None

    def chosen(self, bands: Sequence[int]) -> Bands:
        """These bands, counted from 0."""
        known = self.known if self.known is None or len(self.known) == 1 else self.known[bands]
        return self._replace(values=self.values[bands], known=known)

    def empty(self) -> Array | None:
        """Where pixels have no value, bool [C, H, W]; None: they all have."""
        if self.nodata is None:
            return None if self.known is None else np.broadcast_to(~self.known, self.values.shape)
        empty = np.isnan(self.values) if math.isnan(self.nodata) else self.values == self.nodata
        return empty if self.known is None else empty | ~self.known


class ArrayHeader(NamedTuple):
    """What the header of an .npy says."""

    shape: tuple[int, ...]
    fortran: bool  # the first axis is the fastest
    dtype: np.dtype[Any]
    first: bool  # bands are the first axis of three
    start: int  # byte at which numbers begin

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.shape[1:] if self.first else self.shape[:2]
        return height, width


def array_header(file: IO[bytes], axes: str, size: int) -> ArrayHeader:
    """Read the header of an array of numpy, [H, W], [C, H, W] or [H, W, C].

    Args:
        size: of the file in bytes.

    Raises:
        ValueError: it is no image, its axes cannot be told apart, or the file is shorter than it says.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if len(shape) not in (2, 3) or 0 in shape or dtype.kind not in "buif":
        raise ValueError(f"{dtype} {list(shape)} is no image: numbers [H, W], [C, H, W] or [H, W, C] are wanted")
    first = len(shape) == 3 and _bands_are_first(shape, axes)
    found = ArrayHeader(shape, fortran, dtype, first, file.tell())
    if math.prod(shape) * dtype.itemsize > size - found.start:
        check_pixels(*found.sides, math.prod(shape))
        raise ValueError(f"its header says {dtype} {list(shape)}, and the file ends before")
    return found


def array_in(content: bytes, axes: str) -> Bands:
    """An array of numpy, [H, W], [C, H, W] or [H, W, C].

    Raises:
        ValueError: it is no image, or its axes cannot be told apart.
    """
    if not content.startswith(ZIP):
        return _array(io.BytesIO(content), axes, len(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename for member in members[:6])
            raise ValueError(f"it holds {len(members)} arrays ({names}), and one is an image")
        with archive.open(members[0]) as file:  # its header is read first: a small archive may hold what fills memory
            return _array(file, axes, members[0].file_size)


def _array(file: IO[bytes], axes: str, size: int) -> Bands:
    header = array_header(file, axes, size)
    check_pixels(*header.sides, math.prod(header.shape))
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    return Bands(array if header.first else bands_first(array), levels_of(header.dtype))


def check_pixels(height: int, width: int, numbers: int = 0) -> None:
    """The bound that PIL has for its images, or was given.

    Args:
        numbers: in all bands; they may be as many as 16 such images have.

    Raises:
        ValueError: there are more pixels.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most and numbers > 16 * most:
        raise ValueError(
            f"{numbers} numbers are more than {16 * most}, and may take all memory; --max-pixels allows them"
        )
    if most and height * width > most:
        raise ValueError(
            f"{width} x {height} pixels are more than {most}, and may take all memory; --max-pixels allows them"
        )


def png_in(content: bytes) -> Bands:
    """A PNG of 16 bits a sample and several bands. (PIL gives 8 of the 16.)

    Raises:
        ValueError: imagecodecs is not installed.
    """
    pixels = extra("imagecodecs", "PNGs of 16 bits a colour").png_decode(content)  # [H, W, C]
    return Bands(bands_first(pixels), (0, 65535), colours=True)


def dicom_in(content: bytes) -> Bands:
    """A DICOM image: its window says what is black and white, else the bits that it stores; frames are bands.

    Raises:
        ValueError: pydicom is not installed, or it holds no image.
    """
    pydicom = extra("pydicom", "files of DICOM")
    from pydicom.pixels import apply_modality_lut, apply_voi

    data = pydicom.dcmread(io.BytesIO(content))
    if "PixelData" not in data:
        raise ValueError("it holds no image")
    check_pixels(int(data.Rows), int(data.Columns))
    pixels, samples = data.pixel_array, int(data.get("SamplesPerPixel", 1))
    if samples > 1 or data.get("PhotometricInterpretation", "").startswith("PALETTE"):
        if pixels.ndim != 3 or samples == 1:
            raise ValueError(f"{list(pixels.shape)} with {counted(samples, 'samples')} a pixel is no single image")
        return Bands(bands_first(pixels), (0, 2 ** int(data.BitsStored) - 1), colours=True)
    values = apply_modality_lut(pixels, data).reshape(-1, *pixels.shape[-2:])
    if "VOILUTSequence" in data and data.get("WindowCenter") is None:
        found = Bands(apply_voi(values, data), (0.0, 2.0 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1))
    else:
        levels = _window(data)
        found = Bands(values, None, curved=levels) if isinstance(levels, str) else Bands(values, levels)
    inverted, padded = data.get("PhotometricInterpretation") == "MONOCHROME1", _padded(pixels, data)
    return found._replace(inverted=inverted, known=None if padded is None else ~padded.reshape(values.shape))


def _padded(pixels: Array, data: Any) -> Array | None:
    """Where a DICOM image was filled up around what was measured (PS3.3, C.7.5.1.1.2); None: it does not say.

    Args:
        pixels: numbers as they are stored.
    """
    value = data.get("PixelPaddingValue")
    if value is None:
        return None
    limit = data.get("PixelPaddingRangeLimit")
    ends = int(value), int(value if limit is None else limit)
    return (pixels >= min(ends)) & (pixels <= max(ends))


def _window(data: Any) -> tuple[float, float] | str:
    """What a DICOM image shows as black and white (PS3.3, C.11.2.1.2); without a window all that it can store. In
    words, where the window is no straight line.
    """
    if data.get("WindowCenter") is not None and data.get("WindowWidth") is not None:
        function = data.get("VOILUTFunction", "LINEAR")
        center, width = (float(np.ravel(data.get(key))[0]) for key in ("WindowCenter", "WindowWidth"))
        if function not in ("LINEAR", "LINEAR_EXACT") or width < 1:
            return f"its window ({function}, width {width:g}) is no straight line"
        exact = function == "LINEAR_EXACT"
        middle, half = center - (0 if exact else 0.5), (width - (0 if exact else 1)) / 2
        return middle - half, middle + half
    bits, signed = int(data.BitsStored), int(data.get("PixelRepresentation", 0))
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    ends = [slope * end + intercept for end in (-signed * 2 ** (bits - 1), 2 ** (bits - signed) - 1)]
    return min(ends), max(ends)


def extra(module: str, what: str, name: str = "images") -> Any:
    """A module of an extra.

    Args:
        what: it reads, in words.
        name: of the extra.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f'{what} are read by {module}: pip install "hiermim-zoo[{name}]"') from error


def _bands_are_first(shape: tuple[int, ...], axes: str) -> bool:
    """Whether an array is [C, H, W]; else it is [H, W, C]."""
    first, last = shape[0] <= FEW, shape[-1] <= FEW
    if not axes and first == last:
        raise ValueError(f"{list(shape)} may be [C, H, W] or [H, W, C]: say --axes chw or --axes hwc")
    return (axes or AXES[not first]) == AXES[0]


def bands_first(array: Array) -> Array:
    """[H, W] or [H, W, C] -> [C, H, W]."""
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def as_image(values: Array) -> Image.Image:
    """uint8 [C, H, W] of 1, 3 or 4 bands -> PIL's image."""
    last = np.ascontiguousarray(np.moveaxis(values, 0, -1))
    return Image.fromarray(last[..., 0] if len(values) == 1 else last)


def levels_of(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """The range of integers of 8 or 16 bits. Of more bits no file uses all, and signed ones rarely begin at their
    least.
    """
    if dtype.kind == "b":
        return 0, 1
    return (0, float(np.iinfo(dtype).max)) if dtype in (np.uint8, np.uint16) else None
