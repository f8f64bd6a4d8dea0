"""Draw what a masked autoencoder makes of pictures or clips: masked, predicted, pasted, original.

python -m hiermim_zoo.reconstruct PICTURES... --model hivit_base --checkpoint DIR -o out.png
python -m hiermim_zoo.reconstruct CLIP.mp4 FOLDER_OF_FRAMES --model hiera_base_video --checkpoint DIR -o out.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .cli import at_least, run
from .clips import STRIDE, Clips, refuse_videos
from .data import data_config, make_transform
from .mae import MAEOutput, MaskedAutoencoder, create_mae
from .masking import random_keep
from .videos import Videos, files_in, is_video
from .writing import replacing

PANELS = ("masked", "prediction", "prediction, visible parts pasted", "original")
SIDE, GAP, HEADER, FOOTER, MARGIN = 224, 8, 28, 48, 150  # pixels of the drawing; a margin has the panels' names beside clips


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    mae = create_mae(args.model, checkpoint=args.checkpoint, mask_ratio=args.mask_ratio, norm_pix=not args.raw_pixels).eval()
    images = read(args.images, preprocessing(mae), args.frame_stride)
    keep = random_keep(len(images), mae.units, mae.kept, generator=torch.Generator().manual_seed(args.seed))
    with torch.inference_mode():
        out = mae(images, keep)
    title = f"{args.model}, {args.checkpoint or 'random weights'}"
    picture = sheet(mae, images, out, title, args.statistics)
    with replacing(args.output) as part:
        picture.save(part, format=Image.registered_extensions()[args.output.suffix.lower()])
    things = "pictures" if images.ndim == 4 else "clips"
    print(f"wrote {args.output}: loss {out.loss.item():.4f} on what is hidden of {len(images)} {things}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hiermim_zoo.reconstruct", description=(__doc__ or "").splitlines()[0])
    what = "files; with a model of video, files of video or folders of frames, of which the clip in the middle is taken"
    parser.add_argument("images", nargs="+", type=Path, metavar="PICTURE", help=what)
    parser.add_argument("--model", required=True, metavar="ARCH")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="written by convert --mae (default: random weights)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--mask-ratio", type=float, metavar="R", help="share that is hidden (default: the checkpoint's)")
    parser.add_argument("--raw-pixels", action="store_true", help="the decoder was trained without normalised pixels")
    apart = f"frames of a video from one that is shown to the next (default: {STRIDE})"
    parser.add_argument("--frame-stride", type=at_least(1), metavar="N", help=apart)
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


def read(paths: Sequence[Path], config: dict[str, Any], stride: int | None) -> Tensor:
    """Pictures [B, 3, H, W], or the clips in the middle of videos [B, 3, T, H, W].

    Raises:
        ValueError: one cannot be read, or is not what the model takes.
    """
    transform = make_transform(**config, is_training=False)
    _, *frames, _, _ = config["input_size"]
    if not frames:
        refuse_videos({"--frame-stride": stride})
        return torch.stack([transform(picture(path)) for path in paths])
    videos = Videos((file for path in paths for file in files_in(str(path))), "RGB")
    clips = Clips(videos, frames[0], stride or STRIDE)
    return torch.stack([transform([clip(clips, i)])[0] for i in range(len(clips))])


def picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        refuse_videos({str(path): path.exists() and is_video(str(path))})
        raise ValueError(f"{path} cannot be read as a picture ({error})") from error


def clip(clips: Clips, index: int) -> list[Image.Image]:
    try:
        return clips[index][0][0]
    except Exception as error:  # decoders of damaged files raise whatever comes up
        raise ValueError(f"{clips.filename(index)} cannot be read as a video ({error})") from error


def sheet(mae: MaskedAutoencoder, images: Tensor, out: MAEOutput, title: str, statistics: str = "true") -> Image.Image:
    """All panels of all images, with a legend: a row a picture, a column a panel; of clips a row a panel, a column a frame.

    Args:
        images: [B, 3, H, W] or [B, 3, T, H, W], as given to the autoencoder.
        out: what it said of them.
        title: names model and weights.
        statistics: see :meth:`MaskedAutoencoder.reconstruct`.
    """
    cfg = preprocessing(mae)
    shown = torch.stack(panels(mae, images, out, statistics), dim=1).cpu()  # [B, panels, 3, H, W] or [B, panels, 3, t, H, W]
    scale = f"normalised pixels, undone with {statistics} statistics" if mae.norm_pix else "raw pixels"
    legend = f"{title}\n{out.keep.shape[1]} of {mae.units} units visible; {scale}"
    if images.ndim == 4:
        return draw([[to_picture(x, cfg) for x in row] for row in shown], PANELS, [], legend)
    rows = [[to_picture(x, cfg) for x in row.unbind(1)] for row in shown.flatten(0, 1)]
    step = images.shape[2] // len(rows[0])
    return draw(rows, [f"frame {n * step}" for n in range(len(rows[0]))], PANELS * len(images), legend)


def panels(mae: MaskedAutoencoder, images: Tensor, out: MAEOutput, statistics: str) -> list[Tensor]:
    """[B, 3, H, W] for each of PANELS, of clips the predicted frames alone; hidden patches of the first are the mean colour."""
    masked = mae.from_patches(mae.patches(images) * ~out.hidden[..., None])
    prediction, pasted = (mae.reconstruct(images, out, statistics, paste) for paste in (False, True))
    return [masked, prediction, pasted, mae.predicted(images)]


def to_picture(x: Tensor, cfg: dict[str, Any]) -> Image.Image:
    """[3, H, W], normalised -> a picture that is SIDE pixels high or wide at most."""
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = ((x * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = SIDE / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST)


def draw(rows: list[list[Image.Image]], columns: Sequence[str], names: Sequence[str], legend: str) -> Image.Image:
    """A table of pictures: headings above the columns, names (if there are any) beside the rows, the legend below."""
    width, height = rows[0][0].size
    edge = GAP + (MARGIN if names else 0)
    sheet = Image.new("RGB", (edge + len(columns) * (width + GAP), HEADER + len(rows) * (height + GAP) + FOOTER), "white")
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


if __name__ == "__main__":
    run(main)
