"""Options of ``stats``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import OptionSet
from .fields import option
from .shared import FILES, axes, bands, max_pixels, scale, workers
from .values import PATH, whole


@dataclass(frozen=True, kw_only=True)
class StatsOptions(OptionSet):
    data: str = option(
        "folder of images, tar, table of files (.csv, .tsv, .txt), or hfds/NAME", positional=True, spelt=FILES
    )
    data_dir: str | None = option("root folder of data that is named", default=None, metavar="DIR", auto="none")
    split: str = option("part of the data", default="train", metavar="NAME")
    scale: str | None = scale()
    bands: tuple[int, ...] | None = bands()
    axes: str | None = axes()
    max_pixels: int | None = max_pixels()
    most: int | None = option(
        "look at so many images, evenly spaced", default=None, kind=whole(1), metavar="N", auto="all"
    )
    workers: int = workers()
    json: Path | None = option("write the result here too", default=None, kind=PATH, metavar="FILE", auto="nowhere")
