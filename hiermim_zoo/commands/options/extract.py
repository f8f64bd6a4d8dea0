"""Options of ``extract``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import OptionSet
from .fields import flag, option
from .shared import (
    FILES,
    amp,
    axes,
    bands,
    device,
    frame_rate,
    frame_stride,
    max_pixels,
    scale,
    square_size,
    stack,
    workers,
)
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
        "files, folders (with all below; links to folders are not followed), patterns (** for any depth), tables of "
        "files (.csv, .tsv, .txt)",
        positional=True,
        spelt=FILES,
        many="+",
        metavar="IMAGE",
    )
    model: str = option("ARCH, ARCH.TAG, local-dir:DIR or hf-hub:ORG/NAME; any model of timm", metavar="NAME")
    output: Path = option(
        "file to write, in the form of its ending: .safetensors, .npz, .npy (one array) or .parquet",
        kind=PATH,
        metavar="FILE",
        flags=("-o",),
    )

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
    tile: int | None = option(
        "cut images into tiles of N x N of their own pixels, which are not resized, and put their maps together",
        default=None,
        kind=whole(1),
        metavar="N",
        auto="no tiles",
        group=MODEL,
    )
    overlap: int | None = option(
        "pixels that neighbouring tiles share, a multiple of twice the model's stride",
        default=None,
        kind=whole(0),
        metavar="N",
        auto="about an eighth of the tile",
        group=MODEL,
    )
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
        if self.overlap is not None and not self.tile:
            yield f"--overlap {self.overlap} is that of tiles: add --tile N"
        if self.tile and (self.overlap or 0) > self.tile // 2:
            yield f"--overlap {self.overlap} is more than half of --tile {self.tile}"
        if self.tile and self.img_size:
            yield f"--tile {self.tile} is the size that the model sees: leave out --img-size"
        if self.tile and (self.frame_stride or self.frame_rate):
            flag = "--frame-stride" if self.frame_stride else "--frame-rate"
            yield f"--tile {self.tile} cuts images: leave out {flag}, which is of videos"
        if self.tile and "tokens" in self.what:
            yield f"--tile {self.tile} puts maps together, not tokens: use --what maps"
        yield from self._of_forms()
        if self.seed is not None and self.pretrained:
            yield f"--seed {self.seed} is of the random weights of --no-pretrained: leave it out"

    def _of_forms(self) -> Iterator[str]:
        """What the form of the output cannot hold."""
        ending = self.output.suffix.lower() if self.output else ""
        if self.dtype == "bfloat16" and ending in (".npy", ".npz", ".parquet"):
            yield f"--dtype bfloat16: {ending} has no such numbers; use float16 or float32, or write .safetensors"
        if ending == ".npy" and (len(set(self.what)) > 1 or ("maps" in self.what and len(set(self.levels or ())) != 1)):
            yield f"-o {self.output} holds one array: ask for one kind of features, of maps for one of --levels"
        elif ending == ".npy" and self.tile and "maps" in self.what:
            yield f"-o {self.output} holds one array, but tiles make one of each image: use .npz or .safetensors"
