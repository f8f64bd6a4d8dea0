"""Files of images become what a model takes: every depth, any number of channels, and nothing clipped in silence."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hiermim_zoo.data.decoding import Form, read_file
from hiermim_zoo.data.kinds import open_images
from hiermim_zoo.data.scale import Scale
from hiermim_zoo.data.stacks import parts_of
from hiermim_zoo.data.transforms import make_transform, random_part

from .written import DEEP, SIX, by_range, encoded, npy, npz, pixels, png16, read, tiff

MEAN = {"mean": (0.0,), "std": (1.0,)}


# ---- depth


@pytest.mark.parametrize(
    ("content", "largest"),
    [
        (encoded(DEEP, "PNG"), 65535),
        (encoded(DEEP, "TIFF"), 65535),
        (encoded(DEEP, "JPEG2000"), 65535),
        (b"P5\n16 24\n65535\n" + DEEP.astype(">u2").tobytes(), 65535),
        (npy(DEEP), 65535),
        (npz(image=DEEP), 65535),
        (npy(DEEP > 1000), 1),
    ],
    ids=["png", "tiff", "jpeg 2000", "pgm", "npy", "npz", "booleans"],
)
def test_integers_are_scaled_by_what_their_type_can_hold(content: bytes, largest: int) -> None:
    expected = by_range((DEEP > 1000) if largest == 1 else DEEP, 0, largest)
    found = read(content)
    assert torch.equal(found[0], expected)
    assert len(found[0].unique()) == len(expected.unique()), "at full depth"
    assert not torch.equal(read(content, scale="0,4000")[0], expected) or largest == 1  # the wrong rule


def test_files_that_say_how_many_of_their_bits_are_used_are_believed() -> None:
    packed = np.stack([DEEP // 16, DEEP // 16], -1)  # 12 bits of two numbers in three bytes
    first, second = packed[..., ::2, 0].astype(np.uint32), packed[..., 1::2, 0].astype(np.uint32)
    numbers = (first << 12 | second).astype(">u4").view(np.uint8).reshape(24, 8, 4)[..., 1:].tobytes()
    tags = [(256, 4, 16), (257, 4, 24), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, 24), (279, 4, len(numbers))]  # fmt: skip
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1)
        + struct.pack(">HH" if kind == 3 else ">I", *((value, 0) if kind == 3 else (value,)))
        for tag, kind, value in tags
    )
    directory = struct.pack(">H", len(tags)) + entries + bytes(4)
    twelve = b"MM\0*" + struct.pack(">I", 8 + len(numbers)) + numbers + directory
    assert torch.equal(read(twelve)[0], by_range(DEEP // 16, 0, 4095))
    assert torch.equal(read(encoded(DEEP // 16, "TIFF"))[0], by_range(DEEP // 16, 0, 65535))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encoded(DEEP.astype(np.int32), "TIFF"), "0 to 65110"),
        (encoded(DEEP.astype(np.float32) / 65535, "TIFF"), "0 to 0.99351"),
        (npy(DEEP.astype(np.float64)), "0 to 65110"),
        (npy(DEEP.astype(np.int16)), "-32726 to 32640"),
    ],
)
def test_numbers_without_a_known_range_are_refused_with_the_remedy(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=rf"{said}.* have no known range; say --scale LOW,HIGH") as refused:
        read(content)
    assert "\n" not in str(refused.value)
    assert 0 <= read(content, scale="minmax").min() < read(content, scale="minmax").max() <= 1


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_signed_tiffs_keep_their_negative_numbers(dtype: Any, compression: str | None, tmp_path: Path) -> None:
    values = (DEEP.astype(np.int32) // (1 if dtype == np.int16 else 256)).astype(dtype)  # half of them below 0
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, compression=compression))
    expected = by_range(values.astype(np.float64), -32768, 32767)
    form = Form(1, Scale("range", -32768, 32767))
    with parts_of([str(path)], form) as image:
        by_parts = image.part(0, 0, 16, 24)
    for found in (torch.as_tensor(read_file(path, form))[0], torch.as_tensor(by_parts)[0]):
        assert torch.allclose(found, expected, atol=1e-6)
        clipped = by_range(values.clip(0).astype(np.float64), -32768, 32767)
        assert not torch.allclose(found, clipped, atol=1e-4), "negative control"
    with pytest.raises(ValueError, match="have no known range; say --scale LOW,HIGH"):
        read_file(path, Form(1))
    with parts_of([str(path)], Form(1)) as image, pytest.raises(ValueError, match="have no known range"):
        image.part(0, 0, 8, 8)


def test_rules_are_what_they_say() -> None:
    tiles = (3, 5)  # 72 x 80 pixels: sides that no band could have
    image = npy(np.stack([np.tile(x, tiles) for x in (DEEP.astype(np.float32), 2 - DEEP.astype(np.float32) / 7)]))
    first = np.tile(DEEP, tiles).astype(np.float64)
    second = np.tile(2 - DEEP.astype(np.float32) / 7, tiles).astype(np.float64)
    found = read(image, 2, "minmax")
    assert torch.allclose(found, torch.stack([by_range(first, 0, 65110), by_range(second, second.min(), 2)]))
    found = read(image, 2, "percentile:2,98")
    ends = np.percentile(first, [2, 98])
    assert torch.allclose(found[0], by_range(first, *ends))
    assert torch.allclose(read(image, 2, "-10,1000")[0], by_range(first, -10, 1000))


@pytest.mark.parametrize("text", ["", "max", "1", "1,2,3", "5,1", "percentile:", "percentile:99,1", "percentile:0,101",
                                  "dtype:0,1", "nan,1", "0,inf"])  # fmt: skip
def test_rules_that_make_no_sense_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"--scale"):
        Scale.parse(text)


def test_a_rule_reads_as_it_is_written() -> None:
    for text in ("dtype", "minmax", "percentile:1,99.5", "0,4095", "-3,7"):
        assert str(Scale.parse(text)) == text


@pytest.mark.parametrize(
    ("values", "scale", "message"),
    [
        (np.full((4, 5), np.nan, np.float32), "minmax", "NaN or infinity"),
        (np.full((4, 5), np.inf), "0,1", "NaN or infinity"),
        (np.full((4, 5), 7.0), "minmax", "all of its values are 7, so --scale minmax has nothing to stretch"),
        (np.full((4, 5), 7, np.uint16), "percentile:1,99", "all of its values are 7"),
    ],
)
def test_images_that_cannot_be_scaled_are_named(values: Any, scale: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(npy(values), scale=scale)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_8_bits_stay_what_they_were(mode: str, channels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image, file = Image.fromarray(noise).convert(mode), io.BytesIO()
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    if channels == 4 and mode != "RGBA":
        bands = 1 if mode == "L" else 3
        for scale in ("dtype", "minmax"):
            with pytest.raises(ValueError, match=f"it has {bands} bands, and the model takes 4 channels") as refused:
                read(file.getvalue(), channels, scale)
            assert "\n" not in str(refused.value)
        return
    found = read(file.getvalue(), channels)
    assert found.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    assert found.tobytes() == Image.open(file).convert(found.mode).tobytes()


def test_transparent_colours_of_a_palette_are_alpha() -> None:
    image, file = Image.new("P", (3, 2), 1), io.BytesIO()
    image.putpalette([0, 0, 0, 50, 60, 70])
    image.putpixel((1, 1), 0)
    image.save(file, "PNG", transparency=0)
    found = np.asarray(read(file.getvalue(), 4))
    assert found[0, 0].tolist() == [50, 60, 70, 255]
    assert (found[..., 3] == 0).sum() == 1


def test_of_a_folder_of_mixed_channels_those_with_alpha_are_read(tmp_path: Path) -> None:
    for mode in ("RGBA", "RGB", "L"):
        Image.new(mode, (4, 4)).save(tmp_path / f"{mode}.png")
    source = open_images(str(tmp_path), form=Form(4))
    names = [Path(source.name_of(n)).stem for n in range(3)]
    assert source.read(names.index("RGBA"))[0].mode == "RGBA"
    for mode, bands in (("RGB", 3), ("L", 1)):
        with pytest.raises(ValueError, match=f"it has {bands} bands, and the model takes 4 channels"):
            source.read(names.index(mode))


# ---- channels


COLOURS = np.random.default_rng(1).integers(0, 65536, (6, 5, 4)).astype(np.uint16)


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_pngs_of_16_bits_a_colour_keep_all_of_them(bands: int) -> None:
    pixels = COLOURS[..., :bands]
    colours = torch.from_numpy((pixels / 65535).astype(np.float32)).permute(2, 0, 1)
    assert torch.equal(read(png16(pixels), 3), colours[:3] if bands > 2 else colours[:1].expand(3, -1, -1))
    if bands == 4:
        assert torch.equal(read(png16(pixels), 4), colours)
    else:
        with pytest.raises(ValueError, match=f"it has {bands} bands, and the model takes 4 channels"):
            read(png16(pixels), 4)
    grey = torch.tensor([0.299, 0.587, 0.114]) @ colours[:3].flatten(1) if bands > 2 else colours[0].flatten()
    assert torch.allclose(read(png16(pixels), 1).flatten(), grey)


@pytest.mark.parametrize("shape", [(6, 70, 80), (70, 80, 6)])
def test_arrays_have_any_number_of_bands_first_or_last(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    first = torch.from_numpy(array if shape[0] == 6 else np.moveaxis(array, -1, 0)) / 255
    assert torch.allclose(read(npy(array), 6), first)
    assert torch.allclose(read(npy(array), 2, bands=(5, 1)), first[[4, 0]])
    with pytest.raises(ValueError, match="it has 6 bands, and the model takes 3 channels: choose with --bands"):
        read(npy(array), 3)
    with pytest.raises(ValueError, match="it has 6 bands, and --bands asks for number 7"):
        read(npy(array), 1, bands=(7,))
    colour = read(npy(array), 3, bands=(3, 2, 1))
    assert isinstance(colour, Image.Image), "8 bits and three channels are an image like any other"
    assert torch.equal(torch.from_numpy(np.array(colour)).permute(2, 0, 1) / 255, first[[2, 1, 0]])


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planes", ["pages", "contig", "separate"])
def test_tiffs_have_any_number_of_bands(planes: str, dtype: Any, compression: str | None) -> None:
    array = (SIX >> (8 if dtype == np.uint8 else 0)).astype(dtype)
    how: dict[str, Any] = {"photometric": "minisblack", "compression": compression}
    if planes != "pages":
        how |= {"planarconfig": planes}
    content = tiff(np.moveaxis(array, 0, -1) if planes == "contig" else array, **how)
    expected = by_range(array, 0, np.iinfo(dtype).max)
    assert torch.equal(read(content, 6), expected)
    assert torch.equal(read(content, 2, bands=(6, 2)), expected[[5, 1]])
    with pytest.raises(ValueError, match="it has 6 bands, and the model takes 3 channels: choose with --bands"):
        read(content, 3)


def test_tiffs_of_16_bits_a_colour_keep_all_of_them() -> None:
    colours = np.moveaxis(SIX[:3], 0, -1)
    content = tiff(colours, photometric="rgb")
    assert torch.equal(read(content, 3), by_range(SIX[:3], 0, 65535))
    assert not torch.equal((read(content, 3) * 255).byte() / 255, read(content, 3)), "not 8 bits"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tagged", [True, False])
def test_a_fourth_band_that_is_no_alpha_is_a_band(tagged: bool, dtype: Any, tmp_path: Path) -> None:
    """Near infrared beside colours, as aerial images have it."""
    array = (SIX[:4] >> (8 if dtype == np.uint8 else 0)).astype(dtype)
    content = tiff(np.moveaxis(array, 0, -1), photometric="rgb", extrasamples=["unspecified"])
    if not tagged:
        tag = struct.pack("<HHI", 338, 3, 1)
        assert content.count(tag) == 1
        content = content.replace(tag, struct.pack("<HHI", 65000, 3, 1))
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    expected = by_range(array, 0, np.iinfo(dtype).max)
    for form, wanted in ((Form(4), expected), (Form(3, bands=(4, 3, 2)), expected[[3, 2, 1]])):
        with parts_of([str(path)], form) as image:
            found = [pixels(read_file(path, form)), pixels(image.part(0, 0, 30, 20))]
        assert all(torch.equal(x, wanted) for x in found)
        assert not torch.equal(found[0], expected[: len(wanted)].flip(0)), "negative control: another order"
    with pytest.raises(ValueError, match="it has 4 bands, and the model takes 3 channels: choose with --bands"):
        read_file(path, Form(3))
    with parts_of([str(path)], Form(3)) as image, pytest.raises(ValueError, match="it has 4 bands"):
        image.part(0, 0, 8, 8)
    assert isinstance(read_file(path, Form(4)), Tensor), "PIL would weigh colours by the fourth"


def test_a_band_is_not_lost_where_tifffile_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.moveaxis((SIX[:4] >> 8).astype(np.uint8), 0, -1)
    content, alpha = (tiff(array, photometric="rgb", extrasamples=[kind]) for kind in ("unspecified", "unassalpha"))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"read by tifffile: pip install .hiermim-zoo\[images\]") as refused:
        read(content, 3)
    assert "\n" not in str(refused.value)
    assert np.array_equal(np.asarray(read(alpha, 4)), array), "alpha is read by PIL"
    assert np.array_equal(np.asarray(read(alpha, 3)), array[..., :3])


def test_axes_that_cannot_be_told_apart_are_asked_for() -> None:
    array = np.random.default_rng(0).integers(0, 256, (4, 9, 6), dtype=np.uint8)
    with pytest.raises(
        ValueError, match=r"\[4, 9, 6\] may be \[C, H, W\] or \[H, W, C\]: say --axes chw or --axes hwc"
    ):
        read(npy(array), 4)
    assert read(npy(array), 6, axes="hwc").shape == (6, 4, 9)
    assert read(npy(array), 4, axes="chw").shape == (4, 9, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros((2, 2, 2, 2))), "is no image"),
        (npy(np.array(["a"])), "is no image"),
        (npy(np.zeros((0, 4))), "is no image"),
        (npy(np.zeros((4, 4), np.complex64)), "is no image"),
        (npz(a=DEEP, b=DEEP), r"holds 2 arrays \(a.npy, b.npy\)"),
        (npy(DEEP).replace(b"(24, 16)", b"(99999, 99999)").replace(b"      \n", b"\n"), "9999"),
        (npy(DEEP).replace(b"(24, 16)", b"(9e1, 16)".replace(b"9e1", b"2400")), "the file ends before"),
        (npy(DEEP)[:200], "the file ends before"),
        (encoded(DEEP, "TIFF")[:300], "truncated|read|file"),
    ],
)
def test_files_that_are_no_images_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(Exception, match=message):
        read(content)


# ---- what is made of them


@pytest.mark.parametrize("channels", [1, 2, 6, 13])
def test_transforms_treat_tensors_as_images(channels: int) -> None:
    image = torch.rand(channels, 40, 50)
    evaluated = make_transform((channels, 16, 16), is_training=False, crop_pct=1.0, interpolation="bicubic",
                               mean=(0.5,) * channels, std=(0.25,) * channels)  # fmt: skip
    assert evaluated(image).shape == (channels, 16, 16)
    assert evaluated(torch.full((channels, 40, 50), 0.75)).allclose(torch.ones(()))
    trained = random_part((channels, 16, 16), (0.2, 1.0), "bicubic")
    assert trained(image).shape == (channels, 16, 16)
    assert trained(torch.full((channels, 40, 50), 0.2)).allclose(torch.tensor(51.0))


def test_a_tensor_and_its_image_are_transformed_alike() -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(photograph).resize((200, 160), Image.Resampling.BICUBIC)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    options = {"crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    evaluated = make_transform((3, 32, 32), is_training=False, **options)
    assert (evaluated(image) - evaluated(tensor)).abs().max() < 3 / 255 / 0.25
    assert (evaluated(image) - evaluated(tensor.flip(0))).abs().max() > 0.5  # the wrong image


def test_colours_of_8_bits_are_not_changed_in_others() -> None:
    trained = make_transform((3, 16, 16), is_training=True, auto_augment="rand-m9", use_prefetcher=True)
    with pytest.raises(ValueError, match="RandAugment changes colours of 8 bits"):
        trained(torch.rand(3, 20, 20))


# ---- folders


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png", ".thumbs/3.png", "cat/.hidden/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "cat/._1.png").write_bytes(b"Mac OS X")
    source = open_images(str(tmp_path))
    assert [Path(source.name_of(i)).name for i in range(len(source))] == ["1.png", "2.png"]
    assert (source.labels, source.class_names) == ([0, 1], ["cat", "dog"])


def test_images_are_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    source = open_images(str(tmp_path))
    for seed in (None, 0):
        assert np.array_equal(np.asarray(source.read(0, seed)[0]), np.rot90(pixels, -1))
