"""Classify, compare and look inside images with the weights that ship with the package; offline, within a minute.

    pip install "hiermim-zoo[demo]"
    python examples/demo.py
    python examples/demo.py -o DIR

It prints how well the embedded model tells the 200 images beside this file apart, by its classifier and by its features
alone, and draws the four levels of its feature maps for some photographs: features.png in DIR.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw, ImageFont
from timm.data import create_dataset, create_transform, resolve_model_data_config
from torch import Tensor
from torch.utils.data import DataLoader

import hiermim_zoo  # noqa: F401  (registers the models with timm)
from hiermim_zoo.commands.options import run_command

MODEL = "hivit_atto"
IMAGES = Path(__file__).parent / "pictures"
DRAWN = ("automobile/0016.jpg", "bird/0003.jpg", "horse/0013.jpg")  # of the 200

# Pixels of the drawing. A column shows the photographs or one level; a panel fills as much of its cell as its
# proportions allow.
CELL = (336, 224)
MARGIN, GAP, CAPTION = 40, 14, 44
TOP = 172  # title and column headings
LEGEND = (
    "Each level has many channels. Its three principal components are shown as red, green and blue, so that like "
    "colours are like features (large and small photographs apart)."
)
PAPER, INK, GREY = "white", "#1a1a1a", "#666666"


class Row(NamedTuple):
    photograph: Image.Image
    caption: str
    maps: list[Tensor]  # fine to coarse, each [1, C, h, w]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo_out"), metavar="DIR", help="default: demo_out")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError('the demo needs scikit-learn: pip install "hiermim-zoo[demo]"')
    args.output.mkdir(parents=True, exist_ok=True)

    model: Any = timm.create_model(MODEL, pretrained=True).eval()
    backbone: Any = timm.create_model(MODEL, pretrained=True, features_only=True).eval()
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{MODEL}.{model.pretrained_cfg['tag']}: {millions:.2f} million parameters")

    logits, features, labels = look_at_images(model)
    print(f"classifier, top-1 accuracy: {share(logits.argmax(1) == labels)}")
    print(f"20 nearest neighbours in pooled features, accuracy: {share(neighbours(features, labels) == labels)}")

    large, small = photographs(backbone), images(backbone, model)
    for row in large:
        print(f"feature maps of {row.caption}: {', '.join(str(list(x.shape)) for x in row.maps)}")
    path = args.output / "features.png"
    draw([large, small], backbone.feature_info.reduction()).save(path)
    print(f"wrote {path}")


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


# ---- what the feature maps hold


@torch.inference_mode()
def photographs(backbone: Any) -> list[Row]:
    """scikit-learn's two sample photographs at full size: a model may be fed any."""
    from sklearn.datasets import load_sample_images

    samples = load_sample_images()
    rows = []
    for file, pixels in zip(samples.filenames, samples.images, strict=True):
        image = Image.fromarray(pixels)
        caption = f"{Path(file).name} (scikit-learn), {image.width} x {image.height} pixels"
        rows.append(Row(image, caption, backbone(as_it_is(image, backbone))))
    return rows


@torch.inference_mode()
def images(backbone: Any, model: Any) -> list[Row]:
    """Some of the 200 at the size that the model classifies, with what it takes them for."""
    height, width = resolve_model_data_config(model)["input_size"][1:]
    rows = []
    for name in DRAWN:
        image = Image.open(IMAGES / name).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        x = as_it_is(image, model)
        p = model(x)[0].softmax(0)
        verdict = f"{model.pretrained_cfg['label_names'][p.argmax()]} ({p.max():.0%})"
        rows.append(
            Row(image, f"{name}, enlarged to {width} x {height} pixels. The classifier says: {verdict}", backbone(x))
        )
    return rows


def as_it_is(image: Image.Image, model: Any) -> Tensor:
    """An image normalised as the model wants it, neither resized nor cropped: [1, 3, H, W]."""
    config = {**resolve_model_data_config(model), "input_size": (3, image.height, image.width), "crop_pct": 1.0}
    return create_transform(**config)(image)[None]


def colours(maps: list[Tensor]) -> list[Image.Image]:
    """Maps of one level, [1, C, h, w] with their own h and w -> h x w pixels, three principal components as colours.

    The components, red, green and blue, are found over all of the maps, so that like colours are like features.
    """
    from sklearn.decomposition import PCA

    cells = [x[0].flatten(1).T.numpy() for x in maps]  # [h w, C]
    pca = PCA(3).fit(np.concatenate(cells))
    low, high = np.percentile(
        pca.transform(np.concatenate(cells)), (2, 98), axis=0
    )  # outliers would leave the rest grey
    shades = [np.clip((pca.transform(x) - low) / (high - low), 0, 1) for x in cells]  # [h w, 3]
    return [Image.fromarray(np.uint8(255 * x).reshape(*m.shape[2:], 3)) for x, m in zip(shades, maps, strict=True)]


# ---- the drawing


def draw(groups: list[list[Row]], reductions: list[int]) -> Image.Image:
    """One sheet: a line for each row, with its photograph and its levels. The rows of a group share their colours."""
    rows = [row for group in groups for row in group]
    levels = [
        [x for group in groups for x in colours([row.maps[level] for row in group])] for level in range(len(reductions))
    ]

    width, height = corner(len(rows), 1 + len(levels))
    sheet = Image.new("RGB", (width - GAP + MARGIN, height - GAP + MARGIN // 2), PAPER)
    pen, fonts = ImageDraw.Draw(sheet), {size: ImageFont.load_default(size) for size in (36, 20, 17)}
    pen.text((MARGIN, 32), f"What {MODEL} sees", INK, fonts[36])
    pen.text((MARGIN, 84), LEGEND, GREY, fonts[20])
    channels = [x.shape[1] for x in rows[0].maps]
    headings = ["photograph", *(f"1/{r} of its size, {c} channels" for r, c in zip(reductions, channels, strict=True))]
    for column, heading in enumerate(headings):
        left, top = corner(0, column)
        pen.text((left, top - 10), heading, INK, fonts[20], anchor="ls")

    for i, row in enumerate(rows):
        scale = min(CELL[0] / row.photograph.width, CELL[1] / row.photograph.height)
        shown = (round(scale * row.photograph.width), round(scale * row.photograph.height))
        sheet.paste(row.photograph.resize(shown, Image.Resampling.BICUBIC), corner(i, 0))
        for column, (r, level) in enumerate(zip(reductions, levels, strict=True), start=1):
            sheet.paste(enlarge(level[i], r * scale).crop((0, 0, *shown)), corner(i, column))
        left, top = corner(i, 0)
        pen.text((left, top + CELL[1] + 6), row.caption, GREY, fonts[17])
    return sheet


def enlarge(image: Image.Image, factor: float) -> Image.Image:
    """Every cell of a feature map as a plain rectangle."""
    return image.resize((round(factor * image.width), round(factor * image.height)), Image.Resampling.NEAREST)


def corner(row: int, column: int) -> tuple[int, int]:
    """Left and top of a cell of the sheet."""
    return MARGIN + column * (CELL[0] + GAP), TOP + row * (CELL[1] + CAPTION)


if __name__ == "__main__":
    run_command(main)
