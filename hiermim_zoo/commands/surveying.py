"""What ``stats`` does: look into every file of a data set, and say what is in there."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ..checkpoints.atomic import replacing
from ..data.batches import first_line
from ..data.decoding import Form, held_in, in_form, path_of
from ..data.formats import Bands
from ..data.images import FileImages
from ..data.kinds import check_root, check_there, open_images
from ..data.readers import readings
from ..data.statistics import values_of
from ..progress import Progress
from ..text import counted, printable
from ..training.checks import check_form
from ..training.image_form import form_of
from .options import Outcome
from .options.problems import check_all, gathered
from .options.stats import StatsOptions
from .output_files import check_ending, check_not_read, check_writable

NAMED = 5  # files of a kind that the text names


@dataclass
class Look:
    """What one file holds."""

    position: int
    digest: str = ""
    kind: str = ""  # suffix
    size: tuple[int, int] = (0, 0)  # width and height
    channels: int = 0
    depth: str = ""
    ends: tuple[float, float] | None = None  # the least and the largest number; None: no pixel has a value
    count: int = 0  # pixels that have been scaled
    sums: list[float] = field(default_factory=list)  # of values from 0 to 1, channel by channel
    squares: list[float] = field(default_factory=list)
    unscaled: str = ""  # why there are no sums
    error: str = ""  # why it cannot be read


class Files(Dataset[Look]):
    """The files of a data set, looked into."""

    def __init__(self, source: FileImages, positions: list[int]) -> None:
        self.source, self.positions = source, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, n: int) -> Look:
        position = self.positions[n]
        found = Look(position, kind=Path(self.source.name_of(position)).suffix.lower())
        try:
            with self.source.open(position)[0] as file:
                content, path = file.read(), path_of(file)
            look_into(content, path, self.source.form, found)
        except Exception as error:  # decoders of damaged files raise whatever comes up
            found.error = first_line(error)
        return found


def look_into(content: bytes, path: str, form: Form, found: Look) -> None:
    """Fill in what a file holds.

    Raises:
        Exception: of any kind; it cannot be read.
    """
    found.digest = hashlib.sha256(content).hexdigest()
    held = held_in(content, form, path)
    if isinstance(held, Bands):
        values, found.depth = held.values, str(held.values.dtype)
        found.size, found.channels = (values.shape[-1], values.shape[-2]), len(values)
        empty = held.empty()
        known = values[np.isfinite(values) if empty is None else np.isfinite(values) & ~empty]
        found.ends = (float(known.min()), float(known.max())) if known.size else None
    else:
        held.load()
        found.size, found.depth, found.channels = held.size, "uint8", len(held.getbands())
        ends: Any = held.convert("RGB").getextrema() if held.mode in ("P", "1") else held.getextrema()
        pairs = ends if isinstance(ends[0], tuple) else [ends]
        found.ends = float(min(low for low, _ in pairs)), float(max(high for _, high in pairs))
    try:
        scaled = values_of(in_form(held, form))
    except ValueError as error:  # a rule that does not fit, or bands that are not there
        found.unscaled = str(error)
        return
    found.count = scaled.shape[1]
    found.sums, found.squares = scaled.sum(1).tolist(), scaled.square().sum(1).tolist()


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    return gathered(*checks(StatsOptions.unchecked(said)))


def checks(options: StatsOptions) -> list[Callable[[], object]]:
    """Checks for which no data are opened."""
    found: list[Callable[[], object]] = [partial(check_form, vars(options), len(options.bands or ()))]
    if options.data:
        found += [partial(check_there, options.data), partial(check_root, options.data_dir, options.data)]
    if options.json:
        found.append(partial(check_writable, options.json, f"--json {options.json}"))
        found.append(partial(check_ending, options.json, f"--json {options.json}", (".json",), "results"))
        found.append(partial(check_not_read, options.json, f"--json {options.json}", [options.data or ""]))
    return found


def survey(options: StatsOptions) -> Outcome:
    """Look into the files; the result is a dictionary.

    Raises:
        ValueError: there are no such data, or they are no files.
    """
    check_all(*checks(options))
    form = form_of(options, len(options.bands or ()), {})
    source: Any = open_images(options.data, form=form, root=options.data_dir, split=options.split, training=False)
    if not isinstance(source, FileImages):
        raise ValueError(f"{options.data}: stats looks into files, so DATA is a folder, a tar, a table or hfds/NAME")
    total = len(source)
    count = min(options.most or total, total)
    files = Files(source, [n * total // count for n in range(count)])
    loader: Any = DataLoader(files, batch_size=None, num_workers=options.workers, collate_fn=None)
    with Progress(count, "image") as bar:
        result = summary(list(bar.over(readings(loader))), source)
    if options.json:
        with replacing(options.json) as part:
            part.write_text(json.dumps(result, indent=2), encoding="utf-8")
    return Outcome(result, in_words(options, result))


def summary(looks: list[Look], source: FileImages) -> dict[str, Any]:
    """What all files together hold; names of files are those of the data."""
    good = [look for look in looks if not look.error]
    name, ends = source.name_of, [look.ends for look in good if look.ends]
    groups: dict[str, list[str]] = {}
    for look in good:
        groups.setdefault(look.digest, []).append(name(look.position))
    return {
        "images": len(source),
        "looked at": len(looks),
        "classes": len(source.class_names) if source.class_names else 0,
        "kinds": tallied(look.kind for look in good),
        "depths": tallied(look.depth for look in good),
        "channels": tallied(str(look.channels) for look in good),
        "sizes": sizes(good),
        "numbers": [min((low for low, _ in ends), default=0), max((high for _, high in ends), default=0)],
        **moments(good),
        "not scaled": {name(look.position): look.unscaled for look in good if look.unscaled},
        "unreadable": {name(look.position): look.error for look in looks if look.error},
        "duplicates": [same for same in groups.values() if len(same) > 1],
    }


def tallied(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def sizes(looks: list[Look]) -> dict[str, list[int]]:
    """Width and height of the smallest, the middle and the largest image, by pixels."""
    if not looks:
        return {}
    ordered = sorted((look.size for look in looks), key=lambda size: size[0] * size[1])
    places = {"smallest": 0, "median": len(ordered) // 2, "largest": -1}
    return {word: list(ordered[place]) for word, place in places.items()}


def moments(looks: list[Look]) -> dict[str, Any]:
    """Mean and deviation of the channels, if all images have as many, and could be scaled."""
    unscaled = [look.unscaled for look in looks if look.unscaled]
    widths = {len(look.sums) for look in looks}
    if unscaled or len(widths) != 1:
        why = unscaled[0] if unscaled else "the images differ in their channels"
        return {"mean": None, "std": None, "no mean": why if looks else "no image can be read"}
    count = sum(look.count for look in looks)
    mean = np.sum([look.sums for look in looks], axis=0) / count
    squares = np.sum([look.squares for look in looks], axis=0) / count
    std = np.sqrt(np.clip(squares - mean**2, 0, None))
    return {"mean": [round(float(x), 6) for x in mean], "std": [round(float(x), 6) for x in std]}


def in_words(options: StatsOptions, result: dict[str, Any]) -> str:
    """The result as lines of text."""
    same = [[printable(name) for name in names[:NAMED]] for names in result["duplicates"][:NAMED]]
    classes = f", {counted(result['classes'], 'classes')}" if result["classes"] else ""
    sizes = ", ".join(f"{word} {width} x {height}" for word, (width, height) in result["sizes"].items())
    lines = {
        "data": f"{options.data}: {counted(result['images'], 'images')}{classes}; looked at {result['looked at']}",
        "files": listed(result["kinds"]),
        "sizes": sizes,
        "depth": listed(result["depths"]),
        "channels": listed(result["channels"]),
        "numbers": "{:g} to {:g}".format(*result["numbers"]),
        "mean": numbers(result["mean"]) if result["mean"] else f"none: {result['no mean']}",
        "std": numbers(result["std"]) if result["std"] else "none",
        "not scaled": told(result["not scaled"]),
        "unreadable": told(result["unreadable"]),
        "duplicates": f"{sum(len(names) - 1 for names in result['duplicates'])}"
        + "".join(f"\n  {' = '.join(names)}" for names in same),
    }
    return "\n".join(f"{word:11} {text}" for word, text in lines.items())


def told(files: dict[str, str]) -> str:
    """How many, and of some why."""
    lines = (f"\n  {printable(name)} ({printable(why)})" for name, why in list(files.items())[:NAMED])
    return f"{len(files)}" + "".join(lines)


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{word or '(none)'} {count}" for word, count in counts.items())


def numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
