"""Options of ``benchmark``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import OptionSet, img_size, option
from .shared import amp, compile_mode
from .values import PATH, whole

MODES = ("inference", "train", "pretrain", "dense")

MEASURING = "measuring"
COMPUTING = "computing"


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(OptionSet):
    models: tuple[str, ...] = option(
        "of this package, of timm (with arguments of the model if need be) or of hiera-transformer/, simmim/; modes: "
        + ", ".join(MODES),
        positional=True,
        many="+",
        metavar="NAME[,ARGUMENT=VALUE...][:MODE]",
    )
    versus: str | None = option(
        "a peer: the others' time and memory as a ratio to it", default=None, metavar="NAME...", auto="no peer"
    )
    output: Path | None = option(
        "write all figures as JSON", default=None, kind=PATH, metavar="FILE", flags=("-o",), auto="nowhere"
    )

    rounds: int = option("each runs every model once", default=15, kind=whole(1), metavar="N", group=MEASURING)
    warmup: int = option("steps before measuring", default=3, kind=whole(0), metavar="N", group=MEASURING)
    batch_size: int = option("images of a step", default=8, kind=whole(1), metavar="N", group=MEASURING)
    img_size: tuple[int, int] | None = img_size(group=MEASURING)

    device: str | None = option(
        "cuda, cuda:1, cpu, ...",
        default=None,
        metavar="NAME",
        auto="cuda where there is one, else cpu",
        group=COMPUTING,
    )
    threads: int | None = option(
        "of the CPU", default=None, kind=whole(1), metavar="N", auto="torch's number", group=COMPUTING
    )
    amp: str = amp(group=COMPUTING)
    compile: str | None = compile_mode(group=COMPUTING)
