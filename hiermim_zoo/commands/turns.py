"""Models that take turns: each is made ready by itself, then all run in every round, so that whatever disturbs the
machine disturbs them alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..training.graphs import RECORDING
from .step_costs import flop_of, kernel_seconds_of, peak_of, seconds_of
from .steps import Setup, Side, build, prepare, split

MOST_STEPS = 20  # of a sample
LONGEST = 300  # characters of what an error says


@dataclass
class Row:
    """What was measured of one model."""

    model: str
    mode: str
    compile: str | None = None
    parameters: int = 0
    gmacs: float = 0.0  # of the dense forward pass of one image; 0 where they were not counted
    flop: int = 0  # floating point operations of one step without a compiler; 0 where they were not counted
    uncounted: str = ""  # why they could not be
    seconds: list[float] = field(default_factory=list)  # a step, of each round
    kernel_seconds: float = 0.0  # of a step, in which a GPU computes; 0 where it cannot be told
    peak_mib: float = 0.0  # above what was held before the step; 0 where it cannot be read
    images_per_second: float = 0.0
    missing: str = ""  # why nothing was measured

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Contender(NamedTuple):
    """A model that is warm, and the row that its turns fill."""

    row: Row
    step: Callable[[], None]
    steps: int = 1  # of a sample


def in_one_line(error: BaseException) -> str:
    """The beginning of what an error says."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def row_of(side: Side) -> Row:
    """Model with its arguments, mode and compilation; nothing is measured yet."""
    return Row(side.spec.partition(":")[0], split(side.spec)[2], side.compile)


def make_ready(row: Row, side: Side, setup: Setup, warmup: int, count: bool = False, sample: float = 0.0) -> Contender:
    """Build a model, warm it up, see what memory it takes.

    Args:
        row: of :func:`row_of`, which is filled with what is found.
        warmup: steps.
        count: the floating point operations too, by a step without a compiler.
        sample: seconds that a sample should last at least; shorter steps are repeated.

    Raises:
        ValueError: the model cannot be had, or not in this mode.
        Exception: whatever a model of strangers or a compiler comes up with.
    """
    model = build(side, setup.img_size).to(setup.device)
    row.parameters = sum(p.numel() for p in model.parameters())
    if count:
        try:
            row.flop = flop_of(prepare(model, Side(side.spec), setup))
        except Exception as error:  # compiled, it may run all the same
            row.uncounted = in_one_line(error)
            torch.compiler.reset()  # what could not be compiled under the counter is not to stay as it is
    step = prepare(model, side, setup)

    def warm_up() -> None:
        for _ in range(warmup):
            step()

    if side.compile in RECORDING:  # once recorded, they hold their memory for good

        def record() -> None:
            warm_up()
            step()

        row.peak_mib = peak_of(record, setup.device)
    else:
        warm_up()
        row.peak_mib = peak_of(step, setup.device)
    once = seconds_of(step, setup.device) if sample else math.inf
    return Contender(row, step, min(MOST_STEPS, max(1, math.ceil(sample / once))))


def raised(row: Row, error: Exception) -> None:
    """What is done about a step that fails where one failure spoils the whole."""
    raise error


def take_turns(
    contenders: Iterable[Contender],
    rounds: Iterable[int],
    setup: Setup,
    failed: Callable[[Row, Exception], None] = raised,
) -> None:
    """Every model runs once a round; before the first one it is seen how long a GPU computes in a step of each.

    Args:
        failed: is told of a step that fails; the model then takes part no more.
    """
    remaining = list(contenders)
    for _ in rounds:
        for contender in list(remaining):
            row, step, steps = contender
            try:
                if not row.seconds:
                    row.kernel_seconds = kernel_seconds_of(step, setup.device)
                row.seconds.append(seconds_of(step, setup.device, steps))
                row.images_per_second = setup.batch_size / row.median
            except Exception as error:  # compilers and models of strangers fail in all ways
                failed(row, error)
                remaining.remove(contender)


def ratio(one: Row, other: Row) -> float:
    """Time of one model in that of the other: the median of the ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))
