"""Scenes to find things in: photographs of examples/pictures pasted on a canvas, each with its box and its class."""

from __future__ import annotations

import random
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

IMAGES = Path(__file__).parent / "pictures"
CLASSES = sorted(path.name for path in IMAGES.iterdir() if path.is_dir())
COLOURS = [tuple(int(255 * channel) for channel in hsv_to_rgb(i / len(CLASSES), 0.8, 1)) for i in range(len(CLASSES))]


class Scene(NamedTuple):
    image: Image.Image
    boxes: Tensor  # [N, 4], left, top, right, bottom in pixels
    labels: Tensor  # int64 [N], from 1; 0 is the background
    classes: Tensor  # int64 [H, W], the label of each pixel


LEARNED, UNSEEN = range(16), range(16, 20)  # photographs of each class: for training, and to measure on


def scene(seed: int, side: int = 128, photographs: range = LEARNED, varied: bool = False) -> Scene:
    """Four photographs, 40 to 60 pixels wide, one in each quarter of a grey canvas.

    Args:
        photographs: their numbers, in each class.
        varied: of each a square part is taken, three quarters as wide or more, and half of them are mirrored.
    """
    rng = random.Random(seed)
    canvas, classes = Image.new("RGB", (side, side), (128, 128, 128)), torch.zeros(side, side, dtype=torch.int64)
    boxes, labels = [], []
    for top in (0, side // 2):
        for left in (0, side // 2):
            label, size = rng.randrange(len(CLASSES)), rng.randint(40, min(60, side // 2))
            x, y = left + rng.randint(0, side // 2 - size), top + rng.randint(0, side // 2 - size)
            file = IMAGES / CLASSES[label] / f"{rng.choice(photographs):04d}.jpg"
            with Image.open(file) as photograph:
                image = photograph.convert("RGB")
            image = part_of(image, rng) if varied else image
            canvas.paste(image.resize((size, size), Image.Resampling.BICUBIC), (x, y))
            classes[y : y + size, x : x + size] = label + 1
            boxes.append([x, y, x + size, y + size])
            labels.append(label + 1)
    return Scene(canvas, torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), classes)


def part_of(image: Image.Image, rng: random.Random) -> Image.Image:
    """A square part of a square image, mirrored or not."""
    side = rng.randint(image.width * 3 // 4, image.width)
    x, y = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    image = image.crop((x, y, x + side, y + side))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def as_tensor(image: Image.Image) -> Tensor:
    """[3, H, W], 0 to 1."""
    return pil_to_tensor(image).float() / 255


def drawn(image: Image.Image, boxes: Tensor, labels: Tensor) -> Image.Image:
    """A copy with boxes in the colours of their classes."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        pen.rectangle(box, outline=COLOURS[label - 1], width=2)
        pen.text((box[0] + 3, box[1] + 2), CLASSES[label - 1], COLOURS[label - 1])
    return image


def in_rows(headings: Sequence[str], rows: Sequence[Sequence[Image.Image]], scale: int = 2) -> Image.Image:
    """Images in rows, enlarged, under the headings of their columns."""
    gap, head = 10, 30
    width, height = (scale * side + gap for side in rows[0][0].size)
    sheet = Image.new("RGB", (gap + width * len(headings), head + height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        pen.text((gap + column * width, 8), heading, "black", ImageFont.load_default(14))
    for n, row in enumerate(rows):
        for column, image in enumerate(row):
            larger = image.resize((width - gap, height - gap), Image.Resampling.NEAREST)
            sheet.paste(larger, (gap + column * width, head + n * height))
    return sheet


def slower(model: nn.Module, part: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW for which a pretrained part of a model learns at a tenth of the rate."""
    own = {id(p) for p in part.parameters()}
    rest = [p for p in model.parameters() if id(p) not in own]
    return torch.optim.AdamW([{"params": list(part.parameters()), "lr": lr / 10}, {"params": rest, "lr": lr}])
