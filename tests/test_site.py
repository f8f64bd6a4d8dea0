"""The documentation site: it builds without warnings, fetches nothing, and says what the code says."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.building import drawings, plots, reference, stage, tables
from hiermim_zoo.checkpoints import manifest
from hiermim_zoo.commands.front_door import VERBS
from hiermim_zoo.commands.options import Verb, make_parser

from .forks import Forks

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
SMALL = 300_000  # bytes of a notebook


# ---- the site as a whole


class Fetched(HTMLParser):
    """What a page loads by itself: not where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        said = dict(attributes)
        names = (
            "src",
            "srcset",
            "poster",
            "data",
            *(("href", "xlink:href") if tag not in ("a", "area", "base") else ()),
        )
        self.found += [value for name in names if (value := said.get(name))]
        self.found += re.findall(r"url\(([^)]*)\)", said.get("style") or "")

    @property
    def elsewhere(self) -> list[str]:
        return [address for address in self.found if re.match(r"\s*['\"]?(?:[a-z]+:)?//", address)]


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<img src="http://example/x.png">',
        '<p style="background: url(https://example/x.png)">',
    ],
)
def test_what_is_fetched_from_elsewhere_is_noticed(html: str) -> None:
    """Negative control."""
    assert Fetched(html).elsewhere
    assert not Fetched('<a href="https://arxiv.org">x</a><img src="_static/x.png"><use href="#a"/>').elsewhere


@pytest.fixture(scope="module")
def site(forked: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = forked.command("docs.building", "-o", folder, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"built {folder / 'html' / 'index.html'}\n"), done.stderr
    return folder / "html"


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    """Sphinx checks links between pages and their anchors: a warning would be an error."""
    pages = sorted(site.rglob("*.html"))
    for page in (f"{page}.html" for names in stage.SECTIONS.values() for page in names):
        assert (site / page).is_file(), page
    for page in pages:
        fetched = Fetched(page.read_text(encoding="utf-8"))
        assert fetched.found
        assert not fetched.elsewhere, page
        for address in fetched.found:
            path = address.partition("?")[0].partition("#")[0]
            assert not path or path.startswith("data:") or (page.parent / path).exists(), (page, address)
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", text), sheet
    for script in (site / "_static").rglob("*.js"):
        assert not re.search(
            r"(?:import|fetch|src\s*=)\s*\(?['\"](?:https?:)?//", script.read_text(encoding="utf-8")
        ), script


@pytest.mark.slow
def test_every_command_and_public_name_is_in_the_site(site: Path) -> None:
    for name in VERBS:
        text = (site / "reference" / "commands" / f"{name}.html").read_text(encoding="utf-8")
        verb = importlib.import_module(f"hiermim_zoo.{name}").VERB
        for action in make_parser(verb, {}, verb.options)._actions:
            if action.help is not argparse.SUPPRESS and action.option_strings:
                assert f'id="cmdoption-{name}-{action.option_strings[-1].lstrip("-")}"' in text, action.option_strings
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in ("create_mae", "random_keep", "FeaturePyramid", "MaskableEncoder"):
        assert re.search(rf'id="hiermim_zoo\.[\w.]*{name}"', text), name


# ---- its parts


@pytest.mark.parametrize("name", VERBS)
def test_a_page_of_a_command_says_what_help_says(name: str) -> None:
    verb: Verb = importlib.import_module(f"hiermim_zoo.{name}").VERB
    parser = make_parser(verb, {}, verb.options)
    said = "\n".join(reference.options(parser))
    plain = re.sub(r"\s+", "", re.sub(r"\\(.)", r"\1", said))
    shown = parser.format_help()
    assert shown.count("\n") > 5
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            words = str(action.help) % {"prog": parser.prog}
            assert re.sub(r"\s+", "", words) in plain
            assert re.sub(r"\s+", "", words) in re.sub(r"\s+", "", shown)


def test_a_new_command_gets_a_page_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    verb = importlib.import_module("hiermim_zoo.stats").VERB
    monkeypatch.setattr(reference, "VERBS", (*VERBS, "brandnew"))
    load = importlib.import_module
    fake = argparse.Namespace(VERB=Verb("brandnew", "New.", verb.options, ("x",), verb.execute))
    monkeypatch.setattr(reference.importlib, "import_module", lambda n: fake if n.endswith("brandnew") else load(n))
    pages = reference.commands()
    assert "/reference/commands/brandnew" in pages["reference/commands"]
    assert pages["reference/commands/brandnew"].startswith("# brandnew")


def test_drawings_show_the_masks_of_the_models() -> None:
    swin, again = drawings.drawing("green_swin"), drawings.drawing("green_swin")
    assert swin == again
    panels = swin.split("<svg ")[1:]
    assert [panel.count('class="visible"') for panel in panels] == [12] * 4  # of 49 units
    # 56 tokens: 8 windows of 7 in a row; shifted by 3: a part of 4, seven of 7, one of 3
    assert [panel.count("Z") for panel in panels] == [64, 81, 16, 25]
    hiera = list(drawings.hiera())
    assert [(one.units, one.tokens, len(one.visible)) for one in hiera] == [(7, side, 19) for side in (8, 4, 2, 2)]
    assert [len(one.windows) for one in hiera] == [49, 49, 0, 0]
    hpvit = list(drawings.hpvit())
    assert [(one.units, len(one.windows)) for one in hpvit] == [(56, 16), (28, 4), (14, 0), (7, 0)]


@pytest.mark.parametrize(
    ("side", "window", "shift", "lines"), [(8, 4, 0, [0, 4, 8]), (8, 4, 1, [0, 3, 7, 8]), (7, 7, 0, [0, 7])]
)
def test_windows_are_cut_where_a_shift_says(side: int, window: int, shift: int, lines: list[int]) -> None:
    assert drawings.cuts(side, window, shift) == lines


def test_weights_of_a_family_are_those_of_the_manifest() -> None:
    for family in ("hivit", "hpvit", "hiera", "hiera_sam2", "green"):
        rows = [row for row in manifest.records().values() if row.family == family]
        assert rows
        assert tables.weights(family).count("\n") == len(rows) + 1
        assert all(f"[{row.name}](" in tables.weights(family) for row in rows)


def test_the_plot_has_the_figures_that_were_measured() -> None:
    newest = json.loads((ROOT / "docs" / "h200-2.json").read_text(encoding="utf-8"))
    [rows] = [one["rows"] for one in newest["comparisons"] if one["title"] == "Inference"]
    figure = {row["model"]: row["images_per_second"] for row in rows}
    assert plots.speed_of("hivit_base") == figure["hivit_base"]
    assert plots.speed_of("green_swin_base") == figure["swin_base_patch4_window7_224"]
    assert plots.speed_of("hiera_huge") is None
    assert "`hiera_huge`" in plots.without_figure().partition("\n")[0]
    assert plots.accuracies()["hiera_base"] == 84.5
    assert plots.plot("measured") == plots.plot("measured")


def test_a_mark_that_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.md: mark 'nosuch' is unknown; there are contents, drawing"):
        stage.made("nosuch", [], tmp_path / "x.md")


def test_links_that_leave_the_pages_lead_to_pages_that_stand_for_them(tmp_path: Path) -> None:
    page = ROOT / "docs" / "howto" / "detector.md"

    def leads(target: str, anchor: str = "") -> str:
        return stage.linked(target, anchor, page, tmp_path)

    assert leads("../sam2.md", "#put-it-back") == "/sam2.md#put-it-back"
    assert leads("../../MODEL_CARDS.md") == "/reference/weights.md"
    assert leads("../../README.md", "#models") == "/reference/weights.md"
    assert leads("../../examples/detect.py") == "/reference/examples/detect.md"
    assert leads("../../examples/notebooks/features.ipynb") == "/notebooks/features.ipynb"
    assert leads("../../NOTICE") == "/files/NOTICE"
    assert (tmp_path / "files" / "NOTICE").read_bytes() == (ROOT / "NOTICE").read_bytes()


# ---- the notebooks


def of_code(book: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_holds_its_outputs(path: Path) -> None:
    assert path.stat().st_size < SMALL
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert len([output for output in outputs if "image/png" in output.get("data", ())]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a process of its own, with this tree in front; every cell leaves what the kept one left, but for numbers."""
    code = (
        "import sys, json, pathlib; from docs.building.notebooks import executed; "
        "sys.stdout.write(json.dumps(executed(pathlib.Path(sys.argv[1]))))"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run beside it
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    assert done.returncode == 0, done.stderr
    new, kept = json.loads(done.stdout), json.loads(path.read_text(encoding="utf-8"))
    assert of_code(new) == of_code(kept)
    kinds = [
        [[output["output_type"] for output in cell.get("outputs", ())] for cell in book["cells"]]
        for book in (new, kept)
    ]
    assert kinds[0] == kinds[1]
