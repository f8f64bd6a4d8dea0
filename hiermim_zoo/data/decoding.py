"""Files -> images, in the form that a model takes. The one place where files of images are decoded.

An image of 8 bits a sample and 1, 3 or 4 channels is PIL's. Any other is a tensor, float32 [C, H, W] from 0 to 1: more
bits, other numbers of channels, or bands that were chosen.

Letters: C channels or bands, H and W pixels.
"""

from __future__ import annotations

import importlib
import io
import warnings
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from .scale import Scale

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of a model -> what PIL calls images with as many
AXES = ("chw", "hwc")
FEW = 64  # an axis as short as this may be that of the bands; one that is longer is a side of the image
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # modes of PIL with one band of more than 8 bits
# Kinds that PIL names and needs other programs for, or that are no images of pixels.
_NOT = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
Image.init()
SUFFIXES = frozenset(  # in lower case
    ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _NOT
) | {".npy", ".npz"}
_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_ORIENTATION, _BITS, _SAMPLES = 0x0112, 258, 277  # tags of EXIF and TIFF
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as PIL has them (ITU-R 601)

Image_ = Image.Image | Tensor
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Form:
    """The form in which a model takes images.

    Args:
        channels: of the model.
        scale: which numbers are black and white. The rule "dtype" leaves images of 8 bits as they are.
        bands: of the file that become channels, in this order, counted from 1; empty: all.
        axes: of arrays: "chw" or "hwc"; empty: told by their lengths.
        max_pixels: of an image; None: the bound that PIL has.

    Raises:
        ValueError: it asks for what cannot be.
    """

    channels: int = 3
    scale: Scale = field(default_factory=Scale)
    bands: tuple[int, ...] = ()
    axes: str = ""
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.axes and self.axes not in AXES:
            raise ValueError(f"axes {self.axes!r} are unknown, use {' or '.join(AXES)}")
        if any(band < 1 for band in self.bands):
            raise ValueError(f"bands {' '.join(map(str, self.bands))}: they are counted from 1")
        if self.bands and len(self.bands) != self.channels:
            raise ValueError(f"{len(self.bands)} bands were chosen, and the model takes {self.channels} channels")

    @property
    def mode(self) -> str | None:
        """What PIL calls such images; None if it has none."""
        return MODES.get(self.channels)


def decoded(file: Any, form: Form) -> Image_:
    """The image in an open file, which is closed.

    Raises:
        Exception: of any kind; it cannot be decoded, is not of the form, or has more pixels than its bound allows.
    """
    image = opened(file, form)
    if isinstance(image, Image.Image):
        image.load()
    return image


def opened(file: Any, form: Form) -> Image_:
    """As :func:`decoded`; but a JPEG of that mode is decoded when its pixels are asked for, and may fail only then.

    Until then ``Image.draft`` can have it decoded at a part of its size, which takes less time.
    """
    if form.max_pixels:
        Image.MAX_IMAGE_PIXELS = form.max_pixels  # of this process: PIL asks again when parts are cut
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_pixels is stricter
        content = file.read()
        if content.startswith((_NPY, _ZIP)):
            return fitted(*array_in(content, form), form)
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            if content.startswith(_TIFF):  # PIL knows few of their kinds
                return fitted(*tiff_in(content, form), form)
            raise ValueError("it is no image, or damaged") from None
        check_pixels(image.height, image.width)
        return formed(image, form, content)


def formed(image: Image.Image, form: Form, content: bytes = b"") -> Image_:
    """An image that PIL has opened, in the form wanted.

    Args:
        content: of its file, if that is known: PIL gives samples of 16 bits only of images with one band.

    Raises:
        ValueError: it is not of the form; any other kind: it cannot be decoded.
    """
    lossy = ";16" in _raw_mode(image) and image.mode not in _DEEP
    if content.startswith(_TIFF) and (lossy or _has_more(image)):
        return fitted(*tiff_in(content, form), form)
    if lossy and content and image.format == "PNG":
        return fitted(*png_in(content), form)
    if image.mode in _DEEP:
        values = np.asarray(image)[None]
        return fitted(values, _levels_of(image), False, form)
    image = upright(image)
    if form.mode and not form.bands and form.scale == Scale():
        lazy = isinstance(image, JpegImageFile) and image.mode == form.mode
        return image if lazy else image.convert(form.mode)
    known = image if image.mode in MODES.values() else image.convert("RGB")
    return fitted(_bands_first(np.asarray(known)), (0, 255), True, form)


def _has_more(image: Any) -> bool:
    """Whether a TIFF has pages or bands that PIL does not show. (A fourth beside three colours it leaves out, too.)"""
    samples = image.tag_v2.get(_SAMPLES, 1)
    return image.n_frames > 1 or (samples > len(image.getbands()) and not (samples == 4 and image.mode == "RGB"))


def upright(image: Image.Image) -> Image.Image:
    """As the camera was held. What is upright already is left alone, and not decoded."""
    turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    return ImageOps.exif_transpose(image) if turned else image


def _raw_mode(image: Image.Image) -> str:
    """How the file stores samples, as PIL calls it."""
    tile: Any = getattr(image, "tile", None)
    args = tile[0][3] if tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _levels_of(image: Image.Image) -> tuple[float, float] | None:
    """The least and the largest number of an image with one band of more than 8 bits, as far as the file tells."""
    if image.mode == "F":
        return None
    if image.format == "PPM":  # PIL stretches them to 16 bits
        return 0, 65535
    bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))[0]
    if image.mode == "I" and (bits > 16 or "S" in _raw_mode(image)):
        return None
    return 0, 2**bits - 1


def size_of(image: Image_) -> tuple[int, int]:
    """Width and height in pixels."""
    return image.size if isinstance(image, Image.Image) else (image.shape[-1], image.shape[-2])


def part_of(image: Any, left: int, top: int, right: int, bottom: int) -> Any:
    """What lies between these pixels."""
    return image[..., top:bottom, left:right] if isinstance(image, Tensor) else image.crop((left, top, right, bottom))


# ---- other readers


def array_in(content: bytes, form: Form) -> tuple[Array, tuple[float, float] | None, bool]:
    """The bands of an array of numpy [C, H, W], the range of its type, and whether they are colours.

    Raises:
        ValueError: it is no image, or its axes cannot be told apart.
    """
    file = io.BytesIO(_only_member(content) if content.startswith(_ZIP) else content)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if len(shape) not in (2, 3) or 0 in shape or dtype.kind not in "buif":
        raise ValueError(f"{dtype} {list(shape)} is no image: numbers [H, W], [C, H, W] or [H, W, C] are wanted")
    first = len(shape) == 3 and _bands_are_first(shape, form)
    check_pixels(*(shape[1:] if first else shape[:2]))
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    return array if first else _bands_first(array), _levels(dtype), False


def _only_member(content: bytes) -> bytes:
    """The array in an .npz."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename for member in members[:6])
            raise ValueError(f"it holds {len(members)} arrays ({names}), and one is an image")
        if Image.MAX_IMAGE_PIXELS and members[0].file_size > 8 * FEW * Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{members[0].filename} of {members[0].file_size} bytes is too large")
        return archive.read(members[0])


def check_pixels(height: int, width: int) -> None:
    """The bound that PIL has for its images, or was given.

    Raises:
        ValueError: there are more pixels.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most and height * width > most:
        raise ValueError(
            f"{width} x {height} pixels are more than {most}, and may take all memory; --max-pixels allows them"
        )


def png_in(content: bytes) -> tuple[Array, tuple[float, float] | None, bool]:
    """A PNG of 16 bits a sample and several bands; see :func:`array_in`. (PIL gives 8 of the 16.)

    Raises:
        ValueError: imagecodecs is not installed.
    """
    pixels = _extra("imagecodecs", "PNGs of 16 bits a colour").png_decode(content)  # [H, W, C]
    return _bands_first(pixels), (0, 65535), True


def tiff_in(content: bytes, form: Form) -> tuple[Array, tuple[float, float] | None, bool]:
    """A TIFF whose samples or pages PIL does not give; see :func:`array_in`. Pages of one size are bands.

    Raises:
        ValueError: tifffile is not installed, or it is no image.
    """
    tifffile = _extra("tifffile", "TIFFs of several pages, of many bands, or of 16 bits a colour")
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series, page = file.series[0], file.pages.first
        axes = series.axes
        check_pixels(*(dict(zip(axes, series.shape, strict=True)).get(axis, 0) for axis in "YX"))
        values = series.asarray()
        bits, colour = page.bitspersample, page.photometric.name == "RGB" and len(file.pages) == 1
    if not {"Y", "X"} <= set(axes) or values.dtype.kind not in "buif":
        raise ValueError(f"{values.dtype} {list(values.shape)} with axes {axes} is no image")
    others = [axis for axis, name in enumerate(axes) if name not in "YX"]
    values = values.transpose(*others, axes.index("Y"), axes.index("X"))
    values = values.reshape(-1, *values.shape[-2:])  # [C, H, W]
    unusual = values.dtype.kind == "u" and bits and bits < 8 * values.dtype.itemsize
    return values, (0, 2**bits - 1) if unusual else _levels(values.dtype), colour


def _extra(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f'{what} are read by {module}: pip install "hiermim-zoo[images]"') from error


def _bands_are_first(shape: tuple[int, ...], form: Form) -> bool:
    """Whether an array is [C, H, W]; else it is [H, W, C]."""
    first, last = shape[0] <= FEW, shape[-1] <= FEW
    if not form.axes and first == last:
        raise ValueError(f"{list(shape)} may be [C, H, W] or [H, W, C]: say --axes chw or --axes hwc")
    return (form.axes or AXES[not first]) == AXES[0]


def _bands_first(array: Array) -> Array:
    """[H, W] or [H, W, C] -> [C, H, W]."""
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _levels(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """The range of integers of 8 or 16 bits. Of more bits no file uses all, and signed ones rarely begin at their
    least.
    """
    if dtype.kind == "b":
        return 0, 1
    return (0, float(np.iinfo(dtype).max)) if dtype in (np.uint8, np.uint16) else None


# ---- what a model takes


def fitted(values: Array, levels: tuple[float, float] | None, colour: bool, form: Form) -> Image_:
    """Bands -> an image in the form wanted.

    Args:
        values: [C, H, W].
        levels: the range of their type, None where it is not known.
        colour: whether three or four bands are red, green, blue (and alpha), so that grey can be made of them.

    Raises:
        ValueError: it has other bands than are wanted.
    """
    count, wanted = len(values), form.channels
    if form.bands:
        if max(form.bands) > count:
            raise ValueError(f"it has {count} bands, and --bands asks for number {max(form.bands)}")
        values = values[[band - 1 for band in form.bands]]
    elif count != wanted and not (count == 1 and wanted in MODES) and not (colour and {count, wanted} <= {1, 2, 3, 4}):
        raise ValueError(f"it has {count} bands, and the model takes {wanted} channels: choose with --bands")
    if values.dtype == np.uint8 and form.scale == Scale() and form.mode:
        plain = np.ascontiguousarray(np.moveaxis(values, 0, -1)).squeeze(-1 if len(values) == 1 else ())
        return Image.fromarray(plain).convert(form.mode)
    scaled = torch.from_numpy(form.scale(values, levels))
    return scaled if len(scaled) == wanted else _recoloured(scaled, wanted)


def _recoloured(values: Tensor, channels: int) -> Tensor:
    """Grey, grey and alpha, colours, or colours and alpha -> any of these, as PIL does."""
    alpha = values[-1:] if len(values) in (2, 4) else torch.ones_like(values[:1])
    colours = values[: 1 if len(values) < 3 else 3]
    if channels == 1 and len(colours) == 3:
        return torch.einsum("chw,c->hw", colours, torch.tensor(_LUMA))[None]
    if channels >= 3:
        colours = colours.expand(3, -1, -1)
    return torch.cat([colours, alpha]) if channels == 4 else colours.contiguous()
