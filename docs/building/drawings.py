"""Drawings of masks and windows, computed from the real models: a panel for each level of the pyramid.

They are SVG inside the page, so that colours follow the theme (``static/site.css``). The mask is drawn at random with a
fixed seed, so a drawing is always the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch

import hiermim_zoo
from hiermim_zoo.masking import random_keep
from hiermim_zoo.models.shapes import without_memory

SIDE, GAP, HEAD, FOOT = 168, 18, 24, 40  # pixels of a panel, between panels, above and below one
SHARPEST = 3  # pixels between lines that can be told apart
CROWD = 200  # frames that are drawn with a thin line

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the side of the image


@dataclass(frozen=True)
class Panel:
    """A level: its tokens, which of the image is visible, and who sees whom."""

    title: str
    notes: tuple[str, ...]
    units: int  # along a side
    tokens: int  # along a side of a unit
    visible: frozenset[int]
    windows: tuple[Box, ...] = ()  # none: everything sees everything


def drawing(family: str) -> str:
    """The figure of a family as HTML.

    Raises:
        KeyError: there is none.
    """
    draw, caption = DRAWINGS[family]
    return figure(list(draw()), caption)


# ---- what is drawn


def masked(name: str) -> tuple[Any, int, frozenset[int]]:
    """An encoder without values as pre-training uses it, units along a side, and which stay visible."""
    with without_memory():
        mae = hiermim_zoo.create_mae(name)
    encoder: Any = mae.encoder
    units = encoder.mask_layout.units
    count = units[0] * units[1]
    visible = max(1, int(count * (1 - mae.recipe.mask_ratio)))
    keep = random_keep(1, count, visible, generator=torch.Generator().manual_seed(0))
    return encoder, units[0], frozenset(keep[0].tolist())


def hivit() -> Iterator[Panel]:
    encoder, units, visible = masked("hivit_base")
    first = 0
    for level, (stage, end) in enumerate(zip(encoder.mask_layout.stages, encoder.stage_ends, strict=True)):
        attends = any(hasattr(block, "attn") for block in encoder.blocks[first : end + 1])
        first, side = end + 1, stage.tokens[0]
        seen = "all visible units see each other" if attends else "no attention, MLPs only"
        yield Panel(f"1/{4 * 2**level}", (many(side), seen), units, side, visible, () if attends else grid(units))


def hiera() -> Iterator[Panel]:
    encoder, units, visible = masked("hiera_base")
    ends = encoder.stage_ends
    for level in range(len(ends)):
        side = encoder.mask_layout.stages[min(level, len(encoder.mask_layout.stages) - 1)].tokens[0]
        local = encoder.blocks[ends[level]].attn.fold == (0, 1)  # units join the batch
        seen = "a unit is a window" if local else "all visible units see each other"
        title = f"1/{4 * 8 // side}"
        yield Panel(
            f"stage {level + 1}, {title}", (many(side), seen), units, side, visible, grid(units) if local else ()
        )


def sam2() -> Iterator[Panel]:
    encoder, units, visible = masked("hiera_sam2_tiny")
    ends = encoder.stage_ends
    window = encoder.window
    blocks = encoder.global_att_blocks
    sides = [stage.tokens[0] for stage in encoder.mask_layout.stages]
    kinds: list[tuple[str, str, int, tuple[Box, ...]]] = [
        (f"stage {level + 1}, 1/{32 // sides[level]}", "a unit is a window", sides[level], grid(units))
        for level in range(2)
    ]
    stride = 32 // sides[2]
    kinds.append(
        (f"stages 3 and 4, 1/{stride}", f"windows of {window} x {window} units", sides[2], grid(units / window))
    )
    seen = f"blocks {' and '.join([', '.join(map(str, blocks[:-1])), str(blocks[-1])])} see all visible units"
    kinds.append((f"stage 3, 1/{stride}", seen, sides[2], ()))
    assert max(blocks) <= ends[-1]
    for title, says, side, windows in kinds:
        yield Panel(title, (many(side), says), units, side, visible, windows)


def green(name: str) -> Iterator[Panel]:
    encoder, units, visible = masked(name)
    seen: set[tuple[int, tuple[int, int]]] = set()
    for geometry in encoder.geometries((units, units)):
        key = geometry.tokens, geometry.shift
        if key in seen:
            continue
        seen.add(key)
        side = units * geometry.tokens
        shifted = " shifted" if any(geometry.shift) else ""
        lines = cuts(side, geometry.window[0], geometry.shift[0])
        whole = len(lines) == 2
        says = "one window holds all" if whole else f"windows of {geometry.window[0]} x {geometry.window[1]} tokens"
        windows = () if whole else boxes(lines, side)
        yield Panel(
            f"1/{32 // geometry.tokens}{shifted}",
            (many(geometry.tokens), says),
            units,
            geometry.tokens,
            visible,
            windows,
        )


def swin() -> Iterator[Panel]:
    return itertools.islice(green("green_swin_base"), 4)


def twins() -> Iterator[Panel]:
    return green("green_twins_base")


def hpvit() -> Iterator[Panel]:
    """No mask: the plain ViT was masked before it became this."""
    with without_memory():
        model: Any = timm.create_model("hpvit_base")
    grid_side = model.patch_embed.grid_size[0]
    for level, end in enumerate(model.stage_ends):
        side, window = grid_side // 2**level, model.blocks[end].attn.window
        depth = end - (model.stage_ends[level - 1] if level else -1)
        says = f"windows of {window} x {window} tokens" if window else "all tokens see each other"
        windows = boxes(cuts(side, window, 0), side) if window else ()
        blocks = f"{depth} block{'s' * (depth > 1)}, {side} x {side} tokens"
        yield Panel(f"1/{4 * 2**level}", (blocks, says), side, 1, frozenset(range(side**2)), windows)


DRAWINGS: dict[str, tuple[Any, str]] = {
    "hivit": (hivit, "HiViT-B at 224 x 224 pixels: units of 16 x 16 pixels, a quarter of them visible."),
    "hpvit": (hpvit, "HPViT-B at 224 x 224 pixels: the blocks of a ViT-B at four resolutions."),
    "hiera": (hiera, "Hiera-B at 224 x 224 pixels in pre-training: units of 32 x 32 pixels, 19 of 49 visible."),
    "hiera_sam2": (
        sam2,
        "SAM 2's tiny encoder at 896 x 896 pixels in pre-training: 28 x 28 units, 40 % of them visible.",
    ),
    "green_swin": (swin, "GreenMIM's Swin-B at 224 x 224 pixels: units of 32 x 32 pixels, 12 of 49 visible."),
    "green_twins": (twins, "GreenMIM's Twins-B at 224 x 224 pixels, with the same mask."),
}


def many(side: int) -> str:
    return "one token a unit" if side == 1 else f"{side} x {side} tokens a unit"


def grid(count: float) -> tuple[Box, ...]:
    return boxes([i / count for i in range(int(count) + 1)], 1)


def cuts(side: int, window: int, shift: int) -> list[int]:
    """Where windows of a shifted pattern begin and end, in tokens."""
    first = [0, *range(window - shift if shift else window, side, window), side]
    return sorted(set(first))


def boxes(lines: Iterable[float], side: float) -> tuple[Box, ...]:
    pairs = list(itertools.pairwise([line / side for line in lines]))
    return tuple((left, top, right, bottom) for top, bottom in pairs for left, right in pairs)


# ---- how


def figure(panels: list[Panel], caption: str) -> str:
    """Panels beside each other, which wrap where the page is narrow, with the legend below."""
    drawn = "\n".join(map(panel, panels))
    marks = {"visible": "visible", "hidden": "hidden: never computed", "window": "who sees whom"}
    if not any(len(one.visible) < one.units**2 for one in panels):
        del marks["hidden"], marks["visible"]
    legend = " ".join(f'<span class="key {kind}"></span>{words}' for kind, words in marks.items())
    return (
        f'<figure class="drawing"><div class="panels">\n{drawn}\n</div>\n'
        f'<figcaption>{caption}<br><span class="legend">{legend}</span></figcaption></figure>\n'
    )


def panel(one: Panel) -> str:
    """A level as SVG: visible units in colour with their tokens, hidden ones pale, windows as frames."""
    unit = SIDE / one.units
    parts = [f'<rect class="hidden" x="0" y="{HEAD}" width="{SIDE}" height="{SIDE}"/>']
    lines: list[str] = []
    for index in sorted(one.visible):
        top, left = divmod(index, one.units)
        x, y = left * unit, HEAD + top * unit
        parts.append(f'<rect class="visible" x="{x:.2f}" y="{y:.2f}" width="{unit:.2f}" height="{unit:.2f}"/>')
        if unit / one.tokens >= SHARPEST:
            for i in range(one.tokens + 1):
                at = i * unit / one.tokens
                lines.append(f"M{x + at:.2f} {y:.2f}v{unit:.2f}M{x:.2f} {y + at:.2f}h{unit:.2f}")
    parts.append(f'<path class="token" d="{"".join(lines)}"/>')
    frames = "".join(
        f"M{l * SIDE:.2f} {HEAD + t * SIDE:.2f}H{r * SIDE:.2f}V{HEAD + b * SIDE:.2f}H{l * SIDE:.2f}Z"
        for l, t, r, b in one.windows or ((0, 0, 1, 1),)  # noqa: E741 # left
    )
    many_windows = " fine" if len(one.windows) > CROWD else ""
    parts.append(f'<path class="window{many_windows}" d="{frames}"/>')
    parts.append(f'<text class="title" x="0" y="{HEAD - 8}">{one.title}</text>')
    parts += [f'<text x="0" y="{HEAD + SIDE + 16 * (i + 1)}">{note}</text>' for i, note in enumerate(one.notes)]
    size = f"-2 0 {SIDE + GAP} {HEAD + SIDE + FOOT}"
    label = f"{one.title}: {', '.join(one.notes)}"
    return f'<svg viewBox="{size}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
