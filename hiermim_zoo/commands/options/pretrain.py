"""The options of pre-training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...text import counted
from . import OptionSet
from .fields import flag, img_size, model_kwargs, option
from .problems import BOTH_RATES, rate_of, warmup_line
from .shared import (
    FILES,
    LARGEST_SEED,
    amp,
    axes,
    bands,
    compile_mode,
    frame_rate,
    frame_stride,
    grad_checkpointing,
    log,
    max_pixels,
    recipe,
    scale,
    show_bands,
    stack,
)
from .values import FRACTION, PATH, POSITIVE, TOLERANCE, ValueKind, number, or_word, whole

OWN_ARGS = (
    "drop_path_rate",
    "img_size",
    "in_chans",
    "num_classes",
)  # arguments of the model with an option of their own
FREE = {  # options that may change when a run is resumed: they do not change what it computes
    "data", "data_dir", "output", "resume", "workers", "device", "compile", "grad_checkpointing", "fsdp", "accumulate",
    "max_bad", "max_pixels", "max_nonfinite", "save_steps", "max_snapshots", "log_steps", "log", "look_every",
    "show_bands", "stop_after", "export_only", "license", "decoder", "fresh_decoder", "explain",
}  # fmt: skip
AUTO = "auto"  # --mean and --std
MASKS = ("sample", "batch", "step")  # who shares one
PIXELS = "pixels"  # --target
TEACHERS = {"features": True, "random-features": False}  # what a target begins with: has its teacher learned anything?
# What the recipe leaves to the number of images, where it is not the paper's: see training/small.py.
DECODER = ("decoder_depth", "decoder_dim", "decoder_heads")
SCHEDULED = ("epochs", "batch_size", "accumulate", "blr", "lr", "warmup", *DECODER)
REMEMBERED = "the checkpoint's, else the family's"
# Where neither an option nor, of a run that goes on, its beginning says another; None until then, which says nothing.
USUAL: dict[str, Any] = {"split": "train", "opt": "adamw", "seed": 0, "pretrained": False, "raw_pixels": False}


def is_target(value: Any) -> bool:
    """Whether something can be predicted, as far as its form tells: pixels, or the features of a teacher."""
    kind, _, model = str(value).partition(":")
    return value == PIXELS or (isinstance(value, str) and value.isprintable() and kind in TEACHERS and model != "")


TARGET = ValueKind(str, f"{PIXELS} or features:MODEL", is_target, PIXELS)

_data = partial(option, group="data")
_model = partial(option, group="model")
_decoder = partial(option, group="model", default=None, kind=whole(1), metavar="N", auto=REMEMBERED)
_schedule = partial(option, group="schedule and optimiser")
_paper = partial(option, group="schedule and optimiser", default=None, auto="the family's, see --recipe")
_computation = partial(option, group="computation")
_run = partial(option, group="the run")


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(OptionSet):
    """What a run is told.

    What the model's family has a value for is None until :meth:`filled` was called; the types are those afterwards.
    """

    data: str = _data(
        "folder of images or videos (labelled or not), tar, table of files (.csv, .tsv, .txt), digits, moving:DATA, or "
        "a name of timm's (hfds/...)",
        default=None,
        unless="explain",
        positional=True,
        spelt=FILES,
    )
    data_dir: str | None = _data("root folder of data that is named", default=None, metavar="DIR")
    split: str = _data("part of the data", default=None, metavar="NAME", auto=USUAL["split"])
    frame_stride: int | None = frame_stride(group="data")
    frame_rate: float | str | None = frame_rate(group="data")
    repeat: int | None = _data(
        "clips of a video each time it is opened", default=None, kind=whole(1), metavar="N", auto="the family's"
    )
    crop_scale: tuple[float, float] = _data(
        "share of an image's area that is shown, at least and at most",
        default=None,
        kind=FRACTION,
        many=2,
        metavar=("LOW", "HIGH"),
        auto="the family's",
    )
    mean: tuple[float | str, ...] | None = _data(
        f"of each channel, of pixels from 0 to 1; {AUTO}: measured on images of the data, and written down",
        default=None,
        kind=or_word(FRACTION, AUTO),
        many="+",
        metavar="X",
        auto="the model's",
    )
    std: tuple[float | str, ...] | None = _data(
        "standard deviation, likewise",
        default=None,
        kind=or_word(number(0, 1, above=True), AUTO),
        many="+",
        metavar="X",
        auto="the model's",
    )
    scale: str | None = scale(group="data")
    bands: tuple[int, ...] | None = bands(group="data")
    axes: str | None = axes(group="data")
    stack: str | None = stack(group="data")
    max_pixels: int | None = max_pixels(group="data")
    workers: int = _data("processes that read images", default=min(8, os.cpu_count() or 1), kind=whole(0), metavar="N")
    max_bad: float = _data(
        "images that may be unreadable, or below 1 a share of them; any share allows for one image",
        default=0.01,
        kind=TOLERANCE,
        metavar="N",
    )

    model: str = _model("architecture of this package, or a plain ViT of timm", metavar="ARCH")
    img_size: tuple[int, int] | None = img_size(group="model")
    in_chans: int = _model(
        "channels of an image", default=None, kind=whole(1), metavar="N", auto="the checkpoint's, else 3"
    )
    model_kwargs: dict[str, Any] | None = model_kwargs(group="model")
    checkpoint: str | None = _model(
        "folder of convert --mae or of an earlier run, to go on from with a new schedule", default=None, metavar="DIR"
    )
    decoder: str = _model(
        "with --checkpoint: the folder's decoder, or a new one, whether the folder has one or not",
        default="load",
        choices=("load", "fresh"),
    )
    fresh_decoder: bool = flag("--decoder fresh, in earlier versions", group="model", unlisted=True)
    pretrained: bool = flag("start the encoder from the architecture's pretrained weights", default=None, group="model")
    mask_ratio: float | None = _model(
        "share of the units that is hidden, 0 to 1",
        default=None,
        kind=number(0, 1, above=True, below=True),
        metavar="SHARE",
        auto=REMEMBERED,
    )
    masks: str | None = _model(
        "one mask for each image, for those of a micro-batch (of a process, in one pass), or for those of a step",
        default=None,
        choices=MASKS,
        auto=REMEMBERED,
    )
    target: str = _model(
        "what is predicted of hidden units: pixels, or the features of a frozen teacher, which is any model that timm "
        "makes with pretrained weights (random-features:MODEL: with random ones)",
        default=None,
        kind=TARGET,
        metavar="pixels|features:MODEL",
        auto="the checkpoint's, else pixels",
    )
    raw_pixels: bool = flag("predict pixels that are not normalised patch by patch", default=None, group="model")
    decoder_depth: int | None = _decoder("blocks of the decoder")
    decoder_dim: int | None = _decoder("channels of the decoder")
    decoder_heads: int | None = _decoder("attention heads of the decoder")
    drop_path: float = _model(
        "chance that a sample skips the last block of the encoder; earlier ones less, in proportion",
        default=None,
        kind=FRACTION,
        metavar="P",
        auto="the family's",
    )

    recipe: str = recipe(group="schedule and optimiser")
    epochs: float = _paper(
        "length of the run; an epoch is as many images or clips as the data have images or videos",
        kind=POSITIVE,
        metavar="N",
    )
    steps: int | None = _schedule(
        "end after so many steps, if the epochs are more", default=None, kind=whole(1), metavar="N", auto="none"
    )
    batch_size: int = _paper("images or clips of a step, in all processes together", kind=whole(1), metavar="N")
    accumulate: int = _schedule(
        "passes of a step, to save memory",
        default=None,
        kind=whole(1),
        metavar="N",
        auto="1; with --recipe small, what fits into memory",
    )
    blr: float = _paper("peak learning rate per 256 images of a batch", kind=number(0), metavar="LR")
    lr: float = _schedule(
        "peak learning rate", default=None, kind=number(0), metavar="LR", auto="blr * batch size / 256; small: its own"
    )
    warmup: float = _paper("epochs in which the learning rate rises", kind=number(0), metavar="N")
    weight_decay: float = _paper("not of biases and other tensors of one dimension", kind=number(0), metavar="W")
    betas: tuple[float, float] = _paper(
        "decay of the optimiser's moments, from 0 to 1", kind=number(0, 1, below=True), many=2, metavar=("B1", "B2")
    )
    opt: str = _schedule("any optimiser of timm", default=None, metavar="NAME", auto=USUAL["opt"])
    clip: float | None = _schedule(
        "largest norm of the gradient; 0: any", default=None, kind=number(0), metavar="NORM", auto="any"
    )
    seed: int = _schedule(
        "of all random choices", default=None, kind=whole(0, LARGEST_SEED), metavar="N", auto=str(USUAL["seed"])
    )

    device: str | None = _computation(
        "cuda, cuda:1, cpu, ...", default=None, auto="cuda where there is one; with torchrun, one each"
    )
    amp: str = amp("auto", group="computation")
    compile: str | None = compile_mode(group="computation")
    grad_checkpointing: bool = grad_checkpointing(group="computation")
    fsdp: bool = flag("spread weights and optimiser over the processes, for what does not fit", group="computation")

    output: Path = _run(
        "folder that the run writes", default=None, unless="explain", flags=("-o",), kind=PATH, metavar="DIR"
    )
    resume: str | None = _run(
        "go on from the last snapshot in the output folder (auto: if there is one), or from this one",
        default=None,
        metavar="auto|FILE",
        auto="a new run",
    )
    save_steps: int = _run(
        "steps from one snapshot to the next",
        default=None,
        kind=whole(1),
        metavar="N",
        auto="an epoch's; with --recipe small, a twentieth of the run or more",
    )
    max_snapshots: int = _run(
        "snapshots that stay, the last ones", default=3, kind=whole(1), metavar="N", hidden=("--keep",)
    )
    log_steps: int = _run("steps from one line of the log to the next", default=20, kind=whole(1), metavar="N")
    log: tuple[str, ...] | None = log(group="the run")
    show_bands: tuple[int, ...] | None = show_bands(group="the run")
    look_every: float = _run(
        "epochs from one look (images drawn, nearest neighbours) to the next; 0: never",
        default=None,
        kind=number(0),
        metavar="N",
        auto="20; with --recipe small, a tenth of the run",
    )
    max_nonfinite: int = _run(
        "steps in a row that may be skipped, because loss or gradients are not finite",
        default=10,
        kind=whole(0),
        metavar="N",
    )
    stop_after: int | None = _run(
        "steps after which to save and leave; --resume auto goes on", default=None, kind=whole(1), metavar="N"
    )
    export_only: bool = flag("write the encoder of the snapshot that --resume names, and leave", group="the run")
    explain: bool = flag("say what the run would do, and where each value comes from, and leave", group="the run")
    license: str = _run("licence of the weights, for their card", default="unstated", metavar="NAME")

    def check_together(self) -> Iterator[str]:
        """Options that do not go together."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and AUTO in values and len(values) > 1:
                yield f"--{name} {AUTO} measures all channels: give no numbers beside it"
            elif None not in (values, self.in_chans) and values != (AUTO,) and len(values) != self.in_chans:
                yield f"--{name} has {counted(len(values), 'values')}, but --in-chans is {self.in_chans}: give as many"
        if self.crop_scale is not None and not (self.crop_scale[0] <= self.crop_scale[1] > 0):
            yield "--crop-scale {:g} {:g}: the lower end comes first, as in 0.2 1".format(*self.crop_scale)
        if None not in (self.epochs, self.warmup):
            yield warmup_line(self.epochs, self.warmup)
        if self.pretrained and self.checkpoint:
            yield "--pretrained and --checkpoint exclude each other: both say where the encoder starts"
        if (self.decoder == "fresh" or self.fresh_decoder) and not self.checkpoint:
            yield "--decoder fresh belongs to --checkpoint: without it every decoder is new"
        if self.raw_pixels and self.target not in (None, PIXELS):
            yield f"--raw-pixels is about pixels, but --target {self.target} predicts none: leave one of them out"
        if self.export_only and not self.resume:
            yield "--export-only writes a run's encoder: say which with --resume auto or --resume FILE"
        if self.explain and self.resume:
            yield "--explain says what a new run would do: leave out --resume"
        self.own_model_kwargs(*OWN_ARGS)

    def filled(self, values: Mapping[str, Any]) -> PretrainOptions:
        """With other values, or what is usual, where there are none; with the rate that follows, if they say so much.

        Raises:
            ValueError: together they do not go.
        """
        own = {name: value for name, value in {**USUAL, **values}.items() if getattr(self, name) is None}
        filled = replace(self, **own)
        if filled.lr is not None or None in (filled.blr, filled.batch_size):
            return filled
        return replace(filled, lr=rate_of(filled.blr, filled.batch_size))

    def check_rate(self) -> None:
        """Refuse two rates; not of options that are :meth:`filled`, and not of a run that goes on with both.

        Raises:
            ValueError: naming them.
        """
        if None not in (self.lr, self.blr):
            raise ValueError(BOTH_RATES)

    def says(self, name: str) -> bool:
        """Whether an option says something, other than that the rest is to be decided later."""
        value = getattr(self, name)
        return value is not None and not (name in ("recipe", "amp") and value == AUTO)

    def binding(self) -> dict[str, Any]:
        """What must be the same when the run is resumed: plain values, as its snapshots hold them."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in FREE}
        lists = {
            name: list(values[name])
            for name in ("crop_scale", "mean", "std", "betas", "bands")
            if values[name] is not None
        }
        return values | lists | {"model_kwargs": list((self.model_kwargs or {}).items())}
