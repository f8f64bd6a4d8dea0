"""Options of ``benchmark``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import OptionSet
from .fields import flag, flag_of, img_size, option, option_of
from .shared import amp, compile_mode
from .values import PATH, POSITIVE, whole

MODES = ("inference", "train", "pretrain", "dense")
SUITES = {"gpu": 8, "cpu": 45}  # and their minutes

MEASURING = "measuring"
COMPUTING = "computing"
SUITE = "everything that the project claims, in one run"

# What None becomes in `filled`. A suite decides these itself, so there it matters whether they were given.
_DEFAULTS = {"rounds": 15, "warmup": 3, "batch_size": 8, "amp": "none"}
_DECIDED = ("versus", *_DEFAULTS, "img_size", "threads", "compile")
_OF_SUITES = ("minutes", "rows", "jobs", "rehearse")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(OptionSet):
    """What is to be measured. Where :meth:`filled` has a default, the types are those afterwards."""

    models: tuple[str, ...] | None = option(
        "of this package, of timm (with arguments of the model if need be) or of hiera-transformer/, hiera-optim/, "
        f"simmim/; modes: {', '.join(MODES)}",
        default=None,
        positional=True,
        many="*",
        metavar="NAME[,ARGUMENT=VALUE...][:MODE]",
    )
    versus: str | None = option(
        "a peer: the others' time and memory as a ratio to it", default=None, metavar="NAME...", auto="no peer"
    )
    output: Path | None = option(
        "write all figures as JSON; of a suite the folder for results.md and results.json",
        default=None,
        kind=PATH,
        metavar="FILE",
        flags=("-o",),
        auto="nowhere",
    )

    suite: str | None = option(
        "in place of models: all comparisons of docs/benchmarks.md for such a device",
        default=None,
        choices=tuple(SUITES),
        auto="none",
        group=SUITE,
    )
    minutes: float | None = option(
        "no comparison begins after them; one that has begun is finished",
        default=None,
        kind=POSITIVE,
        metavar="N",
        auto=", ".join(f"{minutes} for {name}" for name, minutes in SUITES.items()),
        group=SUITE,
    )
    rows: tuple[int, ...] | None = option(
        "only these comparisons of the suite, counted from 1: what another run left out",
        default=None,
        kind=whole(1),
        many="+",
        metavar="N",
        auto="all",
        group=SUITE,
    )
    jobs: int | None = option(
        "processes that make what needs a compiler ready at the same time, to be measured one after the other",
        default=None,
        kind=whole(1),
        metavar="N",
        auto="none: one comparison after the other",
        group=SUITE,
    )
    rehearse: bool = flag(
        "try on any device whether all comparisons run: tiny models, 2 images, one round; the figures mean nothing",
        group=SUITE,
    )

    rounds: int = option(
        "each runs every model once", default=None, kind=whole(1), metavar="N", auto="15", group=MEASURING
    )
    warmup: int = option("steps before measuring", default=None, kind=whole(0), metavar="N", auto="3", group=MEASURING)
    batch_size: int = option("images of a step", default=None, kind=whole(1), metavar="N", auto="8", group=MEASURING)
    img_size: tuple[int, int] | None = img_size(group=MEASURING)

    device: str | None = option(
        "cuda, cuda:1, cpu, ...",
        default=None,
        metavar="NAME",
        auto="cuda where there is one, else cpu; that of the suite",
        group=COMPUTING,
    )
    threads: int | None = option(
        "of the CPU", default=None, kind=whole(1), metavar="N", auto="torch's number", group=COMPUTING
    )
    amp: str = amp(default=None, auto="none", group=COMPUTING)
    compile: str | None = compile_mode(group=COMPUTING)

    def check_together(self) -> Iterator[str]:
        """Neither models nor a suite, or what does not go with the one that is given."""
        if self.suite is None:
            yield from self._refused(_OF_SUITES, "goes with --suite alone")
            if self.models is None:
                yield f"name models to measure, or --suite {' or '.join(SUITES)}"
            return
        if self.models is not None:
            yield f"--suite {self.suite} says itself which models are measured: leave out {self.models[0]}"
        yield from self._refused(_DECIDED, f"--suite {self.suite} decides this itself: leave it out")
        if self.suite != "gpu":
            yield from self._refused(("jobs",), "goes with --suite gpu alone, as nothing else needs a compiler")
        if "output" not in self.given():
            yield f"--suite {self.suite} needs -o, the folder for its results"

    def _refused(self, names: tuple[str, ...], why: str) -> Iterator[str]:
        about = {field.name: option_of(field) for field in dataclasses.fields(self)}
        return (f"{flag_of(name, about[name])}: {why}" for name in names if name in self.given())

    def filled(self) -> BenchmarkOptions:
        """With the default of every option that was not given; for models, not for a suite."""
        missing: Any = {name: value for name, value in _DEFAULTS.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)
