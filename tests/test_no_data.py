"""Pixels without a value become 0 and count for nothing; DICOM is read through what it says of itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from hiermim_zoo.data.decoding import Form, read_file
from hiermim_zoo.data.scale import Scale
from hiermim_zoo.data.stacks import parts_of

from .written import DEEP, SIX, by_range, read, tiff


@pytest.mark.parametrize("kind", ["pages", "one page"])
def test_pixels_without_a_value_are_0_and_count_for_nothing(kind: str) -> None:
    bands = SIX.copy() if kind == "pages" else SIX[:1].copy()
    bands[:, :3] = 9
    tag = [(42113, "s", 2, "9", False)]
    content = tiff(bands, photometric="minisblack", extratags=tag)
    empty = bands == 9
    expected = by_range(np.where(empty, 0, bands), 0, 65535)
    assert torch.equal(read(content, len(bands)), expected)
    low, high = bands[~empty].min(), bands[~empty].max()
    if kind == "one page":
        expected = torch.where(torch.from_numpy(empty), 0, by_range(bands, int(low), int(high)))
        assert torch.allclose(read(content, 1, "minmax"), expected, atol=1e-6)
        assert not torch.allclose(read(tiff(bands, photometric="minisblack"), 1, "minmax"), expected, atol=1e-6)
        ends = np.percentile(bands[~empty], [5, 95])
        expected = torch.where(torch.from_numpy(empty), 0, by_range(bands, *ends))
        assert torch.allclose(read(content, 1, "percentile:5,95"), expected, atol=1e-6)
    with pytest.raises(ValueError, match="none of its pixels has a value: all are no data, such as 9"):
        read(tiff(np.full_like(bands, 9), photometric="minisblack", extratags=tag), len(bands))


EIGHT = np.random.default_rng(3).integers(20, 250, (20, 30, 3), dtype=np.uint8)
EIGHT[:6] = 9


@pytest.mark.parametrize("kind", ["grey", "colours", "palette", "white is 0"])
def test_no_data_of_8_bits_counts_for_nothing(kind: str, tmp_path: Path) -> None:
    """Read by PIL, whole and by parts."""
    values = EIGHT if kind == "colours" else EIGHT[..., 0]
    shown = {"white is 0": 255 - values, "palette": values}.get(kind, values)  # palette: grey by number
    photometric = {"colours": "rgb", "palette": "palette", "white is 0": "miniswhite"}.get(kind, "minisblack")
    ramp = np.repeat(np.arange(256, dtype=np.uint16)[None] * 257, 3, 0)
    how: dict[str, Any] = {"photometric": photometric, "colormap": ramp if kind == "palette" else None}
    path, channels = tmp_path / "a.tif", 3 if kind in ("colours", "palette") else 1

    def found(nodata: str, scale: str = "dtype", array: Any = values, by_parts: bool = False) -> Any:
        path.write_bytes(tiff(array, **how, extratags=[(42113, "s", 0, nodata, False)] if nodata else []))
        form = Form(channels, Scale.parse(scale))
        if not by_parts:
            return read_file(path, form)
        with parts_of([str(path)], form) as image:
            return image.part(0, 0, 30, 20)

    first = np.moveaxis(np.atleast_3d(shown), -1, 0).repeat(channels // (3 if kind == "colours" else 1), 0)
    inside = np.zeros(first.shape, bool)
    inside[:, 6:] = True
    expected = torch.where(torch.from_numpy(inside), by_range(first, 0, 255), 0)
    assert torch.equal(found("9"), expected)
    assert torch.equal(found("9", by_parts=True), expected)
    stretched = found("9", "minmax")
    for band, values_of_it in zip(stretched, first, strict=True):
        low, high = int(values_of_it[6:].min()), int(values_of_it[6:].max())
        assert torch.allclose(band[6:], by_range(values_of_it[6:], low, high), atol=1e-6)
        assert not band[:6].any()
    assert not torch.allclose(found("", "minmax"), stretched, atol=1e-3), "negative control: without the mark"
    for none in ("", "-9999", "9.5"):
        assert isinstance(found(none), Image.Image), "what 8 bits cannot hold marks nothing"
        assert np.array_equal(np.asarray(found(none)), np.asarray(found("", by_parts=True)))
    for scale in ("dtype", "minmax"):
        with pytest.raises(ValueError, match="none of its pixels has a value"):
            found("9", scale, np.full_like(values, 9))


def test_nan_may_stand_for_no_data() -> None:
    values = SIX[0] / np.float32(65535)
    values[0, :5] = np.nan
    content = tiff(values, extratags=[(42113, "s", 4, "nan", False)])
    assert torch.equal(read(content, 1, "0,1"), torch.from_numpy(np.nan_to_num(values))[None])
    with pytest.raises(ValueError, match="NaN or infinity"):
        read(tiff(values), 1, "0,1")


def dicom(pixels: np.ndarray[Any, Any], **about: Any) -> bytes:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    frames = pixels.shape[0] if pixels.ndim == 3 else None
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape[-2:], 1
    if frames:
        data.NumberOfFrames = frames
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PhotometricInterpretation, data.PixelData = "MONOCHROME2", pixels.astype("<u2").tobytes()
    for key, value in about.items():
        setattr(data, key, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_dicom_is_read_through_its_window() -> None:
    stored = DEEP // 16
    hounsfield = stored.astype(np.float64) * 2 - 1024
    ct = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    whole = read(dicom(stored, **ct))[0]
    assert torch.allclose(whole, by_range(hounsfield, -1024, 4095 * 2 - 1024))
    lung = {**ct, "WindowCenter": [-600, 40], "WindowWidth": [1500, 400]}
    assert torch.allclose(read(dicom(stored, **lung))[0], by_range(hounsfield, -1350, 149), atol=1e-6)
    assert torch.allclose(
        read(dicom(stored, **lung, VOILUTFunction="LINEAR_EXACT"))[0], by_range(hounsfield, -1350, 150), atol=1e-6
    )
    assert not torch.allclose(read(dicom(stored, **lung))[0], whole, atol=1e-2)  # negative control
    assert torch.allclose(
        read(dicom(stored, **lung), scale="-1000,400")[0], by_range(hounsfield, -1000, 400), atol=1e-6
    )
    negative = read(dicom(stored, **lung, PhotometricInterpretation="MONOCHROME1"))[0]
    assert torch.allclose(negative, 1 - by_range(hounsfield, -1350, 149), atol=1e-6)
    curved = dicom(stored, **lung, VOILUTFunction="SIGMOID")
    with pytest.raises(ValueError, match=r"its window .SIGMOID.* is no straight line; say --scale"):
        read(curved)
    for scale in ("-1000,400", "minmax", "percentile:1,99"):  # the window is not used
        assert torch.equal(read(curved, scale=scale), read(dicom(stored, **lung), scale=scale))


@pytest.mark.parametrize("limit", [None, 4, 40])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_what_dicom_was_filled_up_with_has_no_value(kind: str, limit: int | None) -> None:
    stored = DEEP // 16 + 6  # 6 to 4075
    stored[:, :3], stored[0, 5] = 20, 4
    about = {"RescaleSlope": 2, "RescaleIntercept": -1024, "PhotometricInterpretation": kind}
    padding = {"PixelPaddingValue": 20} | ({} if limit is None else {"PixelPaddingRangeLimit": limit})
    low, high = sorted((20, 20 if limit is None else limit))
    empty = (stored >= low) & (stored <= high)
    assert empty[:, :3].all()
    assert (limit is None) == (empty.sum() == 24 * 3), "a range has more"
    kept = stored[~empty]
    for scale, ends in (("dtype", (0, 4095)), ("minmax", (int(kept.min()), int(kept.max())))):
        expected = by_range(stored, *ends)
        expected = 1 - expected if kind == "MONOCHROME1" else expected
        expected[torch.from_numpy(empty)] = 0
        found = read(dicom(stored, **about, **padding), scale=scale)[0]
        assert torch.allclose(found, expected, atol=1e-6)
        plain = read(dicom(stored, **about), scale=scale)[0]
        assert not torch.allclose(plain, expected, atol=1e-3), "negative control: without the mark"
    with pytest.raises(ValueError, match="none of its pixels has a value"):
        read(dicom(np.full_like(stored, 20), **about, **padding))


def test_frames_of_dicom_are_bands_and_colours_are_colours() -> None:
    frames = np.stack([DEEP // 16, DEEP // 32])
    assert torch.equal(read(dicom(frames), 2), by_range(frames, 0, 4095))
    assert torch.equal(read(dicom(frames), 1, bands=(2,))[0], by_range(frames[1], 0, 4095))
    colours = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    about = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    content = dicom(DEEP, **about, PhotometricInterpretation="RGB", PixelData=colours.tobytes())
    assert np.array_equal(np.asarray(read(content, 3)), colours)
