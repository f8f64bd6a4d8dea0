"""Clips of videos: which frames of a video are shown, and what the DATA of the commands is.

DATA is a folder of videos (:mod:`hiermim_zoo.videos`), or ``moving:DATA``, pictures on the move. A clip has ``frames`` frames,
``stride`` frames of its video apart. In a video too short for that the last frame is shown again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch.utils.data import Dataset

from .data import MODES, is_name, open_pictures, seed_of
from .moving import MOVING, Moving
from .videos import Folder, Video, holds_videos, is_video

STRIDE = 4  # frames from one shown to the next (arXiv 2306.00989, appendix A)


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
        refuse_videos(given)
        try:
            return open_pictures(spec, root=root, split=split, channels=channels, seed=seed, training=training)
        except ValueError:
            refuse_videos({spec: holds_videos(spec)})
            raise
    if channels not in MODES:
        raise ValueError(f"the model wants {channels} channels; frames can be given {', '.join(map(str, MODES))}")
    reader: Reader
    if spec.startswith(MOVING):
        reader = Moving(open_pictures(spec.removeprefix(MOVING), root=root, split=split, channels=channels), (height, width))
    elif Path(spec).is_dir():
        reader = Folder(spec, split, MODES[channels])
    elif is_video(spec) and Path(spec).exists():
        raise ValueError(f"{spec} is a single video: name the folder around it")
    elif is_name(spec) or Path(spec).exists():
        raise ValueError(f"{spec} holds pictures, and the model takes videos: {MOVING}{spec} makes them move")
    else:
        raise ValueError(f"{spec}: no such folder of videos, and no {MOVING}DATA")
    return Clips(reader, frames[0], stride or STRIDE, repeat or 1, *(views or ()))


def refuse_videos(given: Mapping[str, Any]) -> None:
    """Refuse what a model of pictures cannot take.

    Args:
        given: data and options, and whether they are there and of videos.

    Raises:
        ValueError: naming the first that is.
    """
    for name in (name for name, value in given.items() if value):
        raise ValueError(f"{name} is for models of video, and this one takes pictures")


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
