"""Time, memory and multiply-adds of models, run in turns so that a busy machine slows all of them alike.

    python -m hiermim_zoo.benchmark hivit_base --versus vit_base_patch16_224 --batch-size 4
    python -m hiermim_zoo.benchmark hivit_base:pretrain --versus hivit_base:dense --batch-size 8

A model is "NAME" or "NAME:MODE". Modes: inference; train (forward and backward of the classifier); pretrain (forward and backward
of the masked autoencoder, masked as its family's recipe says); dense (the same with all units visible).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import nn

from .build import input_shape
from .cli import AMP, add_img_size, assignment, check_compiled, make_model, run
from .mae import create_mae
from .measure import measure
from .peers import PEERS, is_peer, make_peer
from .registry import check_arch
from .version import __version__
from .writing import replacing

MODES = ("inference", "train", "pretrain", "dense")
MASKED = ("pretrain", "dense")  # of the masked autoencoder


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


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    names = [*args.models, *([args.versus] if args.versus else [])]
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, steps = {}, {}
    for name in dict.fromkeys(names):
        model = build(name, args)
        rows[name] = Row(*labels(name), sum(p.numel() for p in model.parameters()), gmacs_of(name, args))
        steps[name] = prepare(model, rows[name].mode, args)
    for name, step in steps.items():
        for _ in range(args.warmup):
            step()
        rows[name].peak_mib = peak_of(step, args.device)
    for _ in tqdm(range(args.rounds), unit="round", disable=None):
        for name, step in steps.items():
            rows[name].seconds.append(seconds_of(step, args.device))
    for row in rows.values():
        row.images_per_second = args.batch_size / row.median
    print(table(rows, args))
    if args.output:
        write(rows, args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hiermim_zoo.benchmark", description=(__doc__ or "").splitlines()[0])
    what = f"of this package, of timm (with arguments of the model if need be) or of {', '.join(f'{p}/' for p in PEERS)}; "
    what += f"modes: {', '.join(MODES)}"
    parser.add_argument("models", nargs="+", metavar="NAME[,ARGUMENT=VALUE...][:MODE]", help=what)
    parser.add_argument("--versus", metavar="NAME...", help="a peer: the others' time and memory as a ratio to it")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    add_img_size(parser.add_argument, " (default: own)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="each runs every model once (default: 15)")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="steps before measuring (default: 3)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: torch's)")
    parser.add_argument("--amp", choices=AMP, default="none", help="autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile with its default backend")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write all figures as JSON")
    args = parser.parse_args(argv)
    for option in ("batch_size", "rounds", "warmup"):
        if getattr(args, option) < (option != "warmup"):
            raise ValueError(f"--{option.replace('_', '-')} {getattr(args, option)} is too small")
    if args.output and not args.output.absolute().parent.is_dir():
        raise ValueError(f"{args.output} cannot be written: no such folder")
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {args.device!r} cannot be used: {str(error).partition(chr(10))[0]}") from error
    return args


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
        return model, dict(assignment(text) for text in given), mode or "inference"
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name!r}: {error}") from error


def labels(name: str) -> tuple[str, str]:
    """Model with its arguments, and mode, for the table."""
    return name.partition(":")[0], split(name)[2]


def gmacs_of(name: str, args: argparse.Namespace) -> float:
    """0 for models of other packages, which cannot be counted without running them."""
    model, given, _ = split(name)
    if is_peer(model):
        return 0.0
    return measure(model.partition(".")[0], args.img_size, **given).macs / 1e9


def build(name: str, args: argparse.Namespace) -> Any:
    """The classifier, or the masked autoencoder, on its device."""
    model, given, mode = split(name)
    if args.img_size:
        given = {**given, "img_size": args.img_size}
    if is_peer(model):
        return build_peer(model, given, mode).to(args.device).train(mode != "inference")
    made: Any = create_mae(model, **given) if mode in MASKED else make_model(model, **given)
    if args.compile and mode in MASKED:
        check_compiled(made.encoder)
    return made.to(args.device).train(mode != "inference")


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


def prepare(model: Any, mode: str, args: argparse.Namespace) -> Callable[[], object]:
    """One step of a model, ready to be called again and again."""
    masked = mode in MASKED
    shape = input_shape(model.encoder if masked else model)
    side = args.img_size or shape[-2:]
    images = torch.randn(args.batch_size, *shape[:-2], *side, device=args.device)
    everything = torch.arange(model.units, device=args.device).expand(args.batch_size, -1) if mode == "dense" else None
    call = torch.compile(model) if args.compile else model
    dtype = AMP[args.amp]

    def step() -> None:
        with torch.autocast(torch.device(args.device).type, dtype) if dtype else nullcontext():
            if mode == "inference":
                with torch.inference_mode():
                    call(images)
                return
            loss = call(images, everything).loss if masked else call(images).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def seconds_of(step: Callable[[], object], device: str) -> float:
    """Duration of one step; on a GPU by its own events."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_of(step: Callable[[], object], device: str) -> float:
    """MiB that one step needs at its peak, above what is held before it (weights).

    On a GPU what torch allocates; on Linux CPUs the peak of the resident memory, which the kernel lets a process reset.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not reset.exists():
        return 0.0

    def kib(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key + ":"))

    with suppress(OSError, AttributeError):  # other C libraries: what was freed before stays in the figure as if it were held
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset.write_text("5")
    before = kib("VmRSS")
    step()
    return (kib("VmHWM") - before) / 1024


def table(rows: dict[str, Row], args: argparse.Namespace) -> str:
    """A Markdown table; ratios are medians over rounds of the time beside the peer's in the same round."""
    peer = rows[args.versus] if args.versus else None
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
    what = f"batch {args.batch_size}, {args.device}, amp {args.amp}, {'compiled' if args.compile else 'eager'}, "
    what += f"{args.rounds} rounds, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{what}"


def write(rows: dict[str, Row], args: argparse.Namespace) -> None:
    about = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    content = {
        "options": about,
        "torch": torch.__version__,
        "hiermim_zoo": __version__,
        "rows": [asdict(row) for row in rows.values()],
    }
    with replacing(args.output) as part:
        part.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    run(main)
