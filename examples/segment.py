"""Semantic segmentation: the U-Net of segmentation_models_pytorch over an HPViT (pip install "hiermim-zoo[examples]").

    python examples/segment.py -o segments.png
    python examples/segment.py --steps 300

Takes a step on four scenes (photographs pasted on a canvas) and draws a fifth, its true classes and the predicted ones.
After one step these are noise: the example shows how the parts go together. "tu-NAME" takes any model of timm's, so any
of this package.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import normalize

import hiermim_zoo  # noqa: F401  (registers the models with timm)
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.commands.options.values import whole
from hiermim_zoo.models.family import check_arch

if __package__:
    from .scenes import CLASSES, COLOURS, as_tensor, scene, side_by_side
else:
    from scenes import CLASSES, COLOURS, as_tensor, scene, side_by_side


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("segments.png"), metavar="FILE")
    parser.add_argument("--model", default="hpvit_atto", help="default: hpvit_atto, with its embedded weights")
    parser.add_argument("--steps", type=whole(1), default=1)
    parser.add_argument("--lr", type=float, default=3e-4)
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    config = timm.get_pretrained_cfg(check_arch(args.model))
    model = smp.Unet(f"tu-{args.model}", encoder_weights=True, classes=1 + len(CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    for step in range(args.steps):
        scenes = [scene(4 * step + i) for i in range(4)]
        images = normalize(
            torch.stack([as_tensor(s.image) for s in scenes]), config.mean, config.std
        )  # [4, 3, 128, 128]
        loss = F.cross_entropy(model(images), torch.stack([s.classes for s in scenes]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.3f}")

    unseen = scene(-1)
    with torch.inference_mode():
        image = normalize(as_tensor(unseen.image), config.mean, config.std)
        predicted = model.eval()(image[None])[0].argmax(0)  # [128, 128]
    right = (predicted == unseen.classes).float().mean().item()
    side_by_side(unseen.image, coloured(unseen.classes), coloured(predicted)).save(args.output)
    print(f"wrote {args.output}: image, classes, prediction ({100 * right:.0f} % of the pixels right)")


def coloured(classes: Tensor) -> Image.Image:
    """int64 [H, W] -> an image; the background is black."""
    palette = torch.tensor([(0, 0, 0), *COLOURS], dtype=torch.uint8)
    return Image.fromarray(np.ascontiguousarray(palette[classes].numpy()))


if __name__ == "__main__":
    run_command(main)
