"""Reports: what they show of runs of any state, that they fetch nothing, and that a browser draws them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hiermim_zoo import report
from hiermim_zoo.commands.options.problems import BadOptions
from hiermim_zoo.commands.reporting_charts import MOST, Point, thinned
from hiermim_zoo.commands.reporting_page import in_script
from hiermim_zoo.commands.reporting_runs import names_of, read_run
from hiermim_zoo.training.run_record import RunRecord

from .browser import opened

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
NASTY = "</script><img src=x onerror=alert(1)>"


def make_run(folder: Path, steps: int = 6, rate: float = 1e-3, **record: Any) -> Path:
    """A folder like that of a run of pre-training that has finished."""
    (folder / "looks").mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        at = {"step": step, "epoch": step / 2, "samples": 8 * step, "time": 1.8e9 + step}
        values = {"loss": 1 / step, "lr": rate, "norm": 0.5, "images_s": 90.0, "waiting": 0.2, "gib": 1.0}
        lines += [{**at, **values, "left": steps - step}, {**at, "knn": 10.0 + step}]
        Image.new("RGB", (300, 200), (40 * step % 256, 90, 120)).save(folder / "looks" / f"step-{step:08d}.png")
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    options = {"lr": {"value": rate, "from": "option --lr"}, "seed": {"value": 0, "from": "default"}}
    about = {
        "command": "pretrain",
        "model": "hivit_atto",
        "options": options,
        "data": {"data": NASTY, "count": 8},
        **record,
    }
    run = RunRecord(folder)
    run.begin(about, {"command": f"pretrain {NASTY}", "total": steps})
    with run.during(lambda: steps, steps):
        pass
    return folder


def make_tuned(folder: Path) -> Path:
    """One of fine-tuning, as versions without run.json wrote it; its last line is broken."""
    folder.mkdir(parents=True)
    line = {"epoch": 0, "samples": 64, "loss": 2.3, "lr": 1e-3, "images/s": 51.0, "seconds": 1.2, "top1": 9.5}
    lines = [json.dumps({**line, "epoch": n, "samples": 64 * (n + 1)}) for n in range(3)]
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"epoch": 3, "lo']), encoding="utf-8")
    said = {"hiermim_zoo": {"license": "mit", "epochs": 3, "warnings": ["the loss did not fall"]}}
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    found = [make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / NASTY.replace("/", ":"), 1, 2e-3)]
    return [*found, make_tuned(tmp_path / "tuned")]


def test_a_page_has_everything_and_fetches_nothing(runs: list[Path], tmp_path: Path) -> None:
    (runs[0] / "nonfinite").mkdir()
    (runs[0] / "nonfinite" / "step-00000004-rank-0.txt").write_text("odd & <b>.jpg\n")
    (runs[0] / "unreadable").mkdir()
    (runs[0] / "unreadable" / "rank-0.txt").write_text("bad.jpg (UnidentifiedImageError: no image)\n")
    page, curves = tmp_path / "report.html", tmp_path / "curves.png"
    assert report.run(runs=runs, output=page, png=curves) == page
    text = page.read_text(encoding="utf-8")
    ours = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    for words in (
        "odd &amp; &lt;b&gt;.jpg", "bad.jpg (UnidentifiedImageError", "the loss did not fall", "1 value of",
        "option --lr", "Loss of fine-tuning", "20 nearest neighbours", 'class="finished"', "6 of 6 steps",
    ):  # fmt: skip
        assert words in ours, words
    assert NASTY not in ours
    assert "&lt;/script&gt;&lt;img" in ours
    assert not re.findall(r"(?:src|href)=\"(?!data:)", ours)
    assert len(text) < 3_000_000
    with Image.open(curves) as drawn:
        assert drawn.width > 1500
        assert len(drawn.convert("RGB").getcolors(1 << 24) or []) > 50


@pytest.mark.parametrize("state", ["goes on", "killed", "failed", "no record of its end"])
def test_runs_of_any_state_are_shown(tmp_path: Path, state: str) -> None:
    folder = make_run(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record["sessions"][0]["ended"] = {"how": "failed", "why": "it <broke>", "step": 3} if state == "failed" else None
    record["sessions"][0]["process"] = "gone" if state == "killed" else record["sessions"][0]["process"]
    (folder / "run.json").write_text("{" if state == "no record of its end" else json.dumps(record))
    (folder / "looks" / "step-00000002.png").write_bytes(b"half of it")
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": {}}\n["x"]\n{"st')
    assert read_run(folder, "run").ended["how"] == state
    text = report.run(runs=[folder], output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert f">{state}</em>" in text
    assert ("it &lt;broke&gt;" in text) is (state == "failed")


def test_a_run_without_a_line_is_shown(tmp_path: Path) -> None:
    RunRecord(tmp_path / "run").begin({"command": "pretrain"}, {})
    text = report.run(runs=[tmp_path / "run"], output=tmp_path / "r.html", png=tmp_path / "r.png").read_text()
    assert "No step is logged yet." in text
    assert not (tmp_path / "r.png").exists()


def log(folder: Path, *losses: float | None) -> None:
    lines = (json.dumps({"step": 10 * n, "loss": loss}) for n, loss in enumerate(losses, 1))
    (folder / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("losses", "skipped", "why", "said"),
    [
        ((3.0, None, 2.5), (), "", ""),  # it has come back
        ((3.0, 2.5), (14,), "", ""),
        ((3.0, 2.5, None), (), "", "loss at step 30; the last finite one in the log: 2.5 at step 20"),
        ((3.0, 2.5), (23, 24), "", "loss at step 24; the last finite one in the log: 2.5 at step 20"),
        ((3.0,), (), "the loss of step 12 is nan; a lower --lr may help", "loss at step 12; the last finite one in"),
        ((), (), "step 1: 1 step in a row was not finite (--max-nonfinite 0)", "in the log: none"),
        ((3.0, 2.5), (), "the disk is full", ""),
    ],
)
def test_a_run_that_diverged_does_not_show_its_last_sound_loss_as_its_end(
    tmp_path: Path, losses: tuple[float | None, ...], skipped: tuple[int, ...], why: str, said: str
) -> None:
    folder = tmp_path / "run"
    record = RunRecord(folder)
    record.begin({"command": "pretrain"}, {})
    record.end("failed", why, 12)
    log(folder, *losses)
    for step in skipped:
        (folder / "nonfinite").mkdir(exist_ok=True)
        (folder / "nonfinite" / f"step-{step:08d}-rank-0.txt").write_text("a.jpg\n")
    words = read_run(folder, "run").unfinite()
    assert words.startswith(said) if said.startswith("loss") else said in words
    assert bool(words) is bool(said)
    card = report.run(runs=[folder], output=tmp_path / "r.html").read_text(encoding="utf-8").partition('id="curves"')[0]
    assert ("<b>not finite</b>" in card) is bool(said)
    assert ("<b>2.5</b>" in card) is (not said)


def test_a_score_of_few_images_is_small_and_has_its_interval(tmp_path: Path) -> None:
    card = {}
    for count in (40, 60_000):
        folder = make_run(tmp_path / str(count), data={"count": count})
        card[count] = report.run(runs=[folder], output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<div class="few"><b>16</b><span>k-NN in % of 6 images (3 to 56)</span>' in card[40]
    assert "<div><b>16</b><span>k-NN in % of 1000 images (14 to 18)</span>" in card[60_000]


def test_a_record_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "encoder").mkdir(exist_ok=True)
    (folder / "encoder" / "config.json").write_text('{"hiermim_zoo": {"steps": 6}}')
    words = "run.json could not be read"
    assert words not in report.run(runs=[folder], output=tmp_path / "r.html").read_text(encoding="utf-8")
    for broken in ("{", "[]", '{"sessions": 3}'):
        (folder / "run.json").write_text(broken)
        page = report.run(runs=[folder], output=tmp_path / "r.html").read_text(encoding="utf-8")
        assert words in page
        assert ">finished<" not in page, "an earlier session may have written the encoder"
    (folder / "run.json").unlink()  # of a version of before there was one
    page = report.run(runs=[folder], output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert words not in page
    assert ">finished<" in page


def test_what_is_no_run_is_refused_with_all_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadOptions) as error:
        report.run(
            runs=[tmp_path / "empty", tmp_path / "none"], output=tmp_path / "r.txt", png=tmp_path / "no" / "r.png"
        )
    assert [line.partition(" ")[0] for line in error.value.lines] == ["RUNS", "RUNS", "-o", "--png"]
    assert "is no run: it has neither log.jsonl nor run.json" in error.value.lines[0]
    assert "report.html" in error.value.lines[2] or "r.html would work" in error.value.lines[2]
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_names_tell_runs_apart_and_points_are_few() -> None:
    assert names_of([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    points = [Point("a", n, 0) for n in range(10 * MOST)]
    assert len(thinned(points)) == MOST
    assert (thinned(points)[0], thinned(points)[-1]) == (points[0], points[-1])
    assert json.loads(in_script(NASTY)) == NASTY
    assert "<" not in in_script(NASTY)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_it(runs: list[Path], tmp_path: Path, width: int) -> None:
    page = report.run(runs=runs, output=tmp_path / "report.html")
    with opened(page, width) as (tab, heard):
        tab.wait_for_selector(".chart svg .mark-line path")
        tab.wait_for_function(
            "document.querySelectorAll('.chart svg').length === document.querySelectorAll('.chart').length"
        )
        assert tab.locator(".chart svg").count() >= 8
        assert tab.locator(".chart svg .mark-symbol path").count() > 30
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        knob = tab.locator(".look input").first
        before = tab.locator(".look img").first.get_attribute("src"), tab.locator(".look output").first.text_content()
        knob.focus()
        knob.press("Home")
        after = tab.locator(".look img").first.get_attribute("src"), tab.locator(".look output").first.text_content()
        assert before[0] != after[0]
        assert (before[1], after[1]) == ("step 6, epoch 3", "step 1, epoch 0.5")
    assert heard == [page.as_uri()]
