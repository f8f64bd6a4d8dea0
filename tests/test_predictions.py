"""Tables of predictions and drawings of confusion matrices."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from torch import Tensor

from hiermim_zoo.commands import predictions
from hiermim_zoo.commands.predictions import Confusion, draw_confusion, labelled_cells, write_predictions


class Labels(NamedTuple):
    kind: str
    names: list[str]


def table(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the table


def test_classes_are_listed_down_to_the_fifth(tmp_path: Path) -> None:
    logits, truth = random(5000, 7), torch.arange(5000) % 7
    names = [f"class {n}" for n in range(7)]
    files = [f"{n}.png" for n in range(5000)]
    write_predictions(tmp_path / "out.csv", files, Labels("classes", names), logits, truth)
    header, *rows = table(tmp_path / "out.csv")
    assert header[:5] == ["file", "truth", "predicted", "probability", "predicted_2"]
    assert header[-1] == "probability_5"
    assert [row[0] for row in rows] == files
    chances = logits.softmax(1)
    for n in (0, 1, 4095, 4096, 4999):
        order = chances[n].argsort(descending=True)[:5].tolist()
        assert rows[n][1] == names[n % 7]
        assert rows[n][2::2] == [names[c] for c in order]
        assert [float(word) for word in rows[n][3::2]] == pytest.approx(chances[n, order].tolist(), rel=1e-6)


def test_of_equal_classes_the_first_is_predicted(tmp_path: Path) -> None:
    """As argmax has it, of which top-1 is made."""
    write_predictions(tmp_path / "a", ["x"], Labels("classes", ["a", "b"]), torch.zeros(1, 2), torch.tensor([1]))
    assert table(tmp_path / "a")[1] == ["x", "b", "a", "0.5", "b", "0.5"]


def test_tags_and_values_have_a_pair_of_columns_each(tmp_path: Path) -> None:
    truth, outputs = torch.tensor([[1.0, float("nan")], [0.0, 2.5]]), torch.tensor([[0.0, 1e4], [-1e4, 0.1]])
    write_predictions(tmp_path / "tags", ["a", "b"], Labels("tags", ["x", "file"]), outputs, truth)
    assert table(tmp_path / "tags") == [
        ["file", "truth_x", "probability_x", "truth_file", "probability_file"],
        ["a", "1", "0.5", "", "1"],
        ["b", "0", "0", "2.5", "0.52497917"],
    ]
    write_predictions(tmp_path / "values", ["a", "b"], Labels("values", ["x", "y"]), outputs, truth)
    assert table(tmp_path / "values") == [
        ["file", "truth_x", "predicted_x", "truth_y", "predicted_y"],
        ["a", "1", "0", "", "10000"],
        ["b", "0", "-10000", "2.5", "0.1"],
    ]


def test_any_name_comes_back(tmp_path: Path) -> None:
    odd = ["a,b", 'the "c"', "two\nlines", "carriage\rreturn", " spaces ", "ünï 猫", "tab\t;", ""]
    count = len(odd)
    write_predictions(tmp_path / "out.csv", odd, Labels("classes", odd), torch.eye(count), torch.arange(count))
    rows = table(tmp_path / "out.csv")[1:]
    assert [row[0] for row in rows] == [row[1] for row in rows] == [row[2] for row in rows] == odd


def test_bytes_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")  # as os.listdir gives it
    write_predictions(tmp_path / "out.csv", [name], Labels("values", ["x"]), torch.zeros(1, 1), torch.zeros(1, 1))
    assert table(tmp_path / "out.csv")[1][0] == "caf\\udce9.png"


@pytest.mark.parametrize("change", [{"files": ["a"]}, {"truth": torch.zeros(3).long()}, {"outputs": torch.zeros(2, 3)}])
def test_what_does_not_fit_is_not_written(tmp_path: Path, change: dict[str, Any]) -> None:
    given = {"files": ["a", "b"], "outputs": torch.zeros(2, 2), "truth": torch.zeros(2).long()} | change
    with pytest.raises(ValueError, match="do not fit"):
        write_predictions(tmp_path / "out.csv", targets=Labels("classes", ["x", "y"]), **given)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_table_that_fails(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("old")
    with pytest.raises(IndexError):
        write_predictions(
            tmp_path / "out.csv", ["a"], Labels("classes", ["x", "y"]), torch.zeros(1, 2), torch.tensor([5])
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "old"


# ---- the drawing


def one_hot(found: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(found, classes).float()


def corner(image: Image.Image, size: int, cells: int) -> tuple[int, int]:
    """Where the matrix begins: inside of the first black frame of its size."""
    black = (np.asarray(image) == 0).all(2)
    side = size * cells
    for y in range(image.height - side):
        for x in np.flatnonzero(black[y, : image.width - side - 1]):
            if black[y, x : x + side + 2].all() and black[y : y + side + 2, x].all():
                return int(x) + 1, y + 1
    raise AssertionError("there is no frame")


def cell_colours(path: Path, size: int, cells: int) -> np.ndarray:
    """[cells, cells, 3], near a corner of each cell, where no count stands."""
    image = Image.open(path)
    left, top = corner(image, size, cells)
    place = np.arange(cells) * size + size // 8
    return np.asarray(image).astype(int)[top + place][:, left + place]


@pytest.mark.parametrize(("classes", "size"), [(2, 96), (10, 96), (100, 9), (1000, 2)])
def test_cells_have_the_colour_of_their_share(tmp_path: Path, classes: int, size: int) -> None:
    """All images of a class are right, but of the first, of which a quarter is taken for the last; one has none."""
    truth = torch.arange(classes).repeat(4)
    found = truth.clone()
    found[0] = classes - 1
    if classes > 2:
        truth, found = truth[truth != 1], found[truth != 1]
    draw_confusion(tmp_path / "out.png", [f"n{n}" for n in range(classes)], one_hot(found, classes), truth)
    colours = cell_colours(tmp_path / "out.png", size, classes)
    darkest, palest = predictions.COLOURS[-1], predictions.COLOURS[0]
    assert (colours[-1, -1] == darkest).all()
    assert (colours[-1, :-1] == palest).all()
    assert (colours[0, -1] == predictions.colour_of(np.array(0.25))).all()
    assert darkest.sum() < colours[0, 0].sum() < colours[0, -1].sum() < palest.sum()
    if classes > 2:
        assert (colours[1] == predictions.EMPTY).all()


def test_rows_are_true_classes(tmp_path: Path) -> None:
    """Negative control: swapped, it is another drawing."""
    truth, found = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 1])
    draw_confusion(tmp_path / "a.png", ["x", "y"], one_hot(found, 2), truth)
    assert (cell_colours(tmp_path / "a.png", 96, 2)[:, 1] == predictions.COLOURS[-1]).all()
    draw_confusion(tmp_path / "b.png", ["x", "y"], one_hot(truth, 2), found)
    assert (cell_colours(tmp_path / "b.png", 96, 2)[1] != predictions.COLOURS[-1]).any()


def test_counts_are_written_where_they_fit(tmp_path: Path) -> None:
    def written(count: int, classes: int) -> bool:
        truth = torch.arange(classes).repeat(count)
        draw_confusion(tmp_path / "out.png", ["n"] * classes, one_hot(truth, classes), truth)
        size = min(96, 960 // classes)
        image = Image.open(tmp_path / "out.png")
        left, top = corner(image, size, classes)
        cell = np.asarray(image)[top : top + size, left : left + size]
        return len(np.unique(cell.reshape(-1, 3), axis=0)) > 1

    assert written(3, 10)
    assert written(1000, 10)
    assert written(3, 40)
    assert not written(10_000, 40)
    assert not written(3, 100)


def test_names_stand_where_they_fit() -> None:
    def marks(classes: int, size: int, together: int = 1) -> list[tuple[int, str]]:
        cells = -(-classes // together)
        names = [f"name{n}" for n in range(classes)]
        return labelled_cells(Confusion(np.zeros((cells, cells)), together, size, names))

    assert marks(3, 96) == [(0, "name0"), (1, "name1"), (2, "name2")]
    assert marks(100, 9)[:2] == [(0, "1 name0"), (2, "3 name2")]
    assert marks(1000, 2)[:2] == [(0, "1 name0"), (10, "11 name10")]
    assert marks(5000, 2, 5)[-1] == (990, "4951 name4950")


def test_the_most_confused_are_named() -> None:
    truth, found = np.array([0] * 5 + [2] * 3), np.array([1, 1, 1, 0, 0, 0, 2, 2])
    lines = predictions.summary(Confusion(np.zeros((3, 3)), 1, 96, ["cat", "d\nog", "cow"]), found, truth)
    assert lines[0] == "8 images, 3 classes, 50.00 % right (top-1)"
    assert lines[-2:] == ["cat taken for d\\nog: 3 of 5", "cow taken for cat: 1 of 3"]


def test_letters_that_the_font_lacks_are_escaped_and_numbered() -> None:
    names = ["sea", "wei\u00df", "\u6f22\u5b57" * 9 + "a", "\u6f22\u5b57" * 9 + "b", "a\nb"]
    matrix = Confusion(np.eye(5, dtype=int), 1, 96, names)
    marks = [text for _, text in predictions.labelled_cells(matrix)]
    assert marks[:2] == ["sea", "2 wei\\xdf"]
    assert marks[2].startswith("3 \\u6f22\\u5b57")
    assert marks[2][1:] == marks[3][1:]  # cut where they differ, and told apart
    assert len(set(marks)) == 5
    lines = predictions.summary(matrix, np.array([1]), np.array([0]))
    assert lines[-1] == "sea taken for 2 wei\\xdf: 1 of 1"
    font = ImageFont.load_default(predictions.TEXT)
    lacking = bytes(font.getmask("\U0010ffff"))
    assert bytes(font.getmask("\u00df")) == lacking  # negative control
    assert all(bytes(font.getmask(letter)) != lacking for text in [*marks, *lines] for letter in text)


def test_neighbours_share_a_cell_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "LARGEST", 4)
    truth = torch.arange(10)
    draw_confusion(tmp_path / "out.png", [str(n) for n in range(10)], one_hot(truth, 10), truth)
    colours = cell_colours(tmp_path / "out.png", 96, 4)  # three, three, three and one
    assert (colours == np.where(np.eye(4)[..., None], predictions.COLOURS[-1], predictions.COLOURS[0])).all()


def test_a_drawing_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        draw_confusion(tmp_path / "out.png", ["a"], torch.zeros(0, 1), torch.zeros(0).long())
    with pytest.raises(ValueError, match="do not fit"):
        draw_confusion(tmp_path / "out.png", ["a"], torch.zeros(2, 2), torch.zeros(2).long())
    assert not list(tmp_path.iterdir())
