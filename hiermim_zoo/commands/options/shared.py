"""Options that several commands have, each defined once."""

from __future__ import annotations

import os
from typing import Any

from .fields import flag, option
from .values import POSITIVE, WORDS, or_word, whole

WORKERS = min(4, os.cpu_count() or 1)
LARGEST_SEED = 2**64 - 1  # that torch takes
AMP = ("auto", "none", "bf16", "fp16")
COMPILE = ("default", "reduce-overhead", "max-autotune", "cudagraphs")  # the last one is a backend of torch.compile
RECIPES = ("auto", "paper", "small")
BY_PAPER = " with --recipe paper"  # behind a value
FILES = ("--files",)  # a table of files is DATA; whoever looks for a flag finds this one
LOGS = ("wandb", "tensorboard", "csv")  # those of hiermim_zoo.training.run_clients, which imports torch
STRIDE, RATE = 4, 30  # of frames; those of hiermim_zoo.data.clips, which imports torch
NATIVE = "native"


def frame_stride(**about: Any) -> Any:
    """Given to a model of images it is an error, so None stands for the default."""
    help = "with a model of video: frames from one that is shown to the next, at the frame rate"
    return option(help, default=None, kind=whole(1), metavar="N", auto=str(STRIDE), **about)


def frame_rate(**about: Any) -> Any:
    """Likewise."""
    help = f"frames a second that the stride counts, whatever the rate of a file; {NATIVE}: the file's own frames"
    auto = f"{RATE}; folders of frames and files that tell no rate: {NATIVE}"
    return option(help, default=None, kind=or_word(POSITIVE, NATIVE), metavar=f"N|{NATIVE}", auto=auto, **about)


def square_size(**about: Any) -> Any:
    help = "feed images of N x N pixels"
    return option(help, default=None, kind=whole(1), metavar="N", auto="what the model's configuration says", **about)


def workers(**about: Any) -> Any:
    return option("processes that read images", default=WORKERS, kind=whole(0), metavar="N", **about)


def amp(default: str | None = "none", **about: Any) -> Any:
    help = "mixed precision; auto: bf16 on GPUs that have it, else none"
    return option(help, default=default, choices=AMP, **about)


def recipe(default: str | None = RECIPES[0], **about: Any) -> Any:
    help = (
        "batch, length and rate: paper, as published; small, for few images; auto: small for fewer than 100,000 "
        "images or on a CPU"
    )
    return option(help, default=default, choices=RECIPES, auto=RECIPES[0], **about)


def compile_mode(**about: Any) -> Any:
    help = "torch.compile; without a word its default mode"
    return option(help, default=None, choices=COMPILE, many="?", const=COMPILE[0], auto="eager", **about)


def grad_checkpointing(**about: Any) -> Any:
    return flag("less memory, more time: compute activations of blocks again in the backward pass", **about)


def log(**about: Any) -> Any:
    help = "tell others too what log.jsonl says, each by its own client; several may be named"
    auto = "log.jsonl alone; a run that goes on tells whom it told"
    return option(help, default=None, choices=LOGS, many="+", adds=True, auto=auto, **about)


def scale(**about: Any) -> Any:
    help = "which numbers of a file are black and white: dtype, minmax, percentile:LOW,HIGH, or LOW,HIGH"
    auto = "the checkpoint's, else dtype: what the file's type can hold"
    return option(help, default=None, metavar="RULE", auto=auto, **about)


def bands(**about: Any) -> Any:
    help = "bands of a file that become channels, in this order, counted from 1"
    return option(help, default=None, kind=whole(1), many="+", metavar="N", auto="the checkpoint's, else all", **about)


def axes(**about: Any) -> Any:
    help = "of arrays in .npy and .npz: channels first or last"
    auto = "the checkpoint's, else told by their lengths"
    return option(help, default=None, choices=("chw", "hwc"), auto=auto, **about)


def stack(**about: Any) -> Any:
    help = "words in the names of files that hold one band each: with red,nir the files a_red.tif and a_nir.tif are one"
    return option(help, default=None, kind=WORDS, metavar="WORDS", auto="the checkpoint's, else none", **about)


def max_pixels(**about: Any) -> Any:
    help = "refuse larger images, which may take all memory"
    return option(help, default=None, kind=whole(1), metavar="N", auto="89478485, which is PIL's", **about)


def show_bands(**about: Any) -> Any:
    help = "channels of the model that are drawn, as grey, or as red, green and blue; counted from 1"
    auto = "the first three, or the first alone"
    return option(help, default=None, kind=whole(1), many="+", metavar="N", auto=auto, **about)


def device(**about: Any) -> Any:
    auto = "cuda where there is one, else cpu; with torchrun, a GPU for each process"
    return option("cuda, cuda:1, cpu, ...", default=None, metavar="NAME", auto=auto, **about)
