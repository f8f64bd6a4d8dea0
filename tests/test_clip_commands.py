"""Videos through the commands that look at models: extract, reconstruct, and the images that pre-training draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from timm.data import IMAGENET_DEFAULT_MEAN, create_transform, resolve_data_config, resolve_model_data_config
from torch import Tensor

from hiermim_zoo import extract, pretrain, reconstruct
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.data.clips import Clips
from hiermim_zoo.data.kinds import open_source
from hiermim_zoo.mae import create_mae
from hiermim_zoo.training import drawing

from .test_clips import IMAGES, write_frames, write_video
from .test_reconstruct import panel

MODEL = "hiera_atto_video"
PLAIN = ("--no-pretrained", "--workers", "0", "--device", "cpu")
GREY = [round(255 * value) for value in IMAGENET_DEFAULT_MEAN]  # what is hidden
SMALL = ("--decoder-depth", "1", "--decoder-dim", "32", "--decoder-heads", "2")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of frames (10.png comes behind 9.png) and a file of video, 40 frames each."""
    root = tmp_path_factory.mktemp("videos")
    write_frames(root / "deep" / "frames", 40, size=(64, 64))
    write_video(root / "file.mp4", 40)
    return root


def middle(folder: Path, stride: int) -> list[Image.Image]:
    """Eight frames around the middle of forty."""
    start = round((40 - 7 * stride - 1) / 2)
    return [Image.open(folder / f"{start + n * stride}.png").convert("RGB") for n in range(8)]


def refused(capsys: pytest.CaptureFixture[str], command: Any, *argv: object) -> str:
    """The one line of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command.main([*map(str, argv)]))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


# ---- extract


def features_of(output: Path, *argv: object) -> tuple[dict[str, Tensor], dict[str, str]]:
    extract.main([*PLAIN, *map(str, argv), "--model", MODEL, "-o", str(output)])
    with safe_open(output, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("stride", [None, 2])
def test_rows_are_what_the_model_gives_for_the_clip_in_the_middle(
    videos: Path, tmp_path: Path, stride: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    more = () if stride is None else ("--frame-stride", stride)
    found, about = features_of(tmp_path / "out", videos, "--what", "pooled", "tokens", "maps", *more)
    assert json.loads(about["files"]) == [str(videos / "deep" / "frames"), str(videos / "file.mp4")]
    assert (about["frames"], about["frame_stride"], about["img_size"]) == ("8", str(stride or 4), "64x64")
    assert about["frame_rate"] == "30"
    assert "from 2 of 2 videos" in capsys.readouterr().out
    torch.manual_seed(0)
    model: Any = timm.create_model(MODEL).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    frames = middle(videos / "deep" / "frames", stride or 4)
    clip = torch.stack([transform(frame) for frame in frames], dim=1)[None]  # [1, 3, 8, 64, 64]
    with torch.inference_mode():
        tokens, maps = model.forward_intermediates(clip)
        expected = {"tokens": tokens, "pooled": model.forward_head(tokens, pre_logits=True)}
    expected |= {f"map{level}": x for level, x in enumerate(maps)}
    assert {key: list(x.shape[1:]) for key, x in found.items()} == {
        key: list(x.shape[1:]) for key, x in expected.items()
    }
    assert found["map0"].shape == (2, 24, 4, 16, 16)
    for key, x in expected.items():
        torch.testing.assert_close(found[key][:1], x, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[key][1:], x, rtol=1e-4, atol=1e-5), "a file has lost something to its codec"
        torch.testing.assert_close(found[key][1:], x, rtol=0.2, atol=0.2)


def test_frames_may_be_named_one_by_one(videos: Path, tmp_path: Path) -> None:
    folder = videos / "deep" / "frames"
    whole, _ = features_of(tmp_path / "a", folder)
    named, about = features_of(tmp_path / "b", *folder.iterdir(), folder)
    assert json.loads(about["files"]) == [str(folder)]
    assert torch.equal(named["pooled"], whole["pooled"])


def test_a_damaged_video_gets_no_row(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes((videos / "file.mp4").read_bytes()[:300])
    argv = [bad, videos / "file.mp4", "--model", MODEL, "-o", tmp_path / "out", *PLAIN]
    assert f"{bad} cannot be read" in refused(capsys, extract, *argv)
    assert not (tmp_path / "out").exists()
    _, about = features_of(tmp_path / "out", bad, videos / "file.mp4", "--on-error", "skip")
    assert json.loads(about["files"]) == [str(videos / "file.mp4")]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{images}/cat", "--model", MODEL], "little in common: the model takes videos"),
        (["{images}/cat/0000.jpg", "--model", MODEL], "0000.jpg is a single image: the model takes videos"),
        (["{tmp}", "--model", MODEL], "no videos or frames in there"),
        (
            ["{videos}/file.mp4", "--model", "hivit_atto"],
            "file.mp4 is for models of video, and this one takes images",
        ),
        (["{tmp}/only", "--model", "hivit_atto"], "only is for models of video, and this one takes images"),
        (["{images}/cat", "--model", "hivit_atto", "--frame-stride", "2"], "--frame-stride is for models of video"),
    ],
)
def test_extract_refuses_what_the_model_does_not_take(
    videos: Path, tmp_path: Path, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "only" in argv[0]:
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / "a.mp4").touch()
    filled = [arg.format(images=IMAGES, tmp=tmp_path, videos=videos) for arg in argv]
    assert words in refused(capsys, extract, *filled, *PLAIN, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_frames_are_images_to_a_model_of_images(videos: Path, tmp_path: Path) -> None:
    extract.main([*PLAIN, str(videos), "--model", "hivit_atto", "-o", str(tmp_path / "out")])
    with safe_open(tmp_path / "out", "pt") as file:
        assert file.get_tensor("pooled").shape == (40, 96)


# ---- reconstruct


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five folders of forty frames, without labels (with them, a run asks for neighbours when it looks)."""
    root, reader = tmp_path_factory.mktemp("moving"), open_source(f"moving:{IMAGES}", (3, 8, 64, 64)).videos
    for i in range(5):
        (root / str(i)).mkdir()
        with reader.open(30 * i) as video:
            for n, image in enumerate(video.frames(range(40))):
                image.save(root / str(i) / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def trained(moving: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, which looks at its data at the end."""
    out = tmp_path_factory.mktemp("run") / "out"
    short = (
        "--steps",
        "1",
        "--epochs",
        "1",
        "--warmup",
        "0",
        "--batch-size",
        "4",
        "--repeat",
        "1",
        "--look-every",
        "1",
    )
    data = (str(moving), "--model", MODEL, "--mask-ratio", "0.5")
    threads = torch.get_num_threads()
    pretrain.main([*data, *SMALL, *short, "--workers", "0", "--device", "cpu", "-o", str(out)])
    torch.set_num_threads(threads)
    return out


def columns_of(file: Path, rows: int) -> list[list[np.ndarray]]:
    """The panels of a sheet of clips as they were before they were enlarged, [rows][frames], each [64, 64, 3]."""
    with Image.open(file) as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)[:, drawing.MARGIN :]
    frames = sheet.shape[1] // (drawing.SIDE + drawing.GAP)
    assert sheet.shape[0] == drawing.HEADER + rows * (drawing.SIDE + drawing.GAP) + drawing.FOOTER
    return [[panel(sheet, row, column) for column in range(frames)] for row in range(rows)]


def as_seen(frame: Image.Image) -> np.ndarray:
    """What timm's transform leaves of a frame, 0 to 255."""
    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(MODEL).to_dict())
    transform: Any = create_transform(**config)
    pixels: Tensor = (
        transform(frame) * torch.tensor(config["std"])[:, None, None] + torch.tensor(config["mean"])[:, None, None]
    )
    return (255 * pixels).permute(1, 2, 0).numpy()


def check_panels(panels: list[list[np.ndarray]]) -> None:
    """Of clips of eight frames: masked, predicted, pasted and original rows of the four first frames of pairs."""
    shown = 0
    for n in range(0, len(panels), 4):
        for original, masked, prediction, pasted in zip(*panels[n : n + 4], strict=True):
            grey = (masked == GREY).all(-1).reshape(2, 32, 2, 32)
            hidden = grey.all((1, 3)).repeat(32, 0).repeat(32, 1)
            visible = ~hidden
            assert (pasted[visible] == original[visible]).all()
            assert (masked[visible] == original[visible]).all()
            assert (pasted[hidden] == prediction[hidden]).all()
            shown += int(visible.sum())
    assert 0 < shown < len(panels) // 4 * 4 * 64 * 64


def test_rows_are_panels_and_columns_the_predicted_frames(
    trained: Path, moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, checkpoint = moving / "2", tmp_path / "out.png", trained / "encoder"
    argv = [str(folder), "--model", MODEL, "--checkpoint", str(checkpoint), "--mask-ratio", "0.5", "-o", str(out)]
    reconstruct.main([*argv, "--frame-stride", "2"])
    assert "of 1 clip" in capsys.readouterr().out
    panels = columns_of(out, 4)
    check_panels(panels)
    expected = middle(folder, 2)[::2]  # Hiera predicts the first frame of each pair
    for shown, frame in zip(panels[0], expected, strict=True):
        assert np.abs(shown - as_seen(frame)).max() <= 1
    assert any((a != b).any() for a, b in zip(panels[0], panels[0][1:], strict=False)), "time goes on"


def test_several_clips_stand_below_each_other(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [videos / "file.mp4", videos / "deep" / "frames", "--model", MODEL, "-o", tmp_path / "out.png"]
    reconstruct.main([*map(str, argv)])
    assert "of 2 clips" in capsys.readouterr().out
    assert len(columns_of(tmp_path / "out.png", 8)[0]) == 4


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{images}/cat/0000.jpg", "--model", MODEL], "0000.jpg is a single image: the model takes videos"),
        (["{images}/cat", "--model", MODEL], "little in common: the model takes videos"),
        (["{tmp}", "--model", MODEL], "holds neither files of video"),
        (["{tmp}/none.mp4", "--model", MODEL], "none.mp4: no such file or folder"),
        (["{tmp}/bad.mp4", "--model", MODEL], "bad.mp4 cannot be read as a video"),
        (
            ["{videos}/file.mp4", "--model", "hivit_atto"],
            "file.mp4 is for models of video, and this one takes images",
        ),
        (
            ["{images}/cat/0000.jpg", "--model", "hivit_atto", "--frame-stride", "2"],
            "--frame-stride is for models of video",
        ),
    ],
)
def test_reconstruct_refuses_what_the_model_does_not_take(
    videos: Path, tmp_path: Path, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "bad" in argv[0]:
        (tmp_path / "bad.mp4").write_bytes((videos / "file.mp4").read_bytes()[:300])
    filled = [arg.format(images=IMAGES, tmp=tmp_path, videos=videos) for arg in argv]
    assert words in refused(capsys, reconstruct, *filled, "-o", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


# ---- pre-training looks


def test_pretraining_draws_clips(trained: Path, moving: Path) -> None:
    """Four videos, evenly spaced in the data, each from its middle."""
    [file] = (trained / "looks").iterdir()
    panels = columns_of(file, 16)
    check_panels(panels)
    source = open_source(str(moving), (3, 8, 64, 64))
    assert isinstance(source, Clips)
    for n in range(4):
        [clip], _ = source.read(n * len(source) // 4)
        for shown, frame in zip(panels[4 * n], clip[::2], strict=True):
            assert np.abs(shown - as_seen(frame)).max() <= 1


def test_the_autoencoder_of_the_run_is_the_one_that_is_drawn(trained: Path) -> None:
    """Predicted frames are of the size of the clip's, half as many."""
    mae = create_mae(MODEL, checkpoint=trained / "encoder", mask_ratio=0.5).eval()
    images = torch.randn(1, 3, 8, 64, 64)
    assert mae.reconstruct(images, mae(images)).shape == mae.predicted(images).shape == (1, 3, 4, 64, 64)
