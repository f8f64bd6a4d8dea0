"""A run that was stopped, killed or damaged goes on bit for bit, or says why it does not."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hiermim_zoo.training import pretraining, snapshots
from hiermim_zoo.training.run_log import read_log

from .forks import Forks
from .runs import SMALL, largest_difference, train, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_six_steps_are_three_and_three_more_bit_for_bit(tmp_path: Path) -> None:
    argv = shlex.split("--steps 6 --lr 1e-2 --drop-path 0.2 --log-steps 1")  # drop path: random numbers of the model
    whole = train(tmp_path / "whole", *argv)
    train(tmp_path / "parts", *argv, "--stop-after", "3")
    assert not (tmp_path / "parts" / "encoder").exists()
    parts = train(tmp_path / "parts", *argv, "--resume", "auto", "--workers", "1")
    assert largest_difference(whole, parts) == 0
    states = [
        snapshots.load(snapshots.found(tmp_path / run / "checkpoints")[-1])["optimizer"]["state"]
        for run in ("whole", "parts")
    ]
    for name, state in states[0].items():
        assert all(torch.equal(value, states[1][name][key]) for key, value in state.items())
    assert [note["step"] for note in read_log(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]


def test_the_seed_decides(tmp_path: Path) -> None:
    first, again, other = (
        train(tmp_path / name, "--steps", "3", "--lr", "1e-2", "--seed", seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert largest_difference(first, again) == 0
    assert largest_difference(first, other) > 1e-3


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    argv = ("--steps", "2", "--opt", "momentum", "--lr", "0.1")
    whole, parts = train(tmp_path / "a", *argv), train(tmp_path / "b", *argv, "--accumulate", "4")
    assert 0 < largest_difference(whole, parts) < 1e-6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_code(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole", "--steps", "6")
    agree, steps = pretraining.agree_on_step, []
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def signalled(*args: Any) -> tuple[float, bool, int]:
        steps.append(len(steps) + 1)
        if len(steps) == 2:
            os.kill(os.getpid(), number)
        return agree(*args)

    monkeypatch.setattr(pretraining, "agree_on_step", signalled)
    with pytest.raises(pretraining.Stopped) as left:
        train(tmp_path / "out", "--steps", "6")
    assert left.value.code == 128 + number
    assert left.value.snapshot == snapshots.found(tmp_path / "out" / "checkpoints")[-1]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert f"stopped by {number.name} after step" in capsys.readouterr().err
    assert not (tmp_path / "out" / "encoder").exists()
    saved = snapshots.step_of(snapshots.found(tmp_path / "out" / "checkpoints")[-1])
    assert saved == len(steps) < 6
    assert largest_difference(train(tmp_path / "out", "--steps", "6", "--resume", "auto"), whole) == 0


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from hiermim_zoo import pretrain
from hiermim_zoo.commands.options import run_command
output, kills, *argv = sys.argv[1:]
log, chance, killed = Path(output, "log.jsonl"), random.Random(0), 0

def lines():
    return log.read_bytes().count(b"\\n") if log.exists() else 0

while True:
    known, child = lines(), os.fork()
    if child == 0:
        try:
            run_command(lambda: pretrain.main([*argv, "-o", output, "--resume", "auto"]))
        except SystemExit as error:
            os._exit(error.code)
        os._exit(0)
    if killed < int(kills):
        if killed % 4:  # else it may not even have begun
            more = chance.randint(1, 4)
            while lines() < known + more and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02 if killed % 4 else 0.3))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
    else:
        print(killed, os.waitstatus_to_exitcode(status))
        break
"""


@pytest.mark.slow
def test_twenty_deaths_at_any_moment_leave_no_trace(forked: Forks, tmp_path: Path) -> None:
    argv = shlex.split("--batch-size 48 --epochs 4 --steps 120 --save-steps 2 --log-steps 1 --lr 1e-3")
    train(tmp_path / "whole", *argv)
    killer = forked.run(KILLER, tmp_path / "out", 20, "digits", *SMALL, *argv)
    assert killer.stdout.split()[-2:] == ["20", "0"], killer.stdout + killer.stderr
    assert largest_difference(weights(tmp_path / "out"), weights(tmp_path / "whole")) == 0
    assert (tmp_path / "out" / "encoder" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "encoder" / "model.safetensors"
    ).read_bytes()
    assert [note["step"] for note in read_log(tmp_path / "out") if "loss" in note] == list(range(1, 121))
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(tmp_path: Path) -> None:
    output, argv = tmp_path / "out", ("--steps", "3", "--save-steps", "1")
    whole = train(output, *argv)
    *_, before, last = snapshots.found(output / "checkpoints")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.raises(ValueError, match=f"{last.name} is damaged.*--resume .*{before.name}"):
        train(output, *argv, "--resume", "auto")
    assert largest_difference(train(output, *argv, "--resume", before), whole) == 0
    assert [path.name for path in output.glob("checkpoints/*.abandoned")] == [last.with_suffix(".abandoned").name]


def test_a_truncated_checkpoint_is_damaged(tmp_path: Path) -> None:
    train(tmp_path / "out", "--steps", "1")
    (only,) = snapshots.found(tmp_path / "out" / "checkpoints")
    only.write_bytes(only.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"is damaged.*there is none before it"):
        train(tmp_path / "out", "--steps", "1", "--resume", "auto")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--steps", "3"), "holds another run"),
        (("--steps", "3", "--resume", "auto", "--seed", "9"), "--seed is 9, but the run of .* was started with 0"),
        (("--steps", "4", "--resume", "auto"), "--steps is 4"),
        (("--steps", "3", "--resume", "auto", "--decoder-depth", "2"), "--decoder-depth is 2"),
        (("--steps", "3", "--resume", "auto", "--model", "vit_tiny_patch16_224"), "--model is vit_tiny_patch16_224"),
        (("--steps", "3", "--resume", "missing.pt"), "missing.pt does not exist"),
    ],
)
def test_another_run_does_not_go_on_here(finished_short: Path, argv: tuple[str, ...], words: str) -> None:
    before = sorted(finished_short.rglob("*"))
    with pytest.raises(ValueError, match=words):
        train(finished_short, *argv)
    assert sorted(finished_short.rglob("*")) == before


@pytest.fixture(scope="module")
def finished_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "short"
    train(output, "--steps", "3")
    return output


def test_export_on_demand(tmp_path: Path) -> None:
    train(tmp_path / "out", "--steps", "4", "--stop-after", "2")
    assert not (tmp_path / "out" / "encoder").exists()
    trained = train(tmp_path / "out", "--steps", "4", "--resume", "auto", "--export-only")
    exported = load_file(tmp_path / "out" / "encoder" / "model.safetensors")
    assert all(torch.equal(tensor, trained[f"encoder.{name}"]) for name, tensor in exported.items())
    assert [snapshots.step_of(path) for path in snapshots.found(tmp_path / "out" / "checkpoints")] == [2]
