"""Features on one sheet: an image and its levels in a row, or, of clips, the times in a row and the levels below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..text import counted
from ..training.colours import cell_at, colours, similarity
from .featuring_views import HOW, LIKENESS, NARROW, STOPS, Level, Seen

CELL = 232  # pixels of the longer side of a panel
MARGIN, GAP, CAPTION, TITLE = 36, 12, 40, 34
PAPER, INK, GREY, ALARM = "#ffffff", "#1a1a1a", "#6b6b6b", "#b3261e"


class Panel(NamedTuple):
    """An image of the sheet."""

    image: Image.Image
    caption: str = ""
    alarm: bool = False  # the caption is a warning


def sheet(seen: Seen, point: tuple[float, float] | None) -> Image.Image:
    """The drawing.

    Args:
        point: shares of width and height; None: likenesses are not drawn.
    """
    painted = colours([level.maps for level in seen.levels])
    views = [panels_of(seen, painted, n, point) for n in range(len(seen.views))]
    if seen.views[0].of_clip:  # frames in a row
        columns = [[panel for line in lines for panel in line] for lines in views]
        rows = [list(row) for row in zip(*columns, strict=True)]
    else:
        rows = [line for lines in views for line in lines]
    return laid_out(rows, [HOW, *([LIKENESS] if point else []), *about_random(seen)])


def about_random(seen: Seen) -> list[str]:
    """What must not be overlooked."""
    names = [name for name, random in seen.random.items() if random]
    return [f"RANDOM WEIGHTS: {', '.join(names)} never saw an image; what it gives means little."] if names else []


def panels_of(
    seen: Seen, painted: Sequence[Sequence[Tensor]], n: int, point: tuple[float, float] | None
) -> list[list[Panel]]:
    """Lines of panels of one view: for each model the colours, and the likenesses below them."""
    view = seen.views[n]
    shown = in_cell(view.image)
    lines: list[list[Panel]] = []
    for model, random in seen.random.items():
        line = [Panel(marked(shown, point), f"{Path(view.name).name}\n{view.size[0]} x {view.size[1]} pixels")]
        like = [Panel(Image.new("RGB", (shown.width, 1), PAPER), f"likeness to the\nmarked place, {short(model)}")]
        for at in seen.of(model):
            level = seen.levels[at]
            line.append(Panel(enlarged(painted[at][n], shown.size), caption_of(level, random), random))
            if point:
                values = similarity(level.maps[n], point)
                span = f"level {level.number}: {values.min():.2f} to 1"
                like.append(Panel(marked(enlarged(heat(values), shown.size), place(level.maps[n], point)), span))
        lines += [line, like] if point else [line]
    return lines


def caption_of(level: Level, random: bool) -> str:
    """Model, level, size and channels."""
    name = f"{short(level.model)}{', RANDOM WEIGHTS' if random else ''}"
    return f"{name}\nlevel {level.number}: 1/{level.reduction}, {counted(level.maps[0].shape[0], 'channels')}"


def short(name: str, longest: int = 30) -> str:
    """The end of a name, which tells the most."""
    return name if len(name) <= longest else f"...{name[3 - longest :]}"


# ---- panels


def in_cell(image: Image.Image) -> Image.Image:
    """An image whose longer side is that of a panel."""
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def enlarged(pixels: Tensor, size: tuple[int, int]) -> Image.Image:
    """Every cell of a map [h, w, 3] as a plain rectangle."""
    return Image.fromarray(np.ascontiguousarray(pixels.numpy())).resize(size, Image.Resampling.NEAREST)


def heat(values: Tensor) -> Tensor:
    """Likenesses [h, w] -> colours uint8 [h, w, 3], from the least to 1; where all are about 1, all is bright."""
    stops = torch.tensor([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in STOPS], dtype=torch.float32)
    at = (1 - (1 - values) / (1 - values.min()).clamp_min(NARROW)).clamp(0, 1) * (len(stops) - 1)
    below = at.long().clamp(max=len(stops) - 2)
    part = (at - below)[..., None]
    return (stops[below] * (1 - part) + stops[below + 1] * part).round().byte()


def place(x: Tensor, point: tuple[float, float]) -> tuple[float, float]:
    """The centre of the cell that a point lies in, as a point."""
    row, column = cell_at(x, point)
    return (column + 0.5) / x.shape[-1], (row + 0.5) / x.shape[-2]


def marked(image: Image.Image, point: tuple[float, float] | None) -> Image.Image:
    """A copy with a ring around a point."""
    if point is None:
        return image
    image = image.copy()
    pen = ImageDraw.Draw(image)
    x, y = point[0] * image.width, point[1] * image.height
    for radius, colour, width in ((8, "#000000", 4), (7, "#ffffff", 2)):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    return image


# ---- the sheet


def laid_out(rows: Sequence[Sequence[Panel]], notes: Sequence[str]) -> Image.Image:
    """Rows of panels with their captions, the notes above them."""
    fonts: dict[int, Any] = {size: ImageFont.load_default(size) for size in (12, 14, 22)}
    across = max(len(row) for row in rows)
    cell = max(panel.image.width for row in rows for panel in row)
    cell = max(cell, 200)  # captions
    width = max(2 * MARGIN + across * (cell + GAP) - GAP, 760)
    lines = [(line, note) for note in notes for line in textwrap.wrap(note, (width - 2 * MARGIN) // 7)]
    top = MARGIN + TITLE + 20 * len(lines) + GAP
    heights = [max(panel.image.height for panel in row) + CAPTION + GAP for row in rows]
    drawn = Image.new("RGB", (width, top + sum(heights) + MARGIN - GAP), PAPER)
    pen = ImageDraw.Draw(drawn)
    pen.text((MARGIN, MARGIN - 8), "What the models find", INK, fonts[22])
    for n, (line, note) in enumerate(lines):
        pen.text((MARGIN, MARGIN + TITLE + 20 * n - 4), line, ALARM if note.startswith("RANDOM") else GREY, fonts[14])
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            left = MARGIN + column * (cell + GAP)
            drawn.paste(panel.image, (left, top))
            y = top + panel.image.height + 4
            pen.multiline_text((left, y), panel.caption, ALARM if panel.alarm else GREY, fonts[12], spacing=2)
        top += height
    return drawn
