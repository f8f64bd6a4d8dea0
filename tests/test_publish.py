"""``publish``, with the Hub's own client against a small Hub on loopback."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import tomllib
import torch
from huggingface_hub import constants, snapshot_download
from safetensors.torch import load_file

from hiermim_zoo import convert, publish
from hiermim_zoo.checkpoints import manifest, pins, store
from hiermim_zoo.checkpoints.card import model_card, published_card
from hiermim_zoo.checkpoints.folder import Contents, own_cfg, write_folder
from hiermim_zoo.checkpoints.golden import check_golden
from hiermim_zoo.checkpoints.licenses import COMMERCIAL, redistribution
from hiermim_zoo.commands import publication
from hiermim_zoo.mae import create_mae, decoder_state, recipe_changes

from .hub import LARGE, PART, TOKEN, Hub, Repo, digest
from .publishing import BYTES, FILE, NAME, ROOT, TAG, TOP1, failed, user_of_a_hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>'")  # the Hub's client warns of itself


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with user_of_a_hub(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders with encoder and decoder, by their licence."""
    made: dict[str, Path] = {}

    def folder(license: str) -> Path:
        if license not in made:
            mae = create_mae("hivit_atto", recipe={"depth": 1, "dim": 32, "heads": 2})
            encoder: Any = mae.encoder
            encoder.pretrained_cfg = own_cfg("hivit_atto", {}, license, 0, (3, 64, 64))
            made[license] = tmp_path_factory.mktemp("published") / "encoder"
            about = {"source": "a test", "license": license}
            recipe = recipe_changes("hivit_atto", mae.recipe)
            contents = Contents("hivit_atto", encoder, about, "Made.", decoder=decoder_state(mae), recipe=recipe)
            write_folder(contents, made[license])
        return made[license]

    return folder


# ---- what is published


def test_a_tag_is_one_commit_of_its_own_file_that_timm_loads(
    here: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = publish.run(source=TAG, to=NAME)
    [(commit, files)] = here.repos[NAME].commits
    assert set(files) == {"README.md", "config.json", "golden.safetensors", "model.safetensors"}
    assert files["model.safetensors"] == FILE.read_bytes()
    assert len(files["config.json"]) < LARGE < len(files["golden.safetensors"]) < PART < len(FILE.read_bytes())
    parts = [request for request in here.log if request.startswith(f"PUT /lfs/{digest(FILE.read_bytes())}/")]
    assert len(parts) == -(-BYTES // PART) > 1
    assert (found["repository"], found["commit"], found["license"]) == (NAME, commit, "apache-2.0")
    assert found["files"] == {name: {"sha256": digest(c), "bytes": len(c)} for name, c in files.items()}
    assert not here.repos[NAME].private
    model = timm.create_model(f"hf-hub:{NAME}", pretrained=True, cache_dir=tmp_path / "hub")
    own = timm.create_model(TAG, pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True))
    assert model.pretrained_cfg["label_names"][3] == "cat"
    folder = snapshot_download(NAME, cache_dir=tmp_path / "hub")
    assert check_golden(folder, model.eval()).within
    with torch.no_grad():  # negative control
        model.head.bias += 0.5
    assert not check_golden(folder, model).within
    card = files["README.md"].decode()
    assert f'timm.create_model("hf-hub:{NAME}", pretrained=True)' in card
    assert "\nlicense: apache-2.0\n" in card
    for said in ("Trained by this project", "arXiv:2205.14949", f"{TOP1} % (crop 1;", "CIFAR-10 (50,000"):
        assert said in card


def test_a_folder_is_published_with_its_decoder_and_its_own_card(
    here: Hub, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders("mit")
    (folder / "notes.txt").write_text("mine")
    found = publish.run(source=folder, to=NAME, private=True)
    assert here.repos[NAME].private
    files = here.repos[NAME].files
    assert set(files) == {"README.md", "config.json", "golden.safetensors", "model.safetensors", "decoder.safetensors"}
    for name in ("config.json", "model.safetensors", "decoder.safetensors"):
        assert files[name] == (folder / name).read_bytes()
    there = snapshot_download(NAME, cache_dir=tmp_path / "hub", revision=found["commit"])
    mae, state = create_mae("hivit_atto", checkpoint=there), load_file(folder / "decoder.safetensors")
    assert all(torch.equal(tensor, decoder_state(mae)[name]) for name, tensor in state.items())
    assert check_golden(there, mae).outputs == ("loss", "features")
    assert files["README.md"].decode() == published_card((folder / "README.md").read_text(), NAME, "mit")
    assert "local-dir" not in files["README.md"].decode()


def test_what_was_published_is_compared_bit_by_bit(here: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    here.damage = lambda name, content: content[:-1] + b"?" if name == "config.json" else content
    line = failed(capsys, TAG, "--to", NAME)
    assert f"{NAME}: config.json was published at commit {here.repos[NAME].head}, but came back as another" in line


def test_a_dry_run_asks_and_sends_nothing(here: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    found = publish.run(source=TAG, to=NAME, dry_run=True)
    assert here.repos == {}
    assert found["commit"] is None
    assert found["files"]["model.safetensors"] == {"sha256": digest(FILE.read_bytes()), "bytes": FILE.stat().st_size}
    assert {request.split()[0] for request in here.log} == {"GET"}
    assert f"{TAG} -> {here.url}/{NAME} (as somebody; is new, public)" in capsys.readouterr().out


# ---- what is there already


def test_files_of_others_stay_and_what_is_replaced_is_said(here: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.dumps({"architecture": "hivit_atto"}).encode()
    here.repos[NAME] = Repo()
    here.repos[NAME].add({"mine.txt": b"1", "config.json": config, "pytorch_model.bin": b"2"})
    publish.run(source=TAG, to=NAME)
    said = capsys.readouterr().out
    assert "config.json: " in said
    assert said.count("replaces the one there") == 1
    assert "stays as it is: mine.txt, pytorch_model.bin" in said
    files = here.repos[NAME].files
    assert (files["mine.txt"], files["pytorch_model.bin"]) == (b"1", b"2")
    assert len(here.repos[NAME].commits) == 2
    publish.run(source=TAG, to=NAME)
    assert f"model.safetensors: {BYTES} bytes, there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"model.safetensors": b"1", "config.json": b'{"architecture": "resnet18"}'}, "has weights of resnet18"),
        ({"weights.pth": b"1"}, "has weights of an architecture that it does not name (weights.pth)"),
        ({"model.safetensors": b"1", "config.json": b"?"}, "of an architecture that it does not name"),
        ({"decoder.safetensors": b"1", "mine.txt": b"3"}, "has weights of an architecture that it does not name"),
        (
            {"model.safetensors": b"1", "decoder.safetensors": b"1", "config.json": b'{"architecture": "hivit_atto"}'},
            "has decoder.safetensors of other weights",
        ),
    ],
)
def test_weights_of_another_model_are_replaced_only_by_force(
    there: dict[str, bytes], said: str, here: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    here.repos[NAME] = Repo()
    here.repos[NAME].add(there)
    assert said in failed(capsys, TAG, "--to", NAME)
    assert len(here.repos[NAME].commits) == 1
    publish.run(source=TAG, to=NAME, force=True)
    after = here.repos[NAME].files
    assert len(here.repos[NAME].commits) == 2
    assert "decoder.safetensors" not in after
    kept = there.keys() - {"model.safetensors", "config.json", "decoder.safetensors"}
    assert all(after[name] == there[name] for name in kept)


def test_a_public_repository_does_not_become_private(here: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    here.repos[NAME] = Repo()
    assert "exists and is public" in failed(capsys, TAG, "--to", NAME, "--private")


# ---- licences


def test_which_licences_allow_to_pass_weights_on() -> None:
    allowed = {license: redistribution(license) for license in COMMERCIAL}
    assert [license for license, told in allowed.items() if told is None] == ["unstated"]
    assert [license for license, told in allowed.items() if told is False] == ["cc-by-nc-nd-4.0"]
    assert redistribution("CC-BY-NC-4.0") is True
    assert redistribution("see LICENSE") is None


@pytest.mark.parametrize(
    ("license", "said"),
    [
        ("unstated", "no licence is stated for these weights"),
        ("cc-by-nc-nd-4.0", "the licence cc-by-nc-nd-4.0 forbids to pass on weights that were changed"),
        ("house-rules", "house-rules is no licence that is known"),
    ],
)
def test_a_licence_that_does_not_allow_it_is_refused_before_anybody_is_asked(
    license: str, said: str, here: Hub, folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    line = failed(capsys, str(folders(license)), "--to", NAME)
    assert said in line
    assert "--i-have-permission TEXT" in line
    assert here.log == []
    text = "Mail of the authors, 3 May | 2025"
    publish.run(source=folders(license), to=NAME, i_have_permission=text)
    card = here.repos[NAME].files["README.md"].decode()
    assert card.endswith(f"## Permission\n\nWhoever published these weights here says: {text}\n")


def test_tags_without_a_licence_are_refused_before_they_are_fetched(
    here: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = manifest.records()
    row = dataclasses.replace(known["hivit_base.mae_in1k"], license="unstated")
    monkeypatch.setattr(publication, "records", lambda: {**known, row.name: row})
    assert "no licence is stated" in failed(capsys, "hivit_base.mae_in1k", "--to", NAME)
    assert here.log == []


def test_a_store_that_says_something_else_than_the_manifest_is_not_published(
    here: Hub, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what agrees is published as it lies there."""
    folder = folders("mit")
    monkeypatch.setattr(publication, "locate", lambda row: folder / "model.safetensors")
    line = failed(capsys, TAG, "--to", NAME)
    assert "says hivit_atto and mit, the manifest hivit_atto and apache-2.0: remove it from the store" in line
    monkeypatch.setattr(publication, "locate", lambda row: folders("apache-2.0") / "model.safetensors")
    publish.run(source=TAG, to=NAME)
    files = here.repos[NAME].files
    for name in ("model.safetensors", "config.json", "decoder.safetensors"):
        assert files[name] == (folders("apache-2.0") / name).read_bytes()
    assert "| source | `a test` |" in files["README.md"].decode()


def test_card_and_configuration_must_name_the_same_licence(
    here: Hub, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    for file in folders("mit").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license: mit", "license: apache-2.0"))
    line = failed(capsys, str(folder), "--to", NAME)
    assert line.endswith("README.md: its licence is apache-2.0, that of config.json is mit")
    (folder / "README.md").write_text("# It\n")
    assert "no licence stands between two lines of ---" in failed(capsys, str(folder), "--to", NAME)
    (folder / "README.md").unlink()
    publish.run(source=folder, to=NAME)
    assert "\nlicense: mit\n" in here.repos[NAME].files["README.md"].decode()
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "apache-2.0"
    (folder / "config.json").write_text(json.dumps(config))
    assert "says two licences, apache-2.0 and mit" in failed(capsys, str(folder), "--to", NAME)


def test_a_permission_replaces_that_of_an_earlier_publication() -> None:
    model = timm.create_model("hivit_atto")
    card = model_card(model, "hivit_atto", {"license": "unstated"}, "Made.")
    once = published_card(card, NAME, "unstated", "They said so.\n# No heading")
    assert once.count("\n# ") == card.count("\n# ")
    twice = published_card(once, NAME, "unstated", "They said so again.")
    assert twice.count("## Permission") == twice.count("## Golden outputs") == 1
    assert "They said so again." in twice
    assert "## Permission" not in published_card(twice, NAME, "unstated")


@pytest.mark.parametrize(
    ("license", "also", "strict"),
    [
        ("apache-2.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("cc-by-nc-4.0", "apache-2.0", "cc-by-nc-4.0"),
        ("apache-2.0", "cc-by-nc-nd-4.0", ""),
        ("mit", "house-rules", ""),
    ],
)
def test_of_two_licences_the_stricter_one_counts_and_the_card_says_both(
    license: str,
    also: str,
    strict: str,
    here: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = dataclasses.replace(manifest.records()[TAG], license=license, license_also=also, license_note="Ask them.")
    monkeypatch.setattr(publication, "records", lambda: {TAG: row})
    if not strict:
        assert also in failed(capsys, TAG, "--to", NAME)
        assert here.log == []
        return
    assert publish.run(source=TAG, to=NAME)["license"] == strict
    files = here.repos[NAME].files
    card, config = files["README.md"].decode(), json.loads(files["config.json"])
    assert f"\nlicense: {strict}\n" in card
    assert f"{license} or {also} may hold, the stricter one is taken. Ask them." in card
    assert config["pretrained_cfg"]["license"] == config["hiermim_zoo"]["license"] == strict


def test_the_same_weights_make_the_same_files(here: Hub, folders: Callable[[str], Path]) -> None:
    """To the bit, so that nothing is left to be sent the second time."""
    for source in (TAG, folders("mit")):
        found = [publish.run(source=source, to=NAME, force=True) for _ in range(3)]
        assert found[0] == found[1] == found[2]
    assert len(here.repos[NAME].commits) == 2


def test_loaders_of_others_find_the_names_of_the_classes(here: Hub, tmp_path: Path) -> None:
    """timm reads both places; transformers' wrapper the outer one alone, as a list."""
    publish.run(source=TAG, to=NAME)
    folder = snapshot_download(NAME, cache_dir=tmp_path / "hub")
    names = json.loads(Path(folder, "config.json").read_text())["label_names"]
    assert names == list(manifest.records()[TAG].labels)
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg["label_names"] == names


def test_a_tag_of_imagenet_has_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that is small for it; a folder of which nobody says what its classes are gets none."""
    row = dataclasses.replace(manifest.records()[TAG], name="hivit_atto.toy", labels=(), classes=1000, file="")
    model = timm.create_model("hivit_atto", num_classes=1000)
    torch.save(model.state_dict(), tmp_path / "o.pth")
    monkeypatch.setattr(manifest, "records", lambda: {row.name: row})
    convert.run(source=tmp_path / "o.pth", install=row.name)
    convert.run(source=tmp_path / "o.pth", model="hivit_atto", output=tmp_path / "own")
    folder = store.user_store() / row.name
    names = json.loads((folder / "config.json").read_text())["label_names"]
    assert (len(names), names[0], names[999].partition(",")[0]) == (1000, "tench, Tinca tinca", "toilet tissue")
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg["label_names"] == names
    assert "label_names" not in json.loads((tmp_path / "own" / "config.json").read_text())


# ---- tokens


def test_a_private_repository_needs_the_token(
    here: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.run(source=TAG, to=NAME, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "answered 401: the token is not accepted" in failed(capsys, TAG, "--to", NAME)
    publish.run(source=TAG, to=NAME, token=TOKEN)
    monkeypatch.delenv("HF_TOKEN")
    assert "no token; set HF_TOKEN" in failed(capsys, TAG, "--to", NAME)
    line = failed(capsys, TAG, "--to", NAME, "--token", "hf_with\nlines")
    assert "the token has characters that no token has" in line
    assert "hf_with" not in line


def test_no_hub_is_said_at_once(here: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert failed(capsys, TAG, "--to", NAME) == f"{NAME}: no connection to 127.0.0.1: Connection refused"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in failed(capsys, TAG, "--to", NAME)


# ---- bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing", "--to", NAME), "nothing is no folder and no tag"),
        ((TAG, "--to", "it"), "it is no name of a repository; ORG/NAME would work"),
        ((TAG, "--to", "a/b/c"), "a/b/c is no name of a repository"),
        ((TAG, "--to", "ORG/a--b"), "ORG/a--b is no name of a repository"),
        ((".", "--to", NAME), ". has no config.json, so it is no model in timm's form"),
        ((".", "--to", NAME, "--manifest", "m.toml"), "--manifest m.toml has rows of tags, and . is a folder"),
        ((TAG, "--to", NAME, "--manifest", "m.toml"), "m.toml does not exist"),
        ((TAG, "--to", NAME, "--manifest", "m.toml", "--dry-run"), "--manifest takes what was published"),
        ((TAG, "--to", NAME, "--manifest", "m.toml", "--private"), "--private hides them"),
        ((TAG, "--to", NAME, "--i-have-permission", "yes"), "yes is not a text that says who gave the permission"),
    ],
)
def test_bad_input_is_refused_before_the_hub_is_asked(
    words: tuple[str, ...],
    said: str,
    here: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in failed(capsys, *words)
    assert here.log == []


def test_a_run_is_no_folder_of_a_model(
    here: Hub, folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders("mit")
    assert f"{folder} is the folder of the encoder" in failed(capsys, str(folder.parent), "--to", NAME)


# ---- pins


def test_a_pin_changes_one_row_of_the_manifest(here: Hub, tmp_path: Path) -> None:
    rows = (ROOT / "weights" / "manifest.toml").read_text(encoding="utf-8")
    (tmp_path / "m.toml").write_text(rows, encoding="utf-8")
    commits = []
    for _ in range(2):  # the second time what the first one wrote is replaced
        commits.append(publish.run(source=TAG, to=NAME, manifest=tmp_path / "m.toml")["commit"])
        here.repos[NAME].add({**here.repos[NAME].files, "README.md": b"changed"})
    text = (tmp_path / "m.toml").read_text(encoding="utf-8")
    before, after = ({row["name"]: row for row in tomllib.loads(content)["weights"]} for content in (rows, text))
    pin = {"hub": NAME, "hub_revision": commits[1], "hub_sha256": digest(FILE.read_bytes()), "hub_bytes": BYTES}
    assert commits[0] != commits[1]
    assert after == {**before, TAG: {**before[TAG], **pin}}
    assert len(text.splitlines()) == len(rows.splitlines()) + 3
    row = manifest.Weights(
        **{key: value for key, value in after[TAG].items() if key in ("hub", *pin)}
        | {"name": TAG, "layout": "", "license": "mit", "source": "", "paper": ""}
    )
    assert row.hub_pinned


def test_a_manifest_without_the_row_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text('[[weights]]\nname = "a.b"\nhub = "o/n"\n# of the next one\n[[weights]]\nname = "a.c"\n')
    with pytest.raises(ValueError, match=re.escape("has no row of a.d; that of a checkout is weights/manifest.toml")):
        pins.check_manifest(file, "a.d")
    pins.write_pin(file, "a.b", {"hub": "O/N", "hub_bytes": 3})
    told = '[[weights]]\nname = "a.b"\nhub = "O/N"\nhub_bytes = 3\n# of the next one\n[[weights]]\nname = "a.c"\n'
    assert file.read_text() == told
    file.write_text("[[weights")
    with pytest.raises(ValueError, match=r"m\.toml is no TOML"):
        pins.check_manifest(file, "a.b")
