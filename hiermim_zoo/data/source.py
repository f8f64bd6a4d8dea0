"""What every kind of data answers for itself: which items it holds, how one is read, what messages call it.

An item is an image or a video of the data. A sample is what a model is shown: an image, or a clip of a video. Items
have positions, from 0 on; those of a stream have none, they come in an order of their own.

A kind of data is a class with one of the protocols as its base: :class:`Source`, :class:`Stream`, or :class:`VideoSet`.
It answers what has no answer there, and a row of ``kinds.KINDS`` says which DATA it opens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import Any, Protocol

from .decoding import Form, Image_


@dataclass(frozen=True)
class Request:
    """Which part of the data is wanted, and in what form.

    Args:
        form: of the images or frames.
        size: (height, width) of frames that are drawn for the model; None: images are wanted, which keep their own.
        root: folder of data that are named, like "wds/..."; None: their own default.
        split: of the data; a folder that holds a folder of this name is entered.
        seed: of the order of streams.
        training: streams are shuffled and go round; else each item comes once, in order.
    """

    form: Form = field(default_factory=Form)
    size: tuple[int, int] | None = None
    root: str | None = None
    split: str = "train"
    seed: int = 0
    training: bool = True


class Items(Protocol):
    """What images and videos answer alike."""

    identity: Hashable  # equal for two that hold the same items
    class_names: list[str] | None = None  # in the order of the labels, where the data tell
    other_splits: Sequence[str] = ()  # the splits that there are, where the one asked for is not among them

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name_of(self, position: int) -> str:
        """What a message calls an item: its file, if it has one."""

    def reopen(self) -> None:
        """Open files anew that processes must not share. Called in every worker process before it reads."""
        return  # most kinds keep nothing open


class Source(Items, Protocol):
    """Labelled images, or videos that clips are cut from."""

    noun: str = "images"  # what a message calls the items
    repeat: int = 1  # samples that one reading for training gives: clips of a video
    crops: int = 1  # places along the longer side that each image or clip is shown at in evaluation
    labels: Sequence[int] | None = None  # of all items, where they are known without reading and are not all the same
    streamed: bool = False  # whether this is a Stream

    @abstractmethod
    def read(self, position: int, seed: int | None = None) -> tuple[Any, int]:
        """An image, or the clips of a video (each a list of images), and the label, -1 where there is none.

        Args:
            seed: of what is random in a reading for training (where clips start); None: read as for evaluation.
                With a seed, an image may be one that PIL has opened and not yet decoded, or one of which parts are
                read (``parts``).

        Raises:
            Exception: of any kind; the item cannot be read. Another one never takes its place.
        """

    def name_of(self, position: int) -> str:
        return f"image {position}"

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """All items as for evaluation, and their labels."""
        return (self.read(position) for position in range(len(self)))

    def begin_epoch(self, epoch: int, workers: int) -> None:
        """Settle the order of a stream in an epoch. Called by the process that starts the workers, before they read."""
        return  # what has positions has no order of its own

    def some(self, count: int) -> list[Any]:
        """What is read of so many items as for evaluation, without labels: evenly spaced, or the first of a stream.

        In place of one that cannot be read the next one is taken; where too few can, there are fewer.
        """
        found: dict[int, Any] = {}
        for n in range(count):
            start = n * len(self) // count
            for position in (*range(start, len(self)), *range(start)):
                if position in found:
                    continue
                with suppress(Exception):  # decoders of damaged files raise whatever comes up; who needs it names it
                    found[position] = self.read(position)[0]
                    break
        return list(found.values())


class Stream(Source, Protocol):
    """Images that can only be read one after the other, in their own order. Those that cannot be read are left out."""

    streamed: bool = True

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Images and labels; with several workers, those of the worker that asks."""

    def read(self, position: int, seed: int | None = None) -> tuple[Any, int]:
        raise TypeError("the images of a stream have no positions")

    def some(self, count: int) -> list[Any]:
        return [image for image, _ in islice(self, count)]


class Video(Protocol):
    """Frames of one video, in the order of time."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def frames(self, wanted: Sequence[int]) -> list[Image_]:
        """Frames by their positions, which may repeat."""

    def rate(self) -> Fraction | None:
        """Frames a second on the average; None where the video does not tell. Asked for only where it counts."""
        return None


class VideoSet(Items, Protocol):
    """Labelled videos; :class:`hiermim_zoo.data.clips.Clips` makes a source of them."""

    labels: Sequence[int]  # of each video, -1 where there is none

    def untimed(self) -> str | None:
        """One that cannot tell its frames a second, as far as is known before it is opened."""
        return None

    @abstractmethod
    def open(self, position: int) -> AbstractContextManager[Video]:
        """A video, while its file is open.

        Raises:
            Exception: of any kind, here or from its frames; the video cannot be read.
        """


def telling(labels: Iterable[int]) -> list[int] | None:
    """Labels, or None if they tell nothing apart."""
    found = [int(label) for label in labels]
    return found if len(set(found)) > 1 else None
