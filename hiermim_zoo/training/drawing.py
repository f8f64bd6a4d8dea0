"""What an autoencoder makes of images or clips, drawn on one sheet: original, masked, predicted, pasted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.decoding import Form
from ..data.transforms import data_config
from ..mae import MAEOutput, MaskedAutoencoder

PANELS = ("original", "masked", "prediction, visible cells faded", "prediction, visible pixels pasted")
FADED = 0.25  # how much is left of what nobody trained the decoder to predict
# Pixels of the drawing; beside clips, a margin has the panels' names.
SIDE, GAP, HEADER, FOOTER, MARGIN = 224, 8, 28, 48, 150


def preprocessing(mae: MaskedAutoencoder) -> dict[str, Any]:
    """timm's preprocessing of the encoder, at the size for which the autoencoder was built."""
    return data_config(mae.encoder, mae.input_size)


class Shown(NamedTuple):
    """Which channels of images are drawn, and how.

    Args:
        channels: one, drawn as grey, or three, drawn as red, green and blue; counted from 0.
        stretched: from the 2nd to the 98th percentile of each image and channel. Colours of 8 bits are drawn as they
            are.
    """

    channels: tuple[int, ...]
    stretched: bool


def shown_of(form: Form, bands: Sequence[int] | None) -> Shown:
    """What is drawn of images.

    Args:
        form: that they are read in.
        bands: value of --show-bands: channels, counted from 1.

    Raises:
        ValueError: there are no such channels, or neither one nor three of them.
    """
    chosen = tuple(bands or ((1, 2, 3) if form.channels > 2 else (1,)))
    if len(chosen) not in (1, 3) or not all(1 <= band <= form.channels for band in chosen):
        said = " ".join(map(str, chosen))
        raise ValueError(f"--show-bands {said}: one or three of the channels 1 to {form.channels} can be drawn")
    stretched = bool(bands) or form.channels not in (3, 4) or form != Form(form.channels, max_pixels=form.max_pixels)
    return Shown(tuple(band - 1 for band in chosen), stretched)


def sheet(
    mae: MaskedAutoencoder, images: Tensor, out: MAEOutput, title: str, shown: Shown, statistics: str = "true"
) -> Image.Image:
    """All panels of all images, with a legend.

    A row is an image and a column is a panel; of clips, a row is a panel and a column is a frame.

    Args:
        images: [B, C, H, W] or [B, C, T, H, W], as given to the autoencoder.
        out: what it said of them.
        title: names model and weights.
        shown: which channels are drawn.
        statistics: see :meth:`MaskedAutoencoder.reconstruct`.
    """
    cfg = preprocessing(mae)
    # [B, panels, C, H, W] or [B, panels, C, t, H, W]
    drawn = torch.stack(panels(mae, images, out, statistics), dim=1).cpu()
    drawn = torch.stack([in_colours(x, cfg, shown) for x in drawn])
    scale = f"normalised pixels, undone with {statistics} statistics" if mae.norm_pix else "raw pixels"
    legend = f"{title}\n{out.keep.shape[1]} of {mae.units} units visible, which no training asks to predict; {scale}"
    if shown.stretched:
        legend += "; stretched from the 2nd to the 98th percentile"
    if images.ndim == 4:
        return draw([[to_image(x) for x in row] for row in drawn], PANELS, [], legend)
    rows = [[to_image(x) for x in row.unbind(1)] for row in drawn.flatten(0, 1)]
    step = images.shape[2] // len(rows[0])
    return draw(rows, [f"frame {n * step}" for n in range(len(rows[0]))], PANELS * len(images), legend)


def panels(mae: MaskedAutoencoder, images: Tensor, out: MAEOutput, statistics: str) -> list[Tensor]:
    """[B, C, H, W] for each of PANELS, of clips the predicted frames alone.

    Hidden patches of the masked panel have the mean colour. Where the input is visible the prediction is faded towards
    it: the loss never asked for it.
    """
    own = mae.patches(images)
    masked = mae.from_patches(own * ~out.hidden[..., None])
    prediction, pasted = (mae.reconstruct(images, out, statistics, paste) for paste in (False, True))
    left = mae.from_patches(torch.where(out.hidden[..., None], 1.0, FADED).expand_as(own))
    return [mae.predicted(images), masked, prediction * left, pasted]


def in_colours(x: Tensor, cfg: Mapping[str, Any], shown: Shown) -> Tensor:
    """Panels of an image or clip [panels, C, ..., H, W], normalised -> red, green and blue from 0 to 1.

    All panels are stretched as the first one, the original.
    """
    mean, std = (torch.tensor(cfg[key]).view(-1, *[1] * (x.ndim - 2)) for key in ("mean", "std"))
    channels = shown.channels if len(shown.channels) == 3 else shown.channels * 3
    colours = (x * std + mean)[:, list(channels)]
    if shown.stretched:
        ends = torch.tensor([0.02, 0.98])
        low, high = torch.quantile(colours[0].flatten(1), ends, dim=1).view(2, 3, *[1] * (x.ndim - 2))
        colours = (colours - low) / (high - low).clamp_min(1e-6)
    return colours.clamp(0, 1)


def to_image(colours: Tensor) -> Image.Image:
    """[3, H, W], from 0 to 1 -> an image that is SIDE pixels high or wide at most."""
    pixels = (colours * 255).round().byte().permute(1, 2, 0).numpy()
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
