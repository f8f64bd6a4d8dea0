"""How many samples fit into memory at once, by what autograd keeps of them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ..mae import MaskedAutoencoder
from .precision import autocast

SHARE = 1 / 2  # of the free memory that activations may take; gradients and copies take about as much
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def kept_bytes(mae: MaskedAutoencoder, amp: str) -> int:
    """Bytes that autograd keeps of the forward pass for each sample; draws no random numbers that anyone else draws.

    Args:
        amp: in which it is computed.
    """
    was_training = mae.training
    mae.eval()
    one, two = (_kept_of(mae, amp, samples) for samples in (1, 2))  # what both have are weights, cast or not
    mae.train(was_training)
    return two - one


def _kept_of(mae: MaskedAutoencoder, amp: str, samples: int) -> int:
    """Bytes that autograd keeps of a batch."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(mae.parameters()).device
    images = torch.zeros(samples, mae.in_chans, *mae.input_size, device=device)
    visible = torch.arange(mae.kept, device=device).expand(samples, -1)
    half = "none" if amp == "none" else "bf16"  # as many bytes as fp16, which CPUs cannot compute everything in
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(device, half):
        # The graph holds what was kept, so no address comes twice.
        loss = mae(images, visible, features=mae.blank_features(samples)).loss
    total = sum(kept.values())
    del loss
    return total


def free_bytes(device: torch.device) -> int:
    """Memory that this process can have; of a CPU an equal share of what its machine or container has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_available(), _left_in_container()]
    known = [number for number in found if number is not None]
    return min(known) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if known else 2**62


def _available() -> int | None:
    """Of the machine; None where it does not say."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        names = getattr(os, "sysconf_names", {})
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_container() -> int | None:
    """What a control group leaves; None where there is no limit."""
    try:
        limit, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return None
    return max(0, limit - used)


def passes_for(share: int, unit: int, each: int, free: int) -> int:
    """Passes of a step, as few as fit.

    Args:
        share: samples of a process in a step.
        unit: samples that a pass has at least, and a multiple of: clips of a video.
        each: bytes of a sample.
        free: bytes that there are.

    Returns:
        A divisor of ``share / unit``; where not even one unit fits, all of it.
    """
    units = max(1, share // unit)
    fitting = (n for n in range(1, units) if units % n == 0 and share / n * each <= SHARE * free)
    return next(fitting, units)
