"""Distil a frozen teacher into a student that sees half of each image, in plain torch; under a minute on a CPU.

    python examples/distil.py
    python examples/distil.py FOLDER --student hivit_tiny --teacher vit_base_patch14_dinov2 --size 224 --steps 10000

FOLDER holds a folder of images for each class; labels only measure. The teacher is any model of timm with weights. The
student is any encoder of the protocol: it computes its visible units and nothing else, and a linear layer is to say of
their tokens what the teacher, who sees the whole image, says there (as in MaskAlign, arXiv 2211.08887). For hidden
units to be predicted, as in MaskDistill, see ``pretrain --target features:MODEL``.

Letters: B images; U units, K of them visible; t tokens of a unit; C channels of the student, D of the teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

import hiermim_zoo  # noqa: F401  (registers the models with timm)
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.geometry import to_units
from hiermim_zoo.masking import random_keep
from hiermim_zoo.models.build import make_model
from hiermim_zoo.protocol import MaskableEncoder
from hiermim_zoo.teacher import last_map, on_grid


def read(folder: str, config: dict[str, Any], size: int) -> tuple[Tensor, Tensor]:
    """All images of a folder of classes as the teacher takes them, [N, 3, size, size], and their classes."""
    transform = create_transform(**{**config, "input_size": (3, size, size), "crop_pct": 1.0})
    images, labels = zip(*create_dataset("", folder, transform=transform), strict=True)
    return torch.stack(images), torch.tensor(labels)


@torch.no_grad()
def wanted(teacher: nn.Module, images: Tensor, layout: Any) -> Tensor:
    """What the teacher says of each unit: [B, U, t, D], every token normalised."""
    tokens = layout.stages[-1].tokens
    grid = [units * t for units, t in zip(layout.units, tokens, strict=True)]
    found = on_grid(last_map(teacher, images), grid).movedim(1, -1)  # [B, *grid, D]
    return F.layer_norm(to_units(found, tokens).flatten(2, -2), found.shape[-1:])


@torch.no_grad()
def neighbours(model: Any, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose nearest neighbour is of their class."""
    model.eval()
    pooled = [last_map(model, x).flatten(2).mean(-1) for x in images.split(50)]
    model.train()
    near = F.normalize(torch.cat(pooled))
    alike = (near @ near.T).fill_diagonal_(-1)
    return (labels[alike.argmax(1)] == labels).float().mean().item()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", default=str(Path(__file__).parent / "pictures"), help="default: examples/pictures"
    )
    parser.add_argument("--student", default="hiera_atto", help="default: hiera_atto, with random weights")
    parser.add_argument("--teacher", default="hivit_atto.mae_cifar10_ft_cifar10", help="default: an embedded one")
    parser.add_argument("--size", type=int, default=64, help="pixels along the sides of images; default: 64")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)

    teacher: Any = make_model(args.teacher, pretrained=True, num_classes=0)
    teacher.eval().requires_grad_(False)
    if hasattr(teacher, "set_input_size"):
        teacher.set_input_size((args.size, args.size))
    student: Any = make_model(args.student, num_classes=0, img_size=args.size)
    if not isinstance(student, MaskableEncoder):
        raise ValueError(f"--student {args.student} cannot be masked; hiera_atto would work")
    layout = student.mask_layout
    units = layout.units[0] * layout.units[1]
    images, labels = read(args.folder, resolve_model_data_config(teacher), args.size)
    print(f"nearest neighbours of the same class, teacher: {neighbours(teacher, images, labels):.1%}")
    print(f"student before: {neighbours(student, images, labels):.1%}")

    head = nn.Linear(layout.stages[-1].dim, teacher.num_features)  # C -> D
    optimizer = torch.optim.AdamW([*student.parameters(), *head.parameters()], lr=args.lr)
    for step in range(1, args.steps + 1):
        x = images[torch.randint(len(images), (args.batch_size,))]
        keep = random_keep(len(x), units, units // 2)  # [B, K]
        said = head(student.forward_visible(x, keep).stages[-1].flatten(2, -2))  # [B, K, t, D]
        target = wanted(teacher, x, layout)
        target = target.gather(1, keep[:, :, None, None].expand(-1, -1, *target.shape[2:]))  # [B, K, t, D]
        loss = F.mse_loss(said, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    print(f"student after: {neighbours(student, images, labels):.1%} of {len(images)}")


if __name__ == "__main__":
    run_command(main)
