"""Short runs of pre-training, and how far apart the weights of two are."""

from __future__ import annotations

import shlex
from pathlib import Path

from torch import Tensor

from hiermim_zoo import pretrain
from hiermim_zoo.training import snapshots

DECODER = shlex.split("--decoder-depth 1 --decoder-dim 32 --decoder-heads 2")
MODEL = (*shlex.split("--model hivit_atto --model-kwargs 'depths=(1, 0, 1)' --img-size 32"), *DECODER)
SHORT = shlex.split("--batch-size 8 --epochs 1 --warmup 0 --workers 0 --device cpu --look-every 0")
SMALL = (*MODEL, *SHORT)
TWIN = {
    "model": "hivit_atto", "img_size": 32, "decoder_depth": 1, "decoder_dim": 32, "decoder_heads": 2, "batch_size": 8,
    "epochs": 1, "warmup": 0, "workers": 0, "device": "cpu", "look_every": 0, "steps": 2, "lr": 1e-2,
}  # fmt: skip


def train(output: Path, *argv: object, data: str = "digits") -> dict[str, Tensor]:
    """Run the command in this process; the weights of its last checkpoint."""
    model = ("--img-size", "32", *DECODER) if "--model" in argv else MODEL  # whose arguments are HiViT's
    pretrain.main([data, *model, *SHORT, "-o", str(output), *map(str, argv)])
    return weights(output)


def weights(output: Path) -> dict[str, Tensor]:
    return snapshots.weights_of(snapshots.found(output / "checkpoints")[-1])


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)
