"""Options of ``cards``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import OptionSet
from .fields import flag, option
from .values import PATH


@dataclass(frozen=True, kw_only=True)
class CardsOptions(OptionSet):
    root: Path = option("checkout with README.md", default=Path(), kind=PATH, metavar="DIR")
    check: bool = flag("write nothing, fail where a file is not current")
