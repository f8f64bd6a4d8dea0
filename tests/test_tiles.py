"""extract --tile: images of any size go through the model tile by tile, and their maps are put together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from hiermim_zoo import extract
from hiermim_zoo.commands import extracting, loading
from hiermim_zoo.commands.extracting_tiles import Cutting

STRIDE, FAR = 16, 24  # pixels of a cell of the coarsest map; on how far pixels a cell of it depends


class Convolutions(nn.Module):
    """A model in which a cell depends on what is near: two maps, of 8 and 16 pixels a cell."""

    def __init__(self, chans: int = 3) -> None:
        super().__init__()
        self.in_chans = chans
        self.patch = nn.Conv2d(chans, 5, 8, 8)
        self.near = nn.Conv2d(5, 6, 3, 1, 1)
        self.down = nn.Conv2d(6, 7, 2, 2)
        half = (0.5,) * chans
        self.pretrained_cfg = {"input_size": (chans, 64, 64), "mean": half, "std": half, "interpolation": "bicubic"}

    def forward_intermediates(self, images: Tensor, indices: Any = None, **_: Any) -> list[Tensor]:
        first = self.near(self.patch(images).relu())
        maps = [first, self.down(first.relu())]
        return maps if indices is None else [maps[i] for i in indices]

    def forward_features(self, images: Tensor) -> Tensor:
        return self.forward_intermediates(images)[-1]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features.mean((2, 3))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Convolutions:
    torch.manual_seed(0)
    return in_every_name(monkeypatch, Convolutions().eval())


def in_every_name(monkeypatch: pytest.MonkeyPatch, model: Convolutions) -> Convolutions:
    """Every name stands for this model, or, where none of its values is asked for, for one like it."""
    monkeypatch.setattr(extracting, "make_model", lambda *_, **__: model)
    monkeypatch.setattr(loading, "make_model", lambda *_, **__: Convolutions(model.in_chans))
    return model


def extracted(paths: list[Path], output: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    options = {"what": ("pooled", "maps"), "tile": 64, "overlap": 32, "workers": 0, "batch_size": 3, **options}
    extract.run(images=[str(path) for path in paths], model="hivit_atto", output=output, force=True, **options)
    with safe_open(output, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def photograph(width: int, height: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole_maps(model: Convolutions, pixels: np.ndarray[Any, Any]) -> list[Tensor]:
    """Of the image as a whole, filled up with the mean to whole cells."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    height, width = pixels.shape[:2]
    image = F.pad((image - 0.5) / 0.5, (0, -width % STRIDE, 0, -height % STRIDE))
    with torch.inference_mode():
        maps = model.forward_intermediates(image)
    return [
        x[0, :, : math.ceil(height / cell), : math.ceil(width / cell)] for x, cell in zip(maps, (8, 16), strict=True)
    ]


def test_maps_are_those_of_the_whole_image(model: Convolutions, tmp_path: Path) -> None:
    sizes = [(200, 150), (64, 64), (40, 90), (65, 64), (96, 128), (7, 5), (161, 33)]
    files = []
    for width, height in sizes:
        files.append(tmp_path / f"{width}.png")
        Image.fromarray(photograph(width, height)).save(files[-1])
    found, about = extracted(files, tmp_path / "out")
    assert json.loads(about["files"]) == [str(file) for file in files]
    assert (about["tile"], about["overlap"]) == ("64", "32")
    assert found["pooled"].shape == (len(sizes), 7)
    for row, (width, height) in enumerate(sizes):
        filled = max(width, 64), max(height, 64)  # what is less than a tile is filled up to one
        pixels = photograph(width, height)
        whole = whole_maps(model, pixels)
        for level, expected in enumerate(whole):
            assert found[f"map{level}.{row}"].shape == expected.shape
            if filled == (width, height):
                assert torch.allclose(found[f"map{level}.{row}"], expected, atol=1e-5), (width, height)
    too_narrow, _ = extracted(files[:1], tmp_path / "out", overlap=0)  # negative control: edges of tiles show
    assert not torch.allclose(too_narrow["map0.0"], whole_maps(model, photograph(*sizes[0]))[0], atol=1e-3)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 32), (112, 32), (128, 64), (144, 64), (96, None), (256, None)])
def test_any_tile_and_overlap_give_the_maps_of_the_whole(
    tile: int, overlap: int | None, model: Convolutions, tmp_path: Path
) -> None:
    """A cell depends on less than half of each overlap around it, that of the last tile (shifted back) included."""
    with torch.no_grad():
        model.patch.bias.add_(1)  # what a convolution adds at an edge must show
    sizes = [(272, 304), (336, 256), (528, 320)]
    files = []
    for width, height in sizes:
        files.append(tmp_path / f"{width}.png")
        Image.fromarray(photograph(width, height)).save(files[-1])
    found, about = extracted(files, tmp_path / "out", tile=tile, overlap=overlap, what=("maps",))
    assert int(about["overlap"]) == (overlap or 32)
    bare, _ = extracted(files[2:], tmp_path / "out", tile=tile, overlap=0, what=("maps",))
    for row, size in enumerate(sizes):
        for level, expected in enumerate(whole_maps(model, photograph(*size))):
            assert torch.allclose(found[f"map{level}.{row}"], expected, atol=1e-5)
            if size == sizes[2]:  # negative control
                assert not torch.allclose(bare[f"map{level}.0"], expected, atol=1e-3)


def test_a_small_image_is_one_tile_filled_up_with_the_mean(model: Convolutions, tmp_path: Path) -> None:
    Image.fromarray(photograph(40, 30)).save(tmp_path / "a.png")
    found, _ = extracted([tmp_path / "a.png"], tmp_path / "out")
    image = torch.zeros(1, 3, 64, 64)
    image[0, :, :30, :40] = (torch.from_numpy(photograph(40, 30)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        maps = model.forward_intermediates(image)
    assert torch.allclose(found["map0.0"], maps[0][0, :, :4, :5], atol=1e-5)
    assert torch.allclose(found["pooled"], model.forward_head(maps[1]), atol=1e-5)


def test_pooled_features_are_the_mean_over_tiles_weighed_by_what_is_taken_from_each(
    model: Convolutions, tmp_path: Path
) -> None:
    pixels = photograph(112, 64)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found, _ = extracted([tmp_path / "a.png"], tmp_path / "out")
    tiles = torch.stack([torch.from_numpy(pixels[:, x : x + 64]) for x in (0, 32, 48)]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        pooled = model.forward_head(model.forward_features((tiles - 0.5) / 0.5))
    weights = torch.tensor([48, 16, 48]) / 112  # cuts at 48 and at 64: in the middle of what is shared, at whole cells
    expected = (weights[:, None] * pooled).sum(0)
    assert torch.allclose(found["pooled"][0], expected, atol=1e-5)
    assert not torch.allclose(pooled.mean(0), expected, atol=1e-4)  # negative control: all alike


def test_tiles_that_are_alike_have_the_pooled_features_of_one(model: Convolutions, tmp_path: Path) -> None:
    for name, size in (("many", (160, 96)), ("one", (32, 32))):
        Image.new("RGB", size, (90, 10, 200)).save(tmp_path / f"{name}.png")
    found, _ = extracted(sorted(tmp_path.glob("*.png")), tmp_path / "out", overlap=0, tile=32, what=("pooled",))
    assert set(found) == {"pooled"}
    assert torch.allclose(found["pooled"][0], found["pooled"][1], atol=1e-6)
    found, _ = extracted([tmp_path / "one.png"], tmp_path / "out", what=("maps",), levels=(1,))
    assert set(found) == {"map1.0"}


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 100, 128, 129, 500, 1000])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 32), (112, 32), (144, 64), (208, 96)])
def test_each_cell_is_taken_once_and_from_the_middle(length: int, tile: int, overlap: int) -> None:
    spans = Cutting(tile, overlap, 16, {}).spans(length)
    assert [span.first for span in spans] == [0, *(span.last for span in spans[:-1])]
    assert spans[-1].last == length
    for span in spans:
        assert span.start % 16 == 0 and span.start <= span.first < span.last <= span.start + tile  # noqa: PT018
        assert span.first == 0 or span.first - span.start >= overlap // 2
        assert span is spans[-1] or span.start + tile - span.last >= overlap // 2
    assert spans[-1].start + tile in (tile, math.ceil(length / 16) * 16)


def test_images_beyond_the_bound_are_cut_where_the_format_allows(model: Convolutions, tmp_path: Path) -> None:
    pixels, before = photograph(200, 150), Image.MAX_IMAGE_PIXELS
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(32, 32))
    Image.fromarray(pixels).save(tmp_path / "b.png")
    try:
        found, _ = extracted([tmp_path / "a.tif"], tmp_path / "out", max_pixels=64 * 64)
        assert torch.allclose(found["map0.0"], whole_maps(model, pixels)[0], atol=1e-5)
        with pytest.raises(ValueError, match=r"b\.png cannot be read .*more than 8192 pixels.* --max-pixels allows"):
            extracted([tmp_path / "b.png"], tmp_path / "png", max_pixels=64 * 64)
        with pytest.raises(ValueError, match=r"more than 8192.*so does --scale LOW,HIGH"):
            extracted([tmp_path / "a.tif"], tmp_path / "png", max_pixels=64 * 64, scale="minmax")
    finally:
        Image.MAX_IMAGE_PIXELS = before
    assert not (tmp_path / "png").exists()


def test_many_bands_in_a_file_or_a_stack_and_numbers_of_two_bytes(tmp_path: Path, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    in_every_name(monkeypatch, Convolutions(2).eval())
    values = np.random.default_rng(0).integers(0, 65536, (2, 100, 130)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "both.tif", values, photometric="minisblack", compression="zlib")
    for n, name in enumerate(("red", "nir")):
        tifffile.imwrite(tmp_path / f"one_{name}.tif", values[n], photometric="minisblack")
    both, _ = extracted([tmp_path / "both.tif"], tmp_path / "out")
    stack, about = extracted(sorted(tmp_path.glob("one_*.tif")), tmp_path / "out", stack="red,nir")
    assert json.loads(about["files"]) == [str(tmp_path / "one_red.tif")]
    assert torch.equal(both["map1.0"], stack["map1.0"])
    assert json.loads(about["images"]) == {"stack": "red,nir"}
    by_extremes, about = extracted([tmp_path / "both.tif"], tmp_path / "out", scale="minmax", bands=(1, 2))
    assert json.loads(about["images"]) == {"scale": "minmax", "bands": [1, 2]}
    assert torch.allclose(by_extremes["map1.0"], both["map1.0"], atol=1e-3)
    short, _ = extracted([tmp_path / "both.tif"], tmp_path / "out", dtype="bfloat16")
    assert torch.equal(short["map1.0"], both["map1.0"].bfloat16())


def test_workers_and_batches_change_nothing(model: Convolutions, tmp_path: Path) -> None:
    for n in range(3):
        Image.fromarray(photograph(100 + 30 * n, 90)).save(tmp_path / f"{n}.png")
    (tmp_path / "1b.png").write_bytes((tmp_path / "1.png").read_bytes()[:9000])
    found = [
        extracted([tmp_path], tmp_path / "out", on_error="skip", workers=workers, batch_size=3)[0] for workers in (0, 2)
    ]
    assert set(found[0]) == {"pooled", *(f"map{level}.{row}" for level in (0, 1) for row in range(3))}
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    with pytest.raises(ValueError, match=r"1b\.png cannot be read"):
        extracted([tmp_path], tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".png", ".png", ".png", ".png"], "nothing is left"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 72, "overlap": 32}, r"makes maps of \[\[9, 9\], \[4, 4\]\] cells of it"),
        (
            {"overlap": 8},
            "--tile 64 with an overlap of 8: .* stride, 16, .* one of 32 .*--tile 64 --overlap 32 would do",
        ),
        ({"tile": 128, "overlap": 48}, "--tile 128 --overlap 64 would do"),
        ({"tile": 112, "overlap": 48}, "--tile 128 --overlap 64 would do"),
        (
            {"tile": 32, "overlap": None},
            "--tile 32 with an overlap of 32: .*--tile 64 --overlap 32 would do, or --overlap 0",
        ),
        ({"overlap": 48}, "--overlap 48 is more than half of --tile 64"),
        ({"tile": None}, "--overlap 32 is that of tiles"),
        ({"img_size": 64}, "leave out --img-size"),
        ({"what": ("tokens",)}, "puts maps together, not tokens"),
        ({"frame_stride": 2}, "which is of videos"),
    ],
)
def test_tiles_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, model: Convolutions, tmp_path: Path
) -> None:
    Image.fromarray(photograph(70, 70)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        extracted([tmp_path / "a.png"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_of_this_package_is_set_to_the_tile(tmp_path: Path) -> None:
    Image.fromarray(photograph(150, 100)).save(tmp_path / "a.png")
    options = {"model": "hivit_atto", "pretrained": False, "what": ("pooled", "maps"), "workers": 0}
    extract.run(images=[str(tmp_path / "a.png")], output=tmp_path / "out", tile=128, **options)
    with safe_open(tmp_path / "out", "pt") as file:
        shapes = {key: list(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118
    assert shapes["map0.0"][1:] == [25, 38]
    with pytest.raises(ValueError, match="cuts images, and the model takes videos"):
        extract.run(images=[str(tmp_path / "a.png")], output=tmp_path / "b", tile=128, **{**options,
                    "model": "hiera_atto_video"})  # fmt: skip
