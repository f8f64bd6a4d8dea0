"""Golden cases: weights made from names and shapes, outputs stored from the reference implementation."""

from __future__ import annotations

import functools
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .fill import fill, fill_input, keep_indices

FOLDER = Path(__file__).parent


class Case:
    """One stored run of a reference implementation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.about: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        outputs = FOLDER / f"{name}.safetensors"  # a layout alone has none
        self.outputs: dict[str, Tensor] = load_file(outputs) if outputs.is_file() else {}
        self.tolerance: dict[str, float] = self.about.get("tolerance", {})

    def state(self) -> dict[str, Tensor]:
        """The checkpoint in its published layout; integer buffers hold zeros (no layout may use them)."""
        buffers = set(self.about.get("buffers", ()))
        return {
            name: torch.zeros(shape, dtype=torch.int64) if name in buffers else torch.from_numpy(fill(name, shape))
            for name, shape in self.about["manifest"].items()
        }

    def images(self) -> Tensor:
        return torch.from_numpy(fill_input(self.about["input"]["key"], tuple(self.about["input"]["shape"])))

    def keep(self) -> Tensor:
        mask = self.about["mask"]
        return torch.from_numpy(keep_indices(mask["key"], self.about["input"]["shape"][0], mask["units"], mask["keep"]))

    def publish(self, path: Path, top_key: str = "model") -> Path:
        """Write the checkpoint as its authors' training code would."""
        torch.save({top_key: self.state(), "epoch": 99, "args": Namespace(lr=1e-3, device="cuda")}, path)
        return path


@functools.cache
def golden(name: str) -> Case:
    return Case(name)


def ends(x: Tensor, channels: int) -> Tensor:
    """The first and last ``channels`` channels, as stored."""
    return torch.cat([x[..., :channels], x[..., -channels:]], dim=-1)


def differs(a: Tensor, b: Tensor, tolerance: dict[str, float]) -> bool:
    return not torch.allclose(a, b, **tolerance)
