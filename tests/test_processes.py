"""Runs of several processes: what they save together, and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import pickle
import queue
import re
import shlex
import shutil
import socket
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from hiermim_zoo import pretrain
from hiermim_zoo.checkpoints.files import sha256_of
from hiermim_zoo.mae import create_mae
from hiermim_zoo.training import snapshot_shards, snapshots, watch
from hiermim_zoo.training.autoencoder import freeze_unreached
from hiermim_zoo.training.distributed import processes
from hiermim_zoo.training.optimizer import make_optimizer
from hiermim_zoo.training.watch import Watch

from .forks import COMMAND, ROOT, Forks

PICTURES = ROOT / "examples" / "pictures"
SMALL = shlex.split(
    "--model hivit_atto --model-kwargs 'depths=(1, 0, 1)' --img-size 32 --decoder-depth 1 --decoder-dim 32 "
    "--decoder-heads 2 --batch-size 12 --epochs 1 --warmup 0 --workers 0 --device cpu --look-every 0 --lr 1e-2 "
    "--save-steps 1 --steps 3"
)


def saved(output: Path) -> list[Path]:
    return snapshots.found(output / "checkpoints")


def weights(output: Path) -> dict[str, Tensor]:
    return snapshots.weights_of(saved(output)[-1])


def errors(said: str) -> list[str]:
    """The lines that are no part of a warning."""
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("error")]


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def train(forked: Forks) -> Callable[..., str]:
    """Runs the command in several processes; what it says."""

    def run(output: Path, *argv: object, processes: int = 2, code: int = 0, before: str = "", **env: str) -> str:
        words = ("hiermim_zoo.pretrain", "digits", *SMALL, "-o", output, *argv)
        done = forked.run(f"{before}\n{COMMAND}", *words, processes=processes, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    return run


# ---- snapshots of a model that is spread over processes


@pytest.fixture(scope="module")
def whole(train: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps; what the model draws at random counts."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(output, "--fsdp", "--drop-path", "0.2")
    return output


@pytest.fixture(scope="module")
def half(train: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of three steps."""
    output = tmp_path_factory.mktemp("runs") / "half"
    train(output, "--fsdp", "--stop-after", "2")
    return output


@pytest.fixture
def copied(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "copied"))


def all_tensors(snapshot: Path) -> dict[str, Tensor]:
    """Of model and optimiser."""
    found = snapshot_shards.TensorReader(snapshot).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in found.items()}
    snapshot_shards.read_tensors(snapshot, tensors)
    return tensors


@pytest.mark.slow
def test_a_spread_run_goes_on_bit_for_bit(train: Callable[..., str], whole: Path, tmp_path: Path) -> None:
    train(tmp_path, "--fsdp", "--drop-path", "0.2", "--stop-after", "2", "--save-steps", "2")
    assert [path.is_dir() for path in saved(tmp_path)] == [True]
    started = all_tensors(saved(tmp_path)[-1])
    train(tmp_path, "--fsdp", "--drop-path", "0.2", "--resume", "auto")
    ended = all_tensors(saved(tmp_path)[-1])
    assert difference(ended, all_tensors(saved(whole)[-1])) == 0
    assert difference(started, ended) > 1e-3
    for file in ("model.safetensors", "decoder.safetensors"):
        assert (tmp_path / "encoder" / file).read_bytes() == (whole / "encoder" / file).read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_the_encoder_of_a_spread_run_is_the_trained_one(whole: Path) -> None:
    trained, exported = weights(whole), load_file(whole / "encoder" / "model.safetensors")
    assert exported.keys() == {name.removeprefix("encoder.") for name in trained if name.startswith("encoder.")}
    assert all(torch.equal(tensor, trained[f"encoder.{name}"]) for name, tensor in exported.items())


LINEAR = ("--opt", "momentum", "--lr", "0.1")  # rounding stays rounding


@pytest.mark.slow
def test_a_spread_run_goes_on_with_any_number_of_processes(train: Callable[..., str], tmp_path: Path) -> None:
    train(tmp_path / "half", *LINEAR, "--fsdp", "--stop-after", "2", "--save-steps", "2")
    pretrain.main(["digits", *SMALL, *LINEAR, "-o", str(tmp_path / "never")])
    for number, more in ((1, ()), (3, ("--fsdp",))):
        output = Path(shutil.copytree(tmp_path / "half", tmp_path / f"{number}"))
        train(output, *LINEAR, *more, "--resume", "auto", processes=number)
        assert saved(output)[-1].is_dir() == bool(more)
        assert [snapshots.step_of(path) for path in saved(output)] == [2, 3]
        assert difference(weights(output), weights(tmp_path / "never")) < 1e-6
    assert difference(weights(tmp_path / "never"), weights(tmp_path / "half")) > 1e-3


def test_one_process_finds_all_moments_of_a_spread_run(half: Path) -> None:
    mae = create_mae("hivit_atto", img_size=32, depths=(1, 0, 1), recipe={"depth": 1, "dim": 32, "heads": 2})
    freeze_unreached(mae)
    optimizer = make_optimizer(mae, "adamw", 0.05, (0.9, 0.95))
    last = saved(half)[-1]
    snapshots.restore(mae, optimizer, last, snapshots.load(last))
    found, written = snapshots.learned(mae, optimizer), all_tensors(last)
    moments = {f"{name}/{key}": t for name, state in found["optimizer"]["state"].items() for key, t in state.items()}
    for of, tensors in (("model/", found["model"]), ("optimizer/", moments)):
        named = {name.removeprefix(of): tensor for name, tensor in written.items() if name.startswith(of)}
        assert difference(tensors, named) == 0
    assert {tensor.item() for name, tensor in moments.items() if name.endswith("/step")} == {2}


@pytest.mark.slow
def test_a_spread_run_goes_on_from_a_single_file(train: Callable[..., str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    pretrain.main(["digits", *SMALL, *LINEAR, "-o", str(one), "--stop-after", "2", "--save-steps", "2"])
    shutil.copytree(one, two)
    pretrain.main(["digits", *SMALL, *LINEAR, "-o", str(one), "--resume", "auto"])
    train(two, *LINEAR, "--fsdp", "--max-snapshots", "2", "--resume", "auto")
    assert [path.is_dir() for path in saved(two)] == [False, True]
    assert difference(weights(two), weights(one)) < 1e-6


@pytest.mark.slow
def test_only_the_last_folders_stay_and_later_ones_are_set_aside(train: Callable[..., str], copied: Path) -> None:
    first, second = saved(copied)
    (copied / "checkpoints" / "step-00000002.part").mkdir()  # of a run that was killed while it wrote
    (copied / "checkpoints" / "step-00000002.part" / "__7_0.distcp").touch()
    train(copied, "--fsdp", "--resume", first, "--max-snapshots", "1")
    left = sorted(path.name for path in (copied / "checkpoints").iterdir())
    assert left == sorted([saved(copied)[0].name, f"{second.name}.abandoned"])
    assert snapshots.step_of(saved(copied)[0]) == 3
    assert not list(saved(copied)[0].glob("__7*"))


@pytest.mark.parametrize("file", ["run.pt", "__1_0.distcp", "complete.json", ".metadata"])
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_damaged_folder_is_named_and_the_one_before_offered(copied: Path, file: str, how: str) -> None:
    before, last = saved(copied)
    assert snapshots.load(last)["step"] == 2  # negative control
    content = bytearray((last / file).read_bytes())
    content[len(content) // 2] ^= 1
    (last / file).unlink()
    if how == "flipped":
        (last / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{last.name} is damaged: .*{file}.*--resume .*{before.name}"):
        snapshots.load(last)


def test_a_folder_that_is_no_snapshot_is_refused(copied: Path) -> None:
    with pytest.raises(ValueError, match="copied is no snapshot: those of a run are in its folder checkpoints"):
        pretrain.main(["digits", *SMALL, "-o", str(copied / "other"), "--resume", str(copied)])


class Evil:
    """Pickled, it is a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def signed(snapshot: Path) -> Path:
    """A folder whose sums are those of its files, as somebody with bad intentions would make it."""
    complete = snapshot / "complete.json"
    sums = {name: sha256_of(snapshot / name) for name in json.loads(complete.read_text())}
    complete.write_text(json.dumps(sums))
    return snapshot.rename(snapshot.with_name(f"step-00000002-{sha256_of(complete)[:16]}"))


@pytest.mark.parametrize("how", ["system", "builtin", "bytes"])
def test_what_a_pickle_would_run_is_refused(copied: Path, tmp_path: Path, how: str) -> None:
    *_, last = saved(copied)
    trap = tmp_path / "trap"
    known = snapshot_shards.TensorReader(last).read_metadata()
    call = {"system": (os.system, f"touch {trap}"), "builtin": (exec, f"open({str(trap)!r}, 'w').close()")}
    if how == "bytes":  # torch unpickles those that say they are no tensor
        known.state_dict_metadata["model/mask_token"] = BytesStorageMetadata()
    else:
        known.planner_data = Evil(*call[how])
    (last / ".metadata").write_bytes(pickle.dumps(known))
    last = signed(last)
    with pytest.raises(ValueError, match=r"\.metadata is refused: it asks for .*, which no snapshot needs"):
        pretrain.main(["digits", *SMALL, "-o", str(copied), "--resume", "auto"])
    assert not trap.exists()
    pickle.loads((last / ".metadata").read_bytes())  # negative control: it is a trap
    assert trap.exists() == (how != "bytes")


def test_getattr_gives_members_of_enumerations_alone() -> None:
    """Python 3.11.0 to 3.11.3 asks for them so."""
    kind = metadata._MEM_FORMAT_ENCODING
    assert all(snapshot_shards.member_of(kind, member.name) is member for member in kind)
    for other, name in ((torch.Size, "__subclasses__"), (kind, "__class__"), (kind, "mro"), ("text", "upper")):
        assert hasattr(other, name)  # negative control
        with pytest.raises(ValueError, match=f"asks for '{name}' of .*, which no snapshot needs"):
            snapshot_shards.member_of(other, name)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (".metadata", pickle.dumps([1, 2]), "metadata is refused: it describes no tensors"),
        (".metadata", b"no pickle", "metadata is refused"),
        ("run.pt", pickle.dumps({"options": 1}, protocol=2), "cannot be read|is no snapshot"),
        ("complete.json", b"{}", "its complete.json does not name all files"),
        ("complete.json", b"[5]", "its complete.json does not name all files"),
    ],
)
def test_what_is_signed_and_is_no_snapshot_is_refused(copied: Path, file: str, content: bytes, words: str) -> None:
    *_, last = saved(copied)
    (last / file).write_bytes(content)
    if file == "complete.json":
        last = last.rename(last.with_name(f"step-00000002-{sha256_of(last / file)[:16]}"))
    else:
        last = signed(last)
    with pytest.raises(ValueError, match=words):
        pretrain.main(["digits", *SMALL, "-o", str(copied), "--resume", "auto"])


@pytest.mark.parametrize("spread", [True, False])
def test_what_another_kind_of_run_left_half_written_is_no_obstacle(
    train: Callable[..., str], copied: Path, spread: bool
) -> None:
    left = copied / "checkpoints" / "step-00000003.part"
    left.touch() if spread else left.mkdir()
    how = {"processes": 2} if spread else {"processes": 1}
    train(copied, *(["--fsdp"] if spread else []), "--resume", "auto", **how)
    assert [(snapshots.step_of(path), path.is_dir()) for path in saved(copied)][-1] == (3, spread)
    assert not left.exists()


def test_folders_of_the_user_stay(copied: Path) -> None:
    folder = copied / "checkpoints"
    first, last = saved(copied)
    own = [
        f"{last.name}-keep",
        f"{last.name}.copy",
        "step-3-precious",
        "step-x-y",
        "step--1-abc",
        "mine.part",
        "step-1.part",
    ]
    for name in own:
        (folder / name).mkdir()
    assert saved(copied) == [first, last]
    snapshots.tidy(folder, last, 1)
    assert {path.name for path in folder.iterdir()} == {last.name, *own}
    snapshots.set_aside(folder, 0)
    assert {path.name for path in folder.iterdir()} == {f"{last.name}.abandoned", *own}


def test_the_same_snapshot_is_set_aside_again_and_again(copied: Path) -> None:
    *_, last = saved(copied)
    for _ in range(3):
        shutil.copytree(saved(copied)[0], folder := last.parent / last.name, dirs_exist_ok=True)
        snapshots.set_aside(copied / "checkpoints", 1)
        assert not folder.exists()
    assert len(list((copied / "checkpoints").glob("*.abandoned*"))) == 3


def test_a_single_file_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: Any, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("unexpected pos 64 vs 4")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match="snapshot of step 1 cannot be written: the disk may be full"):
        pretrain.main(["digits", *SMALL, "-o", str(tmp_path / "out")])
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_a_snapshot_that_cannot_be_written_is_one_line(train: Callable[..., str], copied: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    said = train(copied, "--fsdp", "--resume", "auto", code=2, before=full)
    wrong = "error: the snapshot of step 3 cannot be written: [Errno 27] File too large"
    assert errors(said) == [wrong, wrong]  # of either process
    assert [snapshots.step_of(path) for path in saved(copied)] == [1, 2]
    assert not list(copied.rglob("*.part"))


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
    train: Callable[..., str], whole: Path, tmp_path: Path, spread: tuple[str, ...]
) -> None:
    argv = ("--drop-path", "0.2", *spread)
    said = train(tmp_path / "out", *argv, code=-9, before=fails_at("os.kill(os.getpid(), signal.SIGKILL)"))
    assert errors(said) == ["error: another process of this run failed; go on with --resume auto"]
    train(tmp_path / "out", *argv, "--resume", "auto")
    if not spread:
        whole = tmp_path / "whole"
        train(whole, *argv)
    assert difference(weights(tmp_path / "out"), weights(whole)) == 0


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
    assert difference(weights(tmp_path / "out"), weights(tmp_path / "whole")) == 0


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
    assert difference(weights(tmp_path / "two"), weights(tmp_path / "one")) < 1e-6
    first, last = saved(tmp_path / "two")
    assert difference(snapshots.weights_of(first), snapshots.weights_of(last)) > 1e-3
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
