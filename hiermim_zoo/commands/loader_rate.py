"""How many images a second one process of the training loader makes ready."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from ..data.batches import Batching, batches
from ..data.kinds import open_images
from ..data.photographs import sample_folder
from ..data.transforms import random_part
from .suites import Reading

TILE = 50  # pixels along a side of a small photograph in a large one
QUALITY = 96  # of JPEGs: files as large as those of ImageNet at this size, about 110 kB
PHOTOGRAPHS = 64
FIRST = 2  # batches that are not timed: a worker has to start
SIZE = 224  # pixels along a side of what a model sees
HALF = (0.5, 0.5, 0.5)


@dataclass
class Rate:
    """What the loader came to."""

    kilobytes: float  # of a file, on average
    workers: int
    images_per_second: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of each batch


def loader_rate(row: Reading, device: str) -> Rate:
    """Time batches of the training loader with one worker: what it reads is cut, resized, sent to the device and
    normalised there as in pre-training.
    """
    with TemporaryDirectory() as folder:
        rate = Rate(photographs(Path(folder), row.pixels) / 1000, workers=1)
        source = open_images(folder)
        batching = Batching(PHOTOGRAPHS, row.batch, 1, 0, 1, seed=0)
        transform = random_part((3, SIZE, SIZE), (0.2, 1.0), "bicubic")
        stream = batches(
            source, transform, batching, range(FIRST + row.batches), mean=HALF, std=HALF, input_size=(3, SIZE, SIZE),
            device=torch.device(device), workers=rate.workers,
        )  # fmt: skip
        last = time.perf_counter()
        for _ in stream:
            now = time.perf_counter()
            rate.seconds.append(now - last)
            last = now
        del stream  # and with it the worker
    rate.seconds = rate.seconds[FIRST:]
    rate.images_per_second = row.batch * len(rate.seconds) / sum(rate.seconds)
    return rate


def photographs(folder: Path, pixels: tuple[int, int]) -> float:
    """Write JPEGs, each put together from photographs that come with the package.

    Args:
        folder: for them; it gets a folder for their one class.
        pixels: width and height.

    Returns:
        Bytes of a file, on average.
    """
    files, drawn = sorted(Path(sample_folder()).rglob("*.jpg")), random.Random(0)
    inside = folder / "class"
    inside.mkdir()
    width, height = pixels
    total = 0
    for n in range(PHOTOGRAPHS):
        whole = Image.new("RGB", pixels)
        for left in range(0, width, TILE):
            for top in range(0, height, TILE):
                with Image.open(drawn.choice(files)) as image:
                    whole.paste(image.resize((TILE, TILE), Image.Resampling.BICUBIC), (left, top))
        file = inside / f"{n:04}.jpg"
        whole.save(file, quality=QUALITY)
        total += file.stat().st_size
    return total / PHOTOGRAPHS
