"""The order of the places that have weights, what is known of their files, and what became of those fetched before."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import socket
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

from hiermim_zoo import convert
from hiermim_zoo.checkpoints import fetched, manifest, network, store
from hiermim_zoo.checkpoints.download import DownloadError
from hiermim_zoo.checkpoints.manifest import Weights
from hiermim_zoo.checkpoints.places import KNOWN, accept, closed, digests_of, fetch, origins, place_of, places
from hiermim_zoo.models import weights

from .servers import COMMIT, serving

ROW = Weights("hivit_atto.toy", "hiermim-zoo/toy", "hivit_mae", "cc-by-nc-4.0", "a test", "0000.00000")
ONE, TWO = b"one file" * 1000, b"another!" * 1000
DIGESTS = [hashlib.sha256(content).hexdigest() for content in (ONE, TWO)]


def addresses(**changes: object) -> list[str]:
    return [place.address for place in places(dataclasses.replace(ROW, **changes))]  # type: ignore[arg-type]


# ---- order


def test_a_repository_comes_first_where_it_is_pinned_last_where_it_is_known_and_else_never() -> None:
    both = {"url": "https://a/w.pth", "also": "hf-hub:timm/b"}
    pin = {"hub_revision": COMMIT, "hub_sha256": "0" * 64}
    pinned = f"hf-hub:hiermim-zoo/toy@{COMMIT}"
    assert addresses(**both) == ["https://a/w.pth", "hf-hub:timm/b"]
    assert addresses(**both, **pin) == [pinned, "https://a/w.pth", "hf-hub:timm/b"]
    assert addresses(**both, hub="timm/c") == ["https://a/w.pth", "hf-hub:timm/b", "hf-hub:timm/c"]
    for half in ({**pin, "hub_sha256": "0" * 63}, {**pin, "hub_revision": "main"}, {"hub_sha256": "0" * 64}):
        assert addresses(**half) == []


def test_the_manifest_names_no_repository_that_somebody_could_register() -> None:
    rows = manifest.records().values()
    assert len({(row.arch, row.hub) for row in rows}) == len(rows)  # by them a model finds its row
    for row in rows:
        assert bool(row.hub_revision) == bool(row.hub_sha256) == row.hub_pinned
        for place in places(row):
            organisation = place.address.removeprefix("hf-hub:").partition("/")[0]
            assert place.address.startswith("https://") or organisation in KNOWN or place.known
        assert row.file or origins(row)


# ---- what is known of a file


def test_digests_that_others_publish_are_known() -> None:
    known = {row.url.rpartition("/")[2]: row.md5 for row in manifest.records().values() if row.md5}
    assert known == {
        "mae_pretrain_vit_base.pth": "8cad7c",
        "mae_pretrain_vit_large.pth": "b8b06e",
        "mae_pretrain_vit_huge.pth": "9bdbb0",
        "mae_finetuned_vit_base.pth": "1b25e9",
        "mae_finetuned_vit_large.pth": "51f550",
        "mae_finetuned_vit_huge.pth": "2541f2",
    }
    url = next(row.url for row in manifest.records().values() if row.md5 == "1b25e9")
    assert place_of(url).digests == {"md5": "1b25e9"}
    name = "mae_vit-base-p16_8xb512-amp-coslr-300e_in1k_20220829-d2c1b0c8.pth"
    for url, expected in {
        f"https://download.openmmlab.com/mmselfsup/{name}": {"sha256": "d2c1b0c8"},
        f"https://download.openmmlab.com/x_{'0' * 8}.pth?v=1": {"sha256": "0" * 8},
        "https://download.openmmlab.com/x_20220829.pt": {},
        f"https://example.org/{name}": {},
    }.items():
        assert place_of(url).digests == expected
    assert digests_of(f"https://download.openmmlab.com/{name}", sha256="1" * 64) == {"sha256": "1" * 64}


@pytest.mark.parametrize("known", [{"md5": hashlib.md5(ONE).hexdigest()[:6]}, {"sha256": DIGESTS[0]}])
def test_a_file_that_is_not_the_one_known_is_refused(known: dict[str, str], tmp_path: Path) -> None:
    with serving({"/w.pth": ONE}) as server:
        row = dataclasses.replace(ROW, url=f"{server.url}/w.pth", **known)
        assert fetch(origins(row)[0], tmp_path / "got").path.read_bytes() == ONE
        (tmp_path / "got.pth").unlink()
        server.files["/w.pth"] = TWO
        with pytest.raises(DownloadError, match=f"{next(iter(known))} is"):
            fetch(origins(row)[0], tmp_path / "got")
    assert not list(tmp_path.glob("got*"))


# ---- what was first fetched


def test_a_file_that_changes_later_is_refused_until_a_user_says_it_is_right(tmp_path: Path) -> None:
    with serving({"/w.pth": ONE}) as server:
        place = origins(dataclasses.replace(ROW, url=f"{server.url}/w.pth"))[0]
        record = store.user_store() / "fetched.json"
        for content in (ONE, TWO):
            server.files["/w.pth"] = content
            if content is TWO:
                with pytest.raises(DownloadError, match="has changed") as error:
                    fetch(place, tmp_path / "got")
                assert all(digest in str(error.value) for digest in DIGESTS)
                assert f"--sha256 {DIGESTS[1]}" in str(error.value)
                assert not list(tmp_path.glob("got*"))
                fetched = fetch(place, tmp_path / "got", sha256=DIGESTS[1])
                accept(place, fetched, pinned=True)
                fetched.path.unlink()
            fetched = fetch(place, tmp_path / "got")
            accept(place, fetched)
            fetched.path.unlink()
            digest = DIGESTS[content is TWO]
            assert json.loads(record.read_text()) == {place.address: {"sha256": digest, "bytes": len(content)}}
        with pytest.raises(DownloadError, match=f"sha256 is {DIGESTS[1]} instead of {DIGESTS[0]}"):
            fetch(place, tmp_path / "got", sha256=DIGESTS[0])


def test_a_file_that_is_refused_does_not_stand_in_the_way_of_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is no checkpoint, or one of another model; what was taken does (see above)."""
    torch.save(timm.create_model("hivit_atto", num_classes=0).state_dict(), tmp_path / "right.pth")
    torch.save(timm.create_model("hiera_atto", num_classes=0).state_dict(), tmp_path / "other.pth")
    right, other = ((tmp_path / f"{name}.pth").read_bytes() for name in ("right", "other"))
    record = store.user_store() / "fetched.json"
    with serving({}) as server:
        row = dataclasses.replace(ROW, url=f"{server.url}/w.pth", layout="hivit_timm")
        monkeypatch.setattr(manifest, "records", lambda: {ROW.name: row})
        asked = {"source": f"{server.url}/x.pth", "model": "hivit_atto", "output": tmp_path / "x"}
        for content in (ONE, other):
            server.files |= {"/w.pth": content, "/x.pth": content}
            with pytest.raises(store.WeightsNotFound):
                weights.locate(row)
            for command in (asked, {"source": row.name, "output": tmp_path / "y"}):
                with pytest.raises(ValueError, match=r"no PyTorch checkpoint|no hivit checkpoint"):
                    convert.run(**command)
            assert not record.exists()
        server.files |= {"/w.pth": right, "/x.pth": right}
        convert.run(**asked)
        assert weights.locate(row).is_file()
    digest = hashlib.sha256(right).hexdigest()
    assert {address: about["sha256"] for address, about in json.loads(record.read_text()).items()} == {
        f"{server.url}/{name}.pth": digest for name in "xw"
    }


def test_a_damaged_record_is_said_and_one_that_cannot_be_written_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path))
    for text in ("{", "[]", '{"http://a": 3}', '{"http://a": {}}'):
        (tmp_path / "fetched.json").write_text(text)
        with pytest.raises(DownloadError, match=r"fetched\.json is damaged; remove it"):
            fetched.confirm("http://a", DIGESTS[0], 1)
        assert (tmp_path / "fetched.json").read_text() == text
    (tmp_path / "file").touch()
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path / "file" / "store"))
    fetched.confirm("http://a", DIGESTS[0], 1)
    assert "the digest of http://a is not recorded" in caplog.text


def test_convert_compares_and_pins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an address and of a file; what does not agree writes nothing."""
    for name in ("one", "two"):
        torch.save(timm.create_model("hivit_atto", num_classes=0).state_dict(), tmp_path / f"{name}.pth")
    one, two = ((tmp_path / f"{name}.pth").read_bytes() for name in ("one", "two"))
    first, second = (hashlib.sha256(content).hexdigest() for content in (one, two))
    with serving({"/w.pth": one}) as server:
        asked = {"source": f"{server.url}/w.pth", "model": "hivit_atto"}
        convert.run(**asked, output=tmp_path / "a")
        assert f"sha256  {first}" in capsys.readouterr().out
        server.files["/w.pth"] = two
        with pytest.raises(OSError, match=f"has changed: sha256 is {second}, .* it was {first}"):
            convert.run(**asked, output=tmp_path / "b")
        with pytest.raises(ValueError, match=f"--sha256 {first}: .*/w.pth has {second}"):
            convert.run(**asked, output=tmp_path / "b", sha256=first)
        assert not (tmp_path / "b").exists()
        convert.run(**asked, output=tmp_path / "b", sha256=second.upper())
        convert.run(**asked, output=tmp_path / "c")
    about = json.loads((tmp_path / "c" / "config.json").read_text())["hiermim_zoo"]
    assert about["sha256"] == second
    assert second in (tmp_path / "c" / "README.md").read_text()
    with pytest.raises(ValueError, match=f"--sha256 {first}: .*two.pth has {second}"):
        convert.run(source=str(tmp_path / "two.pth"), model="hivit_atto", dry_run=True, sha256=first)
    with pytest.raises(ValueError, match="abc is not the 64 hexadecimal digits of a SHA-256"):
        convert.run(**asked, output=tmp_path / "d", sha256="abc")


def test_a_digest_pins_the_origin_of_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "records", lambda: {ROW.name: row})
    with serving({"/w.pth": ONE}) as server:
        row = dataclasses.replace(ROW, url=f"{server.url}/w.pth")
        with pytest.raises(OSError, match=f"sha256 is {DIGESTS[0]} instead of {DIGESTS[1]}"):
            convert.run(source=ROW.name, install=ROW.name, sha256=DIGESTS[1])
        row = dataclasses.replace(row, sha256=DIGESTS[0])
        with pytest.raises(OSError, match=f"sha256 is known to be {DIGESTS[0]}, not {DIGESTS[1]}"):
            convert.run(source=ROW.name, install=ROW.name, sha256=DIGESTS[1])


# ---- no network


def test_no_network_is_said_once_and_begins_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whether connections are refused, names unknown, or nothing ever answers: a server that takes none is full."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(network, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as guest:
        guest.connect(full.getsockname())
        hole = f"127.0.0.1:{full.getsockname()[1]}"
        for server, reason in {hole: "no answer within 0.3 s", "127.0.0.1:9": "refused", "nowhere.invalid": ""}.items():
            row = dataclasses.replace(ROW, url=f"http://{server}/w.pth", hub="timm/toy")
            with pytest.raises(store.WeightsNotFound) as error:
                weights.locate(row, tmp_path)
            first, second, third = str(error.value).splitlines()
            command = f"python -m hiermim_zoo.convert FILE --install {ROW.name}"
            assert first == f"Connect to the internet, or get the file by other means: {command}"
            assert "HIERMIM_WEIGHTS" in second
            assert f"http://{server}/w.pth (no connection to {server.partition(':')[0]}: " in third
            assert reason in third
            assert "hf-hub:timm/toy (no connection to 127.0.0.1: Connection refused)" in third
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_one_server_that_answers_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """And behind a proxy it is the proxy that has to answer."""
    with serving({}) as server:
        found = origins(dataclasses.replace(ROW, url=server.url, also="hf-hub:timm/toy"))
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert list(closed(found, None)) == ["hf-hub:timm/toy"]
        monkeypatch.setattr(network, "getproxies", lambda: {"http": server.url.removeprefix("http://")})
        monkeypatch.setattr(network, "proxy_bypass", lambda host: False)
        assert closed(found, None) == {}
        monkeypatch.setattr(network, "getproxies", lambda: {"all": "socks5://127.0.0.1:9"})
        assert list(closed(found, None)) == [place.address for place in found]


def test_offline_no_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(network, "_knock", lambda *args: pytest.fail("asked"))
    place = origins(dataclasses.replace(ROW, url="https://a/w.pth"))[0]
    assert closed([place], None) == {"https://a/w.pth": "offline mode, HF_HUB_OFFLINE is set"}
