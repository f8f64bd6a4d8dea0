"""Images and clips -> batches for training. What is read, with which random numbers, depends on seed and step alone.

So a run that was interrupted goes on exactly where it stopped, and two processes see together what one would see.
Streams have no positions to jump to: they are read from the start of the epoch.

One reading of a video may give several samples, its clips; one of an image gives one. A batch of clips has one axis
more than one of images. That is all that is different about clips here.

Letters: b samples of a batch, C channels, T frames of a clip, H and W pixels.
"""

from __future__ import annotations

import math
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from ..text import counted, printable
from .readers import readings
from .seeds import seed_all, seed_of, seeded, undisturbed
from .source import Source
from .transforms import samples_of

TRIES = 50  # items tried in place of one that cannot be read
MOST_STEPS = 10**15  # of a run; beyond it counters overflow
NAMED = 10  # items that cannot be read, beyond which they are counted alone
# Columns of what goes with each sample: its label, the position that was wanted, the one that was read, and from EXTRA
# on what Loading.extra gives.
LABEL, WANTED, READ, EXTRA = range(4)


def start_worker(worker: int) -> None:
    """Set up a process that reads for a Dataset with a ``source``.

    Ctrl-C and the like reach a whole group of processes, but when workers end is for their parent to say.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    info: Any = get_worker_info()
    info.dataset.source.reopen()


Transform = Callable[[Any], Any]  # of what a source reads, to one sample or a list of samples


class Seeds(NamedTuple):
    """Of what goes with a sample: its own, and those that it shares with the others of its micro-batch and its step."""

    own: int
    batch: int
    step: int


Extra = Callable[[Seeds], Sequence[int]]  # numbers that travel with the sample


def no_extra(seeds: Seeds) -> Sequence[int]:
    return ()


# ---- which items belong to which step


class Reading(NamedTuple):
    """One item that is to be read for a batch."""

    position: int  # in the data
    seeds: Seeds  # its own is that of its transform


@dataclass(frozen=True)
class Batching:
    """Which items belong to which step: a batch is cut into parts, one for each process and accumulation in turn."""

    length: int  # images or videos of the data
    batch: int  # samples of one optimiser step, in all processes together
    accumulate: int
    rank: int
    world: int
    seed: int
    repeat: int = 1  # samples from one reading: clips of a video
    balance: Sequence[int] | None = None  # classes of the items, each of which is to be seen as often as the others

    def __post_init__(self) -> None:
        parts = self.world * self.accumulate * self.repeat
        if self.batch % parts:
            each = f" and {self.repeat} clips of each video" if self.repeat > 1 else ""
            raise ValueError(
                f"a batch of {self.batch} cannot be shared by {counted(self.world, 'processes')} "
                f"with {counted(self.accumulate, 'accumulation steps')}{each}: it must be a multiple of {parts}; "
                f"--batch-size {max(1, self.batch // parts) * parts} would work"
            )
        if self.batch > self.length * self.repeat:
            clips = f"{self.repeat} clips of each of the {counted(self.length, 'videos')}"
            what = clips if self.repeat > 1 else counted(self.length, "images")
            most = self.length * self.repeat // parts * parts
            hint = f"; --batch-size {most} would work" if most else "; fewer processes, or a smaller --accumulate, help"
            raise ValueError(f"a batch of {self.batch} is more than the {what} of the data{hint}")

    @property
    def per_pass(self) -> int:
        """Steps of a pass, which reads every item once; what does not fill a batch is left for another pass's order."""
        return self.length * self.repeat // self.batch

    @property
    def per_epoch(self) -> float:
        """Steps of an epoch, which shows as many samples as there are items.

        Several clips of each reading make as many epochs of a pass ("effective" epochs, as the papers count them).
        """
        return self.per_pass / self.repeat

    def steps_of(self, epochs: float) -> int:
        """Steps of so many epochs."""
        return round(epochs * self.per_epoch)

    def steps_of_run(self, epochs: float) -> int:
        """Steps of a whole run.

        Raises:
            ValueError: not one, or more than can be counted.
        """
        if epochs > MOST_STEPS / self.per_epoch:
            raise ValueError(f"--epochs {epochs:g} is more than {MOST_STEPS:g} steps; --epochs 100 would work")
        if steps := self.steps_of(epochs):
            return steps
        raise ValueError(
            f"--epochs {epochs:g} shows {counted(self.length, 'samples')} {counted(epochs, 'times')}, less than "
            f"a batch of {self.batch}; --epochs {math.ceil(1 / self.per_epoch)} would work"
        )

    @property
    def micro(self) -> int:
        """Samples of a micro-batch, which one process computes at once."""
        return self.batch // (self.world * self.accumulate)

    def micro_batches(self, start: int, stop: int) -> Iterator[list[Reading]]:
        """What this process reads, step after step."""
        turn, order = -1, torch.empty(0)  # the pass, and its order
        readings = self.batch // self.repeat  # of a step
        part_of = self.micro // self.repeat  # readings of a micro-batch
        for step in range(start, stop):
            if step // self.per_pass != turn:
                turn = step // self.per_pass
                order = self.order(turn)
            first, shared = step % self.per_pass * readings, seed_of(self.seed, step + 1)
            for part in range(self.rank, self.world * self.accumulate, self.world):
                begin = first + part * part_of
                chosen = order[begin : begin + part_of].tolist()
                # Where an item comes several times in a pass, its place tells one time from another.
                places = [()] * part_of if self.balance is None else [(begin + n,) for n in range(part_of)]
                batch = seed_of(shared, part) if part else shared
                yield [
                    Reading(i, Seeds(seed_of(self.seed, turn, i, *place), batch, shared))
                    for i, place in zip(chosen, places, strict=True)
                ]

    def order(self, turn: int) -> Tensor:
        """Items of a pass in their order, int64 [length]; it follows from the seed alone."""
        numbers = torch.Generator().manual_seed(seed_of(self.seed, turn))
        if self.balance is None:
            return torch.randperm(self.length, generator=numbers)
        return balanced(torch.tensor(self.balance), self.length, numbers)


def balanced(labels: Tensor, count: int, numbers: torch.Generator) -> Tensor:
    """Items in random order, as many of each class: items of rare classes come often, those of others now and then.

    Args:
        labels: int64 [N], the classes of the items.
        count: of the items that are wanted. Where classes cannot share it evenly, some have one more.

    Returns:
        Positions, int64 [count]; items of a class differ in how often they come by one at most.
    """
    classes = labels.unique()
    classes = classes[torch.randperm(len(classes), generator=numbers)]
    chosen = []
    for n, label in enumerate(classes):
        share = (count + len(classes) - 1 - n) // len(classes)
        items = (labels == label).nonzero()[:, 0]
        rounds = -(-share // len(items))
        orders = [items[torch.randperm(len(items), generator=numbers)] for _ in range(rounds)]
        chosen.append(torch.cat([items[:0], *orders])[:share])
    found = torch.cat(chosen)
    return found[torch.randperm(len(found), generator=numbers)]


class MicroBatchSampler:
    """The micro-batches of some steps, as torch's DataLoader asks for them."""

    def __init__(self, batching: Batching, steps: range) -> None:
        self.batching, self.steps = batching, steps

    def __len__(self) -> int:
        return len(self.steps) * self.batching.accumulate

    def __iter__(self) -> Iterator[list[Reading]]:
        return self.batching.micro_batches(self.steps.start, self.steps.stop)


# ---- what workers do


class SamplesByPosition(Dataset[tuple[Any, Tensor]]):
    """Readings -> samples and their columns; an item that cannot be read is replaced by another."""

    def __init__(self, source: Source, transform: Transform, extra: Extra = no_extra) -> None:
        self.source, self.transform, self.extra = source, transform, extra

    def __getitems__(self, readings: list[Reading]) -> list[tuple[Any, Tensor]]:
        with undisturbed():  # once for all of them: to keep the states takes longer than to seed
            return [sample for reading in readings for sample in self.samples(*reading)]

    def samples(self, wanted: int, seeds: Seeds) -> list[tuple[Any, Tensor]]:
        samples, label, position = self.seen(wanted, seeds.own)
        each = [seeds._replace(own=seed_of(seeds.own, n)) if n else seeds for n in range(len(samples))]
        columns = [torch.tensor([label, wanted, position, *self.extra(own)]) for own in each]
        return list(zip(samples, columns, strict=True))

    def seen(self, wanted: int, seed: int) -> tuple[list[Any], int, int]:
        """Samples of the item at a position or of another in its place, the label, and the position that was read."""
        position, others = wanted, random.Random(seed)
        reason = ""
        for _ in range(TRIES):
            try:
                item, label = self.source.read(position, seed)
                seed_all(seed)
                return samples_of(self.transform(item)), label, position  # it may be the transform that decodes
            except Exception as error:  # decoders of damaged files raise whatever comes up; CheckedBatches names it
                reason = first_line(error)
                position = others.randrange(len(self.source))
        bad = f"{TRIES} {self.source.noun} one after the other cannot be read"
        raise ValueError(f"{bad}, {self.source.name_of(wanted)} among them; the last one: {reason}")


class SamplesOfStream(IterableDataset[tuple[Any, Tensor]]):
    """The samples of a stream and their columns, in its order. For positions they have their numbers in a worker.

    A worker does not know whose turn it is: what the samples of a step share elsewhere, here those of a worker's
    micro-batch share.
    """

    def __init__(self, source: Source, transform: Transform, batching: Batching, extra: Extra = no_extra) -> None:
        self.source, self.transform, self.batching, self.extra = source, transform, batching, extra
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        worker = get_worker_info()
        here = (self.batching.seed, self.epoch, self.batching.rank, worker.id if worker else 0)
        for n, (image, label) in enumerate(self.source):
            batch = seed_of(*here, n // self.batching.micro, self.batching.micro)
            seeds = Seeds(seed_of(*here, n), batch, batch)
            with seeded(seeds.own):
                yield self.transform(image), torch.tensor([label, n, n, *self.extra(seeds)])


class Companions(NamedTuple):
    """What goes with the samples of a batch."""

    columns: Tensor  # int64 [b, 3 + extra]
    prepared: Any = None  # from the columns, where the batch was read; stays on the host

    def to(self, device: torch.device, non_blocking: bool = False) -> Companions:
        """The columns on a device."""
        return self._replace(columns=self.columns.to(device, non_blocking=non_blocking))


class Collate:
    """Samples and their columns -> a batch and what goes with it.

    Args:
        prepare: made of the columns, in the worker that reads the batch.
    """

    def __init__(self, prepare: Callable[[Tensor], Any] | None) -> None:
        self.prepare = prepare

    def __call__(self, samples: list[tuple[Any, Tensor]]) -> tuple[Tensor, Companions]:
        if len({image.dtype for image, _ in samples}) > 1:  # files of 8 bits beside others
            samples = [(image.float(), columns) for image, columns in samples]
        images, columns = default_collate(samples)  # in a worker it writes into memory that the processes share
        return images.contiguous(), Companions(columns, self.prepare(columns) if self.prepare else None)


# ---- batches


class CheckedBatches:
    """Batches as they come, before they go to the device: counts items that had to be replaced, looks at labels.

    Raises:
        ValueError: while iterating: more items than ``max_bad`` allows cannot be read, a label is no class, or a
            process that reads was killed.
    """

    def __init__(
        self, loader: Any, source: Source, max_bad: float, classes: int | None = None, listed: Path | None = None
    ) -> None:
        self.loader, self.source, self.max_bad, self.classes = loader, source, max_bad, classes
        self.listed = listed
        self.bad: set[int] = set()

    def __iter__(self) -> Iterator[tuple[Tensor, Companions]]:
        for images, companions in self.loader:
            columns = companions.columns
            for position in columns[columns[:, WANTED] != columns[:, READ], WANTED].tolist():
                self.note(position)
            if self.classes is not None:
                self.check_labels(columns[:, LABEL], self.classes)
            yield images, companions

    @staticmethod
    def check_labels(labels: Tensor, classes: int) -> None:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"an image has label {low if low < 0 else high}, but there are {counted(classes, 'classes')}"
            )

    def note(self, position: int) -> None:
        """An item that cannot be read; it is named once, and counts once."""
        if position in self.bad:
            return
        self.bad.add(position)
        which = f"{printable(self.source.name_of(position))}{self.reason(position)}"
        if self.listed:
            with suppress(OSError):  # a full disk ends the run where it writes a snapshot
                self.listed.parent.mkdir(parents=True, exist_ok=True)
                with self.listed.open("a", encoding="utf-8") as file:
                    file.write(f"{printable(which)}\n")
        if len(self.bad) > bad_allowed(self.max_bad, len(self.source)):
            raise ValueError(
                f"{len(self.bad)} of {counted(len(self.source), self.source.noun)} cannot be read, "
                f"which is more than --max-bad {self.max_bad:g}; the last one: {which}"
            )
        if len(self.bad) <= NAMED:
            print(f"cannot be read, replaced by another: {which}", file=sys.stderr)
        if len(self.bad) == NAMED:
            print("more that cannot be read are counted, not named; `stats` names all", file=sys.stderr)

    def reason(self, position: int) -> str:
        """Why; found out here once more, for only numbers come from the workers."""
        try:
            self.source.read(position)
        except Exception as error:  # decoders of damaged files raise whatever comes up
            return f" ({first_line(error)})"
        return ""


def bad_allowed(max_bad: float, total: int) -> float:
    """How many of so many items may be unreadable.

    Args:
        max_bad: so many; below 1 a share of them, and any share allows for one.
    """
    return max(1.0, max_bad * total) if 0 < max_bad < 1 else max_bad


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


@dataclass(frozen=True)
class Loading:
    """How batches are read, and what is done to them.

    Args:
        mean: of the channels, which is subtracted; likewise std, by which is divided.
        input_size: of the model: (channels, height, width) or (channels, frames, height, width).
        device: that the batches go to.
        workers: processes that read; 0: this one does.
        max_bad: items that may be unreadable, see :func:`bad_allowed`.
        extra: numbers that go with each sample, drawn in the worker.
        prepare: what is to be made of the columns of a batch, in the worker.
        erase: probability of random erasing.
        classes: labels must be below; None: they are not looked at.
        unreadable: file that lists items that cannot be read, with the reason; None: no file does.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, ...]
    device: torch.device
    workers: int = 0
    max_bad: float = 0.01
    extra: Extra = no_extra
    prepare: Callable[[Tensor], Any] | None = None
    erase: float = 0.0
    classes: int | None = None
    unreadable: Path | None = None

    def loader_options(self) -> dict[str, Any]:
        """Of torch's DataLoader."""
        return {
            "num_workers": self.workers,
            "collate_fn": Collate(self.prepare),
            "pin_memory": self.device.type == "cuda",
            "worker_init_fn": start_worker,
            "generator": torch.Generator(),  # or making a loader would move the random numbers of the model
        }


def batches(
    source: Source, transform: Transform, batching: Batching, steps: range, **loading: Any
) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """The batches of this process on the device, normalised, one batch ahead.

    Args:
        transform: gives tensors [C, H, W] or [C, T, H, W] from 0 to 255, uint8 or float32 (``random_part``, or
            ``make_transform`` with ``use_prefetcher=True``).
        batching: cuts batches.
        steps: of the optimiser; each has ``batching.accumulate`` batches.
        **loading: the fields of :class:`Loading`.

    Returns:
        Triples: float32 images [b, C, H, W] or clips [b, C, T, H, W]; int64 columns [b, 3 + extra]; what ``prepare``
        made of the columns, on the host, or None.

    Raises:
        ValueError: while iterating, see :class:`CheckedBatches`; or many items one after the other cannot be read.
    """
    how = Loading(**loading)
    loader = _stream_loader if source.streamed else _position_loader
    read = loader(source, transform, batching, steps, how)
    checked = CheckedBatches(read, source, how.max_bad, how.classes, how.unreadable)
    # timm's loader takes images alone: to it the frames of a clip are channels, so it erases one place in all of them
    channels, *frames, _, _ = how.input_size
    deep = math.prod(frames)
    flat: Any = ((images.flatten(1, -3), companions) for images, companions in checked)
    means, stds = (tuple(value for value in values for _ in range(deep)) for values in (how.mean, how.std))
    normalised = PrefetchLoader(flat, means, stds, channels * deep, how.device, re_prob=how.erase, re_mode="pixel")
    return ((images.unflatten(1, (channels, *frames)), *companions) for images, companions in normalised)


def _position_loader(source: Source, transform: Transform, batching: Batching, steps: range, how: Loading) -> Any:
    samples = SamplesByPosition(source, transform, how.extra)
    return readings(DataLoader(samples, batch_sampler=MicroBatchSampler(batching, steps), **how.loader_options()))


def _stream_loader(
    source: Source, transform: Transform, batching: Batching, steps: range, how: Loading
) -> Iterator[tuple[Tensor, Companions]]:
    """Whole epochs of a stream, each as long as the batching says; what is before the steps is skipped."""
    samples, options = SamplesOfStream(source, transform, batching, how.extra), how.loader_options()
    step = steps.start
    while step < steps.stop:
        epoch, skipped = divmod(step, batching.per_pass)
        wanted = min(batching.per_pass - skipped, steps.stop - step)
        samples.epoch = epoch
        source.begin_epoch(epoch, how.workers)
        loader: Any = DataLoader(samples, batching.micro, drop_last=True, **options)
        once_more = (batch for _ in count() for batch in readings(loader))
        yield from islice(once_more, skipped * batching.accumulate, (skipped + wanted) * batching.accumulate)
        step += wanted
