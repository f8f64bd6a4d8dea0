"""Models run in turns, and what their steps cost is put side by side."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import nn

from ..checkpoints.atomic import replacing
from ..mae import check_compilable, create_mae
from ..models.build import input_shape, make_model
from ..models.family import check_arch
from ..models.measure import measure
from ..training.distributed import pick_device, restored
from ..training.precision import autocast
from ..version import __version__
from .baselines import is_peer, make_peer
from .options import Outcome
from .options.benchmark import MODES, BenchmarkOptions
from .options.values import ASSIGNMENT
from .output_files import check_writable
from .step_costs import peak_of, seconds_of

MASKED = ("pretrain", "dense")  # modes of the masked autoencoder


@dataclass
class Row:
    """What was measured of one model."""

    model: str
    mode: str
    parameters: int
    gmacs: float  # of the dense forward pass of one image; 0 where they cannot be counted
    seconds: list[float] = field(default_factory=list)  # of each round
    peak_mib: float = 0.0  # above what was held before the step; 0 where it cannot be read
    images_per_second: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def benchmark(options: BenchmarkOptions) -> Outcome:
    """Measure; the result is a list of dictionaries, one for each model: the fields of :class:`Row`.

    Raises:
        ValueError: a model, a mode, the device or the output cannot be had.
    """
    if options.output:
        check_writable(options.output, str(options.output))
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
    rows, steps = {}, {}
    for name in dict.fromkeys([*options.models, *([options.versus] if options.versus else [])]):
        model = build(name, options).to(device)
        shown, mode = labels(name)
        rows[name] = Row(shown, mode, sum(p.numel() for p in model.parameters()), gmacs_of(name, options))
        steps[name] = prepare(model, mode, options, device)
    for name, step in steps.items():
        for _ in range(options.warmup):
            step()
        rows[name].peak_mib = peak_of(step, device)
    for _ in tqdm(range(options.rounds), unit="round", disable=None):
        for name, step in steps.items():
            rows[name].seconds.append(seconds_of(step, device))
    for row in rows.values():
        row.images_per_second = options.batch_size / row.median
    return rows


# ---- models


def split(name: str) -> tuple[str, dict[str, Any], str]:
    """Model, its arguments and mode of "NAME[,ARGUMENT=VALUE...][:MODE]".

    Raises:
        ValueError: one of them is unknown, or not of this form.
    """
    rest, _, mode = name.partition(":")
    if mode and mode not in MODES:
        raise ValueError(f"mode {mode!r} of {name!r} is unknown, use {', '.join(MODES)}")
    model, *given = re.split(r",(?![^(]*\))", rest)  # not at the commas of a tuple
    if not is_peer(model):
        check_arch(model)
    try:
        return model, dict(ASSIGNMENT(text) for text in given), mode or "inference"
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def labels(name: str) -> tuple[str, str]:
    """Model with its arguments, and mode, for the table."""
    return name.partition(":")[0], split(name)[2]


def gmacs_of(name: str, options: BenchmarkOptions) -> float:
    """0 for models of other packages, which cannot be counted without running them."""
    model, given, _ = split(name)
    if is_peer(model):
        return 0.0
    return measure(model.partition(".")[0], options.img_size, **given).macs / 1e9


def build(name: str, options: BenchmarkOptions) -> Any:
    """The classifier, or the masked autoencoder.

    Raises:
        ValueError: it cannot be made, or cannot be what the mode asks for.
    """
    model, given, mode = split(name)
    if options.img_size:
        given = {**given, "img_size": options.img_size}
    if is_peer(model):
        return build_peer(model, given, mode).train(mode != "inference")
    made: Any = create_mae(model, **given) if mode in MASKED else make_model(model, **given)
    if options.compile and mode in MASKED:
        check_compilable(made.encoder)
    return made.train(mode != "inference")


def build_peer(name: str, given: dict[str, Any], mode: str) -> nn.Module:
    """A model of another package, as it comes.

    Raises:
        ValueError: it has no such mode, or was to be changed.
    """
    if given:
        raise ValueError(f"{name} is measured as it comes: leave out {', '.join(given)}")
    model = make_peer(name)
    if hasattr(model, "encoder") != (mode == "pretrain"):
        fit = "pretrain" if hasattr(model, "encoder") else "inference or train"
        raise ValueError(f"{name}:{mode}: its mode is {fit}")
    return model


def prepare(model: Any, mode: str, options: BenchmarkOptions, device: str) -> Callable[[], object]:
    """One step of a model, ready to be called again and again."""
    masked = mode in MASKED
    shape = input_shape(model.encoder if masked else model)
    side = options.img_size or shape[-2:]
    images = torch.randn(options.batch_size, *shape[:-2], *side, device=device)
    everything = torch.arange(model.units, device=device).expand(options.batch_size, -1) if mode == "dense" else None
    call = torch.compile(model, mode=options.compile) if options.compile else model

    def step() -> None:
        with autocast(torch.device(device), options.amp):
            if mode == "inference":
                with torch.inference_mode():
                    call(images)
                return
            loss = call(images, everything).loss if masked else call(images).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


# ---- what is told of them


def table(rows: dict[str, Row], options: BenchmarkOptions, device: str) -> str:
    """A Markdown table; ratios are medians over rounds of the time beside the peer's in the same round."""
    peer = rows[options.versus] if options.versus else None
    head = ["model", "mode", "parameters", "GMACs", "ms a step", "images/s", "peak MiB"]
    head += ["time / peer", "memory / peer", "time per GMAC / peer"] if peer else []
    lines = [head, ["---"] * len(head)]
    for row in rows.values():
        gmacs = f"{row.gmacs:.2f}" if row.gmacs else "-"
        line = [f"`{row.model}`", row.mode, f"{row.parameters / 1e6:.2f} M", gmacs, f"{1000 * row.median:.1f}"]
        line += [f"{row.images_per_second:.1f}", f"{row.peak_mib:.0f}"]
        if peer:
            ratio = statistics.median(a / b for a, b in zip(row.seconds, peer.seconds, strict=True))
            memory = f"{row.peak_mib / peer.peak_mib:.2f}" if peer.peak_mib else "-"
            each = f"{ratio * peer.gmacs / row.gmacs:.3f}" if row.gmacs and peer.gmacs else "-"
            line += [f"{ratio:.3f}", memory, each]
        lines.append(line)
    how = f"compiled ({options.compile})" if options.compile else "eager"
    what = f"batch {options.batch_size}, {device}, amp {options.amp}, {how}, "
    what += f"{options.rounds} rounds, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{what}"


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
