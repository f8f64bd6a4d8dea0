"""What rasterio reads: JPEG 2000 of many bands or odd depths, VRT, ERDAS, ENVI; masks of GeoTIFFs, which it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hiermim_zoo.data import rasters
from hiermim_zoo.data.decoding import Form, part_of, read_file
from hiermim_zoo.data.kinds import open_images
from hiermim_zoo.data.parts import Parts, by_parts
from hiermim_zoo.data.scale import Scale

rasterio: Any = pytest.importorskip("rasterio", reason="rasterio is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

NOISE = np.random.default_rng(0).integers(1, 65536, (5, 70, 90)).astype(np.uint16)  # [C, H, W]


def written(path: Path, values: np.ndarray[Any, Any], driver: str, mask: Any = None, **how: Any) -> Path:
    count, height, width = values.shape
    with rasterio.open(path, "w", driver, width, height, count, dtype=values.dtype, **how) as file:
        file.write(values)
        if mask is not None:
            file.write_mask(mask)
    return path


def exactly(values: np.ndarray[Any, Any], largest: float = 65535) -> torch.Tensor:
    return torch.from_numpy((values / largest).astype(np.float32))


@pytest.mark.parametrize(("driver", "suffix"), [("JP2OpenJPEG", "jp2"), ("HFA", "img"), ("ENVI", "img")])
@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_each_band_is_read_at_full_depth(driver: str, suffix: str, bands: int, tmp_path: Path) -> None:
    how = {"QUALITY": "100", "REVERSIBLE": "YES"} if suffix == "jp2" else {}
    path = written(tmp_path / f"a.{suffix}", NOISE[:bands], driver, **how)
    found = read_file(path, Form(bands))
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, exactly(NOISE[:bands]))
    assert not torch.equal(found, exactly(NOISE[:bands] >> 8 << 8)), "negative control: 8 of the 16 bits"
    if bands == 5:
        assert torch.equal(read_file(path, Form(2, bands=(4, 1))), exactly(NOISE[[3, 0]]))
        assert len(open_images(str(tmp_path), form=Form(5))) == 1, "files beside it are no images"
    held = by_parts(str(path), Form(bands), lossy=False)
    if (suffix, bands) == ("jp2", 1):
        assert held is None, "PIL reads it"
        return
    assert held
    with Parts(held, Form(bands)) as image:
        assert torch.equal(torch.as_tensor(image.part(3, 60, 80, 70)), part_of(found, 3, 60, 80, 70))


def test_jpeg_2000_of_15_bits_is_not_shifted(tmp_path: Path) -> None:
    """As Sentinel-2 has it. PIL would give twice the numbers."""
    how = {"QUALITY": "100", "REVERSIBLE": "YES", "NBITS": 15}
    path = written(tmp_path / "a.jp2", NOISE[:1] >> 1, "JP2OpenJPEG", **how)
    assert torch.equal(read_file(path, Form(1)), exactly(NOISE[:1] >> 1, 32767))
    expected = np.clip((NOISE[:1] >> 1) / 10000, 0, 1).astype(np.float32)
    assert np.array_equal(read_file(path, Form(1, Scale("range", 0, 10000))), expected)
    shifted = np.asarray(Image.open(path))  # negative control
    assert np.array_equal(shifted, (NOISE[0] >> 1) * 2)


def test_jpeg_2000_of_8_bits_is_an_image_as_ever(tmp_path: Path) -> None:
    """Also where PIL fails to decode what GDAL wrote."""
    colours = (NOISE[:3] >> 8).astype(np.uint8)
    path = written(tmp_path / "a.jp2", colours, "JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    found = read_file(path, Form(3))
    assert isinstance(found, Image.Image)
    assert np.array_equal(np.moveaxis(np.asarray(found), -1, 0), colours)


def vrt(path: Path, source: str, *nodata: int, more: str = "") -> Path:
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{n}"><NoDataValue>{value}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{source}</SourceFilename><SourceBand>{n}</SourceBand></SimpleSource>'
        f"</VRTRasterBand>"
        for n, value in enumerate(nodata, start=1)
    )
    path.write_text(f'<VRTDataset rasterXSize="90" rasterYSize="70">{bands}{more}</VRTDataset>')
    return path


def test_each_band_has_a_mark_of_its_own_for_no_data(tmp_path: Path) -> None:
    values = NOISE[:2].copy()
    values[0, :5], values[1, :, :7] = 11, 12
    values[1, 30, 40] = 11  # a value, in this band
    written(tmp_path / "a.tif", values, "GTiff")
    path = vrt(tmp_path / "both.vrt", "a.tif", 11, 12)
    expected = np.stack([np.where(values[0] == 11, 0, values[0]), np.where(values[1] == 12, 0, values[1])])
    found = read_file(path, Form(2))
    assert torch.equal(torch.as_tensor(found), exactly(expected))
    wrong = read_file(vrt(tmp_path / "one.vrt", "a.tif", 11, 11), Form(2))
    assert not torch.equal(torch.as_tensor(found), torch.as_tensor(wrong)), "negative control: one mark for both"
    with pytest.raises(ValueError, match="it has 2 bands, and the model takes 4"):
        read_file(path, Form(4))


@pytest.mark.parametrize("source", ["/vsicurl/http://example.org/a.tif", "https://example.org/a.tif"])
def test_a_vrt_that_leads_away_from_this_disk_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names what does not lie on this disk"):
        read_file(vrt(tmp_path / "a.vrt", source, 0), Form(1))
    with pytest.raises(ValueError, match=r"missing\.tif"):
        read_file(vrt(tmp_path / "a.vrt", "missing.tif", 0), Form(1))


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("kind", ["uint16", "uint8"])
def test_masks_in_geotiffs_are_seen(bands: int, kind: str, tmp_path: Path) -> None:
    """By tifffile, which reads TIFFs as ever."""
    values = (NOISE[:bands] >> (8 if kind == "uint8" else 0)).astype(kind)
    mask = np.full((70, 90), 255, np.uint8)
    mask[10:30, :40] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = written(tmp_path / "a.tif", values, "GTiff", mask, photometric="MINISBLACK")
    found = read_file(path, Form(bands))
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, exactly(np.where(mask, values, 0), np.iinfo(kind).max))
    assert not torch.equal(found, exactly(values, np.iinfo(kind).max)), "negative control: without the mask"
    held = by_parts(str(path), Form(bands), lossy=False)
    assert held
    with Parts(held, Form(bands)) as image:
        assert torch.equal(torch.as_tensor(image.part(30, 20, 60, 50)), part_of(found, 30, 20, 60, 50))


def test_who_lacks_rasterio_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.img", NOISE, "HFA")

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(rasters.extra.__globals__["importlib"], "import_module", missing)
    with pytest.raises(ValueError, match=r'read by rasterio: pip install "hiermim-zoo\[geo\]"'):
        read_file(path, Form(5))
