"""Which data are clips: folders of frames and files of video, and what is neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hiermim_zoo import evaluate, pretrain
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.data.kinds import open_source

from .test_clips import IMAGES, SIZE, frame, write_frames, write_video


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"stride": 2}, "--frame-stride is for models of video, and this one takes images"),
        ({"repeat": 4}, "--repeat is for models of video"),
        ({"rate": "native"}, "--frame-rate is for models of video"),
        ({"views": (5, 3)}, "--views is for models of video"),
    ],
)
def test_images_have_no_options_of_clips(option: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_source("digits", (3, 16, 16), **option)
    assert len(open_source("digits", (3, 16, 16), repeat=1)) == 1497
    with pytest.raises(ValueError, match="moving:digits is for models of video"):
        open_source("moving:digits", (3, 16, 16))


def test_data_that_hold_no_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing: no such folder of videos, and no moving:DATA"):
        open_source(str(tmp_path / "missing"), SIZE)
    with pytest.raises(ValueError, match=r"holds neither files of video \(\.mp4, .*nor folders of frames"):
        open_source(str(tmp_path), SIZE)
    with pytest.raises(ValueError, match="frames of clips is 0, it must be 1 or more"):
        open_source("moving:digits", (3, 0, 16, 16))
    with pytest.raises(ValueError, match="it has 1 bands, and the model takes 5 channels"):
        open_source("moving:digits", (5, 4, 16, 16))
    write_video(tmp_path / "a.mp4", 3)
    with pytest.raises(ValueError, match=r"a\.mp4 is a single video: name the folder around it"):
        open_source(str(tmp_path / "a.mp4"), SIZE)


def test_images_that_are_named_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "some.tar").touch()
    for spec in ("digits", "hfds/some/images", str(tmp_path / "some.tar")):
        with pytest.raises(
            ValueError, match=f"{spec} holds images, and the model takes videos: moving:{spec} makes them move"
        ):
            open_source(spec, SIZE)


def lay_out(root: Path, names: list[str]) -> Path:
    """Photographs of several classes, which have nothing in common, under these names in folders of their classes."""
    for folder in sorted(IMAGES.glob("*/"))[:4]:
        (root / folder.name).mkdir(parents=True)
        for name, file in zip(names, sorted(folder.iterdir()), strict=False):
            with Image.open(file) as image:
                image.save(root / folder.name / name)
    return root


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["0.png", "1.png", "2.png", "3.png"], r"0\.png and the images beside it have little in common"),
        (["cat.png", "dog.png"], "dog.png is an image by itself"),
        (["one.png"], "one.png is an image by itself"),
        (["frame_1.png", "frame_2.png", "poster.png"], "poster.png is an image by itself"),
        (["1.png"], "1.png is a single image"),
    ],
)
def test_folders_of_images_are_no_videos(tmp_path: Path, names: list[str], words: str) -> None:
    """Labelled or not, in a split or without."""
    lay_out(tmp_path / "train", names)
    folders = [tmp_path, tmp_path / "train", tmp_path / "train" / "cat"]
    for folder in folders:
        with pytest.raises(
            ValueError, match=f"{words}: the model takes videos, whose frames are numbered, .*name moving:{folder}$"
        ):
            open_source(str(folder), SIZE)
        assert len(open_source(f"moving:{folder}", SIZE)) == 4 * len(list(folder.rglob("*.png")))


def test_frames_have_one_size(tmp_path: Path) -> None:
    write_frames(tmp_path / "clip", 12)
    assert len(open_source(str(tmp_path), SIZE)) == 1
    for n in range(0, 12, 2):
        frame(n, (48, 30)).save(tmp_path / "clip" / f"{n}.png")
    with pytest.raises(ValueError, match="little in common"):
        open_source(str(tmp_path), SIZE)


@pytest.mark.parametrize("where", ["train/up/{n}/{t:05}.jpg", "up/{n}/img_{t}.png", "{n}/{t:05}.jpg", "IMG_{t}.jpg"])
@pytest.mark.parametrize("every", [1, 4])
def test_folders_of_frames_are_videos(tmp_path: Path, where: str, every: int) -> None:
    """Of photographs that move, four times as fast as they do, too."""
    moving = open_source(f"moving:{IMAGES}", (3, 4, 64, 64)).videos
    several = 6 if "{n}" in where else 1
    for n in range(several):
        with moving.open(n * 29) as video:
            for t, image in enumerate(video.frames(range(0, 48, every))):
                path = tmp_path / where.format(n=n, t=t)
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    assert len(open_source(str(tmp_path), SIZE)) == several


def test_frames_that_say_so_may_look_like_anything(tmp_path: Path) -> None:
    """Of a video of which a frame a minute is left, say."""
    lay_out(tmp_path / "train", [f"frame_{n:04}.jpg" for n in range(5)])
    source = open_source(str(tmp_path), SIZE)
    assert [Path(path).name for path in source.videos.paths] == ["airplane", "automobile", "bird", "cat"]


def test_frames_that_cannot_be_read_are_left_to_who_needs_them(tmp_path: Path) -> None:
    write_frames(tmp_path / "clip", 6)
    for n in range(6):
        (tmp_path / "clip" / f"{n}.png").write_bytes(b"no image")
    assert len(open_source(str(tmp_path), SIZE)) == 1


def test_models_of_images_take_no_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a" / "1.mp4", 3)
    for path in (tmp_path, tmp_path / "a" / "1.mp4"):
        with pytest.raises(ValueError, match=f"{path} is for models of video, and this one takes images"):
            open_source(str(path), (3, 16, 16))
    write_frames(tmp_path / "frames", 3)
    assert len(open_source(str(tmp_path), (3, 16, 16))) == 3, "frames are images"


@pytest.mark.parametrize("main", [pretrain.main, evaluate.main])
def test_the_commands_refuse_images_in_one_line(main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [] if main is evaluate.main else ["--batch-size", "4"]
    argv = [str(IMAGES), "--model", "hiera_atto_video", "-o", str(tmp_path / "out"), *more]
    argv += ["--method", "finetune", "--no-pretrained"] if main is evaluate.main else []
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main(argv))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {IMAGES}")
    assert line.endswith(f"to make images move, name moving:{IMAGES}")
    assert not (tmp_path / "out").exists()
