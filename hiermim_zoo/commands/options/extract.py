"""Options of ``extract``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import OptionSet, flag, option
from .shared import amp, axes, bands, device, frame_rate, frame_stride, max_pixels, scale, square_size, stack, workers
from .values import PATH, whole

WHAT = ("pooled", "tokens", "maps")
DTYPES = ("float32", "float16", "bfloat16")

FEATURES = "which features"
MODEL = "the model"
OUTPUT = "what is written"
COMPUTING = "computing"


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(OptionSet):
    images: tuple[str, ...] = option(
        "files, folders (with all below; links to folders are not followed), patterns (** for any depth)",
        positional=True,
        many="+",
        metavar="IMAGE",
    )
    model: str = option("ARCH, ARCH.TAG, local-dir:DIR or hf-hub:ORG/NAME; any model of timm", metavar="NAME")
    output: Path = option("safetensors file to write", kind=PATH, metavar="FILE", flags=("-o",))

    what: tuple[str, ...] = option(
        "pooled features, last tokens, feature maps",
        default=("pooled",),
        choices=WHAT,
        many="+",
        adds=True,
        group=FEATURES,
    )
    levels: tuple[int, ...] | None = option(
        "of the maps, 0 the finest",
        default=None,
        kind=whole(0),
        many="+",
        adds=True,
        metavar="L",
        auto="all",
        group=FEATURES,
    )

    img_size: int | None = square_size(group=MODEL)
    frame_stride: int | None = frame_stride(group=MODEL)
    frame_rate: float | str | None = frame_rate(group=MODEL)
    pretrained: bool = flag("random weights, to try things out", default=True, off="--no-pretrained", group=MODEL)
    seed: int | None = option(
        "of the random weights of --no-pretrained", default=None, kind=whole(0), metavar="N", auto="0", group=MODEL
    )

    scale: str | None = scale(group=MODEL)
    bands: tuple[int, ...] | None = bands(group=MODEL)
    axes: str | None = axes(group=MODEL)
    stack: str | None = stack(group=MODEL)
    max_pixels: int | None = max_pixels(group=MODEL)

    dtype: str = option("of the tensors written", default="float32", choices=DTYPES, group=OUTPUT)
    force: bool = flag("replace a file that is there", group=OUTPUT)
    on_error: str = option(
        "at an image that cannot be read (skip: it gets no row)",
        default="stop",
        choices=("skip", "stop"),
        group=OUTPUT,
    )

    batch_size: int = option("images fed at once", default=64, kind=whole(1), metavar="N", group=COMPUTING)
    workers: int = workers(group=COMPUTING)
    amp: str = amp(group=COMPUTING)
    device: str | None = device(group=COMPUTING)

    def check_together(self) -> Iterator[str]:
        """Options that have nothing to choose."""
        if self.levels and "maps" not in self.what:
            yield "--levels chooses among feature maps: add --what maps"
        if self.seed is not None and self.pretrained:
            yield "--seed is of the random weights: add --no-pretrained"
