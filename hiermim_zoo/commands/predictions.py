"""What a model said of each image, as a table, and which classes it takes for which, as an image."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..checkpoints.atomic import replacing
from ..text import counted, printable

TOP = 5  # classes that a row of the table names
ROWS = 4096  # of the table, made at once


class Described(Protocol):
    """What labels are of: :class:`hiermim_zoo.data.targets.Targets`."""

    @property
    def kind(self) -> str: ...

    @property
    def names(self) -> Sequence[str]: ...


# ---- the table


def write_predictions(path: Path, files: Sequence[str], targets: Described, outputs: Tensor, truth: Tensor) -> None:
    """A CSV in UTF-8 with a row for each image; it is written beside and renamed.

    Columns of classes: file, truth, predicted, probability, predicted_2, probability_2, ... down to the fifth. Of tags:
    file, and for each tag truth_TAG (1, 0) and probability_TAG. Of values: file, and for each truth_NAME and
    predicted_NAME. What is unknown is empty. Bytes of a file name that are no text are written as ``\\udcXX``.

    Args:
        files: N names.
        targets: its kind (classes, tags or values) and T names.
        outputs: float [N, T], logits of classes and tags (the logarithms of probabilities are logits, too), or values.
        truth: int64 [N] of classes, else float [N, T], NaN where unknown.

    Raises:
        ValueError: shapes do not fit.
        OSError: it cannot be written.
    """
    if len(files) != len(outputs) or len(truth) != len(outputs) or outputs.shape[1] != len(targets.names):
        raise ValueError(
            f"{counted(len(files), 'files')} and {counted(len(targets.names), 'names')} do not fit "
            f"outputs {list(outputs.shape)}"
        )
    header, rows = COLUMNS[targets.kind](targets.names, outputs.detach().cpu().float(), truth.detach().cpu())
    with replacing(path) as part, open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file)  # its line ends make it quote either character of them
        table.writerow(["file", *header])
        table.writerows([name, *row] for name, row in zip(files, rows, strict=True))


Columns = tuple[list[str], Iterator[list[str]]]  # header and rows, without the file


def class_columns(names: Sequence[str], outputs: Tensor, truth: Tensor) -> Columns:
    count = min(TOP, len(names))
    header = ["truth", "predicted", "probability"]
    header += [f"{word}_{n}" for n in range(2, count + 1) for word in ("predicted", "probability")]

    def rows() -> Iterator[list[str]]:
        for logits, labels in zip(outputs.split(ROWS), truth.split(ROWS), strict=True):
            # A stable order, whose first is the first maximum, as that of argmax.
            best = logits.sort(dim=1, descending=True, stable=True).indices[:, :count]
            share = logits.softmax(1).gather(1, best)
            for label, top, chance in zip(labels.tolist(), best.tolist(), share.tolist(), strict=True):
                pairs = zip(top, chance, strict=True)
                yield [names[label], *(word for c, p in pairs for word in (names[c], digits(p)))]

    return header, rows()


def tag_columns(names: Sequence[str], outputs: Tensor, truth: Tensor) -> Columns:
    return paired_columns("probability", names, outputs.sigmoid(), truth)


def value_columns(names: Sequence[str], outputs: Tensor, truth: Tensor) -> Columns:
    return paired_columns("predicted", names, outputs, truth)


def paired_columns(called: str, names: Sequence[str], found: Tensor, truth: Tensor) -> Columns:
    """Truth and what was found, in turns."""
    header = [f"{word}_{name}" for name in names for word in ("truth", called)]

    def rows() -> Iterator[list[str]]:
        both = torch.stack([truth.to(found.dtype), found], dim=2).flatten(1)
        for part in both.split(ROWS):
            for row in part.tolist():
                yield [digits(number) for number in row]

    return header, rows()


def digits(number: float) -> str:
    """Eight of them, which is all that float32 has; nothing where the number is unknown."""
    return "" if number != number else f"{number:.8g}"


COLUMNS = {"classes": class_columns, "tags": tag_columns, "values": value_columns}


# ---- the image

SIDE = 960  # pixels that the classes take together; more if that is too little
SMALLEST, BIGGEST = 2, 96  # pixels of a cell
LARGEST = 1000  # classes that are drawn one by one; of more, neighbours share a cell
GAP, LINE = 12, 18  # pixels between things and of a line of text
SHORT, LONG = 24, 60  # letters of a name beside the matrix and below it, at most
TEXT = 13  # pixels of a letter
PAIRS = 10  # of confused classes that are named below
EMPTY = (225, 225, 225)  # of classes without an image
# From no image of a class to all of them, by the square root of the share: errors are rare, and must be seen.
COLOURS = np.array([[255, 255, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]], float)
MARKS = (0, 1, 5, 10, 25, 50, 75, 100)  # percent, on the scale of colours

Array = NDArray[Any]


class Confusion(NamedTuple):
    """How often which class was taken for which.

    Args:
        counts: int64 [cells, cells], rows are the true classes.
        together: neighbouring classes of a cell.
        size: pixels of a cell.
        names: of all classes.
    """

    counts: Array
    together: int
    size: int
    names: list[str]

    @property
    def side(self) -> int:
        """Pixels of the square of all cells."""
        return self.size * len(self.counts)


def draw_confusion(path: Path, names: Sequence[str], outputs: Tensor, truth: Tensor) -> None:
    """A PNG of the confusion matrix; it is written beside and renamed.

    Rows are true classes, columns predicted ones. A colour is the share of the images of its row. Counts and names of
    all classes stand where they fit; of many classes every few are named. A letter beyond ASCII, which PIL's own font
    lacks, is written as its escape, and the number of the class before the name. The classes that are confused most
    often are listed below.

    Args:
        names: of T classes.
        outputs: float [N, T]; only their order matters.
        truth: int64 [N].

    Raises:
        ValueError: shapes do not fit.
        OSError: it cannot be written.
    """
    if not len(outputs) or len(truth) != len(outputs) or outputs.shape[1] != len(names):
        raise ValueError(f"{len(truth)} labels and {len(names)} names do not fit outputs {list(outputs.shape)}")
    found, true = outputs.argmax(1).cpu().numpy(), truth.cpu().numpy()
    together = -(-len(names) // LARGEST)
    cells = -(-len(names) // together)
    counts = np.bincount(true // together * cells + found // together, minlength=cells * cells).reshape(cells, cells)
    size = min(BIGGEST, max(SMALLEST, SIDE // cells))
    matrix = Confusion(counts, together, size, list(names))
    with replacing(path) as part:
        drawn(matrix, summary(matrix, found, true)).save(part, format="PNG")


def summary(matrix: Confusion, found: Array, true: Array) -> list[str]:
    """What stands below the matrix, in lines.

    Args:
        found: the predicted class of each image, [N]; ``true``: its true class.
    """
    names, together = matrix.names, matrix.together
    right, total = int((found == true).sum()), len(true)
    lines = [
        f"{counted(total, 'images')}, {counted(len(names), 'classes')}, {100 * right / total:.2f} % right (top-1)",
        "Colour: share of the images of the true class (row)."
        + (f" A cell is {together} by {together} neighbouring classes." if together > 1 else ""),
    ]
    wrong = true[found != true].astype(np.int64) * len(names) + found[found != true]
    pairs, often = np.unique(wrong, return_counts=True)
    most = np.argsort(-often, kind="stable")[:PAIRS]
    of_class = np.bincount(true, minlength=len(names))
    if len(most):
        lines += ["", "Confused most often:"]
    for pair, count in zip(pairs[most], often[most], strict=True):
        a, b = divmod(int(pair), len(names))
        lines.append(f"{drawable(names, a, LONG)} taken for {drawable(names, b, LONG)}: {count} of {of_class[a]}")
    return lines


def drawable(names: Sequence[str], number: int, limit: int, numbered: bool = False) -> str:
    """The name of a class in letters that PIL's own font has, which are those of ASCII; others are escaped.

    Args:
        limit: characters of the name, at most.
        numbered: begin with the number, from 1. So does every name with an escape, which may be cut where it differs.
    """
    name = names[number].encode("ascii", "backslashreplace").decode()
    shown = printable(name, limit)
    return f"{number + 1} {shown}" if numbered or name != names[number] else shown


def drawn(matrix: Confusion, lines: list[str]) -> Image.Image:
    """The whole sheet."""
    font = ImageFont.load_default(TEXT)
    marks = labelled_cells(matrix)
    margin = max(round(font.getlength(text)) for _, text in marks)
    left = top = GAP + LINE + margin + GAP
    scale = scale_of_colours(matrix.side, font)
    below = max(round(font.getlength(line)) for line in lines)
    width = max(left + matrix.side + 2 * GAP + scale.width, left + below) + GAP
    sheet = Image.new("RGB", (width, top + matrix.side + GAP + len(lines) * LINE + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    sheet.paste(Image.fromarray(colours_of(matrix)).resize((matrix.side,) * 2, Image.Resampling.NEAREST), (left, top))
    pen.rectangle((left - 1, top - 1, left + matrix.side, top + matrix.side), outline="black")
    for cell, text in marks:
        middle = round((cell + 0.5) * matrix.size)
        pen.text((left - GAP // 2, top + middle), text, "black", font, anchor="rm")
        pen.line((left - 4, top + middle, left - 2, top + middle), "black")
        pen.line((left + middle, top - 4, left + middle, top - 2), "black")
        upright(sheet, (left + middle, top - GAP // 2), text, font)
    pen.text((left + matrix.side / 2, GAP), "predicted", "black", font, anchor="ma")
    upright(sheet, (GAP + LINE // 2, top + matrix.side // 2), "truth", font, centred=True)
    write_counts(pen, matrix, (left, top))
    sheet.paste(scale, (left + matrix.side + 2 * GAP, top))
    for n, line in enumerate(lines):
        pen.text((left, top + matrix.side + GAP + n * LINE), line, "black", font)
    return sheet


def labelled_cells(matrix: Confusion) -> list[tuple[int, str]]:
    """Cells with the names that stand beside them: all of them, or every 2nd, 5th, 10th, ... with its number."""
    steps = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    step = next(step for step in steps if step * matrix.size >= LINE - 2)
    marks = []
    for cell in range(0, len(matrix.counts), step):
        first = cell * matrix.together
        marks.append((cell, drawable(matrix.names, first, SHORT, numbered=step * matrix.together > 1)))
    return marks


def shares_of(counts: Array) -> Array:
    """Each row divided by its sum; NaN where there is nothing."""
    with np.errstate(invalid="ignore"):
        shares: Array = counts / counts.sum(1, keepdims=True)
    return shares


def colour_of(shares: Array) -> Array:
    """Colours uint8 [..., 3] of shares from 0 to 1."""
    place = np.sqrt(shares) * (len(COLOURS) - 1)
    colour = np.stack([np.interp(place, range(len(COLOURS)), channel) for channel in COLOURS.T], axis=-1)
    colour[np.isnan(shares)] = EMPTY
    return colour.round().astype(np.uint8)


def colours_of(matrix: Confusion) -> Array:
    """uint8 [cells, cells, 3]."""
    return colour_of(shares_of(matrix.counts))


def write_counts(pen: ImageDraw.ImageDraw, matrix: Confusion, corner: tuple[int, int]) -> None:
    """Write counts into the cells, if the largest fits."""
    letters = max(9, min(18, matrix.size // 3))
    font = ImageFont.load_default(letters)
    if max(font.getlength(str(matrix.counts.max())), letters) > matrix.size - 4:
        return
    for (row, column), share in np.ndenumerate(shares_of(matrix.counts)):
        if matrix.counts[row, column]:
            at = (corner[0] + (column + 0.5) * matrix.size, corner[1] + (row + 0.5) * matrix.size)
            colour = "white" if share > 0.3 else "black"
            pen.text(at, str(matrix.counts[row, column]), colour, font, anchor="mm")


def upright(
    sheet: Image.Image,
    at: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    centred: bool = False,
) -> None:
    """Write from the bottom to the top, upwards from a place, or centred on it."""
    word = Image.new("RGB", (round(font.getlength(text)) + 1, LINE), "white")
    ImageDraw.Draw(word).text((0, LINE / 2), text, "black", font, anchor="lm")
    word = word.rotate(90, expand=True)
    sheet.paste(word, (at[0] - word.width // 2, at[1] - (word.height // 2 if centred else word.height)))


def scale_of_colours(side: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """What the colours mean: a bar with percents, and the colour of classes that have no image."""
    height = max(side, 8 * LINE)
    bar = height - 2 * LINE
    scale = Image.new("RGB", (LINE + 80, height), "white")
    pen = ImageDraw.Draw(scale)
    shares = np.linspace(1, 0, bar) ** 2
    scale.paste(Image.fromarray(colour_of(shares)[:, None].repeat(LINE, 1)), (0, 0))
    pen.rectangle((0, 0, LINE - 1, bar - 1), outline="black")
    last = float(bar)
    for mark in MARKS:
        y = min(max((1 - (mark / 100) ** 0.5) * bar, LINE / 2), bar - LINE / 2)
        if mark in (0, 100) or min(last - y, y - LINE / 2) >= LINE - 2:  # or it would lie on another
            pen.text((LINE + 6, y), f"{mark} %", "black", font, anchor="lm")
            last = y
    pen.rectangle((0, height - LINE, LINE - 1, height - 1), fill=EMPTY, outline="black")
    pen.text((LINE + 6, height - LINE / 2), "no image", "black", font, anchor="lm")
    return scale
