"""What one step costs: time, floating point operations, and memory at its peak."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

# Fused attention of CPUs, which torch's counter does not know.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def seconds_of(step: Callable[[], object], device: str, steps: int = 1) -> float:
    """Duration of one step, as the mean of several in a row; on a GPU by its own events."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / steps


def kernel_seconds_of(step: Callable[[], object], device: str) -> float:
    """How long a GPU computes in one step, by torch's profiler: far less than the step takes where kernels wait to be
    launched. 0 on CPUs, and where the profiler sees no GPU.
    """
    if not device.startswith("cuda"):
        return 0.0
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
    except RuntimeError:  # another profiler may be at work
        return 0.0
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def flop_of(step: Callable[[], object]) -> int:
    """Floating point operations of matrix products, convolutions and attention in one step, which must not be compiled.

    What runs is counted: kernels of attention that compute weights once more in their backward pass count these twice.
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops()


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
