"""The front door: what commands there are, how help is asked for, and that options mean the same from Python."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hiermim_zoo
from hiermim_zoo import __main__ as front
from hiermim_zoo.commands import front_door
from hiermim_zoo.commands import options as mechanism
from hiermim_zoo.commands.front_door import VERBS
from hiermim_zoo.commands.options import OptionSet, Verb, run_command
from hiermim_zoo.commands.options.fields import flag, img_size, model_kwargs, option
from hiermim_zoo.commands.options.values import number, whole

from .forks import Forks

ROOT = Path(__file__).parents[1]
ALL_VERBS = [importlib.import_module(f"hiermim_zoo.{name}").VERB for name in VERBS]


def python(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=env, cwd=cwd, check=False, timeout=300
    )


# ---- asking for help


LIGHT = """
import atexit, runpy, sys
def heavy():
    found = {"torch", "timm"} & set(sys.modules)
    print("heavy:", *sorted(found))
atexit.register(heavy)
module, *sys.argv[1:] = sys.argv[1:]
sys.argv[0], sys.orig_argv = "-m", ["python", "-m", module, *sys.argv[1:]]  # as python -m has them
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def light(*words: str) -> str:
    """What a command prints, if it neither fails nor imports torch or timm."""
    done = python("-c", LIGHT, *words)
    assert (done.returncode, done.stderr) == (0, "")
    printed, _, found = done.stdout.rpartition("heavy:")
    assert found.strip() == "", f"{words} import {found}"
    return printed


@pytest.mark.parametrize("verb", ALL_VERBS, ids=lambda verb: verb.name)
def test_help_is_there_before_torch_is(verb: Verb) -> None:
    printed = light(f"hiermim_zoo.{verb.name}", "--help")
    assert printed.startswith(f"usage: python -m hiermim_zoo.{verb.name} ")
    assert len(verb.examples) >= 2
    assert all(f"\n  {example}\n" in printed for example in verb.examples)
    for field in dataclasses.fields(verb.options):
        about = mechanism.option_of(field)
        called = field.name.upper() if about.positional else about.off or mechanism.long_flag(field.name)
        assert (called in printed) != about.unlisted
        assert not any(old in printed.split() for old in about.hidden)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_overview_has_a_line_for_every_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    front.main(words)
    printed = capsys.readouterr().out
    for name in VERBS:
        assert len(re.findall(rf"^  {name} +\S.*[^.]\.$", printed, re.MULTILINE)) == 1, name


def test_the_overview_is_there_before_torch_is() -> None:
    assert "pretrain" in light("hiermim_zoo")
    assert light("hiermim_zoo", "--help") == light("hiermim_zoo")


def test_the_list_needs_no_torch() -> None:
    printed = light("hiermim_zoo.list", "hivit_atto", "--here")
    assert [line.split()[0] for line in printed.splitlines()[:3]] == [
        "weights",
        "hivit_atto.mae_cifar10_ft_cifar10",
        "hivit_atto.mae_cifar10",
    ]
    assert light("hiermim_zoo", "list", "hivit_atto", "--here") == printed


def test_the_verb_named_list_hides_no_type() -> None:
    """Once it is imported, its name in the package means the verb; so nothing may mean the type by it there."""
    importlib.import_module("hiermim_zoo.list")
    scope: dict[str, Any] = {}
    exec("from hiermim_zoo import *", scope)
    assert "list" not in scope
    code = compile((ROOT / "hiermim_zoo" / "__init__.py").read_text(encoding="utf-8"), "__init__", "exec")
    bodies = [code, *(part for part in code.co_consts if isinstance(part, type(code)))]
    assert not [body.co_name for body in bodies if "list" in body.co_names]


def test_the_package_hands_on_to_its_commands() -> None:
    assert light("hiermim_zoo", "pretrain", "--help") == light("hiermim_zoo.pretrain", "--help")
    for words in (("hiermim_zoo",), ("hiermim_zoo.pretrain",), ("hiermim_zoo", "pretrain")):
        assert light(*words, "--version") == f"{hiermim_zoo.__version__}\n"


def test_help_for_a_model_has_its_familys_values(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> dict[str, str]:
        with pytest.raises(SystemExit) as left:
            front.main(["pretrain", "--help", *words])
        assert left.value.code == 0
        printed = " ".join(capsys.readouterr().out.split())
        return dict(re.findall(r" --([\w-]+) (?:(?! --).)*?\(default: ([^)]*)\)", printed))

    expected = {
        "epochs": "800 with --recipe paper",
        "batch-size": "2048 with --recipe paper",
        "warmup": "40 with --recipe paper",
        "blr": "0.0001 with --recipe paper",
        "weight-decay": "0.05",
        "betas": "0.9 0.95",
        "drop-path": "0.0",
        "crop-scale": "0.2 1.0",
        "mask-ratio": "0.75",
        "masks": "batch",
        "decoder-depth": "1 with --recipe paper",
        "decoder-dim": "512 with --recipe paper",
        "decoder-heads": "16 with --recipe paper",
    }
    assert expected.items() <= shown("--model", "green_swin_base").items()
    assert shown("--model=hiera_base_video")["repeat"] == "4"
    assert all("family" in shown()[name] for name in expected)


# ---- what is no command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "hiermim_zoo.training.probe"), "hiermim_zoo.training.probe is no command; python -m hiermim_zoo lists"),
        (("-m", "hiermim_zoo.mae", "--help"), "hiermim_zoo.mae is no command"),
        (("-m", "hiermim_zoo.pretran"), "hiermim_zoo.pretran is no command; did you mean pretrain?"),
        (("-m", "hiermim_zoo", "pretrian", "digits"), "pretrian is no command; did you mean pretrain?"),
        (("-m", "hiermim_zoo", "colour"), "colour is no command; python -m hiermim_zoo lists the commands: list, "),
        (("-m", "hiermim_zoo.pretrain", "--epoch", "3"), "python -m hiermim_zoo.pretrain --help shows all options"),
    ],
)
def test_what_is_no_command_is_refused_in_one_line(forked: Forks, words: tuple[str, ...], message: str) -> None:
    """The one that is a command has imported torch when it looks at its options."""
    done = forked.command(*words[1:]) if "--epoch" in words else python(*words)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


# ---- the import


@pytest.mark.parametrize(
    ("argv0", "start", "module"),
    [
        ("-m", ["-m", "hiermim_zoo.pretrain"], "hiermim_zoo.pretrain"),
        ("-m", ["-u", "-m", "hiermim_zoo"], "hiermim_zoo"),
        ("-m", ["-mhiermim_zoo.mae"], "hiermim_zoo.mae"),
        ("/usr/bin/hiermim", ["/usr/bin/hiermim"], "hiermim_zoo"),  # the console script
        ("C:/bin/hiermim.exe", ["C:/bin/hiermim.exe"], "hiermim_zoo"),
        ("hiermim.py", ["hiermim.py"], None),  # somebody else's
        ("train.py", ["train.py"], None),
        ("-c", ["-c", "import hiermim_zoo"], None),
        ("-m", ["-m", "pytest"], None),
        ("-m", ["-m", "hiermim_zoology"], None),
        ("", [], None),  # a console
    ],
)
def test_a_command_is_known_by_how_the_process_was_started(
    argv0: str, start: list[str], module: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["digits", "--model", "hiermim_zoo.mae"] if start else []
    monkeypatch.setattr(sys, "argv", [argv0, *words])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *start, *words])
    assert front_door.started() == module


@pytest.mark.slow
def test_the_import_registers_models_unless_a_command_begins(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import hiermim_zoo, timm; print(timm.is_model('hivit_atto'))")
    (tmp_path / "hiermim").write_text(
        "import sys; from hiermim_zoo.__main__ import script; assert 'torch' not in sys.modules; script()"
    )
    for words, printed in ((("-m", "module"), "True\n"), (("hiermim", "--version"), f"{hiermim_zoo.__version__}\n")):
        done = python(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


SPAWNED = """
import multiprocessing, sys
def registered():
    import hiermim_zoo, timm
    return timm.is_model("hivit_atto") and hiermim_zoo.list_models("hivit*")[0]
if __name__ == "__main__":
    import hiermim_zoo
    assert "torch" not in sys.modules
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(registered))
"""


@pytest.mark.slow
def test_processes_that_a_command_spawns_register_models(tmp_path: Path) -> None:
    (tmp_path / "hiermim").write_text(SPAWNED)
    done = python(str(tmp_path / "hiermim"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "hivit_atto\n", "")


@pytest.mark.slow
def test_a_command_finds_the_rest_when_it_asks(tmp_path: Path) -> None:
    code = """
import sys
import hiermim_zoo
assert not {"torch", "timm"} & set(sys.modules)
print(hiermim_zoo.list_models("hivit*"), hiermim_zoo.create_mae.__name__, hiermim_zoo.pretrain.run.__name__)
"""
    (tmp_path / "hiermim").write_text(code)
    done = python(str(tmp_path / "hiermim"))
    assert done.stdout == f"{hiermim_zoo.list_models('hivit*')} create_mae run\n", done.stderr


def test_commands_are_attributes_of_the_package() -> None:
    assert {*VERBS, *hiermim_zoo.__all__} <= set(dir(hiermim_zoo))
    for name in VERBS:
        assert getattr(hiermim_zoo, name).__name__ == f"hiermim_zoo.{name}"
    with pytest.raises(AttributeError, match="'hiermim_zoo' has no attribute 'paint'"):
        _ = hiermim_zoo.paint


# ---- a command and its twin


SHORTEST = {  # command lines
    "list": "",
    "doctor": "",
    "pretrain": "x --model x -o x",
    "evaluate": "x --model x --method knn",
    "report": "x -o x.html",
    "extract": "x --model x -o x",
    "features": "x --model x -o x",
    "reconstruct": "x --model x -o x",
    "convert": "x --model hivit_atto --dry-run",
    "publish": "x --to a/b",
    "mirror": "x --to a",
    "benchmark": "--suite cpu -o x",
    "stats": "x",
    "cards": "",
}


@pytest.mark.parametrize("verb", ALL_VERBS, ids=lambda verb: verb.name)
def test_the_twin_has_the_options_of_the_parser(verb: Verb) -> None:
    parser = mechanism.make_parser(verb, {}, verb.options)
    parsed = {action.dest: action for action in parser._actions if action.dest not in ("help", "version")}
    parameters = inspect.signature(verb.run).parameters
    assert list(parameters) == list(dict.fromkeys(parsed))
    required = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    required |= {field.name for field in dataclasses.fields(verb.options) if mechanism.option_of(field).unless}
    assert required == {name for name, action in parsed.items() if action.required}
    assert all(name in (verb.run.__doc__ or "") for name in parameters)
    words = shlex.split(SHORTEST[verb.name])
    chosen = verb.parse(words)
    given = {name for name in parameters if {*parsed[name].option_strings, name} & {*words, *required}}
    for name in parameters.keys() - given:
        assert getattr(chosen, name) == parameters[name].default, name
    assert chosen == type(chosen)(**{name: getattr(chosen, name) for name in given})


@pytest.mark.parametrize(
    "example", [pytest.param(e, id=v.name) for v in ALL_VERBS if v.name in ("pretrain", "convert") for e in v.examples]
)
def test_examples_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, offline and in little time; those of the other verbs in test_twins.py."""
    monkeypatch.chdir(tmp_path)
    start, dash, module, *words = shlex.split(example)
    assert (start, dash) == ("python", "-m")
    left = importlib.import_module(module).main(words)
    assert left.exists() if "--dry-run" not in words else left is None


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("extract", {"images": [], "model": "hivit_atto", "output": "f.safetensors"}, "needs one value or more"),
        ("extract", {"images": ["x"], "model": "hivit_atto", "output": "f", "what": []}, "--what needs one value"),
        ("reconstruct", {"images": [], "model": "hivit_atto", "output": "x.png"}, "needs one value or more"),
        ("benchmark", {"models": []}, "needs one value or more"),
        ("convert", {"source": "x.pth", "model": 5, "output": "out"}, "model '5' is unknown"),
        (
            "evaluate",
            {"data": "digits", "model": "hivit_atto", "method": "knn", "split": "nosuch"},
            "no split 'nosuch'",
        ),
        ("evaluate", {"data": "digits", "model": "hivit_atto", "method": "knn", "seed": 2**70}, "--seed"),
        ("evaluate", {"data": "digits", "model": "hivit_atto", "method": "finetune", "min_lr": -5}, "-5 is not"),
        ("pretrain", {"data": "digits", "model": "hivit_atto", "output": "out", "crop_scale": (0, 0)}, "--crop-scale"),
        (
            "pretrain",
            {"data": "digits", "model": "hivit_atto", "output": "out", "split": "nosuch"},
            "no split 'nosuch'",
        ),
    ],
)
def test_what_a_command_line_cannot_say_or_mean_is_refused_from_python(
    verb: str, options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        getattr(hiermim_zoo, verb).run(**options)
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(OptionSet):
    paths: tuple[str, ...] = option("some", positional=True, many="+")
    rate: float = option("of change", default=0.5, kind=number(0, 1, above=True))
    share: float = option("of all", default=0, kind=number(0, 1, below=True))
    count: int | None = option("of things", default=None, kind=whole(1, 9), flags=("-c",), hidden=("--number",))
    betas: tuple[float, float] | None = option("two", default=None, kind=number(), many=2)
    colour: str = option("of paint", default="red", choices=("red", "blue"))
    wet: bool = flag("not dry")
    bright: bool = flag("not bright", default=True, off="--no-bright")
    img_size: tuple[int, int] | None = img_size()
    model_kwargs: dict[str, Any] | None = model_kwargs()  # noqa: RUF009 # gives a field

    def check_together(self) -> None:
        if self.wet and not self.bright:
            raise ValueError("--wet and --no-bright exclude each other")
        self.own_model_kwargs("in_chans")


TOY = Verb("toy", "Paint.\n\nWith a brush.", Toy, ("one", "two"), lambda options: options)


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ("--rate nan", {"rate": float("nan")}, "--rate nan is not a finite number above 0 and at most 1"),
        ("--rate inf", {"rate": float("inf")}, "--rate inf is not a finite number"),
        ("--rate 0", {"rate": 0}, "--rate 0 is not a finite number above 0"),
        ("--rate much", {"rate": "much"}, "--rate much is not a finite number"),
        ("--share 1", {"share": 1}, "--share 1 is not a finite number at least 0 and below 1"),
        ("--count 10", {"count": 10}, "-c 10 is not a whole number from 1 to 9"),
        ("--number 0", {"count": 0}, "-c 0 is not a whole number"),
        ("-c 2.5", {"count": 2.5}, "-c 2.5 is not a whole number"),
        ("--betas 1 inf", {"betas": (1, float("inf"))}, "--betas inf is not a finite number"),
        ("--colour green", {"colour": "green"}, "--colour green is not one of red, blue"),
        ("--wet --no-bright", {"wet": True, "bright": False}, "--wet and --no-bright exclude each other"),
        ("--img-size 3 3 3", {"img_size": (3, 3, 3)}, "--img-size 3 3 3: one number, or height and width"),
        ("--img-size 0", {"img_size": 0}, "--img-size 0 is not a whole number from 1 on"),
        ("--model-kwargs depth", {"model_kwargs": ["depth"]}, "--model-kwargs depth is not of the form NAME=VALUE"),
        ("--model-kwargs in_chans=3", {"model_kwargs": {"in_chans": 3}}, "in_chans=3: this has an option of its own"),
    ],
)
def test_bad_values_are_the_same_from_both_sides(
    words: str, options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TOY.run(paths="a", **options)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: TOY.main(["a", *words.split()]))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": None}, "--rate None is not a finite number"),
        ({"paths": None}, "PATHS None"),
        ({"rate": True}, "--rate True is not"),
        ({"count": True}, "-c True is not"),
        ({"wet": "no"}, "--wet no is not True or False"),
        ({"betas": (1, 2, 3)}, "--betas takes 2 values, got 3"),
        ({"model_kwargs": {"act": print}}, "--model-kwargs"),  # no command line could say so
        ({"model_kwargs": 3}, "--model-kwargs 3 is not of the form"),
    ],
)
def test_python_cannot_say_what_no_command_can(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TOY.run(**{"paths": "a", **options})


def test_names_that_are_no_options_are_refused() -> None:
    with pytest.raises(TypeError, match="brush"):
        TOY.run(paths="a", brush=3)
    with pytest.raises(TypeError, match="paths"):
        TOY.run()
    with pytest.raises(ValueError, match=r"unrecognized arguments: --brush"):
        TOY.parse(["a", "--brush"])
    with pytest.raises(ValueError, match=r"unrecognized arguments: --colo"):
        TOY.parse(["a", "--colo=blue"])  # no abbreviations: they would change their meaning with every new option
    with pytest.raises(ValueError, match=r"required: PATHS"):
        TOY.parse([])


@pytest.mark.parametrize(
    "options",
    [
        {"paths": "it's"},
        {"paths": ["a", "b c"], "rate": 1e-7, "wet": True, "count": 3.0},
        {"paths": ("a",), "betas": [-1, 0.1], "bright": False, "colour": "blue", "img_size": 32},
        {"paths": "a", "model_kwargs": {"depths": (2, 1), "act": "gelu", "none": None, "text": "3"}, "share": 0},
    ],
)
def test_the_command_of_options_means_them(options: dict[str, Any]) -> None:
    made = TOY.run(**options)
    python, dash, module, *words = shlex.split(made.command("toy"))
    assert (python, dash, module) == ("python", "-m", "hiermim_zoo.toy")
    assert TOY.parse(words) == made


def test_plain_argparse_shows_what_a_kind_says(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=whole(1))
    assert parser.parse_args(["--count", "2"]).count == 2
    with pytest.raises(SystemExit):
        parser.parse_args(["--count", "0"])
    assert "argument --count: 0 is not a whole number from 1 on" in capsys.readouterr().err


def test_what_is_said_twice() -> None:
    assert TOY.parse(["a", "--img-size", "3", "--img-size", "4", "5"]).img_size == (4, 5)
    assert TOY.parse(shlex.split("a --model-kwargs a=1 b=2 --model-kwargs a=3")).model_kwargs == {"a": 3, "b": 2}
