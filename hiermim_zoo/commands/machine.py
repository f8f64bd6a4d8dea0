"""What figures were measured on: the machine, the versions, and the speed of a plain matrix product."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import timm
import torch

from ..training.precision import DTYPES, chosen_amp
from ..version import __version__
from .step_costs import seconds_of

SAMPLES = 10
LIBRARIES = ("huggingface_hub", "safetensors", "numpy", "pillow")


def machine(device: str) -> dict[str, Any]:
    """Card or processor, as far as they can be known."""
    found: dict[str, Any] = {"processor": _processor(), "cores": cores(), "card": None}
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        driver = re.search(r"\b(\d{3,}\.\d+[.\d]*)\b", _read("/proc/driver/nvidia/version"))
        found |= {"card": card.name, "card_gib": round(card.total_memory / 2**30, 1)}
        found |= {"capability": f"{card.major}.{card.minor}", "driver": driver[1] if driver else None}
    return found


def versions() -> dict[str, Any]:
    """Of what computes."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        "hiermim_zoo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "timm": timm.__version__,
    }


def libraries() -> dict[str, str | None]:
    """Of what reads and writes; None: not installed."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    names = re.findall(r"model name\s*:\s*(.*)", _read("/proc/cpuinfo"))
    return names[0] if names else platform.processor() or platform.machine()


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def matrix_product(side: int, device: str, amp: str) -> dict[str, Any]:
    """The peak that steps are measured against: the fastest of several products of two square matrices.

    Args:
        side: of the matrices.
        amp: of the steps; the matrices are of the type that it computes in.
    """
    dtype = DTYPES[chosen_amp(amp, torch.device(device))] or torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def step() -> None:
        torch.mm(a, b, out=out)

    for _ in range(3):
        step()
    seconds = [seconds_of(step, device, 5) for _ in range(SAMPLES)]
    kind = str(dtype).removeprefix("torch.")
    return {"side": side, "type": kind, "tflops": 2 * side**3 / min(seconds) / 1e12, "seconds": seconds}
