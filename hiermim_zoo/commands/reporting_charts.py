"""The curves of a report. One definition of each makes the page and the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints.atomic import replacing
from .reporting_runs import PRETRAINING, TUNING, Told

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e", "#ff8ab7", "#9498a0")
MOST = 500  # points of a curve
FEW = 40  # points, of which each is marked
COLUMN = {"steps": "step", "samples": "samples", "epochs": "epoch"}
HEIGHT, WIDTH = 200, 420
GREY = "#8b93a1"  # of axes: it is read on white and on black


class Panel(NamedTuple):
    """What one chart shows."""

    column: str  # of the log
    title: str
    kind: str = ""  # of runs; empty: all
    format: str = ",.4~r"
    zero: bool = True


PANELS = (
    Panel("loss", "Loss of pre-training", PRETRAINING, zero=False),
    Panel("loss", "Loss of fine-tuning", TUNING, zero=False),
    Panel("knn", "20 nearest neighbours, top-1 in %", zero=False),
    Panel("top1", "Top-1 in %", zero=False),
    Panel("map", "Mean average precision in %", zero=False),
    Panel("r2", "Share of the variance (R²)", zero=False),
    Panel("lr", "Learning rate", format="~e"),
    Panel("norm", "Norm of the gradient"),
    Panel("images_s", "Images a second"),
    Panel("waiting", "Share of the time spent waiting for data", format=".0%"),
    Panel("gib", "Memory in GiB"),
)


class Point(NamedTuple):
    run: str
    x: float
    y: float


def axis_of(runs: Sequence[Told], over: str) -> str:
    """The column that all runs have: that which is asked for, else samples, which logs of all versions have."""
    column = COLUMN[over]
    return column if all(column in note for run in runs for note in run.notes if "loss" in note) else "samples"


def points_of(runs: Sequence[Told], panel: Panel, axis: str) -> list[Point]:
    """Of all runs that have such values, not too many."""
    found = []
    for run in runs:
        if panel.kind in ("", run.kind):
            notes = [note for note in run.notes if None not in (note.get(panel.column), note.get(axis))]
            points = [Point(run.name, note[axis], note[panel.column]) for note in notes]
            found += thinned(points)
    return found


def thinned(points: list[Point]) -> list[Point]:
    """Evenly spaced ones, the first and the last among them."""
    if len(points) <= MOST:
        return points
    return [points[round(n * (len(points) - 1) / (MOST - 1))] for n in range(MOST)]


def charts(runs: Sequence[Told], over: str) -> dict[str, Any]:
    """Altair's charts by their titles; none for what no run has measured."""
    axis = axis_of(runs, over)
    found = {panel.title: (panel, points_of(runs, panel, axis)) for panel in PANELS}
    return {title: _chart(panel, points, runs, axis) for title, (panel, points) in found.items() if points}


def _chart(panel: Panel, points: list[Point], runs: Sequence[Told], axis: str) -> Any:
    import altair as alt

    most = max(sum(point.run == run.name for point in points) for run in runs)
    names = [run.name for run in runs]
    scale = alt.Scale(domain=names, range=colours(len(names)))
    title = {"step": "steps", "epoch": "epochs"}.get(axis, axis)
    shown = [
        alt.Tooltip("run:N", title="run"),
        alt.Tooltip("x:Q", title=title, format=",~r"),
        alt.Tooltip("y:Q", title=panel.title, format=".5~g"),
    ]
    mark: dict[str, Any] = {"strokeWidth": 2, "point": {"size": 28} if most <= FEW else False}
    base: Any = alt.Chart(alt.Data(values=[point._asdict() for point in points]))
    return base.mark_line(**mark).encode(
        x=alt.X("x:Q", title=title, scale=alt.Scale(zero=True, nice=False)),
        y=alt.Y("y:Q", title=None, axis=alt.Axis(format=panel.format, tickCount=5), scale=alt.Scale(zero=panel.zero)),
        color=alt.Color("run:N", legend=None, scale=scale),
        tooltip=shown,
        order="x:Q",
    )


def colours(count: int) -> list[str]:
    """One for each run; of many, some are used again."""
    return [COLOURS[n % len(COLOURS)] for n in range(count)]


def specs(runs: Sequence[Told], over: str) -> dict[str, dict[str, Any]]:
    """The charts as Vega-Lite, as wide as their place, on whatever is behind them."""
    found = {}
    for title, chart in charts(runs, over).items():
        spec = styled(chart.properties(width="container", height=HEIGHT), None).to_dict()
        found[title] = {**spec, "autosize": {"type": "fit-x", "contains": "padding"}}
    return found


def styled(chart: Any, background: str | None) -> Any:
    """Quiet axes."""
    axis: dict[str, Any] = {f"{part}Color": GREY for part in ("label", "title", "domain", "tick", "grid")}
    axis |= {"gridOpacity": 0.18, "domainOpacity": 0.4, "labelFontSize": 11, "titleFontSize": 11}
    axis |= {"titleFontWeight": 400}
    config = {"axis": axis, "view": {"stroke": None}, "font": "sans-serif"}
    return chart.configure(background=background or "transparent", **config)


def write_png(runs: Sequence[Told], over: str, file: Path) -> None:
    """All curves, two in a row, with the names of the runs above."""
    import altair as alt

    panels: list[Any] = [
        chart.properties(width=WIDTH, height=HEIGHT, title=alt.TitleParams(title, anchor="start", fontSize=13))
        for title, chart in charts(runs, over).items()
    ]
    names = [run.name for run in runs]
    scale = alt.Scale(domain=names, range=colours(len(names)))
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3, labelLimit=400, columns=4)
    panels = [panel.encode(color=alt.Color("run:N", scale=scale, legend=legend)) for panel in panels]
    whole: Any = alt.concat(*panels, columns=2, spacing=28).resolve_scale(color="shared")
    with replacing(file) as part:
        styled(whole, "white").properties(padding=20).save(str(part), format="png", scale_factor=2)
