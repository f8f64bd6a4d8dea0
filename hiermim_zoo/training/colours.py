"""Features become something to look at: colours from principal components, and cosine similarities to one place.

Letters: C channels, h and w of a map, N places of all maps of a level together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ENDS = (0.02, 0.98)  # quantiles that are shown as dark and bright: outliers would leave the rest grey
FITTED = 2**16  # places at most that components are found on


def places(maps: Sequence[Tensor]) -> Tensor:
    """Maps [C, h, w], each of its own size -> all their places, float32 [N, C]."""
    return torch.cat([x.float().flatten(1).T for x in maps])


def components(maps: Sequence[Tensor]) -> list[Tensor]:
    """The three principal components of all maps of one level together, each of variance 1.

    Args:
        maps: [C, h, w] each; their sizes may differ.

    Returns:
        [3, h, w] each; of fewer than three channels, or of maps that are alike everywhere, the rest is 0. A component
        points the way in which its largest share of a channel is positive, so the same maps give the same ones.
    """
    rows = places(maps).double()
    some = rows[:: -(-len(rows) // FITTED)]
    mean = some.mean(0)
    spread, axes = torch.linalg.eigh((some - mean).T @ (some - mean) / len(some))  # the last have the largest variance
    axes, spread = axes[:, -3:].flip(1), spread[-3:].flip(0)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    least = 1e-9 * max(1e-12, spread.max().item())
    found = (rows - mean) @ axes * torch.where(spread > least, spread.clamp_min(least).rsqrt(), 0)
    found = F.pad(found, (0, 3 - found.shape[1])).float()
    sizes = [x.shape[-2:] for x in maps]
    parts = found.split([height * width for height, width in sizes])
    return [part.T.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]


def turned(found: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Components turned so that they come as near as they can to those of another level or model.

    The turn (with a reflection, if that is nearer) is the solution of the orthogonal Procrustes problem over the places
    that both share: the finer maps are averaged over the cells of the coarser ones. What is alike in one level stays as
    alike as it is; only which colour stands for it is chosen.

    Source: P. Schoenemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31, 1966.

    Args:
        found: [3, h, w] each, of the same images as ``like``.
        like: [3, h', w'] each.
    """
    pairs = []
    for x, y in zip(found, like, strict=True):
        size = (min(x.shape[1], y.shape[1]), min(x.shape[2], y.shape[2]))
        pairs.append([F.adaptive_avg_pool2d(one, size).flatten(1) for one in (x, y)])
    x, y = (torch.cat(one, dim=1).double() for one in zip(*pairs, strict=True))
    left, _, right = torch.linalg.svd(y @ x.T)
    turn = (left @ right).float()
    return [(turn @ one.flatten(1)).unflatten(1, one.shape[1:]) for one in found]


def in_range(found: Sequence[Tensor]) -> list[Tensor]:
    """Components [3, h, w] -> colours uint8 [h, w, 3], over the range that all of them have together."""
    together = torch.cat([x.flatten(1) for x in found], dim=1)
    together = together[:, :: -(-together.shape[1] // FITTED)]
    low, high = torch.quantile(together, torch.tensor(ENDS), dim=1)[..., None, None]
    shades = [(x - low) / (high - low).clamp_min(1e-6) for x in found]
    return [(255 * x.clamp(0, 1)).round().byte().movedim(0, -1).contiguous() for x in shades]


def colours(levels: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Colours of several levels, of one model or of several, that can be compared.

    Within a level like colours are like features, in all images. The components of each further level are turned to
    those of the first: see :func:`turned`.

    Args:
        levels: for each, the maps [C, h, w] of all images; images in the same order.

    Returns:
        uint8 [h, w, 3] in their places.
    """
    found = [components(maps) for maps in levels]
    return [in_range(x if n == 0 else turned(x, found[0])) for n, x in enumerate(found)]


def cell_at(x: Tensor, point: tuple[float, float]) -> tuple[int, int]:
    """Row and column of the cell of a map [..., h, w] at a point.

    Args:
        point: from the left and from the top, as shares of width and height.
    """
    height, width = x.shape[-2:]
    return min(int(point[1] * height), height - 1), min(int(point[0] * width), width - 1)


def similarity(x: Tensor, point: tuple[float, float]) -> Tensor:
    """Cosine similarity of all places of a map [C, h, w] to the one at a point: [h, w]; see :func:`cell_at`."""
    unit = F.normalize(x.float(), dim=0)
    row, column = cell_at(unit, point)
    return torch.einsum("chw,c->hw", unit, unit[:, row, column])
