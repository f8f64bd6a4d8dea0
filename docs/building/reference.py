"""Pages of reference: commands from their options, Python from its docstrings, examples from their files."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hiermim_zoo.commands.front_door import VERBS
from hiermim_zoo.commands.options import Verb, make_parser
from hiermim_zoo.models.listing import architectures

ROOT = Path(__file__).parents[2]
LANGUAGES = {".py": "python", ".sh": "bash"}
PUBLIC = {  # module -> what it is for
    "hiermim_zoo": "Models and autoencoders",
    "hiermim_zoo.mae": "The masked autoencoder",
    "hiermim_zoo.masking": "Masks",
    "hiermim_zoo.protocol": "What an encoder must do to be masked",
    "hiermim_zoo.detection": "Detection",
    "hiermim_zoo.geometry": "Units and positions",
    "hiermim_zoo.layers.sparse": "Layers that see visible units alone",
    "hiermim_zoo.layers.groups": "Windows of visible tokens",
    "hiermim_zoo.layers.group_attention": "Attention in such windows",
    "hiermim_zoo.checkpoints.golden": "Golden outputs",
}
SHOWN = {"hiermim_zoo": ("create_mae", "list_models"), "hiermim_zoo.mae": ("MaskedAutoencoder", "MAEOutput")}


def escaped(text: str) -> str:
    """Text in which Markdown sees nothing."""
    return re.sub(r"([\\`*_\[\]<>{}$|~^])", r"\\\1", text)


# ---- commands


def commands() -> dict[str, str]:
    """Page -> text: one for each command, and their list."""
    verbs = [importlib.import_module(f"hiermim_zoo.{name}").VERB for name in VERBS]
    lines = [f"| [{verb.name}](/{command_page(verb.name)}.md) | {escaped(verb.summary)} |" for verb in verbs]
    tree = ["```{toctree}", ":hidden:", "", *(f"/{command_page(name)}" for name in VERBS), "```"]
    text = "\n".join(
        [
            "# Commands\n",
            "Made from the options of the commands: these pages say what `--help` says.",
            "`hiermim NAME` is the same as `python -m hiermim_zoo.NAME`.\n",
            "| command | what it does |",
            "| --- | --- |",
            *lines,
            "",
            *tree,
            "",
        ]
    )
    return {"reference/commands": text, **{command_page(verb.name): command(verb) for verb in verbs}}


def command_page(name: str) -> str:
    return f"reference/commands/{name}"


def command(verb: Verb) -> str:
    """The page of a command."""
    parser = make_parser(verb, {}, verb.options)
    usage = parser.format_usage().removeprefix("usage: ").strip()
    parts = [f"# {verb.name}", "\n\n".join(paragraphs(verb.about)), f"```text\n{usage}\n```"]
    parts += ["## Examples", "\n".join(["```bash", *verb.examples, "```"])]
    parts += ["## Options", f"```{{program}} {verb.name}\n```", *options(parser)]
    if verb.family_values:
        parts += ["## Defaults of the families", family_table(verb)]
    parts += ["## In Python", TWIN.format(verb.name, signature(verb))]
    return "\n\n".join(parts) + "\n"


TWIN = """The twin has the same names, defaults and checks:

```python
from hiermim_zoo import {0}

{0}.run({1})
```"""


def signature(verb: Verb) -> str:
    """What must be given to the twin."""
    needed = [
        name
        for name, one in inspect.signature(verb.options).parameters.items()
        if one.default is inspect.Parameter.empty
    ]
    return ", ".join([*(f"{name}=..." for name in needed), "..."]) if needed else "..."


def paragraphs(about: str) -> Iterator[str]:
    """What a command says of itself; lines that are indented are code."""
    for paragraph in inspect.cleandoc(about).split("\n\n"):
        if "\n  " in f"\n{paragraph}":
            yield f"```text\n{paragraph}\n```"
        else:
            yield escaped(paragraph.replace("\n", " ")).replace("\\`\\`", "`")


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options as --help groups and words them."""
    formatter = parser.formatter_class(prog=parser.prog)
    general = [group for group in parser._action_groups if group.title == "options"]  # of argparse: those of no group
    for group in [*(group for group in parser._action_groups if group not in general), *general]:
        shown = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        if not shown:
            continue
        title = "general" if group in general else str(group.title)
        yield f"### {title[:1].upper()}{title[1:]}"
        for action in shown:
            said = str(action.help or "") % {"prog": parser.prog, "default": action.default}
            yield f"```{{option}} {formatter._format_action_invocation(action)}\n{escaped(said)}\n```"


def family_table(verb: Verb) -> str:
    """Values that the families of models have, by the first published size of each."""
    values = {arch: found for arch in representatives() if (found := family_values(verb, arch))}
    archs = list(values)
    names = list(dict.fromkeys(name for found in values.values() for name in found))
    lines = [
        f"As `--model NAME --help` shows them, for {', '.join(f'`{arch}`' for arch in archs)}.\n",
        f"| option | {' | '.join(f'`{arch}`' for arch in archs)} |",
        "| --- " * (len(archs) + 1) + "|",
    ]
    for name in names:
        cells = (escaped(values[arch].get(name, "-")) for arch in archs)
        lines.append(f"| `--{name.replace('_', '-')}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def family_values(verb: Verb, arch: str) -> Mapping[str, str]:
    """None where the command refuses the family."""
    assert verb.family_values
    try:
        return verb.family_values(arch)
    except ValueError:
        return {}


def representatives() -> list[str]:
    """A model of each family: the one of base size, else the first."""
    found: dict[str, str] = {}
    for arch in architectures():
        family = importlib.import_module("hiermim_zoo.models.family").family_of(arch).name
        if family not in found or arch == f"{found[family].rpartition('_')[0]}_base":
            found[family] = arch
    return list(found.values())


# ---- Python


def python() -> dict[str, str]:
    """The page of the Python interface."""
    parts = ["# Python", PYTHON]
    for module, title in PUBLIC.items():
        members = SHOWN.get(module) or members_of(module)
        body = "\n".join([f".. automodule:: {module}", "   :no-members:", "", f".. currentmodule:: {module}", ""])
        body += "\n".join(documented(module, member) for member in members)
        parts += [f"## {title}", f"`{module}`", f"```{{eval-rst}}\n{body}\n```"]
    return {"reference/python": "\n\n".join(parts) + "\n"}


PYTHON = """Made from the docstrings. Importing `hiermim_zoo` registers the models with timm, whose functions do the
rest: `timm.create_model`, `features_only=True`, `reset_classifier`. Every command has a twin, `run` of the module with
its name: see [commands](/reference/commands.md). Shapes are in brackets: B images, C channels, K visible units."""


def members_of(module: str) -> list[str]:
    """Public classes and functions that a module defines, in its order."""
    path = importlib.import_module(module).__file__
    tree = ast.parse(Path(str(path)).read_text(encoding="utf-8"))
    defined = (node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)))
    return [node.name for node in defined if not node.name.startswith("_") and ast.get_docstring(node)]


def documented(module: str, member: str) -> str:
    thing: Any = getattr(importlib.import_module(module), member)
    kind = "autoclass" if inspect.isclass(thing) else "autofunction"
    return "\n".join([f".. {kind}:: {member}", *(["   :members:"] if kind == "autoclass" else []), ""])


# ---- examples


def example_page(path: Path) -> str:
    return f"reference/{path.with_suffix('')}"


def examples() -> dict[str, str]:
    """Page -> text: one for each script, and their list."""
    files = [path.relative_to(ROOT) for path in sorted((ROOT / "examples").rglob("*")) if path.suffix in LANGUAGES]
    pages = {example_page(path): example(path) for path in files}
    lines = [f"| [{path.relative_to('examples')}](/{example_page(path)}.md) | {first_line(path)} |" for path in files]
    tree = ["```{toctree}", ":hidden:", "", *(f"/{page}" for page in pages), "```"]
    head = ["# Examples\n", "Scripts to start from, in the folder `examples/` of a clone.\n"]
    text = "\n".join([*head, "| script | what it does |", "| --- | --- |", *lines, "", *tree, ""])
    return {"reference/examples": text, **pages}


def example(path: Path) -> str:
    code = (ROOT / path).read_text(encoding="utf-8")
    return f"# {escaped(path.name)}\n\n{first_line(path)}\n\n````{LANGUAGES[path.suffix]}\n{code}````\n"


def first_line(path: Path) -> str:
    """What a script says of itself in a line."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        return escaped((ast.get_docstring(ast.parse(text)) or "").partition("\n")[0])
    comment = re.search(r"^# (.+(?:\n# .+)*)", text, re.MULTILINE)
    return escaped(comment[1].replace("\n# ", " ").partition(". ")[0].rstrip(".") + ".") if comment else ""
