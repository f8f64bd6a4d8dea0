"""A suite: its rows one after the other, each written down round by round."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..text import counted
from ..training.distributed import pick_device, restored
from ..training.precision import chosen_amp
from .machine import machine, matrix_product, versions
from .options import Outcome
from .options.benchmark import SUITES as MINUTES
from .options.benchmark import BenchmarkOptions
from .output_files import check_writable
from .suite_jobs import Jobs
from .suite_report import Entry, Report
from .suite_row import Clock, Measuring
from .suites import SUITES, Comparison, Suite, rehearsed


def run_suite(options: BenchmarkOptions) -> Outcome:
    """Measure all rows; the result is the folder with results.md and results.json, which are written after every row.

    Raises:
        ValueError: there is no such device or comparison, or the folder holds results already.
    """
    folder = options.output
    assert options.suite is not None
    assert folder is not None
    suite = chosen_rows(suite_of(options), options.rows)
    suite = rehearsed(suite) if options.rehearse else suite
    device = chosen_device(options, suite)
    clock = Clock(options.minutes or MINUTES[options.suite])
    with restored():
        pick_device(device)
        make_folder(folder)
        if suite.threads:
            torch.set_num_threads(suite.threads)
        about = about_run(options, clock, device, suite)
        report = Report(folder, [row.title for row in suite.rows], suite.goals, about)
        report.write()
        later = compiled_rows(suite) if options.jobs else {}
        for number, row in enumerate(suite.rows):
            if number in later:
                continue
            if clock.over:
                report.entries[number].missing = clock.why
                continue
            say(f"{number + 1} of {len(suite.rows)}: {row.title}")
            Measuring(suite, device, clock, partial(written, report, number)).measure(row)
        if options.jobs and later:
            say(
                f"{len(later)} of {counted(len(suite.rows), 'comparisons')}, made ready by "
                f"{counted(options.jobs, 'processes')}"
            )
            Jobs(suite, device, clock, partial(written, report), options.jobs).measure(later)
        report.write()
    return Outcome(folder, f"wrote {report.markdown} and {report.json}: {report.summary()}")


def suite_of(options: BenchmarkOptions) -> Suite:
    """All of the suite that is asked for."""
    assert options.suite is not None
    return SUITES[options.suite]


def chosen_rows(suite: Suite, numbers: tuple[int, ...] | None) -> Suite:
    """The comparisons with these numbers, counted from 1, in their order in the suite; None: all.

    Raises:
        ValueError: there is no such comparison.
    """
    if numbers is None:
        return suite
    if max(numbers) > len(suite.rows):
        raise ValueError(f"--rows {max(numbers)}: the suite has {counted(len(suite.rows), 'comparisons')}")
    return suite._replace(rows=tuple(suite.rows[n - 1] for n in sorted(set(numbers))))


def compiled_rows(suite: Suite) -> dict[int, Comparison]:
    """Those that need a compiler, by their number."""
    rows = enumerate(suite.rows)
    return {number: row for number, row in rows if isinstance(row, Comparison) and row.needs_compiler}


def written(report: Report, number: int, entry: Entry) -> None:
    """Write a row as far as it has come."""
    report.entries[number] = entry
    report.write()


def about_run(options: BenchmarkOptions, clock: Clock, device: str, suite: Suite) -> dict[str, Any]:
    """What a run was told, and what it runs on."""
    return {
        "suite": options.suite,
        "rehearsal": options.rehearse,
        "command": options.command("benchmark"),
        "minutes": clock.minutes,
        "amp": chosen_amp(suite.amp, torch.device(device)),
        "threads": torch.get_num_threads(),
        "float32_products": torch.get_float32_matmul_precision(),
        "machine": machine(device),
        "versions": versions(),
        "matrix_product": matrix_product(suite.product, device, suite.amp),
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def chosen_device(options: BenchmarkOptions, suite: Suite) -> str:
    """That of the suite; rehearsals run anywhere.

    Raises:
        ValueError: it is not there, or another kind was asked for.
    """
    there = torch.cuda.is_available() or suite.device == "cpu"
    device = options.device or (suite.device if there else "cpu")
    if device.partition(":")[0] != suite.device and not options.rehearse:
        raise ValueError(
            f"--suite {options.suite} measures on {suite.device}, not on {device}; "
            "with --rehearse it shows on any device whether all of it runs"
        )
    return device


def check_folder(folder: Path) -> None:
    """Refuse a folder before any work is done.

    Raises:
        ValueError: it has results already, or cannot be one.
    """
    for name in Report.FILES:
        if (folder / name).exists():
            raise ValueError(f"-o {folder} holds the results of another run ({name}): give another folder")
    there = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "no permission" if there.is_dir() else f"{there} is a file, not a folder"
        raise ValueError(f"-o {folder} cannot hold results: {why}; give another folder")


def make_folder(folder: Path) -> None:
    """Make the folder for results, if need be.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"-o {folder} cannot hold results: {error.strerror}") from error
    for name in Report.FILES:
        check_writable(folder / name, str(folder))
