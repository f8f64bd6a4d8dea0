"""The package as a whole: what importing it does, what the wheel holds, whether the documents are true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from timm.models import _registry

import hiermim_zoo
from hiermim_zoo import cards, manifest
from hiermim_zoo.registry import register

ROOT = Path(__file__).parents[1]


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
allowed = {"hiermim_zoo", "tomli", "requests", "urllib3", "certifi", "charset_normalizer", "chardet", "idna", "simplejson"}
assert heavy <= allowed, heavy - allowed
names = timm.list_models()
import importlib
for name in [n for n in sys.modules if n.startswith("hiermim_zoo.models")] + ["hiermim_zoo"]:
    importlib.reload(sys.modules[name])
assert timm.list_models() == names
for family in ("hivit", "hpvit", "hiera", "green"):  # timm has a module of the last name, too
    ours = [name for name in timm.list_models(module=family) if timm.model_entrypoint(name).__module__.startswith("hiermim")]
    assert ours == sorted(hiermim_zoo.list_models(family))
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
        register(entrypoint("resnet18"))
    assert timm.models.model_entrypoint("resnet18") is resnet


def test_no_name_of_ours_is_timms() -> None:
    for name in hiermim_zoo.list_models():
        assert timm.models.model_entrypoint(name).__module__.startswith("hiermim_zoo.models."), name


def test_list_models_filters() -> None:
    everything = hiermim_zoo.list_models()
    assert everything == [name for family in ("hivit", "hpvit", "hiera", "green") for name in hiermim_zoo.list_models(family)]
    tags = hiermim_zoo.list_models(pretrained=True)
    assert tags == list(manifest.records())
    assert hiermim_zoo.list_models(pretrained=True, license="apache-2.0") == [
        "hivit_atto.mae_cifar10_ft_cifar10",
        "hivit_atto.mae_cifar10",
        "hpvit_atto.mae_cifar10_ft_cifar10",
        "hpvit_atto.mae_cifar10",
        "hiera_atto.mae_cifar10_ft_cifar10",
        "hiera_atto.mae_cifar10",
        "hiera_atto_video.mae_moving_ft_moving",
        "hiera_atto_video.mae_moving",
        "green_swin_atto.mae_cifar10_ft_cifar10",
        "green_swin_atto.mae_cifar10",
    ]
    assert hiermim_zoo.list_models(license="unstated") == ["hivit_small", "hivit_base"]
    plain = {f"hpvit_{size}.mae_in1k{end}" for size in ("base", "large", "huge") for end in ("", "_ft_in1k")}
    assert {tag for tag in hiermim_zoo.list_models("hpvit", True) if "atto" not in tag} == plain
    hiera = {tag for tag in hiermim_zoo.list_models("hiera", True) if "atto" not in tag}
    assert len(hiera) == 20
    green = {f"green_swin_{size}.mae_in1k" for size in ("base", "base_win14", "large_win14")}
    assert set(hiermim_zoo.list_models(pretrained=True, license="cc-by-nc-4.0")) == plain | hiera | green
    with pytest.raises(ValueError, match="family 'resnet' is unknown, there are hivit, hpvit, hiera, green"):
        hiermim_zoo.list_models("resnet")


def test_tags_come_from_the_manifest_alone() -> None:
    registered = {
        name for name in _registry._model_pretrained_cfgs if name.partition(".")[0] in hiermim_zoo.list_models() and "." in name
    }
    assert registered == set(manifest.records())
    for row in manifest.records().values():
        cfg = timm.get_pretrained_cfg(row.name)
        assert (cfg.hf_hub_id, cfg.license, cfg.num_classes) == (row.hub, row.license, row.classes)
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


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_readmes_snippets_run_in_order() -> None:
    scope: dict[str, object] = {}
    assert len(snippets()) == 5
    for code in snippets():
        exec(code, scope)
    assert scope["logits"].shape == (1, 10)  # type: ignore[attr-defined]


def test_the_readmes_commands_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in re.findall(r"^make (\w+)", readme, re.MULTILINE))
    for command in set(re.findall(r"python -m hiermim_zoo\.(\w+)", readme)):
        assert (ROOT / "hiermim_zoo" / f"{command}.py").is_file(), command


def test_the_readmes_tree_is_the_disks() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.partition("<!-- tree -->\n```text\n")[2].partition("```")[0]
    listed: set[str] = set()
    folders: list[str] = []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 4, line.split()[0]
        folders = [*folders[:depth], name.rstrip("/")]
        listed.add("/".join(folders))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    assert all((ROOT / path).exists() for path in listed)
    opened = {path for path in listed if any(other.startswith(path + "/") for other in listed)}
    opened |= {str(parent) for path in listed for parent in Path(path).parents}
    missing = [f for f in tracked if f not in listed and not any(f.startswith(p + "/") for p in listed - opened)]
    assert [f for f in missing if not f.endswith("__init__.py") and f != ".gitignore"] == []


def test_the_generated_documents_are_current(tmp_path: Path) -> None:
    cards.main(["--check", "--root", str(ROOT)])
    (tmp_path / "README.md").write_text(
        (ROOT / "README.md").read_text(encoding="utf-8").replace("66.42 M", "1 M"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"MODEL_CARDS\.md, .*README\.md not current"):
        cards.main(["--check", "--root", str(tmp_path)])
    cards.main(["--root", str(tmp_path)])
    for name in ("README.md", "MODEL_CARDS.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")


# ---- the shape of the code

LEVELS = [
    {"version", "protocol", "geometry", "masking", "registry", "writing"},
    {"manifest"},
    {"layers", "checkpoints"},
    {"build"},
    {"models"},
    {
        "cli",
        "mae",
        "measure",
        "peers",
        "detection",
        "data",
        "moving",
        "videos",
        "clips",
        "distributed",
        "optim",
        "resume",
        "journal",
    },
    {"probe", "finetune", "labelled"},
    {"reconstruct", "__init__"},
    {"watch"},
    {"verify"},
    {"convert", "extract", "cards", "benchmark", "pretrain", "evaluate"},
]


def test_imports_point_down_only() -> None:
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    for path in (ROOT / "hiermim_zoo").rglob("*.py"):
        parts = path.relative_to(ROOT / "hiermim_zoo").with_suffix("").parts
        for dots, target in re.findall(r"^\s*from (\.+)([\w.]*) import", path.read_text(encoding="utf-8"), re.MULTILINE):
            package = parts[: len(parts) - len(dots)]
            full = [*package, *filter(None, target.split("."))]
            names = full[:1] or re.findall(rf"^from {re.escape(dots)} import (.+)$", path.read_text(), re.MULTILINE)[0].split(
                ", "
            )
            for name in names:
                if name in level:
                    assert level[name] <= level[parts[0]], f"{'/'.join(parts)} imports {name}"
            if parts[0] == "models" and len(parts) > 1 and parts[1] != "__init__":
                same = len(full) > 1 and full[1].partition("_")[0] == parts[1].partition("_")[0]  # hpvit_verify.py and hpvit.py
                assert full[0] != "models" or same, f"family {parts[1]} imports another family"
