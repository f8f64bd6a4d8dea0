"""Clips of videos as a source: which frames of a video are shown.

A clip has ``frames`` frames, ``stride`` frames of its video apart. In a video too short for that the last one is shown
again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from .decoding import Image_, part_of, size_of
from .seeds import seed_of
from .source import Source, VideoSet, telling

STRIDE = 4  # frames from one shown to the next (arXiv 2306.00989, appendix A)


def refuse_videos(given: Mapping[str, Any]) -> None:
    """Refuse what a model of images cannot take.

    Args:
        given: data and options, and whether they are there and of videos.

    Raises:
        ValueError: naming the first that is.
    """
    for name in (name for name, value in given.items() if value):
        raise ValueError(f"{name} is for models of video, and this one takes images")


class Clips(Source):
    """Clips of videos.

    Args:
        videos: that the clips are cut from.
        frames: of a clip.
        stride: frames of the video from one of the clip to the next.
        repeat: clips of a video each time it is opened for training, each with a start of its own.
        views: clips of a video in evaluation, spread evenly from its start to its end; one is from the middle.
        crops: squares of each of these, spread evenly over the longer side; one is the whole image.

    Raises:
        ValueError: one of these numbers is less than 1.
    """

    noun = "videos"

    def __init__(
        self, videos: VideoSet, frames: int, stride: int = STRIDE, repeat: int = 1, views: int = 1, crops: int = 1
    ) -> None:
        numbers = {"frames": frames, "stride": stride, "repeat": repeat, "views": views, "crops": crops}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} of clips is {value}, it must be 1 or more")
        self.videos, self.frames, self.stride = videos, frames, stride
        self.repeat, self.views, self.crops = repeat, views, crops
        self.labels, self.class_names = telling(videos.labels), videos.class_names
        self.identity, self.other_splits = videos.identity, videos.other_splits

    def __len__(self) -> int:
        return len(self.videos)

    def name_of(self, position: int) -> str:
        return self.videos.name_of(position)

    def reopen(self) -> None:
        self.videos.reopen()

    def read(self, position: int, seed: int | None = None) -> tuple[list[list[Image_]], int]:
        """Clips of one video, each a list of its frames, and the video's label.

        Args:
            seed: ``repeat`` clips start where it says; None: the ``views`` and ``crops`` of evaluation.

        Raises:
            Exception: of any kind; the video cannot be read.
        """
        with self.videos.open(position) as video:
            free = max(0, len(video) - (self.frames - 1) * self.stride - 1)  # the last frame that a clip can start at
            if seed is None:
                starts = [round(free * share) for share in evenly_spaced(self.views)]
            else:
                numbers = random.Random(seed_of(seed, position))
                starts = [numbers.randint(0, free) for _ in range(self.repeat)]
            shown = video.frames([n for start in starts for n in self.frames_from(start, len(video))])
        clips = [shown[i : i + self.frames] for i in range(0, len(shown), self.frames)]
        if seed is None and self.crops > 1:
            clips = [[square(image, share) for image in clip] for clip in clips for share in evenly_spaced(self.crops)]
        return clips, self.videos.labels[position]

    def frames_from(self, start: int, length: int) -> list[int]:
        """The frames of a clip of a video; behind the end of the video its last one again."""
        return [min(start + n * self.stride, length - 1) for n in range(self.frames)]


def evenly_spaced(count: int) -> list[float]:
    """Numbers evenly from 0 to 1; a single one is in the middle."""
    return [n / (count - 1) for n in range(count)] if count > 1 else [0.5]


def square(image: Image_, share: float) -> Image_:
    """The largest square of an image, at a share of the way along the longer side."""
    size = size_of(image)
    side = min(size)
    left, top = (round((length - side) * share) for length in size)
    square: Image_ = part_of(image, left, top, left + side, top + side)
    return square
