"""Commands that measure, extract, draw, time and list, and their twins in Python: one set of options, one result.

What holds of every command alike is in test_front_door.py.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hiermim_zoo import benchmark, cards, doctor, evaluate, extract, features, reconstruct, report, stats
from hiermim_zoo import list as listing
from hiermim_zoo.commands import (
    baselines,
    cataloguing,
    evaluating,
    evaluating_frozen,
    extracting_checks,
    extracting_file,
)
from hiermim_zoo.commands.options import evaluate as evaluate_options
from hiermim_zoo.commands.options import extract as extract_options
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.commands.options import shared as shared_options
from hiermim_zoo.commands.options.fields import option_of
from hiermim_zoo.data import clips
from hiermim_zoo.models.measure import Size
from hiermim_zoo.training import precision, small
from hiermim_zoo.training.finetuning import TuningSettings, recipe_for

from .forks import Forks

ROOT = Path(__file__).parents[1]
CAT = ROOT / "examples" / "pictures" / "cat" / "0001.jpg"
VERBS = [listing, doctor, evaluate, extract, features, reconstruct, benchmark, stats, report, cards]
REQUIRED: dict[str, list[str]] = {  # the shortest command line
    "list": [],
    "doctor": [],
    "evaluate": ["digits", "--model", "hivit_atto", "--method", "knn"],
    "extract": [str(CAT), "--model", "hivit_atto", "-o", "out"],
    "features": [str(CAT), "--model", "hivit_atto", "-o", "out.png"],
    "reconstruct": [str(CAT), "--model", "hivit_atto", "-o", "out.png"],
    "benchmark": ["hivit_atto"],
    "stats": ["digits"],
    "report": ["run", "-o", "out.html"],
    "cards": [],
}


@pytest.fixture
def few_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted for the table of models, which takes long."""
    monkeypatch.setattr(cataloguing, "measure", lambda arch: Size(1_000_000, 2_000_000_000, (3, 8, 8)))
    monkeypatch.setattr(cataloguing, "parameters", lambda name: 1_000_000)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder with the README, the examples' images, and what runs left."""
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("a", "b", "tuned"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "log.jsonl").write_text('{"step": 1, "samples": 8, "loss": 0.5}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def help_of(verb: ModuleType, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the help prints, in lines of no particular length."""
    with pytest.raises(SystemExit) as stop:
        verb.main([*argv, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


# ---- options


@pytest.mark.parametrize(
    ("verb", "argv"),
    [
        (evaluate, ["digits", "--model", "m", "--method", "knn", "-k", "3", "--views", "2", "1", "--no-pretrained"]),
        (evaluate, ["a b", "--model", "m", "--method", "finetune", "-o", "x", "--force", "--crop-scale", "0.5", "1"]),
        (evaluate, ["x", "--model", "m", "--method", "knn", "--model-kwargs", "a=(1, 2)", "b='c d'", "c=e"]),
        (extract, ["a", "b", "--model", "m", "-o", "x", "--what", "maps", "--what", "tokens", "--levels", "2", "0"]),
        (extract, ["a", "--model", "m", "-o", "x", "--no-pretrained", "--seed", "0"]),
        (reconstruct, ["a", "b", "--model", "m", "-o", "x.png", "--raw-pixels", "--mask-ratio", "0.5"]),
        (benchmark, ["a", "b:train", "--versus", "c", "--img-size", "64", "--compile"]),
        (benchmark, ["a", "--img-size", "64", "64", "--img-size", "32", "64"]),
        (stats, ["a", "--bands", "3", "1", "--scale", "0,5", "--most", "7"]),
        (report, ["a", "b c", "-o", "x.html", "--png", "x.png", "--over", "samples"]),
        (cards, ["--check", "--root", "a b"]),
        (features, ["a", "--model", "m", "n", "--model", "o", "-o", "x.html", "--level", "1", "--point", "0.5", "1"]),
        (doctor, ["hivit_atto.mae_cifar10", "a b", "--fetch", "--json"]),
        (listing, ["hivit*", "*.mae_in1k", "--size", "0.5", "70", "--license", "cc-by-nc*", "--here", "--json"]),
    ],
)
def test_the_command_line_that_options_stand_for_means_them(verb: ModuleType, argv: list[str]) -> None:
    options = verb.VERB.parse(argv)
    words = shlex.split(options.command(verb.VERB.name))
    assert words[:3] == ["python", "-m", f"hiermim_zoo.{verb.VERB.name}"]
    assert verb.VERB.parse(words[3:]) == options


@pytest.mark.parametrize(
    ("verb", "argv", "options", "words"),
    [
        (evaluate, ["--seed", "-1"], {"seed": -1}, "-1 is not a whole number from 0 to"),
        (
            evaluate,
            ["--max-bad", "nan"],
            {"max_bad": float("nan")},
            "nan is not a finite number at least 0 and",
        ),
        (evaluate, ["--amp", "fp8"], {"amp": "fp8"}, "fp8 is not one of auto, none, bf16, fp16"),
        (evaluate, ["--epochs", "3"], {"epochs": 3}, "--epochs belongs to --method finetune, not to --method knn"),
        (evaluate, ["--warmup", "0"], {"warmup": 0}, "--warmup belongs to --method finetune"),
        (evaluate, ["--img-size", "0"], {"img_size": 0}, "0 is not a whole number from 1 on"),
        (evaluate, ["--json", "/nowhere/a"], {"json": "/nowhere/a"}, "/nowhere/a cannot be written: no such folder"),
        (extract, ["--levels", "1"], {"levels": 1}, "--levels chooses among feature maps"),
        (extract, ["--what", "logits"], {"what": ["logits"]}, "logits is not one of pooled, tokens, maps"),
        (extract, ["--seed", "1"], {"seed": 1}, "--seed 1 is of the random weights"),
        (reconstruct, ["--mask-ratio", "2"], {"mask_ratio": 2}, "2 is not a finite number at least 0"),
        (reconstruct, ["--statistics", "none"], {"statistics": "none"}, "none is not one of true, visible"),
        (benchmark, ["--rounds", "1.5"], {"rounds": 1.5}, "1.5 is not a whole number from 1 on"),
        (benchmark, ["--img-size", "1", "2", "3"], {"img_size": (1, 2, 3)}, "--img-size 1 2 3: one number, or"),
        (benchmark, ["--device", "abacus"], {"device": "abacus"}, "device 'abacus' cannot be used"),
        (stats, ["--scale", "1"], {"scale": "1"}, "--scale 1: use dtype, minmax, percentile:LOW,HIGH or LOW,HIGH"),
        (cards, ["--root", "/nowhere"], {"root": "/nowhere"}, "/nowhere/README.md"),
        (listing, ["--size", "5", "x"], {"size": (5, "x")}, "--size x is not a finite number at least 0"),
    ],
)
def test_bad_values_are_errors_in_python_and_one_line_of_a_command(
    verb: ModuleType,
    argv: list[str],
    options: dict[str, Any],
    words: str,
    few_models: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = REQUIRED[verb.VERB.name]
    parsed = verb.VERB.parse(line)
    required = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed)}
    required = {name: required[name] for name in ("data", "model", "method", "images", "models") if name in required}
    if "-o" in line:
        required["output"] = line[-1]
    with pytest.raises((ValueError, OSError)) as error:
        verb.run(**required, **options)
    assert words in str(error.value)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: verb.main([*line, *argv]))
    assert stop.value.code == 2
    [said] = capsys.readouterr().err.splitlines()
    assert words in said


def test_words_for_defaults_are_true() -> None:
    """Options name in words what modules hold that import torch."""
    about = {field.name: option_of(field).auto for field in dataclasses.fields(evaluate_options.EvaluateOptions)}
    settings = TuningSettings()
    for name in ("opt", "hflip", "color_jitter", "mix_prob", "accumulate"):
        assert about[name] == format(getattr(settings, name), "" if name == "opt" else "g"), name
    crops = [" ".join(f"{bound:g}" for bound in bounds) for bounds in (settings.crop_scale, small.LIGHT_CROP)]
    assert about["crop_scale"] == f"{crops[0]}; with --recipe small {crops[1]}"
    assert (settings.ema, settings.compile, settings.amp, settings.seed) == (
        None,
        None,
        "none",
        0,
    )
    assert about["k"] == str(evaluating_frozen.NEIGHBOURS)
    assert about["temperature"] == str(evaluating_frozen.TEMPERATURE)
    assert about["batch_size"].startswith(f"{evaluating_frozen.BATCH} images")
    assert (shared_options.STRIDE, shared_options.RATE, shared_options.NATIVE) == (
        clips.STRIDE,
        clips.RATE,
        clips.NATIVE,
    )
    assert ("auto", *precision.DTYPES) == shared_options.AMP
    assert tuple(evaluating.METHODS) == evaluate_options.METHODS
    assert tuple(extracting_checks.NEEDED) == extract_options.WHAT
    assert tuple(extracting_file.DTYPES) == extract_options.DTYPES
    [models] = (field for field in dataclasses.fields(benchmark.VERB.options) if field.name == "models")
    assert all(f"{peer}/" in option_of(models).help for peer in baselines.PEERS)


# ---- help


def test_the_help_of_evaluate_shows_the_recipe_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    plain = " ".join(help_of(evaluate, capsys).split())
    assert "as the data have images or videos (default: the recipe's)" in plain
    recipe = recipe_for("hiera_large")
    shown = " ".join(help_of(evaluate, capsys, "--model", "hiera_large").split())
    assert f"as the data have images or videos (default: {recipe.epochs} with --recipe paper)" in shown
    assert f"of a batch (default: {recipe.blr:g} with --recipe paper)" in shown
    assert f"of a step {recipe.batch} with --recipe paper)" in shown
    swin = " ".join(help_of(evaluate, capsys, "--model", "green_swin_base").split())
    assert "largest norm of the gradient; 0: any (default: 5)" in swin
    assert "the recipe's)" not in shown
    assert " ".join(help_of(evaluate, capsys, "--model", "resnet18").split()) == plain, "there is no recipe"
    with pytest.raises(ValueError, match="'hivit_huge' is unknown"):
        evaluate.main(["--model", "hivit_huge", "--help"])


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 on forking
@pytest.mark.parametrize(
    ("verb", "example"),
    [(verb, example) for verb in VERBS for example in verb.EXAMPLES],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_examples_of_the_help_run(
    verb: ModuleType, example: str, checkout: Path, few_models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(example)
    assert words[:3] == ["python", "-m", f"hiermim_zoo.{verb.VERB.name}"]
    if "--check" in words:
        cards.run()
    found = verb.main(words[3:])
    assert found or "--check" in words
    if "-o" in words:
        assert (checkout / words[words.index("-o") + 1]).is_file()


# ---- results


def both(verb: ModuleType, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[Any, Any, str]:
    """What the twin returns, what the command returns for the same options, and what it prints (the twin: nothing)."""
    capsys.readouterr()
    torch.manual_seed(0)
    from_python = verb.run(**options)
    assert capsys.readouterr().out == ""
    torch.manual_seed(0)
    words = shlex.split(verb.VERB.options(**options).command(verb.VERB.name))
    return from_python, verb.main(words[3:]), capsys.readouterr().out


def without(result: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in names}


def test_evaluate_returns_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"model": "hivit_atto", "method": "classify", "workers": 0, "json": tmp_path / "out.json"}
    twin, command, printed = both(evaluate, capsys, data=str(CAT.parents[1]), **options)
    assert json.loads(printed.splitlines()[-1]) == command == json.loads((tmp_path / "out.json").read_text())
    assert without(twin, "seconds") == without(command, "seconds")
    assert (twin["top1"], twin["pictures"]) == (84.0, 200)


def test_finetuning_runs_twice_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = {"epochs": 1, "warmup": 0, "batch_size": 500, "img_size": 32, "workers": 0, "auto_augment": "none"}
    options = {"model": "hivit_atto", "method": "finetune", "output": tmp_path / "out", "force": True}
    twin, command, printed = both(evaluate, capsys, data="digits", crop_scale=[0.5, 1], **options, **short)
    assert json.loads(printed.splitlines()[-1]) == command
    assert without(twin, "seconds") == without(command, "seconds")
    assert twin["settings"]["crop_scale"] == [0.5, 1.0]
    assert f"`{twin['command']}`" in (tmp_path / "out" / "README.md").read_text()


def test_extract_returns_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def options(name: str) -> dict[str, Any]:
        return {"images": CAT, "model": "hivit_atto", "output": tmp_path / name, "what": ["maps"], "levels": [1]}

    twin = extract.run(workers=0, **options("a"))
    assert capsys.readouterr().out == ""
    words = shlex.split(extract.VERB.options(workers=0, **options("b")).command("extract"))
    command = extract.main(words[3:])
    assert (twin, command) == (tmp_path / "a", tmp_path / "b")
    assert twin.read_bytes() == command.read_bytes()
    assert capsys.readouterr().out == f"wrote {command}: map1 [1, 48, 8, 8] in float32, from 1 of 1 files\n"


def test_reconstruct_returns_the_drawing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"images": [CAT], "model": "hivit_atto", "output": tmp_path / "out.png"}
    torch.manual_seed(0)
    drawn = reconstruct.run(**options).read_bytes()
    twin, command, printed = both(reconstruct, capsys, **options)
    assert twin == command == tmp_path / "out.png"
    assert command.read_bytes() == drawn
    assert printed.startswith(f"wrote {command}: loss ")


def test_features_returns_the_drawing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"images": [CAT], "model": "hivit_atto", "output": tmp_path / "out.html", "levels": 3}
    drawn = features.run(**options).read_bytes()
    twin, command, printed = both(features, capsys, **options)
    assert twin == command == tmp_path / "out.html"
    assert command.read_bytes() == drawn
    assert printed == f"wrote {command}: 1 image; maps of the first: hivit_atto [96, 2, 2]\n"


def test_benchmark_returns_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"models": ["hivit_atto"], "batch_size": 1, "rounds": 1, "warmup": 0, "device": "cpu", "threads": 1}
    twin, command, printed = both(benchmark, capsys, output=tmp_path / "out.json", **options)
    assert command == json.loads((tmp_path / "out.json").read_text())["rows"]
    clocked = ("seconds", "peak_mib", "images_per_second")
    assert [without(row, *clocked) for row in twin] == [without(row, *clocked) for row in command]
    assert (twin[0]["model"], twin[0]["parameters"]) == ("hivit_atto", 510_910)
    assert "| `hivit_atto` | inference |" in printed


def test_cards_returns_what_it_wrote(
    tmp_path: Path, checkout: Path, few_models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "MODEL_CARDS.md", tmp_path / "README.md", tmp_path / "weights" / "parameters.toml"]
    assert cards.run(root=tmp_path) == files
    assert capsys.readouterr().out == ""
    assert cards.run(root=tmp_path, check=True) == []
    files[0].unlink()
    assert cards.main(["--root", str(tmp_path)]) == files[:1]
    assert capsys.readouterr().out == f"wrote {files[0]}\n"


# ---- nothing is left behind


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_that_a_twin_sets_is_left(fails: bool, tmp_path: Path) -> None:
    """Random numbers go on as if nothing had happened; threads are as many as before; no group of processes is open."""

    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    def seed() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    threads = torch.get_num_threads()
    seed()
    expected = numbers()
    missing = {"data": "missing"} if fails else {"data": str(CAT.parents[1])}
    runs: list[Callable[[], Any]] = [
        lambda: evaluate.run(**missing, model="hivit_atto", method="classify", workers=0, seed=1),
        lambda: extract.run(
            images=tmp_path / "missing" if fails else CAT,
            model="hivit_atto",
            output=tmp_path / "out",
            force=True,
            workers=0,
            pretrained=False,
        ),
        lambda: benchmark.run(
            models="hivit_nano" if fails else "hivit_atto",
            rounds=1,
            warmup=0,
            batch_size=1,
            threads=threads + 1,
            device="cpu",
        ),
    ]
    for run in runs:
        seed()
        if fails:
            with pytest.raises(ValueError, match=r"missing|hivit_nano"):
                run()
        else:
            run()
        assert numbers() == expected
        assert torch.get_num_threads() == threads
        assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_several_processes_run_a_twin_twice(forked: Forks, tmp_path: Path) -> None:
    """Each run joins the others anew, and every process gets the result."""
    (tmp_path / "script.py").write_text(f"""
import torch
from hiermim_zoo import extract
for name in ("a", "b"):
    output = extract.run(images={str(CAT)!r}, model="hivit_atto", output=name, workers=0, device="cpu")
    assert output.name == name and not torch.distributed.is_initialized()
""")
    command = ("torch.distributed.run", "--nproc-per-node=2", "--standalone", "script.py")
    done = forked.command(*command, cwd=tmp_path, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
