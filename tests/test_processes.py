"""Runs of several processes: what they save together, and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from hiermim_zoo import pretrain
from hiermim_zoo.checkpoints.files import sha256_of
from hiermim_zoo.mae import create_mae
from hiermim_zoo.training import snapshot_shards, snapshots
from hiermim_zoo.training.autoencoder import freeze_unreached
from hiermim_zoo.training.optimizer import make_optimizer

from .forks import COMMAND, Forks

SMALL = shlex.split(
    "--model hivit_atto --img-size 32 --decoder-depth 1 --decoder-dim 32 --decoder-heads 2 --batch-size 12 --epochs 1 "
    "--warmup 0 --workers 0 --device cpu --look-every 0 --lr 1e-2 --save-steps 1 --steps 3"
)


def saved(output: Path) -> list[Path]:
    return snapshots.found(output / "checkpoints")


def weights(output: Path) -> dict[str, Tensor]:
    return snapshots.weights_of(saved(output)[-1])


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


@pytest.fixture()
def copied(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "copied"))


def all_tensors(snapshot: Path) -> dict[str, Tensor]:
    """Of model and optimiser."""
    found = snapshot_shards.TensorReader(snapshot).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in found.items()}
    snapshot_shards.read_tensors(snapshot, tensors)
    return tensors


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


def test_a_spread_run_goes_on_with_any_number_of_processes(train: Callable[..., str], tmp_path: Path) -> None:
    train(tmp_path / "half", *LINEAR, "--fsdp", "--stop-after", "2", "--save-steps", "2")
    pretrain.main(["digits", *SMALL, *LINEAR, "-o", str(tmp_path / "never")])
    for processes, more in ((1, ()), (3, ("--fsdp",))):
        output = Path(shutil.copytree(tmp_path / "half", tmp_path / f"{processes}"))
        train(output, *LINEAR, *more, "--resume", "auto", processes=processes)
        assert saved(output)[-1].is_dir() == bool(more)
        assert [snapshots.step_of(path) for path in saved(output)] == [2, 3]
        assert difference(weights(output), weights(tmp_path / "never")) < 1e-6
    assert difference(weights(tmp_path / "never"), weights(tmp_path / "half")) > 1e-3


def test_one_process_finds_all_moments_of_a_spread_run(half: Path) -> None:
    mae = create_mae("hivit_atto", img_size=32, recipe={"depth": 1, "dim": 32, "heads": 2})
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


def test_a_spread_run_goes_on_from_a_single_file(train: Callable[..., str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    pretrain.main(["digits", *SMALL, *LINEAR, "-o", str(one), "--stop-after", "2", "--save-steps", "2"])
    shutil.copytree(one, two)
    pretrain.main(["digits", *SMALL, *LINEAR, "-o", str(one), "--resume", "auto"])
    train(two, *LINEAR, "--fsdp", "--max-snapshots", "2", "--resume", "auto")
    assert [path.is_dir() for path in saved(two)] == [False, True]
    assert difference(weights(two), weights(one)) < 1e-6


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


def test_a_snapshot_that_cannot_be_written_is_one_line(train: Callable[..., str], copied: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    said = train(copied, "--fsdp", "--resume", "auto", code=2, before=full)
    wrong = "error: the snapshot of step 3 cannot be written: [Errno 27] File too large"
    assert [line for line in said.splitlines() if "rror" in line] == [wrong, wrong]  # of either process
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


@pytest.mark.parametrize("spread", [(), ("--fsdp",)])
def test_a_process_that_is_killed_ends_the_run_in_one_line(
    train: Callable[..., str], whole: Path, tmp_path: Path, spread: tuple[str, ...]
) -> None:
    argv = ("--drop-path", "0.2", *spread)
    said = train(tmp_path, *argv, code=-9, before=fails_at("os.kill(os.getpid(), signal.SIGKILL)"))
    print(said)
    assert [line for line in said.splitlines() if "error" in line.lower()] == [
        "error: another process of this run failed; go on with --resume auto"
    ]
    train(tmp_path, *argv, "--resume", "auto")
    if spread:
        assert difference(weights(tmp_path), weights(whole)) == 0
    else:
        train(tmp_path / "whole", *argv)
        assert difference(weights(tmp_path), weights(tmp_path / "whole")) == 0
