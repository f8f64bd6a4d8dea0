"""Heat maps of what a classifier looks at (Grad-CAM, arXiv 1610.02391) by pytorch-grad-cam, captum and their like.

These hook a module and take its output for a map [B, C, h, w]. Blocks of vision transformers give tokens, some of them
in the order of mask units, and what is made of those without a word is a map of nothing.

    shown = ForCam(timm.create_model("hiera_atto", pretrained=True).eval())
    GradCAM(model=shown, target_layers=[shown.maps])(input_tensor=images)  # pytorch-grad-cam, no reshape_transform
    LayerGradCam(shown, shown.maps).attribute(images, target=3)  # captum

Letters: B images; H, W pixels; N = h w tokens; C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .geometry import covering
from .text import counted

__all__ = ["ForCam"]

REDUCTIONS = (1, 2, 4, 8, 14, 16, 32, 64)  # pixels under a token


class ForCam(nn.Module):
    """A classifier whose last features pass through a module, ``maps``, as maps [B, C, h, w].

    Its outputs are the model's own, to the last bit; it has no parameters beside the model's.

    Args:
        model: of this package, or another one of timm with ``forward_features`` and ``forward_head``.

    Raises:
        ValueError: a model of feature maps, without classifier, or whose classifier reads a class token, which the
            maps do not reach; in the forward pass, features that are no tensor.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        if not hasattr(model, "forward_head") or not getattr(model, "num_classes", 0):
            raise ValueError(f"{type(model).__name__} has no classifier, whose gradients would be shown")
        if self.prefix and getattr(model, "global_pool", "") == "token":
            raise ValueError(f"{type(model).__name__} classifies by its class token: build it with global_pool='avg'")
        self.model = model
        self.maps = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, num_classes]."""
        model: Any = self.model
        x: Tensor = model.forward_features(images)
        if not isinstance(x, Tensor):
            raise ValueError(f"{type(model).__name__} hands {type(x).__name__} to its classifier, which is no map")
        if x.ndim == 4:  # a map already, of most of timm's models with the channels behind
            if getattr(model, "output_fmt", "NCHW") == "NHWC":
                x = self.maps(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            else:
                x = self.maps(x)
        else:
            first, tokens = x[:, : self.prefix], x[:, self.prefix :]  # [B, N, C]
            grid = _grid(tokens.shape[1], images)
            tokens = self.maps(tokens.mT.unflatten(2, grid)).flatten(2).mT
            x = torch.cat([first, tokens], dim=1) if self.prefix else tokens
        logits: Tensor = model.forward_head(x)
        return logits


def _grid(tokens: int, images: Tensor) -> tuple[int, int]:
    """Rows and columns of tokens in raster order.

    Raises:
        ValueError: clips, or tokens that are no grid of the images.
    """
    if images.ndim == 4:
        for reduction in REDUCTIONS:
            rows, cols = (covering(side, reduction) for side in images.shape[2:])
            if rows * cols == tokens:
                return rows, cols
    raise ValueError(f"{counted(tokens, 'tokens')}: no grid of images of shape {list(images.shape)}")
