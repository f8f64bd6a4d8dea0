"""The reconstruct command draws what the autoencoder computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hiermim_zoo import convert, reconstruct
from hiermim_zoo.commands import reconstructing
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.mae import create_mae
from hiermim_zoo.training import drawing

from .test_mae import toy_file

IMAGES = sorted((Path(__file__).parents[1] / "examples" / "pictures").glob("*/0001.jpg"))[:2]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    convert.main([str(toy_file(tmp_path)), "--model", "hivit_atto", "--mae", "-o", str(tmp_path / "mae")])
    return tmp_path / "mae"


def panel(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    """One panel of 64 x 64 pixels, as it was before it was enlarged."""
    side, gap = drawing.SIDE, drawing.GAP
    top, left = drawing.HEADER + row * (side + gap), gap + column * (side + gap)
    centre = (np.arange(64) * side / 64 + side / 128).astype(int)
    return sheet[top : top + side, left : left + side][centre][:, centre]


@pytest.mark.parametrize("statistics", ["true", "visible"])
def test_each_panel_shows_what_its_heading_says(checkpoint: Path, tmp_path: Path, statistics: str) -> None:
    args = [*map(str, IMAGES), "--model", "hivit_atto", "--checkpoint", str(checkpoint), "--statistics", statistics]
    reconstruct.main([*args, "-o", str(tmp_path / "out.png"), "--seed", "3"])
    sheet = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"))
    mae = create_mae("hivit_atto", checkpoint=checkpoint).eval()
    keep = torch.stack(
        [torch.rand(16, generator=torch.Generator().manual_seed(0)).argsort()[:4]]
    )  # only its size matters here
    assert mae.kept == keep.shape[1]
    for row in range(2):
        original, masked, prediction, pasted = (panel(sheet, row, column).astype(int) for column in range(4))
        same = (masked == original).all(-1).reshape(4, 16, 4, 16).all((1, 3))
        assert same.sum() == 4, "a quarter of the units is visible"
        visible = same.repeat(16, 0).repeat(16, 1)
        assert (pasted[visible] == original[visible]).all()
        assert (pasted[~visible] == prediction[~visible]).all()
        assert (prediction[visible] != original[visible]).any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{text}", "--model", "hivit_atto", "-o", "{out}.png"], "notes.md cannot be read as an image"),
        (["missing.png", "--model", "hivit_atto", "-o", "{out}.png"], "IMAGES missing.png: no such file or folder"),
        (["{text}", "--model", "hivit_atto", "-o", "{out}.doc"], "name an image file"),
        (["{text}", "--model", "hivit_atto", "-o", "{out}.psd"], "name an image file that can be written"),
        (["{text}", "--model", "hivit_atto", "-o", "/nowhere/out.png"], "no such folder"),
        (
            ["{text}", "--model", "resnet18", "-o", "{out}.png"],
            "resnet18 is a model of timm.models.resnet",
        ),
        (["{text}", "--model", "hivit_atto", "--mask-ratio", "1", "-o", "{out}.png"], "mask_ratio=1.0"),
        (
            ["{text}", "--model", "hivit_atto", "--checkpoint", "{out}", "-o", "{out}.png"],
            "out: no such file or folder",
        ),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.md").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        run_command(
            lambda: reconstruct.main([a.format(text=tmp_path / "notes.md", out=tmp_path / "out") for a in args])
        )
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["notes.md"]


def test_a_folder_is_all_of_its_images(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ["--model", "hivit_atto", "--checkpoint", str(checkpoint), "-o"]
    (tmp_path / "in" / "below").mkdir(parents=True)
    files = [tmp_path / "in" / "a.jpg", tmp_path / "in" / "below" / "b.jpg"]
    for file, image in zip(files, IMAGES, strict=True):
        file.write_bytes(image.read_bytes())
    (tmp_path / "in" / "notes.txt").write_text("no image")
    drawn = []
    for named in ([tmp_path / "in"], files, files[:1]):
        reconstruct.main([*map(str, named), *model, str(tmp_path / "out.png")])
        drawn.append(np.asarray(Image.open(tmp_path / "out.png")))
    assert np.array_equal(drawn[0], drawn[1])
    assert drawn[2].shape != drawn[0].shape  # negative control
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: no images in there"):
        reconstruct.main([str(tmp_path / "none"), *model, str(tmp_path / "out.png")])
    monkeypatch.setattr(reconstructing, "MOST", 1)
    with pytest.raises(ValueError, match="2 images are too many for one drawing; name at most 1"):
        reconstruct.main([str(tmp_path / "in"), *model, str(tmp_path / "out.png")])
