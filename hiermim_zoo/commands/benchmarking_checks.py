"""What can be wrong with a benchmark, as far as it can be told without running a model: all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from ..models.shapes import without_memory
from ..training.distributed import pick_device, restored
from ..training.graphs import check_graphs
from .baselines import is_peer
from .options.benchmark import BenchmarkOptions
from .options.problems import check_all, gathered
from .output_files import check_ending, check_writable
from .steps import Side, build, split
from .suite_run import check_folder, chosen_device, chosen_rows, suite_of


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    return gathered(*checks(BenchmarkOptions.unchecked(said)))


def check(options: BenchmarkOptions) -> None:
    """Refuse what cannot be measured or written before anything runs.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    check_all(*checks(options))


def checks(options: BenchmarkOptions) -> list[Callable[[], object]]:
    if options.suite:
        found: list[Callable[[], object]] = [partial(check_rows, options), partial(check_suite_device, options)]
        return [*found, partial(check_folder, options.output)] if options.output else found
    specs = dict.fromkeys([*(options.models or ()), *([options.versus] if options.versus else [])])
    found = [partial(check_side, Side(spec, options.compile), options.img_size) for spec in specs]
    found.append(partial(check_graphs, options.compile, options.device))
    if options.device:
        found.append(partial(try_device, options.device))
    if options.output:
        found.append(partial(check_writable, options.output, f"-o {options.output}"))
        found.append(partial(check_ending, options.output, f"-o {options.output}", (".json",), "figures"))
    return found


def check_side(side: Side, img_size: tuple[int, int] | None) -> None:
    """Refuse a model that cannot be had, or not in its mode or at that size, without the memory for it.

    Raises:
        ValueError: naming it.
    """
    with without_memory():
        if not is_peer(split(side.spec)[0]):
            build(side, img_size)
            return
        with suppress(RuntimeError, NotImplementedError):  # code of strangers may need values; it is built again
            build(side, img_size)


def check_rows(options: BenchmarkOptions) -> None:
    """Refuse comparisons that a suite does not have.

    Raises:
        ValueError: naming one.
    """
    chosen_rows(suite_of(options), options.rows)


def check_suite_device(options: BenchmarkOptions) -> None:
    """Refuse a device that is not there, or that the suite is not for.

    Raises:
        ValueError: naming it.
    """
    try_device(chosen_device(options, suite_of(options)))


def try_device(name: str) -> None:
    with restored():
        pick_device(name)
