"""Options of ``list``; a module of that name would hide the type from the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import OptionSet
from .fields import flag, option
from .values import number


@dataclass(frozen=True, kw_only=True)
class ListOptions(OptionSet):
    patterns: tuple[str, ...] | None = option(
        "names of weights, with wildcards as in timm: hivit_base (all its tags), 'hivit*', '*.mae_in1k'",
        default=None,
        positional=True,
        many="*",
        metavar="PATTERN",
        auto="all",
    )
    family: str | None = option("of this family", default=None, metavar="NAME", auto="any")
    license: str | None = option(
        "of this licence; with wildcards, such as 'cc-by-nc*'", default=None, metavar="NAME", auto="any"
    )
    commercial: bool = flag("only those whose licence allows commercial use")
    here: bool = flag("only those that are in the local store or in the package")
    size: tuple[float, float] | None = option(
        "of so many millions of parameters", default=None, kind=number(0), many=2, metavar=("MIN", "MAX"), auto="any"
    )
    json: bool = flag("write records of all that is known instead of a table")

    def check_together(self) -> Iterator[str]:
        if self.size and self.size[0] > self.size[1]:
            yield f"--size {self.size[0]:g} {self.size[1]:g}: the first number must not be above the second"
