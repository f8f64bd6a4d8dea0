"""Features in a page: colours, and a click on any place shows how like it everything is.

The page is one file that fetches nothing. It holds the features themselves, as directions in int8: the page computes
cosines, which know no lengths. As few principal directions are kept as give every similarity to within TOLERANCE of
that of the full features; where that is more than a page should hold, fewer, and the page says by how much it may be
off. The deviation is measured, from up to ASKED places to all others.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..training.colours import colours, places
from .featuring_sheet import about_random
from .featuring_views import HOW, NARROW, STOPS, Level, Seen

BUDGET = 5_500_000  # bytes of features; base64 makes them a third longer
PHOTOGRAPHS = 1_500_000  # bytes of images
TOLERANCE, ALLOWED = 0.006, 0.01  # of a similarity: aimed at, and beyond which the page says so
TOLERANCES = (TOLERANCE, 0.02, 0.05, 0.1)  # tried one after the other until all fits
COARSE = 32  # cells along a side, below which directions are left off first
ASKED = 256  # places whose similarities are compared
KEPT = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # directions
MOST_COLUMNS = 6  # of panels, in a wide window
TEMPLATE = Path(__file__).with_name("featuring.html")
DATA = "FEATURES_OF_THE_PAGE"  # what stands in the template in their place


class Packed(NamedTuple):
    """The features of a level, as the page holds them."""

    maps: list[Tensor]  # int8 [h, w, K], one for each view
    deviation: float  # the largest of a similarity from that of the full features
    pooled: int  # cells along a side that were averaged to one


def page(seen: Seen, point: tuple[float, float] | None) -> str:
    """The page.

    Args:
        point: that is marked at first, as shares of width and height; None: colours are shown at first.
    """
    packed = fitting([level.maps for level in seen.levels])
    painted = colours([level.maps for level in seen.levels])
    models = list(seen.random)
    content = {
        "columns": min(MOST_COLUMNS, max(len(seen.of(model)) for model in models)),
        "how": HOW,
        "alarms": about_random(seen),
        "stops": STOPS,
        "narrow": NARROW,
        "point": point,
        "views": [
            {"name": Path(view.name).name, "size": view.size, "image": image}
            for view, image in zip(seen.views, photographs([view.image for view in seen.views]), strict=True)
        ],
        "models": [{"name": name, "random": random} for name, random in seen.random.items()],
        "levels": [
            described(level, models.index(level.model), own, paint)
            for level, own, paint in zip(seen.levels, packed, painted, strict=True)
        ],
    }
    # no tag can end the script
    text = json.dumps(content).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace(DATA, text)


def described(level: Level, model: int, packed: Packed, painted: Sequence[Tensor]) -> dict[str, Any]:
    """A level as the page has it."""
    channels, kept = level.maps[0].shape[0], packed.maps[0].shape[-1]
    notes = []
    if packed.deviation > ALLOWED:
        notes.append(f"similarities may be off by {packed.deviation:.2f}: {kept} of {channels} directions are kept")
    if packed.pooled > 1:
        notes.append(f"likeness: of {packed.pooled} x {packed.pooled} cells together")
    maps = [
        {"w": x.shape[1], "h": x.shape[0], "data": coded(x.numpy().tobytes()), "colours": as_png(paint)}
        for x, paint in zip(packed.maps, painted, strict=True)
    ]
    said = {"model": model, "number": level.number, "reduction": level.reduction, "channels": channels, "kept": kept}
    return {**said, "notes": "; ".join(notes), "maps": maps}


# ---- features in few bytes


def fitting(levels: Sequence[Sequence[Tensor]]) -> list[Packed]:
    """The features of all levels in BUDGET bytes: averaged cells in the largest maps, at last fewer directions."""
    pools, tolerances = [1] * len(levels), [*TOLERANCES]
    while True:
        found = [packed(maps, tolerances[0], pool) for maps, pool in zip(levels, pools, strict=True)]
        sizes = [sum(x.numel() for x in one.maps) for one in found]
        if sum(sizes) <= BUDGET:
            return found
        largest = sizes.index(max(sizes))
        if len(tolerances) == 1 or max(max(x.shape[:2]) for x in found[largest].maps) > COARSE:
            pools[largest] *= 2
        else:
            tolerances.pop(0)


def packed(maps: Sequence[Tensor], tolerance: float, pool: int = 1) -> Packed:
    """Directions of features [C, h, w] in int8, the fewest that keep similarities to within a tolerance, if any do."""
    if pool > 1:
        maps = [F.adaptive_avg_pool2d(x, (-(-x.shape[1] // pool), -(-x.shape[2] // pool))) for x in maps]
    unit = F.normalize(places(maps))
    _, axes = torch.linalg.eigh(unit.T.double() @ unit.double())
    turned = unit @ axes.flip(1).float()
    channels = turned.shape[1]
    asked = torch.linspace(0, len(unit) - 1, min(ASKED, len(unit))).long()
    truth = unit[asked] @ unit.T
    for kept in [*(count for count in KEPT if count < channels), channels]:
        codes = in_bytes(turned[:, :kept] @ spreading(kept))
        shown = F.normalize(codes.float())
        deviation = (shown[asked] @ shown.T - truth).abs().max().item()
        if deviation <= tolerance:
            break
    parts = codes.split([x.shape[1] * x.shape[2] for x in maps])
    return Packed([part.unflatten(0, x.shape[1:]) for part, x in zip(parts, maps, strict=True)], deviation, pool)


def spreading(count: int) -> Tensor:
    """A rotation [K, K] that leaves no direction with most of the length, which eight bits would cut coarsely."""
    return torch.linalg.qr(torch.randn(count, count, generator=torch.Generator().manual_seed(0)))[0]


def in_bytes(rows: Tensor) -> Tensor:
    """Rows [N, K] as int8, each to its own largest value."""
    return (rows * (127 / rows.abs().amax(1, keepdim=True).clamp_min(1e-12))).round().to(torch.int8)


# ---- images


def coded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def as_png(pixels: Tensor) -> str:
    """uint8 [h, w, 3] as an address that holds it."""
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.numpy())).save(held, "PNG", optimize=True)
    return f"data:image/png;base64,{coded(held.getvalue())}"


def photographs(images: Sequence[Image.Image]) -> list[str]:
    """Images as addresses that hold them, as small as they must be to fit into PHOTOGRAPHS bytes together."""
    side = max(max(image.size) for image in images)
    while True:
        found = []
        for image in images:
            held, small = io.BytesIO(), image.copy()
            small.thumbnail((side, side))
            small.save(held, "JPEG", quality=88)
            found.append(held.getvalue())
        if sum(map(len, found)) <= PHOTOGRAPHS or side < 64:
            return [f"data:image/jpeg;base64,{coded(content)}" for content in found]
        side = side * 3 // 4
