"""Draw what a masked autoencoder makes of pictures: masked, predicted, pasted, original.

python -m hiermim_zoo.reconstruct PICTURES... --model hivit_base --checkpoint DIR -o out.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from timm.data import create_transform
from torch import Tensor

from .cli import run
from .data import data_config
from .mae import MAEOutput, MaskedAutoencoder, create_mae
from .masking import random_keep
from .writing import replacing

PANELS = ("masked", "prediction", "prediction, visible parts pasted", "original")
SIDE, GAP, HEADER, FOOTER = 224, 8, 28, 48  # pixels of the drawing


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    mae = create_mae(args.model, checkpoint=args.checkpoint, mask_ratio=args.mask_ratio, norm_pix=not args.raw_pixels).eval()
    transform = create_transform(**preprocessing(mae), is_training=False)
    images = torch.stack([transform(read(path)) for path in args.images])  # [B, 3, H, W]
    keep = random_keep(len(images), mae.units, mae.kept, generator=torch.Generator().manual_seed(args.seed))
    with torch.inference_mode():
        out = mae(images, keep)
    title = f"{args.model}, {args.checkpoint or 'random weights'}"
    picture = sheet(mae, images, out, title, args.statistics)
    with replacing(args.output) as part:
        picture.save(part, format=Image.registered_extensions()[args.output.suffix.lower()])
    print(f"wrote {args.output}: loss {out.loss.item():.4f} on what is hidden of {len(images)} pictures")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hiermim_zoo.reconstruct", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="PICTURE")
    parser.add_argument("--model", required=True, metavar="ARCH")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="written by convert --mae (default: random weights)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--mask-ratio", type=float, metavar="R", help="share that is hidden (default: the checkpoint's)")
    parser.add_argument("--raw-pixels", action="store_true", help="the decoder was trained without normalised pixels")
    statistics = "how normalised pixels become pixels: with each patch's own mean and variance, or the visible ones' average"
    parser.add_argument("--statistics", choices=("true", "visible"), default="true", help=statistics)
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    args = parser.parse_args(argv)
    if args.output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{args.output}: name a picture file, like out.png")
    if not args.output.absolute().parent.is_dir():
        raise ValueError(f"{args.output} cannot be written: no such folder")
    return args


def preprocessing(mae: MaskedAutoencoder) -> dict[str, Any]:
    """timm's preprocessing of the encoder, at the size for which the autoencoder was built."""
    if mae.in_chans != 3:
        raise ValueError(f"the model wants {mae.in_chans} channels, pictures have 3")
    return data_config(mae.encoder, mae.input_size)


def read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error})") from error


def sheet(mae: MaskedAutoencoder, images: Tensor, out: MAEOutput, title: str, statistics: str = "true") -> Image.Image:
    """All panels of all images, with a legend.

    Args:
        images: [B, 3, H, W], as given to the autoencoder.
        out: what it said of them.
        title: names model and weights.
        statistics: see :meth:`MaskedAutoencoder.reconstruct`.
    """
    cfg = preprocessing(mae)
    rows = [[to_picture(x[i].cpu(), cfg) for x in panels(mae, images, out, statistics)] for i in range(len(images))]
    scale = f"normalised pixels, undone with {statistics} statistics" if mae.norm_pix else "raw pixels"
    return draw(rows, f"{title}\n{out.keep.shape[1]} of {mae.units} units visible; {scale}")


def panels(mae: MaskedAutoencoder, images: Tensor, out: MAEOutput, statistics: str) -> list[Tensor]:
    """[B, 3, H, W] for each of PANELS; hidden patches of the first are the mean colour."""
    masked = mae.from_patches(mae.patches(images) * ~out.hidden[..., None])
    prediction, pasted = (mae.reconstruct(images, out, statistics, paste) for paste in (False, True))
    return [masked, prediction, pasted, images]


def to_picture(x: Tensor, cfg: dict[str, Any]) -> Image.Image:
    """[3, H, W], normalised -> a picture that is SIDE pixels high or wide at most."""
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = ((x * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = SIDE / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST)


def draw(rows: list[list[Image.Image]], text: str) -> Image.Image:
    """A row a picture, a column a panel, headings above and the legend below."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (len(PANELS) * (width + GAP) + GAP, HEADER + len(rows) * (height + GAP) + FOOTER), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, title in enumerate(PANELS):
        left = GAP + column * (width + GAP)
        pen.text((left, 6), title, "black", font)
        for i, row in enumerate(rows):
            sheet.paste(row[column], (left, HEADER + i * (height + GAP)))
    pen.text((GAP, sheet.height - FOOTER + 4), text, "black", font)
    return sheet


if __name__ == "__main__":
    run(main)
