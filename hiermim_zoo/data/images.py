"""Kinds of images: folders and tars, what the names of timm's datasets stand for, and the digits of scikit-learn."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from timm.data import create_dataset
from timm.data.readers.img_extensions import add_img_extensions

from .source import Request, Source, Stream, telling

# What the folders of splits are called.
SPLITS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")

add_img_extensions((".bmp", ".webp", ".tif", ".tiff", ".ppm"))  # timm looks for png and jpg alone


def decoded(file: Any, mode: str) -> Image.Image:
    """The image in an open file, which is closed.

    Args:
        mode: what PIL calls such images.

    Raises:
        Exception: of any kind; it cannot be decoded, or is so large that decoding it may take all memory.
    """
    image = opened(file, mode)
    image.load()
    return image


def opened(file: Any, mode: str) -> Image.Image:
    """As :func:`decoded`; but a JPEG of that mode is decoded when its pixels are asked for, and may fail only then.

    Until then ``Image.draft`` can have it decoded at a part of its size, which takes less time.
    """
    with file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(file.read()))
        return image if isinstance(image, JpegImageFile) and image.mode == mode else image.convert(mode)


def timm_dataset(spec: str, request: Request) -> Any:
    """What timm's create_dataset makes of a path, or of a name like "wds/...".

    Raises:
        ValueError: it cannot be read as images, or there are none.
    """
    name, root = ("", spec) if Path(spec).exists() else (spec, request.root)
    form: dict[str, Any] = {"is_training": request.training, "input_img_mode": request.mode, "seed": request.seed}
    try:
        dataset = create_dataset(name, root, split=request.split, **form)
        length = len(dataset)
    except Exception as error:  # readers of all kinds raise whatever comes up
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


class TimmImages(Source):
    """Images that a reader of timm's finds by position."""

    def __init__(self, dataset: Any) -> None:
        self.reader, self.mode = dataset.reader, dataset.input_img_mode

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, position: int, seed: int | None = None) -> tuple[Image.Image, int]:
        file, label = self.reader[position]  # timm's dataset would read a neighbour in place of what it cannot read
        image = (decoded if seed is None else opened)(file, self.mode)
        return image, -1 if label is None else int(label)

    def name_of(self, position: int) -> str:
        return self.reader.filename(position, absolute=True)


class FolderImages(TimmImages):
    """The images in a folder at any depth; the folder around each is its class."""

    def __init__(self, path: str, dataset: Any) -> None:
        super().__init__(dataset)
        self.identity = os.path.realpath(self.reader.root)
        self.labels = telling(label for _, label in self.reader.samples)
        self.class_names = names_by_label(self.reader.class_to_idx)
        self.other_splits = other_splits(path, self.reader.root)


class TarImages(TimmImages):
    """The images in a tar; the folder around each is its class."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset)
        self.identity = os.path.realpath(self.reader.root)
        self.labels = telling(self.reader.targets)
        self.class_names = names_by_label(self.reader.class_name_to_idx)

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
    dataset = timm_dataset(path, request)
    return TarImages(dataset) if os.path.isfile(dataset.reader.root) else FolderImages(path, dataset)


class HubImages(TimmImages):
    """A data set of Hugging Face that is stored here: hfds/NAME."""

    def __init__(self, name: str, request: Request) -> None:
        super().__init__(timm_dataset(name, request))
        self.identity = (name, request.split)
        self.class_names = names_by_label(self.reader.class_to_idx)


class TorchvisionImages(Source):
    """A data set of torchvision: torch/NAME."""

    def __init__(self, name: str, request: Request) -> None:
        self.dataset, self.mode = timm_dataset(name, request), request.mode
        self.identity = (name, request.split)
        self.labels = telling(getattr(self.dataset, "targets", ()))  # most of them have both
        self.class_names = names_by_label(getattr(self.dataset, "class_to_idx", None))

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, position: int, seed: int | None = None) -> tuple[Image.Image, int]:
        image, label = self.dataset[position]
        return image.convert(self.mode), int(label)


class TimmStream(Stream):
    """A stream of timm's: wds/NAME (webdataset), tfds/NAME (TensorFlow), hfids/NAME (Hugging Face)."""

    def __init__(self, name: str, request: Request) -> None:
        self.dataset = timm_dataset(name, request)
        self.identity = (name, request.split)
        self.class_names = names_by_label(self.dataset.reader.class_to_idx)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return ((image, int(label)) for image, label in self.dataset)

    def begin_epoch(self, epoch: int, workers: int) -> None:
        self.dataset.set_epoch(epoch)
        self.dataset.set_loader_cfg(num_workers=workers)


class Digits(Source):
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 grey pixels; every sixth is kept for validation.

    Args:
        split: "train", or another of SPLITS for the rest.
        mode: what PIL calls the images wanted.

    Raises:
        ValueError: an unknown split, or scikit-learn is not installed.
    """

    def __init__(self, split: str, mode: str) -> None:
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
        self.images = [Image.fromarray(x).convert(mode) for x in pixels]
        self.labels: list[int] = labels[chosen].tolist()
        self.class_names = list("0123456789")
        self.identity = ("digits", train)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, position: int, seed: int | None = None) -> tuple[Image.Image, int]:
        return self.images[position], self.labels[position]
