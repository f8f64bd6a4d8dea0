"""From what was measured to what is said of it: ratios to peers, shares of a peak, goals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from .options.benchmark import MODES
from .suites import Goal
from .turns import Row, ratio


class Measure(NamedTuple):
    """Something that a goal can be about."""

    words: str  # with the limit and the peer put in
    better: Callable[[float, float], bool]  # (found, limit)
    best: Callable[[list[float]], float]


MEASURES = {
    "speed": Measure("at least {:g} x as fast as {}", float.__ge__, max),
    "memory": Measure("at most {:g} of the memory of {}", float.__le__, min),
    "share": Measure("at least {:g} of the peak of a matrix product", float.__ge__, max),
}


@dataclass
class Verdict:
    """Whether a goal was reached."""

    goal: str
    found: float | None  # None where it could not be measured
    way: str  # in which it was found
    reached: bool | None


def way_of(row: Row) -> str:
    return f"compiled ({row.compile})" if row.compile else "eager"


def spec_of(row: Row) -> str:
    """NAME[,ARGUMENT=VALUE...][:MODE], as a command line has it."""
    return row.model if row.mode == MODES[0] else f"{row.model}:{row.mode}"


def same_way(row: Row, peer: str, rows: list[Row]) -> Row | None:
    """The row of a peer (NAME[:MODE]) that a model is put beside: compiled in the same mode if there is one, else one
    that is compiled, or not, as the model is, else the one that there is; None if it was not measured.
    """
    measured = [other for other in rows if spec_of(other) == peer and other.seconds]
    far = [(other.compile != row.compile, bool(other.compile) != bool(row.compile)) for other in measured]
    return measured[far.index(min(far))] if measured else None


def speed(row: Row, peer: Row) -> float:
    """How many times as fast as the peer: the median of the ratios within the rounds."""
    return ratio(peer, row)


def tflops(row: Row) -> float:
    """Achieved, in 10^12 operations a second; 0 where operations were not counted."""
    return row.flop / row.median / 1e12


def value_of(goal: Goal, row: Row, rows: list[Row], peak: float) -> float | None:
    """What a row comes to in the measure of a goal; None where that is not known.

    Args:
        peak: of a matrix product, TFLOP/s.
    """
    if not row.seconds:
        return None
    if goal.measure == "share":
        return tflops(row) / peak if row.flop and peak else None
    peer = same_way(row, goal.beside, rows)
    if peer is None:
        return None
    if goal.measure == "speed":
        return speed(row, peer)
    return row.peak_mib / peer.peak_mib if row.peak_mib and peer.peak_mib else None


def judged(goal: Goal, comparisons: Iterable[list[Row]], peak: float) -> Verdict:
    """Whether a goal was reached, in the way that suits its model best, in whichever comparison that was."""
    measure = MEASURES[goal.measure]
    words = f"`{goal.of}` {measure.words.format(goal.limit, f'`{goal.beside}`')}"
    values = [
        (value, way_of(row))
        for rows in comparisons
        for row in rows
        if spec_of(row) == goal.of and (value := value_of(goal, row, rows, peak)) is not None
    ]
    if not values:
        return Verdict(words, None, "", None)
    found = measure.best([value for value, _ in values])
    way = next(way for value, way in values if value == found)
    return Verdict(words, found, way, measure.better(found, goal.limit))
