"""A report as one page of HTML: it fetches nothing, whatever it shows of strangers is escaped, phones can read it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ..progress import duration
from ..text import counted, plural
from ..training.endings import FEW_MEASURED
from ..training.probe import interval
from ..training.run_record import FAILED, FINISHED, GOES_ON, KILLED, STOPPED
from .reporting_assets import SCRIPT, STYLE
from .reporting_charts import colours
from .reporting_runs import Told

IMAGES, LEAST = 36, 4  # previews of a page, and of each run at least
WIDE, QUALITY = 760, 78  # pixels, and of JPEG
NAMED = 12  # of what was skipped
BIG = {"loss": "loss", "knn": "k-NN", "top1": "top-1", "map": "mAP", "r2": "R²", "images_s": "images/s"}  # of a card
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"


def page(runs: Sequence[Told], specs: Mapping[str, Any], library: str) -> str:
    """The whole page.

    Args:
        specs: Vega-Lite by title.
        library: JavaScript that draws it.
    """
    title = f"Report of {counted(len(runs), 'runs')}"
    tints = dict(zip((run.name for run in runs), colours(len(runs)), strict=True))
    drawn = [f'<figure><figcaption>{escape(name)}</figcaption><div class="chart" data-n="{n}"></div></figure>'
             for n, name in enumerate(specs)]  # fmt: skip
    curves = f'<div class="grid">{"".join(drawn)}</div>' if drawn else "<p>No step is logged yet.</p>"
    body = [
        f"<header><h1>{title}</h1><p>{' · '.join(_chip(run.name, tints) for run in runs)}</p></header>",
        _section("runs", "Runs", f'<div class="cards">{"".join(_card(run, tints) for run in runs)}</div>'),
        _section("curves", "Curves", curves),
        _previews(runs, tints),
        _options(runs, tints),
        _section("skipped", "Skipped", "".join(_skipped(run, tints) for run in runs)),
    ]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
            f"<title>{title}</title><style>{STYLE}</style></head><body>",
            *body,
            f'<script type="application/json" id="specs">{in_script(list(specs.values()))}</script>',
            f"<script>{library}</script><script>{SCRIPT}</script></body></html>\n",
        ]
    )


def in_script(value: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>'


def _chip(name: str, tints: Mapping[str, str]) -> str:
    return f'<span class="chip"><i style="background:{tints[name]}"></i>{escape(name)}</span>'


def _card(run: Told, tints: Mapping[str, str]) -> str:
    """How a run stands, and what it runs on."""
    how, done, left = str(run.ended.get("how", "")), run.last("step") or 0, run.last("left")
    facts = [("kind", run.kind), *run.facts.items()]
    if how == GOES_ON and left:
        facts.append(("left", f"about {duration(left)} after the last line of the log"))
    progress = f"{done:,} of {run.total:,} steps" if run.total else f"{done:,} {plural('steps', done)}"
    big = "".join(_number(run, column, title) for column, title in BIG.items())
    parts = "".join(f"<li>{_part(session)}</li>" for session in run.sessions)
    starts = counted(len(run.sessions), "starts")
    return "".join(
        [
            f'<article class="card"><h3>{_chip(run.name, tints)}<em class="{_class(how)}">{escape(how)}</em></h3>',
            f"<p>{progress}{_why(run.ended)}</p>",
            f'<meter min="0" max="{run.total}" value="{done}"></meter>' if run.total else "",
            f'<div class="numbers">{big}</div><dl>',
            *(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts),
            "</dl>",
            *(f'<p class="warned">{escape(line)}</p>' for line in run.warnings),
            f"<details><summary>{starts}</summary><ol>{parts}</ol></details>" if parts else "",
            "</article>",
        ]
    )


def _number(run: Told, column: str, title: str) -> str:
    """A last value, large; small where it rests on few images. A loss that was not the end of a run is told as such."""
    if column == "loss" and (words := run.unfinite()):
        return f"<div><b>not finite</b><span>{escape(words)}</span></div>"
    value = run.last(column)
    if value is None:
        return ""
    if column == "knn" and run.queries:
        low, high = interval(min(run.queries, round(value * run.queries / 100)), run.queries)
        few = ' class="few"' if run.queries < FEW_MEASURED else ""
        title = f"{title} in % of {counted(run.queries, 'images')} ({100 * low:.0f} to {100 * high:.0f})"
        return f"<div{few}><b>{value:.4g}</b><span>{title}</span></div>"
    return f"<div><b>{value:.4g}</b><span>{title}</span></div>"


def _class(how: str) -> str:
    return how.replace(" ", "-") if how in (FINISHED, GOES_ON, STOPPED, FAILED, KILLED) else "unknown"


def _why(ended: Mapping[str, Any]) -> str:
    why = ended.get("why")
    return f"; {escape(str(why))}" if why else ""


def _part(session: Mapping[str, Any]) -> str:
    """One start of a run: when, from where, how it ended."""
    began, command, ended = (session.get(key, "") for key in ("began", "command", "ended"))
    until = f", {escape(str(ended.get('how', '')))}{_why(ended)}" if isinstance(ended, dict) else ""
    start = f" from step {session['start']}" if session.get("start") else ""
    return f"{escape(str(began))}{escape(start)}{until}<code>{escape(str(command))}</code>"


# ---- previews


def _previews(runs: Sequence[Told], tints: Mapping[str, str]) -> str:
    """A slider for each run that has previews."""
    looked = [run for run in runs if run.looks]
    most = max(LEAST, IMAGES // max(1, len(looked)))
    sliders = "".join(_slider(run, tints, most) for run in looked)
    return _section("previews", "Previews", f'<div class="looks">{sliders}</div>') if sliders else ""


def _slider(run: Told, tints: Mapping[str, str], most: int) -> str:
    """The previews of a run, evenly spaced ones, the last shown."""
    chosen = run.looks
    if len(chosen) > most:
        chosen = [chosen[round(n * (len(chosen) - 1) / (most - 1))] for n in range(most)]
    epochs = {note["step"]: note["epoch"] for note in run.notes if "step" in note and "epoch" in note}
    frames = [(_shown_step(step, epochs), uri) for step, file in chosen if (uri := data_uri(file))]
    if not frames:
        return ""
    label, uri = frames[-1]
    last = len(frames) - 1
    off = "" if last else " disabled"
    knob = f'<input type="range" min="0" max="{last}" value="{last}" aria-label="epoch"{off}>'
    data = in_script([{"label": one, "src": src} for one, src in frames])
    return (
        f'<div class="look"><h3>{_chip(run.name, tints)}</h3><label>{knob}<output>{escape(label)}</output></label>'
        f'<img src="{uri}" alt="what the autoencoder predicts"><script type="application/json">{data}</script></div>'
    )


def _shown_step(step: int, epochs: Mapping[int, float]) -> str:
    return f"step {step:,}" + (f", epoch {epochs[step]:.4g}" if step in epochs else "")


def data_uri(file: Path) -> str:
    """An image in the page itself, of sensible size; empty where it cannot be read (it is being written)."""
    try:
        with Image.open(file) as image:
            drawn = image.convert("RGB")
            drawn.thumbnail((WIDE, 4 * WIDE))
            written = io.BytesIO()
            drawn.save(written, "JPEG", quality=QUALITY, optimize=True)
    except (OSError, ValueError, SyntaxError):
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"


# ---- options


def _options(runs: Sequence[Told], tints: Mapping[str, str]) -> str:
    """All values side by side; those that differ first, and marked.

    What only one kind of run has does not differ.
    """
    values = {
        name: [run.options[name][0] for run in runs if name in run.options] for run in runs for name in run.options
    }
    names = [name for name, found in values.items() if any(found)]
    differ = [name for name in names if len(set(values[name])) > 1]
    rest = [name for name in names if name not in differ]
    if not names:
        return _section("options", "Options", "<p>This folder does not tell them.</p>")
    if len(runs) == 1:
        return _section("options", "Options", _table(runs, names, tints))
    parts = [f"<p>{counted(len(differ), 'values')} of {len(names)} differ.</p>"]
    parts += [_table(runs, differ, tints)] if differ else []
    if rest:
        title = f"the other {counted(len(rest), 'values')}"
        parts.append(f"<details><summary>{title}</summary>{_table(runs, rest, tints)}</details>")
    return _section("options", "Options", "".join(parts))


def _table(runs: Sequence[Told], names: Iterable[str], tints: Mapping[str, str]) -> str:
    """Values of runs, a column each; those that are others than the first run's are marked."""
    head = "".join(f"<th>{_chip(run.name, tints)}</th>" for run in runs)
    rows = []
    for name in names:
        told = [run.options.get(name) for run in runs]
        first = next(one[0] for one in told if one)
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(_cell(one, first) for one in told)}</tr>")
    body = "".join(rows)
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(told: tuple[str, str] | None, first: str) -> str:
    if told is None:  # this kind of run has no such option
        return "<td></td>"
    value, origin = told
    mark = "" if value == first else ' class="other"'
    return f"<td{mark}>{escape(value) or '-'}<small>{escape(origin)}</small></td>"


# ---- what was skipped


def _skipped(run: Told, tints: Mapping[str, str]) -> str:
    """Steps and images that were left out, and why."""
    steps = [
        f"step {step:,}: {counted(len(names), 'images')}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for step, names in run.skipped
    ]
    parts = [
        _list(f"{counted(len(steps), 'steps')} skipped, because loss or gradients were not finite", steps),
        _list(f"{counted(len(run.unreadable), 'images')} could not be read and were replaced", run.unreadable),
    ]
    return f"<h3>{_chip(run.name, tints)}</h3>{''.join(parts) or '<p>Nothing was skipped.</p>'}"


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    more = f"<li>and {len(lines) - NAMED} more</li>" if len(lines) > NAMED else ""
    return f"<p>{escape(title)}:</p><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines[:NAMED])}{more}</ul>"
