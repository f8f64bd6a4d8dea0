"""Strides of clips count frames at 30 a second, whatever the rate of a file: positions in closed form, and in files."""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hiermim_zoo import extract
from hiermim_zoo.data import videos
from hiermim_zoo.data.clips import NATIVE, Clips
from hiermim_zoo.data.decoding import Form
from hiermim_zoo.data.kinds import open_source
from hiermim_zoo.data.source import Video, VideoSet
from hiermim_zoo.data.videos import VideoFolder

from .test_clips import SIZE, numbers, plan, training, write_frames, write_video

NTSC = Fraction(30000, 1001)  # 29.97
# Of stride 4 and 9 frames, by hand: the nearest to 0, 4 r / 30, 8 r / 30, ..., halves rounded up.
OFFSETS = {
    Fraction(15): [0, 2, 4, 6, 8, 10, 12, 14, 16],
    Fraction(25): [0, 3, 7, 10, 13, 17, 20, 23, 27],
    NTSC: [0, 4, 8, 12, 16, 20, 24, 28, 32],
    Fraction(30): [0, 4, 8, 12, 16, 20, 24, 28, 32],
    Fraction(60): [0, 8, 16, 24, 32, 40, 48, 56, 64],
    Fraction(5): [0, 1, 1, 2, 3, 3, 4, 5, 5],
}


class Counted(Video):
    """A video whose frames are their numbers."""

    def __init__(self, length: int, rate: Fraction | None) -> None:
        self.length, self.told = length, rate

    def __len__(self) -> int:
        return self.length

    def rate(self) -> Fraction | None:
        return self.told

    def frames(self, wanted: Sequence[int]) -> list[Any]:
        return list(wanted)


class OneVideo(VideoSet):
    def __init__(self, video: Video) -> None:
        self.video, self.labels, self.identity = video, [0], "one"

    def __len__(self) -> int:
        return 1

    def name_of(self, position: int) -> str:
        return "one"

    @contextmanager
    def open(self, position: int) -> Iterator[Video]:
        yield self.video


def shown(length: int, own: Fraction | None, seed: int | None = None, **options: Any) -> list[list[int]]:
    """The positions of the frames of clips of nine."""
    found: Any = Clips(OneVideo(Counted(length, own)), frames=9, **options).read(0, seed)[0]
    return found


@pytest.mark.parametrize("rate", OFFSETS)
def test_positions_are_the_nearest_to_thirtieths_of_a_second(rate: Fraction) -> None:
    assert shown(1, rate) == [[0] * 9], "a video that is too short stands still"
    [clip] = shown(OFFSETS[rate][-1] + 1, rate)
    assert clip == OFFSETS[rate]
    [native] = shown(1000, rate, rate=NATIVE)
    assert [n - native[0] for n in native] == OFFSETS[Fraction(30)], "frames of the file, whatever its rate"
    assert (clip == [n - native[0] for n in native]) == (rate in (30, NTSC)), "what was shown before differs"
    seconds = [float(n / rate) for n in clip]
    assert max(abs(s - 4 * n / 30) for n, s in enumerate(seconds)) <= 0.5 / rate + 1e-9


def test_where_no_rate_is_told_frames_are_those_of_the_video() -> None:
    assert shown(400, None) == shown(400, Fraction(30)) == shown(400, None, rate=NATIVE)
    assert shown(400, Fraction(60), rate=60) == shown(400, Fraction(30)), "another rate to count at"
    assert shown(400, Fraction(25), rate=12.5, stride=3) == shown(400, None, stride=6)


@pytest.mark.parametrize("rate", [Fraction(15), Fraction(60)])
def test_clips_reach_both_ends_of_a_video_and_not_beyond(rate: Fraction) -> None:
    length, last = 200, OFFSETS[rate][-1]
    first, _, end = shown(length, rate, views=3)
    assert (first[0], first[-1], end[-1]) == (0, last, length - 1)
    starts = [clip[0] for seed in range(200) for clip in shown(length, rate, seed, repeat=4)]
    assert min(starts) >= 0
    assert max(starts) <= length - 1 - last
    assert len(set(starts)) > 50


@pytest.mark.parametrize("rate", [0, -1.0, float("inf"), float("nan"), "fast"])
def test_a_rate_is_above_zero(rate: Any) -> None:
    with pytest.raises(ValueError, match=f"rate of clips is {rate}, it must be above 0, or native"):
        shown(10, None, rate=rate)


# ---- files


@pytest.mark.parametrize("rate", [Fraction(15), Fraction(25), NTSC, Fraction(30), Fraction(60)])
@pytest.mark.parametrize(("ending", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_files_of_any_rate_show_the_same_moments(tmp_path: Path, rate: Fraction, ending: str, codec: str) -> None:
    pytest.importorskip("av", reason="the video extra is not installed")
    write_video(tmp_path / f"a.{ending}", 60, codec, rate)
    reader = VideoFolder(str(tmp_path), "train", Form())
    with reader.open(0) as video:
        assert video.rate() == rate
    wanted = OFFSETS[rate][:7]
    start = round((60 - 1 - wanted[-1]) / 2)
    clip: Any
    [clip], _ = Clips(reader, frames=7).read(0)
    assert numbers(clip) == [start + n for n in wanted]
    native: Any
    [native], _ = Clips(reader, frames=7, rate=NATIVE).read(0)
    assert numbers(native) == [round(35 / 2) + 4 * n for n in range(7)]


def test_a_file_that_tells_no_rate_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By whichever process meets it first."""
    pytest.importorskip("av", reason="the video extra is not installed")
    monkeypatch.setattr(videos, "SAID", mmap.mmap(-1, 1))
    path = write_video(tmp_path / "a.mp4", 3)
    with VideoFolder(str(tmp_path), "train", Form()).open(0) as opened:
        video: Any = opened
        monkeypatch.setattr(video, "stream", SimpleNamespace(average_rate=None))
        worker: Any = multiprocessing.get_context("fork").Process(target=video.rate)
        worker.start()
        worker.join()
        assert [video.rate() for _ in range(3)] == [None] * 3
    assert worker.exitcode == 0
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(
        f"{path} does not tell its frames a second: of it, and of others like it, frames are counted"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_of_mixed_rates_do_not_depend_on_workers(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("av", reason="the video extra is not installed")
    for n, rate in enumerate((15, 25, 30, 60)):
        write_video(tmp_path / f"{n}.mp4", 50, rate=rate)
    source = open_source(str(tmp_path), SIZE, repeat=2)
    cut = plan(repeat=2, length=4)
    whole, later = training(source, cut, range(3)), training(source, cut, range(1, 3), workers=workers)
    for (images, columns), (again, columns_again) in zip(whole[1:], later, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(columns, columns_again)


def test_the_command_counts_at_the_rate_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the video extra is not installed")
    file = write_video(tmp_path / "a.mp4", 50, rate=15)
    write_frames(tmp_path / "frames", 50)
    plain = ["--model", "hiera_atto_video", "--no-pretrained", "--workers", "0", "--device", "cpu"]

    def rows(*argv: str) -> tuple[torch.Tensor, str]:
        extract.main([*argv, *plain, "-o", str(tmp_path / "out"), "--force"])
        with safe_open(tmp_path / "out", "pt") as found:
            return found.get_tensor("pooled"), found.metadata()["frame_rate"]

    (at_30, said), (native, native_said) = rows(str(file)), rows(str(file), "--frame-rate", "native")
    assert (said, native_said) == ("30", "native")
    assert torch.equal(at_30, rows(str(file), "--frame-rate", "native", "--frame-stride", "2")[0])
    assert torch.equal(native, rows(str(file), "--frame-rate", "15")[0])
    assert not torch.equal(at_30, native)
    folder = str(tmp_path / "frames")
    assert torch.equal(rows(folder)[0], rows(folder, "--frame-rate", "native")[0]), "folders of frames tell no rate"
    with pytest.raises(ValueError, match=f"--frame-rate 15: {folder} tells no rate; --frame-rate native would work"):
        rows(str(file), folder, "--frame-rate", "15")


def test_images_that_move_have_the_rate_of_the_default() -> None:
    def clip(**options: Any) -> list[bytes]:
        found, _ = open_source("moving:digits", SIZE, **options).read(5)
        return [image.tobytes() for image in found[0]]

    assert clip() == clip(rate=30) == clip(rate=NATIVE) != clip(rate=15)
    assert clip(rate=15) == clip(stride=8)
