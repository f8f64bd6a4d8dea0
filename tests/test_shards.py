"""Checkpoints in several files, and files of all suffixes: what is read, and what does not go together."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.content import read_content
from hiermim_zoo.checkpoints.files import SUFFIXES, read_checkpoint

from .servers import serving
from .test_reading import ARCH, encoder, same

KINDS = ["model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"]
STATE = {"cls": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(4), "half": torch.ones(2, 2).half()}


def sharded(folder: Path, kind: str = KINDS[0], state: dict[str, Tensor] = STATE, of: int = 2) -> Path:
    """Write a checkpoint in several files; its index."""
    folder.mkdir(exist_ok=True)
    stem, _, suffix = kind.partition(".")
    parts = [f"{stem}-{i + 1:05}-of-{of:05}.{suffix}" for i in range(of)]
    places = {name: parts[i % of] for i, name in enumerate(state)}
    for part in parts:
        write({name: state[name] for name, place in places.items() if place == part}, folder / part)
    index = folder / f"{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def write(state: dict[str, Any], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["folder", "index"])
def test_several_files_are_read_as_one(kind: str, by: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "large", kind)
    found = read_checkpoint(index if by == "index" else index.parent)
    assert same(found.state, STATE)
    assert (found.path, found.top_key, found.sets) == (index, "", ("",))


def test_the_digest_is_that_of_what_sha256sum_prints(tmp_path: Path) -> None:
    """Of the files in the order of their names; it changes with any of them."""
    index = sharded(tmp_path / "large")
    parts = sorted(path for path in index.parent.iterdir() if path != index)
    printed = "".join(f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}\n" for part in parts)
    before = read_checkpoint(index).sha256
    assert before == hashlib.sha256(printed.encode()).hexdigest()
    sharded(tmp_path / "large", state={**STATE, "bias": torch.zeros(4)})
    assert read_checkpoint(index).sha256 != before


def test_one_file_of_several_is_refused_with_the_index_to_name(tmp_path: Path) -> None:
    index = sharded(tmp_path / "large")
    part = index.with_name("model-00002-of-00002.safetensors")
    with pytest.raises(
        ValueError, match=r"is one of 2 files of a checkpoint; model\.safetensors\.index\.json .* name that"
    ):
        read_checkpoint(part)
    index.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json has them all: which is missing beside it"):
        read_checkpoint(part)
    with pytest.raises(ValueError, match=r"holds model-00001-of-00002\.safetensors, model-00002-of"):
        read_checkpoint(index.parent)
    alone = sharded(tmp_path / "alone", of=1)
    assert same(read_checkpoint(alone.with_name("model-00001-of-00001.safetensors")).state, STATE)


def test_index_and_files_must_say_the_same(tmp_path: Path) -> None:
    index = sharded(tmp_path / "large")
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    places = json.loads(index.read_text())["weight_map"]

    def says(message: str, **changed: str | None) -> None:
        now = {name: place for name, place in {**places, **changed}.items() if place}
        index.write_text(json.dumps({"weight_map": now}))
        with pytest.raises(ValueError, match=message):
            read_checkpoint(index)

    says("tensor 'more' is not in model-00001-of-00002.safetensors, where", more=first)
    says("tensor 'bias' is not in model-00001-of-00002.safetensors, where", bias=first)
    says("tensor 'half' of model-00001-of-00002.safetensors is missing from", half=None)
    says(
        "model-00003-of-00002.safetensors, which model.safetensors.index.json names, does not exist",
        more=first.replace("1", "3", 1),
    )
    index.write_text(json.dumps({"weight_map": places}))
    index.with_name(second).unlink()
    with pytest.raises(
        ValueError, match=r"00002-of-00002\.safetensors, which model.safetensors.index.json names, does"
    ):
        read_checkpoint(index)


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "sub/secret.safetensors", "..", ".", "", "~/x.bin", "a\\b.bin", ".hidden",
     "model.safetensors.index.json", "a\nb.bin", "http:x"],
)  # fmt: skip
def test_an_index_names_files_beside_it_alone(name: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "large")
    save_file(STATE, tmp_path / "secret.safetensors")
    (tmp_path / "large" / "sub").mkdir()
    save_file(STATE, tmp_path / "large" / "sub" / "secret.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(STATE, name)}))
    with pytest.raises(ValueError, match="which is no file beside it"):
        read_checkpoint(index)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    """But for those of the Hub's cache, into its own store."""
    index = sharded(tmp_path / "large")
    part = index.with_name("model-00001-of-00002.safetensors")
    part.rename(tmp_path / "secret.safetensors")
    part.symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(ValueError, match=r"is a link to .*secret\.safetensors, which is in another folder"):
        read_checkpoint(index)
    (tmp_path / "hub" / "snapshots").mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    index = sharded(tmp_path / "hub" / "snapshots" / "abc")
    part = index.with_name("model-00001-of-00002.safetensors")
    part.rename(tmp_path / "hub" / "blobs" / "0123")
    part.symlink_to("../../blobs/0123")
    assert same(read_checkpoint(index).state, STATE)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": [1]}', "[" * 9999]
)
def test_what_is_no_index_is_named(text: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "large")
    index.write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is no (valid JSON|index of a checkpoint)"):
        read_checkpoint(index.parent)


def test_several_files_convert_from_folder_and_address(tmp_path: Path) -> None:
    state = encoder()
    index = sharded(tmp_path / "large", state=state, of=3)
    out = [tmp_path / name for name in "ab"]
    convert.run(source=str(index.parent), model=ARCH, output=str(out[0]))
    with serving({f"/x/{path.name}": path.read_bytes() for path in index.parent.iterdir()}) as server:
        convert.run(source=f"{server.url}/x/{index.name}?download=true", model=ARCH, output=str(out[1]))
        with pytest.raises(ValueError, match=r"^model-00001-of-00003\.safetensors is one of 3 files of a checkpoint"):
            convert.run(source=f"{server.url}/x/model-00001-of-00003.safetensors", model=ARCH, dry_run=True)
    assert all(same(read_checkpoint(folder).state, state) for folder in out)
    assert json.loads((out[0] / "config.json").read_text())["hiermim_zoo"]["file"] == index.name


# ---- suffixes


@pytest.mark.parametrize(
    "name", ["run.ckpt", "best.pth.tar", "x.tar", "x.pyth", "x.bin", "x.pt", "x.pth", "x.weights", "x"]
)
@pytest.mark.parametrize("kind", ["torch", "old torch", "safetensors"])
def test_the_content_tells_what_a_file_is(name: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "folder" / name
    file.parent.mkdir()
    if kind == "safetensors":
        save_file(STATE, file)
    else:
        torch.save({"model": STATE}, file, _use_new_zipfile_serialization=kind == "torch")
    assert same(read_checkpoint(file).state, STATE)
    if file.suffix in SUFFIXES:
        assert same(read_checkpoint(file.parent).state, STATE)
    else:
        with pytest.raises(ValueError, match=r"holds no \.safetensors/\.pth/"):
            read_checkpoint(file.parent)


def test_an_address_needs_no_suffix(tmp_path: Path) -> None:
    torch.save({"state_dict": encoder()}, tmp_path / "file")
    with serving({"/weights/latest": (tmp_path / "file").read_bytes()}) as server:
        convert.run(source=f"{server.url}/weights/latest", model=ARCH, output=str(tmp_path / "out"))
    assert same(read_checkpoint(tmp_path / "out").state, encoder())


def test_of_several_files_in_a_folder_the_usual_name_is_read(tmp_path: Path) -> None:
    """As transformers leaves them: beside the optimiser's; safetensors before torch, one file before several."""
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    torch.save({"seed": 1}, tmp_path / "training_args.bin")
    with pytest.raises(ValueError, match=r"holds optimizer\.pt, training_args\.bin: name one of them"):
        read_checkpoint(tmp_path)
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert read_checkpoint(tmp_path).path.name == "pytorch_model.bin"
    sharded(tmp_path)
    assert read_checkpoint(tmp_path).path.name == "model.safetensors.index.json"
    save_file(STATE, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path).path.name == "model.safetensors"


def test_an_archive_of_files_is_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    with tarfile.open(tmp_path / "w.pth.tar", "w") as archive:
        archive.add(tmp_path / "w.pth", "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth\.tar is a tar archive, no PyTorch checkpoint; unpack it"):
        read_content(tmp_path / "w.pth.tar")
