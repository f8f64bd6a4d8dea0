"""The package as a whole: what importing it does, what the wheel holds, whether the documents are true."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models import _registry

import hiermim_zoo
from hiermim_zoo import cards
from hiermim_zoo.checkpoints import manifest
from hiermim_zoo.commands import cataloguing
from hiermim_zoo.commands.front_door import VERBS
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.recipes import Rows

ROOT = Path(__file__).parents[1]
OURS = {row.name for row in manifest.records().values() if not row.timm}  # the others are tags of timm's ViTs


def python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process that treats warnings as errors."""
    path = {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **path},
        timeout=300,
    )


# ---- importing


@pytest.mark.slow
def test_the_import_is_silent_light_and_idempotent(tmp_path: Path) -> None:
    code = """
import sys, socket
def refuse(*args): raise OSError("import reached for the network")
socket.socket.connect = refuse
import timm
before = set(sys.modules)
import hiermim_zoo
new = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = {n for n in new if not n.startswith("_") and n not in sys.stdlib_module_names}
allowed = {"hiermim_zoo", "tomli", "requests"}
allowed |= {"urllib3", "certifi", "charset_normalizer", "chardet", "idna", "simplejson"}  # of requests
assert heavy <= allowed, heavy - allowed
names = timm.list_models()
import importlib
for name in [n for n in sys.modules if n.startswith("hiermim_zoo.models")] + ["hiermim_zoo"]:
    importlib.reload(sys.modules[name])
assert timm.list_models() == names
for family in ("hivit", "hpvit", "hiera", "hiera_sam2", "green"):  # timm has a module of the last name, too
    names = timm.list_models(module=family)
    ours = [name for name in names if timm.model_entrypoint(name).__module__.startswith("hiermim")]
    assert sorted(ours) == sorted(hiermim_zoo.list_models(family=family))
"""
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def entrypoint(name: str) -> types.FunctionType:
    def model(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        return torch.nn.Identity()

    model.__name__ = name
    return model


def test_a_name_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = timm.models.model_entrypoint("resnet18")
    with pytest.raises(ValueError, match=r"'resnet18' is taken: timm\.models\.resnet registered it"):
        replace(family_named("hivit"), variants={"resnet18": {}}, fine_tuning=Rows()).register(entrypoint("resnet18"))
    assert timm.models.model_entrypoint("resnet18") is resnet


def test_no_name_of_ours_is_timms() -> None:
    for name in hiermim_zoo.list_models():
        assert timm.models.model_entrypoint(name).__module__.startswith("hiermim_zoo.models."), name


def test_list_models_filters() -> None:
    everything = hiermim_zoo.list_models()
    assert sorted(everything) == sorted(
        name
        for family in ("hivit", "hpvit", "hiera", "hiera_sam2", "green")
        for name in hiermim_zoo.list_models(family=family)
    )
    assert set(hiermim_zoo.list_models(pretrained=True)) == OURS
    assert hiermim_zoo.list_models("*atto*", pretrained=True, license="apache-2.0") == [
        "green_swin_atto.mae_cifar10",
        "green_swin_atto.mae_cifar10_ft_cifar10",
        "hiera_atto.mae_cifar10",
        "hiera_atto.mae_cifar10_ft_cifar10",
        "hiera_atto_video.mae_moving",
        "hiera_atto_video.mae_moving_ft_moving",
        "hivit_atto.mae_cifar10",
        "hivit_atto.mae_cifar10_ft_cifar10",
        "hpvit_atto.mae_cifar10",
        "hpvit_atto.mae_cifar10_ft_cifar10",
    ]
    plain = {f"hpvit_{size}.mae_in1k{end}" for size in ("base", "large", "huge") for end in ("", "_ft_in1k")}
    free = {f"hpvit_{size}.mae_mm_in1k" for size in ("base", "large", "huge")}
    hpvit = hiermim_zoo.list_models(family="hpvit", pretrained=True)
    assert {tag for tag in hpvit if "atto" not in tag} == plain | free
    hiera = set(hiermim_zoo.list_models("hiera*", pretrained=True, exclude_filters=["*atto*", "*lite*", "*sam2*"]))
    assert len(hiera) == 20
    green = {f"green_swin_{size}.mae_in1k" for size in ("base", "base_win14", "large_win14")}
    forbidden = plain | hiera | green | {"hivit_base.saratrx"}
    assert set(hiermim_zoo.list_models(pretrained=True, license="cc-by-nc-4.0")) == forbidden
    with pytest.raises(ValueError, match="there are hivit, hpvit, hiera, hiera_sam2, green"):
        hiermim_zoo.list_models(family="resnet")


def test_tags_come_from_the_manifest_alone() -> None:
    ours = set(hiermim_zoo.list_models())
    registered = {name for name in _registry._model_pretrained_cfgs if name.partition(".")[0] in ours and "." in name}
    assert registered == OURS
    for row in (row for row in manifest.records().values() if row.name in OURS):
        cfg = timm.get_pretrained_cfg(row.name)
        assert (cfg.hf_hub_id, cfg.license, cfg.num_classes) == (row.hub, row.strict_license, row.classes)
        assert row.file or (row.url and row.layout)
    assert timm.get_pretrained_cfg("hivit_base").tag == "mae_in1k_ft_in1k"


# ---- the embedded weights


def test_embedded_files_are_those_of_the_manifest() -> None:
    from hiermim_zoo.checkpoints.files import sha256_of

    embedded = {row.file: row for row in manifest.records().values() if row.file}
    assert {path.name for path in (ROOT / "weights").glob("*.safetensors")} == set(embedded)
    for name, row in embedded.items():
        path = ROOT / "weights" / name
        assert (sha256_of(path), path.stat().st_size) == (row.sha256, row.bytes)
        assert path.stat().st_size <= 2.5e6


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    [wheel] = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    installed = {str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site").rglob("*") if p.is_file()}
    assert {"hiermim_zoo/weights/manifest.toml", "hiermim_zoo/py.typed"} <= installed
    assert not [name for name in installed if not name.startswith(("hiermim_zoo/", "hiermim_zoo-"))]
    code = f"""
import timm, torch, hiermim_zoo
assert hiermim_zoo.__file__.startswith({str(tmp_path / "site")!r}), hiermim_zoo.__file__
model = timm.create_model("hivit_atto", pretrained=True)
assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
"""
    done = python(code, tmp_path, PYTHONPATH=str(tmp_path / "site"), HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr) == (0, "")


# ---- the documents


ROOMS = ("docs", "examples", "hiermim_zoo", "tests", "weights")
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *PAGES]
LONGEST = 120  # characters of a line


def called(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """What stands in the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE)


def run_blocks(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Run the Python of a page in one scope, in a folder that has the examples in it."""
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    scope: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), scope)
    return scope


def test_the_readmes_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(blocks(README, "python")) == 3
    scope = run_blocks(README, tmp_path, monkeypatch)
    assert scope["logits"].shape == (1, 10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=called)
def test_the_snippets_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_blocks(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", DOCUMENTS, ids=called)
def test_commands_that_are_named_exist(page: Path) -> None:
    targets = re.findall(r"(?:^|`)make (\w+)", read(page), re.MULTILINE)
    assert set(targets) <= set(re.findall(r"^(\w+):", read(ROOT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:python -m hiermim_zoo\.|`hiermim )(\w+)", read(page))) <= set(VERBS)


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if blocks(page, "bash")], ids=called)
def test_command_lines_of_a_page_are_understood(page: Path) -> None:
    """Every option is one of the command, has a value of its kind, and goes with the others."""
    for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for i in [i for i, word in enumerate(words) if word.startswith("hiermim_zoo.")]:
            importlib.import_module(words[i]).VERB.parse(words[i + 1 :])
        if words[:1] == ["hiermim"]:
            importlib.import_module(f"hiermim_zoo.{words[1]}").VERB.parse(words[2:])


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(read(README).splitlines()) <= 200
    linked = set(re.findall(r"\]\((docs/[\w/]+\.md)", read(README)))
    top = {called(page) for page in PAGES if page.parent == ROOT / "docs"}
    index = {f"docs/{link}" for link in re.findall(r"\]\(([\w/]+\.md)", read(ROOT / "docs" / "index.md"))}
    assert top <= linked
    assert {called(page) for page in PAGES} == linked | index | {"docs/index.md"}


@pytest.mark.parametrize("page", DOCUMENTS, ids=called)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", read(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for path in re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./-]+)`", read(page)):
        assert (ROOT / path).exists(), path


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readmes_tree_is_the_disks() -> None:
    tree = read(README).partition("<!-- tree -->\n```text\n")[2].partition("```")[0]
    listed: set[str] = set()
    folders: list[str] = []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 4, line.split()[0]
        assert name.endswith("/"), f"{name} is no folder"
        folders = [*folders[:depth], name.rstrip("/")]
        listed.add("/".join(folders))
    files = [path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    found = {str(folder) for file in files if "__pycache__" not in file.parts for folder in file.parents[:-1]}
    assert listed == {folder for folder in found if not folder.startswith("examples/pictures/")}


def test_no_line_is_too_long() -> None:
    python = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    lines = [(path, line) for path in python for line in read(path).splitlines()]
    written = [*ROOT.glob("*.md"), *PAGES, *(ROOT / "examples").rglob("*.md")]
    for page in (page for page in written if page.name != "MODEL_CARDS.md"):  # which is generated
        prose = (line for line in read(page).splitlines() if not line.startswith("|"))
        lines += [(page, re.sub(r"https?://[^\s)>]+", "", line)) for line in prose]
    assert [f"{path.relative_to(ROOT)}: {line}" for path, line in lines if len(line) > LONGEST] == []


def test_accuracies_of_hiera_say_what_they_were_measured_on() -> None:
    """The authors' figure and timm's belong to different crops, and a tag takes the one of its own."""
    rows = [row for row in manifest.records().values() if row.paper == "2306.00989" and row.classes == 1000]
    assert len(rows) == 6
    timms = (82.786, 83.884, 84.49, 85.134, 86.042, 86.834)
    for row, figure in zip(rows, timms, strict=True):
        own, other = row.accuracies
        assert (other.top1, other.by, other.crop) == (figure, "timm", 0.9)
        assert abs(own.top1 - figure) < 0.1
        assert own.crop == row.crop_pct == timm.get_pretrained_cfg(row.name).crop_pct == 0.875
        said = f"| top-1 | {own.top1:g} % (crop 0.875; the authors); {figure:g} % (crop 0.9; timm) |"
        assert said in cataloguing.section(row)
        assert "| crop | 0.875 of the shorter side |" in cataloguing.section(row)


def test_the_generated_documents_are_current(tmp_path: Path) -> None:
    cards.main(["--check", "--root", str(ROOT)])
    (tmp_path / "README.md").write_text(
        (ROOT / "README.md").read_text(encoding="utf-8").replace("66.42 M", "1 M"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"MODEL_CARDS\.md, .*README\.md, .*parameters\.toml not current"):
        cards.main(["--check", "--root", str(tmp_path)])
    cards.main(["--root", str(tmp_path)])
    for name in ("README.md", "MODEL_CARDS.md", "weights/parameters.toml"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")
