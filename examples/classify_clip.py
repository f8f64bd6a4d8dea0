"""Tell what moves which way in a short clip (pip install "hiermim-zoo[video]"; folders of frames are read without).

    python examples/classify_clip.py
    python examples/classify_clip.py --moves "truck down"
    python examples/classify_clip.py CLIP.mp4 --model hiera_base_video

Without a clip it makes one: a photograph of examples/pictures that moves over a canvas, written as a file of video.
Each view is a clip of as many frames as the model takes; probabilities are averaged over the views. What the model is
shown and what it says of it is drawn, too: clip.png in DIR.

The model of the package is a toy: it names 17 of the 40 clips right that can be made here, one of each thing and way,
and 30 % of 4,000 others (chance: 2.5 %).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hiermim_zoo.commands.options import run_command
from hiermim_zoo.commands.options.values import whole
from hiermim_zoo.data.clips import STRIDE, Clips
from hiermim_zoo.data.decoding import Form
from hiermim_zoo.data.transforms import data_config, make_transform
from hiermim_zoo.data.videos import Videos, files_in
from hiermim_zoo.models.build import make_model
from hiermim_zoo.training.drawing import Shown, in_colours, to_image

if __package__:
    from .moving_clip import write_clip
else:
    from moving_clip import write_clip

MODEL = "hiera_atto_video.mae_moving_ft_moving"
MOST = 8  # clips of the drawing


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", help="a file of video, a folder of frames, or a folder of files of video")
    parser.add_argument("--moves", default="ship left", metavar="WHAT", help="what the clip shows that is made")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("clip_out"), metavar="DIR", help="to write (default: clip_out)"
    )
    parser.add_argument("--model", default=MODEL, help=f"default: {MODEL}")
    parser.add_argument(
        "--no-pretrained", dest="pretrained", action="store_false", help="random weights, to try things out"
    )
    parser.add_argument("--frame-stride", type=whole(1), default=STRIDE, metavar="N", help=f"default: {STRIDE}")
    parser.add_argument("--views", type=whole(1), default=3, metavar="N", help="default: 3")
    args = parser.parse_args(argv)

    model: Any = make_model(args.model, pretrained=args.pretrained).eval()
    config = data_config(model)
    _, *frames, height, width = config["input_size"]
    if not frames or not model.num_classes:
        raise ValueError(f"--model {args.model} is no classifier of clips")
    clip = args.clip or str(write_clip(args.output, args.moves, (height, width)))
    clips = Clips(Videos(files_in(clip), Form()), frames[0], args.frame_stride, views=args.views)
    transform = make_transform(**config, is_training=False)
    names = model.pretrained_cfg.get("label_names") or [f"class {n}" for n in range(model.num_classes)]
    drawn = []
    for i in range(len(clips)):
        views = torch.stack(transform(clips.read(i)[0]))  # [views, 3, T, H, W]
        with torch.inference_mode():
            shares, best = model(views).softmax(1).mean(0).topk(min(5, model.num_classes))
        said = [(share, names[n]) for share, n in zip(shares.tolist(), best.tolist(), strict=True)]
        print(clips.name_of(i))
        for share, name in said:
            print(f"{share:7.1%}  {name}")
        drawn.append((Path(clips.name_of(i)).name, frames_of(views[len(views) // 2], config), said))
    args.output.mkdir(parents=True, exist_ok=True)
    sheet(drawn[:MOST]).save(args.output / "clip.png")
    print(f"wrote {args.output / 'clip.png'}")


def frames_of(view: Tensor, config: dict[str, Any]) -> list[Image.Image]:
    """The frames of a normalised clip [3, T, H, W]."""
    return [to_image(x) for x in in_colours(view.movedim(1, 0), config, Shown((0, 1, 2), stretched=False))]


def sheet(clips: Sequence[tuple[str, list[Image.Image], list[tuple[float, str]]]]) -> Image.Image:
    """For each clip its frames in a row, and below them what the model says, with bars as long as it is sure."""
    side, gap, line = 112, 8, 22
    width = gap + max(len(frames) for _, frames, _ in clips) * (side + gap)
    height = 34 + side + gap + 5 * line + 16
    drawn = Image.new("RGB", (width, gap + height * len(clips)), "white")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    for i, (name, frames, said) in enumerate(clips):
        top = gap + i * height
        pen.text((gap, top + 4), f"{name}: frames of a view", "black", font)
        for n, frame in enumerate(frames):
            drawn.paste(frame.resize((side, side), Image.Resampling.BICUBIC), (gap + n * (side + gap), top + 34))
        for n, (share, word) in enumerate(said):
            y = top + 34 + side + gap + n * line
            pen.rectangle((170, y + 2, 170 + max(1, share * (width - 300)), y + 16), "#3b5bdb" if n == 0 else "#b9c3ea")
            pen.text((gap, y), word[:22], "black", font)
            pen.text((178 + share * (width - 300), y), f"{share:.0%}", "#555555", font)
    return drawn


if __name__ == "__main__":
    run_command(main)
