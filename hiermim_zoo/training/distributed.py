"""The processes of a run (torchrun starts them) and the device each computes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from textwrap import shorten
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..data.seeds import random_states, set_random_states
from ..text import counted
from .graphs import how
from .watch import PATIENCE, Watch, patience

# One may finish hours before another; torchrun and the watch, not a timeout, end those that wait in vain.
TIMEOUT = timedelta(days=7)
MEETING = timedelta(minutes=10)  # from the first to the last that starts
_MEETINGS = count()  # the same in all processes
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


@contextmanager
def processes(device: str | None = None, spread: bool = False, again: str = "start it again") -> Iterator[World]:
    """Inside, this process works together with the others of the run, if torchrun started several.

    When one of them fails, dies or falls silent, the others end too, each with one line. Outside, nothing has happened:
    see :func:`restored`.

    Args:
        device: see :func:`start`.
        spread: the weights of a model are to be spread over the processes.
        again: what the user is to do when the run has failed.

    Raises:
        ValueError: the device cannot be used; there is but one process to spread weights over; another process failed.
    """
    check_spread(spread)
    with restored():
        world, watch = start(device, again)
        try:
            yield world
        except BaseException as error:
            lost = isinstance(error, RuntimeError) and _is_connection(error)
            with noted_signals():  # torchrun may end this process, too: not before it says why
                if watch and isinstance(error, SystemExit):
                    watch.leave(PATIENCE)
                elif watch:
                    watch.fail("another process" if lost else "")
                # NCCL would wait for processes that may be waiting for this one, unless all of them were told to stop.
                if world.device.type != "cuda" or isinstance(error, SystemExit):
                    stop()
            if lost:
                raise ValueError(f"another process of this run failed; {again}") from error
            raise
        with noted_signals():  # the run is complete, and the others count on this process
            if watch:
                watch.leave()
            stop()


def check_spread(spread: bool) -> None:
    """Refuse to spread weights over one process.

    Raises:
        ValueError: there is but one.
    """
    if spread and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise ValueError("--fsdp spreads a model over processes: start them with torchrun")


def _is_connection(error: RuntimeError) -> bool:
    """Whether an error says that another process cannot be reached; gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "by peer"))


@contextmanager
def restored() -> Iterator[None]:
    """Random numbers, number of threads, precision of products and current GPU are afterwards what they were before.

    So a notebook may run several commands, one after the other.
    """
    numbers, threads = random_states(), torch.get_num_threads()
    products = torch.get_float32_matmul_precision()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    gpu_numbers = [] if gpu is None else torch.cuda.get_rng_state_all()
    try:
        yield
    finally:
        set_random_states(numbers)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_float32_matmul_precision() != products:
            torch.set_float32_matmul_precision(products)
        if gpu is not None:
            torch.cuda.set_device(gpu)
            torch.cuda.set_rng_state_all(gpu_numbers)


def start(device: str | None = None, again: str = "start it again") -> tuple[World, Watch | None]:
    """Join the other processes, if torchrun started several.

    Args:
        device: name of a device; default: CUDA where there is one, one GPU each.
        again: see :func:`processes`.

    Returns:
        This process among them, and what watches over them.

    Raises:
        ValueError: the device cannot be used.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        _warn_of_srun()
        return World(rank, size, pick_device(device)), None
    seconds, meeting = patience(), f"hiermim_zoo/{next(_MEETINGS)}"
    store = _meet(os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), rank, size)
    watch = Watch(_own_line(f"{meeting}/watch"), rank, size, again, seconds) if seconds else None
    try:
        chosen = pick_device(device)
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        # They may have met before: what they left for each other then must not be found again.
        own = dist.PrefixStore(meeting, store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=TIMEOUT)
    except BaseException:
        if watch:
            watch.fail()  # or the others would wait for this process
        raise
    return World(rank, size, chosen), watch


def _warn_of_srun() -> None:
    """srun starts tasks that do not know of each other; the first says so."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if (
        tasks.isdecimal()
        and int(tasks) > 1
        and "WORLD_SIZE" not in os.environ
        and os.environ.get("SLURM_PROCID") == "0"
    ):
        alone = f"warning: srun started {tasks} tasks without torchrun: each does all of the work alone"
        print(f"{alone}; examples/slurm.sh shows how they work together", file=sys.stderr)


@cache
def _meet(address: str | None, port: str | None, rank: int, size: int) -> dist.Store:
    """The store by which the processes of a run find each other; waits for all of them.

    It is kept: its server may be the first process, and another one may begin their next run before that one has left
    their last. One that ends with the first run would then have answered the other.

    Raises:
        ValueError: not all came.
    """
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", rank, size, timeout=MEETING)))
    except RuntimeError as error:
        minutes = MEETING.total_seconds() / 60
        raise ValueError(
            f"the {size} processes of this run did not meet within {counted(minutes, 'minutes')}"
        ) from error
    store.set_timeout(TIMEOUT)
    return store


def _own_line(name: str) -> dist.Store:
    """Another connection to the store where the processes have met: one that the main thread does not block."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    return dist.PrefixStore(f"{name}/{attempt}", dist.TCPStore(address, port, is_master=False, wait_for_workers=False))


def stop() -> None:
    """Part with them."""
    if dist.is_initialized():
        dist.destroy_process_group()


def pick_device(name: str | None) -> torch.device:
    """The device of that name, tried out.

    Raises:
        ValueError: it cannot be used.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.zeros(1, device=name).item()
        if name.startswith("cuda"):
            torch.cuda.set_device(name)  # or pinned memory would open a context on the first GPU
    except (RuntimeError, AssertionError, ImportError) as error:
        why = shorten(str(error).partition("\n")[0], 200)
        raise ValueError(f"device {name!r} cannot be used: {why}; --device cpu would work") from error
    return torch.device(name)


def gather_objects(value: Any) -> list[Any]:
    """What every process of the run has to say, by rank; waits for all of them."""
    values = [value]
    if dist.is_initialized():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, on the device of ``values``."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


# ---- models over processes


def parallelize(
    model: nn.Module, blocks: Iterable[nn.Module], world: World, fsdp: bool, compiled: str | None
) -> nn.Module:
    """The module to call: compiled and spread over the processes as asked for.

    Args:
        model: on the device, unless its weights are to be spread too.
        blocks: the parts whose weights are gathered and let go one after the other.
        fsdp: spread weights and optimiser, not only the batch; there are several processes.
        compiled: mode of ``--compile``; None: eager.
    """
    if fsdp:
        for block in blocks:
            if compiled:
                block.compile(**how(compiled))
            fully_shard(block)
        fully_shard(model)
        return model
    if compiled:
        model.compile(fullgraph=True, **how(compiled))
    if world.size == 1:
        return model
    return DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None)


def unsynchronised(model: nn.Module, more: bool) -> AbstractContextManager[None]:
    """Gradients are not exchanged while ``more`` of them are to be accumulated."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync() if more else nullcontext()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not more)
    return nullcontext()


# ---- what all processes do alike


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Inside, SIGTERM and Ctrl-C are noted in the list, to be heeded after the step; a second Ctrl-C is not.

    Only the main thread may handle signals: in another one the list stays empty.
    """
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number in caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: one that is not Python's


def agree_on_step(loss: Tensor, norm: Tensor, caught: Sequence[int], scaled: bool) -> Tensor:
    """What all processes must do alike, as sums over them; the host need not wait for it.

    Where gradients are ``scaled``, those that are too large are the scaler's business, and the loss alone counts.

    Returns:
        float32 [2 + signals]: losses; processes in which the step is not finite; those that caught each of SIGNALS.
    """
    bad = ~loss.isfinite() if scaled else ~(loss.isfinite() & norm.isfinite())
    signals = [loss.new_full((), float(number in caught)) for number in SIGNALS]  # filled on the device, not copied
    return summed(torch.stack([loss.float(), bad.float(), *(s.float() for s in signals)]))


def steps_behind(device: torch.device) -> int:
    """Steps that the host reads late: it prepares one while a GPU is still at the one before. A CPU is done at once."""
    return 0 if device.type == "cpu" else 1


class OnItsWay:
    """Numbers of a device that travel to the host while both go on with their work.

    Args:
        values: of one dimension.
    """

    def __init__(self, values: Tensor) -> None:
        self.host = values.detach().to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event(blocking=True) if values.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def read(self) -> list[float]:
        """The numbers; waits until they are there."""
        if self.arrived:
            self.arrived.synchronize()
        numbers: list[float] = self.host.tolist()
        return numbers
