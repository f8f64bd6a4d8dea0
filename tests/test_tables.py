"""Tables that name files are data as good as a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from hiermim_zoo import evaluate, extract, pretrain, reconstruct, stats
from hiermim_zoo.data.kinds import open_images


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    for n in range(6):
        Image.new("RGB", (8, 8), (40 * n,) * 3).save(tmp_path / "scans" / f"{n}.png")
    return tmp_path


def table(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def grey(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


def test_a_list_of_files_is_data(files: Path) -> None:
    source = open_images(table(files, "list.txt", "scans/3.png\n\nscans/1.png\n"))
    assert [grey(image) for image, _ in source] == [120, 40]
    assert [label for _, label in source] == [-1, -1]
    assert (source.labels, source.class_names) == (None, None)
    assert source.name_of(0) == str(files / "scans/3.png")


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("column", ["file", "path", "image"])
def test_columns_are_found_by_their_names(files: Path, name: str, comma: str, column: str) -> None:
    rows = [["age", column, "label"], ["3", "scans/2.png", "dog"], ["4", "scans/0.png", "cat"]]
    source = open_images(table(files, name, "\ufeff" + "\n".join(comma.join(row) for row in rows)))
    assert [(grey(image), label) for image, label in source] == [(80, 1), (0, 0)]
    assert source.class_names == ["cat", "dog"]


def test_splits_have_the_same_classes(files: Path) -> None:
    rows = ["file,class,split", *(f"scans/{n}.png,{'ab'[n % 2]},train" for n in range(4)), "scans/4.png,b,val"]
    path = table(files, "t.csv", "\n".join(rows))
    train, val = (open_images(path, split=split) for split in ("train", "validation"))
    assert (len(train), len(val)) == (4, 1)
    assert train.class_names == val.class_names == ["a", "b"]
    assert val.read(0)[1] == 1
    assert train.identity != val.identity
    with pytest.raises(ValueError, match=r"t\.csv has no images of the split 'test', but of train, val"):
        open_images(path, split="test")


def test_names_are_relative_to_the_table_or_to_a_root(files: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir(exist_ok=True)
    path = table(tmp_path / "lists", "l.txt", "1.png")
    with pytest.raises(ValueError, match=r"l\.txt names .*lists/1\.png, which does not exist"):
        open_images(path)
    assert grey(open_images(path, root=str(files / "scans")).read(0)[0]) == 40


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "names no files"),
        ("a.csv", "file,label\n", "names no files"),
        ("a.csv", "name,label\nx,y\n", "has the columns name, label; one must be called file or filename"),
        ("a.csv", "file;label\nx;y\n", r"; ';' divides no columns: in \.csv a comma does, in \.tsv a tab"),
        ("a.tsv", "file,label\nx,y\n", "; ',' divides no columns"),
        ("a.csv", "name,label\nx,y\n", "path or image$"),
        ("a.txt", "scans\\1.png\n", r"which does not exist; write / in place of \\ between folders"),
        ("a.txt", "scans/none.png\n", "which does not exist$"),
        ("a.csv", "file,label\n,y\n", "line 2: there is no file"),
        ("a.csv", "label,file\ny\n", "line 2: there is no file"),
    ],
)
def test_tables_that_are_none_are_named(files: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_images(table(files, name, text))
    (files / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no table of text"):
        open_images(str(files / name))


def test_commands_take_tables(files: Path) -> None:
    rows = [f"scans/{n}.png,{'ab'[n % 2]},{'train' if n < 4 else 'val'}" for n in range(6)]
    path = table(files, "t.csv", "\n".join(["file,label,split", *rows]))
    assert stats.run(data=path, workers=0)["images"] == 4
    assert evaluate.run(data=path, model="hivit_atto", method="knn", k=1, workers=0, pretrained=False)["pictures"] == 2
    rows = [row.rpartition(",")[0] for row in rows]
    path = table(files, "one.csv", "\n".join(["file,label", *rows]))
    how: dict[str, Any] = {"model": "hivit_atto", "method": "knn", "k": 1, "workers": 0, "pretrained": False}
    assert evaluate.run(data=path, split_fraction=0.4, **how)["pictures"] == 2
    with pytest.raises(ValueError, match=r"a share of 0.2 of .* 1 image, has one class alone; give --train DATA"):
        evaluate.run(data=path, **how)
    with pytest.raises(ValueError, match=r"--train DATA is needed: .*one\.csv has no two splits"):
        evaluate.run(data=path, model="hivit_atto", method="knn", workers=0, pretrained=False, train_split="trained")


def test_extract_and_reconstruct_take_tables(files: Path, tmp_path: Path) -> None:
    path = table(files, "t.csv", "file,label\nscans/3.png,a\nscans/1.png,b\n")
    how: dict[str, Any] = {"model": "hivit_atto", "output": tmp_path / "out.safetensors"}
    extract.run(images=[path], pretrained=False, workers=0, **how)
    with safe_open(how["output"], "pt") as file:
        assert json.loads(file.metadata()["files"]) == [str(files / f"scans/{n}.png") for n in (3, 1)]
    drawn = []
    for images in ([path], [files / "scans/3.png", files / "scans/1.png"], [files / "scans/3.png"]):
        torch.manual_seed(0)  # of the weights
        drawn.append(reconstruct.run(images=images, model="hivit_atto", output=tmp_path / "out.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match=r"t\.csv names .*scans/9\.png, which does not exist"):
        extract.run(images=[table(files, "t.csv", "file\nscans/9.png\n")], pretrained=False, **how, force=True)


@pytest.mark.parametrize("words", [["--files", "l.txt"], ["--files=l.txt"]])
@pytest.mark.parametrize("verb", [pretrain, evaluate, extract, reconstruct, stats])
def test_files_is_another_spelling_of_a_table(verb: Any, words: list[str]) -> None:
    needed: dict[Any, list[str]] = {
        pretrain: ["--model", "hivit_atto", "-o", "o"],
        evaluate: ["--model", "m", "--method", "knn"],
        extract: ["--model", "m", "-o", "o", "--what", "pooled"],
        reconstruct: ["--model", "m", "-o", "o.png"],
        stats: [],
    }
    assert verb.VERB.parse([*needed[verb], *words]) == verb.VERB.parse(["l.txt", *needed[verb]])
    with pytest.raises(ValueError, match="--files needs the name of a file"):
        verb.VERB.parse(["--files", *needed[verb]])
    with pytest.raises(ValueError, match="unrecognized arguments: --file "):
        verb.VERB.parse([*needed[verb], "l.txt", "--file", "l.txt"])
