"""Images whose bands lie in files of their own: scene1_red.tif and scene1_nir.tif are one image of two bands."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from PIL import Image

from ..text import counted
from .decoding import Form, Image_, fitted, held_in, read_file, set_bound
from .formats import Bands, bands_first
from .images import FileImages
from .parts import Held, Parts, WholeParts, by_parts, large
from .source import Source, telling


def stacked(files: Sequence[str], parts: Sequence[str]) -> list[list[str]]:
    """Files that are the bands of one image, in the order of ``parts``; images in the order of their first files.

    The folder that all files lie in has no part in it, whatever it is called. If some file still has several of the
    words, in folders and in its own name, then only the own names of files count.

    Args:
        files: with names in which one of the parts stands as a word: "scene1_red.tif", "red/scene1.tif".
        parts: what the names of an image differ in: ("red", "nir").

    Raises:
        ValueError: a file without or with several of these words, or an image of which a band is missing.
    """
    word = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(map(re.escape, parts))})(?![A-Za-z0-9])")
    around = os.path.commonprefix([f"{os.path.dirname(file)}/" for file in files])  # noqa: RUF071 (paths may be mixed)
    starts = [len(os.path.dirname(around)) if len(parts) > 1 else 0] * len(files)
    if any(len({*word.findall(file, start)}) > 1 for file, start in zip(files, starts, strict=True)):
        starts = [len(os.path.dirname(file)) for file in files]
    found: dict[str, dict[str, str]] = {}
    for file, start in zip(files, starts, strict=True):
        words = word.findall(file, start)
        if not words:
            continue  # of another kind: a mask, a band that is not wanted
        if len(set(words)) > 1:
            raise ValueError(f"{file} names several of --stack {','.join(parts)}; leave one of them in its name")
        found.setdefault(file[:start] + word.sub("*", file[start:]), {})[words[0]] = file
    if not found:
        raise ValueError(f"no name of a file has one of --stack {','.join(parts)} as a word")
    for name, bands in found.items():
        if missing := [part for part in parts if part not in bands]:
            raise ValueError(f"{name} has no {missing[0]} of --stack {','.join(parts)}")
    return [[bands[part] for part in parts] for bands in found.values()]


class StackParts:
    """Images of one band each, in files of their own, as one of many bands."""

    def __init__(self, names: Sequence[str], files: Sequence[Held]) -> None:
        self.names, self.files, first = names, files, files[0]
        self.height, self.width, self.numbers = first.height, first.width, len(files)

    def held(self, left: int, top: int, right: int, bottom: int) -> Bands:
        return joined(self.names, [file.held(left, top, right, bottom) for file in self.files])

    def close(self) -> None:
        for file in self.files:
            file.close()


def joined(names: Sequence[str], held: Sequence[Image.Image | Bands]) -> Bands:
    """Images of one band each -> one of many bands.

    Args:
        names: of their files, for messages.

    Raises:
        ValueError: one has several bands, or they differ.
    """
    ones = [Bands(bands_first(np.asarray(x)), (0, 255)) if isinstance(x, Image.Image) else x for x in held]
    for name, one in zip(names, ones, strict=True):
        if len(one.values) != 1:
            raise ValueError(f"{name} has {counted(len(one.values), 'bands')}, and each file of --stack is one")
        same = [x._replace(values=x.values[:0], known=None)[1:] for x in (one, ones[0])]
        if one.values.shape != ones[0].values.shape or same[0] != same[1]:
            raise ValueError(f"{name} and {names[0]} differ in size, range or nodata")
    known = None
    if any(one.known is not None for one in ones):
        known = np.concatenate([np.ones(one.values.shape, bool) if one.known is None else one.known for one in ones])
    return ones[0]._replace(values=np.concatenate([one.values for one in ones]), known=known)


def read_stack(files: Sequence[str], form: Form) -> Image_:
    """One image of the bands in several files.

    Raises:
        ValueError: they differ in size or type, or have several bands; any other kind: one cannot be read.
    """
    held = []
    for file in files:
        with open(file, "rb") as opened:
            held.append(held_in(opened.read(), form, file))
    return fitted(joined(files, held), form)


def parts_of(files: Sequence[str], form: Form) -> Parts:
    """An image as one of which parts are read. It may be larger than the bound, which holds for each part.

    What has no parts that can be read, and what is scaled by all of its pixels, is decoded as a whole.

    Args:
        files: one, or those of a stack.

    Raises:
        Exception: of any kind; it cannot be read, or has more pixels than its bound allows.
    """
    set_bound(form)
    held = held_by_all(files, lambda file: by_parts(file, form, lossy=True)) if form.scale.by_pixel else None
    if held:
        return Parts(StackParts(files, held) if form.stack else held[0], form)
    try:
        return WholeParts(read_stack(files, form) if form.stack else read_file(files[0], form))
    except ValueError as error:
        if form.scale.by_pixel or "--max-pixels" not in str(error):
            raise
        raise ValueError(f"{error}; so does --scale LOW,HIGH, for --scale {form.scale} needs all of them") from error


def held_by_all(files: Sequence[str], read: Callable[[str], Held | None]) -> list[Held]:
    """What each file holds, part by part; nothing if one of them is not read so."""
    held: list[Held] = []
    for file in files:
        found = read(file)
        if found is None:
            for one in held:
                one.close()
            return []
        held.append(found)
    return held


class Stacks(Source):
    """Images whose bands lie in files of their own.

    Args:
        source: of the files.

    Raises:
        ValueError: see :func:`stacked`.
    """

    def __init__(self, source: FileImages) -> None:
        self.form = source.form
        names = [source.name_of(n) for n in range(len(source))]
        self.groups = stacked(names, self.form.stack)
        number = {name: n for n, name in enumerate(names)}
        own = [source.label_of(number[group[0]]) for group in self.groups]
        self.numbers, self.labels, self.class_names = own, telling(own), source.class_names
        self.identity: Hashable = (source.identity, self.form.stack)
        self.other_splits = source.other_splits

    def __len__(self) -> int:
        return len(self.groups)

    def read(self, position: int, seed: int | None = None) -> tuple[Image_ | Parts, int]:
        files = self.groups[position]
        held = held_by_all(files, lambda file: large(file, self.form)) if seed is not None else None
        image = Parts(StackParts(files, held), self.form) if held else read_stack(files, self.form)
        return image, self.numbers[position]

    def name_of(self, position: int) -> str:
        return self.groups[position][0]
