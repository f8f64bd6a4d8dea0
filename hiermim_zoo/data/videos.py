"""Files of video and folders of frames: which files make a video, and how its frames are read.

Files of video are read by PyAV, an extra. The images of a folder are a video where they look like one
(:func:`check_frames`).
"""

from __future__ import annotations

import math
import mmap
import os
import re
import statistics
import sys
from bisect import bisect
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from .decoding import Form, Image_, held_by, in_form, read_file
from .images import is_shown, other_splits
from .source import Video, VideoSet
from .synthetic import MOVING

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
FOLDERS, PAIRS = 8, 4  # folders that are looked into, and neighbours in each
SMALL = (16, 16)  # pixels at which they are compared
# Grey levels, of 255, that neighbours may differ by: a quarter of a second of moving photographs makes 8, half a second
# 12; images of CIFAR-10 have 60 between them, scans of digits 33.
ALIKE = 20
SAID = mmap.mmap(-1, 1)  # whether a file without a rate was named; processes that read share it with their parent


def is_video(path: str) -> bool:
    return path.lower().endswith(VIDEOS)


def suffixes() -> tuple[str, ...]:
    """Of files of video and of frames."""
    return (*VIDEOS, *get_img_extensions())


def files_in(path: str) -> list[str]:
    """The files of a folder that videos are made of; a file is itself.

    Raises:
        ValueError: there is nothing of that name, or nothing in it.
    """
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file or folder")
    if not os.path.isdir(path):
        return [path]
    names = [name for name in os.listdir(path) if is_shown(name) and name.lower().endswith(suffixes())]
    found = [os.path.join(path, name) for name in names]
    if not found:
        raise ValueError(f"{path} holds neither files of video ({', '.join(VIDEOS)}) nor frames")
    return sorted(found, key=natural_key)


def holds_videos(path: str) -> bool:
    """Whether this is a file of video, or a folder with one at any depth."""
    return is_video(path) or any(is_video(name) for _, _, names in os.walk(path) for name in names)


class Videos(VideoSet):
    """Videos without labels, in the order of their files.

    Args:
        files: of video, and images: those of a folder are one video, which is called by the folder.
        form: that the frames are wanted in.

    Raises:
        ValueError: images that are no frames, or nothing here that reads files of video.
    """

    def __init__(self, files: Iterable[str], form: Form) -> None:
        if form.stack:
            raise ValueError(f"--stack {','.join(form.stack)} joins files into images, and the model takes videos")
        self.form = form
        self.files: dict[str, list[str]] = {}  # of each video: itself, or its frames
        for path in dict.fromkeys(files):
            self.files.setdefault(path if is_video(path) else os.path.dirname(path) or os.curdir, []).append(path)
        for frames in self.files.values():
            frames.sort(key=natural_key)  # 2 before 10
        check_frames([frames for path, frames in self.files.items() if not is_video(path)])
        self.paths = list(self.files)
        self.labels: list[int] = [-1] * len(self.paths)
        self.identity: Hashable = tuple(self.paths)
        if any(map(is_video, self.paths)):
            pyav()

    def __len__(self) -> int:
        return len(self.paths)

    def name_of(self, position: int) -> str:
        return self.paths[position]

    def untimed(self) -> str | None:
        return next((path for path in self.paths if not is_video(path)), None)

    @contextmanager
    def open(self, position: int) -> Iterator[Video]:
        path = self.paths[position]
        if not is_video(path):
            yield Frames(self.files[path], self.form)
            return
        # a file of video can be a list of others: these may be on this disk alone
        with pyav().open(path, options={"protocol_whitelist": "file"}) as container:
            yield VideoFile(container, self.form, path)


class VideoFolder(Videos):
    """Videos in a folder. The folder around each is its class: CLASS/some.mp4, CLASS/SOME/0001.jpg.

    Raises:
        ValueError: there is nothing in it, or images that are no frames, or nothing here that reads files of video.
    """

    def __init__(self, root: str, split: str, form: Form) -> None:
        try:
            found: Any = create_dataset("", root, split=split, input_key=";".join(suffixes()))
        except RuntimeError as error:  # timm's, of a folder with nothing to read
            raise ValueError(
                f"{root} holds neither files of video ({', '.join(VIDEOS)}) nor folders of frames"
            ) from error
        try:
            paths = [path for path, _ in found.reader.samples if is_shown(os.path.relpath(path, found.reader.root))]
            super().__init__(paths, form)
        except NoFrames as error:
            raise ValueError(f"{error}; to make images move, name {MOVING}{root}") from error
        inside = found.reader.root  # the folder of the split, if there is one
        folders = [os.path.dirname(os.path.relpath(path, inside)) for path in self.paths]
        names = [os.path.basename(folder) for folder in folders]
        self.class_names = sorted(set(names), key=natural_key)
        label_of = {name: label for label, name in enumerate(self.class_names)}
        self.labels = [label_of[name] for name in names]
        self.identity = os.path.realpath(inside)
        self.other_splits = other_splits(root, inside)


# ---- frames or images


class NoFrames(ValueError):
    """Images lie where a video is wanted."""


def check_frames(folders: Sequence[Sequence[str]]) -> None:
    """Refuse images that are no frames of videos.

    The names of frames are alike but for their numbers. Where they do not say "frame" themselves, some neighbours are
    looked at, for numbered photographs of one size are as common as videos: frames have one size, and change little
    from one to the next.

    Args:
        folders: the images of each, in order.

    Raises:
        NoFrames: naming one.
    """
    what = "the model takes videos, whose frames are numbered, of one size, and alone in a folder"
    for files in folders:
        kinds = {re.sub(r"\d+", "#", os.path.basename(file).lower()): file for file in files}
        if len(kinds) > 1 or "#" not in next(iter(kinds)):
            raise NoFrames(f"{list(kinds.values())[-1]} is an image by itself: {what}")
    if folders and max(map(len, folders)) == 1:
        raise NoFrames(f"{folders[0][0]} is a single image: {what}")
    unsaid = [files for files in folders if len(files) > 1 and "frame" not in os.path.basename(files[0]).lower()]
    seen = [(change, files[0]) for files in some(unsaid, FOLDERS) if (change := typical_change(files)) is not None]
    if seen and statistics.median(change for change, _ in seen) > ALIKE:
        raise NoFrames(
            f"{max(seen)[1]} and the images beside it have little in common: {what}; names of frames would say so"
        )


def typical_change(files: Sequence[str]) -> float | None:
    """Grey levels between some neighbours, as a rule; None if they cannot be read."""
    pairs = (difference(files[i], files[i + 1]) for i in some(range(len(files) - 1), PAIRS))
    return statistics.median(found) if (found := [change for change in pairs if change is not None]) else None


def difference(one: str, other: str) -> float | None:
    """Mean difference of two images in grey levels; infinite if their sizes differ, None if one cannot be read."""
    try:
        images = [grey(file) for file in (one, other)]
    except Exception:  # decoders of damaged files raise whatever comes up; whoever needs the image will name it
        return None
    if images[0].size != images[1].size:
        return math.inf
    small = [np.asarray(image.resize(SMALL, Image.Resampling.BOX), np.float64) for image in images]
    return float(np.abs(small[0] - small[1]).mean())


def grey(file: str) -> Image.Image:
    """An image in 256 levels of grey."""
    image = read_file(file, Form(1))
    return image if isinstance(image, Image.Image) else Image.fromarray((image[0] * 255).byte().numpy())


def some(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of them, evenly spaced."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


# ---- reading


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


class Frames(Video):
    """Files of images as a video."""

    def __init__(self, files: list[str], form: Form) -> None:
        self.files, self.form = files, form

    def __len__(self) -> int:
        return len(self.files)

    def frames(self, wanted: Sequence[int]) -> list[Image_]:
        return [read_file(self.files[n], self.form) for n in wanted]


class VideoFile(Video):
    """A file of video that PyAV has opened.

    Its packets are listed once, which decodes nothing: the number of frames in its headers is often missing or wrong.

    Args:
        path: for messages.

    Raises:
        ValueError: there are no images in it.
    """

    def __init__(self, container: Any, form: Form, path: str) -> None:
        self.container, self.form, self.path = container, form, path
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

    def rate(self) -> Fraction | None:
        """What the container says. That one says nothing is itself said once, of the first such file."""
        told: Fraction | None = self.stream.average_rate
        if told:
            return told
        if not SAID[0]:
            SAID[0] = 1
            what = "does not tell its frames a second: of it, and of others like it, frames are counted as they are"
            print(f"{self.path} {what}", file=sys.stderr)
        return None

    def frames(self, wanted: Sequence[int]) -> list[Image_]:
        """As of every video: each frame is decoded once, beginning at the last key frame before it."""
        after: dict[int, set[int]] = {}  # key frame -> times of the frames that are decoded from it
        for time in (self.times[n] for n in wanted):
            after.setdefault(max(0, bisect(self.keys, (time, math.inf)) - 1), set()).add(time)
        shown: dict[int, Image_] = {}
        for key, times in after.items():
            shown |= self.decode(self.keys[key], sorted(times, reverse=True))
        return [shown[self.times[n]] for n in wanted]

    def decode(self, key: tuple[int, int], waiting: list[int]) -> dict[int, Image_]:
        """Frames by their times; in place of one that the decoder leaves out the next, or the last of all."""
        shown: dict[int, Image_] = {}
        frame: Any = None
        for frame in self.decoded_from(key):
            if frame.pts >= waiting[-1]:
                image = in_form(held_by(frame.to_image()), self.form)
                while waiting and frame.pts >= waiting[-1]:
                    shown[waiting.pop()] = image
            if not waiting:
                return shown
        if frame is None:
            raise ValueError("no frame can be decoded")
        return shown | dict.fromkeys(waiting, in_form(held_by(frame.to_image()), self.form))

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
