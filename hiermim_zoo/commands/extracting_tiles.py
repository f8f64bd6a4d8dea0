"""Large images go through the model tile by tile, and their maps are put together again.

Tiles of T x T pixels overlap. A map takes each of its cells from the tile in which it lies further from the edge: two
neighbours are cut in the middle of what they share, between two cells. Tiles begin at multiples of the model's stride,
and the last one ends where the image does, filled up to a multiple of the stride. So a model in which a cell depends on
what lies within half the overlap around it gives the map that it would give of the whole image.

Letters: B tiles of a batch, C channels, D features, H and W pixels of an image, T of a tile, h and w cells of a map.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data.transforms import MaybeToTensor
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.transforms import Normalize

from ..data.decoding import Form
from ..data.parts import Parts
from ..data.readers import readings
from ..data.stacks import parts_of
from ..progress import Progress
from ..training.distributed import World
from .extracting_features import complain, computed, storable
from .extracting_file import DTYPES, write_file
from .extracting_forms import Piece, Tensors
from .extracting_rows import ImageFiles
from .loading import model_errors
from .options.extract import ExtractOptions

WHOLE = {2: torch.int16, 4: torch.int32}  # numbers of so many bytes, to store others as: numpy has no bfloat16


class Span(NamedTuple):
    """A tile along one side of an image, in pixels."""

    start: int
    first: int  # pixels from here
    last: int  # to here, without it, are taken from this tile


class Cutting(NamedTuple):
    """How images are cut into tiles."""

    tile: int
    overlap: int
    stride: int  # at multiples of which tiles begin
    levels: dict[str, int]  # map -> pixels of a cell, along a side

    def spans(self, length: int) -> list[Span]:
        """The tiles along a side of so many pixels.

        The last tile shares more with its neighbour, as a rule, and their cut is rounded down to a whole cell. Half the
        overlap is a multiple of the stride, so at least that much lies between the cut and the edges all the same.
        """
        filled = max(self.tile, math.ceil(length / self.stride) * self.stride)
        step = self.tile - self.overlap
        starts = [*range(0, filled - self.tile, step), filled - self.tile]
        ends = [start + self.tile for start in starts]
        cuts = [(begin + end) // 2 // self.stride * self.stride for begin, end in zip(starts[1:], ends, strict=False)]
        return [Span(*span) for span in zip(starts, [0, *cuts], [*cuts, length], strict=True)]


@torch.no_grad()
def cutting_of(model: Any, options: ExtractOptions, config: dict[str, Any], device: torch.device) -> Cutting:
    """How images are cut for a model.

    Raises:
        ValueError: the model takes videos or no such tiles, or its stride does not divide tile and half the overlap.
    """
    tile, (channels, *frames, _, _) = options.tile, config["input_size"]
    assert tile
    if frames:
        raise ValueError(f"--tile {tile} cuts images, and the model takes videos")
    sides = []
    if hasattr(model, "forward_intermediates"):
        with model_errors(options.model, f"--tile {tile}"):
            zeros = torch.zeros(1, channels, tile, tile, device=device)
            maps = model.forward_intermediates(zeros, intermediates_only=True, output_fmt="NCHW")
            sides = [list(x.shape[2:]) for x in maps]
    cells = [tile // side[0] for side in sides if len(side) == 2 and side[0] == side[1] and tile % side[0] == 0]
    known = [level["reduction"] for level in getattr(model, "feature_info", ())]
    stride = max(cells, default=1)
    if len(cells) < len(sides) or stride % math.lcm(*cells) or (len(known) == len(cells) and known != cells):
        raise ValueError(f"--tile {tile}: the model makes maps of {sides} cells of it, which no larger map is made of")
    levels = {f"map{level}": cell for level, cell in enumerate(cells)}
    overlap = default_overlap(tile, stride) if options.overlap is None else options.overlap
    check_multiples(tile, overlap, stride)
    return Cutting(tile, overlap, stride, levels)


def default_overlap(tile: int, stride: int) -> int:
    """About an eighth of the tile, of which the half is a multiple of the stride, but not 0."""
    return max(1, tile // 8 // (2 * stride)) * 2 * stride


def check_multiples(tile: int, overlap: int, stride: int) -> None:
    """Refuse what cannot be cut in the middle of the overlap at whole cells.

    Raises:
        ValueError: naming what would work.
    """
    good_overlap = math.ceil(overlap / (2 * stride)) * 2 * stride
    good_tile = max(math.ceil(tile / stride) * stride, 2 * good_overlap)
    if (tile, overlap) != (good_tile, good_overlap):
        raise ValueError(
            f"--tile {tile} with an overlap of {overlap}: the tile must be a multiple of the model's stride, {stride}, "
            f"and the overlap one of {2 * stride} and at most half the tile: --tile {good_tile} --overlap "
            f"{good_overlap} would do, or --overlap 0"
        )


class TiledFiles(ImageFiles):
    """Files whose images are cut into tiles."""

    def __init__(self, files: list[str], config: dict[str, Any], form: Form, cutting: Cutting) -> None:
        super().__init__(files, config, form)
        self.cutting = cutting
        self.steps = (MaybeToTensor(), Normalize(config["mean"], config["std"]))

    def can_be_tiled(self, i: int) -> bool:
        return False  # it is already

    def opened(self, i: int) -> Parts:
        return parts_of(self.groups[i] if self.groups else [self.files[i]], self.form)

    def tile(self, image: Parts, row: Span, column: Span) -> Tensor:
        """[C, T, T], normalised; 0, which is the mean, where there is no image."""
        side, (width, height) = self.cutting.tile, image.size
        right, bottom = min(column.start + side, width), min(row.start + side, height)
        part: Any = image.part(column.start, row.start, right, bottom)
        for step in self.steps:
            part = step(part)
        return F.pad(part, (0, side - part.shape[-1], 0, side - part.shape[-2]))

    def about(self) -> dict[str, str]:
        return {"tile": str(self.cutting.tile), "overlap": str(self.cutting.overlap)}


class Chunk(NamedTuple):
    """Some tiles of an image, or why it cannot be read."""

    image: int
    size: tuple[int, int] = (0, 0)  # width and height
    first: int = 0  # of these tiles among all, row by row
    tiles: Tensor | None = None  # [B, C, T, T]
    error: str = ""


class Chunks(IterableDataset[Chunk]):
    """The tiles of some images, in order; each worker takes whole images."""

    def __init__(self, rows: TiledFiles, images: range, batch: int) -> None:
        self.rows, self.images, self.batch = rows, images, batch

    def __iter__(self) -> Iterator[Chunk]:
        worker = get_worker_info()
        for i in self.images[worker.id :: worker.num_workers] if worker else self.images:
            try:
                yield from self.chunks(i)
            except Exception as error:  # decoders of damaged files raise whatever comes up
                yield Chunk(i, error=f"{type(error).__name__}: {error}")

    def chunks(self, i: int) -> Iterator[Chunk]:
        with self.rows.opened(i) as image:
            across, down = map(self.rows.cutting.spans, image.size)
            places = [(row, column) for row in down for column in across]
            for first in range(0, len(places), self.batch):
                tiles = [self.rows.tile(image, *place) for place in places[first : first + self.batch]]
                if first + self.batch >= len(places) and not image.has_values:
                    raise ValueError("none of its pixels has a value: all are no data")
                yield Chunk(i, image.size, first, torch.stack(tiles))


class Stitched:
    """What the tiles of an image come to, as far as they have been seen.

    Args:
        name: begins the names of the files that hold its maps, which may be larger than the memory.
    """

    def __init__(self, cutting: Cutting, size: tuple[int, int], name: Path) -> None:
        self.cutting, self.size, self.name = cutting, size, name
        across, down = map(cutting.spans, size)
        self.places = [(row, column) for row in down for column in across]
        self.maps: dict[str, Any] = {}
        self.pooled: Tensor | None = None
        self.seen = 0

    def add(self, found: dict[str, Tensor]) -> None:
        """The features of the next tiles, on the CPU: "pooled" [B, D], "map0" [B, D, h, w], ..."""
        count = len(next(iter(found.values())))
        for n, (row, column) in enumerate(self.places[self.seen : self.seen + count]):
            for key, values in found.items():
                if key == "pooled":
                    share = (row.last - row.first) * (column.last - column.first) / math.prod(self.size)
                    weighed = values[n].double() * share
                    self.pooled = weighed if self.pooled is None else self.pooled + weighed
                else:
                    self.put(key, values[n], row, column)
        self.seen += count

    def put(self, key: str, values: Tensor, row: Span, column: Span) -> None:
        """The cells [D, h, w] that are taken from one tile."""
        cell = self.cutting.levels[key]
        (top, bottom), (left, right) = ((span.first // cell, math.ceil(span.last / cell)) for span in (row, column))
        y, x = row.start // cell, column.start // cell
        taken = values[:, top - y : bottom - y, left - x : right - x].contiguous()
        cells = taken.view(WHOLE[taken.element_size()]).numpy()
        if key not in self.maps:
            width, height = (math.ceil(length / cell) for length in self.size)
            shape = (len(values), height, width)
            self.maps[key] = np.memmap(f"{self.name}.{key}", cells.dtype, "w+", shape=shape)
        self.maps[key][:, top:bottom, left:right] = cells

    def shapes(self) -> dict[str, list[int]]:
        """Of the maps."""
        return {key: list(array.shape) for key, array in self.maps.items()}

    def discard(self) -> None:
        for key in self.maps:
            os.unlink(f"{self.name}.{key}")


class TiledPart(NamedTuple):
    """What a process made of its images."""

    pooled: dict[int, Tensor]  # by the position of the image
    maps: dict[int, dict[str, list[int]]]  # shapes; the numbers are in files "RANK.IMAGE.KEY"


def write_tiles(model: Any, rows: TiledFiles, options: ExtractOptions, folder: Path, world: World) -> TiledPart:
    """Put together what this process's images come to.

    Raises:
        ValueError: an unreadable image with ``--on-error stop``, the model refuses the tiles, or a process that reads
            was killed.
    """
    images = range(world.rank, len(rows.files), world.size)
    chunks = Chunks(rows, images, options.batch_size)
    loader: Any = DataLoader(chunks, batch_size=None, num_workers=min(options.workers, len(images)))
    part, begun = TiledPart({}, {}), dict[int, Stitched]()
    with Progress(len(images), "image", shown=world.first, leave=True) as bar:
        for chunk in readings(loader):
            i = chunk.image
            if chunk.tiles is None:
                if i in begun:
                    begun.pop(i).discard()
                complain(rows, [(i, chunk.error)], options.on_error)
                bar.update()
                continue
            if i not in begun:
                begun[i] = Stitched(rows.cutting, chunk.size, folder / f"{world.rank}.{i}")
            found = computed(model, chunk.tiles.to(world.device), options)
            begun[i].add(
                {key: storable(key, x, "float32" if key == "pooled" else options.dtype) for key, x in found.items()}
            )
            if begun[i].seen == len(begun[i].places):
                done = begun.pop(i)
                part.maps[i] = done.shapes()
                if done.pooled is not None:
                    part.pooled[i] = storable("pooled", done.pooled[None], options.dtype)[0]
                bar.update()
    return part


def merge_tiles(parts: list[TiledPart], rows: TiledFiles, options: ExtractOptions, folder: Path) -> str:
    """Write the output from what all processes made; returns what there is to say about it.

    Args:
        parts: of the processes, by rank.

    Raises:
        ValueError: no image could be read.
    """
    done = sorted(i for part in parts for i in part.maps)
    tensors = []
    if "pooled" in options.what and done:
        pooled = torch.stack([parts[i % len(parts)].pooled[i] for i in done])
        (folder / "pooled").write_bytes(pooled.view(torch.uint8).numpy().tobytes())
        tensors.append(Tensors("pooled", list(pooled.shape), [Piece(folder / "pooled", 0, pooled.nbytes)]))
    for row, i in enumerate(done):
        for key, shape in parts[i % len(parts)].maps[i].items():
            size = math.prod(shape) * DTYPES[options.dtype].itemsize
            pieces = [Piece(folder / f"{i % len(parts)}.{i}.{key}", 0, size)]
            tensors.append(Tensors(f"{key}.{row}", shape, pieces, row))
    write_file(tensors, [rows.files[i] for i in done], rows, options, folder)
    said = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in tensors[:4]) + (", ..." if len(tensors) > 4 else "")
    return f"wrote {options.output}: {said} in {options.dtype}, from {len(done)} of {len(rows.files)} {rows.things}"
