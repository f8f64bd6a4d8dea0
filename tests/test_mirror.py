"""``mirror``, and weights from mirrors: a folder, an address, an organisation of the Hub, a bundle as the store."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from hiermim_zoo import convert, mirror, publish
from hiermim_zoo.checkpoints import licenses, manifest, mirrors, store
from hiermim_zoo.checkpoints.download import DownloadError
from hiermim_zoo.checkpoints.golden import check_golden
from hiermim_zoo.commands import mirroring as mirror_module
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.models import weights

from .forks import Forks, Stem
from .hub import TOKEN, Hub, Repo, digest, hub
from .servers import serving

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>'")  # the Hub's client warns of itself

ROOT = Path(__file__).parents[1]
UNSTATED = ("mae_in1k_ft_in1k", "mae_in1k", "saratrx")  # tags of HiViT-B; see unstated
TAG, ENCODER = "hivit_atto.mae_cifar10_ft_cifar10", "hivit_atto.mae_cifar10"
CONTENT = (ROOT / "weights" / f"{TAG}.safetensors").read_bytes()
RECORD = "bundle.json"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bundles") / "bundle"
    mirror.run(tags="hivit_atto", to=f"{folder}/")
    return folder


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    for file in bundle.rglob("*.*"):
        if file.is_file():
            (target := tmp_path / "copied" / file.relative_to(bundle)).parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return tmp_path / "copied"


@pytest.fixture
def nothing_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if the tag were none of the package's own."""
    monkeypatch.setattr(store, "weights_dir", lambda: tmp_path / "no-weights")


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: mirror.main(words))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def seen(folder: Path) -> list[str]:
    """What is in a bundle, without the lock."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# ---- a bundle


def test_a_bundle_has_whole_folders_and_what_they_are(bundle: Path) -> None:
    record = json.loads((bundle / RECORD).read_text())
    assert (record["format"], set(record["weights"])) == (1, {TAG, ENCODER})
    for tag, about in record["weights"].items():
        files = {path.name: path.read_bytes() for path in (bundle / tag).iterdir()}
        assert about["license"] == "apache-2.0"
        assert about["files"] == {name: {"sha256": digest(c), "bytes": len(c)} for name, c in files.items()}
        model = timm.create_model(f"local-dir:{bundle / tag}", pretrained=True)
        assert check_golden(bundle / tag, model.eval()).within
    assert (bundle / TAG / "model.safetensors").read_bytes() == CONTENT
    assert seen(bundle) == [RECORD, ENCODER, TAG]


def test_what_is_there_stays_and_what_is_damaged_is_made_anew(copied: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("model.safetensors")}
    (copied / ENCODER / "model.safetensors").write_bytes(b"damaged")
    (copied / "mine.txt").write_text("mine")
    mirror.run(tags=["hivit_atto.*"], to=copied)
    assert (copied / TAG / "model.safetensors").stat().st_mtime_ns == times[copied / TAG / "model.safetensors"]
    mirrors.read_record(copied)
    about = mirrors.read_record(copied)[ENCODER]["files"]["model.safetensors"]
    assert digest((copied / ENCODER / "model.safetensors").read_bytes()) == about["sha256"]
    assert seen(copied) == [RECORD, ENCODER, TAG, "mine.txt"]


def test_a_bundle_that_breaks_off_has_whole_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, done = mirror_module.shutil.copyfile, []

    def full(source: Path, target: Path) -> None:
        if len(done) == 6:  # of the second tag
            raise OSError(28, "No space left on device", str(target))
        done.append(copy(source, target))

    monkeypatch.setattr(mirror_module.shutil, "copyfile", full)
    [line] = failed(capsys, "hivit_atto", "--to", str(tmp_path / "b"))
    assert "No space left on device" in line
    assert seen(tmp_path / "b") == [RECORD, TAG]
    assert list(mirrors.read_record(tmp_path / "b")) == [TAG]


TWO = """
import os, sys, time
from hiermim_zoo import mirror
from hiermim_zoo.checkpoints import mirrors
read = mirrors.read_record

def slowly(folder):
    found = read(folder)
    time.sleep(0.2)  # whoever reads now and writes later, without a lock, forgets what the other one wrote
    return found

mirrors.read_record = slowly
mirror.run(tags=sys.argv[2 + int(os.environ["RANK"])].split(), to=sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_fill_one_bundle(tmp_path: Path, forked: Forks) -> None:
    """Nothing that one of them put into the record is lost, also where both put the same in."""
    done = forked.run(TWO, f"{tmp_path}/b/", f"{TAG} hpvit_atto.*", f"{ENCODER} hpvit_atto.*", processes=2)
    assert done.returncode == 0, done.stderr
    record = mirrors.read_record(tmp_path / "b")
    assert set(record) == {row.name for row in mirror_module.chosen([TAG, ENCODER, "hpvit_atto"])}
    assert seen(tmp_path / "b") == sorted([RECORD, *record])
    for tag, about in record.items():
        assert {n: digest((tmp_path / "b" / tag / n).read_bytes()) for n in about["files"]} == {
            name: one["sha256"] for name, one in about["files"].items()
        }


def test_what_was_killed_between_record_and_folder_is_made_anew(copied: Path) -> None:
    before = mirrors.read_record(copied)[TAG]
    shutil.rmtree(copied / TAG)
    mirror.run(tags=TAG, to=copied)
    assert mirrors.read_record(copied)[TAG] == before, "and twice the same, to the bit"
    (copied / TAG / "mine.txt").write_text("mine")
    (copied / TAG / "config.json").write_text("damaged")
    mirror.run(tags=TAG, to=copied)
    assert {n: digest((copied / TAG / n).read_bytes()) for n in before["files"]} == {
        name: one["sha256"] for name, one in before["files"].items()
    }
    assert (copied / TAG / "mine.txt").read_text() == "mine"


def test_a_folder_of_somebody_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / TAG).mkdir()
    (tmp_path / TAG / "mine.txt").write_text("mine")
    [line] = failed(capsys, TAG, "--to", str(tmp_path))
    assert line == f"{tmp_path / TAG} is there and not in {RECORD}: remove it, or name another folder"
    assert [path.name for path in tmp_path.rglob("*.*")] == [TAG, "mine.txt"]
    (tmp_path / RECORD).write_text("{")
    [line] = failed(capsys, ENCODER, "--to", str(tmp_path))
    assert f"{tmp_path / RECORD} is no record of a bundle" in line


@pytest.fixture
def unstated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of HiViT-B as if their authors named no licence."""
    known = manifest.records()
    rows = {
        name: dataclasses.replace(row, license=licenses.UNSTATED) if row.arch == "hivit_base" else row
        for name, row in known.items()
    }
    monkeypatch.setattr(mirror_module, "records", lambda: rows)


def test_a_dry_run_writes_nothing_and_warns(unstated: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror.main(["hivit_base", TAG, "--to", str(tmp_path / "b"), "--dry-run"])
    out, err = capsys.readouterr()
    assert f"  {TAG}: 1.03 MB, licence apache-2.0\n" in out
    assert "dry run: nothing was written" in out
    warned = "no licence is stated for these weights, so nobody may pass them on: keep the bundle to yourself"
    assert err.splitlines() == [f"warning: hivit_base.{tag}: {warned}" for tag in UNSTATED]
    assert not (tmp_path / "b").exists()


def test_weights_that_the_manifest_does_not_know_are_not_mirrored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = dataclasses.replace(manifest.records()[TAG], sha256="0" * 64)
    monkeypatch.setattr(mirror_module, "records", lambda: {TAG: row})
    [line] = failed(capsys, TAG, "--to", str(tmp_path / "b"))
    assert line.startswith(f"{TAG}: the weights here have sha256 {digest(CONTENT)}, the manifest says {'0' * 64}")
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hivit", "--to", "./b"), ["TAGS hivit fits no weights; near it are "]),
        (("x1", "x2", "--to", "./b"), ["TAGS x1 fits no weights", "TAGS x2 fits no weights"]),
        ((TAG, "--to", "http://a/b"), ["--to http://a/b is an address; a folder, or hf-hub:ORG"]),
        ((TAG, "--to", "hf-hub:a/b"), ["hf-hub:a/b is no organisation of the Hub"]),
        ((TAG, "--to", "./b", "--private"), ["--private is for an organisation of the Hub, and --to ./b is a folder"]),
        ((TAG, "--to", "./b", "--force"), ["--force is for an organisation"]),
        ((TAG, "--to", "./file"), ["--to ./file is a file; name a folder"]),
    ],
)
def test_bad_input_is_refused(
    words: tuple[str, ...],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    lines = failed(capsys, *words)
    assert all(expected in line for expected, line in zip(said, lines, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ORG", mirrors.Mirror(organisation="ORG")),
        ("hf-hub:ORG", mirrors.Mirror(organisation="ORG")),
        ("there", mirrors.Mirror(folder=Path("there"))),
        ("./ORG", mirrors.Mirror(folder=Path("ORG"))),
        ("a/b", mirrors.Mirror(folder=Path("a/b"))),
        ("https://a/b/", mirrors.Mirror(address="https://a/b")),
    ],
)
def test_what_a_name_means(
    name: str, expected: mirrors.Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert mirrors.mirror_named(name) == expected


# ---- an organisation


@pytest.fixture
def own_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the small Hub has none
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_an_organisation_gets_a_repository_for_each_tag(own_hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    found = mirror.run(tags="hivit_atto", to="ORG", private=True)
    assert [one["name"] for one in found] == [TAG, ENCODER]
    assert set(own_hub.repos) == {f"ORG/{TAG}", f"ORG/{ENCODER}"}
    assert own_hub.asked["GET /api/whoami-v2"] == 1
    assert all(repo.private and len(repo.commits) == 1 for repo in own_hub.repos.values())
    assert "ORG is taken for an organisation of the Hub; ./ORG would be a folder" in capsys.readouterr().out


def test_licences_that_do_not_allow_it_are_all_said_and_nothing_is_sent(
    unstated: None, own_hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = failed(capsys, "hivit_base", TAG, "--to", "hf-hub:ORG")
    assert [line.partition(": ")[0] for line in lines] == [f"hivit_base.{tag}" for tag in UNSTATED]
    assert all("no licence is stated for these weights" in line for line in lines)
    assert own_hub.log == []


@pytest.mark.parametrize("verb", [mirror, publish], ids=lambda verb: verb.VERB.name)
def test_the_examples_of_the_help_are_understood(verb: ModuleType) -> None:
    for example in verb.EXAMPLES:
        words = shlex.split(example)
        assert words[:3] == ["python", "-m", f"hiermim_zoo.{verb.VERB.name}"]
        assert shlex.split(verb.VERB.parse(words[3:]).command(verb.VERB.name))[:3] == words[:3]


# ---- weights from a mirror


def test_no_mirror_is_asked_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    row = manifest.records()[TAG]
    monkeypatch.delenv("HIERMIM_MIRROR", raising=False)
    assert mirrors.mirrored(row) == []
    monkeypatch.setenv("HIERMIM_MIRROR", "hf-hub:a/b")
    with pytest.raises(ValueError, match="HIERMIM_MIRROR: hf-hub:a/b is no organisation"):
        mirrors.mirrored(row)


@pytest.mark.parametrize("kind", ["store", "folder", "address", "organisation"])
def test_a_tag_is_converted_from_where_pretrained_would_take_it(
    kind: str, bundle: Path, nothing_embedded: None, own_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin is asked only for what the authors' file alone tells."""
    files = {f"/m/{p.relative_to(bundle)}": p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    own_hub.repos[f"ORG/{TAG}"] = Repo()
    own_hub.repos[f"ORG/{TAG}"].add({"model.safetensors": CONTENT})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving(files) as web:
        row = dataclasses.replace(manifest.records()[TAG], file="", sha256="", bytes=0, url=f"{web.url}/origin.pth")
        monkeypatch.setattr(manifest, "records", lambda: {TAG: row})
        places = {"folder": str(bundle), "address": f"{web.url}/m", "organisation": "hf-hub:ORG"}
        monkeypatch.setenv(*("HIERMIM_WEIGHTS", str(bundle)) if kind == "store" else ("HIERMIM_MIRROR", places[kind]))
        convert.run(source=TAG, output=tmp_path / "out")
        assert not [path for _, path, _ in web.log if path == "/origin.pth"]
        with pytest.raises(DownloadError, match=r"/origin.pth: the server answered 404"):
            convert.run(source=TAG, output=tmp_path / "verified", verify=True)
        monkeypatch.delenv("HIERMIM_WEIGHTS", raising=False)  # negative control: without a mirror it is the origin
        monkeypatch.setenv("HIERMIM_MIRROR", str(tmp_path / "nowhere" / "bundle"))
        with pytest.raises(DownloadError, match=r"is no bundle; .*/origin.pth: the server answered 404"):
            convert.run(source=TAG, output=tmp_path / "other")
    own = load_file(ROOT / "weights" / f"{TAG}.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert own.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hiermim_zoo"]["source"] == TAG


def test_a_mirror_is_asked_before_the_origin(
    bundle: Path, nothing_embedded: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a row that has both; the one line says what came from where, the second time nothing is asked."""
    row = dataclasses.replace(manifest.records()[TAG], file="", sha256="", bytes=0, url="http://127.0.0.1:9/never")
    monkeypatch.setenv("HIERMIM_MIRROR", str(bundle))
    path = weights.locate(row)
    assert path == store.user_store() / TAG / "model.safetensors"
    assert seen(path.parent) == seen(bundle / TAG)
    assert path.read_bytes() == CONTENT
    [line] = [record.getMessage() for record in caplog.records]
    place = bundle / TAG / "model.safetensors"
    assert line == (f"{TAG}: fetched from {place}, {len(CONTENT)} bytes, sha256 {digest(CONTENT)}; licence apache-2.0")
    monkeypatch.setenv("HIERMIM_MIRROR", "/nowhere")
    assert weights.locate(row) == path
    assert len(caplog.records) == 1


@pytest.mark.parametrize("known", [False, True])
def test_a_bundle_with_other_bytes_is_refused(
    known: bool, copied: Path, nothing_embedded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own record; and if that was changed too, by what the manifest knows."""
    row = dataclasses.replace(manifest.records()[TAG], **({} if known else {"file": "", "sha256": "", "bytes": 0}))
    other = CONTENT[:-1] + b"?"
    (copied / TAG / "model.safetensors").write_bytes(other)
    record = json.loads((copied / RECORD).read_text())
    if known:
        record["weights"][TAG]["files"]["model.safetensors"]["sha256"] = digest(other)
        (copied / RECORD).write_text(json.dumps(record))
    monkeypatch.setenv("HIERMIM_MIRROR", str(copied))
    for mirror_address in (True, False):
        with serving({f"/{p.relative_to(copied)}": p.read_bytes() for p in copied.rglob("*.*") if p.is_file()}) as web:
            monkeypatch.setenv("HIERMIM_MIRROR", web.url if mirror_address else str(copied))
            with pytest.raises(store.WeightsNotFound) as error:
                weights.locate(row)
        asked = str(error.value).splitlines()[2]
        said = f"says sha256 {digest(other)}, the manifest {digest(CONTENT)}"
        assert (said if known else f"sha256 is {digest(other)} instead of {digest(CONTENT)}") in asked
        assert not [path for path in store.user_store().rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist, so this is no bundle"),
        ("[]", "is no record of a bundle"),
        ('{"weights": {}}', "has format None; 1 is understood"),
        ('{"format": 1, "weights": {}}', f"does not have {TAG}"),
        ('{"format": 1, "weights": {"a": {"license": "mit", "files": {}}}}', "is no record of a bundle"),
        ('{"format": 1, "weights": {"a": 3}}', "is no record of a bundle"),
    ],
)
def test_a_folder_that_is_no_bundle_is_said(
    content: str | None, said: str, tmp_path: Path, nothing_embedded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / RECORD).write_text(content)
    monkeypatch.setenv("HIERMIM_MIRROR", str(tmp_path))
    with pytest.raises(store.WeightsNotFound) as error:
        weights.locate(manifest.records()[TAG])
    asked = str(error.value).splitlines()[2]
    assert f"{tmp_path / RECORD} {said}" in asked


@pytest.mark.parametrize(("sha256", "size"), [("0" * 63, 1), ("0" * 64, 0), ("0" * 64, True), ("0" * 64, "1"), (3, 1)])
def test_a_record_holds_digests_and_sizes(sha256: Any, size: Any, tmp_path: Path) -> None:
    about = {"license": "mit", "files": {"model.safetensors": {"sha256": sha256, "bytes": size}}}
    (tmp_path / RECORD).write_text(json.dumps({"format": 1, "weights": {"a": about}}))
    with pytest.raises(DownloadError, match="is no record of a bundle"):
        mirrors.read_record(tmp_path)


def test_offline_a_mirror_that_is_wrong_is_named_first(
    tmp_path: Path, nothing_embedded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    row = dataclasses.replace(manifest.records()[TAG], url="http://127.0.0.1:9/never")
    for mirror_named, first in ((str(tmp_path / "no" / "bundle"), "Name a mirror that has them in "), ("", "Unset HF")):
        monkeypatch.setenv("HIERMIM_MIRROR", mirror_named)
        with pytest.raises(store.WeightsNotFound, match=f"^{first}"):
            weights.locate(row)


def test_without_a_network_a_folder_that_lacks_a_tag_is_no_network(
    tmp_path: Path, nothing_embedded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = dataclasses.replace(manifest.records()[TAG], url="http://127.0.0.1:9/never")
    monkeypatch.setenv("HIERMIM_MIRROR", str(tmp_path))
    with pytest.raises(store.WeightsNotFound, match=r"^Connect to the internet, or get the file"):
        weights.locate(row)


SCRIPT = """
import json, pathlib, sys, timm, torch
from hiermim_zoo.checkpoints import store
store.weights_dir = lambda: pathlib.Path("nowhere")
try:
    model = timm.create_model(sys.argv[1], pretrained=True)
    print(json.dumps([p.double().sum().item() for p in model.parameters()]))
except Exception as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub() as running:
        for tag in (TAG, ENCODER):
            file = ROOT / "weights" / f"{tag}.safetensors"
            running.repos[f"ORG/{tag}"] = repo = Repo(private=True)
            repo.add({"model.safetensors": file.read_bytes()})
        yield running


@pytest.fixture(scope="module")
def fresh(server: Hub, stem: Stem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes whose Hub is the small one, and which have nothing."""
    home = tmp_path_factory.mktemp("home")
    with stem.forks(home, HOME=str(home), HF_ENDPOINT=server.url, HF_HOME=str(home / "hub")) as parent:
        yield parent


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "address", "organisation", "store"])
def test_pretrained_weights_come_from_a_mirror_into_a_fresh_home(
    kind: str, fresh: Forks, server: Hub, bundle: Path, tmp_path: Path
) -> None:
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": ""}
    own = [p.double().sum().item() for p in timm.create_model(TAG, pretrained=True).parameters()]
    files = {f"/m/{p.relative_to(bundle)}": p.read_bytes() for p in bundle.rglob("*.*") if p.is_file()}
    with serving(files) as web:
        env = {
            "folder": {"HIERMIM_MIRROR": str(bundle)},
            "address": {"HIERMIM_MIRROR": f"{web.url}/m/"},
            "organisation": {"HIERMIM_MIRROR": "ORG", "HF_TOKEN": TOKEN},
            "store": {"HIERMIM_WEIGHTS": str(bundle)},
        }[kind]
        done = fresh.run(SCRIPT, TAG, **home, **env)
        assert json.loads(done.stdout) == own, done.stderr
        said = [line for line in done.stderr.splitlines() if line.startswith(f"{TAG}: ")]
        assert len(said) == (kind != "store")
        assert all(f"{len(CONTENT)} bytes" in line and "licence apache-2.0" in line for line in said)
    again = fresh.run(SCRIPT, TAG, **home, **({"HIERMIM_MIRROR": "/nowhere"} if kind != "store" else env))
    if kind != "organisation":  # whose files are in the Hub's cache, and that is asked again
        assert json.loads(again.stdout) == own, again.stderr


@pytest.mark.slow
def test_a_private_mirror_needs_the_token(fresh: Forks, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": "", "HF_TOKEN": ""}
    done = fresh.run(SCRIPT, ENCODER, **home, HIERMIM_MIRROR="hf-hub:ORG")
    assert f"hf-hub:ORG/{ENCODER} (401" in json.loads(done.stdout)
