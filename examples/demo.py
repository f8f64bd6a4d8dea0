"""Classify, compare and look inside images with the weights that ship with the package; offline, within a minute.

    pip install "hiermim-zoo[demo]"
    python examples/demo.py
    python examples/demo.py -o DIR

It prints how well the embedded model tells the 200 images beside this file apart, by its classifier and by its features
alone, and draws the four levels of its feature maps for some photographs: features.png in DIR, and features.html, in
which a click on any place shows what the model finds like it.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_transform, resolve_model_data_config
from torch import Tensor
from torch.utils.data import DataLoader

from hiermim_zoo import features
from hiermim_zoo.commands.options import run_command

MODEL = "hivit_atto"
IMAGES = Path(__file__).parent / "pictures"
DRAWN = ("automobile/0016.jpg", "bird/0003.jpg", "horse/0013.jpg")  # of the 200


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo_out"), metavar="DIR", help="default: demo_out")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError('the demo needs scikit-learn: pip install "hiermim-zoo[demo]"')
    from sklearn.datasets import load_sample_images

    args.output.mkdir(parents=True, exist_ok=True)

    model: Any = timm.create_model(MODEL, pretrained=True).eval()
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{MODEL}.{model.pretrained_cfg['tag']}: {millions:.2f} million parameters")

    logits, pooled, labels = look_at_images(model)
    print(f"classifier, top-1 accuracy: {share(logits.argmax(1) == labels)}")
    print(f"20 nearest neighbours in pooled features, accuracy: {share(neighbours(pooled, labels) == labels)}")

    shown = [*load_sample_images().filenames, *(str(IMAGES / name) for name in DRAWN)]
    for name in ("features.png", "features.html"):
        features.main([*shown, "--model", MODEL, "-o", str(args.output / name)])


# ---- how well the 200 images are told apart


@torch.inference_mode()
def look_at_images(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, classes], pooled features [N, C] and labels [N] of the images."""
    label_of = {
        name: i for i, name in enumerate(model.pretrained_cfg["label_names"])
    }  # folders are named like the classes
    transform = create_transform(**resolve_model_data_config(model))
    dataset = create_dataset("", str(IMAGES), class_map=label_of, transform=transform)
    found = []
    for images, labels in DataLoader(dataset, batch_size=50):
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        found.append((model.get_classifier()(features), features, labels))
    logits, features, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits, features, labels


def neighbours(features: Tensor, labels: Tensor) -> Tensor:
    """Labels [N] by vote, without any training: each image asks the 20 others whose features are most like its own."""
    from sklearn.model_selection import LeaveOneOut, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    voters = KNeighborsClassifier(n_neighbors=20, metric="cosine")
    return torch.from_numpy(cross_val_predict(voters, features.numpy(), labels.numpy(), cv=LeaveOneOut()))


def share(right: Tensor) -> str:
    """A percentage, and between what bounds a few hundred images let one trust it."""
    from scipy.stats import binomtest  # scikit-learn needs scipy too

    count, n = int(right.sum()), len(right)
    low, high = binomtest(count, n).proportion_ci(0.95, method="wilson")
    return f"{count / n:.1%} (n={n}, 95% Wilson interval {low:.1%} to {high:.1%})"


if __name__ == "__main__":
    run_command(main)
