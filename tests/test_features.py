"""hiermim_zoo.features: colours that can be compared, similarities that are true, on a sheet and in a page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

from hiermim_zoo import features
from hiermim_zoo.checkpoints.folder import Contents, own_cfg, write_folder
from hiermim_zoo.commands import featuring, featuring_page
from hiermim_zoo.commands.featuring_checks import flexible
from hiermim_zoo.commands.featuring_page import Packed, fitting, packed
from hiermim_zoo.commands.featuring_sheet import heat
from hiermim_zoo.commands.featuring_views import STOPS
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.data.transforms import data_config
from hiermim_zoo.training.colours import cell_at, colours, components, similarity, turned

from .browser import opened

PICTURES = Path(__file__).parents[1] / "examples" / "pictures"
WIDE, TALL = (96, 64), (48, 80)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """A wide and a tall photograph."""
    files = []
    for n, size in enumerate((WIDE, TALL)):
        file = tmp_path / f"image{n}.png"
        Image.open(PICTURES / "horse" / f"{n:04d}.jpg").resize(size).save(file)
        files.append(str(file))
    return files


def drawn(images: list[str], output: Path, **options: Any) -> Path:
    return features.run(**{"images": images, "model": "hivit_atto", "output": output, "device": "cpu", **options})


# ---- colours


def test_like_features_have_like_colours_in_maps_of_any_size() -> None:
    kinds = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    first = kinds[torch.arange(3).repeat(20)].T.reshape(8, 6, 10)
    second = kinds[torch.arange(3).repeat(4)].T.reshape(8, 3, 4).clone()
    second[:, 0, 0] *= 1000  # outliers leave the rest as colourful
    [[a, b]] = colours([[first, second]])
    assert (a.shape, b.shape) == ((6, 10, 3), (3, 4, 3))
    flat_a, flat_b = a.reshape(-1, 3), b.reshape(-1, 3)
    for kind in range(3):
        assert len(torch.cat([flat_a[kind::3], flat_b[3 + kind :: 3]]).unique(dim=0)) == 1
    assert np.ptp(flat_a.numpy(), axis=0).max() > 100


def test_a_turned_copy_of_the_features_has_the_same_colours() -> None:
    """Channels of another model may point anywhere: what is alike decides, not how it is called."""
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(8, 6, 5, generator=draw) * torch.linspace(4, 1, 8)[:, None, None] for _ in range(2)]
    turn = torch.linalg.qr(torch.randn(8, 8, generator=draw))[0]
    other = [torch.einsum("ij,jhw->ihw", turn, x) for x in maps]
    one, two = colours([maps, other])
    for a, b in zip(one, two, strict=True):
        assert (a.int() - b.int()).abs().max() <= 1
    strange = colours([maps, [torch.randn(8, 6, 5, generator=draw) for _ in range(2)]])[1]  # negative control
    assert (strange[0].int() - one[0].int()).abs().float().mean() > 20


def test_the_turn_is_a_turn_and_the_nearest_one() -> None:
    draw = torch.Generator().manual_seed(0)
    found = components([torch.randn(6, 9, 7, generator=draw)])
    like = [torch.randn(3, 4, 5, generator=draw)]
    [there] = turned(found, like)
    lengths = [x.flatten(1).norm(dim=0) for x in (found[0], there)]
    assert torch.allclose(*lengths, atol=1e-4)

    def distance(x: torch.Tensor) -> torch.Tensor:
        return (F.adaptive_avg_pool2d(x, (4, 5)) - like[0]).norm()

    for _ in range(50):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=draw))[0]
        assert distance(there) <= distance(torch.einsum("ij,jhw->ihw", turn, found[0])) + 1e-5


@pytest.mark.parametrize("channels", [1, 2])
def test_few_channels_and_flat_maps_have_colours_too(channels: int) -> None:
    [[a]] = colours([[torch.arange(12.0).repeat(channels).reshape(channels, 3, 4)]])
    assert a.shape == (3, 4, 3)
    assert len(a.reshape(-1, 3).unique(dim=0)) > 5
    [[flat]] = colours([[torch.ones(4, 3, 4)]])
    assert len(flat.reshape(-1, 3).unique(dim=0)) == 1


def test_where_all_is_alike_all_is_bright() -> None:
    dark, bright = (tuple(int(stop[i : i + 2], 16) for i in (1, 3, 5)) for stop in (STOPS[0], STOPS[-1]))
    assert {tuple(cell) for cell in heat(torch.ones(2, 2)).flatten(0, 1).tolist()} == {bright}
    assert tuple(heat(torch.tensor([[1, 1 - 1e-6]]))[0, 1].tolist()) == bright
    assert [tuple(cell) for cell in heat(torch.tensor([[1, -0.5]]))[0].tolist()] == [bright, dark]


def test_similarity_is_the_cosine_to_the_cell_at_the_point() -> None:
    x = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))
    assert [cell_at(x, point) for point in ((0, 0), (1, 1), (0.49, 0.51))] == [(0, 0), (3, 7), (2, 3)]
    found = similarity(x, (0.49, 0.51))
    assert torch.allclose(found, F.cosine_similarity(x, x[:, 2:3, 3:4], dim=0), atol=1e-6)


# ---- what models see


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("hivit_atto", {}), ("vit_tiny_patch16_224", {"dynamic_img_size": True})],
)
def test_models_see_whole_images(name: str, kwargs: dict[str, Any], images: list[str]) -> None:
    """In their proportions where the model takes any size, else squeezed to its own."""
    assert flexible(name) == kwargs
    options = features.VERB.options(images=images, model=name, output="x.png", pretrained=False, levels=(0,))
    seen = featuring.looked(options)
    side = max(data_config(timm.create_model(name))["input_size"][-2:])
    for view, x, size in zip(seen.views, seen.levels[0].maps, (WIDE, TALL), strict=True):
        assert view.size == size
        longer = max(side, max(size)) if name == "hivit_atto" else side
        assert max(x.shape[1:]) * seen.levels[0].reduction == pytest.approx(longer, abs=32)
        assert (x.shape[2] > x.shape[1]) == (size[0] > size[1])


def test_levels_are_those_of_the_model(images: list[str]) -> None:
    options = features.VERB.options(images=images[:1], model="hivit_atto", output="x.png", levels=(2, 0), img_size=96)
    seen = featuring.looked(options)
    assert [(level.number, level.reduction) for level in seen.levels] == [(0, 4), (2, 16)]
    model: Any = timm.create_model("hivit_atto", pretrained=True).eval()
    x = featuring.resizing(data_config(model), (64, 96))(Image.open(images[0]))
    with torch.inference_mode():
        maps = model.forward_intermediates(x[None], intermediates_only=True)
    assert torch.equal(seen.levels[1].maps[0], maps[2][0])


# ---- the sheet


def test_a_sheet_has_a_row_for_each_image_and_model(images: list[str], tmp_path: Path, capsys: Any) -> None:
    argv = [*images, "--model", "hivit_atto", "--model", "hiera_atto", "--point", "0.5", "0.5", "--level", "0", "3"]
    path = features.main([*argv, "-o", str(tmp_path / "a.png")])
    assert "hivit_atto [24, " in capsys.readouterr().out
    with Image.open(path) as image:
        marked = np.asarray(image.convert("RGB"))
    plain = np.asarray(Image.open(drawn(images, tmp_path / "b.png", levels=[0, 3])).convert("RGB"))
    assert marked.shape[1] == plain.shape[1]
    assert marked.shape[0] > 3 * plain.shape[0] - 500
    assert len(np.unique(plain.reshape(-1, 3), axis=0)) > 200


def test_random_weights_are_said_everywhere(images: list[str], tmp_path: Path, capsys: Any) -> None:
    for name in ("a.png", "a.html"):
        features.main([images[0], "--model", "hivit_atto", "--no-pretrained", "-o", str(tmp_path / name)])
        said = capsys.readouterr()
        assert "hivit_atto (RANDOM WEIGHTS)" in said.out
        assert "hivit_atto was never trained" in said.err
    assert "RANDOM WEIGHTS: hivit_atto" in (tmp_path / "a.html").read_text()
    alarm = (0xB3, 0x26, 0x1E)
    for random in (True, False):
        drawn(images[:1], tmp_path / "b.png", pretrained=not random)
        pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB"))
        assert bool((pixels == alarm).all(-1).any()) == random


def test_clips_are_frames_in_a_row(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for n in range(12):
        Image.open(PICTURES / "ship" / f"{n:04d}.jpg").save(folder / f"frame_{n:03d}.png")
    features.main([str(folder), "--model", "hiera_atto_video", "--frame-stride", "1", "-o", str(tmp_path / "a.png")])
    assert "4 times of clips" in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as image:
        assert image.width < image.height


def test_channels_beyond_three_are_seen(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 255, (5, 40, 60), dtype=np.uint8))
    kwargs: dict[str, Any] = {"in_chans": 5}
    model: Any = timm.create_model("hivit_atto", **kwargs)
    model.pretrained_cfg = own_cfg("hivit_atto", {}, "mit", 10, (5, 64, 64))
    write_folder(Contents("hivit_atto", model, {"license": "mit"}, "Made by a test.", kwargs), tmp_path / "m")
    several = {"model": f"local-dir:{tmp_path / 'm'}", "axes": "chw"}
    drawn([str(tmp_path / "a.npy")], tmp_path / "a.png", **several, show_bands=[5, 3, 1])
    with pytest.raises(ValueError, match="--show-bands 6"):
        drawn([str(tmp_path / "a.npy")], tmp_path / "b.png", **several, show_bands=[6])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "{out}/a.psd"}, "name an image file that can be written"),
        ({"output": "{out}/a"}, "name an image file that can be written"),
        ({"output": "{out}/none/a.html"}, "cannot be written: no such folder"),
        ({"model": "hivit_atoo"}, "did you mean hivit_atto"),
        ({"model": ["hivit_atto", "hivit_atto"]}, "--model hivit_atto is named twice"),
        ({"model": ["hivit_atto", "hiera_atto_video"]}, "hiera_atto_video sees clips and hivit_atto sees images"),
        ({"levels": [4]}, "--levels 4: hivit_atto has the levels 0 to 3"),
        ({"point": [0.5, 1.5]}, "1.5 is not a finite number at least 0 and at most 1"),
        ({"point": [0.5]}, "takes 2 values"),
        ({"seed": 1}, "--seed 1 is of the random weights"),
        ({"images": ["{out}/none.png"]}, "none.png: no such file or folder"),
        ({"images": ["{out}/notes.md"]}, "notes.md cannot be read as an image"),
        ({"frame_stride": 2}, "--frame-stride is for models of video"),
    ],
)
def test_bad_input_is_one_line(
    images: list[str], tmp_path: Path, options: dict[str, Any], words: str, capsys: Any
) -> None:
    (tmp_path / "notes.md").write_text("no image")

    def filled(value: Any) -> Any:
        return value.format(out=tmp_path) if isinstance(value, str) else value

    given = {name: [filled(v) for v in x] if isinstance(x, list) else filled(x) for name, x in options.items()}
    files = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: drawn(**{"images": images, "output": tmp_path / "a.png", **given}))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "cache"] == files


# ---- the page


def every_similarity(found: Packed, maps: list[torch.Tensor]) -> float:
    """The largest deviation of all pairs of places."""
    full = F.normalize(torch.cat([x.flatten(1).T for x in maps]))
    kept = F.normalize(torch.cat([x.flatten(0, 1) for x in found.maps]).float())
    return (full @ full.T - kept @ kept.T).abs().max().item()


@pytest.mark.parametrize("channels", [3, 24, 400])
def test_packed_features_have_the_similarities_of_the_full_ones(channels: int) -> None:
    draw = torch.Generator().manual_seed(0)
    wild = 10 * (torch.arange(channels) == 1)[:, None, None]  # a channel that is always large
    maps = [torch.randn(channels, *size, generator=draw) * 3 + wild for size in ((12, 20), (9, 7))]
    found = packed(maps, featuring_page.TOLERANCE)
    assert [x.shape[:2] for x in found.maps] == [(12, 20), (9, 7)]
    assert found.maps[0].dtype == torch.int8
    assert every_similarity(found, maps) < featuring_page.ALLOWED
    flat = [x[:1] * torch.randn(channels, 1, 1, generator=draw) for x in maps]  # one direction is all there is
    assert packed(flat, featuring_page.TOLERANCE).maps[0].shape[-1] <= 4


def test_what_does_not_fit_is_left_off_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    levels = [[torch.randn(16, 64, 64, generator=draw)], [torch.randn(64, 16, 16, generator=draw)]]
    monkeypatch.setattr(featuring_page, "BUDGET", 60_000)
    fine, coarse = fitting(levels)
    assert (fine.pooled, coarse.pooled) == (2, 1)
    assert every_similarity(coarse, levels[1]) < featuring_page.ALLOWED
    monkeypatch.setattr(featuring_page, "BUDGET", 20_000)
    found = fitting(levels)
    assert sum(x.numel() for one in found for x in one.maps) <= 20_000
    assert found[0].deviation > featuring_page.ALLOWED or found[0].pooled > 2


def test_names_of_files_cannot_close_the_script(images: list[str], tmp_path: Path) -> None:
    odd = tmp_path / "<!--<script>a.png"
    shutil.copy(images[0], odd)
    text = drawn([str(odd)], tmp_path / "a.html").read_text()
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    assert json.loads(found[1])["views"][0]["name"] == odd.name
    assert "<" not in found[1]


@pytest.mark.slow
def test_a_click_shows_the_similarities_of_the_full_features(images: list[str], tmp_path: Path) -> None:
    """In a real browser: no request, no error, no overflow at the width of a phone."""
    path = drawn(images, tmp_path / "a.html", model=["hivit_atto", "hiera_atto"])
    seen = featuring.looked(
        features.VERB.options(images=images, model=["hivit_atto", "hiera_atto"], output="x.png", device="cpu")
    )
    with opened(path, 390) as (tab, heard):
        before = tab.screenshot()
        frame = tab.locator(".frame").nth(0)
        box = frame.bounding_box()
        assert box
        x, y = 0.3, 0.6
        frame.click(position={"x": x * box["width"], "y": y * box["height"]})
        assert tab.screenshot() != before
        values = tab.evaluate("window.likeness.values.map((v) => v.map((x) => Array.from(x)))")
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        at = tab.evaluate("[window.likeness.x, window.likeness.y]")
    assert heard == [path.as_uri()]
    assert at == pytest.approx([x, y], abs=0.02)
    for level, own in zip(seen.levels, values, strict=True):
        row, column = cell_at(level.maps[0], (at[0], at[1]))
        one = F.normalize(level.maps[0].float(), dim=0)[:, row, column]
        for maps, shown in zip(level.maps, own, strict=True):
            full = torch.einsum("chw,c->hw", F.normalize(maps.float(), dim=0), one)
            assert (full.flatten() - torch.tensor(shown)).abs().max() < 0.01
    assert np.ptp(values[0][0]) > 0.1
