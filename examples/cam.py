"""Where models look: images beside Grad-CAM heat maps (arXiv 1610.02391) of several models, in one file.

    python examples/cam.py examples/pictures/*/0003.jpg
    python examples/cam.py IMAGES... --model MODEL MODEL -o cam.png

Heat is what speaks for the class that the model finds. hiermim_zoo.cam.ForCam shows hooks a map in place of tokens, so
pytorch-grad-cam and captum do the same with less code:

    GradCAM(model=shown, target_layers=[shown.maps])(input_tensor=images)
    LayerGradCam(shown, shown.maps).attribute(images, target=classes)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from torch.nn import functional as F

import hiermim_zoo  # noqa: F401  (registers the models with timm)
from hiermim_zoo.cam import ForCam
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.models.build import make_model

SIDE, GAP, LINE = 160, 8, 22  # pixels of a tile, between tiles, of a line of words
MODELS = ["hivit_atto", "hpvit_atto", "hiera_atto", "green_swin_atto"]


def heat_of(shown: ForCam, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] -> heat [B, h, w] in 0 to 1, and the class of each."""
    seen: list[Tensor] = []
    hook = shown.maps.register_forward_hook(lambda module, args, out: seen.append(out))
    logits = shown(images)
    hook.remove()
    best = logits.max(dim=1)
    (gradient,) = torch.autograd.grad(best.values.sum(), seen[0])  # [B, C, h, w]
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * seen[0]).sum(1).relu().detach()
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12), best.indices


def overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """An image in grey where it is cold, and warm where it is warm."""
    wide = F.interpolate(heat[None, None], size=(SIDE, SIDE), mode="bicubic", align_corners=False)[0, 0].clamp(0, 1)
    grey = torch.tensor(list(image.convert("L").tobytes())).view(SIDE, SIDE) / 255 * 0.8
    warm = torch.stack([wide.sqrt(), wide * 0.65, wide**3 * 0.35], dim=-1)  # red, then yellow
    mixed = grey[..., None] * (1 - 0.65 * wide[..., None]) + warm * 0.65 * wide[..., None].sqrt()
    return Image.fromarray((mixed.clamp(0, 1) * 255).byte().numpy())


def opened(name: str) -> Image.Image:
    try:
        return Image.open(name).convert("RGB")
    except OSError as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--model", nargs="+", default=MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument("-o", "--output", default="cam.png", metavar="FILE", help="default: cam.png")
    args = parser.parse_args(argv)

    images = [opened(name) for name in args.images]
    tiles = [image.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
    columns = [("image", tiles, [""] * len(tiles))]
    for name in args.model:
        model = make_model(name, pretrained=True).eval()
        transform = create_transform(**resolve_model_data_config(model))
        heat, classes = heat_of(ForCam(model), torch.stack([transform(image) for image in images]))
        labels = model.pretrained_cfg.get("label_names") or [f"class {i}" for i in range(model.num_classes)]
        words = [labels[int(i)] for i in classes]
        columns.append((name, [overlay(t, h) for t, h in zip(tiles, heat, strict=True)], words))

    sheet = Image.new(
        "RGB", (len(columns) * (SIDE + GAP) + GAP, len(tiles) * (SIDE + LINE + GAP) + LINE + GAP), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for column, (name, drawn, words) in enumerate(columns):
        x = GAP + column * (SIDE + GAP)
        draw.text((x, GAP), name, fill="black", font_size=15)
        for row, (tile, word) in enumerate(zip(drawn, words, strict=True)):
            y = LINE + GAP + row * (SIDE + LINE + GAP)
            sheet.paste(tile, (x, y))
            draw.text((x, y + SIDE + 3), word, fill=(90, 90, 90), font_size=13)
    sheet.save(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_command(main)
