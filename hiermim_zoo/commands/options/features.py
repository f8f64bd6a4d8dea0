"""Options of ``features``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import OptionSet
from .fields import flag, option
from .shared import FILES, amp, axes, bands, device, frame_rate, frame_stride, max_pixels, scale, show_bands, stack
from .values import FRACTION, PATH, whole

MODEL = "the models"
READING = "how images are read"
DRAWING = "the drawing"
COMPUTING = "computing"


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions(OptionSet):
    images: tuple[str, ...] = option(
        "files, folders (with all below), patterns, or tables of files (.csv, .tsv, .txt); with models of video, files "
        "of video or folders of frames, of which the clip in the middle is taken",
        positional=True,
        spelt=FILES,
        many="+",
        metavar="IMAGE",
    )
    model: tuple[str, ...] = option(
        "ARCH, ARCH.TAG, local-dir:DIR or hf-hub:ORG/NAME; any model of timm; several are drawn side by side",
        many="+",
        adds=True,
        metavar="NAME",
    )
    output: Path = option(
        "to write: an image, or a page (.html) in which a click shows what is like the place",
        kind=PATH,
        metavar="FILE",
        flags=("-o",),
    )

    levels: tuple[int, ...] | None = option(
        "of the feature maps, 0 the finest",
        default=None,
        kind=whole(0),
        many="+",
        adds=True,
        metavar="L",
        auto="all",
        hidden=("--level",),
        group=MODEL,
    )
    img_size: int | None = option(
        "pixels of the longer side of what models see, proportions kept; models of one size see N x N",
        default=None,
        kind=whole(1),
        metavar="N",
        auto="the image's own, from the model's size to 640",
        group=MODEL,
    )
    frame_stride: int | None = frame_stride(group=MODEL)
    frame_rate: float | str | None = frame_rate(group=MODEL)
    pretrained: bool = flag("random weights, to try things out", default=True, off="--no-pretrained", group=MODEL)
    seed: int | None = option(
        "of the random weights of --no-pretrained", default=None, kind=whole(0), metavar="N", auto="0", group=MODEL
    )

    scale: str | None = scale(group=READING)
    bands: tuple[int, ...] | None = bands(group=READING)
    axes: str | None = axes(group=READING)
    stack: str | None = stack(group=READING)
    max_pixels: int | None = max_pixels(group=READING)

    point: tuple[float, ...] | None = option(
        "a place, as shares of width and height: how like it everything is, is drawn too (cosine similarity)",
        default=None,
        kind=FRACTION,
        many=2,
        metavar=("X", "Y"),
        auto="none",
        group=DRAWING,
    )
    show_bands: tuple[int, ...] | None = show_bands(group=DRAWING)

    amp: str = amp(group=COMPUTING)
    device: str | None = device(group=COMPUTING)

    def check_together(self) -> Iterator[str]:
        """Options that have nothing to choose."""
        if self.seed is not None and self.pretrained:
            yield f"--seed {self.seed} is of the random weights of --no-pretrained: leave it out"
        for name in sorted({name for name in self.model or () if (self.model or ()).count(name) > 1}):
            yield f"--model {name} is named twice"
