"""Models run in turns, and what their steps cost is put side by side."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.layers import to_2tuple

from ..checkpoints.atomic import replacing
from ..models.measure import measure
from ..progress import Progress
from ..training.distributed import pick_device, restored
from ..training.precision import chosen_amp
from ..version import __version__
from .baselines import is_peer
from .options import Outcome
from .options.benchmark import BenchmarkOptions
from .steps import Setup, Side, split
from .turns import Row, make_ready, ratio, row_of, take_turns


def benchmark(options: BenchmarkOptions) -> Outcome:
    """Measure; the result is a list of dictionaries, one for each model: the fields of :class:`Row`.

    Raises:
        ValueError: a model, a mode, the device or the output cannot be had.
    """
    options = options.filled()
    with restored():
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        pick_device(device)
        if options.threads:
            torch.set_num_threads(options.threads)
        rows = measured(options, device)
        found = [asdict(row) for row in rows.values()]
        if options.output:
            write(found, options, device)
        return Outcome(found, table(rows, options, device))


def measured(options: BenchmarkOptions, device: str) -> dict[str, Row]:
    """The costs of all models, by the names that they were given."""
    setup = Setup(device, options.batch_size, options.img_size, options.amp)
    names = dict.fromkeys([*(options.models or ()), *([options.versus] if options.versus else [])])
    sides = {name: Side(name, options.compile) for name in names}
    rows = {name: row_of(side) for name, side in sides.items()}
    contenders = [make_ready(rows[name], side, setup, options.warmup) for name, side in sides.items()]
    for name, row in rows.items():
        row.gmacs = gmacs_of(name, options.img_size)
    with Progress(options.rounds, "round", leave=True) as bar:
        take_turns(contenders, bar.over(range(options.rounds)), setup)
    return rows


def gmacs_of(name: str, img_size: tuple[int, int] | None) -> float:
    """0 for models of other packages, which cannot be counted without running them."""
    model, given, _ = split(name)
    if is_peer(model):
        return 0.0
    size = img_size or given.pop("img_size", None)
    return measure(model.partition(".")[0], to_2tuple(size) if size else None, **given).macs / 1e9


# ---- what is told of them


def table(rows: dict[str, Row], options: BenchmarkOptions, device: str) -> str:
    """A Markdown table; ratios are medians over rounds of the time beside the peer's in the same round."""
    peer = rows[options.versus] if options.versus else None
    head = ["model", "mode", "parameters", "GMACs", "ms a step", "images/s", "peak MiB"]
    head += ["time / peer", "memory / peer", "time per GMAC / peer"] if peer else []
    lines = []
    for row in rows.values():
        gmacs = f"{row.gmacs:.2f}" if row.gmacs else "-"
        line = [f"`{row.model}`", row.mode, f"{row.parameters / 1e6:.2f} M", gmacs, f"{1000 * row.median:.1f}"]
        line += [f"{row.images_per_second:.1f}", f"{row.peak_mib:.0f}"]
        if peer:
            time = ratio(row, peer)
            memory = f"{row.peak_mib / peer.peak_mib:.2f}" if peer.peak_mib else "-"
            each = f"{time * peer.gmacs / row.gmacs:.3f}" if row.gmacs and peer.gmacs else "-"
            line += [f"{time:.3f}", memory, each]
        lines.append(line)
    how = f"compiled ({options.compile})" if options.compile else "eager"
    amp = chosen_amp(options.amp, torch.device(device))
    what = f"batch {options.batch_size}, {device}, amp {amp}, {how}, "
    what += f"{options.rounds} rounds, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return f"{markdown(head, lines)}\n\n{what}"


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def write(found: list[dict[str, Any]], options: BenchmarkOptions, device: str) -> None:
    """All figures as JSON, with the options that they were measured with."""
    about = {**dataclasses.asdict(options), "device": device}
    content = {
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in about.items()},
        "torch": torch.__version__,
        "hiermim_zoo": __version__,
        "rows": found,
    }
    assert options.output is not None
    with replacing(options.output) as part:
        part.write_text(json.dumps(content, indent=2), encoding="utf-8")
