"""Suites of comparisons: every row is measured or says why not, and the files have at every moment what there is."""

from __future__ import annotations

import json
import multiprocessing
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hiermim_zoo import benchmark
from hiermim_zoo.commands import loader_rate, steps, suite_jobs, suite_row, suite_run, suites, turns
from hiermim_zoo.commands.judging import judged, same_way, speed, tflops, value_of
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.commands.step_costs import flop_of
from hiermim_zoo.commands.steps import Side
from hiermim_zoo.commands.suite_report import Entry, Report
from hiermim_zoo.commands.suites import Comparison, Goal, Reading, Suite, rehearsed
from hiermim_zoo.commands.turns import Row
from hiermim_zoo.layers.groups import METHODS, ON_HOST
from hiermim_zoo.mae import create_mae
from hiermim_zoo.models.measure import measure

LITTLE = Comparison("Little", (Side("hivit_atto"),), (Side("hiera_atto"),), batch=2, rounds=2)
OTHER = LITTLE._replace(title="Other", goals=(Goal("hivit_atto", "speed", 1e-9, "hiera_atto"),))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[Comparison | Reading]:
    """The rows of a suite of its own; a test may change them."""
    rows: list[Comparison | Reading] = [LITTLE, OTHER]

    class Rows(dict[str, Suite]):
        def __getitem__(self, name: str) -> Suite:
            return Suite("cpu", "none", 64, tuple(rows), warmup=1, sample=0.0)

    monkeypatch.setattr(suite_run, "SUITES", Rows())
    return rows


def results(folder: Path) -> tuple[dict[str, Any], str]:
    return json.loads((folder / "results.json").read_text()), (folder / "results.md").read_text()


# ---- whole suites


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_every_row_is_rehearsed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler, which has tests of its own and takes long, and so without the rows that differ in it alone;
    of the second suite what the first one lacks. One thread: two wait for each other where other tests run beside them.
    """
    monkeypatch.setattr(steps, "compiled", lambda model, mode: model)
    small = {"depth": 1, "dim": 32, "heads": 2}  # most of a toy autoencoder would be its decoder
    monkeypatch.setattr(steps, "create_mae", partial(create_mae, recipe=small))
    known = {side.spec for row in suites.GPU if isinstance(row, Comparison) for side in row.sides}
    new = [row for row in suites.CPU if isinstance(row, Comparison) and {side.spec for side in row.sides} - known]
    assert len(new) > 1
    again = {*map(suites.compiled, suites.EAGER), *map(suites.recorded, suites.STEPS), suites.HIERA_COMPILED}
    without = tuple(row for row in suites.GPU if row not in again)
    assert len(suites.GPU) == len(without) + len(again)
    for suite, rows in (("cpu", tuple(new)), ("gpu", without)):
        monkeypatch.setitem(suites.SUITES, suite, suites.SUITES[suite]._replace(rows=rows, threads=1))
    folder = benchmark.run(suite=name, rehearse=True, device="cpu", minutes=60, output=tmp_path / "new" / "out")
    content, text = results(folder)
    asked = rehearsed(suites.SUITES[name]).rows
    assert len(content["goals"]) == len(suites.SUITES[name].goals)
    assert [entry["title"] for entry in content["comparisons"]] == [row.title for row in suites.SUITES[name].rows]
    for row, entry in zip(asked, content["comparisons"], strict=True):
        assert not entry["missing"], entry
        assert f"### {row.title}\n" in text
        if isinstance(row, Reading):
            assert entry["loader"]["images_per_second"] > 0
            continue
        assert [(f"{r['model']}:{r['mode']}", r["compile"]) for r in entry["rows"]] == [
            (side.spec if ":" in side.spec else f"{side.spec}:inference", side.compile) for side in row.sides
        ]
        for side, measured in zip(row.sides, entry["rows"], strict=True):
            if measured["missing"]:
                host = side.compile and any(f"plan_method={method}" in side.spec for method in ON_HOST)
                assert host or "pip install hiera-" in measured["missing"], measured
                assert measured["missing"] in " ".join(text.split())
            else:
                assert len(measured["seconds"]) == 1
                assert measured["flop"] > 0, measured["uncounted"]
    assert text.startswith("## Rehearsal of ")


def test_suites_name_each_model_once_and_all_ways_to_plan() -> None:
    for suite in suites.SUITES.values():
        comparisons = [row for row in suite.rows if isinstance(row, Comparison)]
        assert len({row.title for row in suite.rows}) == len(suite.rows)
        for row in comparisons:
            assert len(set(row.sides)) == len(row.sides) == len(row.ours) + len(row.peers)
            specs = {side.spec for side in row.sides}
            assert {name for goal in row.goals for name in (goal.of, goal.beside) if name} <= specs
        for method in METHODS:
            assert any(f"plan_method={method}" in side.spec for row in comparisons for side in row.ours)


def test_a_rehearsal_keeps_sides_and_goals_apart() -> None:
    for suite in suites.SUITES.values():
        for row, toy in zip(suite.rows, rehearsed(suite).rows, strict=True):
            if isinstance(row, Comparison) and isinstance(toy, Comparison):
                assert len(set(toy.sides)) == len(row.sides)
                assert {goal.of for goal in toy.goals} <= {side.spec for side in toy.ours}
                assert not {side.spec for side in row.sides} & {side.spec for side in toy.sides}


def test_graphs_are_made_in_a_rehearsal() -> None:
    """Negative control: what cannot be one is noticed."""
    setup = steps.Setup("cpu", 2)
    side = Side("hivit_atto", steps.TRACED + "reduce-overhead")
    made = turns.make_ready(turns.row_of(side), side, setup, warmup=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    made.step()
    with pytest.raises(ValueError, match="plan_method='pack' looks at the mask"):
        steps.build(Side("green_swin_atto,plan_method=pack:pretrain", steps.TRACED + "default"))


# ---- the course of a run


def test_files_hold_all_that_was_measured(small: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--suite", "cpu", "-o", str(tmp_path)])
    content, text = results(tmp_path)
    assert content["command"] == f"python -m hiermim_zoo.benchmark --output {tmp_path} --suite cpu"
    assert {"torch", "timm", "python", "cuda", "cudnn", "hiermim_zoo"} <= content["versions"].keys()
    assert content["matrix_product"]["tflops"] > 0
    for entry in content["comparisons"]:
        for row in entry["rows"]:
            assert len(row["seconds"]) == 2
            assert row["flop"] == pytest.approx(2 * 2 * measure(row["model"]).macs, rel=0.01)
            assert row["images_per_second"] == pytest.approx(4 / sum(row["seconds"]))
    assert "| `hivit_atto` | eager | 0.51 M |" in text
    assert "`hivit_atto` at least 1e-09 x as fast as `hiera_atto`" in text
    free = ("|", "python -m")  # tables, and a command with the folder of this test
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith(free)), "as in docs/"
    assert capsys.readouterr().out.endswith("results.json: 2 of 2 comparisons measured, 1 of 1 goals reached\n")


def test_a_run_that_is_cut_off_has_what_it_has(
    small: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = suite_row.Measuring.measure

    def cut(self: suite_row.Measuring, row: Comparison) -> None:
        if row.title == "Other":
            raise KeyboardInterrupt
        measure(self, row)

    monkeypatch.setattr(suite_row.Measuring, "measure", cut)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(suite="cpu", output=tmp_path)
    content, text = results(tmp_path)
    assert [entry["missing"] for entry in content["comparisons"]] == ["", "not reached yet"]
    assert all(row["seconds"] for row in content["comparisons"][0]["rows"])
    assert text.endswith("### Not measured\n\n- Other: not reached yet\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]
    with pytest.raises(ValueError, match="holds the results of another run"):
        benchmark.run(suite="cpu", output=tmp_path)
    assert results(tmp_path) == (content, text), "they are not touched"


def test_a_row_that_is_cut_off_has_the_rounds_that_were_complete(
    small: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, calls = turns.seconds_of, []

    def cut(*args: Any) -> float:
        calls.append(len(calls))
        if len(calls) == 4:  # the second of two models in the second of two rounds
            raise KeyboardInterrupt
        return seconds(*args)

    monkeypatch.setattr(turns, "seconds_of", cut)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(suite="cpu", output=tmp_path)
    content, text = results(tmp_path)
    assert [len(row["seconds"]) for row in content["comparisons"][0]["rows"]] == [1, 1]
    assert "| `hivit_atto` | eager | 0.51 M |" in text


def test_no_row_begins_when_time_is_up(small: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = suite_row.Measuring.measure

    def slow(self: suite_row.Measuring, row: Comparison) -> None:
        measure(self, row)
        self.clock.started -= 3600

    monkeypatch.setattr(suite_row.Measuring, "measure", slow)
    benchmark.run(suite="cpu", output=tmp_path, minutes=30)
    content, text = results(tmp_path)
    assert [entry["missing"] for entry in content["comparisons"]] == ["", "the 30 minutes were used up"]
    assert text.endswith("- Other: the 30 minutes were used up\n")


def test_a_model_that_would_take_too_long_is_not_begun() -> None:
    clock = suite_row.Clock(minutes=1)
    assert clock.fits(True)
    clock.note(True, 61)
    assert clock.fits(False)
    assert not clock.fits(True)
    assert not clock.over


def test_rows_are_those_that_were_asked_for(small: list[Any], tmp_path: Path) -> None:
    """As to finish what another run left out."""
    small[:] = [LITTLE._replace(title=title) for title in ("One", "Two", "Three")]
    benchmark.run(suite="cpu", output=tmp_path, rows=(3, 1, 3))
    assert [entry["title"] for entry in results(tmp_path)[0]["comparisons"]] == ["One", "Three"]


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a suite come from one that has all imported. (Such as import it themselves: the one that dies.)"""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([suite_jobs.__name__, "torch._inductor.config"])
    monkeypatch.setattr(suite_jobs.multiprocessing, "get_context", lambda _: server)


@pytest.mark.slow
@pytest.mark.usefixtures("forking")
def test_processes_get_ready_together_and_measure_one_after_the_other(small: list[Any], tmp_path: Path) -> None:
    """What needs no compiler is measured first, by the command itself."""
    names = ("hivit_atto,depths=(1,0,1)", "hiera_atto,depths=(1,1,1,1)")
    compiled = tuple(Side(name, steps.TRACED + "default") for name in names)
    small[:] = [
        LITTLE._replace(title=title, ours=compiled[:1], peers=compiled[1:]) for title in ("One", "Two", "Three")
    ]
    small.insert(1, OTHER)
    benchmark.run(suite="gpu", output=tmp_path, jobs=2, device="cpu")
    content, text = results(tmp_path)
    assert [entry["title"] for entry in content["comparisons"]] == ["One", "Other", "Two", "Three"]
    for entry in content["comparisons"]:
        assert [len(row["seconds"]) for row in entry["rows"]] == [2, 2]
    assert text.count("compiled (traced default)") >= 6


def test_a_process_that_dies_is_named(small: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_jobs, "work", divmod)  # which takes other arguments
    small[:] = [LITTLE._replace(ours=(Side("hivit_atto", "default"),), peers=()), OTHER]
    benchmark.run(suite="gpu", output=tmp_path, jobs=2, device="cpu")
    died, other = results(tmp_path)[0]["comparisons"]
    assert died["missing"] == "its process ended with exit code 1"
    assert not other["missing"]


@pytest.mark.usefixtures("forking")
def test_what_is_not_ready_in_time_is_left_out(
    small: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_jobs, "SHARE", 0.0)
    small[:] = [LITTLE._replace(ours=(Side("hivit_atto", "default"),), peers=())]
    benchmark.run(suite="gpu", output=tmp_path, jobs=2, device="cpu", minutes=7)
    [entry] = results(tmp_path)[0]["comparisons"]
    assert entry["missing"] == "the 7 minutes were used up"


def test_what_cannot_be_counted_is_measured_all_the_same(
    small: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot be compiled while operations are counted; what the compiler noted of it is dropped."""
    resets = []

    def uncountable(step: object) -> int:
        raise RuntimeError("under this mode nothing can be traced")

    monkeypatch.setattr(turns, "flop_of", uncountable)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    small[:] = [LITTLE]
    benchmark.run(suite="cpu", output=tmp_path)
    [entry] = results(tmp_path)[0]["comparisons"]
    assert [(row["flop"], row["uncounted"][:10], len(row["seconds"])) for row in entry["rows"]] == [
        (0, "under this", 2)
    ] * 2
    assert len(resets) >= len(entry["rows"])


def test_the_table_says_how_busy_a_gpu_was() -> None:
    entry = Entry("Busy", batch_size=2, rows=[row("a", [0.02, 0.02], kernel_seconds=0.005), row("b", [0.02, 0.02])])
    report = Report(Path(), ["Busy"], [], {"rehearsal": False, "matrix_product": {"tflops": 1.0}})
    head, _, busy, unknown = report.table(entry, entry.rows).splitlines()
    at = [cell.strip() for cell in head.split("|")].index("GPU busy")
    assert [line.split("|")[at].strip() for line in (busy, unknown)] == ["0.25", "-"]


def test_what_fails_is_named_and_the_rest_goes_on(
    small: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hiera", None)  # as if it were not installed
    ours = (Side("hivit_atto"), Side("hivit_atto,depths=3"), Side("hpvit_atto"))
    small[:] = [LITTLE._replace(ours=ours, peers=(Side("hiera-transformer/hiera_tiny_224"),)), OTHER]
    ready = turns.make_ready

    def failing(row: Row, *args: Any, **kwargs: Any) -> turns.Contender:
        made = ready(row, *args, **kwargs)
        return made._replace(step=lambda: 1 / 0) if row.model == "hpvit_atto" else made

    monkeypatch.setattr(suite_row, "make_ready", failing)
    benchmark.run(suite="cpu", output=tmp_path)
    content, text = results(tmp_path)
    first, other = (entry["rows"] for entry in content["comparisons"])
    assert [bool(row["seconds"]) for row in first] == [True, False, False, False]
    assert "depths" in first[1]["missing"] or "int" in first[1]["missing"]
    assert first[2]["missing"] == "division by zero"
    assert "pip install hiera-transformer" in first[3]["missing"]
    assert all(row["missing"] in " ".join(text.split()) and "\n" not in row["missing"] for row in first)
    assert all(row["seconds"] for row in other)


@pytest.mark.parametrize(("fitting", "batch"), [(4, 4), (0, 2)])
def test_a_batch_that_does_not_fit_is_halved(
    fitting: int, batch: int, small: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times at most; what then does not fit is left out."""
    small[:] = [LITTLE._replace(batch=16)]
    ready = turns.make_ready

    def crowded(row: Row, side: Side, setup: steps.Setup, *args: Any, **kwargs: Any) -> turns.Contender:
        if row.model == "hiera_atto" and setup.batch_size > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return ready(row, side, setup, *args, **kwargs)

    monkeypatch.setattr(suite_row, "make_ready", crowded)
    benchmark.run(suite="cpu", output=tmp_path)
    [entry] = results(tmp_path)[0]["comparisons"]
    assert entry["batch_size"] == batch
    assert entry["remarks"] == ["A batch of 16 did not fit into memory."]
    assert len(entry["rows"][0]["seconds"]) == 2
    assert ("out of memory" in entry["rows"][1]["missing"]) == (not fitting)
    assert bool(entry["rows"][1]["seconds"]) == bool(fitting)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name models to measure, or --suite gpu or cpu"),
        (["--suite", "tpu", "-o", "out"], "tpu is not one of gpu, cpu"),
        (["--suite", "cpu"], "--suite cpu needs -o, the folder"),
        (["hivit_atto", "--suite", "cpu", "-o", "out"], "leave out hivit_atto"),
        (["--suite", "cpu", "-o", "out", "--versus", "hivit_atto"], "--versus: --suite cpu decides this itself"),
        (["--suite", "cpu", "-o", "out", "--jobs", "2"], "--jobs: goes with --suite gpu alone"),
        (["hivit_atto", "--jobs", "2"], "--jobs: goes with --suite alone"),
        (["--suite", "cpu", "-o", "out", "--rounds", "15"], "--rounds: --suite cpu decides this itself"),
        (["--suite", "cpu", "-o", "out", "--warmup", "3"], "--warmup: --suite cpu decides"),
        (["--suite", "cpu", "-o", "out", "--batch-size", "8"], "--batch-size: --suite cpu decides"),
        (["--suite", "cpu", "-o", "out", "--amp", "none"], "--amp: --suite cpu decides"),
        (["--suite", "cpu", "-o", "out", "--img-size", "64"], "--img-size: --suite cpu decides"),
        (["--suite", "cpu", "-o", "out", "--threads", "2"], "--threads: --suite cpu decides"),
        (["--suite", "cpu", "-o", "out", "--compile"], "--compile: --suite cpu decides"),
        (["--suite", "cpu", "-o", "out", "--minutes", "0"], "0 is not a finite number above 0"),
        (["--suite", "gpu", "-o", "out", "--device", "cpu"], "--suite gpu measures on cuda, not on cpu"),
        (["--suite", "cpu", "-o", "out", "--device", "meta"], "--suite cpu measures on cpu, not on meta"),
        (["--suite", "cpu", "-o", "out", "--device", "abacus"], "measures on cpu, not on abacus"),
        (["--suite", "cpu", "-o", "out", "--device", "abacus", "--rehearse"], "device 'abacus' cannot be used"),
        (["--suite", "cpu", "-o", "file/out"], "file/out cannot hold results"),
        (["hivit_atto", "--minutes", "3"], "--minutes: goes with --suite alone"),
        (["hivit_atto", "--rehearse"], "--rehearse: goes with --suite alone"),
        (["hivit_atto", "--rows", "1"], "--rows: goes with --suite alone"),
        (["--suite", "cpu", "-o", "out", "--rows", "99"], "--rows 99: the suite has 10 comparisons"),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: benchmark.main(args))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- arithmetic


def row(model: str, seconds: list[float], compile: str | None = None, **about: Any) -> Row:
    return Row(model, "pretrain", compile, seconds=seconds, **about)


def test_speeds_are_medians_of_ratios_within_rounds() -> None:
    """A round that was slow for both does not count; the ratio of the medians would be 2."""
    ours, peer = row("a", [1.0, 10.0, 1.0]), row("b", [3.0, 30.0, 2.0])
    assert speed(ours, peer) == 3.0
    assert tflops(row("a", [2.0, 1.0, 4.0], flop=6 * 10**12)) == 3.0


def test_a_model_is_put_beside_the_peer_that_ran_in_the_same_way() -> None:
    eager, default = row("b", [1.0]), row("b", [1.0], "default")
    rows = [eager, default, row("b", [], "reduce-overhead")]
    assert same_way(row("a", [1.0]), "b:pretrain", rows) is eager
    assert same_way(row("a", [1.0], "default"), "b:pretrain", rows) is default
    assert same_way(row("a", [1.0], "reduce-overhead"), "b:pretrain", rows) is default
    assert same_way(row("a", [1.0], "default"), "b:pretrain", [eager]) is eager
    assert same_way(row("a", [1.0]), "b:pretrain", [default]) is default
    assert same_way(row("a", [1.0]), "c:pretrain", rows) is None


def test_goals_are_judged_in_the_best_way() -> None:
    rows = [
        row("a", [2.0], peak_mib=30.0, flop=10**12),
        row("a", [1.0], "default", peak_mib=50.0, flop=10**12),
        row("b", [3.0], peak_mib=100.0),
    ]
    fast = judged(Goal("a:pretrain", "speed", 2.5, "b:pretrain"), [[], rows], peak=2.0)
    assert (fast.found, fast.way, fast.reached) == (3.0, "compiled (default)", True)
    assert judged(Goal("a:pretrain", "speed", 3.5, "b:pretrain"), [rows], peak=2.0).reached is False
    small = judged(Goal("a:pretrain", "memory", 0.3, "b:pretrain"), [rows], peak=2.0)
    assert (small.found, small.way, small.reached) == (0.3, "eager", True)
    assert judged(Goal("a:pretrain", "memory", 0.25, "b:pretrain"), [rows], peak=2.0).reached is False
    share = judged(Goal("a:pretrain", "share", 0.45), [rows], peak=2.0)
    assert (share.found, share.way, share.reached) == (0.5, "compiled (default)", True)
    unknown = judged(Goal("a:pretrain", "speed", 2.5, "c:pretrain"), [rows], peak=2.0)
    assert (unknown.found, unknown.reached) == (None, None)
    assert value_of(Goal("b:pretrain", "share", 0.45), rows[2], rows, peak=2.0) is None, "nothing was counted"


def test_fused_attention_is_counted() -> None:
    q = torch.randn(2, 4, 64, 32, requires_grad=True)
    product = 2 * 2 * 4 * 64 * 64 * 32

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, q, q)

    def inference() -> None:
        with torch.inference_mode():
            forward()

    assert flop_of(inference) == 2 * product
    assert flop_of(lambda: forward().sum().backward()) == 7 * product, "two forward, four and one again backward"


# ---- the loader


def test_photographs_are_read_as_in_training(tmp_path: Path) -> None:
    size = loader_rate.photographs(tmp_path, (500, 375))
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == loader_rate.PHOTOGRAPHS
    assert size == sum(file.stat().st_size for file in files) / len(files)
    with Image.open(files[0]) as image:
        assert (image.size, image.mode) == ((500, 375), "RGB")
        colours = np.asarray(image.resize((10, 7))).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 60, "many small ones"
    rate = loader_rate.loader_rate(suites.LOADER._replace(batch=4, batches=3), "cpu")
    assert len(rate.seconds) == 3
    assert rate.images_per_second == pytest.approx(12 / sum(rate.seconds))
