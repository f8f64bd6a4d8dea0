"""Options of ``evaluate``. The group that an option stands in says which methods it belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import OptionSet, flag, flag_of, model_kwargs, option, option_of
from .shared import (
    FILES,
    LARGEST_SEED,
    amp,
    axes,
    bands,
    compile_mode,
    device,
    frame_stride,
    grad_checkpointing,
    max_pixels,
    scale,
    square_size,
    stack,
    workers,
)
from .values import FRACTION, PATH, POSITIVE, number, whole

METHODS = ("classify", "knn", "linear", "finetune")
TRAINED = ("knn", "linear", "finetune")  # methods that need labelled training images

MODEL = "the model"
DATA = "the images"
COMPUTING = "computing"
TRAINING = "training images, with --method knn, linear or finetune"
NEIGHBOURS = "with --method knn"
PROBE = "with --method linear"
RESULT = "what --method finetune writes"
TUNING = "with --method finetune; the recipe is that of the architecture's paper"
METHODS_OF = {  # group -> the methods that its options belong to; all methods, where it is not named
    TRAINING: TRAINED,
    NEIGHBOURS: ("knn",),
    PROBE: ("linear",),
    RESULT: ("finetune",),
    TUNING: ("finetune",),
}
RECIPE = "the recipe's"
RATE = "peak learning rate"
NOT_NEGATIVE = number(0)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(OptionSet):
    data: str = option(
        "images to measure on: a folder of class folders or of splits, a tar, a table of files (.csv, .tsv, .txt), "
        "digits, moving:DATA, or a name of timm's (hfds/...)",
        positional=True,
        spelt=FILES,
    )
    model: str = option("ARCH, ARCH.TAG, local-dir:DIR or hf-hub:ORG/NAME", metavar="NAME")
    method: str = option(
        "by its own classifier, by neighbours or a linear classifier in its features, or after fine-tuning",
        choices=METHODS,
    )
    json: Path | None = option(
        "write the result here too", default=None, kind=PATH, metavar="FILE", auto="to stdout alone"
    )

    img_size: int | None = square_size(group=MODEL)
    model_kwargs: Mapping[str, Any] | None = model_kwargs(group=MODEL)
    pretrained: bool = flag("random weights", default=True, off="--no-pretrained", group=MODEL)

    split: str = option("of the data", default="validation", metavar="NAME", group=DATA)
    data_dir: str | None = option(
        "root folder of data that is named", default=None, metavar="DIR", auto="none", group=DATA
    )
    frame_stride: int | None = frame_stride(group=DATA)
    views: tuple[int, int] | None = option(
        "with a model of video: clips of a video, and crops of each, over which it averages",
        default=None,
        kind=whole(1),
        many=2,
        metavar=("N", "CROPS"),
        auto="1 1",
        group=DATA,
    )
    scale: str | None = scale(group=DATA)
    bands: tuple[int, ...] | None = bands(group=DATA)
    axes: str | None = axes(group=DATA)
    stack: str | None = stack(group=DATA)
    max_pixels: int | None = max_pixels(group=DATA)
    max_bad: float = option(
        "share of the images that may be unreadable", default=0.0, kind=FRACTION, metavar="SHARE", group=DATA
    )

    batch_size: int | None = option(
        "images fed at once, or of a step of fine-tuning",
        default=None,
        kind=whole(1),
        metavar="N",
        auto="64 images; of a step the recipe's number",
        group=COMPUTING,
    )
    workers: int = workers(group=COMPUTING)
    amp: str | None = amp(None, auto="auto with --method finetune, else none", group=COMPUTING)
    device: str | None = device(group=COMPUTING)
    seed: int = option("of everything random", default=0, kind=whole(0, LARGEST_SEED), metavar="N", group=COMPUTING)

    train: str | None = option(
        "labelled training images", default=None, metavar="DATA", auto="another split of the data", group=TRAINING
    )
    train_split: str | None = option(
        "of the training images", default=None, metavar="NAME", auto="train", group=TRAINING
    )
    k: int | None = option(
        "neighbours", default=None, kind=whole(1), metavar="N", flags=("-k",), auto="20", group=NEIGHBOURS
    )
    temperature: float | None = option(
        "of the votes", default=None, kind=POSITIVE, metavar="T", auto="0.07", group=NEIGHBOURS
    )
    cache: Path | None = option(
        "keep features here, and use those that are there",
        default=None,
        kind=PATH,
        metavar="DIR",
        auto="nowhere",
        group=PROBE,
    )

    output: Path | None = option(
        "write the fine-tuned model and log.jsonl here",
        default=None,
        kind=PATH,
        metavar="DIR",
        flags=("-o",),
        auto="nowhere",
        group=RESULT,
    )
    force: bool = flag("replace what this package wrote to the folder before", group=RESULT)
    eval_every: int | None = option(
        "measure after every N epochs too, for the log alone",
        default=None,
        kind=whole(1),
        metavar="N",
        auto="at the end alone",
        group=RESULT,
    )

    num_classes: int | None = option(
        "where the data do not tell", default=None, kind=whole(2), metavar="N", auto="those of the data", group=TUNING
    )
    epochs: int | None = option("epochs", default=None, kind=whole(1), metavar="N", auto=RECIPE, group=TUNING)
    warmup: int | None = option(
        "epochs in which the learning rate rises", default=None, kind=whole(0), metavar="N", auto=RECIPE, group=TUNING
    )
    blr: float | None = option(
        f"{RATE} per 256 images of a batch", default=None, kind=POSITIVE, metavar="LR", auto=RECIPE, group=TUNING
    )
    lr: float | None = option(RATE, default=None, kind=POSITIVE, metavar="LR", auto="blr * batch / 256", group=TUNING)
    min_lr: float | None = option(
        "learning rate at the end", default=None, kind=number(0), metavar="LR", auto=RECIPE, group=TUNING
    )
    layer_decay: float | None = option(
        "factor of the learning rate from a layer to the one below",
        default=None,
        kind=POSITIVE,
        metavar="FACTOR",
        auto=RECIPE,
        group=TUNING,
    )
    weight_decay: float | None = option(
        "of the optimiser", default=None, kind=NOT_NEGATIVE, metavar="X", auto=RECIPE, group=TUNING
    )
    drop_path: float | None = option(
        "probability, in the last layer, of leaving it out",
        default=None,
        kind=FRACTION,
        metavar="P",
        auto=RECIPE,
        group=TUNING,
    )
    smoothing: float | None = option(
        "share of a label that all classes get", default=None, kind=FRACTION, metavar="SHARE", auto=RECIPE, group=TUNING
    )
    mixup: float | None = option(
        "images are blended", default=None, kind=NOT_NEGATIVE, metavar="ALPHA", auto=RECIPE, group=TUNING
    )
    cutmix: float | None = option(
        "images are cut into one another", default=None, kind=NOT_NEGATIVE, metavar="ALPHA", auto=RECIPE, group=TUNING
    )
    mix_prob: float | None = option(
        "share of the batches with either", default=None, kind=FRACTION, metavar="SHARE", auto="1", group=TUNING
    )
    auto_augment: str | None = option(
        "of timm; none turns it off", default=None, metavar="POLICY", auto=RECIPE, group=TUNING
    )
    color_jitter: float | None = option(
        "in place of --auto-augment", default=None, kind=NOT_NEGATIVE, metavar="X", auto="0", group=TUNING
    )
    hflip: float | None = option(
        "probability of mirroring; 0 where left and right are classes",
        default=None,
        kind=FRACTION,
        metavar="P",
        auto="0.5",
        group=TUNING,
    )
    repeat: int | None = option(
        "clips of a video each time it is opened", default=None, kind=whole(1), metavar="N", auto=RECIPE, group=TUNING
    )
    erase: float | None = option(
        "probability of random erasing", default=None, kind=FRACTION, metavar="P", auto=RECIPE, group=TUNING
    )
    crop_scale: tuple[float, float] | None = option(
        "share of an image that is shown",
        default=None,
        kind=FRACTION,
        many=2,
        metavar=("LO", "HI"),
        auto="0.08 1",
        group=TUNING,
    )
    opt: str | None = option("optimiser of timm", default=None, metavar="NAME", auto="adamw", group=TUNING)
    clip: float | None = option(
        "largest norm of the gradient", default=None, kind=POSITIVE, metavar="NORM", auto="any norm", group=TUNING
    )
    ema: float | None = option(
        "average the weights with this decay, and measure the average",
        default=None,
        kind=FRACTION,
        metavar="DECAY",
        auto="no average",
        group=TUNING,
    )
    accumulate: int | None = option(
        "batches of an optimiser's step", default=None, kind=whole(1), metavar="N", auto="1", group=TUNING
    )
    compile: str | None = compile_mode(group=TUNING)
    grad_checkpointing: bool = grad_checkpointing(group=TUNING)

    def check_together(self) -> None:
        """Refuse options of other methods, and what contradicts itself.

        Raises:
            ValueError: naming them.
        """
        for field in dataclasses.fields(self):
            about, value = option_of(field), getattr(self, field.name)
            methods = METHODS_OF.get(about.group, METHODS)
            if value is not None and value is not False and self.method not in methods:
                name = flag_of(field.name, about)
                raise ValueError(f"{name} belongs to --method {' or '.join(methods)}, not to --method {self.method}")
        if self.force and not self.output:
            raise ValueError("--force replaces the folder of -o DIR, which is missing")
        if self.crop_scale:
            low, high = self.crop_scale
            if not low <= high or not high:
                raise ValueError(f"--crop-scale {low} {high}: the lower bound comes first")
