"""Kinds of images: folders and tars, what the names of timm's datasets stand for, and the digits of scikit-learn."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.img_extensions import add_img_extensions

from .decoding import SUFFIXES, Form, Image_, decoded, held_by, in_form, opened, path_of
from .parts import Parts, large
from .source import Request, Source, Stream, telling

# What the folders of splits are called.
SPLITS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")

add_img_extensions(tuple(SUFFIXES))  # timm looks for png and jpg alone


def timm_dataset(spec: str, request: Request) -> Any:
    """What timm's create_dataset makes of a path, or of a name like "wds/...".

    Raises:
        ValueError: it cannot be read as images, or there are none.
    """
    name, root = ("", spec) if Path(spec).exists() else (spec, request.root)
    form: dict[str, Any] = {"is_training": request.training, "input_img_mode": "", "seed": request.seed}
    try:
        dataset = create_dataset(name, root, split=request.split, **form)
        length = len(dataset)
    except Exception as error:  # readers of all kinds raise whatever comes up
        if os.path.isdir(spec) and str(error).startswith("Found 0 images"):
            raise ValueError(
                f"{spec} holds no images of a kind that can be read, such as .jpg, .png or .tif"
            ) from error
        if os.path.isfile(spec) and Path(spec).suffix.lower() in SUFFIXES:
            raise ValueError(f"{spec} is a single image: name the folder around it") from error
        raise ValueError(f"{spec} cannot be read as images: {error}") from error
    if not length:
        raise ValueError(f"{spec} holds no images")
    return dataset


def names_by_label(labels: Mapping[str, int] | None) -> list[str] | None:
    """Names of classes in the order of their labels; None if there are none, or some label has several."""
    if not labels or len(set(labels.values())) < len(labels):
        return None
    return [str(name) for name in sorted(labels, key=labels.__getitem__)]


def other_splits(path: str, root: str) -> list[str]:
    """The splits of a folder, if none was entered.

    Args:
        path: as named.
        root: where the items were found, the folder itself or one in it.
    """
    return [name for name in SPLITS if (Path(path) / name).is_dir()] if root == path else []


def is_shown(name: str) -> bool:
    """Whether a file, named from the root of its data on, is no hidden one and in no hidden folder.

    macOS and others put such files beside images, with the endings of images (._x.png).
    """
    return not any(part.startswith(".") and part not in (".", "..") for part in Path(name).parts)


def check_tree(root: str) -> None:
    """Refuse a folder that timm would not read as it is: it leaves out what it may not list, and goes round in circles.

    Raises:
        ValueError: a link leads back to a folder that it lies in.
        OSError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    for at, folders, _ in os.walk(root, followlinks=True, onerror=refuse):
        for link in (link for name in folders if os.path.islink(link := os.path.join(at, name))):
            inside = Path(at).relative_to(root).parts
            around = (os.path.join(root, *inside[:n]) for n in range(len(inside) + 1))
            if any(os.path.samefile(link, folder) for folder in around):
                raise ValueError(f"{link} is a link back to a folder around it")


def relabelled(
    labels: Iterable[int], classes: Mapping[str, int], shown: Sequence[bool]
) -> tuple[list[int], dict[str, int]]:
    """Labels of the files that are shown, and classes with their labels, without those of which none is shown.

    Raises:
        ValueError: all files are hidden.
    """
    kept = [label for label, seen in zip(labels, shown, strict=True) if seen]
    if not kept:
        raise ValueError("all images in there are hidden files")
    new = {label: i for i, label in enumerate(sorted(set(kept)))}
    return [new[label] for label in kept], {name: new[label] for name, label in classes.items() if label in new}


class FileImages(Source):
    """Images that lie in files of their own, wherever these are."""

    form: Form

    @abstractmethod
    def open(self, position: int) -> tuple[IO[bytes], int]:
        """A file, which the caller closes, and its label, -1 where there is none.

        Raises:
            OSError: it cannot be opened.
        """

    @abstractmethod
    def label_of(self, position: int) -> int:
        """The label of a file, which need not be opened; -1 where there is none."""

    def read(self, position: int, seed: int | None = None) -> tuple[Image_ | Parts, int]:
        file, label = self.open(position)
        if seed is None:
            return decoded(file, self.form), label
        held = large(path_of(file), self.form)
        if held is None:
            return opened(file, self.form), label
        file.close()
        return Parts(held, self.form), label


class TimmImages(FileImages):
    """Images that a reader of timm's finds by position."""

    def __init__(self, dataset: Any, form: Form) -> None:
        self.reader, self.form = dataset.reader, form

    def __len__(self) -> int:
        return len(self.reader)

    def open(self, position: int) -> tuple[IO[bytes], int]:
        file, label = self.reader[position]  # timm's dataset would read a neighbour in place of what it cannot read
        return file, -1 if label is None else int(label)

    def label_of(self, position: int) -> int:
        return self.open(position)[1]

    def name_of(self, position: int) -> str:
        return self.reader.filename(position, absolute=True)


class FolderImages(TimmImages):
    """The images in a folder at any depth; the folder around each is its class."""

    def __init__(self, path: str, dataset: Any, form: Form) -> None:
        super().__init__(dataset, form)
        reader, root = self.reader, self.reader.root
        self.identity = os.path.realpath(root)
        shown = [is_shown(os.path.relpath(name, root)) for name, _ in reader.samples]
        labels, reader.class_to_idx = relabelled((label for _, label in reader.samples), reader.class_to_idx, shown)
        names = (name for (name, _), seen in zip(reader.samples, shown, strict=True) if seen)
        reader.samples = list(zip(names, labels, strict=True))
        self.labels = telling(labels)
        self.class_names = names_by_label(reader.class_to_idx)
        self.other_splits = other_splits(path, self.reader.root)

    def label_of(self, position: int) -> int:
        label: int = self.reader.samples[position][1]
        return label


class TarImages(TimmImages):
    """The images in a tar; the folder around each is its class."""

    def __init__(self, dataset: Any, form: Form) -> None:
        super().__init__(dataset, form)
        reader = self.reader
        self.identity = os.path.realpath(reader.root)
        shown = [is_shown(sample[0].name) for sample in reader.samples]
        labels, reader.class_name_to_idx = relabelled(reader.targets, reader.class_name_to_idx, shown)
        reader.samples = [sample for sample, seen in zip(reader.samples, shown, strict=True) if seen]
        reader.targets = labels
        self.labels = telling(labels)
        self.class_names = names_by_label(reader.class_name_to_idx)

    def reopen(self) -> None:
        """A tar that the parent opened would be read by all of its workers at one position."""
        whole = self.reader.tar_state
        for tar in (*whole.children.values(), whole):  # tars may lie in it
            if tar.tf is not None:
                tar.tf.close()
            tar.reset()


def images_at(path: str, request: Request) -> Source:
    """The images of a folder or tar.

    Raises:
        ValueError: there are none.
    """
    if os.path.isdir(path):
        check_tree(path)
    dataset = timm_dataset(path, request)
    if os.path.isfile(dataset.reader.root):
        return TarImages(dataset, request.form)
    try:
        return FolderImages(path, dataset, request.form)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class HubImages(TimmImages):
    """A data set of Hugging Face that is stored here: hfds/NAME."""

    def __init__(self, name: str, request: Request) -> None:
        super().__init__(timm_dataset(name, request), request.form)
        self.identity = (name, request.split)
        self.class_names = names_by_label(self.reader.class_to_idx)


class TorchvisionImages(Source):
    """A data set of torchvision: torch/NAME."""

    def __init__(self, name: str, request: Request) -> None:
        self.dataset, self.form = timm_dataset(name, request), request.form
        self.identity = (name, request.split)
        self.labels = telling(getattr(self.dataset, "targets", ()))  # most of them have both
        self.class_names = names_by_label(getattr(self.dataset, "class_to_idx", None))

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, position: int, seed: int | None = None) -> tuple[Image_, int]:
        image, label = self.dataset[position]
        return in_form(held_by(image), self.form), int(label)


class TimmStream(Stream):
    """A stream of timm's: wds/NAME (webdataset), tfds/NAME (TensorFlow), hfids/NAME (Hugging Face)."""

    def __init__(self, name: str, request: Request) -> None:
        self.dataset, self.form = timm_dataset(name, request), request.form
        self.identity = (name, request.split)
        self.class_names = names_by_label(self.dataset.reader.class_to_idx)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Image_, int]]:
        return ((in_form(held_by(image), self.form), int(label)) for image, label in self.dataset)

    def begin_epoch(self, epoch: int, workers: int) -> None:
        self.dataset.set_epoch(epoch)
        self.dataset.set_loader_cfg(num_workers=workers)


class Digits(Source):
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 grey pixels; every sixth is kept for validation.

    Args:
        split: "train", or another of SPLITS for the rest.
        form: that the images are wanted in.

    Raises:
        ValueError: an unknown split, scikit-learn is not installed, or digits have no such form.
    """

    def __init__(self, split: str, form: Form) -> None:
        if split not in SPLITS:
            raise ValueError(f"digits have no split {split!r}, but {', '.join(SPLITS)}")
        train = split in ("train", "training")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError('digits come with scikit-learn: pip install "hiermim-zoo[probe]"') from error
        images, labels = load_digits(return_X_y=True)
        chosen = (np.arange(len(labels)) % 6 == 0) != train
        pixels = (images[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.images = [in_form(held_by(Image.fromarray(x)), form) for x in pixels]
        self.labels: list[int] = labels[chosen].tolist()
        self.class_names = list("0123456789")
        self.identity = ("digits", train)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, position: int, seed: int | None = None) -> tuple[Image_, int]:
        return self.images[position], self.labels[position]
