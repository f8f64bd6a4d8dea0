"""Tell what moves which way in a short clip (pip install "hiermim-zoo[video]"; folders of frames are read without).

    python examples/classify_clip.py
    python examples/classify_clip.py --moves "ship left"
    python examples/classify_clip.py CLIP.mp4 --model hiera_base_video

Without a clip it makes one: a photograph of examples/pictures that moves over a canvas, written as a file of video.
Each view is a clip of as many frames as the model takes; probabilities are averaged over the views.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hiermim_zoo.commands.options import run_command
from hiermim_zoo.commands.options.values import whole
from hiermim_zoo.data.clips import STRIDE, Clips
from hiermim_zoo.data.decoding import Form
from hiermim_zoo.data.transforms import data_config, make_transform
from hiermim_zoo.data.videos import Videos, files_in
from hiermim_zoo.models.build import make_model

if __package__:
    from .moving_clip import write_clip
else:
    from moving_clip import write_clip

MODEL = "hiera_atto_video.mae_moving_ft_moving"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", help="a file of video, a folder of frames, or a folder of files of video")
    parser.add_argument("--moves", default="airplane right", metavar="WHAT", help="what the clip shows that is made")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("clip_out"), metavar="DIR", help="where it is written"
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
    for i in range(len(clips)):
        views = torch.stack(transform(clips.read(i)[0]))  # [views, 3, T, H, W]
        with torch.inference_mode():
            shares = model(views).softmax(1).mean(0)
        print(clips.name_of(i))
        for share, n in zip(*shares.topk(min(5, len(shares))), strict=True):
            print(f"{share:7.1%}  {names[n]}")


if __name__ == "__main__":
    run_command(main)
