"""What one step costs: time, and memory at its peak."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch


def seconds_of(step: Callable[[], object], device: str) -> float:
    """Duration of one step; on a GPU by its own events."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_of(step: Callable[[], object], device: str) -> float:
    """MiB that one step needs at its peak, above what is held before it (weights); 0 where that cannot be read.

    On a GPU what torch allocates; on Linux CPUs the peak of the resident memory, which the kernel lets a process reset.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not reset.exists():
        return 0.0

    def kib(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key + ":"))

    # other C libraries: what was freed before stays in the figure as if it were held
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset.write_text("5")
    before = kib("VmRSS")
    step()
    return (kib("VmHWM") - before) / 1024
