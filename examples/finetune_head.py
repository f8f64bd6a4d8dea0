"""Teach a pretrained model new classes by training nothing but a new head on its features; seconds on a CPU.

    python examples/finetune_head.py
    python examples/finetune_head.py FOLDER --model MODEL -o DIR

FOLDER holds a folder of images for each class. Every fourth image of a class is held out to measure with. DIR is a
checkpoint that timm reads: timm.create_model("local-dir:DIR", pretrained=True).

The images beside this file, taken by default, show the steps and no gain: hivit_atto knows their ten classes already.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_transform, resolve_model_data_config
from timm.models import save_for_hf
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import hiermim_zoo  # noqa: F401  (registers the models with timm)
from hiermim_zoo.commands.options import run_command


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", default=str(Path(__file__).parent / "pictures"), help="default: examples/pictures"
    )
    parser.add_argument(
        "-o", "--output", default="runs/finetuned_head", metavar="DIR", help="default: runs/finetuned_head"
    )
    parser.add_argument("--model", default="hivit_atto", help="default: hivit_atto")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)

    model: Any = timm.create_model(args.model, pretrained=True).eval().requires_grad_(False)
    dataset = create_dataset("", args.folder, transform=create_transform(**resolve_model_data_config(model)))
    classes = list(dataset.reader.class_to_idx)

    # The backbone stays as it is, so it sees each image once and all training happens on what it says.
    with torch.no_grad():
        loader = DataLoader(dataset, args.batch_size)
        seen = [
            (model.forward_head(model.forward_features(images), pre_logits=True), labels) for images, labels in loader
        ]
    features, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))  # [N, C], [N]
    order = torch.randperm(len(labels))
    order = order[labels[order].argsort(stable=True)]  # class by class, in random order within a class
    held = torch.arange(len(order)) % 4 == 0
    train, test = order[~held], order[held]

    model.reset_classifier(len(classes))
    head = model.get_classifier()

    def accuracy(rows: torch.Tensor) -> str:
        right = head(features[rows]).argmax(1) == labels[rows]
        return f"{right.float().mean():.1%} of {len(rows)}"

    print(f"{len(classes)} classes, {len(train)} images to train with")
    print(f"held-out accuracy before: {accuracy(test)}")
    optimizer = torch.optim.AdamW(head.parameters(), lr=args.lr)
    for _ in range(args.epochs):
        for x, y in DataLoader(TensorDataset(features[train], labels[train]), args.batch_size, shuffle=True):
            loss = F.cross_entropy(head(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"held-out accuracy after: {accuracy(test)} (training images: {accuracy(train)})")

    save_for_hf(model, args.output, model_config={"label_names": classes}, safe_serialization=True)
    reloaded = timm.create_model(f"local-dir:{args.output}", pretrained=True).eval()
    images = torch.stack([dataset[i][0] for i in test[:8].tolist()])
    with torch.inference_mode():
        assert torch.equal(reloaded(images), model(images)), "the checkpoint does not give the outputs of the model"
    print(f"wrote {args.output}, which timm loads again with equal outputs")


if __name__ == "__main__":
    run_command(main)
