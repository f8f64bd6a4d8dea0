"""What ours is measured beside: other implementations, and other ways to pre-train. Nothing here is used for anything else."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.models import create_model, is_model
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from .masking import random_keep

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
    """Masked pre-training of timm's Swin on all tokens (arXiv 2111.09886), called like ours; it draws its masks itself.

    Hidden patches are one learned token, a linear head predicts the pixels under the tokens of the last stage, the loss is the
    mean absolute error over hidden pixels.
    """

    units = 0  # nothing can be said of which are visible

    def __init__(self, encoder: Any, ratio: float = 0.75) -> None:
        super().__init__()
        self.encoder = encoder
        self.ratio = ratio  # that of our recipe
        self.unit = max(encoder.patch_embed.patch_size) * 2 ** (encoder.num_layers - 1)
        self.mask_token = nn.Parameter(torch.zeros(encoder.embed_dim))
        self.head = nn.Conv2d(encoder.num_features, 3 * self.unit**2, 1)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Loss:
        rows, cols = images.shape[-2] // self.unit, images.shape[-1] // self.unit
        visible = random_keep(len(images), rows * cols, int(rows * cols * (1 - self.ratio)), device=images.device)
        hidden = torch.ones(len(images), rows * cols, device=images.device).scatter(1, visible, 0).unflatten(1, (rows, cols))
        tokens = self.encoder.patch_embed(images)  # [B, h, w, C]
        t = tokens.shape[1] // rows
        grid = hidden.repeat_interleave(t, 1).repeat_interleave(t, 2)[..., None].to(tokens.dtype)
        tokens = self.encoder.norm(self.encoder.layers(tokens * (1 - grid) + self.mask_token * grid))
        pred = nn.functional.pixel_shuffle(self.head(tokens.permute(0, 3, 1, 2)), self.unit)  # [B, 3, H, W]
        pixels = hidden.repeat_interleave(self.unit, 1).repeat_interleave(self.unit, 2)[:, None]
        return Loss(((pred - images).abs() * pixels).sum() / pixels.sum() / 3)


def simmim(name: str) -> nn.Module:
    """SimMIM around a Swin of timm.

    Raises:
        ValueError: another model.
    """
    model: Any = create_model(name, num_classes=0, drop_path_rate=0.0) if is_model(name) else None
    if not isinstance(model, SwinTransformer):
        raise ValueError(f"simmim/{name}: name a Swin of timm, such as simmim/swin_base_patch4_window7_224")
    return SimMIM(model)


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
