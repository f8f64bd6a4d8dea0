"""Other implementations, to measure ours beside them; each comes from its own package, none is used for anything else."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

SEPARATOR = "/"  # in names of peers: PACKAGE/NAME


class Loss(NamedTuple):
    """What a step of pre-training needs of an autoencoder's output."""

    loss: Tensor


class HieraAutoencoder(nn.Module):
    """The masked autoencoder of hiera-transformer, called like ours; it draws its masks itself."""

    units = 0  # nothing can be said of which are visible

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Loss:
        ratio = 0.9 if images.ndim == 5 else 0.6  # that of the paper, as in our recipes
        return Loss(self.encoder(images, mask_ratio=ratio)[0])


def hiera_transformer(name: str) -> nn.Module:
    """A model of the Hiera authors' package; names that begin with mae_ are autoencoders.

    Raises:
        ValueError: the package is not installed, or has no such model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports timm under its old names
            package = importlib.import_module("hiera")
    except ImportError as error:
        raise ValueError(f"hiera-transformer/{name} needs another package: pip install hiera-transformer") from error
    if not hasattr(package, name):
        known = [other for other in vars(package) if "hiera_" in other and other.rpartition("_")[2].endswith("224")]
        raise ValueError(f"hiera-transformer has no {name!r}, it has {', '.join(known)}")
    model: Any = getattr(package, name)(pretrained=False)
    sides = [tokens * stride for tokens, stride in zip(model.tokens_spatial_shape, model.patch_stride, strict=True)]
    model.pretrained_cfg = {"input_size": (3, *sides[-2:])}
    model.num_frames = sides[0] if len(sides) == 3 else None
    return HieraAutoencoder(model) if name.startswith("mae_") else model


PEERS: dict[str, Callable[[str], nn.Module]] = {"hiera-transformer": hiera_transformer}


def is_peer(name: str) -> bool:
    return name.partition(SEPARATOR)[0] in PEERS


def make_peer(name: str) -> nn.Module:
    """The model of "PACKAGE/NAME", with random weights.

    Raises:
        ValueError: see the functions of PEERS.
    """
    package, _, model = name.partition(SEPARATOR)
    return PEERS[package](model)
