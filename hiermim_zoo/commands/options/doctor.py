"""Options of ``doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import OptionSet
from .fields import flag, option


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(OptionSet):
    targets: tuple[str, ...] | None = option(
        "names of weights (hivit_base.mae_in1k) and folders of models, to be looked at closely",
        default=None,
        positional=True,
        many="*",
        metavar="TAG|DIR",
        auto="none: the installation",
    )
    fetch: bool = flag("fetch weights that are not here; without it no server is asked")
    json: bool = flag("write records instead of lines")

    def check_together(self) -> Iterator[str]:
        if self.fetch and not self.targets:
            yield "--fetch needs the names of the weights to fetch"
