"""Mixed precision: what the words of ``--amp`` mean."""

from __future__ import annotations

import torch

DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The context in which a model computes on a device.

    Args:
        amp: a key of DTYPES; "none" computes in the type of the weights.
    """
    return torch.autocast(device.type, dtype=DTYPES[amp], enabled=DTYPES[amp] is not None)
