"""What ours is measured beside: other implementations, and other ways to pre-train. Nothing else uses them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.models import create_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
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
        return Loss(self.encoder(images, mask_ratio=ratio_of(images))[0])


def ratio_of(images: Tensor) -> float:
    """Share of the units that is hidden: that of the paper for images or clips, as in our recipes."""
    return 0.9 if images.ndim == 5 else 0.6


class OptimizedHieraAutoencoder(HieraAutoencoder):
    """The same after hiera-optim has worked on it. Masks are drawn outside of graphs, as its authors ask."""

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Loss:
        ratio = ratio_of(images)
        mask, kept = self.draw(len(images), ratio, images.device)
        return Loss(self.encoder(images, mask_ratio=ratio, mask=mask, keep_idx=kept)[0])

    @torch.compiler.disable
    def draw(self, batch: int, ratio: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """A mask for each image: bool [B, U], True where units are visible, and which these are, int64 [B, K]."""
        drawn: tuple[Tensor, Tensor] = imported("hiera-optim").make_mae_mask(self.encoder, batch, ratio, device)
        return drawn


def imported(package: str) -> Any:
    """The module of a package that this one does without.

    Raises:
        ValueError: it is not installed, or lacks something itself.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one imports timm under its old names
            return importlib.import_module(MODULES[package])
    except ImportError as error:
        needed = "hiera-transformer hiera-optim" if package == "hiera-optim" else package
        raise ValueError(f"{package}/... needs another package: pip install {needed} ({error})") from error


MODULES = {"hiera-transformer": "hiera", "hiera-optim": "hiera_optim"}


def hiera_transformer(name: str, **given: Any) -> nn.Module:
    """A model of the Hiera authors' package; names that begin with mae_ are autoencoders.

    Raises:
        ValueError: the package is not installed, or has no such model.
    """
    package = imported("hiera-transformer")
    if not hasattr(package, name):
        known = [other for other in vars(package) if "hiera_" in other and other.rpartition("_")[2].endswith("224")]
        raise ValueError(f"hiera-transformer has no {name!r}, it has {', '.join(known)}")
    model: Any = getattr(package, name)(pretrained=False, **given)
    sides = [tokens * stride for tokens, stride in zip(model.tokens_spatial_shape, model.patch_stride, strict=True)]
    model.pretrained_cfg = {"input_size": (3, *sides[-2:])}
    model.num_frames = sides[0] if len(sides) == 3 else None
    return HieraAutoencoder(model) if name.startswith("mae_") else model


def hiera_optim(name: str, **given: Any) -> nn.Module:
    """A model of the Hiera authors' package after hiera-optim (0.2.1) has worked on it, ready for CUDA graphs: its best
    mode is ``--compile reduce-overhead``.

    Raises:
        ValueError: a package is not installed, or has no such model.
    """
    package: Any = imported("hiera-transformer")
    # It looks once, when it is imported, and expects a later state of hiera-transformer than the released 0.1.4: one
    # that exports this function ...
    if not hasattr(package, "apply_fusion_head"):
        package.apply_fusion_head = importlib.import_module("hiera.hiera_mae").apply_fusion_head
    optim = imported("hiera-optim")
    made: Any = hiera_transformer(name, **given)
    model = made.encoder if isinstance(made, HieraAutoencoder) else made
    if not hasattr(model, "_grad_checkpointing"):  # ... and can recompute blocks
        model._grad_checkpointing = False
    optimized = optim.optimize(model, graph_safe=True, verbose=False)
    return OptimizedHieraAutoencoder(optimized) if isinstance(made, HieraAutoencoder) else optimized


class SimMIM(nn.Module):
    """Masked pre-training on all tokens, hidden ones replaced by a learned one (arXiv 2111.09886), over a Swin or Twins
    of timm.

    Units, ratio and image size are those of GreenMIM, so that the two differ in the method alone; pixels come from a
    linear head, the loss is L1 on hidden ones.
    """

    units = 0

    def __init__(self, encoder: Any, passed: MapOfTokens, ratio: float = 0.75) -> None:
        super().__init__()
        self.encoder, self.passed, self.ratio, self.unit = encoder, passed, ratio, 32
        width = encoder.embed_dim if isinstance(encoder, SwinTransformer) else encoder.embed_dims[0]
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.head = nn.Conv2d(encoder.num_features, self.unit**2 * 3, 1)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Loss:
        grid = [side // self.unit for side in images.shape[-2:]]
        noise = torch.rand(images.shape[0], grid[0] * grid[1], device=images.device)
        kept = int(noise.shape[1] * (1 - self.ratio))
        hidden = (noise.argsort(1).argsort(1) >= kept).view(-1, *grid)

        def hide(tokens: Tensor) -> Tensor:  # [B, h, w, C]
            return torch.where(enlarged(hidden, tokens.shape[1] // grid[0])[..., None], self.mask_token, tokens)

        x = self.head(self.passed(self.encoder, images, hide).permute(0, 3, 1, 2))
        error = (F.pixel_shuffle(x, self.unit) - images).abs() * enlarged(hidden, self.unit)[:, None]
        return Loss(error.sum() / (hidden.sum() * self.unit**2 * 3))


def enlarged(grid: Tensor, times: int) -> Tensor:
    """[B, h, w] -> [B, h times, w times]."""
    return grid.repeat_interleave(times, 1).repeat_interleave(times, 2)


def through_swin(encoder: Any, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The last map [B, h, w, C] of images whose embedded patches [B, h, w, C] are changed."""
    features: Tensor = encoder.norm(encoder.layers(change(encoder.patch_embed(images))))
    return features


def through_twins(encoder: Any, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """As :func:`through_swin`."""
    maps = images
    for stage, (first, *others) in enumerate(encoder.blocks):
        tokens, size = encoder.patch_embeds[stage](maps)
        if stage == 0:
            tokens = change(tokens.unflatten(1, size)).flatten(1, 2)
        tokens = encoder.pos_block[stage](first(encoder.pos_drops[stage](tokens), size), size)
        for block in others:
            tokens = block(tokens, size)
        maps = tokens.transpose(1, 2).unflatten(2, size)
    last: Tensor = encoder.norm(tokens)
    return last.unflatten(1, size)


MapOfTokens = Callable[[Any, Tensor, Callable[[Tensor], Tensor]], Tensor]
THROUGH: dict[type[nn.Module], MapOfTokens] = {SwinTransformer: through_swin, Twins: through_twins}


def simmim(name: str, **given: Any) -> nn.Module:
    """SimMIM over a Swin or Twins of timm.

    Raises:
        ValueError: it is neither.
    """
    encoder = create_model(check_arch(name), num_classes=0, **given)
    if type(encoder) not in THROUGH:
        raise ValueError(f"simmim/{name}: only Swins and Twins of timm are masked this way here")
    return SimMIM(encoder, THROUGH[type(encoder)])


PEERS: dict[str, Callable[..., nn.Module]] = {
    "hiera-transformer": hiera_transformer,
    "hiera-optim": hiera_optim,
    "simmim": simmim,
}


def is_peer(name: str) -> bool:
    return name.partition(SEPARATOR)[0] in PEERS


def make_peer(name: str, **given: Any) -> nn.Module:
    """The model of "PACKAGE/NAME", with random weights.

    Args:
        **given: arguments of the model.

    Raises:
        ValueError: see the functions of PEERS; or an argument that it does not take.
    """
    package, _, model = name.partition(SEPARATOR)
    try:
        return PEERS[package](model, **given)
    except TypeError as error:
        raise ValueError(f"model {name!r} cannot be made: {error}") from error
