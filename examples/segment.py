"""Semantic segmentation: the U-Net of segmentation_models_pytorch over a HiViT (pip install "hiermim-zoo[examples]").

    python examples/segment.py -o segments.png
    python examples/segment.py --model hiera_atto --steps 600

Trains on scenes (photographs pasted on a canvas), measures on scenes of other photographs, and draws some of them with
their true classes and the predicted ones. "tu-NAME" takes any model of timm's, so any of this package; the weights it
starts from are those of the classifier that is part of the package, and are trained ten times as slowly as the rest.

Measured once, with seed 0 and the default of 300 steps: things stand out from the background with an IoU of 94.9 %.
What they are is told far worse, from 160 photographs: 71 of 200 are named right (chance: 20), and the mean IoU of the
11 classes is 26.0 %. That took 156 seconds of the processor on a busy machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    from .scenes import CLASSES, COLOURS, UNSEEN, Scene, as_tensor, in_rows, scene, slower
else:
    from scenes import CLASSES, COLOURS, UNSEEN, Scene, as_tensor, in_rows, scene, slower

BATCH, MEASURED, DRAWN = 8, 50, 4  # scenes of a step, to measure on, and of the drawing


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("segments.png"), metavar="FILE")
    parser.add_argument("--model", default="hivit_atto", help="default: hivit_atto, with its embedded weights")
    parser.add_argument("--steps", type=whole(1), default=300, help="default: 300")
    parser.add_argument("--lr", type=float, default=2e-3, help="default: 2e-3, a tenth of it for the backbone")
    parser.add_argument("--seed", type=whole(0), default=0, help="default: 0")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)

    config = timm.get_pretrained_cfg(check_arch(args.model))
    model = smp.Unet(
        f"tu-{args.model}", encoder_weights=True, decoder_channels=(64, 48, 32, 24, 16), classes=1 + len(CLASSES)
    )
    optimizer = slower(model, model.encoder, args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [args.lr / 10, args.lr], args.steps + 1, pct_start=0.1)
    began = time.process_time()
    for step in range(args.steps):
        first = 1_000_000 * args.seed + BATCH * step
        loss = F.cross_entropy(*forward(model.train(), [scene(first + i, varied=True) for i in range(BATCH)], config))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step == 0 or (step + 1) % 50 == 0:
            print(
                f"step {step + 1}: loss {loss.item():.3f}, {time.process_time() - began:.0f} s of the processor",
                flush=True,
            )

    unseen = [scene(-1 - i, photographs=UNSEEN) for i in range(MEASURED)]
    with torch.inference_mode():
        predicted = torch.cat([forward(model.eval(), [one], config)[0].argmax(1) for one in unseen])  # [N, 128, 128]
    truth = torch.stack([one.classes for one in unseen])
    rows = [
        (one.image, coloured(one.classes), coloured(said)) for one, said in zip(unseen[:DRAWN], predicted, strict=False)
    ]
    in_rows(("scene", "true classes", "predicted classes"), rows).save(args.output)
    right = (predicted == truth).float().mean().item()
    named = sum(right_names(one, said) for one, said in zip(unseen, predicted, strict=True))
    print(
        f"wrote {args.output}: on {MEASURED} scenes of other photographs things stand out from the background with an "
        f"IoU of {100 * apart(predicted, truth):.1f} %, of {sum(len(one.labels) for one in unseen)} things {named} are "
        f"named right by most of their pixels, {100 * right:.1f} % of all pixels are right, "
        f"mean IoU of the {1 + len(CLASSES)} classes {100 * mean_iou(predicted, truth):.1f} %"
    )


def forward(model: Any, scenes: Sequence[Scene], config: Any) -> tuple[Tensor, Tensor]:
    """Logits [B, classes, H, W] of scenes, and the truth [B, H, W]."""
    images = torch.stack([as_tensor(one.image) for one in scenes])
    return model(normalize(images, config.mean, config.std)), torch.stack([one.classes for one in scenes])


def mean_iou(predicted: Tensor, truth: Tensor) -> float:
    """Pixels of a class in both, as a share of those in either; the mean over the classes that are there."""
    shares = []
    for label in range(1 + len(CLASSES)):
        a, b = predicted == label, truth == label
        if b.any():
            shares.append(((a & b).sum() / (a | b).sum()).item())
    return sum(shares) / len(shares)


def apart(predicted: Tensor, truth: Tensor) -> float:
    """The IoU of all that is not background, whatever it is."""
    a, b = predicted > 0, truth > 0
    return ((a & b).sum() / (a | b).sum()).item()


def right_names(one: Scene, predicted: Tensor) -> int:
    """How many things of a scene have their class in more of their pixels than any other; int64 [H, W]."""
    count = 0
    for (left, top, right, bottom), label in zip(one.boxes.int().tolist(), one.labels.tolist(), strict=True):
        count += int(predicted[top:bottom, left:right].flatten().mode()[0] == label)
    return count


def coloured(classes: Tensor) -> Image.Image:
    """int64 [H, W] -> an image; the background is black."""
    palette = torch.tensor([(0, 0, 0), *COLOURS], dtype=torch.uint8)
    return Image.fromarray(np.ascontiguousarray(palette[classes].numpy()))


if __name__ == "__main__":
    run_command(main)
