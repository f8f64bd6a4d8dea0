"""The source of the site: the pages of docs/, with what their marks ask for, and the pages that are made.

Pages are plain Markdown that reads well on a code host, where a mark (a comment, ``<!-- site: NAME WORDS -->``) shows
nothing. Links that leave docs/ lead to pages of the site that stand for them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from . import drawings, plots, reference, tables

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = ROOT / "examples" / "notebooks"
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Get started": ("start/pretrain", "start/checkpoint", "start/features"),
    "Models": (
        "models", "families", "families/hivit", "families/hpvit", "families/hiera", "families/hiera_sam2",
        "families/green",
    ),
    "How to": (
        "howto/photographs", "howto/detector", "clips", "sam2", "howto/gpus", "howto/offline", "howto/publish",
        "notebooks/features", "notebooks/pretrain",
    ),
    "See it": ("reports", "features"),
    "In depth": (
        "pretraining", "teachers", "small", "images", "evaluation", "checkpoints", "green", "neighbours", "benchmarks",
    ),
    "Reference": (
        "reference/commands", "reference/python", "reference/examples", "reference/weights", "contributing",
        "changelog",
    ),
}  # fmt: skip
TWINS = {  # pages of the site that stand for files outside docs/
    "README.md": "index",
    "MODEL_CARDS.md": "reference/weights",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "examples": "reference/examples",
    "examples/notebooks": "notebooks/features",
}
ELSEWHERE = {("index", "models"): ("reference/weights", "")}  # anchors of the README that the index has not

MARK = re.compile(r"^<!-- site: ([a-z_]+) ?(.*?) -->$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def stage(source: Path) -> None:
    """Write everything that Sphinx reads into an empty folder."""
    for page in sorted(DOCS.rglob("*.md")):
        write(source, str(page.relative_to(DOCS)), staged(page, source))
    for name, page in TWINS.items():
        if name.endswith(".md") and page != "index":
            write(source, f"{page}.md", staged(ROOT / name, source))
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        write(source, f"notebooks/{notebook.name}", staged_notebook(notebook, source))
    for page, text in {**reference.commands(), **reference.python(), **reference.examples()}.items():
        write(source, f"{page}.md", text)


def staged(path: Path, source: Path) -> str:
    """A page as the site has it."""
    text = MARK.sub(lambda found: made(found[1], found[2].split(), path), path.read_text(encoding="utf-8"))
    return relinked(text, path, source)


def staged_notebook(path: Path, source: Path) -> str:
    """A notebook as the site has it."""
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = relinked("".join(cell["source"]), path, source)
    return json.dumps(book)


def relinked(text: str, path: Path, source: Path) -> str:
    """Markdown whose links lead to pages of the site."""
    parts, at = [], 0
    for fence in [*FENCE.finditer(text), None]:  # links in code are none
        prose = text[at : fence.start() if fence else None]
        parts.append(LINK.sub(lambda found: linked(found[1], found[2] or "", path, source), prose))
        if fence:
            parts.append(fence[0])
            at = fence.end()
    return "".join(parts)


def made(mark: str, words: list[str], page: Path) -> str:
    """What a mark stands for.

    Raises:
        ValueError: it is unknown.
    """
    marks: Mapping[str, Callable[..., str]] = {
        "contents": contents,
        "drawing": drawings.drawing,
        "plot": plots.plot,
        "weights": tables.weights,
        "numbers": tables.numbers,
        "measured": tables.measured,
        "without_figure": plots.without_figure,
    }
    if mark not in marks:
        raise ValueError(f"{page.name}: mark {mark!r} is unknown; there are {', '.join(marks)}")
    return marks[mark](*words)


def contents() -> str:
    """The tree of all pages, which the sidebar shows."""
    return "\n".join(
        "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *(f"/{page}" for page in pages), "```", ""])
        for caption, pages in SECTIONS.items()
    )


def linked(target: str, anchor: str, path: Path, source: Path) -> str:
    """Where a link of a page leads in the site: to a page, or to a file that is copied."""
    file = Path(os.path.normpath(path.parent / target))
    inside = file.relative_to(ROOT)
    if file.is_relative_to(DOCS) and file.suffix == ".md":
        return f"/{file.relative_to(DOCS)}{anchor}"
    if str(inside) in TWINS:
        twin, rest = ELSEWHERE.get((TWINS[str(inside)], anchor[1:]), (TWINS[str(inside)], anchor))
        return f"/{twin}.{'ipynb' if twin.startswith('notebooks/') else 'md'}{rest}"
    if file.suffix == ".ipynb":
        return f"/notebooks/{file.name}"
    if inside.parts[0] == "examples" and file.suffix in reference.LANGUAGES and file.is_file():
        return f"/{reference.example_page(inside)}.md"
    copy(file, source / "files" / inside)
    return f"/files/{inside}"


def copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def write(source: Path, name: str, text: str) -> None:
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
