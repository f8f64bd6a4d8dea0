"""Videos without files: images that move over a canvas. What has to be told is what moves which way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

from PIL import Image

from .decoding import Image_
from .seeds import seed_of
from .source import Source, Video, VideoSet

MOVING = "moving:"  # in front of the images
WAYS = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}  # columns and rows
LENGTH, RATE = 96, 30  # frames of a video, and of a second
SHARE = 3 / 8  # of the canvas' shorter side that an image takes
SLOWEST, FASTEST = 1 / 128, 1 / 64  # shares of that side, a frame


class MovingImages(VideoSet):
    """Every image moves each of four ways, from a place and at a speed of its own. What leaves a side enters opposite.

    Position 4 i + w is image i on way w. Its class is both ("7 left"), or the way alone where images have no classes.
    Nothing is stored: frames are drawn when they are wanted, and follow from seed and position.

    Args:
        images: that move.
        size: (height, width) of the canvas.
        seed: of places and speeds.

    Raises:
        ValueError: images come in a stream.
    """

    def __init__(self, images: Source, size: tuple[int, int], seed: int = 0) -> None:
        if images.streamed:
            raise ValueError(f"{MOVING} takes images that can be read in any order, and these come in a stream")
        self.images, self.size, self.seed = images, size, seed
        labels, names = images.labels, images.class_names
        if labels is None or names is None:
            labels, names = [0] * len(images), [""]
        self.class_names = [f"{name} {way}".strip() for name in names for way in WAYS]
        self.labels = [len(WAYS) * label + way for label in labels for way in range(len(WAYS))]
        self.identity, self.other_splits = images.identity, images.other_splits

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, position: int) -> str:
        return f"{MOVING}{position}"

    def reopen(self) -> None:
        self.images.reopen()

    @contextmanager
    def open(self, position: int) -> Iterator[Video]:
        which, way = divmod(position, len(WAYS))
        height, width = self.size
        side = max(1, round(min(self.size) * SHARE))
        image = self.images.read(which)[0]
        if not isinstance(image, Image.Image):
            raise ValueError(f"{MOVING} draws images of 8 bits with 1, 3 or 4 channels, and {which} is none")
        image = image.resize((side, side), Image.Resampling.BICUBIC)
        numbers = random.Random(seed_of(self.seed, position))
        speed = min(self.size) * numbers.uniform(SLOWEST, FASTEST)
        start = numbers.uniform(0, width), numbers.uniform(0, height)
        yield Track(image, (width, height), start, [speed * step for step in list(WAYS.values())[way]])


class Track(Video):
    """An image on its way.

    Args:
        canvas: (width, height) in pixels.
        start: (x, y) of its upper left corner.
        step: pixels a frame in x and y.
    """

    def __init__(
        self, image: Image.Image, canvas: tuple[int, int], start: Sequence[float], step: Sequence[float]
    ) -> None:
        self.image, self.canvas, self.start, self.step = image, canvas, start, step

    def __len__(self) -> int:
        return LENGTH

    def rate(self) -> Fraction:
        return Fraction(RATE)

    def frames(self, wanted: Sequence[int]) -> list[Image_]:
        return [self.frame(n) for n in wanted]

    def frame(self, n: int) -> Image.Image:
        width, height = self.canvas
        x, y = (round(a + n * b) % side for a, b, side in zip(self.start, self.step, self.canvas, strict=True))
        frame = Image.new(self.image.mode, self.canvas)
        for left in (x, x - width):
            for top in (y, y - height):
                frame.paste(self.image, (left, top))
        return frame
