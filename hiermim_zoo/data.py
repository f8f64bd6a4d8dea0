"""Pictures and clips -> batches for training: what is read when, and with which random numbers, depends on seed and step alone.

So a run that was interrupted goes on exactly where it stopped, and two processes see together what one would see. Streams
(webdataset, TFDS, iterable Hugging Face datasets) have no positions to jump to: they are read from the start of the epoch.

Clips come from :mod:`hiermim_zoo.clips`. All that is different about them here: one reading may give several samples, a
transform of pictures is applied to every frame, and an image has one axis more.
"""

from __future__ import annotations

import math
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_model_data_config
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.readers.img_extensions import add_img_extensions
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of a model -> what PIL calls pictures with as many
SPECS = ("torch", "hfds", "hfids", "tfds", "wds")  # prefixes of timm's create_dataset
TRIES = 50  # pictures tried in place of one that cannot be read
LABEL, WANTED, READ, EXTRA = range(
    4
)  # columns of what goes with each picture: label, position asked for, position read, the rest

add_img_extensions((".bmp", ".webp", ".tif", ".tiff", ".ppm"))  # timm looks for png and jpg alone


def open_pictures(
    spec: str, *, root: str | None = None, split: str = "train", channels: int = 3, seed: int = 0, training: bool = True
) -> Any:
    """A dataset of pictures with labels.

    Args:
        spec: a folder (of class folders, or of anything with pictures in it), a tar of such a folder, ``digits``, or a name
            that timm's create_dataset knows ("hfds/...", "wds/...", "tfds/...", "torch/...").
        root: folder of the data, for those names.
        split: of the data; a folder that holds a folder of this name is entered.
        channels: of the model.
        seed: of the order of streams.
        training: streams are shuffled and go round; else each picture comes once, in order.

    Raises:
        ValueError: there is no such data, or no picture in it.
    """
    if channels not in MODES:
        raise ValueError(f"the model wants {channels} channels; pictures can be given {', '.join(map(str, MODES))}")
    if spec == "digits":
        return Digits(split, MODES[channels])
    named = is_name(spec)
    if not named and not Path(spec).exists():
        raise ValueError(f"{spec}: no such folder or tar, and no name that timm knows ({', '.join(f'{s}/...' for s in SPECS)})")
    name, where = (spec, root) if named else ("", spec)
    try:
        dataset = create_dataset(name, where, split=split, is_training=training, input_img_mode=MODES[channels], seed=seed)
        length = len(dataset)
    except Exception as error:  # readers of all kinds raise whatever comes up
        raise ValueError(f"{spec} cannot be read as pictures: {error}") from error
    if not length:
        raise ValueError(f"{spec} holds no pictures")
    return dataset


def is_name(spec: str) -> bool:
    """Whether pictures are meant that lie at no place of their own: ``digits``, or a name that timm's create_dataset knows."""
    return spec == "digits" or (spec.partition("/")[0] in SPECS and "/" in spec and not Path(spec).exists())


class Digits(Dataset[tuple[Image.Image, int]]):
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 grey pixels; every sixth is kept for validation."""

    def __init__(self, split: str, mode: str) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError('digits come with scikit-learn: pip install "hiermim-zoo[probe]"') from error
        images, labels = load_digits(return_X_y=True)
        chosen = (np.arange(len(labels)) % 6 == 0) != (split == "train")
        pixels = (images[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.pictures = [Image.fromarray(x).convert(mode) for x in pixels]
        self.labels = labels[chosen].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return self.pictures[i], self.labels[i]


def data_config(model: Any, img_size: tuple[int, ...] | None = None) -> dict[str, Any]:
    """timm's preprocessing for the model, with the channels and frames that it really has.

    Args:
        img_size: (height, width) in place of the model's; frames before them are left to the model.
    """
    config = resolve_model_data_config(model)
    chans = getattr(model, "in_chans", config["input_size"][0])
    if chans not in MODES:
        raise ValueError(f"the model wants {chans} channels; pictures can be given {', '.join(map(str, MODES))}")
    frames = getattr(model, "num_frames", None)
    config["input_size"] = (chans, *((frames,) if frames else ()), *(img_size or config["input_size"])[-2:])
    for key in ("mean", "std"):  # averaged where they do not fit, as in timm's loader
        values = config[key]
        config[key] = values if len(values) == chans else (sum(values) / len(values),) * chans
    return config


def is_stream(source: Any) -> bool:
    return isinstance(source, IterableDataset)


def read(source: Any, index: int, seed: int | None = None) -> tuple[Any, int]:
    """One picture, or the clips of one video, and the label, by position.

    timm's own datasets put a neighbour in the place of a picture that they cannot read; here that is an error.

    Args:
        seed: of where random clips start; None: clips as for evaluation.
    """
    if hasattr(source, "clips"):
        return source.clips(index, seed)
    if not hasattr(source, "reader"):
        return source[index]
    file, label = source.reader[index]
    return decoded(file, source.input_img_mode), -1 if label is None else int(label)


def decoded(file: Any, mode: str) -> Image.Image:
    """The picture in an open file, which is closed."""
    with file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = file if isinstance(file, Image.Image) else Image.open(file)
        return picture.convert(mode)


def file_name(source: Any, index: int) -> str:
    """What to call a picture or video in a message."""
    return source.filename(index, absolute=True) if hasattr(source, "reader") and not is_stream(source) else f"picture {index}"


def things(source: Any) -> str:
    """What a source is made of, in a message."""
    return "videos" if hasattr(source, "clips") else "pictures"


def repeat_of(source: Any) -> int:
    """Samples that one reading for training gives: of a video, several clips."""
    return getattr(source, "repeat", 1)


def labels_of(source: Any) -> list[int] | None:
    """All labels of a dataset, if it can tell them without reading pictures and they tell pictures apart."""
    if isinstance(source, Digits):
        return source.labels
    reader = getattr(source, "reader", None)
    targets = getattr(reader, "targets", None)  # of a tar; a folder's are with the names of its files
    if targets is None:
        targets = [label for _, label in getattr(reader, "samples", ())]
    labels = [int(label) for label in targets]
    return labels if len(set(labels)) > 1 else None


def class_names(source: Any) -> list[str] | None:
    """Names of the classes in the order of the labels, where the data tell."""
    if isinstance(source, Digits):
        return [str(digit) for digit in range(10)]
    reader = getattr(source, "reader", source)
    index = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    return [str(name) for name in sorted(index, key=index.get)] if index else None


def start_worker(worker: int) -> None:
    """Set up a process that reads pictures of a Dataset with a ``source``.

    Ctrl-C and the like reach a whole group of processes, but when workers end is for their parent to say. And a tar that the
    parent opened would be read by all of them at one position: each opens its own.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    info: Any = get_worker_info()
    reader = getattr(info.dataset.source, "reader", None)
    tars = getattr(getattr(getattr(reader, "pictures", None), "reader", reader), "tar_state", {})  # a reader may move pictures
    for tar in tars.values() if isinstance(tars, dict) else [tars]:
        for opened in (tar, *tar.children.values()):
            opened.reset()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the random numbers of all libraries that transforms use follow from the seed; outside, nothing has happened."""
    state = random_states()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would look at every device
    try:
        yield
    finally:
        set_random_states(state)


def random_states() -> tuple[Any, Any, Tensor]:
    """Where the random numbers that transforms use stand."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_random_states(state: tuple[Any, Any, Tensor]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def seed_of(*numbers: int) -> int:
    """One 32-bit seed for a combination of whole numbers, the same in every process."""
    return hash(numbers) & 0xFFFFFFFF  # Python salts the hashes of strings, not of numbers


def make_transform(input_size: tuple[int, ...], **options: Any) -> Any:
    """timm's transform of pictures; for a model of clips, applied to their frames.

    Args:
        input_size: (channels, height, width) or (channels, frames, height, width).
        **options: of timm's create_transform.
    """
    channels, *frames, height, width = input_size
    transform = create_transform((channels, height, width), **options)
    return EveryFrame(transform) if frames else transform


class EveryFrame:
    """Clips, each a list of T pictures -> as many arrays [C, T, H, W], by a transform of pictures to [C, H, W].

    Every frame of a clip sees the same random numbers: all are cut, mirrored and coloured alike.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    @property
    def transforms(self) -> list[Any]:
        """The steps, as those of timm's transforms."""
        return self.transform.transforms

    def __call__(self, clips: list[list[Image.Image]]) -> list[Tensor]:
        return [torch.stack([torch.as_tensor(frame) for frame in self.frames(clip)], dim=1) for clip in clips]

    def frames(self, clip: list[Image.Image]) -> Iterator[Any]:
        state = random_states()
        for picture in clip:
            set_random_states(state)
            yield self.transform(picture)


Transform = Callable[[Any], Any]  # of what ``read`` gives, to one sample or a list of samples
Extra = Callable[[int, int], Sequence[int]]  # seed of a sample, seed of its step -> numbers that travel with the sample


def no_extra(own: int, step: int) -> Sequence[int]:
    return ()


class Item(NamedTuple):
    """What is read for a batch."""

    position: int  # in the data
    seed: int  # of its transform
    step: int  # seed of what it shares with the other samples of its step


class Companions(NamedTuple):
    """What goes with the images of a batch."""

    columns: Tensor  # int64 [b, 3 + extra]
    made: Any = None  # of the columns, where the batch was read; stays on the host

    def to(self, device: torch.device, non_blocking: bool = False) -> Companions:
        """The columns on a device."""
        return self._replace(columns=self.columns.to(device, non_blocking=non_blocking))


class Collate:
    """Samples -> images and what goes with them.

    Args:
        prepare: made of the columns, in the worker that reads the batch.
    """

    def __init__(self, prepare: Callable[[Tensor], Any] | None) -> None:
        self.prepare = prepare

    def __call__(self, samples: list[tuple[Any, Tensor]]) -> tuple[Tensor, Companions]:
        images, columns = fast_collate(samples)
        return images, Companions(columns, self.prepare(columns) if self.prepare else None)


class Pictures(Dataset[tuple[Any, Tensor]]):
    """Items -> samples and their columns: of a picture one; what cannot be read is replaced by another."""

    def __init__(self, source: Any, transform: Transform, extra: Extra = no_extra) -> None:
        self.source, self.transform, self.extra = source, transform, extra

    def __getitems__(self, items: list[Item]) -> list[tuple[Any, Tensor]]:
        return [sample for item in items for sample in self.samples(*item)]

    def samples(self, wanted: int, seed: int, step: int) -> list[tuple[Any, Tensor]]:
        index, others = wanted, random.Random(seed)
        for _ in range(TRIES):
            try:
                picture, label = read(self.source, index, seed)
                break
            except Exception:  # decoders of damaged files raise whatever comes up; Watched counts and names the file
                index = others.randrange(len(self.source))
        else:
            bad = f"{TRIES} {things(self.source)} one after the other cannot be read"
            raise ValueError(f"{bad}, {file_name(self.source, wanted)} among them")
        with seeded(seed):
            made = self.transform(picture)
            samples = made if isinstance(made, list) else [made]
            seeds = [seed_of(seed, n) if n else seed for n in range(len(samples))]  # of what goes with each
            columns = [torch.tensor([label, wanted, index, *self.extra(own, step)]) for own in seeds]
            return list(zip(samples, columns, strict=True))


class Stream(IterableDataset[tuple[Any, Tensor]]):
    """The pictures of a stream in its own order; what it cannot read, its reader in timm leaves out.

    A worker does not know whose turn it is: what samples of a step share elsewhere, here those of a worker's batch share.
    """

    def __init__(self, source: Any, transform: Transform, plan: Plan, extra: Extra = no_extra) -> None:
        self.source, self.transform, self.plan, self.extra = source, transform, plan, extra
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        worker = get_worker_info()
        for n, (picture, label) in enumerate(self.source):
            here = (self.plan.seed, self.epoch, self.plan.rank, worker.id if worker else 0)
            seed, step = seed_of(*here, n), seed_of(*here, n // self.plan.micro, self.plan.micro)
            with seeded(seed):
                yield self.transform(picture), torch.tensor([int(label), n, n, *self.extra(seed, step)])


@dataclass(frozen=True)
class Plan:
    """Which pictures belong to which step: a batch is cut into ``parts``, one for each process and each accumulation in turn."""

    length: int  # pictures or videos of the data
    batch: int  # samples of one optimiser step, in all processes together
    accumulate: int
    rank: int
    world: int
    seed: int
    repeat: int = 1  # samples from one reading: clips of a video

    def __post_init__(self) -> None:
        parts = self.world * self.accumulate * self.repeat
        if self.batch % parts:
            each = f" and {self.repeat} clips of each video" if self.repeat > 1 else ""
            raise ValueError(
                f"a batch of {self.batch} cannot be shared by {self.world} processes with {self.accumulate} accumulation steps"
                f"{each}: it must be a multiple of {parts}"
            )
        if self.batch > self.length * self.repeat:
            what = f"{self.repeat} clips of each of the {self.length} videos" if self.repeat > 1 else f"{self.length} pictures"
            raise ValueError(f"a batch of {self.batch} is more than the {what} of the data")

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch; what does not fill a batch is left for another epoch's order."""
        return self.length * self.repeat // self.batch

    @property
    def micro(self) -> int:
        return self.batch // (self.world * self.accumulate)

    def micro_batches(self, start: int, stop: int) -> Iterator[list[Item]]:
        """What this process reads, step after step."""
        epoch, order = -1, torch.empty(0)
        readings = self.batch // self.repeat
        part_of = self.micro // self.repeat
        for step in range(start, stop):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = torch.randperm(self.length, generator=torch.Generator().manual_seed(seed_of(self.seed, epoch)))
            first = step % self.per_epoch * readings
            for part in range(self.rank, self.world * self.accumulate, self.world):
                chosen = order[first + part * part_of : first + (part + 1) * part_of].tolist()
                yield [Item(i, seed_of(self.seed, epoch, i), seed_of(self.seed, step + 1)) for i in chosen]


class Watched:
    """Batches as they come, before they go to the device: counts pictures that had to be replaced, looks at labels.

    Raises:
        ValueError: while iterating: more pictures than the share ``max_bad`` cannot be read, or a label is none of ``classes``.
    """

    def __init__(self, loader: Any, source: Any, max_bad: float, classes: int | None = None) -> None:
        self.loader, self.source, self.max_bad, self.classes = loader, source, max_bad, classes
        self.bad: set[int] = set()

    def __iter__(self) -> Iterator[tuple[Tensor, Companions]]:
        for images, companions in self.loader:
            columns = companions.columns
            for index in columns[columns[:, WANTED] != columns[:, READ], WANTED].tolist():
                self.note(index)
            if self.classes is not None:
                self.check_labels(columns[:, LABEL], self.classes)
            yield images, companions

    @staticmethod
    def check_labels(labels: Tensor, classes: int) -> None:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(f"a picture has label {low if low < 0 else high}, but there are {classes} classes")

    def note(self, index: int) -> None:
        if index in self.bad:
            return
        self.bad.add(index)
        print(f"cannot be read, replaced by another: {file_name(self.source, index)}", file=sys.stderr)
        if len(self.bad) > self.max_bad * len(self.source):
            raise ValueError(
                f"{len(self.bad)} of {len(self.source)} {things(self.source)} cannot be read, "
                f"which is more than --max-bad {self.max_bad}"
            )


def batches(
    source: Any,
    transform: Transform,
    plan: Plan,
    steps: range,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    input_size: tuple[int, ...],
    device: torch.device,
    workers: int = 0,
    max_bad: float = 0.01,
    extra: Extra = no_extra,
    prepare: Callable[[Tensor], Any] | None = None,
    erase: float = 0.0,
    classes: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Normalised images [b, C, H, W] and columns [b, 3 + extra] of this process, on the device, one batch ahead.

    The third of each is what ``prepare`` made of the columns, on the host, or None.

    Clips are [b, C, T, H, W].

    Args:
        transform: gives uint8 arrays [C, H, W] or [C, T, H, W] (from ``make_transform`` with ``use_prefetcher=True``).
        plan: cuts batches.
        input_size: of the model: (channels, height, width) or (channels, frames, height, width).
        steps: of the optimiser; each has ``plan.accumulate`` batches.
        max_bad: share of pictures that may be unreadable.
        extra: numbers that go with each picture, drawn in the worker.
        prepare: what is to be made of the columns of a batch, in the worker.
        erase: probability of random erasing.
        classes: labels must be below.
    """
    kwargs: dict[str, Any] = {
        "num_workers": workers,
        "collate_fn": Collate(prepare),
        "pin_memory": device.type == "cuda",
        "worker_init_fn": start_worker,
        "generator": torch.Generator(),  # or making a loader would move the random numbers of the model
    }
    if is_stream(source):
        loader: Any = _stream_batches(Stream(source, transform, plan, extra), plan, steps, kwargs)
    else:
        loader = DataLoader(Pictures(source, transform, extra), batch_sampler=_Order(plan, steps), **kwargs)
    watched = Watched(loader, source, max_bad, classes)
    # timm's loader takes pictures alone: to it the frames of a clip are channels, and what it erases, it erases in all of them
    channels, *frames, _, _ = input_size
    deep = math.prod(frames)
    flat: Any = ((images.flatten(1, -3), companions) for images, companions in watched)
    means, stds = (tuple(value for value in values for _ in range(deep)) for values in (mean, std))
    normalised = PrefetchLoader(flat, means, stds, channels * deep, device, re_prob=erase, re_mode="pixel")
    return ((images.unflatten(1, (channels, *frames)), *companions) for images, companions in normalised)


class _Order:
    """A batch sampler: the micro-batches of some steps."""

    def __init__(self, plan: Plan, steps: range) -> None:
        self.plan, self.steps = plan, steps

    def __len__(self) -> int:
        return len(self.steps) * self.plan.accumulate

    def __iter__(self) -> Iterator[list[Item]]:
        return self.plan.micro_batches(self.steps.start, self.steps.stop)


def _stream_batches(stream: Stream, plan: Plan, steps: range, kwargs: dict[str, Any]) -> Iterator[tuple[Tensor, Companions]]:
    """Whole epochs of a stream, each as long as the plan says; the one that is resumed in the middle is skipped up to there."""
    step = steps.start
    while step < steps.stop:
        epoch, skipped = divmod(step, plan.per_epoch)
        wanted = min(plan.per_epoch - skipped, steps.stop - step)
        stream.epoch = epoch
        stream.source.set_epoch(epoch)
        stream.source.set_loader_cfg(num_workers=kwargs["num_workers"])
        once_more = (batch for _ in count() for batch in DataLoader(stream, plan.micro, drop_last=True, **kwargs))
        yield from islice(once_more, skipped * plan.accumulate, (skipped + wanted) * plan.accumulate)
        step += wanted
