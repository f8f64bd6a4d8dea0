"""What the stats command says of a data set, and that --mean auto takes what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
from PIL import Image

from hiermim_zoo import convert, pretrain, stats
from hiermim_zoo.data.kinds import open_images
from hiermim_zoo.data.statistics import measured

DRAWN = np.random.default_rng(0)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images of two depths, a damaged one and a copy."""
    colours = DRAWN.integers(0, 200, (2, 20, 30, 3), dtype=np.uint8)
    for n, pixels in enumerate(colours):
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    Image.fromarray(DRAWN.integers(100, 5000, (9, 8)).astype(np.uint16)).save(tmp_path / "deep.tif")
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    return tmp_path


def test_what_is_in_the_files_is_said(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats.main([str(mixed), "--workers", "0", "--json", str(mixed / "stats.json")])
    found = json.loads((mixed / "stats.json").read_text())
    assert (found["images"], found["looked at"]) == (5, 5)
    assert found["kinds"] == {".png": 3, ".tif": 1}
    assert found["depths"] == {"uint8": 3, "uint16": 1}
    assert found["channels"] == {"3": 3, "1": 1}
    assert found["sizes"] == {"smallest": [8, 9], "median": [30, 20], "largest": [30, 20]}
    assert found["numbers"][0] == 0
    assert found["numbers"][1] == np.asarray(Image.open(mixed / "deep.tif")).max()
    assert found["unreadable"] == {str(mixed / "bad.jpg"): "ValueError: it is no image, or damaged"}
    assert found["duplicates"] == [[str(mixed / "1.png"), str(mixed / "copy.png")]]
    assert found["mean"] is None
    said = capsys.readouterr().out
    for words in (
        "5 images",
        "uint8 3, uint16 1",
        "bad.jpg (ValueError: it is no image",
        "1.png = ",
        "differ in their",
    ):
        assert words in said


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path: Path) -> None:
    images = [DRAWN.integers(0, 256, (side, 7, 3), dtype=np.uint8) for side in (3, 50)]
    for n, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    pixels = np.concatenate([x.reshape(-1, 3) for x in images]) / 255
    found = stats.run(data=str(tmp_path), workers=1)
    assert np.allclose(found["mean"], pixels.mean(0), atol=1e-6)
    assert np.allclose(found["std"], pixels.std(0), atol=1e-6)
    assert not np.allclose(found["mean"], np.mean([x.mean((0, 1)) / 255 for x in images], 0), atol=1e-4)  # by image
    assert np.allclose(measured(open_images(str(tmp_path))).mean, pixels.mean(0))


def test_numbers_of_floats_are_said_where_no_rule_fits_them(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.linspace(-3, 9, 80 * 90, dtype=np.float32).reshape(80, 90))
    found = stats.run(data=str(tmp_path), workers=0)
    assert found["numbers"] == [-3, 9]
    assert "have no known range; say --scale" in found["no mean"]
    assert abs(stats.run(data=str(tmp_path), workers=0, scale="-3,9")["mean"][0] - 0.5) < 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_no_data_is_neither_the_least_nor_the_largest_number(dtype: type, tmp_path: Path) -> None:
    values = DRAWN.integers(50, 101, (20, 30)).astype(dtype)
    values[:2, :2] = [[50, 100], [50, 100]]
    mark = int(np.iinfo(dtype).min) if dtype == np.int16 else 7
    values[5:9] = mark
    for nodata, expected in ((str(mark), [50, 100]), (None, [mark, 100])):  # the second: a negative control
        tags = [(42113, "s", 0, nodata, False)] if nodata else []
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", extratags=tags)
        assert stats.run(data=str(tmp_path), workers=0)["numbers"] == expected
    tifffile.imwrite(
        tmp_path / "empty.tif",
        np.full_like(values, 3),
        photometric="minisblack",
        extratags=[(42113, "s", 0, "3", False)],
    )
    found = stats.run(data=str(tmp_path), workers=0)
    assert found["numbers"] == [mark, 100], "an image without values has no least number"
    assert "none of its pixels has a value" in found["not scaled"][str(tmp_path / "empty.tif")]


def test_what_has_no_files_is_refused() -> None:
    with pytest.raises(ValueError, match="digits: stats looks into files, so DATA is a folder"):
        stats.run(data="digits")


@pytest.mark.slow
def test_pretraining_measures_mean_and_deviation_and_writes_them_down(tmp_path: Path) -> None:
    for n in range(6):
        Image.fromarray(DRAWN.integers(0, 100, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
    run = {"steps": 1, "batch_size": 2, "workers": 0, "warmup": 0, "look_every": 0}
    folder = tmp_path.with_name("run of stats")  # not among the images
    pretrain.run(
        data=str(tmp_path),
        model="hivit_atto",
        output=folder,
        mean="auto",
        std="auto",
        **run,
    )
    config = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True).pretrained_cfg
    expected = measured(open_images(str(tmp_path)))
    assert np.allclose(config["mean"], expected.mean)
    assert np.allclose(config["std"], expected.std)
    assert not np.allclose(config["mean"], timm.data.IMAGENET_DEFAULT_MEAN, atol=0.1)
    (snapshot,) = (folder / "checkpoints").glob("*.pt")
    convert.run(source=str(snapshot), model="hivit_atto", output=tmp_path / "again")
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).pretrained_cfg
    assert (again["mean"], again["std"]) == (config["mean"], config["std"])
    with pytest.raises(ValueError, match="--mean auto measures all channels"):
        pretrain.run(data=str(tmp_path), model="hivit_atto", output=tmp_path / "x", mean=("auto", 0.5), **run)
