"""What an autoencoder makes of images or clips, drawn on one sheet: masked, predicted, pasted, original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.transforms import data_config
from ..mae import MAEOutput, MaskedAutoencoder

PANELS = ("masked", "prediction", "prediction, visible parts pasted", "original")
# Pixels of the drawing; beside clips, a margin has the panels' names.
SIDE, GAP, HEADER, FOOTER, MARGIN = 224, 8, 28, 48, 150


def preprocessing(mae: MaskedAutoencoder) -> dict[str, Any]:
    """timm's preprocessing of the encoder, at the size for which the autoencoder was built."""
    return data_config(mae.encoder, mae.input_size)


def sheet(mae: MaskedAutoencoder, images: Tensor, out: MAEOutput, title: str, statistics: str = "true") -> Image.Image:
    """All panels of all images, with a legend.

    A row is an image and a column is a panel; of clips, a row is a panel and a column is a frame.

    Args:
        images: [B, 3, H, W] or [B, 3, T, H, W], as given to the autoencoder.
        out: what it said of them.
        title: names model and weights.
        statistics: see :meth:`MaskedAutoencoder.reconstruct`.
    """
    cfg = preprocessing(mae)
    # [B, panels, 3, H, W] or [B, panels, 3, t, H, W]
    shown = torch.stack(panels(mae, images, out, statistics), dim=1).cpu()
    scale = f"normalised pixels, undone with {statistics} statistics" if mae.norm_pix else "raw pixels"
    legend = f"{title}\n{out.keep.shape[1]} of {mae.units} units visible; {scale}"
    if images.ndim == 4:
        return draw([[to_image(x, cfg) for x in row] for row in shown], PANELS, [], legend)
    rows = [[to_image(x, cfg) for x in row.unbind(1)] for row in shown.flatten(0, 1)]
    step = images.shape[2] // len(rows[0])
    return draw(rows, [f"frame {n * step}" for n in range(len(rows[0]))], PANELS * len(images), legend)


def panels(mae: MaskedAutoencoder, images: Tensor, out: MAEOutput, statistics: str) -> list[Tensor]:
    """[B, 3, H, W] for each of PANELS, of clips the predicted frames alone.

    Hidden patches of the first panel have the mean colour.
    """
    masked = mae.from_patches(mae.patches(images) * ~out.hidden[..., None])
    prediction, pasted = (mae.reconstruct(images, out, statistics, paste) for paste in (False, True))
    return [masked, prediction, pasted, mae.predicted(images)]


def to_image(x: Tensor, cfg: dict[str, Any]) -> Image.Image:
    """[C, H, W], normalised -> an image that is SIDE pixels high or wide at most.

    Of three channels or more the first three are red, green and blue; of fewer the first one is grey.
    """
    mean, std = (torch.tensor(cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    shown = (x * std + mean)[[0, 1, 2] if len(x) > 2 else [0, 0, 0]]
    pixels = (shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = SIDE / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.NEAREST)


def draw(rows: list[list[Image.Image]], columns: Sequence[str], names: Sequence[str], legend: str) -> Image.Image:
    """A table of images: headings above the columns, names (if there are any) beside the rows, the legend below."""
    width, height = rows[0][0].size
    edge = GAP + (MARGIN if names else 0)
    sheet = Image.new(
        "RGB", (edge + len(columns) * (width + GAP), HEADER + len(rows) * (height + GAP) + FOOTER), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, heading in enumerate(columns):
        pen.text((edge + column * (width + GAP), 6), heading, "black", font)
    for i, row in enumerate(rows):
        top = HEADER + i * (height + GAP)
        for column, cell in enumerate(row):
            sheet.paste(cell, (edge + column * (width + GAP), top))
        if names:
            pen.text((GAP, top), names[i].replace(", ", ",\n"), "black", font)
    pen.text((GAP, sheet.height - FOOTER + 4), legend, "black", font)
    return sheet
