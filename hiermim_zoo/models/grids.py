"""Of which grid the table of positions in a checkpoint is: one of 512 rows may be of 32 x 16 or of 64 x 8 cells.

What the folder of a checkpoint says counts first. A table that it says nothing of is taken for a square one. Of a table
that is not square the size that the caller asks for must say it: then nothing is resampled.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor

from ..checkpoints.layouts import Native
from ..geometry import covering
from ..text import counted

_logger = logging.getLogger(__name__)
Size = Any  # one number of pixels, or height and width
REGISTERS = (1, 4, 8, 16)  # how many tokens of registers there are in public models
SHOWN = 6  # grids that a message names


@dataclass(frozen=True)
class Sizes:
    """Image sizes that a checkpoint may have been made for; iterates over those that are said.

    Args:
        said: by what stands beside it, the likeliest first; None where nothing is said.
        asked: by the caller, for the model.
    """

    said: tuple[Size | None, ...] = ()
    asked: Size | None = None

    def whole(self, cell: int) -> Sizes:
        """The same sizes without what is left of a cell at the edges."""
        return Sizes(tuple(_cut(size, cell) for size in self.said), _cut(self.asked, cell))

    def __iter__(self) -> Iterator[Size | None]:
        return iter(self.said)


def _cut(size: Size | None, cell: int) -> Size | None:
    return None if size is None else tuple(side // cell * cell for side in to_2tuple(size))


def sizes_beside(config: Mapping[str, Any]) -> tuple[Size | None, ...]:
    """What config.json beside a checkpoint says, in the form of timm or of transformers; perhaps a stranger's."""
    args, cfg = config.get("model_args"), config.get("pretrained_cfg")
    saved = args.get("img_size") if isinstance(args, dict) else None
    shape = cfg.get("input_size") if isinstance(cfg, dict) else None
    return _size(saved), _size(shape[1:] if isinstance(shape, (list, tuple)) else None), _size(config.get("image_size"))


def _size(value: Any) -> Size | None:
    """One number of pixels, or height and width; None where it is neither."""
    sides = value if isinstance(value, (list, tuple)) else (value, value)
    return tuple(sides) if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides) else None


def sizes_of(native: Native, model: Any) -> Sizes:
    """For the loading of a checkpoint into a model: what is known of the checkpoint, else what timm knows of the
    model's weights.
    """
    if native.size:
        return Sizes((native.size,))
    saved = getattr(model, "pretrained_model_args", {}).get("img_size")
    configured = getattr(model, "pretrained_cfg", {}).get("input_size", (None,))[1:] or None
    return Sizes((saved, configured), model.patch_embed.img_size)


def position_table(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A table of positions, [1, rows, channels].

    Raises:
        ValueError: it is missing, or no such table.
    """
    if name not in state or state[name].ndim != 3 or len(state[name]) != 1:
        found = list(state[name].shape) if name in state else "missing"
        raise ValueError(f"tensor {name!r} [1, rows, channels] is needed from the checkpoint, it is {found}")
    return state[name]


def size_of_decoder(native: Native, cell: int, sizes: Sizes) -> Any:
    """What images a file is for of which no tensor of the encoder tells: the positions of its decoder do, else what is
    known beside it, the likeliest first.

    Args:
        cell: pixels along a side of a token of the decoder.
    """
    if native.decoder:
        rows = position_table(native.decoder, "decoder.pos_embed").shape[1]
        height, width = source_grid(rows, cell, sizes)
        return height * cell, width * cell
    return next(size for size in sizes if size is not None)


def source_grid(count: int, cell: int, sizes: Sizes, prefix: int = 0, rows: int = 1) -> tuple[int, int]:
    """The grid that a table was made for.

    Args:
        count: cells of the table.
        cell: pixels along a side of one.
        sizes: of images that the table may have been made for.
        prefix: rows of the table before those of the grid.
        rows: of the table for every cell.

    Raises:
        ValueError: the cells fit no size and are no square number; names the grids that are possible.
    """
    for size in sizes:
        if size is not None and math.prod(grid := grid_at(size, cell)) == count:
            return grid
    side = math.isqrt(count)
    if side * side == count:
        return side, side
    if sizes.asked is not None and math.prod(grid := grid_at(sizes.asked, cell)) == count:
        if hint := _without_token(count, prefix):
            _logger.warning("positions are read as %s x %s and a row of the class token%s", *grid, hint)
        return grid
    raise ValueError(_which_grid(count, cell, sizes.asked, prefix, rows))


def grid_at(size: Size, cell: int) -> tuple[int, int]:
    """Cells along both sides of an image; the last ones may be filled up."""
    height, width = to_2tuple(size)
    return covering(height, cell), covering(width, cell)


def _without_token(count: int, prefix: int) -> str:
    """What to say of a table that would be square if the class token had no row."""
    side = math.isqrt(count + prefix)
    if not prefix or side * side != count + prefix:
        return ""
    return f"; all {count + prefix} rows would be {side} x {side} without a row of the class token (no_embed_class)"


def _which_grid(count: int, cell: int, asked: Size | None, prefix: int, rows: int) -> str:
    """What to say of a table that nothing is known of."""
    said = f"the position table has {counted(prefix + count * rows, 'rows')}"
    if prefix:
        said += f", {count} and one of the class token"
    if rows > 1:
        said += f", {counted(count, 'units')}"
    said += ": no square, and nothing says of which grid"
    if asked is not None:
        height, width = grid_at(asked, cell)
        said += f" ({' x '.join(map(str, to_2tuple(asked)))} pixels have {height} x {width} = {height * width})"
    side = math.isqrt(count)
    extra = count + prefix - side * side
    said += _without_token(count, prefix)
    if side > 2 and extra == 1:
        said += f"; 1 more than {side * side} = {side} x {side}: a class row?"
    if side > 2 and extra - 1 in REGISTERS:
        said += f"; {extra} more than {side * side} = {side} x {side}: 1 class and {extra - 1} register rows?"
        said += " No model here has registers"
    shapes = [(count // columns, columns) for columns in range(math.isqrt(count), 1, -1) if not count % columns]
    grids = [shape for height, width in shapes for shape in ((height, width), (width, height))][:SHOWN]
    if not grids:
        return f"{said}; no grid of at least 2 x 2 has as many"
    named = ", ".join(f"{height} x {width} (--img-size {height * cell} {width * cell})" for height, width in grids)
    return f"{said}; possible are {named}; for another size convert once with the source's own, then its folder again"
