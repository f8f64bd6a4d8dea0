"""What ours is measured beside: other implementations, and other ways to pre-train. Nothing else uses them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.models import create_model
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.family import check_arch

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


class SimMIM(nn.Module):
    """Masked pre-training on all tokens, hidden ones replaced by a learned one (arXiv 2111.09886), over a Swin of timm.

    Units, ratio and image size are those of GreenMIM, so that the two differ in the method alone; pixels come from a
    linear head, the loss is L1 on hidden ones.
    """

    units = 0

    def __init__(self, encoder: Any, ratio: float = 0.75) -> None:
        super().__init__()
        self.encoder, self.ratio, self.unit = encoder, ratio, 32
        self.mask_token = nn.Parameter(torch.zeros(encoder.embed_dim))
        self.head = nn.Conv2d(encoder.num_features, self.unit**2 * 3, 1)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Loss:
        grid = [side // self.unit for side in images.shape[-2:]]
        noise = torch.rand(images.shape[0], grid[0] * grid[1], device=images.device)
        kept = int(noise.shape[1] * (1 - self.ratio))
        hidden = (noise.argsort(1).argsort(1) >= kept).view(-1, *grid)
        tokens = self.unit // self.encoder.patch_embed.patch_size[0]
        x = self.encoder.patch_embed(images)  # [B, h, w, C]
        x = torch.where(enlarged(hidden, tokens)[..., None], self.mask_token, x)
        x = self.encoder.norm(self.encoder.layers(x)).permute(0, 3, 1, 2)
        error = (F.pixel_shuffle(self.head(x), self.unit) - images).abs() * enlarged(hidden, self.unit)[:, None]
        return Loss(error.sum() / (hidden.sum() * self.unit**2 * 3))


def enlarged(grid: Tensor, times: int) -> Tensor:
    """[B, h, w] -> [B, h times, w times]."""
    return grid.repeat_interleave(times, 1).repeat_interleave(times, 2)


def simmim(name: str) -> nn.Module:
    """SimMIM over a Swin of timm.

    Raises:
        ValueError: it is none.
    """
    encoder = create_model(check_arch(name), num_classes=0)
    if not isinstance(encoder, SwinTransformer):
        raise ValueError(f"simmim/{name}: only Swins of timm are masked this way here")
    return SimMIM(encoder)


PEERS: dict[str, Callable[[str], nn.Module]] = {"hiera-transformer": hiera_transformer, "simmim": simmim}


def is_peer(name: str) -> bool:
    return name.partition(SEPARATOR)[0] in PEERS


def make_peer(name: str) -> nn.Module:
    """The model of "PACKAGE/NAME", with random weights.

    Raises:
        ValueError: see the functions of PEERS.
    """
    package, _, model = name.partition(SEPARATOR)
    return PEERS[package](model)
