"""Parts of images are read without the rest, and have the numbers that they have in the whole, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from hiermim_zoo.data import parts
from hiermim_zoo.data.decoding import Form, part_of, read_file
from hiermim_zoo.data.kinds import open_images
from hiermim_zoo.data.parts import Parts, by_parts
from hiermim_zoo.data.scale import Scale
from hiermim_zoo.data.seeds import random_states, seed_all
from hiermim_zoo.data.stacks import parts_of
from hiermim_zoo.data.transforms import make_transform, random_part

NOISE = np.random.default_rng(0).integers(0, 65536, (6, 70, 90)).astype(np.uint16)  # [C, H, W]
NODATA = [(42113, "s", 0, "7", False)]
BOXES = [(0, 0, 90, 70), (13, 9, 14, 10), (31, 17, 90, 70), (0, 30, 40, 34), (16, 16, 48, 48)]
ANY_RANGE = Scale("range", -40000, 70000)


def tiff(values: np.ndarray[Any, Any], **how: Any) -> Callable[[Path], None]:
    """Writes a TIFF of bands [C, H, W], or of [H, W, C] with ``planarconfig="contig"``."""
    how = {"photometric": "minisblack", **how}
    shown = np.moveaxis(values, 0, -1) if how.get("planarconfig") == "contig" else values
    return lambda path: tifffile.imwrite(path, shown, **how)


def eight(count: int) -> np.ndarray[Any, Any]:
    return (NOISE[:count] >> 8).astype(np.uint8)


def holed() -> np.ndarray[Any, Any]:
    values = NOISE.copy()
    values[:, :40] = 7
    return values


CASES: dict[str, tuple[Callable[[Path], None], Form]] = {
    "npy": (lambda path: np.save(path, NOISE), Form(6, axes="chw")),
    "npy, last": (lambda path: np.save(path, np.moveaxis(NOISE, 0, -1)), Form(6, axes="hwc")),
    "npy, fortran": (lambda path: np.save(path, np.asfortranarray(NOISE)), Form(6, axes="chw")),
    "npy, one band": (lambda path: np.save(path, NOISE[0]), Form(1)),
    "pages": (tiff(NOISE), Form(6)),
    "strips": (tiff(NOISE, planarconfig="contig", rowsperstrip=16), Form(6)),
    "deflate": (tiff(NOISE, planarconfig="contig", rowsperstrip=16, compression="zlib"), Form(6)),
    "lzw, predicted": (tiff(NOISE, planarconfig="separate", compression="lzw", predictor=True), Form(6)),
    "tiles": (tiff(NOISE, planarconfig="contig", tile=(16, 32)), Form(6)),
    "tiles, apart": (tiff(NOISE, planarconfig="separate", tile=(32, 16), compression="zlib"), Form(6)),
    "big": (tiff(NOISE, bigtiff=True, byteorder=">", rowsperstrip=7), Form(2, bands=(6, 1))),
    "floats": (tiff(NOISE.astype(np.float32), tile=(32, 32)), Form(6, ANY_RANGE)),
    "signed": (tiff(NOISE.astype(np.int16), compression="zlib"), Form(6, ANY_RANGE)),
    "one deep band": (tiff(NOISE[0], rowsperstrip=5), Form(1)),
    "colours": (tiff(np.moveaxis(eight(3), 0, -1), photometric="rgb", rowsperstrip=8), Form(3)),
    "colours, tiles": (tiff(np.moveaxis(eight(3), 0, -1), photometric="rgb", tile=(32, 16)), Form(3)),
    "colours as grey": (tiff(np.moveaxis(eight(3), 0, -1), photometric="rgb", compression="zlib"), Form(1)),
    "colours by a rule": (tiff(np.moveaxis(eight(3), 0, -1), photometric="rgb"), Form(3, Scale("range", 10, 200))),
    "grey": (tiff(eight(1)[0], compression="packbits"), Form(3)),
    "eight bits": (tiff(eight(6)), Form(6)),
    "no data": (tiff(holed(), extratags=NODATA), Form(6)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_parts_are_those_of_the_whole(case: str, tmp_path: Path) -> None:
    write, form = CASES[case]
    path = tmp_path / ("a.npy" if "npy" in case else "a.tif")
    write(path)
    whole, held = read_file(path, form), by_parts(str(path), form, lossy=False)
    assert held is not None, "it is read by parts"
    with Parts(held, form) as image:
        assert image.size == (90, 70)
        for box in BOXES:
            found, expected = image.part(*box), part_of(whole, *box)
            assert np.array_equal(np.asarray(found), np.asarray(expected)), box
            assert type(found) is type(expected) or isinstance(found, Image.Image)
        assert np.array_equal(np.asarray(image.whole()), np.asarray(whole))
        wrong = part_of(whole, 14, 9, 15, 10)  # negative control: the next pixel
        assert not np.array_equal(np.asarray(image.part(13, 9, 14, 10)), np.asarray(wrong)) or case == "no data"


NOT_SO: dict[str, Callable[[Path], None]] = {  # another reader has its own idea of them, or there are no parts
    "inverted": tiff(eight(1)[0], photometric="miniswhite"),
    "alpha": tiff(np.moveaxis(eight(4), 0, -1), photometric="rgb", extrasamples=("unassalpha",)),
    "turned": tiff(eight(1)[0], extratags=[(274, "H", 1, 6, True)]),
    "jpeg": tiff(np.moveaxis(eight(3), 0, -1), photometric="ycbcr", compression="jpeg", tile=(32, 32)),
    "png": lambda path: Image.fromarray(eight(1)[0]).save(path, "PNG"),
    "cut off": lambda path: path.write_bytes(b"II*\0\x08\0\0\0"),
}


@pytest.mark.parametrize("case", NOT_SO)
def test_what_others_read_otherwise_has_no_parts(case: str, tmp_path: Path) -> None:
    NOT_SO[case](tmp_path / "a.tif")
    assert by_parts(str(tmp_path / "a.tif"), Form(3), lossy=False) is None


def test_only_what_a_part_needs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiff(np.moveaxis(eight(3), 0, -1), photometric="rgb", tile=(16, 16), compression="zlib")(tmp_path / "a.tif")
    held: Any = by_parts(str(tmp_path / "a.tif"), Form(3), lossy=False)
    decoded: list[int] = []
    original = held._decoded
    monkeypatch.setattr(held, "_decoded", lambda *a: decoded.append(a[2]) or original(*a))
    held.held(20, 33, 40, 47)
    held.close()
    assert decoded == [2 * 6 + 1, 2 * 6 + 2], "two tiles of 30"


@pytest.fixture
def large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of files that count as large."""
    monkeypatch.setattr(parts, "LARGE", 1)
    (tmp_path / "x").mkdir()
    tiff(NOISE[:2], compression="zlib")(tmp_path / "x" / "a.tif")
    tiff(NOISE[2:4], planarconfig="contig", rowsperstrip=8)(tmp_path / "x" / "b.tif")
    np.save(tmp_path / "x" / "c.npy", NOISE[4:])
    tiff(holed()[:2], extratags=NODATA)(tmp_path / "x" / "d.tif")
    return str(tmp_path)


@pytest.mark.parametrize("kind", ["pre-training", "fine-tuning"])
def test_random_parts_are_those_of_decoded_images(large_ones: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same random numbers, of which as many are drawn."""
    if kind == "pre-training":
        transform = random_part((2, 24, 24), (0.05, 0.6), "bicubic")
    else:
        transform = make_transform((2, 24, 24), is_training=True, interpolation="random", mean=(0.5,) * 2, std=(1,) * 2,
                                   color_jitter=None, scale=(0.05, 0.6), use_prefetcher=True)  # fmt: skip
    source = open_images(large_ones, form=Form(2, axes="chw"))

    def made(position: int, seed: int, lazily: bool) -> tuple[torch.Tensor, Any]:
        monkeypatch.setattr(parts, "LARGE", 1 if lazily else 2**40)
        image, _ = source.read(position, seed)
        assert isinstance(image, Parts) == lazily
        seed_all(seed)
        return torch.as_tensor(transform(image)), random_states()

    for position in range(len(source)):
        for seed in range(6):
            (part, after), (whole, then) = (made(position, seed, lazily) for lazily in (True, False))
            assert torch.equal(part, whole)
            assert after[0] == then[0]
            assert torch.equal(after[2], then[2])
    assert not torch.equal(made(0, 0, True)[0], made(0, 1, True)[0])  # negative control: another seed


def test_images_that_are_stretched_by_all_of_their_pixels_are_read_whole(large_ones: str) -> None:
    source = open_images(large_ones, form=Form(2, Scale("minmax"), axes="chw"))
    assert not isinstance(source.read(0, 0)[0], Parts)
    by_type: Any = open_images(large_ones, form=Form(2, axes="chw")).read(0, 0)[0]
    assert isinstance(by_type, Parts)
    by_type.close()


def test_stacks_of_large_files_are_read_by_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LARGE", 1)
    for n, name in enumerate(("red", "nir")):
        tiff(NOISE[n], compression="zlib", rowsperstrip=8)(tmp_path / f"a_{name}.tif")
    source = open_images(str(tmp_path), form=Form(2, stack=("red", "nir")))
    image, whole = source.read(0, 0)[0], source.read(0)[0]
    assert isinstance(image, Parts)
    with image:
        assert torch.equal(image.part(5, 6, 50, 40), part_of(whole, 5, 6, 50, 40))


def test_the_bound_is_that_of_a_part(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", NOISE[0])
    form = Form(1, max_pixels=1000)
    before = Image.MAX_IMAGE_PIXELS
    try:
        with pytest.raises(ValueError, match="90 x 70 pixels are more than 1000"):
            read_file(tmp_path / "a.npy", form)
        with parts_of([str(tmp_path / "a.npy")], form) as image:
            assert np.asarray(image.part(0, 0, 20, 20)).shape == (1, 20, 20)
            with pytest.raises(ValueError, match="80 x 20 pixels are more than 1000"):
                image.part(0, 0, 80, 20)
        by_extremes = Form(1, Scale("minmax"), max_pixels=1000)
        with pytest.raises(ValueError, match=r"--max-pixels allows them; so does --scale LOW,HIGH"):
            parts_of([str(tmp_path / "a.npy")], by_extremes)
    finally:
        Image.MAX_IMAGE_PIXELS = before
