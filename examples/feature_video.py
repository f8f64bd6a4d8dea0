"""The feature maps of a clip as an animated image: its frames, and beside them what the levels of a model hold then.

    python examples/feature_video.py -o features.gif
    python examples/feature_video.py CLIP.mp4 --model hiera_base_video --levels 0 3 -o features.webp

Each level has many channels. Its three principal components, over all times and places of the clip, are shown as red,
green and blue, so that like colours are like features. A map of Hiera is of two frames. Longer videos are fed clip by
clip.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hiermim_zoo.commands.options import run_command
from hiermim_zoo.commands.options.values import whole
from hiermim_zoo.data.clips import STRIDE
from hiermim_zoo.data.decoding import Form
from hiermim_zoo.data.transforms import data_config, make_transform
from hiermim_zoo.data.videos import Videos, files_in
from hiermim_zoo.models.build import make_model
from hiermim_zoo.training.colours import colours as compared
from hiermim_zoo.training.drawing import Shown, draw, in_colours, to_image

if __package__:
    from .classify_clip import MODEL
    from .moving_clip import RATE, write_clip
else:
    from classify_clip import MODEL
    from moving_clip import RATE, write_clip

FORMATS = (".gif", ".png", ".webp")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "clip", nargs="?", help="a file of video or a folder of frames (default: one is made, beside the output)"
    )
    parser.add_argument("--moves", default="airplane right", metavar="WHAT", help="what the clip shows that is made")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("features.gif"), metavar="FILE", help="default: features.gif"
    )
    parser.add_argument("--model", default=MODEL, help=f"default: {MODEL}")
    parser.add_argument(
        "--no-pretrained", dest="pretrained", action="store_false", help="random weights, to try things out"
    )
    parser.add_argument("--levels", nargs="+", type=whole(0), metavar="L", help="0 the finest (default: all)")
    parser.add_argument("--frame-stride", type=whole(1), default=STRIDE, metavar="N", help=f"default: {STRIDE}")
    parser.add_argument("--clips", type=whole(1), default=3, metavar="N", help="that are fed at most (default: 3)")
    args = parser.parse_args(argv)
    if args.output.suffix.lower() not in FORMATS:
        raise ValueError(f"{args.output}: name an animated image, {' or '.join(FORMATS)}")

    model: Any = make_model(args.model, pretrained=args.pretrained).eval()
    config = data_config(model)
    if len(config["input_size"]) != 4:
        raise ValueError(f"--model {args.model} takes images, this example takes models of video")
    levels = sorted(set(args.levels)) if args.levels else list(range(len(model.feature_info)))
    if levels[-1] >= len(model.feature_info):
        raise ValueError(f"--levels {levels[-1]}: {args.model} has 0 to {len(model.feature_info) - 1}")
    clip = args.clip or str(write_clip(args.output.parent, args.moves, config["input_size"][-2:]))
    clips = read(clip, config, args.frame_stride, args.clips)  # [n, 3, T, H, W]
    with torch.inference_mode():
        maps = model.forward_intermediates(clips, indices=levels, intermediates_only=True)  # each [n, C, t, h, w]

    colour = Shown((0, 1, 2), stretched=False)
    frames = [to_image(x) for x in in_colours(in_time(clips), config, colour)]
    columns = [
        "frames",
        *(f"1/{model.feature_info[n]['reduction']}, {model.feature_info[n]['num_chs']} channels" for n in levels),
    ]
    shown = [colours(in_time(level)) for level in maps]
    legend = f"{args.model}\nthree principal components as red, green and blue"
    sheets = []
    for n, frame in enumerate(frames):
        row = [level[n * len(level) // len(frames)].resize(frame.size, Image.Resampling.NEAREST) for level in shown]
        sheets.append(draw([[frame, *row]], columns, [], legend))
    pause = round(1000 * args.frame_stride / RATE)  # milliseconds
    sheets[0].save(args.output, save_all=True, append_images=sheets[1:], duration=pause, loop=0)
    print(f"wrote {args.output}: {len(sheets)} frames of {clip}, {', '.join(columns[1:])}")


def read(path: str, config: dict[str, Any], stride: int, most: int) -> Tensor:
    """A video cut into clips, the last of which stands still at its end if it must: [n, 3, T, H, W]."""
    length = config["input_size"][1]
    videos = Videos(files_in(path), Form())
    if len(videos.paths) > 1:
        raise ValueError(f"{path} holds {len(videos.paths)} videos: name one of them")
    with videos.open(0) as video:
        frames = video.frames(list(islice(range(0, len(video), stride), most * length)))
    count = math.ceil(len(frames) / length)
    frames += frames[-1:] * (count * length - len(frames))
    transform = make_transform(**config, is_training=False)
    return torch.stack(transform([frames[i * length : (i + 1) * length] for i in range(count)]))


def in_time(clips: Tensor) -> Tensor:
    """[n, C, t, h, w] -> [n t, C, h, w]."""
    return clips.movedim(2, 1).flatten(0, 1)


def colours(maps: Tensor) -> list[Image.Image]:
    """[t, C, h, w] -> as many images of h x w pixels."""
    [shades] = compared([list(maps)])
    return [Image.fromarray(x.numpy()) for x in shades]


if __name__ == "__main__":
    run_command(main)
