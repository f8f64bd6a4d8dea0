"""Precision: what the words of ``--amp`` mean, and how float32 numbers are multiplied."""

from __future__ import annotations

import torch

DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def chosen_amp(amp: str, device: torch.device) -> str:
    """A key of DTYPES: "auto" is bf16 on GPUs that compute in it, and none everywhere else."""
    if amp != "auto":
        return amp
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if able else "none"


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The context in which a model computes on a device.

    Args:
        amp: "auto", or a key of DTYPES; "none" computes in the type of the weights.
    """
    dtype = DTYPES[chosen_amp(amp, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def train_in(device: torch.device, amp: str) -> str:
    """Choose how float32 matrices are multiplied in training, and say in words how everything is computed.

    On GPUs in TF32 (19 bits, as convolutions by torch's default): several times faster, and not what limits training.
    NVIDIA_TF32_OVERRIDE=0 in the environment turns it off. :func:`hiermim_zoo.training.distributed.restored` undoes it.
    """
    computed = {"none": "float32", "bf16": "bfloat16 where autocast says so", "fp16": "float16 where autocast says so"}
    if device.type != "cuda":
        return computed[chosen_amp(amp, device)]
    torch.set_float32_matmul_precision("high")
    return f"{computed[chosen_amp(amp, device)]}, float32 products in TF32"
