"""What is wrong with options is said all at once, by name, value and a value that works, before anything starts."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hiermim_zoo import benchmark, evaluate, extract, pretrain, reconstruct, stats
from hiermim_zoo.commands.options import BadOptions, OptionSet, run_command
from hiermim_zoo.commands.options.evaluate import METHODS_OF, EvaluateOptions
from hiermim_zoo.commands.options.fields import flag_of, option_of
from hiermim_zoo.commands.options.pretrain import PretrainOptions
from hiermim_zoo.commands.options.problems import EXAMPLES, gathered, lines_of, names, together
from hiermim_zoo.data.batches import bad_allowed

REQUIRED: dict[type[Any], dict[str, Any]] = {
    PretrainOptions: {"data": "digits", "model": "hivit_atto", "output": "out"},
    EvaluateOptions: {"data": "digits", "model": "hivit_atto", "method": "finetune"},
}
NO_NUMBERS = ("nan", "inf", "-inf", "-1", "-0.5", "1e999")


def numeric(options: type[OptionSet]) -> dict[str, dataclasses.Field[Any]]:
    """The options whose values are numbers, told by what their kinds make of "1"."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        try:
            value = option_of(field).kind("1")
        except ValueError:
            try:
                value = option_of(field).kind("0.5")  # numbers below 1
            except ValueError:
                continue
        if isinstance(value, (int, float)):
            found[field.name] = field
    return found


@pytest.mark.parametrize(("options", "least"), [(PretrainOptions, 30), (EvaluateOptions, 30)])
def test_no_numeric_option_takes_what_is_no_number_or_below_zero(options: type[Any], least: int) -> None:
    fields = numeric(options)
    assert len(fields) >= least, sorted(fields)
    for name, field in fields.items():
        about = option_of(field)
        count = about.many if isinstance(about.many, int) else 1
        for bad in (*NO_NUMBERS, math.nan, -1):
            value = [bad] * count if about.many not in (None, "?") else bad
            with pytest.raises(BadOptions) as error:
                options(**REQUIRED[options], **{name: value})
            [line] = error.value.lines
            assert line.startswith(f"{flag_of(name, about)} {bad} is not "), line
            assert line.endswith(" would work"), line


@pytest.mark.parametrize("options", REQUIRED)
def test_the_values_that_are_said_to_work_do(options: type[Any]) -> None:
    """The negative control of the refusals above."""
    for name, field in numeric(options).items():
        about = option_of(field)
        example = EXAMPLES.get(name, about.kind.example)
        words = example.split() if about.many not in (None, "?") else example
        if isinstance(about.many, int):
            words = [*words, *words][: about.many]
        method = {"method": METHODS_OF[about.group][-1]} if about.group in METHODS_OF else {}
        options(**{**REQUIRED[options], name: words} | method)


def test_a_rate_is_said_once_and_is_a_number(tmp_path: Path) -> None:
    fine = REQUIRED[PretrainOptions] | {"output": tmp_path / "out"}
    for explain in (False, True):
        with pytest.raises(ValueError, match=r"^--blr beside --lr would be ignored.*: give one of them$"):
            pretrain.run(**fine, batch_size=64, device="cpu", blr=1e-4, lr=1e-3, explain=explain)
    with pytest.raises(ValueError, match=r"^--blr beside --lr would be ignored.*: give one of them$"):
        EvaluateOptions(**REQUIRED[EvaluateOptions], blr=1e-4, lr=1e-3)
    with pytest.raises(ValueError, match=r"^--blr 1e\+308 is no rate for a batch of 64; --blr 1.5e-4 would work$"):
        pretrain.run(**fine, batch_size=64, blr=1e308)
    with pytest.raises(ValueError, match=r"^--max-pixels 0 is not .*; 89478485 would work$"):
        PretrainOptions(**fine, max_pixels=0)
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_is_said_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    argv = ["digits", "--model", "hivit_huge", "--lr", "nan", "--betas", "0.9", "1", "--crop-scale", "1", "0.5"]
    argv += ["--opt", "best", "--warmup", "5", "--epochs", "2", "-o", str(tmp_path / "used"), "--device", "abacus"]
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: pretrain.main(argv))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    for words in (
        "--lr nan is not",
        "--betas 1 is not",
        "--crop-scale 1 0.5: the lower end",
        "--warmup 0.2 would work",
        "'hivit_huge' is unknown",
        "--opt 'best'",
        "holds no run",
        "device 'abacus'",
    ):
        assert sum(words in line for line in lines) == 1, words
    assert len(lines) == 8, lines
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["file"]


def test_what_only_the_model_tells_is_said_together(tmp_path: Path) -> None:
    """Here each option is right by itself."""
    options = {"data": "digits", "model": "hivit_atto", "output": tmp_path / "out", "workers": 0, "device": "cpu"}
    with pytest.raises(BadOptions) as error:
        pretrain.run(**options, img_size=40, batch_size=7, accumulate=3, opt="best", scale="odd")
    assert len(error.value.lines) == 4, error.value.lines  # batch, optimiser, scale, size
    with pytest.raises(BadOptions) as error:
        pretrain.run(**options, img_size=40, batch_size=7, accumulate=3)
    assert len(error.value.lines) == 2
    assert error.value.lines[0].endswith("--batch-size 6 would work")
    assert "48 x 48 is" in error.value.lines[1]
    assert not (tmp_path / "out").exists()


def test_a_line_that_cannot_be_parsed_hides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(lambda: evaluate.main(["digits", "--method", "knn", "--temperature", "inf", "--views", "1", "-k"]))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert "--views: expected 2" in lines[0] or "-k: expected" in lines[0] or "--views" in lines[0]
    assert "--temperature inf is not" in lines[1]


def test_an_option_that_is_wrong_by_itself_is_named_once() -> None:
    with pytest.raises(BadOptions) as error:
        pretrain.run(**REQUIRED[PretrainOptions], in_chans="x", mean=(0.5, 0.5), resume=None, export_only=True)
    assert [line.partition(" ")[0] for line in error.value.lines] == ["--in-chans", "--export-only"]


@pytest.mark.parametrize(
    ("verb", "given", "bad"),
    [
        (
            extract,
            {"images": ["."], "model": "hivit_atto", "output": "x"},
            {"workers": -1, "max_pixels": 0, "levels": [1]},
        ),
        (reconstruct, {"images": ["."], "model": "hivit_atto", "output": "x.png"}, {"mask_ratio": 2, "seed": -1}),
        (benchmark, {"models": ["hivit_atto"]}, {"rounds": 0, "suite": "nosuch"}),
        (stats, {"data": "."}, {"workers": -1, "most": 0}),
    ],
)
def test_other_commands_say_all_too(verb: Any, given: dict[str, Any], bad: dict[str, Any]) -> None:
    with pytest.raises(BadOptions) as error:
        verb.run(**given, **bad)
    assert len(error.value.lines) == len(bad)


def test_errors_are_gathered_and_single_ones_stay_themselves() -> None:
    def fails(word: str) -> Any:
        raise OSError(word)

    assert together(lambda: 1, lambda: "b") == [1, "b"]
    with pytest.raises(OSError, match=r"^a$"):
        together(lambda: fails("a"), lambda: 1)
    with pytest.raises(BadOptions) as error:
        together(lambda: fails("a\n b"), lambda: fails("c"), lambda: fails("c"))
    assert lines_of(error.value) == ("a b", "c")
    assert gathered(lambda: fails("a"), lambda: iter(["b", "c"]), lambda: None, lambda: {"no": "line"}) == [
        "a",
        "b",
        "c",
    ]
    with pytest.raises(TypeError):
        gathered(lambda: len(3))  # type: ignore[arg-type] # a defect of ours is none of the options


def test_a_line_names_an_option_as_a_whole_word() -> None:
    assert names("--lr 3 and -k 2", ["-k"])
    assert not names("--lr-end 3", ["--lr"])
    assert not names("--min-lr 3", ["--lr", "-k"])


@pytest.mark.parametrize(
    ("max_bad", "total", "allowed"),
    [(0, 40, 0), (0.01, 1, 1), (0.01, 99, 1), (0.01, 250, 2.5), (0.5, 10, 5), (1, 10, 1), (12, 10, 12)],
)
def test_max_bad_counts_images_or_is_a_share_of_them(max_bad: float, total: int, allowed: float) -> None:
    assert bad_allowed(max_bad, total) == allowed


STOPPED = """
import os, sys
sys.argv[0] = "hiermim"  # a command imports no torch before it needs it
from hiermim_zoo.commands.options import run_command
assert "torch" not in sys.modules
for number, main in enumerate((exit_at_once, many_lines, one_line)):
    child = os.fork()
    if child == 0:  # it ends as every process does: what is left is written then
        read, write = os.pipe()
        os.close(read)
        os.dup2(write if main is not one_line else os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(f"{sys.argv[1]}/{number}", os.O_CREAT | os.O_WRONLY), 2)
        run_command(main)
        break
    _, status = os.waitpid(child, 0)
    open(f"{sys.argv[1]}/codes", "a").write(f"{os.waitstatus_to_exitcode(status)} ")
"""


@pytest.mark.slow
def test_who_reads_the_output_may_stop_reading(tmp_path: Path) -> None:
    mains = "exit_at_once = lambda: exit(print())  # as --help ends\n"
    mains += "many_lines = lambda: [print(n) for n in range(99999)]\none_line = lambda: print(1)"
    command = [sys.executable, "-c", mains + STOPPED, str(tmp_path)]
    subprocess.run(command, stdout=subprocess.PIPE, check=True)  # from its start the output is a pipe
    assert (tmp_path / "codes").read_text().split() == ["141", "141", "0"]  # the last one is the negative control
    assert [(tmp_path / str(number)).read_text() for number in range(3)] == ["", "", ""]
