"""Images whose bands lie in files of their own: scene1_red.tif and scene1_nir.tif are one image of two bands."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np
from PIL import Image

from .decoding import Form, Image_, fitted, held_in
from .formats import Bands, bands_first
from .images import FileImages
from .source import Source, telling


def stacked(files: Sequence[str], parts: Sequence[str]) -> list[list[str]]:
    """Files that are the bands of one image, in the order of ``parts``; images in the order of their first files.

    Args:
        files: with names in which one of the parts stands as a word: "scene1_red.tif", "red/scene1.tif".
        parts: what the names of an image differ in: ("red", "nir").

    Raises:
        ValueError: a file without or with several of these words, or an image of which a band is missing.
    """
    word = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(map(re.escape, parts))})(?![A-Za-z0-9])")
    found: dict[str, dict[str, str]] = {}
    for file in files:
        words = word.findall(file)
        if not words:
            continue  # of another kind: a mask, a band that is not wanted
        if len(set(words)) > 1:
            raise ValueError(f"{file} names several of --stack {','.join(parts)}")
        found.setdefault(word.sub("*", file), {})[words[0]] = file
    if not found:
        raise ValueError(f"no name of a file has one of --stack {','.join(parts)} as a word")
    for name, bands in found.items():
        if missing := [part for part in parts if part not in bands]:
            raise ValueError(f"{name} has no {missing[0]} of --stack {','.join(parts)}")
    return [[bands[part] for part in parts] for bands in found.values()]


def read_stack(files: Sequence[str], form: Form) -> Image_:
    """One image of the bands in several files.

    Raises:
        ValueError: they differ in size or type, or have several bands; any other kind: one cannot be read.
    """
    held: list[Bands] = []
    for file in files:
        with open(file, "rb") as opened:
            found = held_in(opened.read(), form)
        one = Bands(bands_first(np.asarray(found)), (0, 255)) if isinstance(found, Image.Image) else found
        if len(one.values) != 1:
            raise ValueError(f"{file} has {len(one.values)} bands, and each file of --stack is one")
        held.append(one)
        if one.values.shape != held[0].values.shape or one[1:] != held[0][1:]:
            raise ValueError(f"{file} and {files[0]} differ in size, range or nodata")
    return fitted(held[0]._replace(values=np.concatenate([one.values for one in held])), form)


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

    def read(self, position: int, seed: int | None = None) -> tuple[Image_, int]:
        return read_stack(self.groups[position], self.form), self.numbers[position]

    def name_of(self, position: int) -> str:
        return self.groups[position][0]
