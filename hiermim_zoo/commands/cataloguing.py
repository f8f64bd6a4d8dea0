"""MODEL_CARDS.md and the README's table of models are made from the manifest and the models themselves."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from ..checkpoints import manifest
from ..checkpoints.hub import HUB
from ..checkpoints.manifest import Table, Weights
from ..checkpoints.places import origins, places
from ..models.listing import list_models
from ..models.measure import measure
from .options import Outcome
from .options.cards import CardsOptions

BEGIN, END = "<!-- models: made by python -m hiermim_zoo.cards -->", "<!-- end of models -->"
INTRO = """# Model cards

Made by `python -m hiermim_zoo.cards` from `weights/manifest.toml`; change that file, not this one.

Weights are found in this order: the local store (`$HIERMIM_WEIGHTS`, the user's cache, the weights that ship with the
package), a repository on the Hub that is pinned to a revision and a digest, the origin, a repository that is not
pinned. A licence marked *unstated* means that the authors published the file without naming one: ask them before any
use beyond research. Accuracies are top-1 on the validation or test set of the data named, as measured by whoever is
named.
"""
COLUMNS = {  # of Measurement -> their heading
    "gmacs": "GMACs",
    "time": "time of a training step",
    "knn": "20 nearest neighbours",
    "linear": "linear probe",
    "finetuned": "fine-tuned",
    "note": "budget",
}


def write_cards(options: CardsOptions) -> Outcome:
    """Bring both files up to date; the result is a list of the paths that were written.

    Raises:
        ValueError: with ``--check``, a file is not current; or the README has no place for the table.
    """
    readme = options.root / "README.md"
    texts = {options.root / "MODEL_CARDS.md": model_cards(), readme: with_table(readme.read_text(encoding="utf-8"))}
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if options.check and stale:
        raise ValueError(f"{', '.join(map(str, stale))} not current; run python -m hiermim_zoo.cards")
    for path in stale:
        path.write_text(texts[path], encoding="utf-8")
    return Outcome(stale, "\n".join(f"wrote {path}" for path in stale))


def with_table(readme: str) -> str:
    """The README with its table of models made anew.

    Raises:
        ValueError: it has no place for one.
    """
    head = ("model", "parameters", "GMACs (input)", "weights", "trained by", "licence of the weights")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for arch in list_models():
        size = measure(arch)
        rows = [row for row in manifest.records().values() if row.arch == arch]
        tags = "<br>".join(f"`{row.tag}`" + (" (embedded)" if row.file else "") for row in rows) or "none published"
        licences = "<br>".join(row.license for row in rows) or "-"
        sides = " x ".join(map(str, dict.fromkeys(size.input_size[1:])))
        counts = f"{size.parameters / 1e6:.2f} M | {size.macs / 1e9:.2f} ({sides})"
        sources = "<br>".join(row.source.partition(" (")[0] for row in rows) or "-"
        lines.append(f"| `{arch}` | {counts} | {tags} | {sources} | {licences} |")
    pattern = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    if not pattern.search(readme):
        raise ValueError(f"README.md has no line {BEGIN!r} followed by {END!r}")
    return pattern.sub(lambda _: "\n".join(lines) + "\n", readme)


def model_cards() -> str:
    return "\n".join([INTRO, *map(section, manifest.records().values()), *map(measured, manifest.tables())])


def measured(table: Table) -> str:
    """What this project measured, in the columns in which there is anything."""
    columns = [name for name in COLUMNS if any(getattr(row, name) not in (None, (), "") for row in table.rows)]
    head = ("encoder", *(COLUMNS[name] for name in columns))
    lines = [f"## Measured: {table.title}\n\n{table.text}\n", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in table.rows:
        lines.append(f"| {' | '.join((row.encoder, *(cell(getattr(row, name)) for name in columns)))} |")
    return "\n".join(lines) + "\n"


def cell(value: str | float | Sequence[float] | None) -> str:
    """One value as it is; of several seeds mean and standard deviation."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.3g}"
    if not value:
        return "-"
    if len(value) == 1:
        return f"{value[0]:.1f}"
    return f"{statistics.mean(value):.1f} ± {statistics.stdev(value):.1f} ({len(value)} seeds)"


def section(row: Weights) -> str:
    """One set of weights, in the words of the manifest."""
    where = f"`weights/{row.file}`, embedded in the package"
    if not row.file:
        where = ", else ".join(_link(place.address) for place in origins(row)) + f" (layout `{row.layout}`)"
    asked = [place.address.removeprefix(HUB) for place in places(row) if place.ready]
    facts = {
        "trained by": row.source,
        "origin": where,
        "Hub": "".join(f"`{name}`{'' if row.hub_pinned else ', not pinned'}" for name in asked),
        "licence": row.license,
        "paper": f"[arXiv {row.paper}](https://arxiv.org/abs/{row.paper})",
        "data and schedule": row.data,
        "classes": str(row.classes) if row.classes else "none (an encoder)",
        "top-1": f"{row.top1} % ({row.top1_by})" if row.top1 is not None else "",
        "input": " x ".join(map(str, row.input_size)) if row.input_size else "",
        "crop": f"{row.crop_pct:g} of the shorter side" if row.crop_pct else "",
        "sha256": f"`{row.sha256}`" if row.sha256 else "",
        "md5": f"`{row.md5}`..." if row.md5 else "",
        "note": row.note,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    return f"## {row.name}\n\n| | |\n| --- | --- |\n{table}\n"


def _link(address: str) -> str:
    name = address.removeprefix(HUB)
    return f"<{address}>" if name == address else f"[{name}](https://huggingface.co/{name})"
