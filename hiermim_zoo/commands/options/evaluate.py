"""Options of ``evaluate``. The group that an option stands in says which methods it belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import OptionSet
from .fields import flag, flag_of, model_kwargs, option, option_of
from .problems import BOTH_RATES, warmup_line
from .shared import (
    FILES,
    LARGEST_SEED,
    amp,
    axes,
    bands,
    compile_mode,
    device,
    frame_rate,
    frame_stride,
    grad_checkpointing,
    log,
    max_pixels,
    recipe,
    scale,
    square_size,
    stack,
    workers,
)
from .values import FRACTION, PATH, POSITIVE, TOLERANCE, number, whole

TASKS = ("auto", "classes", "tags", "values")
SAMPLING = ("all", "balanced")
METHODS = ("classify", "knn", "linear", "finetune")
DEFAULT_SPLIT = "validation"
TRAINED = ("knn", "linear", "finetune")  # methods that need labelled training images

MODEL = "the model"
DATA = "the images"
LABELS = "the labels, in a table"
COMPUTING = "computing"
TRAINING = "training images, with --method knn, linear or finetune"
WEIGHING = "with --method linear or finetune"
NEIGHBOURS = "with --method knn"
PROBE = "with --method linear"
RESULT = "what --method finetune writes"
TUNING = "with --method finetune; the recipe is that of the architecture's paper, or of few images: see --recipe"
METHODS_OF = {  # group -> the methods that its options belong to; all methods, where it is not named
    TRAINING: TRAINED,
    WEIGHING: ("linear", "finetune"),
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
        default=None,
        unless="explain",
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

    predictions: Path | None = option(
        "write what is said of each image, a table (.csv)",
        default=None,
        kind=PATH,
        metavar="FILE",
        auto="nowhere",
    )
    confusion: Path | None = option(
        "draw which classes are taken for which, a PNG", default=None, kind=PATH, metavar="FILE", auto="nowhere"
    )

    img_size: int | None = square_size(group=MODEL)
    model_kwargs: Mapping[str, Any] | None = model_kwargs(group=MODEL)
    pretrained: bool = flag("random weights", default=True, off="--no-pretrained", group=MODEL)

    split: str = option("of the data", default=DEFAULT_SPLIT, metavar="NAME", group=DATA)
    data_dir: str | None = option(
        "root folder of data that is named", default=None, metavar="DIR", auto="none", group=DATA
    )
    frame_stride: int | None = frame_stride(group=DATA)
    frame_rate: float | str | None = frame_rate(group=DATA)
    views: tuple[int, int] | None = option(
        "with a model of video: clips of a video, and crops of each along its longer side, over which it averages",
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
        "images that may be unreadable, or below 1 a share of them; any share allows for one image",
        default=0.0,
        kind=TOLERANCE,
        metavar="N",
        group=DATA,
    )

    labels: str | None = option(
        "table of labels (.csv, .tsv), with a column of files, for images in folders",
        default=None,
        metavar="FILE",
        auto="DATA itself, if it is a table",
        group=LABELS,
    )
    task: str = option(
        "what labels are: one class an image, several tags, or values (numbers); auto: what the table tells, or an "
        "error",
        default="auto",
        choices=TASKS,
        group=LABELS,
    )
    target_columns: tuple[str, ...] | None = option(
        "columns of the labels: one, or one for each tag (0 and 1) or value",
        default=None,
        many="+",
        metavar="COLUMN",
        auto="label, class, labels or tags",
        group=LABELS,
    )
    separator: str | None = option(
        "between the tags in one column", default=None, metavar="TEXT", auto="; or |", group=LABELS
    )
    group: str | None = option(
        "column of what belongs together (a patient, a scene): never trained and measured on, drawn together for "
        "intervals",
        default=None,
        metavar="COLUMN",
        auto="nothing belongs together",
        group=LABELS,
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
    split_fraction: float | None = option(
        "measure on this share of data that have but one split, and train on the rest",
        default=None,
        kind=number(0, 1, above=True, below=True),
        metavar="SHARE",
        auto="0.2 where neither two splits nor --train tell",
        group=TRAINING,
    )
    allow_shared_groups: bool = flag("groups may be trained and measured on", group=TRAINING)
    class_weights: str | None = option(
        "weights of classes or tags: balanced, or a table of label,weight",
        default=None,
        metavar="FILE",
        auto="all weigh as much",
        group=WEIGHING,
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
    log: tuple[str, ...] | None = log(group=RESULT)

    num_classes: int | None = option(
        "where the data do not tell", default=None, kind=whole(2), metavar="N", auto="those of the data", group=TUNING
    )
    recipe: str | None = recipe(None, group=TUNING)
    epochs: int | None = option(
        "length; an epoch is as many images or clips as the data have images or videos",
        default=None,
        kind=whole(1),
        metavar="N",
        auto=RECIPE,
        group=TUNING,
    )
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
    dropout: float | None = option(
        "share of the pooled features that the classifier does not see",
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
        auto="0.08 1; with --recipe small 0.35 1",
        group=TUNING,
    )
    opt: str | None = option("optimiser of timm", default=None, metavar="NAME", auto="adamw", group=TUNING)
    clip: float | None = option(
        "largest norm of the gradient; 0: any",
        default=None,
        kind=NOT_NEGATIVE,
        metavar="NORM",
        auto=RECIPE,
        group=TUNING,
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
    explain: bool = flag("say what would be done, and where each value comes from, and leave", group=TUNING)
    sampling: str | None = option(
        "images of an epoch: all once, or balanced: those of each class as often",
        default=None,
        choices=SAMPLING,
        auto="all",
        group=TUNING,
    )
    compile: str | None = compile_mode(group=TUNING)
    grad_checkpointing: bool = grad_checkpointing(group=TUNING)

    def check_together(self) -> Iterator[str]:
        """Options of other methods, and what contradicts itself."""
        for field in dataclasses.fields(self):
            about, value = option_of(field), getattr(self, field.name)
            methods = METHODS_OF.get(about.group, METHODS)
            given = value is not None and value is not False
            if given and self.method and self.method not in methods:
                name = flag_of(field.name, about)
                yield f"{name} belongs to --method {' or '.join(methods)}, not to --method {self.method}"
        if self.force and not self.output:
            yield "--force replaces the folder of -o DIR, which is missing"
        if self.log and not self.output:
            yield f"--log {' '.join(self.log)} goes with log.jsonl in the folder of -o DIR, which is missing"
        if self.allow_shared_groups and not self.group:
            yield "--allow-shared-groups is about the groups of --group COLUMN, which is missing"
        if self.split_fraction and self.train:
            yield f"--split-fraction {self.split_fraction:g} cuts DATA in two, so --train {self.train} is odd"
        outputs = [str(path) for path in (self.json, self.predictions, self.confusion) if path]
        if len(set(outputs)) < len(outputs):
            yield f"{outputs[-1]} is named by two of --json, --predictions and --confusion"
        if self.crop_scale:
            low, high = self.crop_scale
            if not low <= high or not high:
                yield f"--crop-scale {low} {high}: the lower bound comes first, as in 0.2 1"
        if None not in (self.lr, self.blr):
            yield BOTH_RATES
        if self.epochs is not None and self.warmup is not None:
            yield warmup_line(self.epochs, self.warmup, whole=True)
