"""MODEL_CARDS.md, the README's table of models and the list of parameters are made from the manifest and the models."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from ..checkpoints import manifest
from ..checkpoints.catalogue import (
    accuracy_words,
    chosen,
    license_of,
    measured_by,
    millions,
    size_of,
    use_of,
    where,
)
from ..checkpoints.hub import HUB
from ..checkpoints.manifest import PARAMETERS, Table, Weights
from ..checkpoints.places import origins, places
from ..models.listing import architectures
from ..models.measure import measure, parameters
from ..models.weights import keeps_decoder
from ..progress import shown
from .options import Outcome
from .options.cards import CardsOptions

BEGIN, END = "<!-- models: made by python -m hiermim_zoo.cards -->", "<!-- end of models -->"
INTRO = """# Model cards

Made by `python -m hiermim_zoo.cards` from `weights/manifest.toml`; change that file, not this one.

Weights are found in this order: the local store (`$HIERMIM_WEIGHTS`, the user's cache, the weights that ship with the
package), your own mirror (`$HIERMIM_MIRROR`), a repository on the Hub that is pinned to a revision and a digest, the
origin, a repository that is not pinned. Where a file names no licence, that of its authors' code is taken, and *about
the licence* says so. Accuracies are top-1 on the validation or test set of the data named, as measured by whoever is
named, with a crop of so much of the shorter side of an image.
"""
SUMMARY = """## All weights

`python -m hiermim_zoo.list` shows this table for the weights that you ask for. Sizes with ~ are those of the parameters
in float32, where the size of the file is not known. *From*: part of the package, the Hub, Google Drive (Drive) or the
authors' own server (web).
"""
COMMERCIAL = """## Weights you may use commercially

The licences of these weights allow it: those that the authors state, or, where a file names none, those of the authors'
code; *about the licence* of each says so. They say nothing of the images that the weights were trained on. This is no
legal advice.
"""
ASK = """
Of these it is not clear, so ask their authors first: {}. All others are for non-commercial use only.
"""
CODE = """```python
import timm
import hiermim_zoo  # registers the architecture

model = timm.create_model("{}", pretrained=True)
```
"""
FOLDER_CODE = """`timm.create_model` knows no such tag of its own model: the name is one for the commands.
timm loads a folder, and does so without this package:

```bash
python -m hiermim_zoo.convert {0} {1}-o DIR
```

```python
import timm

model = timm.create_model("local-dir:DIR", pretrained=True)
```
"""
WHOLE_CODE = """
Encoder and decoder, from DIR (`checkpoint="DIR"`) or by the name:

```python
import hiermim_zoo

mae = hiermim_zoo.create_mae("{0}", pretrained=True)
```
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
    """Bring the files up to date; the result is a list of the paths that were written.

    Raises:
        ValueError: with ``--check``, a file is not current; or the README has no place for the table.
    """
    readme = options.root / "README.md"
    texts = {options.root / "MODEL_CARDS.md": model_cards(), readme: with_table(readme.read_text(encoding="utf-8"))}
    texts[options.root / "weights" / PARAMETERS] = counted()
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if options.check and stale:
        raise ValueError(f"{', '.join(map(str, stale))} not current; run python -m hiermim_zoo.cards")
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
    return Outcome(stale, "\n".join(f"wrote {path}" for path in stale))


def with_table(readme: str) -> str:
    """The README with its table of models made anew; those without weights share the last row.

    Raises:
        ValueError: it has no place for one.
    """
    head = ("model", "parameters", "GMACs (input)", "weights", "size", "top-1 (crop)", "trained by", "licence")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    without = []
    for arch in shown(architectures(), "model"):
        size = measure(arch)
        rows = [row for row in manifest.records().values() if row.arch == arch]
        sides = " x ".join(map(str, dict.fromkeys(size.input_size[1:])))
        cells = [f"`{arch}`", f"{size.parameters / 1e6:.2f} M", f"{size.macs / 1e9:.2f} ({sides})"]
        if not rows:
            without.append(cells)
            continue
        columns = zip(*map(in_table, rows), strict=True)
        lines.append(f"| {' | '.join([*cells, *map('<br>'.join, columns)])} |")
    if without:
        shared = map("<br>".join, zip(*without, strict=True))
        lines.append(f"| {' | '.join([*shared, 'none published', *['-'] * 4])} |")
    pattern = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    if not pattern.search(readme):
        raise ValueError(f"README.md has no line {BEGIN!r} followed by {END!r}")
    return pattern.sub(lambda _: "\n".join(lines) + "\n", readme)


def in_table(row: Weights) -> tuple[str, ...]:
    """What the README's table says of one set of weights."""
    first = row.accuracies[0] if row.accuracies else None
    crop = "not stated" if first is None or first.crop is None else f"{first.crop:g}"
    return (
        f"`{row.tag}`" + (" (embedded)" if row.file else ""),
        size_of(row, parameters(row.name)),
        f"{first.top1:g} ({crop})" if first else "-",
        row.source.partition(" (")[0],
        row.licenses,
    )


def counted() -> str:
    """Parameters of all models with weights, as TOML."""
    head = "# Made by python -m hiermim_zoo.cards: parameters of the model of each set of weights, with its classes.\n"
    return head + "".join(f'"{name}" = {parameters(name)}\n' for name in shown(manifest.records(), "tag"))


def model_cards() -> str:
    rows = manifest.records().values()
    return "\n".join([INTRO, summary(), commercial(), *map(section, rows), *map(measured, manifest.tables())])


def summary() -> str:
    """A line for each set of weights."""
    head = ("weights", "parameters", "size", "licence", "commercial use", "top-1", "crop", "measured by", "from")
    lines = [SUMMARY, f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in manifest.records().values():
        number = parameters(row.name)
        facts = (link(row), millions(number), size_of(row, number), license_of(row), use_of(row))
        shown = [
            (f"{a.top1:g}", "not stated" if a.crop is None else f"{a.crop:g}", measured_by(a)) for a in row.accuracies
        ]
        measures = map("<br>".join, zip(*shown, strict=True)) if shown else ("-",) * 3
        lines.append(f"| {' | '.join([*facts, *measures, where(row, look=False)])} |")
    return "\n".join(lines) + "\n"


def commercial() -> str:
    """What may be used commercially, and what has to be asked for."""
    head = ("weights", "parameters", "licence", "trained by", "data and schedule")
    lines = [COMMERCIAL, f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in chosen(commercial=True):
        facts = (link(row), millions(parameters(row.name)), row.license, row.source, row.data)
        lines.append(f"| {' | '.join(facts)} |")
    unknown = [link(row) for row in manifest.records().values() if use_of(row) == "ask"]
    return "\n".join(lines) + "\n" + (ASK.format(", ".join(unknown)) if unknown else "")


def link(row: Weights) -> str:
    """To the section of a set of weights, as GitHub calls it."""
    return f"[{row.name}](#{row.name.replace('.', '')})"


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
    origin = f"`weights/{row.file}`, embedded in the package"
    if not row.file:
        origin = ", else ".join(_link(place.address) for place in origins(row)) + f" (layout `{row.layout}`)"
    asked = [place.address.removeprefix(HUB) for place in places(row) if place.ready]
    number = parameters(row.name)
    facts = {
        "trained by": row.source,
        "origin": origin,
        "Hub": "".join(f"`{name}`{'' if row.hub_pinned else ', not pinned'}" for name in asked),
        "size": f"{number:,} parameters, {size_of(row, number)}",
        "licence": row.licenses,
        "commercial use": use_of(row),
        "about the licence": row.license_note,
        "paper": f"[arXiv {row.paper}](https://arxiv.org/abs/{row.paper})",
        "data and schedule": row.data,
        "classes": str(row.classes) if row.classes else "none (an encoder)",
        "top-1": "; ".join(map(accuracy_words, row.accuracies)),
        "input": " x ".join(map(str, row.input_size)) if row.input_size else "",
        "crop": f"{row.crop_pct:g} of the shorter side" if row.crop_pct else "",
        "sha256": f"`{row.sha256}`" if row.sha256 else "",
        "md5": f"`{row.md5}`..." if row.md5 else "",
        "note": row.note,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    code = FOLDER_CODE.format(row.name, "--mae " if keeps_decoder(row) else "") if row.timm else CODE.format(row.name)
    code += WHOLE_CODE.format(row.name) if keeps_decoder(row) else ""
    return f"## {row.name}\n\n| | |\n| --- | --- |\n{table}\n\n{code}"


def _link(address: str) -> str:
    name = address.removeprefix(HUB)
    return f"<{address}>" if name == address else f"[{name}](https://huggingface.co/{name})"
