"""``doctor``: what it says of the installation and of weights, good ones and others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from hiermim_zoo import convert, create_mae
from hiermim_zoo.checkpoints import manifest, store
from hiermim_zoo.checkpoints.folder import CONFIG_FILE, MODEL_FILE, Contents, write_folder
from hiermim_zoo.checkpoints.golden import write_golden
from hiermim_zoo.checkpoints.manifest import Weights
from hiermim_zoo.doctor import main, run
from hiermim_zoo.mae import decoder_state
from hiermim_zoo.models import weights
from hiermim_zoo.models.plausible import shuffled

from .servers import serving

CLASSIFIER, ENCODER = "hivit_atto.mae_cifar10_ft_cifar10", "hivit_atto.mae_cifar10"
PICTURES = str(Path(__file__).parents[1] / "examples" / "pictures")

LOOK_UP = socket.getaddrinfo


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not said to be fetched must not be."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("a server is looked up"))


def checks(target: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["state"] for check in target["checks"]}


def words(target: dict[str, Any], name: str) -> str:
    return next(check["found"] for check in target["checks"] if check["check"] == name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a classifier, with its golden outputs."""
    folder = tmp_path_factory.mktemp("written") / "model"
    convert.run(source=CLASSIFIER, output=str(folder))
    write_golden(folder, timm.create_model(f"local-dir:{folder}", pretrained=True))
    return folder


# ---- the installation


def test_it_says_what_is_installed_and_where_weights_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").write_bytes(bytes(1000))
    (tmp_path / "store" / "link").symlink_to(tmp_path / "store" / "a")
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path / "store"))
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = run()
    assert found["targets"] == []
    there = found["installation"]
    assert there["versions"]["torch"] == torch.__version__
    assert {"path": str(tmp_path / "store"), "bytes": 1000} in there["folders"]
    assert there["environment"]["https_proxy"] == "http://proxy:3128"
    assert there["environment"]["HIERMIM_WEIGHTS"] == str(tmp_path / "store")
    assert there["offline"]
    assert set(there["here"]) | set(there["elsewhere"]) == set(manifest.records())
    assert CLASSIFIER in there["here"]
    assert there["elsewhere"]["hivit_base.mae_in1k"] == "Drive"


def test_it_is_printed_in_lines_or_as_records(capsys: pytest.CaptureFixture[str]) -> None:
    found = main([])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    assert f"torch            {torch.__version__}" in printed
    assert f"weights that are here: {len(found['installation']['here'])}" in printed
    assert all(name in printed for name in manifest.records())
    main(["--json"])
    assert json.loads(capsys.readouterr().out)["installation"]["versions"] == found["installation"]["versions"]


# ---- weights


def test_embedded_weights_are_right_and_the_exit_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    found = main([CLASSIFIER, ENCODER])
    assert capsys.readouterr().out.count("as the manifest says") == 2
    one, two = found["targets"]
    everything = dict.fromkeys(("digest", "layout", "licence", "plausibility", "contract"), "ok")
    assert checks(one) == everything
    assert checks(two) == {**everything, "plausibility": "open"}
    assert "top classes: ship, automobile, " in words(one, "plausibility")


def test_a_folder_is_compared_with_its_golden_outputs(written: Path) -> None:
    [found] = run(targets=str(written))["targets"]
    assert checks(found) == {
        "digest": "open",
        "layout": "ok",
        "licence": "ok",
        "plausibility": "ok",
        "golden": "ok",
        "contract": "ok",
    }
    assert f"torch {torch.__version__}" in words(found, "golden")


def test_a_folder_whose_weights_are_others_is_wrong(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for file in written.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / MODEL_FILE)
    state["patch_embed.proj.weight"] *= 1.05
    save_file(state, folder / MODEL_FILE, {"format": "pt"})
    with pytest.raises(SystemExit) as stop:
        main([str(folder)])
    assert stop.value.code == 1
    [found] = run(targets=str(folder))["targets"]
    assert checks(found)["golden"] == "wrong"
    assert checks(found)["plausibility"] == "ok"  # such a change does no harm that can be seen


def test_an_autoencoder_is_tried_with_its_decoder(tmp_path: Path) -> None:
    """One without training is implausible."""
    torch.manual_seed(0)
    mae = create_mae("hivit_atto")
    cfg = {**mae.encoder.pretrained_cfg, "num_classes": 0}
    mae.encoder.pretrained_cfg = cfg
    contents = Contents("hivit_atto", mae.encoder, {"license": "mit"}, "Made by a test.", decoder=decoder_state(mae))
    write_folder(contents, tmp_path / "mae")
    [found] = run(targets=str(tmp_path / "mae"))["targets"]
    assert checks(found)["plausibility"] == "wrong"
    assert "of that of predicting the mean of each patch" in words(found, "plausibility")
    assert checks(found)["licence"] == checks(found)["contract"] == "ok"


def test_weights_that_are_not_here_are_wrong_and_nobody_is_asked() -> None:
    [found] = run(targets="hivit_base.mae_in1k")["targets"]
    assert checks(found) == {"weights": "wrong", "licence": "open"}
    assert "they can be had from: Drive (--fetch fetches them)" in words(found, "weights")


def test_a_damaged_file_in_the_store_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path))
    source = store.weights_dir() / f"{CLASSIFIER}.safetensors"
    (tmp_path / source.name).write_bytes(source.read_bytes()[:-1000])
    [found] = run(targets=CLASSIFIER)["targets"]
    assert checks(found) == {"digest": "wrong", "layout": "wrong", "licence": "ok", "model": "wrong"}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "hivit_atto",
            "is neither the name of weights nor a folder; its weights are hivit_atto.mae_cifar10_ft_cifar10",
        ),
        ("/nowhere", "is neither the name of weights nor a folder; python -m hiermim_zoo.list shows all weights"),
    ],
)
def test_bad_input_is_a_line(target: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(targets=[CLASSIFIER, target])


def test_a_damaged_folder_does_not_hide_the_others(written: Path, tmp_path: Path) -> None:
    """That is what people look at with ``doctor``; see also the test of mean and deviation."""
    (tmp_path / MODEL_FILE).write_bytes((written / MODEL_FILE).read_bytes())
    config = json.loads((written / CONFIG_FILE).read_text(encoding="utf-8"))
    said = {}
    for name, content in (("no JSON", "{"), ("unknown", json.dumps({**config, "architecture": "colour"}))):
        (tmp_path / CONFIG_FILE).write_text(content, encoding="utf-8")
        broken, whole = run(targets=[str(tmp_path), str(written)])["targets"]
        assert checks(broken) == {"folder": "wrong"}
        assert "wrong" not in checks(whole).values()
        said[name] = broken["checks"][0]["found"]
    assert "JSON" in said["no JSON"]
    assert "architecture 'colour' is not known" in said["unknown"]
    [pictures] = run(targets=str(PICTURES))["targets"]
    assert "holds no config.json: it is no folder of a model" in pictures["checks"][0]["found"]


def test_what_a_file_lacks_is_named(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "it")
    state = load_file(tmp_path / "it" / MODEL_FILE)
    del state["patch_embed.proj.weight"]
    save_file(state, tmp_path / "it" / MODEL_FILE, metadata={"format": "pt"})
    [found] = run(targets=str(tmp_path / "it"))["targets"]
    [model] = [check for check in found["checks"] if check["check"] == "model"]
    assert model["state"] == "wrong"
    assert "patch_embed.proj.weight" in model["found"]


def test_fetch_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="--fetch needs the names of the weights to fetch"):
        run(fetch=True)


# ---- weights that are fetched


ROW = Weights(
    "hivit_atto.toy",
    "hiermim-zoo/toy",
    "hivit_timm",
    "mit",
    "a test",
    "0000.00000",
    classes=10,
    top1=80.0,
    top1_by="us",
)


@pytest.mark.parametrize("known", [False, True])
def test_implausible_weights_are_refused_unless_their_digest_is_known(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", LOOK_UP)
    wrong = shuffled(timm.create_model(CLASSIFIER, pretrained=True)).state_dict()
    torch.save(wrong, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with serving({"/w.pth": content}) as server:
        row = dataclasses.replace(ROW, url=f"{server.url}/w.pth", sha256=digest if known else "")
        if known:
            assert weights.locate(row, tmp_path).is_file()
            return
        with pytest.raises(store.WeightsNotFound) as error:
            weights.locate(row, tmp_path)
    assert "the weights are implausible: tells 2% of what 10 photographs could be told apart by" in str(error.value)
    assert f"python -m hiermim_zoo.convert {row.url} --install {row.name}" in str(error.value)
    assert not list((tmp_path / "hiermim_zoo").rglob("*.safetensors"))
    assert not list((tmp_path / "hiermim_zoo").rglob("*.pth"))


def test_good_weights_and_weights_that_nobody_measured_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", LOOK_UP)
    good = timm.create_model(CLASSIFIER, pretrained=True)
    cases = {"good": (good, ROW), "open": (shuffled(good), dataclasses.replace(ROW, top1=None, top1_by=""))}
    for name, (model, row) in cases.items():
        torch.save(model.state_dict(), tmp_path / "w.pth")
        with serving({"/w.pth": (tmp_path / "w.pth").read_bytes()}) as server:
            row = dataclasses.replace(row, url=f"{server.url}/w.pth")
            assert weights.locate(row, tmp_path / name).is_file()


def test_mean_and_deviation_have_as_many_numbers(written: Path, tmp_path: Path) -> None:
    """Else images would be normalised by whatever of the two is there."""
    shutil.copytree(written, tmp_path / "it")
    file = tmp_path / "it" / CONFIG_FILE
    config = json.loads(file.read_text())
    config["pretrained_cfg"] |= {"mean": [0.5], "std": [0.2, 0.2, 0.2]}
    file.write_text(json.dumps(config))
    [found] = run(targets=[str(tmp_path / "it")])["targets"]
    assert "pretrained_cfg.mean is [0.5]; as many numbers as std has (3)" in found["checks"][0]["found"]
