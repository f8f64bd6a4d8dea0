"""Options of ``reconstruct``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import OptionSet
from .fields import flag, option
from .shared import FILES, axes, bands, frame_rate, frame_stride, max_pixels, scale, show_bands, stack
from .values import FRACTION, PATH, whole

MODEL = "the model"
MASKS = "the masks"
DRAWING = "the drawing"


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(OptionSet):
    images: tuple[Path, ...] = option(
        "files, folders (with all below), or tables of files (.csv, .tsv, .txt); with a model of video, files of video "
        "or folders of frames, of which the clip in the middle is taken",
        kind=PATH,
        positional=True,
        spelt=FILES,
        many="+",
        metavar="IMAGE",
    )
    model: str = option("an architecture", metavar="ARCH")
    output: Path = option("image file to write", kind=PATH, metavar="FILE", flags=("-o",))

    checkpoint: Path | None = option(
        "written by convert --mae or by pretrain",
        default=None,
        kind=PATH,
        metavar="DIR",
        auto="random weights",
        group=MODEL,
    )
    raw_pixels: bool = flag("the decoder was trained without normalised pixels", group=MODEL)
    frame_stride: int | None = frame_stride(group=MODEL)
    frame_rate: float | str | None = frame_rate(group=MODEL)

    scale: str | None = scale(group=MODEL)
    bands: tuple[int, ...] | None = bands(group=MODEL)
    axes: str | None = axes(group=MODEL)
    stack: str | None = stack(group=MODEL)
    max_pixels: int | None = max_pixels(group=MODEL)

    mask_ratio: float | None = option(
        "share that is hidden", default=None, kind=FRACTION, metavar="R", auto="the checkpoint's", group=MASKS
    )
    seed: int = option("of the masks", default=0, kind=whole(0), metavar="N", group=MASKS)

    show_bands: tuple[int, ...] | None = show_bands(group=DRAWING)
    statistics: str = option(
        "how normalised pixels become pixels: with each patch's own mean and variance, or the visible ones' average",
        default="true",
        choices=("true", "visible"),
        group=DRAWING,
    )
