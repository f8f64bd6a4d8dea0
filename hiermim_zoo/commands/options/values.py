"""Kinds of values that options take, as text from a command line or from Python; types for argparse, too."""

from __future__ import annotations

import argparse
import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class BadValue(argparse.ArgumentTypeError, ValueError):
    """A value that an option does not take; argparse, too, shows what it says."""


@dataclass(frozen=True)
class ValueKind:
    """What the values of an option are, whether they come as text or from Python; a type for argparse, too."""

    convert: Callable[[Any], Any]
    wanted: str  # in words, for messages
    fits: Callable[[Any], bool] = lambda value: True
    example: str = ""  # a value that fits, where the words do not list them

    def __call__(self, value: Any) -> Any:
        """The value, converted.

        Raises:
            BadValue: it is not of this kind.
        """
        try:
            converted = self.convert(value)
        except (TypeError, ValueError, OverflowError, SyntaxError):
            converted = None
        if converted is None or not self.fits(converted):
            raise BadValue(f"{value} is not {self.wanted}")
        return converted


def whole(low: int, high: int | None = None) -> ValueKind:
    """Whole numbers from ``low`` to ``high``."""
    upper = "on" if high is None else f"to {high}"
    return ValueKind(
        _whole,
        f"a whole number from {low} {upper}",
        lambda n: low <= n and (high is None or n <= high),
        str(max(low, 1)),
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (not isinstance(value, str) and value != int(value)):
        raise ValueError
    return int(value)


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False) -> ValueKind:
    """Finite numbers from ``low`` to ``high``; ``above`` and ``below``: but not that one."""
    bounds = [f"{'above' if above else 'at least'} {low:g}"] if low > -math.inf else []
    bounds += [f"{'below' if below else 'at most'} {high:g}"] if high < math.inf else []
    return ValueKind(
        _number,
        f"a finite number {' and '.join(bounds)}".strip(),
        lambda x: math.isfinite(x) and (low < x if above else low <= x) and (x < high if below else x <= high),
        "0.5" if low < 0.5 < high else f"{high if low < high < math.inf else low:g}",
    )


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def one_of(*names: str) -> ValueKind:
    """One of some words."""
    return ValueKind(str, f"one of {', '.join(names)}", lambda name: name in names)


def _assignment(value: Any) -> tuple[str, Any]:
    """NAME=VALUE, the value a Python literal or else a string; from Python a pair that a command line could say too."""
    if isinstance(value, tuple):
        name, content = value
        if ast.literal_eval(repr(content)) != content:
            raise ValueError
    else:
        name, equals, text = str(value).partition("=")
        if not equals:
            raise ValueError
        try:
            content = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            content = text
    if not str(name).isidentifier():
        raise ValueError
    return str(name), content


def _path(value: Any) -> Path:
    if not str(value):
        raise ValueError
    return Path(value)


def or_word(kind: ValueKind, word: str) -> ValueKind:
    """Values of a kind, or one word in their place."""

    def convert(value: Any) -> Any:
        return value if value == word else kind(value)

    return ValueKind(convert, f"{kind.wanted}, or {word}", example=word)


def _tolerance(value: Any) -> float:
    """A number; from 1 on it counts things, and is whole."""
    found = _number(value)
    if found >= 1 and not found.is_integer():
        raise ValueError
    return found


def _words(value: Any) -> str:
    """Words with commas between them; from Python also a tuple or list."""
    words = value.split(",") if isinstance(value, str) else list(value)
    if not words or not all(isinstance(word, str) and re.fullmatch(r"[\w.-]{1,64}", word) for word in words):
        raise ValueError
    return ",".join(words)


WORDS = ValueKind(_words, "words of letters, digits, _ . and - with commas between them", example="red,nir")
TEXT = ValueKind(str, "text")
PATH = ValueKind(_path, "a path")
FINITE = number()
POSITIVE = number(0, above=True)
FRACTION = number(0, 1)
TOLERANCE = ValueKind(
    _tolerance,
    "a finite number at least 0 and whole from 1 on: so many images, or below 1 a share of them",
    lambda x: 0 <= x < math.inf,
    "3",
)
SIDES = whole(1)  # of images, in pixels: one number, or height and width
FLAG = ValueKind(_flag, "True or False")
ASSIGNMENT = ValueKind(_assignment, "of the form NAME=VALUE", example="depth=2")
