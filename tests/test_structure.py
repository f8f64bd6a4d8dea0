"""The shape of the code: which way imports point, how large things are. CONTRIBUTING.md has the list of levels."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hiermim_zoo.commands.front_door import VERBS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hiermim_zoo"
FAMILIES = {"hivit", "hpvit", "hiera", "green", "vit"}
# timm's signature, which its consumers call by position.
TIMMS = {"forward_intermediates"}


def modules() -> dict[str, Path]:
    """All modules by their names in the package; a package by its own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


MODULES = modules()


def imports(name: str, source: str | None = None) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it."""
    path = MODULES[name]
    here = name.split(".") if path.name == "__init__.py" and name != "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name.removeprefix("hiermim_zoo.") for alias in node.names if "hiermim_zoo" in alias.name]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            targets = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "hiermim_zoo":
            inside = (node.module or "").partition(".")[2]
            targets = [".".join([*filter(None, [inside]), alias.name]) for alias in node.names]
        else:
            continue
        for target in targets:
            while target and target not in MODULES:  # a name inside a module
                target = target.rpartition(".")[0]
            yield target or "__init__"


def levels() -> list[tuple[str, list[str]]]:
    """The list of CONTRIBUTING.md, from the top."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- levels -->\n```text\n(.*?)```", text, re.DOTALL)
    assert block
    lines = re.sub(r"\n +", " ", block[1]).splitlines()  # an indented line goes on with the one above
    return [(words[0], words[1:]) for words in map(str.split, lines)]


def room(name: str) -> str:
    """The entry of the list that a module belongs to, the most particular one."""
    entries = [entry for _, found in levels() for entry in found]
    fitting = [entry for entry in entries if name == entry or name.startswith(f"{entry}.")]
    assert fitting, f"{name} stands on no level of CONTRIBUTING.md"
    return max(fitting, key=len)


def level(name: str) -> int:
    return next(i for i, (_, entries) in enumerate(levels()) if room(name) in entries)


def complaint(name: str, target: str) -> str:
    """Why a module must not import another; empty if it may."""
    if room(name) != room(target) and level(target) <= level(name):
        return f"{name} imports {target}, which is not below it"
    family, other = (module.partition(".")[2].partition("_")[0] for module in (name, target))
    if room(name) == room(target) == "models" and {family, other} <= FAMILIES and family != other:
        return f"family {family} imports family {other}"
    return ""


def test_imports_point_down() -> None:
    assert not [said for name in MODULES for target in imports(name) if (said := complaint(name, target))]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("layers.maps", "from ..models import hivit"),
        ("mae", "def f():\n    from .training import optimizer"),
        ("pretrain", "from .evaluate import VERB"),
        ("pretrain", "import hiermim_zoo.evaluate"),
        ("data.batches", "from ..geometry import to_units"),
        ("models.hivit", "from .hiera_parts import SIDE"),
        ("commands.options", "from ..baselines import PEERS"),
    ],
)
def test_an_import_that_points_up_is_noticed(name: str, line: str) -> None:
    """Negative control."""
    assert [said for target in imports(name, line) if (said := complaint(name, target))]


def test_there_is_no_circle() -> None:
    graph = {name: set(imports(name)) - {name} for name in MODULES}
    # The package, which users import, is not imported from inside; a package lists its own modules.
    graph = {name: {t for t in targets if not t.startswith(f"{name}.")} for name, targets in graph.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for target in graph[name]:
                visit(target, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_levels_are_the_packages() -> None:
    """Every entry exists, and every verb is one."""
    for _, entries in levels():
        for entry in entries:
            assert entry in MODULES, f"CONTRIBUTING.md names {entry}, which does not exist"
    top = dict(levels())["verbs"]
    assert set(VERBS) == set(top) - {"__init__", "__main__"}


def test_nothing_but_models_and_tables_knows_a_family_by_name() -> None:
    names = FAMILIES - {"vit", "green"} | {"vision_transformer"}
    for name, path in MODULES.items():
        if name.startswith(("models", "checkpoints.tables", "commands.baselines")):  # the last knows other packages
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in names:
                raise AssertionError(f"{name} line {node.lineno} knows {node.value!r}")
        assert not [t for t in imports(name) if t.partition(".")[2].partition("_")[0] in FAMILIES], name


def test_files_and_functions_fit() -> None:
    """Files under 500 lines, functions under 60, at most 8 parameters outside models' constructors."""
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < 500, f"{path.name} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines < 60, f"{path.name}: {node.name} has {lines} lines"
            named = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if node.name not in {"__init__", *TIMMS}:
                assert len(set(named) - {"self", "cls"}) <= 8, f"{path.name}: {node.name} has {len(named)} parameters"
