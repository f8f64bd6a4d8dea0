"""Object detection: torchvision's Faster R-CNN over an HPViT, with a feature pyramid made of its four levels.

    python examples/detect.py -o detections.png
    python examples/detect.py --steps 300 --model hpvit_atto

Takes a step on two scenes (photographs pasted on a canvas) and draws what was there and what is found in a third. After
one step that is nothing yet: the example shows how the parts go together. Mask R-CNN takes the same backbone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator

import hiermim_zoo  # noqa: F401  (registers the models with timm)
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.commands.options.values import whole
from hiermim_zoo.detection import FeaturePyramid
from hiermim_zoo.models.build import make_model

if __package__:
    from .scenes import CLASSES, as_tensor, drawn, scene, side_by_side
else:
    from scenes import CLASSES, as_tensor, drawn, scene, side_by_side


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("detections.png"), metavar="FILE")
    parser.add_argument("--model", default="hpvit_atto", help="default: hpvit_atto, with its embedded weights")
    parser.add_argument("--steps", type=whole(1), default=1)
    parser.add_argument("--lr", type=float, default=3e-4)
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    model = detector(args.model)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    for step in range(args.steps):
        scenes = [scene(2 * step), scene(2 * step + 1)]
        images = [as_tensor(s.image) for s in scenes]
        losses = model(images, [{"boxes": s.boxes, "labels": s.labels} for s in scenes])
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(
            f"step {step + 1}: loss {loss.item():.3f} ("
            + ", ".join(f"{k} {v.item():.3f}" for k, v in losses.items())
            + ")"
        )

    unseen = scene(-1)
    with torch.inference_mode():
        [found] = model.eval()([as_tensor(unseen.image)])
    sure = found["scores"] > 0.5
    truth = drawn(unseen.image, unseen.boxes, unseen.labels)
    side_by_side(truth, drawn(unseen.image, found["boxes"][sure], found["labels"][sure])).save(args.output)
    print(f"wrote {args.output}: {len(unseen.boxes)} things are there (left), {int(sure.sum())} found (right)")


def detector(name: str) -> Any:
    """Faster R-CNN; its transform normalises as the backbone was trained and leaves the scenes at their size."""
    body = make_model(name, pretrained=True, features_only=True)
    config = timm.get_pretrained_cfg(name)
    sizes = tuple((size,) for size in (16, 32, 48, 64, 96))  # of the anchors, for each of the five levels
    return FasterRCNN(
        FeaturePyramid(body, out_channels=64),
        num_classes=1 + len(CLASSES),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        min_size=128,
        image_mean=config.mean,
        image_std=config.std,
    )


if __name__ == "__main__":
    run_command(main)
