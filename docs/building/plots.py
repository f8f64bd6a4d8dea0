"""Accuracy against speed: measured images a second, and multiply-adds where nothing was measured.

Figures come from the files of measurements in docs/, from the manifest, and from counting; none is written here.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hiermim_zoo.checkpoints import manifest
from hiermim_zoo.models.listing import architectures
from hiermim_zoo.models.measure import measure

DOCS = Path(__file__).parents[1]
PEERS = {"green_swin_base": "swin_base_patch4_window7_224"}  # timm's model computes the same bits
INK = "#0b0c0d"  # stands for the colour of the text around
COLOURS = {"hivit": "#d1495b", "hpvit": "#8d6a9f", "hiera": "#1d8a6f", "green": "#d98e04", "vit": "#5b7db1"}
NAMES = {"hivit": "HiViT", "hpvit": "HPViT", "hiera": "Hiera", "green": "GreenMIM and SimMIM", "vit": "plain ViT (MAE)"}
BESIDE = {  # of a point: points (1/72 of an inch) to the right and up to its name, and the side that is fixed
    "hivit": (8, -10, "left"), "hpvit": (7, 6, "left"), "hiera": (-7, 6, "right"), "green": (9, -5, "left"),
    "vit": (7, -13, "left"),
}  # fmt: skip
FEW = 8  # points that have room for their whole names
IMAGENET, SIDE = 1000, 224


def accuracies() -> dict[str, float]:
    """Architecture -> the best top-1 on ImageNet-1K of its weights at 224 pixels, in percent."""
    found: dict[str, float] = {}
    for row in manifest.records().values():
        if (
            row.classes == IMAGENET
            and row.accuracies
            and "_video" not in row.arch
            and "kinetics" not in row.data.lower()
        ):
            size = row.input_size or measure(row.arch).input_size
            if size[-1] == SIDE:
                found[row.arch] = max(found.get(row.arch, 0), row.accuracies[0].top1)
    return found


def speeds() -> dict[str, float]:
    """Model -> images a second of inference on the GPU of docs/h200-*.json at 224 pixels, without a compiler."""
    found: dict[str, float] = {}
    for path in sorted(DOCS.glob("h200-*.json")):
        for comparison in json.loads(path.read_text(encoding="utf-8"))["comparisons"]:
            if comparison["title"] != "Inference":
                continue
            for row in comparison["rows"]:
                if row["compile"] is None and row["mode"] == "inference" and not row["missing"]:
                    found[row["model"]] = row["images_per_second"]  # of the newest file
    return found


def speed_of(arch: str) -> float | None:
    return speeds().get(PEERS.get(arch, arch))


def plot(kind: str) -> str:
    """The figure as HTML: ``measured`` speed or ``counted`` multiply-adds."""
    if kind == "measured":
        points = {arch: (speed, top1) for arch, top1 in accuracies().items() if (speed := speed_of(arch))}
        return drawn(points, "images a second, inference on an H200 (bf16, batch 128)", "measured speed")
    points = {arch: (measure(arch).macs / 1e9, top1) for arch, top1 in accuracies().items()}
    return drawn(points, "multiply-adds of an image, in 10⁹ (fewer is cheaper)", "multiply-adds")


def without_figure() -> str:
    """Which models lack what the first plot needs."""
    known = accuracies()
    slow = [arch for arch in known if speed_of(arch) is None]
    rest = [arch for arch in architectures() if arch not in known]
    return (
        f"No speed was measured for {listed(slow)}.\n\n"
        f"No accuracy on ImageNet-1K at 224 pixels is known for {listed(rest)}."
    )


def listed(names: Iterable[str]) -> str:
    words = [f"`{name}`" for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def family(arch: str) -> str:
    return arch.partition("_")[0]


def drawn(points: dict[str, tuple[float, float]], across: str, what: str) -> str:
    """A plot as SVG whose ink is the colour of the page's text."""
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "hiermim_zoo", "font.family": "sans-serif", "font.size": 11,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for name in COLOURS:
            own = sorted(xy for arch, xy in points.items() if family(arch) == name)
            if own:
                line: Any = {"color": COLOURS[name], "label": NAMES[name]}
                axes.plot(*zip(*own, strict=True), "o-", markersize=8, linewidth=1.2, **line)
        label(axes, points)
        axes.set(xlabel=across, ylabel="top-1 on ImageNet-1K, %", xscale="log")
        low, high = min(x for x, _ in points.values()), max(x for x, _ in points.values())
        axes.set_xlim(low / 1.35, high * 1.6)
        ticks = [
            t
            for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 3000, 5000, 10000)
            if low / 1.3 <= t <= high * 1.5
        ]
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.margins(y=0.12)
        axes.grid(alpha=0.18)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, columnspacing=1.2, handlelength=1)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.search(r"<svg.*</svg>", out.getvalue(), re.DOTALL)
    assert svg
    text = re.sub(r"\n\s*\n", "\n", svg[0]).replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="Accuracy against {what}">',
        text,
    )
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{what.partition(' ')[0]}-", text)
    return f'<figure class="plot">\n{text}\n</figure>\n'


def label(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names beside the points, in the colour of their family; of many points their sizes, on the side with room."""
    for arch, xy in points.items():
        own = family(arch)
        if len(points) < FEW:
            words, (x, y, side) = arch.removesuffix("_patch16_224"), (0, -18 if own == "hiera" else 9, "center")
        else:
            rest = (word for word in arch.split("_")[1:] if word not in ("swin", "patch16", "patch14", str(SIDE)))
            words, (x, y, side) = " ".join(rest).replace("base plus", "base+"), BESIDE[own]
        axes.annotate(words, xy, (x, y), textcoords="offset points", ha=side, color=COLOURS[own])
