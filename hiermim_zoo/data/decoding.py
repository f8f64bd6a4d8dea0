"""Files -> images, in the form that a model takes. The one place where files of images are decoded.

An image of 8 bits a sample that is grey, of colours, or of colours and alpha is PIL's. Any other is a tensor, float32
[C, H, W] from 0 to 1: more bits, other numbers of channels, or four bands of which none is alpha (PIL would weigh
colours by it).

Letters: C channels or bands, H and W pixels.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from ..text import counted
from .formats import AXES, NPY, ZIP, Bands, array_in, as_image, bands_first, check_pixels, dicom_in, png_in
from .rasters import RASTERS, is_raster, raster_in
from .scale import REMEDY, Scale
from .tiffs import MAGIC, NODATA, byte_nodata_of, nodata_of, tiff_in

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of a model -> what PIL calls images with as many
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # modes of PIL with one band of more than 8 bits
# Kinds that PIL names and needs other programs for, or that are no images of pixels.
_NOT = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
Image.init()
SUFFIXES = frozenset(  # in lower case
    ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _NOT
) | {".npy", ".npz", ".dcm", *RASTERS}
_DICOM, _JPEG = b"DICM", b"\xff\xd8\xff"
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRAS, _FORMAT = 0x0112, 258, 262, 277, 338, 339  # tags of EXIF and TIFF
_UNFIT = "it has {} bands, and the model takes {} channels: choose with --bands"
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as PIL has them (ITU-R 601)

Image_ = Image.Image | Tensor


@dataclass(frozen=True)
class Form:
    """The form in which a model takes images.

    Args:
        channels: of the model; 0: as many as the file has.
        scale: which numbers are black and white. The rule "dtype" leaves images of 8 bits as they are.
        bands: of the file that become channels, in this order, counted from 1; empty: all.
        axes: of arrays: "chw" or "hwc"; empty: told by their lengths.
        stack: words in the names of files, each of which holds one band of an image (see ``stacks``); empty: a file
            is an image.
        max_pixels: of an image; None: the bound that PIL has.

    Raises:
        ValueError: it asks for what cannot be.
    """

    channels: int = 3
    scale: Scale = field(default_factory=Scale)
    bands: tuple[int, ...] = ()
    axes: str = ""
    stack: tuple[str, ...] = ()
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.axes and self.axes not in AXES:
            raise ValueError(f"axes {self.axes!r} are unknown, use {' or '.join(AXES)}")
        if self.stack and (self.bands or len(set(self.stack)) < len(self.stack) or not all(self.stack)):
            raise ValueError(f"--stack {','.join(self.stack)}: different words, and no --bands beside them")
        if any(band < 1 for band in self.bands):
            raise ValueError(f"bands {' '.join(map(str, self.bands))}: they are counted from 1")
        if self.bands and len(self.bands) != self.channels and self.channels:
            chosen = counted(len(self.bands), "bands")
            raise ValueError(f"--bands names {chosen}, and the model takes {counted(self.channels, 'channels')}")

    @property
    def mode(self) -> str | None:
        """What PIL calls such images; None if it has none."""
        return MODES.get(self.channels)


def read_file(path: str | os.PathLike[str], form: Form) -> Image_:
    """The image in a file, see :func:`decoded`."""
    return decoded(open(path, "rb"), form)


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
    with file:
        return in_form(held_in(file.read(), form, path_of(file)), form)


def path_of(file: Any) -> str:
    """Where an open file lies; "" if it lies in another one."""
    lies = isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO) and not isinstance(file.name, int)
    return os.fsdecode(file.name) if lies else ""


def held_in(content: bytes, form: Form, path: str = "") -> Image.Image | Bands:
    """What a file holds: of 8 bits a sample PIL's image, not yet decoded and as it was held, else its bands.

    Args:
        form: of which only ``axes`` and ``max_pixels`` are used.
        path: of the file; some formats lie in several.

    Raises:
        ValueError: it is no image, or has more pixels than its bound allows; any other kind: it cannot be decoded.
    """
    set_bound(form)
    if not content:
        raise ValueError("it is empty: 0 bytes")
    if content.startswith((NPY, ZIP)):
        return array_in(content, form.axes)
    if content[128:132] == _DICOM:
        return dicom_in(content)
    if is_raster(content, path):
        return raster_in(content, path)
    try:
        image = image_in(content)
    except UnidentifiedImageError:
        if content.startswith(MAGIC):  # PIL knows few of their kinds
            return tiff_in(content)
        raise ValueError("it is no image, or damaged") from None
    if content.startswith(_JPEG):  # most files are, and need no other look
        return upright(image)
    if image.format == "JPEG2000":
        try:
            image.load()
        except OSError:  # PIL does not decode all that are sound
            return raster_in(content, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of pages whose tags are damaged
        return held_by(image, content)


def image_in(content: bytes) -> Image.Image:
    """PIL's image, not yet decoded.

    Raises:
        ValueError: it has more pixels than its bound allows; PIL's own: it is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of tags that PIL cannot read, of which tifffile may make more
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_pixels is stricter
        try:
            image = Image.open(io.BytesIO(content))
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # at which PIL itself refuses
            raise ValueError(f"more than {most} pixels may take all memory; --max-pixels allows them") from None
    check_pixels(image.height, image.width)
    return image


def set_bound(form: Form) -> None:
    """Say how many pixels an image may have, to this process: PIL asks again when parts are cut."""
    if form.max_pixels:
        Image.MAX_IMAGE_PIXELS = form.max_pixels


def held_by(image: Image.Image, content: bytes = b"") -> Image.Image | Bands:
    """What an image that PIL has opened holds, see :func:`held_in`.

    Args:
        content: of its file, if that is known: PIL gives samples of 16 bits only of images with one band.
    """
    lossy = ";16" in _raw_mode(image) and image.mode not in _DEEP
    if content.startswith(MAGIC) and (lossy or _has_more(image) or _is_signed_byte(image)):
        return tiff_in(content)
    if lossy and content and image.format == "PNG":
        return png_in(content)
    if image.mode in _DEEP:
        nodata = nodata_of(getattr(image, "tag_v2", {}).get(NODATA))
        levels = _levels_of(image)  # before it is loaded: then how samples are stored is forgotten
        return Bands(np.asarray(image)[None], levels, nodata=nodata)
    if content.startswith(MAGIC):
        return without_nodata(image)
    return upright(image)


def in_form(held: Image.Image | Bands, form: Form, part: bool = False) -> Image_:
    """What a file holds, in the form wanted.

    Args:
        part: it is cut out of an image.

    Raises:
        ValueError: it is not of the form.
    """
    if isinstance(held, Bands):
        return fitted(held, form, part)
    if form.channels == 4 and not form.bands:
        held = with_alpha(held)
    if _is_plain(form) and not form.bands:
        lazy = isinstance(held, JpegImageFile) and held.mode == form.mode
        return held if lazy else held.convert(form.mode)
    known = held if held.mode in MODES.values() else held.convert("RGB")
    return fitted(Bands(bands_first(np.asarray(known)), (0, 255), colours=True), form)


def without_nodata(image: Any) -> Image.Image | Bands:
    """A TIFF of 8 bits, in which GDAL may have said what pixels without a value hold."""
    nodata, shown = byte_nodata_of(image.tag_v2.get(NODATA)), upright(image)
    if nodata is None or image.mode not in (*MODES.values(), "P"):
        return shown
    held = bands_first(np.asarray(shown))  # of a palette the numbers of its colours, which nodata means
    held = 255 - held if image.tag_v2.get(_PHOTOMETRIC) == 0 else held  # white is 0 there, and PIL turns them round
    known = held != nodata
    values = bands_first(np.asarray(shown.convert("RGB") if image.mode == "P" else shown))
    return Bands(values, (0, 255), colours=len(values) > 1, known=known)


def with_alpha(image: Image.Image) -> Image.Image:
    """Colours and alpha of an image that has both.

    Raises:
        ValueError: it has not; an alpha is not made up.
    """
    colours = image if image.mode in (*MODES.values(), "LA") else image.convert("RGB")
    if image.mode in ("L", "LA") or not image.has_transparency_data:
        raise ValueError(_UNFIT.format(len(colours.getbands()), 4))
    return image.convert("RGBA")


def _has_more(image: Any) -> bool:
    """Whether a TIFF has pages or bands that PIL does not show, or takes for an alpha that they are not."""
    samples, extras = image.tag_v2.get(_SAMPLES, 1), image.tag_v2.get(_EXTRAS) or (0,)
    try:
        pages = image.n_frames
    except Exception:  # a page is damaged, of which tifffile says more than PIL
        return True
    return pages > 1 or samples > len(image.getbands()) or (image.mode == "RGBA" and extras[0] == 0)


def _is_signed_byte(image: Any) -> bool:
    """Whether a TIFF has signed samples of 8 bits, which PIL takes as unsigned."""
    return image.mode not in _DEEP and image.tag_v2.get(_FORMAT, (1,))[0] == 2


def _is_plain(form: Form) -> bool:
    """Whether images of 8 bits are PIL's in this form."""
    return form.mode is not None and form.scale == Scale()


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


# ---- what a model takes


def fitted(bands: Bands, form: Form, part: bool = False) -> Image_:
    """Bands -> an image in the form wanted.

    Args:
        part: they are cut out of an image.

    Raises:
        ValueError: it has other bands than are wanted.
    """
    count, wanted = len(bands.values), form.channels
    if form.bands:
        if max(form.bands) > count:
            raise ValueError(f"it has {counted(count, 'bands')}, and --bands asks for number {max(form.bands)}")
        bands = bands.chosen([band - 1 for band in form.bands])
    elif wanted not in (0, count) and not _recolours(count, wanted, bands.colours):
        raise ValueError(_UNFIT.format(count, wanted))
    alpha = bands.colours and not form.bands
    if bands.values.dtype == np.uint8 and _is_plain(form) and bands.is_plain() and (wanted != 4 or alpha):
        return as_image(bands.values).convert(form.mode)
    if bands.curved and form.scale.rule == "dtype":
        raise ValueError(f"{bands.curved}; {REMEDY}")
    empty = bands.empty()
    values = form.scale(bands.values, bands.levels, empty, part)
    values = 1 - values if bands.inverted else values
    scaled = torch.from_numpy(values if empty is None else np.where(empty, np.float32(0), values))
    return scaled if len(scaled) == wanted or not wanted else _recoloured(scaled, wanted)


def _recolours(count: int, wanted: int, colours: bool) -> bool:
    """Whether bands become channels as PIL has it: grey images those of colours, and colours grey. Alpha may be left
    out, but is not made up.
    """
    return wanted in (1, 3) and (count == 1 or (colours and count <= 4))


def _recoloured(values: Tensor, channels: int) -> Tensor:
    """Grey or colours, with or without alpha -> grey or colours, as PIL does."""
    colours = values[: 1 if len(values) < 3 else 3]
    if channels == 1 and len(colours) == 3:
        return torch.einsum("chw,c->hw", colours, torch.tensor(_LUMA))[None]
    return colours.expand(channels, -1, -1).contiguous()
