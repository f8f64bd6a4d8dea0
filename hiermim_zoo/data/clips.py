"""Clips of videos as a source: which frames of a video are shown.

A clip has ``frames`` frames. From one to the next are ``stride`` frames at ``rate`` frames a second: of a video with r
frames a second, stride r / rate of its own. In a video too short for that the last one is shown again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from .decoding import Image_
from .seeds import seed_of
from .source import Source, Video, VideoSet, telling

STRIDE = 4  # frames from one shown to the next (arXiv 2306.00989, appendix A)
RATE = 30.0  # frames a second that they are counted at (SlowFast, TARGET_FPS of its configurations)
NATIVE = "native"  # in place of a rate: frames of the file, whatever its rate


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
        stride: frames from one of the clip to the next.
        repeat: clips of a video each time it is opened for training, each with a start of its own.
        views: clips of a video in evaluation, spread evenly from its start to its end; one is from the middle.
        crops: places along the longer side that each of these is shown at, see ``transforms.make_transform``.
        rate: frames a second that ``stride`` counts, or "native": frames of the video, as where it tells no rate.

    Raises:
        ValueError: one of these numbers is less than 1, or the rate not above 0.
    """

    noun = "videos"

    def __init__(
        self,
        videos: VideoSet,
        frames: int,
        stride: int = STRIDE,
        repeat: int = 1,
        views: int = 1,
        crops: int = 1,
        rate: float | str = RATE,
    ) -> None:
        numbers = {"frames": frames, "stride": stride, "repeat": repeat, "views": views, "crops": crops}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} of clips is {value}, it must be 1 or more")
        if rate != NATIVE and not (isinstance(rate, (int, float)) and 0 < rate < math.inf):
            raise ValueError(f"rate of clips is {rate}, it must be above 0, or {NATIVE}")
        self.videos, self.frames, self.stride, self.rate = videos, frames, stride, rate
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
            seed: ``repeat`` clips start where it says; None: the ``views`` of evaluation.

        Raises:
            Exception: of any kind; the video cannot be read.
        """
        with self.videos.open(position) as video:
            offsets = self.offsets(video)
            free = max(0, len(video) - offsets[-1] - 1)  # the last frame that a clip can start at
            if seed is None:
                starts = [round(free * share) for share in evenly_spaced(self.views)]
            else:
                numbers = random.Random(seed_of(seed, position))
                starts = [numbers.randint(0, free) for _ in range(self.repeat)]
            last = len(video) - 1  # shown again behind the end of the video
            shown = video.frames([min(start + offset, last) for start in starts for offset in offsets])
        clips = [shown[i : i + self.frames] for i in range(0, len(shown), self.frames)]
        return clips, self.videos.labels[position]

    def offsets(self, video: Video) -> list[int]:
        """How many frames of a video each frame of a clip is behind the clip's first.

        The n-th is the one nearest to n stride r / rate (a half rounds up) where the video has r frames a second.
        """
        own = None if isinstance(self.rate, str) else video.rate()
        step = Fraction(self.stride) if own is None else self.stride * own / Fraction(self.rate)
        return [math.floor(n * step + Fraction(1, 2)) for n in range(self.frames)]


def clips_of(
    videos: VideoSet,
    frames: int,
    stride: int | None = None,
    rate: float | str | None = None,
    repeat: int | None = None,
    views: Sequence[int] | None = None,
) -> Clips:
    """Clips as the options of a command say; None: the default.

    Raises:
        ValueError: a rate is named that some video does not tell, or a number that does not fit.
    """
    if isinstance(rate, (int, float)) and (untimed := videos.untimed()):
        raise ValueError(f"--frame-rate {rate:g}: {untimed} tells no rate; --frame-rate {NATIVE} would work")
    count, crops = views or (1, 1)
    return Clips(videos, frames, stride or STRIDE, repeat or 1, count, crops, rate or RATE)


def evenly_spaced(count: int) -> list[float]:
    """Numbers evenly from 0 to 1; a single one is in the middle."""
    return [n / (count - 1) for n in range(count)] if count > 1 else [0.5]
