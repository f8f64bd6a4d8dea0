"""Where weights are found, with the real clients against servers on loopback.

The Hub's client reads its settings when it is imported, so whatever depends on them runs in a process of its own: one
that is online, one that is offline, and their forks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from hiermim_zoo import convert
from hiermim_zoo.checkpoints import download as downloads
from hiermim_zoo.checkpoints import drive, manifest, store
from hiermim_zoo.checkpoints.download import DownloadError, download
from hiermim_zoo.checkpoints.folder import Contents
from hiermim_zoo.checkpoints.manifest import Weights
from hiermim_zoo.models import hivit, weights
from hiermim_zoo.models.saved import blank

from .forks import Forks, Stem
from .servers import COMMIT, Server, serving

CONTENT = bytes(range(256)) * 400
KNOWN = {"sha256": hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_PAUSE", 0)


# ---- downloads from an origin


def test_a_file_is_downloaded_verified_and_renamed(tmp_path: Path) -> None:
    with serving({"/w.pth": CONTENT}) as server:
        download(f"{server.url}/w.pth", tmp_path / "w.pth", digests=KNOWN, size=len(CONTENT))
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["w.pth"]


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with serving({"/w.pth": CONTENT}) as server:
        server.cuts = [65_536, 32_768]
        download(f"{server.url}/w.pth", tmp_path / "w.pth", digests=KNOWN)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert [asked for _, _, asked in server.log] == [None, "bytes=65536-", "bytes=98304-"]


def test_what_an_earlier_process_left_is_used(tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(CONTENT[:50_000])
    with serving({"/w.pth": CONTENT}) as server:
        download(f"{server.url}/w.pth", tmp_path / "w.pth", digests=KNOWN)
        assert server.log == [("GET", "/w.pth", "bytes=50000-")]
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_part_that_is_complete_needs_no_more_bytes(tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    with serving({"/w.pth": CONTENT}) as server:
        download(f"{server.url}/w.pth", tmp_path / "w.pth", digests=KNOWN)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_it_gives_up_when_nothing_more_comes_and_keeps_what_came(tmp_path: Path) -> None:
    with serving({"/w.pth": CONTENT}) as server:
        server.cuts = [32_768] + [0] * 9
        with pytest.raises(DownloadError, match=r"w\.pth: .*kept in .*w\.pth\.part"):
            download(f"{server.url}/w.pth", tmp_path / "w.pth")
    assert (tmp_path / "w.pth.part").read_bytes() == CONTENT[:32_768]
    assert not (tmp_path / "w.pth").exists()


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"digests": {"sha256": "0" * 64}}, "sha256 is"),
        ({"digests": {"md5": "012345"}}, "md5 is [0-9a-f]{32} instead of 012345"),
        ({"size": 7}, "announces 102400 bytes instead of 7"),
    ],
)
def test_a_wrong_file_is_refused_and_removed(tmp_path: Path, expected: dict[str, object], message: str) -> None:
    with serving({"/w.pth": CONTENT}) as server, pytest.raises(DownloadError, match=message):
        download(f"{server.url}/w.pth", tmp_path / "w.pth", **expected)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("w.pth*"))


def test_missing_files_and_dead_servers_are_said(tmp_path: Path) -> None:
    with serving({}) as server, pytest.raises(DownloadError, match="the server answered 404"):
        download(f"{server.url}/w.pth", tmp_path / "w.pth")
    with pytest.raises(DownloadError, match="no connection"):
        download(f"{server.url}/w.pth", tmp_path / "w.pth")


DRIVE = "https://drive.google.com/file/d/1aB-c_2"
FORM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="{url}/download" method="get"><input type="hidden" name="id" value="1aB-c_2">
<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="x&amp;y"></form></body></html>"""


def test_google_drive_is_asked_for_the_file_and_its_warning_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"/download": CONTENT}) as server:
        monkeypatch.setattr(drive, "DRIVE_URL", f"{server.url}/download")
        server.page = lambda path: None if "confirm=t" in path else FORM.format(url=server.url)
        server.cuts = [32_768]
        download(DRIVE, tmp_path / "w.pth", digests=KNOWN)
        assert server.log[0][1] == "/download?id=1aB-c_2&export=download"
        assert server.log[1][1] == "/download?id=1aB-c_2&export=download&confirm=t&uuid=x%26y"
        assert server.log[-1][2] == "bytes=32768-"
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("page", ["<html><title>Quota exceeded</title></html>", FORM])
def test_a_page_instead_of_a_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    with serving({}) as server:
        monkeypatch.setattr(drive, "DRIVE_URL", f"{server.url}/download")
        server.page = lambda path: page.replace("{url}", server.url)
        with pytest.raises(
            DownloadError,
            match=r"a web page came instead of a file .(Quota exceeded|Google Drive - Virus scan warning)",
        ):
            download(DRIVE, tmp_path / "w.pth")
    assert not list(tmp_path.glob("w.pth*"))


# ---- the order of places


@pytest.fixture
def origin_file(tmp_path: Path) -> Path:
    """A toy file of the authors' pre-training: encoder without bias tables, decoder, options."""
    torch.manual_seed(5)
    state = timm.create_model("hivit_atto", num_classes=0, rel_pos_bias=False).state_dict()
    state = {n: t for n, t in state.items() if not n.startswith("fc_norm")}
    state |= {
        "mask_token": torch.ones(1, 1, 8),
        "norm.weight": torch.ones(9),
        "norm.bias": torch.ones(9),
        "decoder_pred.bias": torch.ones(3),
    }
    torch.save({"model": state}, tmp_path / "origin.pth")
    return tmp_path / "origin.pth"


def toy_row(url: str, **kwargs: object) -> Weights:
    row = Weights(
        "hivit_atto.toy", "hiermim-zoo/hivit_atto.toy", "hivit_mae", "cc-by-nc-4.0", "a test", "0000.00000", url=url
    )
    return dataclasses.replace(row, **kwargs)


def test_an_origin_file_is_installed_once_even_by_two_at_a_time(
    origin_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"/o.pth": origin_file.read_bytes()}) as server:
        row = toy_row(f"{server.url}/o.pth", sha256=hashlib.sha256(origin_file.read_bytes()).hexdigest())
        threads = [threading.Thread(target=weights.install, args=(row,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.log) == 1
    folder = store.user_store() / "hivit_atto.toy"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert store.find_local(row) == folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    assert config["hiermim_zoo"]["source"] == row.url
    assert config["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    assert not list((store.user_store() / "downloads").iterdir())


def test_no_model_is_built_under_the_lock(origin_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or other processes would wait for a conversion; and the conversion is complete before the model is built."""
    held: list[bool] = []
    events: list[str] = []

    @contextmanager
    def noted(path: Path) -> Iterator[None]:
        held.append(True)
        yield
        held.pop()

    def built(*args: object, **kwargs: object) -> torch.nn.Module:
        events.append("built under the lock" if held else "built")
        return build(*args, **kwargs)

    def written(contents: Contents, folder: Path, force: bool) -> None:
        events.append("written under the lock" if held else "written")
        write(contents, folder, force)

    blank("hivit_atto")  # built once in a process
    build, write = hivit.timm_model, weights.write_folder
    monkeypatch.setattr(weights, "WeakFileLock", noted)
    monkeypatch.setattr(hivit, "timm_model", built)
    monkeypatch.setattr(weights, "write_folder", written)
    with serving({"/o.pth": origin_file.read_bytes()}) as server:
        name = "hivit_atto.mae_cifar10"
        row = dataclasses.replace(
            toy_row(f"{server.url}/o.pth"), name=name, hub=timm.get_pretrained_cfg(name).hf_hub_id
        )
        monkeypatch.setattr(manifest, "records", lambda: {name: row})
        monkeypatch.setattr(store, "weights_dir", lambda: origin_file.parent / "nothing")
        timm.create_model(name, pretrained=True)
    assert events == ["built", "written under the lock", "built"]


def test_the_local_store_is_searched_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$HIERMIM_WEIGHTS, the cache folder given, the user's cache, the weights that ship; each hides those behind it."""
    row = toy_row("")
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "weights_dir", lambda: tmp_path / "shipped")
    places = [
        tmp_path / "mine" / "hivit_atto.toy.safetensors",
        tmp_path / "given" / "hiermim_zoo" / "hivit_atto.toy" / "model.safetensors",
        tmp_path / "cache" / "hiermim_zoo" / "hivit_atto.toy" / "model.safetensors",
        tmp_path / "shipped" / "hivit_atto.toy.safetensors",
    ]
    assert store.find_local(row, tmp_path / "given") is None
    for place in reversed(places):
        place.parent.mkdir(parents=True)
        place.touch()
        assert weights.locate(row, tmp_path / "given") == place


SCRIPT = """
import dataclasses, json, pathlib, sys, timm, hiermim_zoo
from hiermim_zoo.checkpoints import manifest, store
store.weights_dir = lambda: pathlib.Path("/nowhere")
name, changes = sys.argv[1], json.loads(sys.argv[2])
rows = dict(manifest.records())
rows[name] = dataclasses.replace(rows[name], **changes)
manifest.records = lambda: rows
cfgs = timm.models._registry._model_pretrained_cfgs
cfgs[name] = dataclasses.replace(cfgs[name], hf_hub_id=rows[name].hub)
try:
    model = timm.create_model(name, pretrained=True)
    print(json.dumps({"sum": sum(p.double().sum().item() for p in model.parameters()), "classes": model.num_classes}))
except Exception as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("hub")
    return folder


@pytest.fixture(scope="module")
def hub_server() -> Iterator[Server]:
    with serving({}, hub=True) as server:
        yield server


@pytest.fixture(scope="module")
def online(
    hub_server: Server, hub_cache: Path, stem: Stem, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Forks]:
    with stem.forks(tmp_path_factory.mktemp("online"), HF_ENDPOINT=hub_server.url, HF_HOME=str(hub_cache)) as parent:
        yield parent


@pytest.fixture(scope="module")
def offline(
    hub_server: Server, hub_cache: Path, stem: Stem, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Forks]:
    env = {"HF_ENDPOINT": hub_server.url, "HF_HOME": str(hub_cache), "HF_HUB_OFFLINE": "1"}
    with stem.forks(tmp_path_factory.mktemp("offline"), **env) as parent:
        yield parent


@pytest.fixture
def hub(hub_server: Server, hub_cache: Path) -> Iterator[Server]:
    """The Hub without a file, and nothing of it cached."""
    hub_server.files, hub_server.log = {}, []
    yield hub_server
    shutil.rmtree(hub_cache, ignore_errors=True)


def create(process: Forks, name: str, **changes: object) -> tuple[dict[str, object], str]:
    """Create a pretrained model in a fresh process, of a row with other values; what it printed, and its stderr.

    Nobody has measured these weights, which are made up: else they would be refused as implausible. And they are in no
    package, but with authors who state another licence.
    """
    made_up = {"top1": None, "file": "", "sha256": "", "bytes": 0, "layout": "hivit_supervised", "license": "mit"}
    done = process.run(SCRIPT, name, json.dumps(made_up | changes))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


NAME = "hivit_atto.mae_cifar10_ft_cifar10"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, float]:
    """A made-up file as authors would publish it, the same for the Hub, the sum of its values."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(7)
    model = timm.create_model("hivit_atto", num_classes=10)
    state = dict(model.state_dict())
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    state |= {name.replace("bias_table", "index"): torch.zeros(16, 16, dtype=torch.int64) for name in tables}
    torch.save({"model": state}, folder / "published.pth")
    convert.main([str(folder / "published.pth"), "--model", "hivit_atto", "-o", str(folder / "out")])
    total = sum(p.double().sum().item() for p in model.parameters())
    return (folder / "published.pth").read_bytes(), (folder / "out" / "model.safetensors").read_bytes(), total


NEVER = "http://127.0.0.1:9/never"


def resolved(hub: Server) -> list[tuple[str, str]]:
    """What was asked about files; the client has other questions of its own."""
    return [(verb, path) for verb, path, _ in hub.log if "/resolve/" in path]


@pytest.mark.slow
def test_a_pinned_repository_is_asked_by_its_revision_before_the_origin_and_cached(
    small: tuple[bytes, bytes, float], hub: Server, online: Forks, offline: Forks
) -> None:
    hub.files = {f"/hiermim-zoo/{NAME}/resolve/main/model.safetensors": small[1]}
    digest = hashlib.sha256(small[1]).hexdigest()
    pin = {"url": NEVER, "hub_revision": COMMIT, "hub_sha256": digest, "hub_bytes": len(small[1])}
    pin["license"] = "unstated"
    found, said = create(online, NAME, **pin)
    assert found == {"sum": pytest.approx(small[2]), "classes": 10}
    line = f"{NAME}: fetched from hf-hub:hiermim-zoo/{NAME}@{COMMIT}, {len(small[1])} bytes, sha256 {digest}; "
    assert [text for text in said.splitlines() if NAME in text] == [
        f"{line}the authors state no licence: ask them before commercial use"
    ]
    assert {path for _, path in resolved(hub)} == {f"/hiermim-zoo/{NAME}/resolve/{COMMIT}/model.safetensors"}
    hub.log.clear()
    for process in (offline, online):
        found, said = create(process, NAME, **pin)
        assert found["sum"] == pytest.approx(small[2])
        assert NAME not in said
    assert hub.log == []
    assert "hub" in str(create(offline, NAME, **{**pin, "hub_sha256": "0" * 64})[0]["error"])  # also what is cached


@pytest.mark.slow
@pytest.mark.parametrize("hides", [False, True])
def test_a_pinned_repository_with_other_bytes_is_refused(
    hides: bool, small: tuple[bytes, bytes, float], hub: Server, online: Forks
) -> None:
    """By what the Hub says of the file; and by the file itself, where the Hub says what is expected."""
    right = hashlib.sha256(small[1]).hexdigest()
    other = bytes([*small[1][:-1], small[1][-1] ^ 1])
    hub.files = {f"/hiermim-zoo/{NAME}/resolve/main/model.safetensors": other}
    hub.etag = right if hides else ""
    error = str(create(online, NAME, url=NEVER, hub_revision=COMMIT, hub_sha256=right)[0]["error"])
    hub.etag = ""
    assert f"sha256 is {hashlib.sha256(other).hexdigest()} instead of {right}" in error
    assert ("GET" in {verb for verb, _ in resolved(hub)}) == hides


@pytest.mark.slow
def test_a_repository_that_nobody_pinned_is_never_asked(
    small: tuple[bytes, bytes, float], hub: Server, online: Forks, offline: Forks, tmp_path: Path
) -> None:
    """Whoever registers an unregistered name serves nothing, whether the origin has the file or not."""
    hub.files = {f"/hiermim-zoo/{NAME}/resolve/main/model.safetensors": small[1]}
    assert "WeightsNotFound" in str(create(online, NAME, url=NEVER)[0]["error"])
    half = {"url": NEVER, "hub_revision": COMMIT}
    assert "WeightsNotFound" in str(create(online, NAME, **half)[0]["error"])
    with serving({"/small.pth": small[0]}) as origin:
        origin.cuts = [1 << 20]
        found, said = create(online, NAME, url=f"{origin.url}/small.pth", license_also="cc-by-nc-4.0")
        assert found["sum"] == pytest.approx(small[2])
        licence = "licence mit or cc-by-nc-4.0: ask the authors before commercial use"
        assert said.count(licence) == said.count(NAME + ":") == 1
        assert [asked for _, _, asked in origin.log] == [None, "bytes=1048576-"]
    assert hub.log == []
    assert (tmp_path / "cache" / "hiermim_zoo" / NAME / "model.safetensors").is_file()
    found, _ = create(offline, NAME)  # from the local store
    assert found["sum"] == pytest.approx(small[2])


@pytest.mark.slow
def test_a_known_organisation_is_asked_after_the_origin(
    small: tuple[bytes, bytes, float], hub: Server, online: Forks, tmp_path: Path
) -> None:
    hub.files = {"/timm/small/resolve/main/model.safetensors": small[1]}
    with serving({"/small.pth": small[0]}) as origin:
        url = f"{origin.url}/small.pth"
        assert "sum" in create(online, NAME, url=url, hub="timm/small")[0]
        assert hub.log == []
    shutil.rmtree(tmp_path / "cache" / "hiermim_zoo" / NAME)
    found, said = create(online, NAME, url=url, hub="timm/small")
    assert found["sum"] == pytest.approx(small[2])
    assert f"{NAME}: fetched from hf-hub:timm/small, " in said
    record = json.loads((tmp_path / "cache" / "hiermim_zoo" / "fetched.json").read_text())
    assert [record[address]["bytes"] for address in (url, "hf-hub:timm/small")] == [
        len(content) for content in small[:2]
    ]


@pytest.mark.slow
def test_a_wrong_origin_file_is_refused_with_all_places_named(hub: Server, online: Forks, tmp_path: Path) -> None:
    with serving({"/small.pth": CONTENT}) as origin:
        error = str(create(online, NAME, url=f"{origin.url}/small.pth", hub="timm/small")[0]["error"])
    first, second, third = error.splitlines()
    assert first == (
        "WeightsNotFound: Try again later, or get the file by other means: "
        f"python -m hiermim_zoo.convert FILE --install {NAME}"
    )
    assert f"The weights {NAME} are in none of {tmp_path}" in second
    assert "damaged or no PyTorch checkpoint" in third
    assert "hf-hub:timm/small (404" in third
    assert not (tmp_path / "cache" / "hiermim_zoo" / NAME).exists()
    assert not list((tmp_path / "cache" / "hiermim_zoo" / "downloads").iterdir())


ELSEWHERE = """
import dataclasses, sys
import hiermim_zoo
from hiermim_zoo.models import weights
from hiermim_zoo.checkpoints.manifest import Weights
row = Weights("hpvit_atto.toy", "hiermim-zoo/hpvit_atto.toy", "vit_timm", "cc-by-nc-4.0", "a test", "0000.00000")
try:
    print(weights.locate(dataclasses.replace(row, url="hf-hub:someone/plain", sha256=sys.argv[1])))
except OSError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.slow
def test_somebody_elses_repository_is_an_origin(
    hub: Server, hub_cache: Path, online: Forks, offline: Forks, tmp_path: Path
) -> None:
    """A plain ViT on the Hub is converted while loading: its file stays in the Hub's cache, the result is stored."""
    plain = VisionTransformer(img_size=64, embed_dim=96, depth=6, num_heads=3, num_classes=0)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    content = (tmp_path / "plain.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()

    def locate(process: Forks, sha256: str) -> tuple[str, str]:
        done = process.run(ELSEWHERE, sha256)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), done.stderr

    files = ("model.safetensors", "pytorch_model.bin")
    hub.files = {f"/someone/plain/resolve/main/{name}": content for name in files}
    error, _ = locate(online, "0" * 64)
    assert error.startswith("WeightsNotFound")
    assert f"sha256 is {digest} instead of {'0' * 64}" in error
    found, said = locate(online, digest)
    fetched = {path for verb, path, _ in hub.log if verb == "GET" and "/resolve/" in path}
    assert Path(found) == tmp_path / "cache" / "hiermim_zoo" / "hpvit_atto.toy" / "model.safetensors"
    assert {path.rpartition("/")[2] for path in fetched} == {"model.safetensors"}
    assert said.count("non-commercial use only") == 1
    assert torch.equal(load_file(found)["blocks.5.attn.qkv.weight"], plain.blocks[5].attn.qkv.weight)
    about = json.loads(Path(found).with_name("config.json").read_text())
    assert (about["hiermim_zoo"]["source"], about["hiermim_zoo"]["sha256"]) == ("hf-hub:someone/plain", digest)
    assert list(hub_cache.rglob("model.safetensors")), "the Hub's cache is left alone"
    assert locate(offline, digest)[0] == found


@pytest.mark.slow
def test_offline_nothing_is_asked_for(hub: Server, offline: Forks) -> None:
    error = str(create(offline, NAME, url=f"{hub.url}/small.pth", hub="timm/small")[0]["error"])
    assert hub.log == []
    assert error.startswith("WeightsNotFound: Unset HF_HUB_OFFLINE, or ")
    assert error.count("offline mode") == 2
    assert error.count("\n") == 2


# ---- installing by hand


def test_a_file_got_by_other_means_is_installed_under_its_tag(
    origin_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = toy_row("http://127.0.0.1:9/never")
    monkeypatch.setattr(manifest, "records", lambda: {row.name: row})
    convert.main([str(origin_file), "--install", row.name, "--verify"])
    assert weights.locate(row) == tmp_path / "cache" / "hiermim_zoo" / row.name / "model.safetensors"


def test_a_tag_is_fetched_from_its_origin_and_converted(
    origin_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"/o.pth": origin_file.read_bytes()}) as server:
        row = toy_row(f"{server.url}/o.pth")
        monkeypatch.setattr(manifest, "records", lambda: {row.name: row})
        convert.main([row.name, "-o", str(tmp_path / "out")])
        convert.main([row.name, "--install"])
        convert.main([f"{server.url}/o.pth", "--model", "hivit_atto", "-o", str(tmp_path / "out2")])
    a, b, c = (
        timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
        for folder in (tmp_path / "out", tmp_path / "out2", store.user_store() / row.name)
    )
    assert all(torch.equal(a[n], b[n]) and torch.equal(a[n], c[n]) for n in a)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hiermim_zoo"]["license"] == "cc-by-nc-4.0"


@pytest.mark.slow
def test_a_repository_of_the_hub_is_a_source(
    origin_file: Path, hub: Server, online: Forks, offline: Forks, tmp_path: Path
) -> None:
    """The real client: a revision, its checkpoint and configuration alone are fetched; then what goes wrong."""

    def command(process: Forks, source: str) -> subprocess.CompletedProcess[str]:
        args = (source, "--model", "hivit_atto", "-o", tmp_path / "out", "--force")
        return process.command("hiermim_zoo.convert", *args)

    files = {"pytorch_model.bin": origin_file.read_bytes(), "tf_model.h5": CONTENT, "README.md": b"no"}
    hub.files = {f"/someone/some-model/resolve/v2/{name}": content for name, content in files.items()}
    done = command(online, "hf-hub:someone/some-model@v2")
    assert done.returncode == 0, done.stderr
    fetched = {path.rpartition("/")[2] for verb, path, _ in hub.log if verb == "GET" and "/resolve/" in path}
    assert fetched == {"pytorch_model.bin"}
    about = json.loads((tmp_path / "out" / "config.json").read_text())["hiermim_zoo"]
    assert (about["source"], about["layout"]) == ("hf-hub:someone/some-model@v2", "hivit_mae")
    for source, process in (
        ("hf-hub:someone/nothing", online),
        ("hf-hub:some one/x y", online),
        ("hf-hub:someone/other", offline),
    ):
        done = command(process, source)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_repository_of_several_files_is_a_source(
    kind: str, origin_file: Path, hub: Server, online: Forks, tmp_path: Path
) -> None:
    """The client keeps them in another folder and links to them; they are read by their index."""
    state, stem, suffix = torch.load(origin_file)["model"], *kind.split(".")
    parts = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    weight_map = {name: parts[i % 2] for i, name in enumerate(state)}
    files = {f"{kind}.index.json": json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}
    for part in parts:
        own = {name: state[name] for name, place in weight_map.items() if place == part}
        save_file(own, tmp_path / part) if suffix == "safetensors" else torch.save(own, tmp_path / part)
        files[part] = (tmp_path / part).read_bytes()
    files["images-0001.tar"] = CONTENT
    hub.files = {f"/someone/large/resolve/main/{name}": content for name, content in files.items()}
    args = ("hf-hub:someone/large", "--model", "hivit_atto", "-o", tmp_path / "out")
    done = online.command("hiermim_zoo.convert", *args)
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "out" / "config.json").read_text())["hiermim_zoo"]
    assert (about["file"], about["layout"]) == (f"{kind}.index.json", "hivit_mae")
    assert not any("images" in path for verb, path, _ in hub.log if verb == "GET" and "/resolve/" in path)
    del hub.files[f"/someone/large/resolve/main/{parts[1]}"]
    hub.files = {path.replace("large", "torn"): content for path, content in hub.files.items()}
    done = online.command("hiermim_zoo.convert", "hf-hub:someone/torn", *args[1:3], "-o", tmp_path / "torn")
    assert done.returncode == 2
    assert f"{parts[1]}, which {kind}.index.json names, does not exist" in done.stderr


# ---- timm's own way in


def test_the_callers_own_source_wins() -> None:
    small = {"num_classes": 3, "img_size": 32, "depths": (1, 1, 2)}
    model = timm.create_model("hivit_base", **small)
    source = {"state_dict": model.state_dict(), "num_classes": 3}
    with warnings.catch_warnings():
        loaded = timm.create_model("hivit_base", pretrained=True, pretrained_cfg_overlay=source, **small)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_an_unknown_tag_and_missing_weights_are_said() -> None:
    with pytest.raises(
        ValueError,
        match=r"hivit_base\.nope is not a known tag; there are hivit_base\.mae_in1k_ft_in1k, hivit_base\.mae_in1k",
    ):
        timm.create_model("hivit_base.nope", pretrained=True)
    with pytest.raises(ValueError, match="no pretrained weights of hivit_tiny were ever published"):
        timm.create_model("hivit_tiny", pretrained=True)
