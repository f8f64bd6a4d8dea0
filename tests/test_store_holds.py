"""What the store must hold: processes that are killed, folders that nobody may write or look into, a full disk, no
home; and weights in a fresh environment, from every kind of place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pwd
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer

from hiermim_zoo import convert
from hiermim_zoo.checkpoints import atomic, manifest, places, store
from hiermim_zoo.checkpoints.layouts import find_layout
from hiermim_zoo.checkpoints.manifest import Weights
from hiermim_zoo.checkpoints.refused import CannotWrite
from hiermim_zoo.checkpoints.store import WeightsNotFound
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.models import weights

from .forks import Forks, Stem
from .servers import Server, serving

TAG = "hivit_atto.toy"
ROW = Weights(TAG, "o/n", "hivit_encoder", "mit", "a test", "0")
EMBEDDED = dataclasses.replace(ROW, name="hivit_atto.mae_cifar10")
KEPT = [".", "downloads", "fetched.json", "fetched.json.lock", f"{TAG}.lock"]
MODEL = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A toy file of the authors: 2 MB."""
    torch.manual_seed(5)
    state = timm.create_model("hivit_atto", num_classes=0, rel_pos_bias=False).state_dict()
    file = tmp_path_factory.mktemp("origin") / "o.pth"
    torch.save({"model": {name: t for name, t in state.items() if not name.startswith("fc_norm")}}, file)
    return file.read_bytes()


@pytest.fixture
def server(origin: bytes) -> Iterator[Server]:
    with serving({"/o.pth": origin}) as server:
        yield server


@pytest.fixture
def row(server: Server, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """Also for commands."""
    row = dataclasses.replace(ROW, url=f"{server.url}/o.pth")
    monkeypatch.setattr(manifest, "records", lambda: {TAG: row})
    return row


def listed(root: Path) -> list[str]:
    """All there is in a folder, but what a model has."""
    found = (path.relative_to(root) for path in (root, *root.rglob("*")))
    return sorted(str(path) for path in found if path.parts[:1] != (TAG,))


@contextmanager
def forbidden(folder: Path, mode: int) -> Iterator[None]:
    """A folder with these permissions, for somebody whom they hold back."""
    before, user = folder.stat().st_mode, os.geteuid()
    folder.chmod(mode)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(before)


def refused(command: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(command)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    [line] = [line for line in lines if line and "B/s]" not in line]  # beside how far a download is
    return line


# ---- processes that are killed

KILLED = """
import hashlib, json, os, random, signal, sys, time
from pathlib import Path
from huggingface_hub.utils import WeakFileLock
from hiermim_zoo.checkpoints import store
from hiermim_zoo.checkpoints.manifest import Weights
from hiermim_zoo.models import weights

row = Weights(**json.loads(sys.argv[1]))
root, away = store.user_store(), Path(sys.argv[2])

def digest():
    return hashlib.sha256(weights.locate(row).read_bytes()).hexdigest()

def remove():
    with WeakFileLock(root / f"{row.name}.lock"):
        if (root / row.name).is_dir():
            (root / row.name).rename(away / str(time.monotonic_ns()))

def begun():
    child = os.fork()
    if child == 0:
        try:
            while True:  # fetch it again and again
                weights.locate(row)
                remove()
        finally:
            os._exit(1)
    return child

right, seen, killed = digest(), set(), 0
remove()
children = [begun() for _ in range(8)]
while children:
    time.sleep(random.uniform(0, 0.1))
    victim = children.pop(random.randrange(len(children)))
    os.kill(victim, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(victim, 0)[1]), "it ended by itself"
    seen.update(path.name.partition("-")[0] for path in root.rglob("*"))
    killed += 1
    if killed + len(children) < 40:
        children.append(begun())
remove()
print(digest() == right, sorted(path.name for path in (root / row.name).iterdir()))
print(len(list(away.iterdir())), "times whole; seen:", sorted(seen), file=sys.stderr)
"""


@pytest.mark.slow
def test_of_eight_processes_that_are_killed_nothing_is_left(forked: Forks, server: Server, tmp_path: Path) -> None:
    """At 40 random moments of fetching one tag; the next process has the weights, whole and right."""
    row = {name: value for name, value in ROW.__dict__.items() if value} | {"url": f"{server.url}/o.pth"}
    (tmp_path / "away").mkdir()
    done = forked.run(KILLED, json.dumps(row), tmp_path / "away", HIERMIM_WEIGHTS=str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"True {MODEL}\n", done.stderr
    assert listed(tmp_path / "store") == KEPT, done.stderr
    for whole in (tmp_path / "away").iterdir():
        assert sorted(path.name for path in whole.iterdir()) == MODEL, "what was there in between was whole, too"


def test_what_the_killed_left_is_swept_when_the_tag_is_written(row: Weights, server: Server, tmp_path: Path) -> None:
    """Whatever they were doing; what belongs to other tags stays."""
    root = store.user_store()
    (root / "downloads").mkdir(parents=True)
    names = [f"downloads/.{TAG}.pth.part.json.77.part", ".fetched.json.77.part"]
    parts = [root / f".hiermim-part-{TAG}-{'0' * 16}", root / f".hiermim-part-{TAG}2-{'0' * 16}"]
    for part in parts:
        part.mkdir()
        (part / "model.safetensors").write_bytes(b"half")
    others = ["downloads/hivit_atto.toy2.pth.part", "downloads/hiera_base.toy.pth"]
    for name in (*names, *others):
        (root / name).write_bytes(b"half")
    weights.locate(row)
    assert listed(root) == sorted([*KEPT, *others, parts[1].name, f"{parts[1].name}/model.safetensors"])
    (root / f"downloads/{TAG}.pth.part").write_bytes(b"half")  # whoever gets the file by other means needs it no more
    shutil.rmtree(root / TAG)
    (tmp_path / "o.pth").write_bytes(server.files["/o.pth"])
    convert.main([str(tmp_path / "o.pth"), "--install", TAG])
    assert not list((root / "downloads").glob(f"{TAG}.*"))


# ---- folders that nobody may write, or look into


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may look into; those of pytest are for one user."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_store_that_is_read_only_is_read(
    row: Weights, server: Server, open_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = open_folder / "store"
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(root))
    here = weights.locate(row)
    other = dataclasses.replace(row, name="hivit_atto.other")
    asked, before = len(server.log), listed(root)
    with forbidden(root, 0o555):
        assert weights.locate(row) == here
        with pytest.raises(WeightsNotFound) as error:
            weights.locate(other)
        said = f"weights cannot be put into {root} (Permission denied): set HIERMIM_WEIGHTS to a folder that can be"
        assert str(error.value) == f"hivit_atto.other: {said} written"
        line = refused(lambda: convert.main([row.url, "--install", TAG, "--force"]), capsys)
        assert line == f"error: {said} written"
    assert (len(server.log), listed(root)) == (asked, before), "nobody is asked for what cannot be kept"


def test_a_home_that_nobody_may_look_into_is_no_hindrance(
    row: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To weights that are in the package, and to those of another folder."""
    home = tmp_path / "home"
    (home / ".cache" / "hiermim_zoo").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    with forbidden(home, 0o000):
        assert weights.locate(EMBEDDED).parent == manifest.weights_dir()
        with pytest.raises(WeightsNotFound, match=rf"cannot be put into {home}/\.cache/hiermim_zoo .* HIERMIM_WEIGHTS"):
            weights.locate(row)
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path / "store"))
    assert weights.locate(row) == tmp_path / "store" / TAG / "model.safetensors"


def test_without_a_home_there_is_no_cache(
    row: Weights, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container whose user has no name; nothing is written into a folder called ~."""

    def nobody(user: int) -> object:
        raise KeyError(user)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert store.folders(None) == [manifest.weights_dir()]
    assert weights.locate(EMBEDDED).parent == manifest.weights_dir()
    with pytest.raises(WeightsNotFound, match=rf"^{TAG}: no home folder is known, .*: set HIERMIM_WEIGHTS to a folder"):
        weights.locate(row)
    place = places.origins(row)[0]
    got = places.fetch(place, tmp_path / "got")
    assert got.path.is_file(), "what goes elsewhere needs no cache"
    places.accept(place, got)
    assert "is not recorded: no home folder is known" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["got.pth"]
    assert weights.locate(row, cache_dir=tmp_path / "mine") == tmp_path / "mine" / "hiermim_zoo" / TAG / MODEL[-1]


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_store_on_a_path_that_is_a_file_is_said(
    below: str, row: Weights, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path / "file" / below))
    said = rf"weights cannot be put into {tmp_path}/file\S* \((Not a directory|File exists)\): set HIERMIM_WEIGHTS to"
    with pytest.raises(WeightsNotFound, match=f"^{TAG}: {said}"):
        weights.locate(row)
    assert refused(lambda: convert.main([row.url, "--install", TAG]), capsys).startswith("error: weights cannot be put")
    assert (tmp_path / "file").read_text() == "mine"
    assert server.log == []


# ---- a full disk


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can have more bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_disk_that_fills_up_while_downloading_is_said_and_the_rest_comes_later(
    share: float, row: Weights, origin: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with room_for(int(share * len(origin))):
        with pytest.raises(WeightsNotFound) as error:
            weights.locate(row)
        line = refused(lambda: convert.main([TAG, "--install", TAG]), capsys)
    [said] = str(error.value).splitlines()
    assert said.startswith(f"{TAG}: {row.url}: ")
    for text in (said, line):
        assert "cannot be written: File too large" in text
    assert store.find_local(row) is None
    assert weights.locate(row).is_file()
    assert listed(store.user_store()) == KEPT


def test_a_disk_that_fills_up_while_the_model_is_written_is_said(row: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    root = store.user_store()

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as disk:
        disk.setattr(atomic, "save_file", full)
        with pytest.raises(WeightsNotFound) as error:
            weights.locate(row)
    [said] = str(error.value).splitlines()
    assert said.startswith(f"{TAG}: weights cannot be put into {root / TAG} (model.safetensors cannot be written: ")
    assert said.endswith("make room, or set HIERMIM_WEIGHTS to a folder on a disk with more room")
    assert listed(root) == KEPT
    assert weights.locate(row).is_file()


def test_only_what_is_likely_true_ends_the_search(row: Weights, tmp_path: Path) -> None:
    """A server that announces more than any disk holds is passed over: another place has the file."""
    said = store.not_written(tmp_path, OSError(28, "No space left on device"))
    assert isinstance(said, CannotWrite)
    both = [places.Place("http://127.0.0.1:9/never"), *places.origins(row)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "places", lambda row: both)
        assert weights.locate(row).is_file()


# ---- a fresh environment

FRESH = """
import dataclasses, json, sys
from pathlib import Path
import timm, hiermim_zoo
from hiermim_zoo.checkpoints import manifest, store
rows = {name: dataclasses.replace(manifest.records()[name], file="", sha256="", bytes=0, **changes)
        for name, changes in json.loads(sys.argv[1]).items()}
manifest.records = lambda: rows
store.weights_dir = lambda: Path("/nowhere")
cfgs = timm.models._registry._model_pretrained_cfgs
for name, row in rows.items():
    cfgs[name] = dataclasses.replace(cfgs[name], hf_hub_id=row.hub)
    model = timm.create_model(name, pretrained=True)
    print(name, round(sum(p.double().sum().item() for p in model.parameters()), 3))
"""
NEVER = "http://127.0.0.1:9/never"


@pytest.mark.slow
def test_weights_come_from_every_kind_of_place(origin: bytes, stem: Stem, tmp_path: Path) -> None:
    """From timm's repository, from facebook's, and from the authors' own server; then without any server.

    Weights that are made up would be implausible under a tag that somebody measured.
    """
    torch.manual_seed(3)
    plain = VisionTransformer(img_size=64, embed_dim=96, depth=6, num_heads=3, num_classes=0)
    hiera: Any = timm.create_model("hiera_atto", num_classes=10)
    theirs = to_published(hiera.state_dict(), {}, find_layout("hiera"), hiera)
    files = {
        "/timm/vit_toy.mae/resolve/main/model.safetensors": save(plain.state_dict()),
        "/facebook/hiera_toy.mae/resolve/main/model.safetensors": save({n: t.clone() for n, t in theirs.items()}),
        "/o.pth": origin,
    }
    home = tmp_path / "home"
    home.mkdir()
    with serving(files, hub=True) as server:
        rows = {
            "hpvit_atto.mae_cifar10": {"url": NEVER, "also": "hf-hub:timm/vit_toy.mae", "layout": "vit_timm"},
            "hiera_atto.mae_cifar10_ft_cifar10": {"url": NEVER, "hub": "facebook/hiera_toy.mae", "top1": None},
            "hivit_atto.mae_cifar10": {"url": f"{server.url}/o.pth", "layout": "hivit_encoder"},
        }
        settings = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "HF_ENDPOINT": server.url}
        with stem.forks(tmp_path, **settings) as fresh:
            done = fresh.run(FRESH, json.dumps(rows), HOME=str(home), XDG_CACHE_HOME="")
    assert done.returncode == 0, done.stderr
    sums = dict(line.split() for line in done.stdout.splitlines())
    assert list(sums) == list(rows)
    right = sum(p.double().sum().item() for p in hiera.parameters())
    assert float(sums["hiera_atto.mae_cifar10_ft_cifar10"]) == pytest.approx(right, abs=1e-3)
    assert {path.name for path in home.iterdir()} == {".cache"}
    assert {path.name for path in (home / ".cache").iterdir()} == {"hiermim_zoo", "huggingface"}
    addresses = {"hf-hub:timm/vit_toy.mae", "hf-hub:facebook/hiera_toy.mae", f"{server.url}/o.pth"}
    record = json.loads((home / ".cache" / "hiermim_zoo" / "fetched.json").read_text())
    assert record.keys() == addresses
    assert record[f"{server.url}/o.pth"]["sha256"] == hashlib.sha256(origin).hexdigest()
    with stem.forks(home, **settings, HF_HUB_OFFLINE="1") as later:
        again = later.run(FRESH, json.dumps(rows), HOME=str(home), XDG_CACHE_HOME="")
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
