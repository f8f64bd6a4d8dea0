"""What is drawn of features: images, and the maps of levels of models."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image
from torch import Tensor


class View(NamedTuple):
    """An image, or one time of a clip."""

    name: str
    size: tuple[int, int]  # width and height of the file
    image: Image.Image
    of_clip: bool = False


class Level(NamedTuple):
    """A level of a model."""

    model: str
    number: int
    reduction: int
    maps: list[Tensor]  # [C, h, w], one for each view


class Seen(NamedTuple):
    """All that is drawn."""

    views: list[View]
    levels: list[Level]  # model by model
    random: dict[str, bool]  # of each model, whether it was never trained

    def of(self, model: str) -> list[int]:
        """Positions of a model's levels among all."""
        return [n for n, level in enumerate(self.levels) if level.model == model]


HOW = (
    "Colours: the three principal components of each level as red, green and blue, found over all images together, so "
    "like colours are like features. Those of each further level and model are turned to the first ones (orthogonal "
    "Procrustes), so colours can be compared between them, too."
)
LIKENESS = "Likeness: cosine similarity to the marked place, dark where it is least in the panel and bright at 1."
NARROW = 0.02  # the least width of the colours, so that noise of rounding is not spread over all of them
STOPS = ("#1b0c41", "#4a1a6b", "#8b2b6f", "#c8455a", "#f0763c", "#fcb53f", "#fbf3b0")  # from least to most alike
