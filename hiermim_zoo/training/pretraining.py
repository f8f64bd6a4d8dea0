"""Pre-training by masked autoencoding: the course of a run.

What is seen in a step, and what is hidden, follows from the seed and the step alone: a run that was interrupted and
resumed ends like one that was not.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..commands.options.pretrain import PretrainOptions
from ..data.batches import MOST_STEPS, WANTED, batches
from ..data.readers import ReaderKilled
from ..data.transforms import random_part
from ..mae import recipe_changes
from ..text import counted, printable
from ..version import __version__
from . import snapshots
from .autoencoder import blocks_of, build_autoencoder, freeze_unreached, undecayed
from .beginning import Beginning, begin
from .checks import check
from .distributed import (
    SIGNALS,
    OnItsWay,
    World,
    agree_on_step,
    gather_objects,
    noted_signals,
    parallelize,
    processes,
    steps_behind,
    unsynchronised,
)
from .endings import NO_RATE, about_training, warn
from .export import ENCODER, Course, export
from .graphs import begin_pass, hold_gradients
from .image_form import to_remember
from .lock import FolderLock
from .masks import is_shared, keep_of, planned_ahead, visible_units
from .optimizer import (
    decides_on_device,
    gradient_norm,
    make_optimizer,
    own_kernels,
    take_step,
)
from .precision import autocast, train_in
from .previews import look, probe
from .run_log import LOOKS, NONFINITE, Forecast, Meter, RunLog, peak_memory, read_log, unreadable_file
from .run_record import RunRecord
from .schedule import pretraining_schedule, set_lr
from .small import small_in_words

Describe = Callable[[PretrainOptions, Beginning, World], Mapping[str, Any]]
AGAIN = "go on with --resume auto"  # what the user is to do when a run has failed


class Stopped(SystemExit):
    """A signal (Ctrl-C, SIGTERM) ended a run after a step; what it learned is saved.

    Not caught (``except Exception`` does not) it ends the process, with the exit code that shells give to the signal.
    """

    def __init__(self, number: int, snapshot: Path | None) -> None:
        super().__init__(128 + number)
        self.snapshot = snapshot  # to resume from; None in all processes of the run but the first


def pretrain(options: PretrainOptions, describe: Describe | None = None) -> Path:
    """Pre-train an encoder, or go on with a run that was interrupted.

    Checks come first: nothing is written and no step taken before options, output folder, model, data and batch are
    found to be right, in this order.

    Args:
        describe: says what run.json has of the run, see ``commands/recording.py``; None: nothing but how it went.

    Returns:
        The folder of the encoder where the run is complete, else the snapshot from which it goes on.

    Raises:
        ValueError: naming the option, file or data that is wrong, or what went wrong in a step.
        Stopped: a signal ended it.
    """
    chosen = check(options)
    with ExitStack() as stack:
        world = stack.enter_context(processes(chosen.device, chosen.fsdp, AGAIN))
        caught = stack.enter_context(noted_signals())
        lock = stack.enter_context(FolderLock(chosen.output, world.first and not chosen.export_only))
        start = begin(options, chosen, world, lock)
        chosen, begun = start.options, start.begun
        command = options.having(stop_after=None).command("pretrain")
        run = Run(start, world, begun.state.get("command", command) if begun else command)
        about = describe(options, start, world) if describe and world.first else {}
        if begun:
            run.resume(begun)
            del begun, start  # which hold all weights
        if chosen.export_only:
            return run.export()
        lock.take()
        with run.noted(about, options.command("pretrain")):
            with run.recorded(about), run.rescued():
                run.take_steps(caught)
            if run.last < run.total:
                return gather_objects(run.writer.last)[0]
            return run.export()


# ---- the run


class Taken(NamedTuple):
    """A step that the device was told to take; what comes of it is on its way to the host."""

    step: int
    lr: float
    numbers: OnItsWay  # those of agree_on_step, and the norm of the gradient before it was clipped
    positions: tuple[Tensor, ...]  # of the images that this process saw, in the data


class StepOutcome(NamedTuple):
    """What came of a step."""

    loss: float  # the mean over all processes; not finite in some steps that were skipped
    skipped: bool
    norm: float  # of the gradient, before it was clipped


class Run:
    """A model, its optimiser, and where they stand.

    Args:
        command: the command line that began the run, for the card.
    """

    def __init__(self, start: Beginning, world: World, command: str = "") -> None:
        self.command = command
        options, rows, mae, batching = start.options, start.rows, start.mae, start.batching
        self.options, self.rows, self.world = options, rows, world
        self.mae, self.data, self.batching, self.teacher = mae, start.data, batching, start.teacher
        self.schedule = pretraining_schedule(options, rows.pretraining, batching)
        self.total = self.schedule.total  # steps of the whole run
        self.first = 0  # steps that are done already
        self.skipped = 0  # steps in a row
        self.updates = 0  # steps that changed the weights
        self.done = 0  # the last step that is complete
        folder = options.output / snapshots.FOLDER
        self.writer = snapshots.SnapshotWriter(folder, options.max_snapshots, world.first, options.fsdp)
        freeze_unreached(mae)
        if not options.fsdp:
            mae.to(world.device)
        if self.teacher:
            self.teacher.to(world.device)
        self.model = parallelize(mae, blocks_of(mae), world, options.fsdp, options.compile)
        no_decay = undecayed(mae, rows.pretraining)
        self.optimizer = make_optimizer(mae, options.opt, options.weight_decay, options.betas, no_decay=no_decay)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=options.amp == "fp16")
        self.taken: deque[Taken] = deque()  # steps of which the host knows nothing yet
        self.behind = steps_behind(world.device)

    def resume(self, begun: snapshots.Begun) -> None:
        """Put everything where it was after the step of a snapshot."""
        state = begun.state
        with own_kernels(self.optimizer):
            snapshots.restore(self.mae, self.optimizer, begun.snapshot, state)
        self.scaler.load_state_dict(state["scaler"])
        self.first, self.skipped, self.writer.last = state["step"], state["skipped"], begun.snapshot
        self.done, self.updates = self.first, state.get("updates", self.first)  # old snapshots do not say it
        if len(state["random"]) == self.world.size:  # else they start from the seed; batches and masks do not need them
            snapshots.set_random_state(state["random"][self.world.rank], self.world.device)

    @property
    def last(self) -> int:
        """The step after which this process leaves."""
        return min(self.total, self.first + (self.options.stop_after or self.total))

    def noted(self, about: Mapping[str, Any], command: str) -> AbstractContextManager[None]:
        """Inside, the run runs: run.json says so, and in the end how it ended.

        Args:
            about: the run.
            command: the command line of this part of it.
        """
        record = RunRecord(self.options.output, self.world.first)
        record.begin(about, {"command": command, "total": self.total}, self.first)
        return record.during(lambda: self.done, self.total)

    def take_steps(self, caught: list[int]) -> None:
        """All steps that are left, or those until a signal.

        Args:
            caught: signals that this process has caught.

        Raises:
            ValueError: something went wrong in a step.
            Stopped: there was a signal.
        """
        for step in range(self.first + 1, self.last + 1):
            self.step(step, caught)
            self.complete(step)
            number = self.read_on(step)
            if self.is_to_save(step) or number:
                self.save(step)
            if self.is_to_look(step):
                self.look(step)
            if number:
                self.writer.wait()
                raise self.stopped(step, number)
        self.writer.wait()

    @contextmanager
    def recorded(self, about: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Inside, steps can be taken; what they come to is written.

        Args:
            about: the run, for whom --log names.
        """
        options, source, output = self.options, self.data.source, self.options.output
        if self.world.first:
            output.mkdir(parents=True, exist_ok=True)
            snapshots.set_aside(output / snapshots.FOLDER, self.first)
        self.record = RunLog(output, self.first, self.total, self.world.first, options.log or (), about)
        self.record.say(
            f"{options.model}: {counted(len(source), source.noun)}, steps {self.first} to {self.last} of {self.total}, "
            f"{self.batching.per_epoch:g} an epoch; computed in {train_in(self.world.device, options.amp)}"
        )
        if source.repeat > 1:
            self.record.say(
                f"an epoch shows {counted(len(source), 'clips')}; each time a video is opened it gives "
                f"{source.repeat}, so {source.repeat} epochs open every video once"
            )
        if self.behind and not decides_on_device(self.optimizer):
            self.record.say(f"--opt {options.opt} has no fused form here: the host waits for the device at each step")
        if options.recipe == "small":
            data, device = (len(source), source.noun), self.world.device.type
            self.record.say(small_in_words(options, *data, device, self.schedule, self.batching.per_epoch))
        if self.teacher:
            self.record.say(f"{self.teacher.described()}; previews draw nothing, for no pixels are predicted")
        self.forecast = Forecast(self.first, self.last)
        self.stream = self.batches()
        self.meter = Meter(self.first, self.batching.batch)
        self.holds_gradients = hold_gradients(self.mae.parameters(), options.compile, options.accumulate)
        self.model.train()
        try:
            yield
        finally:
            del self.stream  # and with it the processes that read
            self.record.close()

    @contextmanager
    def rescued(self) -> Iterator[None]:
        """Inside, a process that reads may be killed: what the run has learned by then is saved.

        Its images are missed where a step asks for them, so no update of the weights is under way.

        Raises:
            ValueError: one was killed; says from where the run goes on.
        """
        try:
            yield
        except ReaderKilled as error:
            if self.world.size > 1:  # the others are on their way into the step, and cannot save
                raise ValueError(f"{error}; {AGAIN}, from the last snapshot") from error
            self.read_until(self.done)
            if self.done > self.first and not self.is_to_save(self.done):
                self.save(self.done, self.random)
            saved = f"saved after step {self.done}" if self.done else "before the first step was done"
            raise ValueError(f"{error}; {saved}: {AGAIN}") from error

    def complete(self, step: int) -> None:
        """Note that a step is done, and where the random numbers stand."""
        self.done, self.random = step, snapshots.random_state(self.world.device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """Images, what goes with each of them, and plans; as many batches as the steps to be taken have passes."""
        options, mae, config = self.options, self.mae, self.data.config
        # A random part of the image, mirrored or not, and nothing else (arXiv 2111.06377, section 4).
        transform = random_part(config["input_size"], options.crop_scale, config["interpolation"])
        return batches(
            self.data.source,
            transform,
            self.batching,
            range(self.first, self.last),
            mean=config["mean"],
            std=config["std"],
            input_size=config["input_size"],
            device=self.world.device,
            workers=options.workers,
            max_bad=options.max_bad,
            extra=partial(visible_units, mae.units, mae.kept, mae.recipe.masks),
            prepare=planned_ahead(mae, self.world.device, options.compile),
            unreadable=unreadable_file(options.output, self.world.rank),
        )

    def step(self, step: int, caught: list[int]) -> None:
        """One step of the optimiser, left out where the loss or a gradient is not finite.

        Nothing here waits for the device: :meth:`read_on` tells what came of it.

        Args:
            step: counted from 1.
            caught: signals that this process has caught.
        """
        options = self.options
        set_lr(self.optimizer, self.schedule, step - 1)
        passes = [self.backward(more=n < options.accumulate) for n in range(1, options.accumulate + 1)]
        losses, positions = zip(*passes, strict=True)
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.mae.parameters(), options.clip)
        agreed = agree_on_step(torch.stack(losses).sum(), norm, caught, self.scaler.is_enabled())
        take_step(self.optimizer, self.scaler, agreed[1] > 0)
        self.optimizer.zero_grad(set_to_none=not self.holds_gradients)
        self.taken.append(
            Taken(step, self.schedule.at(step - 1), OnItsWay(torch.cat([agreed, norm.float()[None]])), positions)
        )

    def backward(self, more: bool) -> tuple[Tensor, Tensor]:
        """The gradients of one batch are added to those that are there.

        Args:
            more: another batch of the step follows.

        Returns:
            Its share of the step's loss, and the positions of its images in the data.
        """
        images, columns, plans = self.meter.next_of(self.stream)
        begin_pass(self.options.compile)
        with unsynchronised(self.model, more), autocast(self.world.device, self.options.amp):
            keep = keep_of(columns, is_shared(self.mae))
            features = self.teacher(images) if self.teacher else None
            loss = self.model(images, keep, plans, features).loss / self.options.accumulate
            self.scaler.scale(loss).backward()
        return loss.detach(), columns[:, WANTED]

    def read_on(self, step: int) -> int:
        """Learn what came of the steps so far: of ``step`` too where the run stands still after it, or on a CPU.

        Returns:
            The signal because of which the run is to end after this step; 0: none. Then all steps have been read.

        Raises:
            ValueError: too many steps in a row were left out.
        """
        stands = self.is_to_save(step) or self.is_to_look(step)
        number = self.read_until(step if stands else step - self.behind)
        if number:
            self.read_until(step)
        return number

    def read_until(self, step: int) -> int:
        """Log what came of the steps up to this one; the last signal that some process caught, or 0."""
        number = 0
        while self.taken and self.taken[0].step <= step:
            taken = self.taken.popleft()
            total, bad, *signals, norm = taken.numbers.read()
            number = next((n for n, processes in zip(SIGNALS, signals, strict=True) if processes), number)
            self.note(taken, StepOutcome(total / self.world.size, bad > 0, norm))
        return number

    def complain(self, step: int, positions: Tensor) -> None:
        """List the images of a step that was not finite.

        Args:
            positions: in the data, of the images that this process saw.
        """
        source = self.data.source
        file = self.options.output / NONFINITE / f"step-{step:08d}-rank-{self.world.rank}.txt"
        file.parent.mkdir(exist_ok=True)
        names = (printable(source.name_of(i)) for i in positions.tolist())
        file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        self.record.say(f"step {step}: loss or gradients are not finite, step skipped; its images are listed in {file}")

    def note(self, taken: Taken, outcome: StepOutcome) -> None:
        """Show that a step is done; now and then write a line.

        Raises:
            ValueError: it was left out, and is one such step too many.
        """
        step, memory = taken.step, peak_memory(self.world.device)
        self.skipped = self.skipped + 1 if outcome.skipped else 0
        self.updates += not outcome.skipped and isfinite(outcome.norm)  # where it is not, the scaler of fp16 skips
        if outcome.skipped:
            self.complain(step, torch.cat(taken.positions))
        else:
            self.meter.losses.append(outcome.loss)
        if step % self.options.log_steps == 0 or step == self.last:
            reading = self.meter.read(step)
            self.record.note(
                step,
                epoch=step / self.batching.per_epoch,
                samples=step * self.batching.batch,
                loss=reading.loss,
                lr=taken.lr,
                norm=outcome.norm,
                images_s=reading.images_s,
                waiting=reading.waiting,
                gib=memory,
            )
        speed = self.meter.lap()
        self.record.say(self.forecast.after(step))
        self.record.progress(loss=f"{outcome.loss:.4f}", images_s=f"{speed:.0f}", gib=f"{memory:.1f}")
        if self.skipped > (most := self.options.max_nonfinite):
            raise ValueError(
                f"step {step}: {counted(self.skipped, 'steps')} in a row {'was' if self.skipped == 1 else 'were'} "
                f"not finite (--max-nonfinite {most})"
            )

    def is_to_save(self, step: int) -> bool:
        return step % self.options.save_steps == 0 or step == self.last

    def save(self, step: int, random: Any = None) -> None:
        """Write a snapshot of the run after a step; of a model that is spread while the run goes on.

        Args:
            random: where the random numbers stood then; default: as they stand now.
        """
        rest = {
            "scaler": self.scaler.state_dict(),
            "step": step,
            "skipped": self.skipped,
            "updates": self.updates,
            "epoch": list(divmod(step, self.batching.per_pass)),
            "micro_batches": self.world.size * self.options.accumulate,
            "options": self.options.binding() | {"pictures": len(self.data.source), "decoder": self.options.decoder},
            "command": self.command,
            "images": self.data.described(),
            "recipe": recipe_changes(self.options.model, self.mae.recipe),  # also what a checkpoint said of it
            "rows": self.rows.described(self.mae.recipe),
            "teacher": self.teacher.digest if self.teacher else "",
            "versions": {"hiermim_zoo": __version__, "torch": str(torch.__version__)},
            "random": gather_objects(random or snapshots.random_state(self.world.device)),
        }
        self.writer.save(step, self.mae, self.optimizer, rest)

    def is_to_look(self, step: int) -> bool:
        between = self.options.look_every * self.batching.per_epoch
        return between > 0 and (step % max(1, round(min(between, MOST_STEPS))) == 0 or step == self.last)

    def look(self, step: int) -> None:
        """Draw what the autoencoder makes of some images; note how well its features tell classes apart."""
        mae, data, device = self.mae, self.data, self.world.device
        with self.meter.stopped():
            title = f"{self.options.model}, step {step} of {self.total}"
            file = self.options.output / LOOKS / f"step-{step:08d}.png" if self.world.first else None
            look(mae, data.source, data.config, data.shown, title, device, file)
            accuracy = probe(mae, data.source, data.config, device, self.options.workers)
            if accuracy is not None:
                shown = step * self.batching.batch
                self.record.note(step, epoch=step / self.batching.per_epoch, samples=shown, knn=accuracy)

    def stopped(self, step: int, number: int) -> Stopped:
        """What is raised because of a signal, once the step is saved."""
        self.record.say(f"stopped by {signal.Signals(number).name} after step {step}, saved: go on with --resume auto")
        return Stopped(number, self.writer.last)

    def endings(self, step: int) -> list[str]:
        """What the encoder after a step should not keep to itself."""
        notes = read_log(self.options.output)
        losses = [note["loss"] for note in notes if note["step"] <= step and note.get("loss") is not None]
        longer = "more --steps" if self.options.steps == self.total else "more --epochs"
        if not self.schedule.peak:
            return [NO_RATE]
        return about_training(step, self.updates, self.schedule.warmup, step <= self.schedule.warmup, losses, longer)

    def export(self) -> Path:
        """Write the encoder as it is now.

        Raises:
            ValueError: it has learned nothing, or its weights are not finite.
        """
        if not self.updates:
            raise ValueError(
                "no step changed the weights, because no loss or gradient was finite, so no encoder is written; "
                "a lower --lr, --clip 1 or --amp none may help"
            )
        last = self.writer.last if self.options.fsdp else None  # of a model that is spread nobody holds all weights
        weights = {} if last else snapshots.learned(self.mae, self.optimizer)["model"]
        if self.world.first:
            weights = snapshots.weights_of(last) if last else weights
            step = self.first if self.options.export_only else self.last
            images = to_remember(self.data.form)
            warn(lines := self.endings(step))
            course = Course(step, self.total)
            blank = build_autoencoder(self.options, self.mae.recipe.values(), self.rows.start)
            export(weights, self.options, blank, self.data.config, images, course, self.command, lines)
        return self.options.output / ENCODER
