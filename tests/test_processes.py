"""Runs of several processes: what happens when one of them dies, and how they meet."""

from __future__ import annotations

import queue
import re
import shlex
import socket
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hiermim_zoo import pretrain
from hiermim_zoo.training import snapshots, watch
from hiermim_zoo.training.distributed import processes
from hiermim_zoo.training.watch import Watch

from .forks import COMMAND, ROOT, Forks
from .runs import largest_difference, weights
from .several import LINEAR, SMALL, errors, saved, several

PICTURES = ROOT / "examples" / "pictures"


@pytest.fixture(scope="module")
def train(forked: Forks) -> Callable[..., str]:
    return several(forked)


# ---- processes that die


def fails_at(third: str) -> str:
    """Code: process 1 does something in the backward pass of its third step."""
    return f"""
import os, signal
from hiermim_zoo.training.pretraining import Run
backward, calls = Run.backward, []
def failing(run, more):
    calls.append(more)
    if run.world.rank == 1 and len(calls) == 3:
        {third}
    return backward(run, more)
Run.backward = failing
"""


@pytest.mark.slow
@pytest.mark.parametrize("spread", [(), ("--fsdp",)])
def test_a_process_that_is_killed_ends_the_run_in_one_line(
    train: Callable[..., str], tmp_path: Path, spread: tuple[str, ...]
) -> None:
    argv = ("--drop-path", "0.2", *spread)
    said = train(tmp_path / "out", *argv, code=-9, before=fails_at("os.kill(os.getpid(), signal.SIGKILL)"))
    assert errors(said) == ["error: another process of this run failed; go on with --resume auto"]
    train(tmp_path / "out", *argv, "--resume", "auto")
    train(tmp_path / "whole", *argv)
    assert largest_difference(weights(tmp_path / "out"), weights(tmp_path / "whole")) == 0


@pytest.mark.slow
def test_a_silent_process_ends_the_run_in_one_line(train: Callable[..., str], tmp_path: Path) -> None:
    before = fails_at("os.kill(os.getpid(), signal.SIGSTOP)")
    said = train(tmp_path, code=2, before=before, HIERMIM_PATIENCE="4")
    silent = "error: process 1 of this run has not been heard of for 4 s: ended; go on with --resume auto"
    assert errors(said)[0] == silent
    assert [snapshots.step_of(path) for path in saved(tmp_path)] == [1, 2]


def test_an_error_in_one_process_ends_the_others(train: Callable[..., str], tmp_path: Path) -> None:
    said = train(tmp_path, code=2, before=fails_at("raise ValueError('the disk is full')"))
    one, other = sorted(errors(said), key=lambda line: "disk" in line)
    assert other == "error: the disk is full"
    assert one.startswith("error: ")
    assert "of this run failed" in one


def test_a_process_that_fails_before_all_have_met_ends_the_others(train: Callable[..., str], tmp_path: Path) -> None:
    """As a broken GPU on one of several machines does."""
    before = "import os, sys; sys.argv += ['--device', 'abacus'] if os.environ['RANK'] == '1' else []"
    before += "; import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"  # as if it were on another machine
    said = errors(train(tmp_path, code=2, before=before))
    assert any("device 'abacus' cannot be used" in line for line in said)
    assert any("process 1 of this run failed: ended; go on with --resume auto" in line for line in said)


class Room:
    """A store as that of torch, for threads."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.gone, self.lock = False, threading.Lock()

    def add(self, key: str, more: int) -> int:
        with self.lock:
            if self.gone:
                raise RuntimeError("Connection reset by peer")
            self.values[key] = self.values.get(key, 0) + more
            return int(self.values[key])

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return bytes(self.values[key])


class Watched:
    """Some watches in one room, and the lines that they would end their processes with."""

    def __init__(self, size: int) -> None:
        self.room, self.lines = Room(), queue.Queue[str]()
        self.all = [Watch(self.room, rank, size, "start it again", 1.0, self.lines.put) for rank in range(size)]

    def line(self) -> str:
        return self.lines.get(timeout=60)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(watch, "GRACE", 0.5)
    watched = Watched(3)
    yield watched
    for one in watched.all:
        one.stop()


def test_processes_that_are_all_well_are_left_alone(three: Watched) -> None:
    """Those that are ready first wait for the others; nobody is missed."""
    leaving = [threading.Thread(target=one.leave) for one in three.all]
    for thread in leaving[:2]:
        thread.start()
    leaving[0].join(2)  # longer than the patience of all
    assert leaving[0].is_alive()
    leaving[2].start()
    for thread in leaving:
        thread.join(60)
    assert not any(thread.is_alive() for thread in [*leaving, *(t for one in three.all for t in one.threads)])
    assert three.lines.empty()


def test_whoever_falls_silent_is_named_by_all(three: Watched) -> None:
    three.all[1].stop()
    said = "process 1 of this run has not been heard of for 1 s: ended; start it again"
    assert [three.line(), three.line()] == [said, said]


def test_whoever_fails_is_named_by_the_others(three: Watched) -> None:
    three.all[2].fail()
    assert {three.line(), three.line()} == {"process 2 of this run failed: ended; start it again"}


def test_a_run_ends_where_the_store_is_gone(three: Watched) -> None:
    three.room.gone = True
    assert "the process where this run met is gone" in three.line()


def test_patience_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch.patience() == 45
    for said, seconds in (("0", 0), ("2.5", 2.5)):
        monkeypatch.setenv("HIERMIM_PATIENCE", said)
        assert watch.patience() == seconds
    for said in ("-1", "long", "inf", "nan", "0.5"):
        monkeypatch.setenv("HIERMIM_PATIENCE", said)
        with pytest.raises(ValueError, match=f"HIERMIM_PATIENCE={said}"):
            watch.patience()


# ---- processes that read


KILL = """
import glob, os, signal, time
from hiermim_zoo.training import pretraining
from hiermim_zoo.data.source import Source
def kill_readers():
    for file in glob.glob(f"/proc/{os.getpid()}/task/*/children"):
        for child in open(file).read().split():
            os.kill(int(child), signal.SIGKILL)
    time.sleep(0.5)  # the signal arrives here, and must not be heeded here
"""
AMID = """
make = pretraining.make_optimizer
def making(*args, **kwargs):
    optimizer, steps = make(*args, **kwargs), []
    step = optimizer.step
    def killing(*args, **kwargs):
        steps.append(1)
        if len(steps) == 2:
            kill_readers()
        return step(*args, **kwargs)
    optimizer.step = killing
    return optimizer
pretraining.make_optimizer = making
"""


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_reader_that_is_killed_ends_the_run_saved(train: Callable[..., str], tmp_path: Path, accumulate: int) -> None:
    """Even amid an update of the weights."""
    argv = ("--drop-path", "0.2", "--workers", "2", "--save-steps", "9", "--steps", "20", "--accumulate", accumulate)
    said = train(tmp_path / "out", *argv, processes=1, code=2, before=KILL + AMID)
    (error,) = errors(said)
    found = re.fullmatch(
        r"error: a process that reads images was killed by a signal \(Killed\), often because memory ran out, of which "
        r"fewer --workers need less; saved after step (\d+): go on with --resume auto",
        error,
    )
    assert found, said
    assert [snapshots.step_of(path) for path in saved(tmp_path / "out")] == [int(found[1])]
    assert 2 <= int(found[1]) < 20
    train(tmp_path / "out", *argv, "--resume", "auto", processes=1)
    train(tmp_path / "whole", *argv, processes=1)
    assert largest_difference(weights(tmp_path / "out"), weights(tmp_path / "whole")) == 0


def test_a_reader_of_one_of_several_processes(train: Callable[..., str], tmp_path: Path) -> None:
    argv = ("--workers", "1", "--steps", "20", "--save-steps", "1")
    before = "import os\nif os.environ['RANK'] == '1':\n" + textwrap.indent(KILL + AMID, "    ")
    said = train(tmp_path, *argv, code=2, before=before)
    one, other = sorted(errors(said), key=lambda line: "reads images" in line)
    assert other.endswith("go on with --resume auto, from the last snapshot")
    assert "of this run failed" in one
    assert snapshots.load(saved(tmp_path)[-1])["step"] < 20


AT_FIRST = """
import importlib
place = importlib.import_module("hiermim_zoo.{module}")
function = place.{name}
def killing(*args, **kwargs):
    kill_readers()
    return function(*args, **kwargs)
place.{name} = killing
"""


@pytest.mark.parametrize(
    ("module", "name", "argv"),
    [
        ("training.probe", "_mean_over_views", f"evaluate {PICTURES} --method classify --batch-size 16"),
        ("commands.extracting", "features", f"extract {PICTURES} -o out --batch-size 2"),
    ],
)
def test_readers_of_other_commands(forked: Forks, tmp_path: Path, module: str, name: str, argv: str) -> None:
    verb, *words = argv.split()
    code = KILL + AT_FIRST.format(module=module, name=name) + COMMAND
    words = [f"hiermim_zoo.{verb}", *words, "--model", "hivit_atto", "--workers", "1", "--device", "cpu"]
    done = forked.run(code, *words, cwd=tmp_path)
    assert done.returncode == 2
    (error,) = errors(done.stderr)
    assert "a process that reads images was killed by a signal (Killed)" in error
    assert not list(tmp_path.glob("out*"))


# ---- several machines


@pytest.mark.slow
def test_two_torchruns_are_one_run(forked: Forks, tmp_path: Path) -> None:
    """As on two machines that reach each other."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    start = f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint {meeting} --local-addr 127.0.0.1"
    argv = [*SMALL, *LINEAR, "--steps", "2"]
    run = ["-m", "hiermim_zoo.pretrain", "digits", *argv, "-o", str(tmp_path / "two")]
    pretrain.main(["digits", *argv, "-o", str(tmp_path / "one")])
    machines = forked.command(
        "torch.distributed.run", *start.split(), *run, processes=2, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"
    )
    assert machines.returncode == 0, machines.stderr
    assert largest_difference(weights(tmp_path / "two"), weights(tmp_path / "one")) < 1e-6
    first, last = saved(tmp_path / "two")
    assert largest_difference(snapshots.weights_of(first), snapshots.weights_of(last)) > 1e-3
    assert (tmp_path / "two" / "encoder" / "model.safetensors").is_file()


SLURM = ROOT / "examples" / "slurm.sh"


def test_the_script_for_slurm_is_one_that_bash_reads() -> None:
    assert subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True, check=False).stderr == ""


def test_the_options_in_the_script_for_slurm_exist(tmp_path: Path) -> None:
    """The command line between -m hiermim_zoo.pretrain and the & behind it."""
    (line,) = re.findall(
        r"-m hiermim_zoo\.pretrain (\"\$data\".*) &$", SLURM.read_text().replace("\\\n", ""), re.MULTILINE
    )
    options = pretrain.VERB.parse(shlex.split(line))
    assert (options.data, str(options.output), options.resume, options.fsdp) == ("$data", "$run", "auto", True)
    with pytest.raises(ValueError, match="--colour"):  # negative control
        pretrain.VERB.parse([*shlex.split(line), "--colour"])


@pytest.mark.parametrize(
    ("slurm", "told"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, True),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, False),  # the first says it for all
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2(x3)", "SLURM_PROCID": "0"}, False),  # a warning must not stop a run
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),  # a batch script that is one task
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "WORLD_SIZE": "1"}, False),  # torchrun
    ],
)
def test_srun_without_torchrun_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slurm: dict[str, str], told: bool
) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_PROCID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    with processes("cpu"):
        pass
    said = capsys.readouterr().err.splitlines()
    assert len(said) == told
    assert all("srun started 4 tasks without torchrun" in line and "slurm.sh" in line for line in said)
