"""Videos without files: pictures that move over a canvas. What has to be told is what moves which way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from .data import class_names, is_stream, labels_of, read, seed_of

MOVING = "moving:"  # in front of the pictures
WAYS = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}  # columns and rows
LENGTH = 96  # frames of a video
SHARE = 3 / 8  # of the canvas' shorter side that a picture takes
SLOWEST, FASTEST = 1 / 128, 1 / 64  # shares of that side, a frame


class Moving:
    """Every picture moves each of four ways, from a place and at a speed of its own; leaving on one side, it enters on the other.

    Position 4 i + w is picture i on way w. Its class is both ("7 left"), or the way alone where pictures have no classes.
    Nothing is stored: frames are drawn when they are wanted, and follow from seed and position.

    Args:
        pictures: of ``data.open_pictures``.
        size: (height, width) of the canvas.
        seed: of places and speeds.

    Raises:
        ValueError: pictures come in a stream.
    """

    def __init__(self, pictures: Any, size: tuple[int, int], seed: int = 0) -> None:
        if is_stream(pictures):
            raise ValueError(f"{MOVING} takes pictures that can be read in any order, and these come in a stream")
        self.pictures, self.size, self.seed = pictures, size, seed
        labels, names = labels_of(pictures), class_names(pictures)
        if labels is None or names is None:
            labels, names = [0] * len(pictures), [""]
        self.class_to_idx = {f"{name} {way}".strip(): n for n, (name, way) in enumerate((n, w) for n in names for w in WAYS)}
        self.targets = [len(WAYS) * label + way for label in labels for way in range(len(WAYS))]

    def filename(self, index: int) -> str:
        return f"{MOVING}{index}"

    @contextmanager
    def open(self, index: int) -> Iterator[Track]:
        which, way = divmod(index, len(WAYS))
        height, width = self.size
        side = max(1, round(min(self.size) * SHARE))
        picture = read(self.pictures, which)[0].resize((side, side), Image.Resampling.BICUBIC)
        numbers = random.Random(seed_of(self.seed, index))
        speed = min(self.size) * numbers.uniform(SLOWEST, FASTEST)
        start = numbers.uniform(0, width), numbers.uniform(0, height)
        yield Track(picture, (width, height), start, [speed * step for step in list(WAYS.values())[way]])


class Track:
    """A picture on its way.

    Args:
        canvas: (width, height) in pixels.
        start: (x, y) of its upper left corner.
        step: pixels a frame in x and y.
    """

    def __init__(self, picture: Image.Image, canvas: tuple[int, int], start: Sequence[float], step: Sequence[float]) -> None:
        self.picture, self.canvas, self.start, self.step = picture, canvas, start, step

    def __len__(self) -> int:
        return LENGTH

    def pictures(self, wanted: Sequence[int]) -> list[Image.Image]:
        return [self.frame(n) for n in wanted]

    def frame(self, n: int) -> Image.Image:
        width, height = self.canvas
        x, y = (round(a + n * b) % side for a, b, side in zip(self.start, self.step, self.canvas, strict=True))
        frame = Image.new(self.picture.mode, self.canvas)
        for left in (x, x - width):
            for top in (y, y - height):
                frame.paste(self.picture, (left, top))
        return frame
