"""Labels in tables: what they are taken for, what they say of each image, and how data are cut in two."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hiermim_zoo.data.batches import Batching, Reading, balanced
from hiermim_zoo.data.labels import Ask, meaning_of, read_labels
from hiermim_zoo.data.splits import Labelled, check_apart, check_groups, cut, open_labelled
from hiermim_zoo.data.weights import weights_for

SIZE = (3, 8, 8)


def write(folder: Path, columns: str, *rows: str, name: str = "t.csv") -> str:
    """A table whose rows begin with the number of an image, and the images."""
    (folder / "i").mkdir(exist_ok=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", *columns.split(",")])
        for row in rows:
            n, *cells = row.split("/")
            Image.new("RGB", (8, 8), (int(n),) * 3).save(folder / "i" / f"{n}.png")
            table.writerow([f"i/{n}.png", *cells])
    return str(folder / name)


def opened(path: str, **ask: Any) -> Labelled:
    return open_labelled(path, "train", SIZE, Ask(**ask))


def rows(data: Labelled) -> list[Any]:
    assert data.truth is not None
    return [
        [None if math.isnan(x) else x for x in row] if isinstance(row, list) else row for row in data.truth.tolist()
    ]


# ---- what labels are taken for


@pytest.mark.parametrize(
    ("columns", "cells", "ask", "kind", "separator"),
    [
        ("label", ["cat", "dog"], {}, "classes", ""),
        ("label", ["a, b", "ü"], {}, "classes", ""),
        ("class", ["3", "4"], {}, "classes", ""),
        ("label", ["1_2", "3_4"], {}, "classes", ""),
        ("label", ["3", "4a", "b"], {}, "classes", ""),
        ("label", ["3", "4"], {"task": "classes"}, "classes", ""),
        ("label", ["3", "4"], {"task": "values"}, "values", ""),
        ("label", ["0.5", "4"], {}, "values", ""),
        ("label", ["a;b", "c"], {}, "tags", ";"),
        ("label", ["a|b", ""], {}, "tags", "|"),
        ("tags", ["a", "b"], {}, "tags", ";"),
        ("label", ["a b", "c"], {"separator": " "}, "tags", " "),
        ("label", ["a;b", "a"], {"task": "classes"}, "classes", ""),
        ("x,y", ["1/0", "0/"], {"columns": ("x", "y")}, "tags", ""),
        ("x,y", ["1/0", "0/2"], {"columns": ("x", "y")}, "values", ""),
        ("x", ["1", "0"], {"columns": ("x",), "task": "tags"}, "tags", ""),
    ],
)
def test_what_labels_are(
    tmp_path: Path, columns: str, cells: list[str], ask: dict[str, Any], kind: str, separator: str
) -> None:
    path = write(tmp_path, columns, *(f"{n}/{cell}" for n, cell in enumerate(cells)))
    meaning = meaning_of(read_labels(path), Ask(**ask))
    assert (meaning.kind, meaning.separator) == (kind, separator)


@pytest.mark.parametrize(
    ("columns", "cells", "ask", "message"),
    [
        ("label", ["1", "0"], {}, "whole numbers, which could be classes or values; say --task classes or --task val"),
        (
            "label",
            ["1,5", "2,25"],
            {},
            "line 2 (i/0.png): column label holds numbers, but '1,5' here is none (1.5 would",
        ),
        ("label", ["1.5", "2", "n.d."], {}, "line 4 (i/2.png): column label holds numbers, but 'n.d.' here is none"),
        ("age", ["31", "4"], {"columns": ("age",)}, "column age holds whole numbers"),
        ("label", ["a;b", "a|c"], {}, "has both ; and |; --separator says which"),
        ("age,label,tags", ["1/a/b"], {}, "has the columns label and tags; choose one with --target-columns"),
        ("age", ["1"], {}, "has no column label or class or labels or tags, but file, age; --target-columns COLUMN"),
        ("age", ["1"], {"columns": ("ages",)}, "has no column 'ages' for --target-columns, but file, age"),
        ("x,y", ["1/0", "cat/2"], {"columns": ("x", "y")}, "line 3 (i/1.png): column x holds 'cat'; several columns"),
        ("x,y", ["1/0"], {"columns": ("x", "y"), "task": "classes"}, "takes one column, and x, y are 2"),
        ("label", ["a", "b"], {"task": "classes", "separator": ";"}, "--separator ; is for several labels in one col"),
        ("x,y", ["1/0"], {"columns": ("x", "y"), "group": "z"}, "has no column 'z' for --group"),
        ("label", ["a", ""], {}, "line 3 (i/1.png): column label is empty, so the image has no class"),
        ("label", ["0.5", "x"], {"task": "values"}, "line 3 (i/1.png): column label holds 'x', which is no number"),
        ("label", ["0.5", "inf"], {"task": "values"}, "holds 'inf', which is no number"),
        ("label", ["0.5", ""], {"task": "values"}, "line 3 (i/1.png): label say nothing: the image has no label"),
        ("x,y", ["1/0", "1/2"], {"columns": ("x", "y"), "task": "tags"}, "column y holds '2', which is no 0 or 1"),
        ("label", ["a", "a"], {}, "all training images have the class 'a' in column label"),
        ("tags", ["", ""], {}, "none of the training images has a label in column tags"),
        ("label", ["a", "b\tc"], {}, "'b\\tc' is no name"),
        ("label,who", ["a/x", "b/"], {"group": "who"}, "line 3 (i/1.png): column who of --group is empty"),
    ],
)
def test_what_cannot_be_understood_is_one_line(
    tmp_path: Path, columns: str, cells: list[str], ask: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, columns, *(f"{n}/{cell}" for n, cell in enumerate(cells)))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        opened(path, **ask)
    assert "\n" not in str(error.value)


def test_names_with_backslashes_and_columns_between_semicolons_are_told(tmp_path: Path) -> None:
    table = write(tmp_path, "label", "0/a", "1/b")
    Path(table).write_text(Path(table).read_text().replace("i/", "i\\"))
    with pytest.raises(ValueError, match=r"has no row for .*; write / in place of \\ between folders"):
        opened(str(tmp_path / "i"), file=table)
    Path(table).write_text("file;label\ni/0.png;a\ni/1.png;b\n")
    with pytest.raises(
        ValueError, match=r"columns file;label; one must be .*; ';' divides no columns: in \.csv a comma"
    ):
        opened(str(tmp_path / "i"), file=table)


# ---- what they say


def test_tags_say_the_same_in_one_column_and_in_several(tmp_path: Path) -> None:
    one = opened(write(tmp_path, "tags", "0/b; a", "1/", "2/b"))
    several = opened(write(tmp_path, "a,b", "0/1/1", "1/0/0", "2/0/yes", name="s.csv"), columns=("a", "b"))
    assert one.names == several.names == ["a", "b"]
    assert rows(one) == rows(several) == [[1, 1], [0, 0], [0, 1]]
    assert [one.source.read(n)[1] for n in range(3)] == [-1] * 3, "tags are no classes"


def test_what_is_empty_is_unknown(tmp_path: Path) -> None:
    data = opened(write(tmp_path, "x,y", "0/1.5/", "1/NaN/-2", "2/0/0"), columns=("x", "y"))
    assert (data.kind, data.names) == ("values", ["x", "y"])
    assert rows(data) == [[1.5, None], [None, -2], [0, 0]]


def test_classes_are_in_natural_order_and_have_any_name(tmp_path: Path) -> None:
    data = opened(write(tmp_path, "label", "0/10", "1/9", "2/ß, ü", "3/9"), task="classes")
    assert data.names == ["9", "10", "ß, ü"]
    assert data.truth is not None
    assert data.truth.tolist() == [data.source.read(n)[1] for n in range(4)] == [1, 0, 2, 0]


def test_rows_of_one_file(tmp_path: Path) -> None:
    """Those that say the same count once; tags are joined where they are asked for; else it is an error."""
    data = opened(write(tmp_path, "label", "0/a", "1/b", "0/a"))
    assert (len(data.source), data.told and data.told.repeated) == (2, 1)
    path = write(tmp_path, "label", "0/a", "1/b", "0/c")
    with pytest.raises(ValueError, match=r"lines 2 and 4 say different things of i/0\.png; .* --task tags"):
        opened(path)
    assert rows(opened(path, task="tags")) == [[1, 0, 1], [0, 1, 0]]
    path = write(tmp_path, "label,who", "0/a/x", "1/b/x", "0/c/y")
    with pytest.raises(ValueError, match="lines 2 and 4 say different things"):
        opened(path, task="tags", group="who")


def test_a_table_beside_a_folder(tmp_path: Path) -> None:
    table = write(tmp_path, "label,who", "0/a/x", "1/b/y", "2/a/x")
    (tmp_path / "i" / "3.png").write_bytes((tmp_path / "i" / "2.png").read_bytes())
    folder = str(tmp_path / "i")
    with pytest.raises(ValueError, match=r"t\.csv has no row for .*3\.png; its names start in the folder.*data-dir$"):
        opened(folder, file=table)
    (tmp_path / "i" / "3.png").unlink()
    data = opened(folder, file=table, group="who")
    assert [Path(data.source.name_of(n)).name for n in range(3)] == ["0.png", "1.png", "2.png"]
    assert data.truth is not None
    assert (data.truth.tolist(), data.groups) == ([0, 1, 0], ["x", "y", "x"])
    with pytest.raises(ValueError, match="is no table; --group needs one: --labels"):
        opened(folder, group="who")
    for n, split in ((0, "train"), (1, "train"), (2, "val")):  # names from the folder on, or from that of the split
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / "i" / f"{n}.png").rename(tmp_path / split / f"{n}.png")
    for name, path in (("a.csv", "{}/"), ("b.csv", "")):
        lines = [f"{path.format('val' if n == 2 else 'train')}{n}.png,{'aba'[n]}" for n in range(3)]
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / name).write_text("\n".join(["file,label", *lines]))
        ask = Ask(file=str(tmp_path / "sub" / name))
        train = open_labelled(str(tmp_path), "train", SIZE, ask)
        assert files(open_labelled(str(tmp_path), "validation", SIZE, ask, train)) == [str(tmp_path / "val" / "2.png")]


def test_groups_alone_leave_the_classes_of_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "d" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "d" / name / "0.png")
    (tmp_path / "who.csv").write_text("file,who\ndog/0.png,y\ncat/0.png,x\n")
    data = opened(str(tmp_path / "d"), file=str(tmp_path / "who.csv"), group="who")
    assert data.truth is not None
    assert (data.names, data.truth.tolist(), data.groups) == (["cat", "dog"], [0, 1], ["x", "y"])


def test_names_come_from_the_training_images(tmp_path: Path) -> None:
    path = write(tmp_path, "label,split", "0/a/train", "1/b/train", "2/b/val", "3/c/val")
    train = opened(path)
    assert train.names == ["a", "b"]
    with pytest.raises(ValueError, match=r"line 5 \(i/3\.png\): the class 'c' is not among the known ones: a, b"):
        open_labelled(path, "validation", SIZE, Ask(), train)
    path = write(tmp_path, "label,split", "0/a/train", "1/b/train", "2/b/val")
    test = open_labelled(path, "validation", SIZE, Ask(), opened(path))
    assert test.names == ["a", "b"]
    assert test.truth is not None
    assert test.truth.tolist() == [1], "not 0, though it is the only class there"
    twice = write(tmp_path, "label,split", "0/a/train", "1/b/train", "0/a/val")
    train = opened(twice)
    with pytest.raises(ValueError, match=r"0\.png is to be trained on and to measure on"):
        check_apart(train, open_labelled(twice, "validation", SIZE, Ask(), train))


# ---- cutting in two


def many(tmp_path: Path, count: int = 60) -> Labelled:
    """Every tenth image is of the rare class; five images a group."""
    return opened(
        write(tmp_path, "label,who", *(f"{n}/{'rare' if n % 10 == 0 else 'usual'}/p{n // 5}" for n in range(count))),
        group="who",
    )


def files(data: Labelled) -> list[str]:
    return [data.source.name_of(n) for n in range(len(data.source))]


def test_no_group_is_on_both_sides(tmp_path: Path) -> None:
    data = many(tmp_path)
    for seed in range(5):
        train, test = cut(data, 0.25, seed)
        check_groups(train, test)
        assert len(test.source) == 15
        assert sorted(files(train) + files(test)) == sorted(files(data))
        for part in (train, test):
            assert part.truth is not None
            assert [part.source.read(n)[1] for n in range(len(part.source))] == part.truth.tolist()
    train, test = cut(replace(data, groups=None), 0.25, 0)  # negative control: images alone do not respect groups
    apart = dict(zip(files(data), data.groups or (), strict=True))
    train, test = (replace(part, groups=[apart[file] for file in files(part)]) for part in (train, test))
    with pytest.raises(ValueError, match=r"groups \(p.*are in the training images and have .* of the 15"):
        check_groups(train, test)


def test_without_groups_each_class_is_on_both_sides(tmp_path: Path) -> None:
    data = replace(many(tmp_path), groups=None)
    parts = [cut(data, 0.5, seed) for seed in range(6)]
    for train, test in parts:
        assert train.truth is not None
        assert test.truth is not None
        assert 2 <= (train.truth == 0).sum() <= 4
        assert len(test.source) == 30
    assert files(parts[0][1]) == files(cut(data, 0.5, 0)[1]), "it follows from the seed"
    assert len({tuple(files(test)) for _, test in parts}) > 1, "and changes with it"


def test_a_class_of_one_image_is_trained_on(tmp_path: Path) -> None:
    data = opened(write(tmp_path, "label", *(f"{n}/{'only' if n == 7 else 'usual'}" for n in range(12))))
    for seed in range(10):
        train, _ = cut(data, 0.5, seed)
        assert train.truth is not None
        assert 0 in train.truth


def test_values_are_spread_evenly(tmp_path: Path) -> None:
    data = opened(write(tmp_path, "label", *(f"{n}/{n / 40}" for n in range(40))), task="values")
    for seed in range(5):
        _, test = cut(data, 0.25, seed)
        assert test.truth is not None
        quarters = (test.truth[:, 0] * 4).long().clamp(max=3).bincount(minlength=4)
        assert quarters.min() >= 2, quarters


def test_what_cannot_be_cut(tmp_path: Path) -> None:
    path = write(tmp_path, "label,who", "0/a/x", "1/b/x", "2/a/x")
    with pytest.raises(ValueError, match=r"of the 1 group of 3 images of .* leaves nothing on one side"):
        cut(opened(path, group="who"), 0.5, 0)
    path = write(tmp_path, "label,who", "0/a/x", "1/a/x", "2/b/y", "3/b/y")
    with pytest.raises(ValueError, match="that no training image has: all of them fell on one side"):
        cut(opened(path, group="who"), 0.5, 0)


# ---- weights and sampling


def test_balanced_weights_make_classes_weigh_alike() -> None:
    truth = torch.tensor([0] * 6 + [1] * 2 + [3] * 4)
    weights = weights_for("balanced", "classes", list("abcd"), truth)
    assert (float(weights[truth].mean()), weights[2]) == (pytest.approx(1), 1)
    assert [float(weights[label] * (truth == label).sum()) for label in (0, 1, 3)] == pytest.approx([4, 4, 4])
    tags = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [math.nan, 1.0]])
    assert weights_for("balanced", "tags", ["a", "b"], tags).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,weight\na,2\n", "has no weight for 'b'"),
        ("label,weight\na,2\nb,1\nc,1\n", "names the unknown label 'c'"),
        ("label,weight\na,2\nb,-1\n", "line 3: '-1' is no weight"),
        ("label,weight\na,2\na,1\n", "line 3: 'a' stands there twice"),
        ("label,w\na,2\n", "has the columns label, w; label and weight are wanted"),
    ],
)
def test_weights_of_a_table(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "w.csv"
    path.write_text("label,weight\nb,0.5\na,2\n")
    assert weights_for(str(path), "classes", ["a", "b"], torch.tensor([0, 1])).tolist() == [2, 0.5]
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        weights_for(str(path), "classes", ["a", "b"], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"--class-weights equal: use balanced, or a table"):
        weights_for("equal", "classes", ["a", "b"], torch.tensor([0, 1]))


LABELS = [0] * 20 + [1] * 3 + [2]


def plan(labels: list[int] | None, world: int = 1, rank: int = 0, accumulate: int = 1) -> Batching:
    return Batching(24, 12, accumulate, rank, world, 5, 1, labels)


def test_balanced_sampling_shows_each_class_as_often() -> None:
    order = [reading.position for batch in plan(LABELS).micro_batches(0, 2) for reading in batch]
    assert Counter(LABELS[i] for i in order) == {0: 8, 1: 8, 2: 8}
    counts = Counter(order)
    assert sorted(counts[i] for i in (20, 21, 22)) == [2, 3, 3]
    assert max(counts[i] for i in range(20)) == 1
    plain = [reading.position for batch in plan(None).micro_batches(0, 2) for reading in batch]
    assert Counter(LABELS[i] for i in plain) == {0: 20, 1: 3, 2: 1}, "negative control"
    assert len(balanced(torch.tensor(LABELS), 7, torch.Generator())) == 7


def drawn(reading: Reading) -> tuple[int, int, int]:
    """All but the seed of the micro-batch, which is another where a batch is cut otherwise."""
    return reading.position, reading.seeds.own, reading.seeds.step


def test_balanced_sampling_follows_from_seed_and_step() -> None:
    whole = list(plan(LABELS).micro_batches(0, 6))
    assert whole[3:5] == list(plan(LABELS).micro_batches(3, 5)), "a run that goes on sees what it would have seen"
    shared = [list(plan(LABELS, 2, rank, 2).micro_batches(0, 6)) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [shared[part % 2][2 * step + part // 2] for part in range(4)]
        assert list(map(drawn, (reading for part in parts for reading in part))) == list(map(drawn, batch))
    assert whole[0] != whole[2], "another epoch has another order"
    seeds = [reading.seeds.own for batch in whole[:2] for reading in batch]
    assert len(set(seeds)) == len(seeds), "an image that comes twice is not cropped alike"
