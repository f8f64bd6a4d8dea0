"""One option: what a field of an OptionSet says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from .values import ASSIGNMENT, FLAG, SIDES, TEXT, ValueKind, one_of


@dataclass(frozen=True)
class Option:
    """What a field of an OptionSet says of itself."""

    help: str
    kind: ValueKind = TEXT
    group: str = ""
    flags: tuple[str, ...] = ()  # beside --name
    hidden: tuple[str, ...] = ()  # flags of earlier versions, still understood
    positional: bool = False
    many: str | int | None = None  # argparse's nargs
    metavar: str | tuple[str, ...] | None = None
    choices: tuple[str, ...] = ()
    auto: str = ""  # what None stands for, in words: "the recipe's"
    const: Any = None  # of an option whose value may be left out
    off: str = ""  # --no-... that turns a True into False
    adds: bool = False  # given several times, all count; else the last one does
    unlisted: bool = False  # understood, but not in the help
    spelt: tuple[str, ...] = ()  # flags that a positional argument may stand behind
    unless: str = ""  # the option whose presence makes up for its absence; its own default is None


def option(help: str, *, default: Any = MISSING, choices: Sequence[str] = (), **about: Any) -> Any:
    """A field of an OptionSet; without ``default`` it must be given. ``about``: see :class:`Option`."""
    if choices:
        about["kind"] = one_of(*choices)
    return dataclasses.field(default=default, metadata={"option": Option(help, choices=tuple(choices), **about)})


def img_size(help: str = "N x N pixels, or height and width", **about: Any) -> Any:
    """The option for pixels along both sides of images: (height, width), or None."""
    return option(help, default=None, kind=SIDES, many="+", metavar="N", **{"auto": "the model's", **about})


def model_kwargs(**about: Any) -> Any:
    """The option that timm's own scripts have for arguments of a model: a mapping."""
    help = "arguments of the model"
    return option(help, default=None, kind=ASSIGNMENT, many="+", adds=True, metavar="NAME=VALUE", auto="none", **about)


def flag(help: str, *, default: bool | None = False, **about: Any) -> Any:
    """An option that is there or not; with ``off="--no-..."`` and default True one that can be turned off."""
    return option(help, default=default, kind=FLAG, **about)


def option_of(field: dataclasses.Field[Any]) -> Option:
    found: Option = field.metadata["option"]
    return found


def long_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flag_of(name: str, about: Option) -> str:
    """What an option is called in messages."""
    if about.positional:
        return name.upper()
    return next((flag for flag in about.flags if not flag.startswith("--")), about.off or long_flag(name))
