"""What can be wrong with a report, told before anything is written: all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoints.folder import RUN_FILE
from ..training.run_log import LOG, LOOKS
from .options.problems import check_all, gathered
from .options.report import ReportOptions
from .output_files import check_not_read, check_writable


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    return gathered(*checks(ReportOptions.unchecked(said)))


def check(options: ReportOptions) -> None:
    """Refuse what cannot be done.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    check_all(*checks(options))


def checks(options: ReportOptions) -> list[Callable[[], object]]:
    found: list[Callable[[], object]] = [partial(check_run, folder) for folder in options.runs or ()]
    for flag, file, suffix in (("-o", options.output, ".html"), ("--png", options.png, ".png")):
        if file:
            found += [partial(check_suffix, file, flag, suffix), partial(check_writable, file, f"{flag} {file}")]
            found.append(partial(check_not_read, file, f"{flag} {file}", [run / LOOKS for run in options.runs or ()]))
    return [*found, needed]


def check_run(folder: Path) -> None:
    """Refuse what is no folder of a run.

    Raises:
        ValueError: naming it.
    """
    if not folder.is_dir():
        raise ValueError(f"RUNS {folder}: no such folder; name what pretrain -o or evaluate -o wrote")
    if not any((folder / name).is_file() for name in (LOG, RUN_FILE)):
        raise ValueError(f"RUNS {folder} is no run: it has neither {LOG} nor {RUN_FILE}; name the folder of its -o")


def check_suffix(file: Path, flag: str, suffix: str) -> None:
    """Refuse a name that promises another kind of file.

    Raises:
        ValueError: naming one that would work.
    """
    if file.suffix.lower() != suffix:
        raise ValueError(f"{flag} {file}: its name must end in {suffix}; {file.stem or 'report'}{suffix} would work")


def needed() -> None:
    """Refuse to begin without what draws.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ValueError('report draws with altair: pip install "hiermim-zoo[report]"') from error
