"""Clips -> lists of pictures: what a video holds, which of its frames are shown, and how these are read.

DATA is a folder of video files (read by PyAV, an extra) or of folders of frames, or ``moving:DATA``, pictures on the move. A clip
has ``frames`` frames, ``stride`` frames of its video apart. In a video too short for that the last frame is shown again.
"""

from __future__ import annotations

import math
import os
import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from timm.data import create_dataset
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key
from torch.utils.data import Dataset

from .data import MODES, decoded, open_pictures, seed_of
from .moving import MOVING, Moving

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
STRIDE = 4  # frames from one shown to the next (arXiv 2306.00989, appendix A)


class Video(Protocol):
    """Frames of one video, in the order of time."""

    def __len__(self) -> int: ...

    def pictures(self, wanted: Sequence[int]) -> list[Image.Image]:
        """Frames by their positions, which may repeat."""
        ...


class Reader(Protocol):
    """Videos with labels; names are those of timm's readers."""

    class_to_idx: dict[str, int]  # names of the classes
    targets: list[int]  # the class of each video

    def open(self, index: int) -> AbstractContextManager[Video]: ...

    def filename(self, index: int) -> str: ...


def open_source(
    spec: str,
    input_size: tuple[int, ...],
    *,
    root: str | None = None,
    split: str = "train",
    seed: int = 0,
    training: bool = True,
    stride: int | None = None,
    repeat: int | None = None,
    views: Sequence[int] | None = None,
) -> Any:
    """Pictures or clips, whatever the model takes.

    Args:
        spec: DATA of a command.
        input_size: of the model: (channels, height, width) or (channels, frames, height, width).
        root: of data that is named; this, ``split``, ``seed`` and ``training``: see :func:`hiermim_zoo.data.open_pictures`.
        stride: of clips alone, like the rest: frames of the video from one shown to the next.
        repeat: clips of a video each time it is opened for training.
        views: in evaluation, clips of a video, and crops of each.

    Raises:
        ValueError: there is no such data, or it is not what the model takes.
    """
    channels, *frames, height, width = input_size
    if not frames:
        given = {spec: spec.startswith(MOVING), "--frame-stride": stride, "--repeat": repeat not in (None, 1), "--views": views}
        for option in (name for name, value in given.items() if value):
            raise ValueError(f"{option} is for models of video; this one takes pictures of {height} x {width}")
        return open_pictures(spec, root=root, split=split, channels=channels, seed=seed, training=training)
    if channels not in MODES:
        raise ValueError(f"the model wants {channels} channels; frames can be given {', '.join(map(str, MODES))}")
    reader: Reader
    if spec.startswith(MOVING):
        reader = Moving(open_pictures(spec.removeprefix(MOVING), root=root, split=split, channels=channels), (height, width))
    else:
        reader = Folder(spec, split, MODES[channels])
    return Clips(reader, frames[0], stride or STRIDE, repeat or 1, *(views or ()))


class Clips(Dataset[tuple[list[list[Image.Image]], int]]):
    """Clips of videos.

    Args:
        frames: of a clip.
        stride: frames of the video from one of the clip to the next.
        repeat: clips of a video each time it is opened for training, each with a start of its own.
        views: clips of a video in evaluation, spread evenly from its start to its end; one is from the middle.
        crops: squares of each of these, spread evenly over the longer side; one is the whole picture.
    """

    def __init__(
        self, reader: Reader, frames: int, stride: int = STRIDE, repeat: int = 1, views: int = 1, crops: int = 1
    ) -> None:
        for name, value in {"frames": frames, "stride": stride, "repeat": repeat, "views": views, "crops": crops}.items():
            if value < 1:
                raise ValueError(f"{name} of clips is {value}, it must be 1 or more")
        self.reader, self.frames, self.stride, self.repeat, self.views, self.crops = reader, frames, stride, repeat, views, crops

    def __len__(self) -> int:
        return len(self.reader.targets)

    def __getitem__(self, index: int) -> tuple[list[list[Image.Image]], int]:
        return self.clips(index)

    def filename(self, index: int, absolute: bool = True) -> str:
        return self.reader.filename(index)

    def clips(self, index: int, seed: int | None = None) -> tuple[list[list[Image.Image]], int]:
        """Clips of one video, and its label.

        Args:
            seed: ``repeat`` clips start where it says; None: the ``views`` and ``crops`` of evaluation.
        """
        with self.reader.open(index) as video:
            free = max(0, len(video) - (self.frames - 1) * self.stride - 1)  # the last frame that a clip can start at
            if seed is None:
                starts = [round(free * share) for share in spread(self.views)]
            else:
                numbers = random.Random(seed_of(seed, index))
                starts = [numbers.randint(0, free) for _ in range(self.repeat)]
            shown = video.pictures([n for start in starts for n in self.positions(start, len(video))])
        found = [shown[i : i + self.frames] for i in range(0, len(shown), self.frames)]
        if seed is None and self.crops > 1:
            found = [[square(picture, share) for picture in clip] for clip in found for share in spread(self.crops)]
        return found, self.reader.targets[index]

    def positions(self, start: int, length: int) -> list[int]:
        """The frames of a clip; behind the end of the video its last one again."""
        return [min(start + n * self.stride, length - 1) for n in range(self.frames)]


def spread(count: int) -> list[float]:
    """Numbers evenly from 0 to 1; a single one is in the middle."""
    return [n / (count - 1) for n in range(count)] if count > 1 else [0.5]


def square(picture: Image.Image, share: float) -> Image.Image:
    """The largest square of a picture, at a share of the way along the longer side."""
    side = min(picture.size)
    left, top = (round((length - side) * share) for length in picture.size)
    return picture.crop((left, top, left + side, top + side))


# ---- folders


class Folder:
    """Videos in a folder: files of video, and folders whose pictures are frames, in the order of their names.

    The folder around a video is its class: CLASS/some.mp4, CLASS/SOME/0001.jpg.

    Raises:
        ValueError: there is no such folder, nothing in it, or nothing here that reads files of video.
    """

    def __init__(self, root: str, split: str, mode: str) -> None:
        if not Path(root).is_dir():
            raise ValueError(f"{root}: no such folder of videos, and no {MOVING}DATA")
        try:
            extensions = ";".join([*VIDEOS, *get_img_extensions()])
            found: Any = create_dataset("", root, split=split, input_key=extensions)
        except RuntimeError as error:  # timm's, of a folder with nothing to read
            raise ValueError(f"{root} holds neither files of video ({', '.join(VIDEOS)}) nor folders of frames") from error
        self.root, self.mode = found.reader.root, mode
        self.files: dict[str, list[str]] = {}  # of each video: itself, or its frames
        for path, _ in found.reader.samples:  # in the natural order of names: 2 before 10
            self.files.setdefault(path if is_video(path) else os.path.dirname(path), []).append(path)
        self.paths = list(self.files)
        if any(map(is_video, self.paths)):
            pyav()
        folders = [os.path.dirname(os.path.relpath(path, self.root)) for path in self.paths]
        names = [os.path.basename(folder) for folder in folders]
        self.class_to_idx = {name: n for n, name in enumerate(sorted(set(names), key=natural_key))}
        self.targets = [self.class_to_idx[name] for name in names]

    def filename(self, index: int) -> str:
        return self.paths[index]

    @contextmanager
    def open(self, index: int) -> Iterator[Video]:
        path = self.paths[index]
        if not is_video(path):
            yield Frames(self.files[path], self.mode)
            return
        # a file of video can be a list of others: these may be on this disk alone
        with pyav().open(path, options={"protocol_whitelist": "file"}) as container:
            yield VideoFile(container, self.mode)


def is_video(path: str) -> bool:
    return path.lower().endswith(VIDEOS)


def pyav() -> Any:
    """PyAV.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError('files of video are read by PyAV: pip install "hiermim-zoo[video]"') from error
    return av


class Frames:
    """Files of pictures as a video."""

    def __init__(self, files: list[str], mode: str) -> None:
        self.files, self.mode = files, mode

    def __len__(self) -> int:
        return len(self.files)

    def pictures(self, wanted: Sequence[int]) -> list[Image.Image]:
        return [decoded(open(self.files[n], "rb"), self.mode) for n in wanted]


class VideoFile:
    """A file of video that PyAV has opened.

    Its packets are listed once, which decodes nothing: the number of frames in its headers is often missing or wrong.

    Raises:
        ValueError: there are no pictures in it.
    """

    def __init__(self, container: Any, mode: str) -> None:
        self.container, self.mode = container, mode
        if not container.streams.video:
            raise ValueError("there is no video in the file")
        self.stream = container.streams.video[0]
        self.stream.codec_context.thread_count = 1  # there is a process for each core already
        packets = [p for p in container.demux(self.stream) if p.pts is not None and not p.is_discard]
        self.times = sorted(p.pts for p in packets)
        self.keys = sorted((p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.is_keyframe)
        if not self.keys:
            raise ValueError("there is no video in the file, or its frames have no times")

    def __len__(self) -> int:
        return len(self.times)

    def pictures(self, wanted: Sequence[int]) -> list[Image.Image]:
        """As of every video: each frame is decoded once, beginning at the last key frame before it."""
        after: dict[int, set[int]] = {}  # key frame -> times of the frames that are decoded from it
        for time in (self.times[n] for n in wanted):
            after.setdefault(max(0, bisect(self.keys, (time, math.inf)) - 1), set()).add(time)
        shown: dict[int, Image.Image] = {}
        for key, times in after.items():
            shown |= self.decode(self.keys[key], sorted(times, reverse=True))
        return [shown[self.times[n]] for n in wanted]

    def decode(self, key: tuple[int, int], waiting: list[int]) -> dict[int, Image.Image]:
        """Frames by their times; in place of one that the decoder leaves out the next, or the last of all."""
        shown: dict[int, Image.Image] = {}
        frame: Any = None
        for frame in self.decoded_from(key):
            if frame.pts >= waiting[-1]:
                picture = frame.to_image().convert(self.mode)
                while waiting and frame.pts >= waiting[-1]:
                    shown[waiting.pop()] = picture
            if not waiting:
                return shown
        if frame is None:
            raise ValueError("no frame can be decoded")
        return shown | dict.fromkeys(waiting, frame.to_image().convert(self.mode))

    def decoded_from(self, key: tuple[int, int]) -> Iterator[Any]:
        """Frames from a key frame on, or from one before it.

        Formats differ in the time that a jump goes by, of showing or of decoding.
        """
        for time in key:
            self.container.seek(time, stream=self.stream)
            frames = self.container.decode(self.stream)
            first = next(frames, None)
            if first is not None and first.pts <= key[0]:
                return chain([first], frames)
        return iter(())
