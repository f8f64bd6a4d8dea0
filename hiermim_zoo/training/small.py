"""The small recipe: batch, length and rate for few images, or for a CPU, where those of the papers would teach nothing.

A rule of few numbers, which were measured on parts of CIFAR-10 (docs/small.md). All else is the family's recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from ..commands.options.pretrain import PretrainOptions
from ..commands.options.problems import rate_of
from ..mae import MaskedAutoencoder
from ..models.recipes import FineTuning
from ..text import counted
from .schedule import Schedule

FEW = 100_000  # images, below which ``auto`` is small
REFERENCE = 256  # samples of a batch whose rate is ``Rule.rate``
PAPERS_LOOKS = 20.0  # epochs from one preview to the next
LOOKS, SNAPSHOTS = 10, 20  # of a run with few images, at most
STEPS_OF_LOOK = 50  # from one preview to the next, at least


@dataclass(frozen=True)
class Rule:
    """How batch, length and rate follow from the number of images: the first two go with its root."""

    pace: float  # steps for the root of the number of images
    rate: float  # peak for a batch of 256; that of others goes with the root of the batch
    steps: int  # at least
    batches: tuple[int, int] = (64, 256)  # the smallest, where the data have as many, and the largest
    warmup: float = 0.1  # share of the steps

    def batch_for(self, count: int, parts: int = 1) -> int:
        """Samples of a step: the power of two next to the root of the number of images.

        Args:
            count: samples of a pass through the data.
            parts: that a batch is divided into.
        """
        least, most = self.batches
        power = 2 ** round(math.log2(max(1, count)) / 2)
        wanted = min(max(least, power), most, count)
        return max(1, wanted // parts) * parts

    def check_parts(self, accumulate: int, repeat: int, size: Size | None = None) -> None:
        """Refuse parts of a step that make its batch larger than the largest, or than the data.

        A batch counts samples. Each process computes at least one video, with all of its clips, in each pass; so the
        batch is a multiple of them. More than one video for each process is what alone may exceed the largest batch.

        Args:
            accumulate: passes of a step.
            repeat: clips of a video each time it is opened.
            size: None: not known yet.

        Raises:
            ValueError: naming the option that makes it so.
        """
        most = self.batches[1]
        if repeat > most:
            raise ValueError(
                f"--repeat {repeat}: recipe small has {most} clips in a batch at most, and all clips of a video are in "
                f"one batch; --repeat {most} would work, or say --batch-size"
            )
        if accumulate * repeat > most:
            clips = f", with {repeat} clips of a video in each," if repeat > 1 else ""
            raise ValueError(
                f"--accumulate {accumulate}: recipe small has {most} samples in a batch at most, which so many "
                f"passes{clips} cannot share; --accumulate {most // repeat} would work, or say --batch-size"
            )
        if size and size.world * accumulate > size.images:
            data = f"the {counted(size.images, 'videos' if repeat > 1 else 'images')} of the data"
            if size.world > size.images:
                raise ValueError(f"{size.world} processes are more than {data}: start {size.images} of them or fewer")
            processes = f" in each of {size.world} processes" if size.world > 1 else ""
            raise ValueError(
                f"--accumulate {accumulate}: {counted(accumulate, 'passes')}{processes} are more than {data}; "
                f"--accumulate {size.images // size.world} would work"
            )

    def steps_for(self, count: int) -> int:
        """Steps of a run.

        Args:
            count: images or videos.
        """
        return max(self.steps, round(self.pace * math.sqrt(count)))

    def rate_for(self, batch: int) -> float:
        """The peak learning rate of a batch."""
        return self.rate * math.sqrt(batch / REFERENCE)


PRETRAINING = Rule(pace=40, rate=2e-3, steps=2000)
TUNING = Rule(pace=30, rate=2e-3, steps=500)
# Strong augmentation and dropped layers ask for more steps than a small run has.
LIGHT: Mapping[str, Any] = {"auto_augment": "", "erase": 0.0, "mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0}
LIGHT_CROP = (0.35, 1.0)  # share of an image's area in fine-tuning
DECODER_DEPTH, HEAD = 2, 32  # blocks of the decoder at most; channels of a head


def recipe_of_size(said: str, count: int | None, device: str) -> str:
    """Which recipe a run follows: "paper" or "small".

    Args:
        said: what its options say, which may be "auto".
        count: of the images or videos to train on; None: nobody knows yet, and the answer may be "auto".
        device: its type.
    """
    if said != "auto":
        return said
    if count is None and device != "cpu":
        return "auto"
    return "small" if device == "cpu" or (count or 0) < FEW else "paper"


class Size(NamedTuple):
    """What the rule needs to know of data and processes."""

    images: int  # or videos
    repeat: int  # samples of each reading
    world: int  # processes

    def per_epoch(self, batch: int) -> float:
        """Steps of an epoch, as in :class:`hiermim_zoo.data.batches.Batching`; at least one in a pass."""
        return max(1, self.images * self.repeat // batch) / self.repeat


def small_pretraining(options: PretrainOptions, size: Size) -> PretrainOptions:
    """The options of pre-training, with the rule's values where they say nothing.

    Args:
        options: with the family's values, but for those that the rule gives.
    """
    rule, accumulate = PRETRAINING, options.accumulate or 1
    if not options.batch_size:
        rule.check_parts(accumulate, size.repeat, size)
    parts = size.world * accumulate * size.repeat
    batch = options.batch_size or rule.batch_for(size.images * size.repeat, parts)
    per_epoch = size.per_epoch(batch)
    epochs = options.epochs
    if epochs is None:
        epochs = (options.steps or rule.steps_for(size.images)) / per_epoch
        check_warmup_of_rule(options.warmup, options.steps, round(epochs * per_epoch), epochs)
    length = min(epochs, (options.steps or math.inf) / per_epoch)
    lr = rule.rate_for(batch) if options.blr is None else rate_of(options.blr, batch)
    values = {"batch_size": batch, "epochs": epochs, "lr": lr, "warmup": rule.warmup * length}
    return options.filled(values)


def check_warmup_of_rule(warmup: float | None, said_steps: int | None, steps: int, epochs: float) -> None:
    """Refuse a warm-up that is all of a run whose length no option says in epochs.

    Args:
        warmup: that an option says, epochs.
        said_steps: that an option says.
        steps: of the run.
        epochs: that these are.

    Raises:
        ValueError: naming the option, and one that works.
    """
    if warmup is None or warmup < epochs:
        return
    run = f"--steps {said_steps} are" if said_steps else f"the {counted(steps, 'steps')} that recipe small chose are"
    longer = "more --steps" if said_steps else f"--steps {math.ceil(10 * warmup * steps / epochs)} for a longer run"
    length = counted(float(f"{epochs:.4g}"), "epochs")
    raise ValueError(
        f"--warmup {warmup:g} epochs: {run} {length}, and the warm-up must be shorter; "
        f"--warmup {epochs / 10:.3g} would work, or {longer}"
    )


def small_decoder(options: PretrainOptions, sketch: MaskedAutoencoder) -> PretrainOptions:
    """A decoder that is no wider than the encoder, where options say nothing of it.

    Args:
        sketch: the autoencoder with its family's decoder, or that of its folder.
    """
    recipe, encoder = sketch.recipe, cast(Any, sketch.encoder)
    loaded = options.checkpoint and options.decoder != "fresh" and not options.fresh_decoder
    narrow = -(-encoder.num_features // HEAD) * HEAD
    if loaded or narrow >= recipe.dim:
        return options
    unit = 4 * (options.decoder_heads or 1)  # that a width must be a multiple of
    dim = options.decoder_dim or -(-narrow // unit) * unit
    heads = next(heads for heads in range(max(1, dim // HEAD), 0, -1) if dim % heads == 0)
    depth = min(recipe.depth, DECODER_DEPTH)
    values = {"decoder_depth": depth, "decoder_dim": dim, "decoder_heads": heads}
    sizes: PretrainOptions = options.having(**{name: getattr(options, name) or value for name, value in values.items()})
    return sizes


def small_in_words(
    options: PretrainOptions, count: int, noun: str, device: str, schedule: Schedule, per_epoch: float
) -> str:
    """What was chosen for a run of pre-training, in a line.

    Args:
        options: with all values.
        count: images or videos.
        noun: of them.
        device: its type.
        per_epoch: steps of an epoch.
    """
    depth, dim = options.decoder_depth, options.decoder_dim
    made = f", decoder of {counted(depth, 'blocks')} and {counted(dim, 'channels')}" if depth and dim else ""
    parts = options.batch_size, options.accumulate, schedule, schedule.total / per_epoch
    return chosen_in_words(counted(count, noun), device, *parts, made)


def with_intervals(options: PretrainOptions, total: int, per_epoch: float) -> PretrainOptions:
    """The options, with how often a snapshot is written and a preview is drawn.

    Args:
        total: steps of the run.
        per_epoch: steps of an epoch, of which few images make few.
    """
    epoch = max(1, round(per_epoch))
    if options.recipe == "paper":
        return options.filled({"save_steps": epoch, "look_every": PAPERS_LOOKS})
    looks = max(STEPS_OF_LOOK, total / LOOKS) / per_epoch
    return options.filled({"save_steps": max(epoch, -(-total // SNAPSHOTS)), "look_every": looks})


def small_tuning(
    row: FineTuning, size: Size, batch: int | None, epochs: float | None, accumulate: int = 1
) -> FineTuning:
    """A recipe of fine-tuning, with the rule's batch, length and rate, and with light augmentation.

    Args:
        row: of the family.
        batch: that an option says.
        epochs: that an option says.
        accumulate: passes of a step.

    Raises:
        ValueError: the batch would be too large, see :meth:`Rule.check_parts`.
    """
    rule = TUNING
    if not batch:
        rule.check_parts(accumulate, size.repeat, size)
        batch = rule.batch_for(size.images * size.repeat, accumulate * size.world * size.repeat)
    per_epoch = size.per_epoch(batch)
    length = int(epochs or max(1, round(rule.steps_for(size.images) / per_epoch)))
    blr = rule.rate_for(batch) * REFERENCE / batch
    return replace(row, batch=batch, epochs=length, warmup=rule.warmup * length, blr=blr, ahead=0.0, **LIGHT)


def chosen_in_words(
    images: str, device: str, batch: int, passes: int, schedule: Schedule, epochs: float, more: str = ""
) -> str:
    """What was chosen, in a line.

    Args:
        images: how many there are, and of what.
        device: its type.
        passes: of a step.
        epochs: of the run.
        more: that was chosen.
    """
    parts = f" in {passes} passes" if passes > 1 else ""
    length = counted(schedule.total, "steps")
    warmup = counted(schedule.warmup, "steps")
    return (
        f"recipe small, for {images} on {device}: {length} ({counted(float(f'{epochs:.4g}'), 'epochs')}), batches of "
        f"{batch}{parts}, learning rate {schedule.peak:.3g} after {warmup} of warm-up{more}; "
        "--recipe paper is the published one"
    )
