"""The results of a suite as Markdown and JSON, complete at every moment: what is missing is named."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints.atomic import replacing
from .benchmarking import markdown
from .judging import Verdict, judged, same_way, spec_of, speed, tflops, way_of
from .loader_rate import Rate
from .suites import Goal
from .turns import Row

NOT_REACHED = "not reached yet"


@dataclass
class Entry:
    """What became of one row of a suite."""

    title: str
    note: str = ""
    batch_size: int = 0
    rows: list[Row] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)  # NAME[:MODE] of those among the rows
    loader: Rate | None = None
    remarks: list[str] = field(default_factory=list)
    missing: str = ""  # why nothing was measured
    seconds: float = 0.0  # that it took


class Report:
    """The files of a run.

    Args:
        folder: for them.
        titles: of all rows of the suite.
        goals: of the suite.
        about: the run: see suite_run.about_run.
    """

    FILES = ("results.md", "results.json")

    def __init__(self, folder: Path, titles: list[str], goals: list[Goal], about: dict[str, Any]) -> None:
        self.markdown, self.json = (folder / name for name in self.FILES)
        self.about, self.rehearsal = about, about["rehearsal"]
        self.entries = [Entry(title, missing=NOT_REACHED) for title in titles]
        self.goals, self.started = goals, time.time()

    @property
    def peak(self) -> float:
        """Of a matrix product, TFLOP/s."""
        peak: float = self.about["matrix_product"]["tflops"]
        return peak

    def verdicts(self) -> list[Verdict]:
        """Of all goals, by what has been measured so far."""
        return [judged(goal, (entry.rows for entry in self.entries), self.peak) for goal in self.goals]

    def write(self) -> None:
        """Both files, as things stand."""
        rows = [dataclasses.asdict(entry) for entry in self.entries]
        content = {**self.about, "started": _clock(self.started), "written": _clock(time.time())}
        content |= {"goals": [dataclasses.asdict(verdict) for verdict in self.verdicts()], "comparisons": rows}
        for file, text in ((self.json, json.dumps(content, indent=1)), (self.markdown, self.text())):
            with replacing(file) as part:
                part.write_text(text + "\n", encoding="utf-8")

    def summary(self) -> str:
        """One line."""
        done = sum(not entry.missing for entry in self.entries)
        text = f"{done} of {len(self.entries)} comparisons measured"
        if self.rehearsal or not self.goals:
            return text
        reached = sum(verdict.reached is True for verdict in self.verdicts())
        return f"{text}, {reached} of {len(self.goals)} goals reached"

    # ---- Markdown

    def text(self) -> str:
        parts = [self.head()]
        if self.goals:
            goals = "\n".join(wrapped(f"- {verdict_line(verdict)}") for verdict in self.verdicts())
            parts += ["### Goals, each in the way that suits the model best", goals]
        parts += [part for entry in self.entries if not entry.missing for part in self.section(entry)]
        missing = [f"- {entry.title}: {entry.missing}" for entry in self.entries if entry.missing]
        parts += ["### Not measured", "\n".join(map(wrapped, missing))] if missing else []
        return "\n\n".join(parts)

    def head(self) -> str:
        about, box, version = self.about, self.about["machine"], self.about["versions"]
        product = about["matrix_product"]
        where = f"{box['card']} ({box['card_gib']} GiB)" if box["card"] else f"{about['threads']} threads"
        title = f"## {'Rehearsal of ' if self.rehearsal else ''}{about['suite'].upper()}: {where}, {self.type()}"
        software = [f"{name} {version[name]}" for name in ("torch", "cuda", "cudnn", "timm", "python") if version[name]]
        software += [f"driver {box['driver']}"] if box.get("driver") else []
        lines = [
            "The figures of a rehearsal mean nothing: models, batches and numbers of rounds are tiny."
            if self.rehearsal
            else f"Measured on {_clock(self.started)} by one command:",
            f"```bash\n{about['command']}\n```",
            f"- {box['processor']}, {box['cores']} cores, {about['threads']} threads; {', '.join(software)}; "
            f"hiermim_zoo {version['hiermim_zoo']}.",
            f"- The peak is that of a product of two {product['side']} x {product['side']} matrices of "
            f"{product['type']}: {product['tflops']:.4g} TFLOP/s.",
            f'- Steps run in {self.type()}; products of float32 numbers in precision "{about["float32_products"]}".',
            "- A step of pre-training is the forward and the backward pass, without the optimiser; one of inference "
            "is the forward pass. Data are on the device.",
            "- Times are medians over rounds; in each round all models run in turns. Speeds beside a peer are medians "
            "of the ratio within a round; a model is put beside the peer that was compiled as it was, or else beside "
            "the one that there is.",
            "- GFLOP are those of matrix products, convolutions and attention that really run, without a compiler. "
            "Peak memory is what a step needs in addition to the weights. Where the GPU is busy for much less than "
            "the whole step (1), it waits for the host to launch kernels.",
        ]
        return "\n\n".join([title, *lines[:2], "\n".join(map(wrapped, lines[2:]))])

    def type(self) -> str:
        return {"none": "float32", "bf16": "bf16 (autocast)", "fp16": "fp16 (autocast)"}[self.about["amp"]]

    def section(self, entry: Entry) -> list[str]:
        """Title, note, table, and what is to be said of it."""
        parts = [f"### {entry.title}", *([wrapped(entry.note)] if entry.note else [])]
        if entry.loader:
            return [*parts, self.loader(entry, entry.loader)]
        measured = [row for row in entry.rows if row.seconds]
        if measured:
            parts.append(self.table(entry, measured))
            rounds = max(len(row.seconds) for row in measured)
            parts.append(wrapped(" ".join([f"Batch {entry.batch_size}, rounds: {rounds}.", *entry.remarks])))
        bullets = [
            f"- Not measured: `{spec_of(row)}`, {way_of(row)}: {row.missing}" for row in entry.rows if row.missing
        ]
        return [*parts, "\n".join(map(wrapped, bullets))] if bullets else parts

    def table(self, entry: Entry, measured: list[Row]) -> str:
        peers = [peer for peer in entry.peers if any(spec_of(row) == peer for row in measured)]
        head = ["model", "way", "parameters", "GFLOP an image", "ms a step", "images/s", "peak MiB", "TFLOP/s"]
        head += ["of the peak", "GPU busy", *(f"speed / {short(peer)}" for peer in peers)]
        head += [f"memory / {short(peer)}" for peer in peers[:1]]
        return markdown(head, [self.line(entry, row, measured, peers) for row in measured])

    def line(self, entry: Entry, row: Row, measured: list[Row], peers: list[str]) -> list[str]:
        rate, memory = tflops(row), f"{row.peak_mib:.0f}" if row.peak_mib else "-"
        line = [f"`{spec_of(row)}`", way_of(row), f"{row.parameters / 1e6:.2f} M"]
        line += [f"{row.flop / entry.batch_size / 1e9:.2f}" if row.flop else "-", f"{1000 * row.median:.2f}"]
        line += [f"{row.images_per_second:.1f}", memory]
        line += [f"{rate:.4g}", f"{rate / self.peak:.3f}"] if rate else ["-", "-"]
        line += [f"{row.kernel_seconds / row.median:.2f}" if row.kernel_seconds else "-"]
        others = [same_way(row, peer, measured) for peer in peers]
        line += [f"{speed(row, other):.2f}" if other else "-" for other in others]
        line += [f"{row.peak_mib / o.peak_mib:.2f}" if o and o.peak_mib else "-" for o in others[:1]]
        return line

    def loader(self, entry: Entry, rate: Rate) -> str:
        rows = [row for entry in self.entries for row in entry.rows if row.seconds and row.mode == "pretrain"]
        steps = [(row.images_per_second, row.model) for row in rows]
        head = ["images/s of one process", "processes", "cores of the machine", "kB a photograph", "batch"]
        line = [f"{rate.images_per_second:.1f}", str(rate.workers), str(self.about["machine"]["cores"])]
        text = markdown(head, [[*line, f"{rate.kilobytes:.0f}", str(entry.batch_size)]])
        if not steps:
            return text
        fastest, model = max(steps)
        need = f"as many as {fastest / rate.images_per_second:.1f} such processes read"
        said = f"The fastest step of pre-training so far is that of `{model}` with {fastest:.0f} images/s, {need}."
        return f"{text}\n\n{wrapped(said)}"


def short(peer: str) -> str:
    """What the column of a peer (NAME:MODE) is called: its package, or its name in timm."""
    return f"`{peer.partition(':')[0].partition('/')[0].partition(',')[0]}`"


def verdict_line(verdict: Verdict) -> str:
    if verdict.found is None:
        return f"{verdict.goal}: not measured"
    return f"{verdict.goal}: {verdict.found:.2f}, {verdict.way}: {'reached' if verdict.reached else 'missed'}"


def wrapped(text: str) -> str:
    """Lines as long as those of the pages in docs/; of a list, indented."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
