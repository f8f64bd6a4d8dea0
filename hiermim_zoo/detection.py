"""A feature pyramid for torchvision's detectors over any model of timm's that gives feature maps (FPN, arXiv
1612.03144).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool


class FeaturePyramid(nn.Module):
    """What ``torchvision.models.detection`` takes for a backbone, in the place of its own ``BackboneWithFPN``.

    That one cuts levels out of a ResNet by the names of its parts; this one asks a model that knows its levels.

    Args:
        body: from ``timm.create_model(..., features_only=True)``.
        out_channels: of every level of the pyramid.
        extra_blocks: makes levels above the coarsest; default: one more by max pooling, called "pool".
        norm_layer: behind the convolutions of the pyramid; default: none.

    Raises:
        ValueError: ``body`` gives no feature maps in NCHW.
    """

    def __init__(
        self,
        body: nn.Module,
        out_channels: int = 256,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Any = None,
    ) -> None:
        super().__init__()
        info: Any = getattr(body, "feature_info", None)
        if not hasattr(info, "channels"):
            raise ValueError(
                f"{type(body).__name__} gives no maps: make it with timm.create_model(..., features_only=True)"
            )
        if str(getattr(body, "output_fmt", "NCHW")).rpartition(".")[2].upper() != "NCHW":
            raise ValueError(f"{type(body).__name__} gives maps as {body.output_fmt}: make it with output_fmt='NCHW'")
        self.body = body
        self.fpn = FeaturePyramidNetwork(info.channels(), out_channels, extra_blocks or LastLevelMaxPool(), norm_layer)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> maps [B, out_channels, h, w] by name: "0" for the finest level, ..., "pool"."""
        return self.fpn({str(level): x for level, x in enumerate(self.body(images))})
