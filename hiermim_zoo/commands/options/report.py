"""Options of ``report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import OptionSet
from .fields import option
from .values import PATH

OVER = ("steps", "samples", "epochs")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(OptionSet):
    runs: tuple[Path, ...] = option(
        "folders of runs: what pretrain -o and evaluate --method finetune -o wrote",
        kind=PATH,
        positional=True,
        many="+",
        metavar="RUN",
    )
    output: Path = option("page to write, .html", kind=PATH, metavar="FILE", flags=("-o",))
    png: Path | None = option(
        "write the curves as one image too", default=None, kind=PATH, metavar="FILE", auto="nowhere"
    )
    over: str = option("what curves are drawn over", default="steps", choices=OVER)
