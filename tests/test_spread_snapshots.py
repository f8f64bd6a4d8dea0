"""Snapshots of a model that is spread over processes: whole, alone and damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
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
from hiermim_zoo.training import snapshot_shards, snapshots
from hiermim_zoo.training.autoencoder import freeze_unreached
from hiermim_zoo.training.optimizer import make_optimizer

from .forks import Forks
from .runs import largest_difference, weights
from .several import LINEAR, SMALL, errors, saved, several


@pytest.fixture(scope="module")
def train(forked: Forks) -> Callable[..., str]:
    return several(forked)


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
    assert largest_difference(ended, all_tensors(saved(whole)[-1])) == 0
    assert largest_difference(started, ended) > 1e-3
    for file in ("model.safetensors", "decoder.safetensors"):
        assert (tmp_path / "encoder" / file).read_bytes() == (whole / "encoder" / file).read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_the_encoder_of_a_spread_run_is_the_trained_one(whole: Path) -> None:
    trained, exported = weights(whole), load_file(whole / "encoder" / "model.safetensors")
    assert exported.keys() == {name.removeprefix("encoder.") for name in trained if name.startswith("encoder.")}
    assert all(torch.equal(tensor, trained[f"encoder.{name}"]) for name, tensor in exported.items())


@pytest.mark.slow
def test_a_spread_run_goes_on_with_any_number_of_processes(train: Callable[..., str], tmp_path: Path) -> None:
    train(tmp_path / "half", *LINEAR, "--fsdp", "--stop-after", "2", "--save-steps", "2")
    pretrain.main(["digits", *SMALL, *LINEAR, "-o", str(tmp_path / "never")])
    for number, more in ((1, ()), (3, ("--fsdp",))):
        output = Path(shutil.copytree(tmp_path / "half", tmp_path / f"{number}"))
        train(output, *LINEAR, *more, "--resume", "auto", processes=number)
        assert saved(output)[-1].is_dir() == bool(more)
        assert [snapshots.step_of(path) for path in saved(output)] == [2, 3]
        assert largest_difference(weights(output), weights(tmp_path / "never")) < 1e-6
    assert largest_difference(weights(tmp_path / "never"), weights(tmp_path / "half")) > 1e-3


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
        assert largest_difference(tensors, named) == 0
    assert {tensor.item() for name, tensor in moments.items() if name.endswith("/step")} == {2}


@pytest.mark.slow
def test_a_spread_run_goes_on_from_a_single_file(train: Callable[..., str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    pretrain.main(["digits", *SMALL, *LINEAR, "-o", str(one), "--stop-after", "2", "--save-steps", "2"])
    shutil.copytree(one, two)
    pretrain.main(["digits", *SMALL, *LINEAR, "-o", str(one), "--resume", "auto"])
    train(two, *LINEAR, "--fsdp", "--max-snapshots", "2", "--resume", "auto")
    assert [path.is_dir() for path in saved(two)] == [False, True]
    assert largest_difference(weights(two), weights(one)) < 1e-6


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
