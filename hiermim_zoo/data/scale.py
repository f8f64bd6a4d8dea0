"""From the numbers in a file to values from 0 to 1: which number is black, and which is white.

Letters: C bands, H and W pixels.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

# What dtype, minmax, percentile and range stand for, see Scale. The names are those of --scale.
RULES = ("dtype", "minmax", "percentile", "range")
REMEDY = "say --scale LOW,HIGH (or minmax, or percentile:LOW,HIGH)"


@dataclass(frozen=True)
class Scale:
    """A rule that says which numbers become 0 and 1; what lies beyond becomes 0 and 1, too.

    Args:
        rule: "dtype": the least and the largest number that the file's type can hold. "minmax": those of each band of
            each image. "percentile": its percentiles ``low`` and ``high``. "range": ``low`` and ``high`` themselves.
        low, high: of the last two rules.

    Raises:
        ValueError: there is no such rule, or its numbers are in the wrong order.
    """

    rule: str = "dtype"
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"scale rule {self.rule!r} is unknown, use {', '.join(RULES)}")
        if self.rule in ("percentile", "range") and not self.low < self.high:
            raise ValueError(f"--scale {self}: the lower number comes first")
        if self.rule == "percentile" and not 0 <= self.low < self.high <= 100:
            raise ValueError(f"--scale {self}: percentiles lie between 0 and 100")

    @classmethod
    def parse(cls, text: str) -> Scale:
        """A rule as --scale has it: "dtype", "minmax", "percentile:1,99", "0,4095".

        Raises:
            ValueError: it is none.
        """
        rule, _, numbers = text.rpartition(":")
        if text in ("dtype", "minmax"):
            return cls(text)
        try:
            low, high = map(float, numbers.split(","))
        except ValueError:
            low = high = math.nan
        if rule not in ("", "percentile") or not math.isfinite(low - high):
            raise ValueError(f"--scale {text}: use dtype, minmax, percentile:LOW,HIGH or LOW,HIGH")
        return cls(rule or "range", low, high)

    def __str__(self) -> str:
        numbers = f"{self.low:g},{self.high:g}"
        return {"percentile": f"percentile:{numbers}", "range": numbers}.get(self.rule, self.rule)

    @property
    def by_pixel(self) -> bool:
        """Whether what a number becomes is the same whatever the other pixels are."""
        return self.rule in ("dtype", "range")

    def __call__(
        self,
        values: np.ndarray[Any, Any],
        levels: tuple[float, float] | None,
        empty: np.ndarray[Any, Any] | None = None,
        part: bool = False,
    ) -> np.ndarray[Any, Any]:
        """Scale an image.

        Args:
            values: [C, H, W].
            levels: the least and the largest number that its type can hold; None where the file does not tell.
            empty: bool [C, H, W], pixels without a value, if there are any; they become 0.
            part: it is cut out of an image, so that all of it may be empty.

        Returns:
            float32 [C, H, W], from 0 to 1. A band of one value alone, of which minmax and percentiles can make nothing,
            is 0.

        Raises:
            ValueError: numbers that are none, a type without a range, an image of one value alone that is to be
                stretched, or one whose pixels have no values.
        """
        if empty is not None:
            if empty.all() and part:
                return np.zeros(values.shape, np.float32)
            if empty.all():
                raise ValueError(f"none of its pixels has a value: all are no data, such as {values.flat[0]:g}")
            values = np.ma.masked_array(values, empty)
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinity: pixels without a value")
        low, high = self._ends(values.astype(np.float64), levels)
        if not (high > low).any():
            raise ValueError(f"all of its values are {low.flat[0]:g}, so --scale {self} has nothing to stretch")
        width = np.where(high > low, high - low, np.inf)
        scaled = np.clip((values - low) / width, 0, 1).astype(np.float32)
        return np.ma.filled(scaled, 0)

    def _ends(
        self, values: np.ndarray[Any, Any], levels: tuple[float, float] | None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """What becomes 0 and 1, each [C, 1, 1] or [1, 1, 1]."""
        if self.rule == "dtype":
            if levels is None:
                found = f"{values.min():g} to {values.max():g}"
                raise ValueError(f"its numbers, {found}, have no known range; {REMEDY}")
            return np.full((1, 1, 1), levels[0]), np.full((1, 1, 1), levels[1])
        if self.rule == "range":
            return np.full((1, 1, 1), self.low), np.full((1, 1, 1), self.high)
        if self.rule == "minmax":
            low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
        else:
            known = np.ma.filled(values, np.nan)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of bands that have no values
                low, high = np.nanpercentile(known, (self.low, self.high), axis=(1, 2), keepdims=True)
        return np.nan_to_num(np.ma.filled(low, 0)), np.nan_to_num(np.ma.filled(high, 0))
