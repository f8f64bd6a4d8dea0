"""Plain vision transformers of timm as maskable encoders (MAE, arXiv 2111.06377, section 3); no new weights, no new names.

Letters: B images, N patches, K of them visible, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..build import source_grid
from ..checkpoints.layouts import Native
from ..checkpoints.rules import check_fits
from ..masking import check_keep, gather_units
from ..protocol import MaskLayout, Stage, Visible


@dataclass(frozen=True)
class MaskableViT:
    """A view of a timm ViT through the encoder protocol: a patch is a mask unit that holds one token.

    The view owns nothing: parameters and their names stay those of the model.

    Raises:
        ValueError: the model has parts whose meaning for hidden patches is not defined here.
    """

    model: VisionTransformer

    def __post_init__(self) -> None:
        if self.model.pos_embed is None or self.model.no_embed_class or self.model.num_reg_tokens:
            raise ValueError(
                "only a ViT with absolute positions, a class token that has one (or none), and no registers can be masked"
            )

    @property
    def mask_layout(self) -> MaskLayout:
        embed: Any = self.model.patch_embed
        return MaskLayout(
            units=tuple(embed.grid_size),
            stages=(Stage((1, 1), self.model.embed_dim),),
            stride=tuple(embed.patch_size),
            prefix=self.model.num_prefix_tokens,
        )

    def forward_visible(self, images: Tensor, keep: Tensor) -> Visible:
        """[B, C, H, W], int64 [B, K] -> class token [B, prefix, D] and visible tokens [B, K, 1, 1, D], after the final norm."""
        model, prefix = self.model, self.model.num_prefix_tokens
        x = model.patch_embed(images)  # [B, N, D]
        check_keep(keep, x.shape[0], x.shape[1])
        positions: Any = model.pos_embed  # [1, prefix + N, D]
        x = gather_units(x + positions[:, prefix:], keep)  # [B, K, D]
        if model.cls_token is not None:
            token = (model.cls_token + positions[:, :prefix]).expand(x.shape[0], -1, -1)
            x = torch.cat([token, x], dim=1)
        x = model.norm(model.blocks(model.norm_pre(x)))
        return Visible(prefix=x[:, :prefix] if prefix else None, stages=(x[:, prefix:, None, None],))


def adapt(native: Native, model: VisionTransformer) -> dict[str, Tensor]:
    """Fit a checkpoint to a model: positions resampled to its grid.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    state = dict(native.state)
    grid: Any = model.patch_embed.grid_size
    old = _grid(state, model.num_prefix_tokens, [model.patch_embed.img_size])
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], grid, list(old), model.num_prefix_tokens)
    check_fits(state, model.state_dict(), model="this VisionTransformer")
    return state


def checkpoint_img_size(native: Native, sizes: Sequence[Any], model_args: Mapping[str, Any]) -> tuple[int, int]:
    """Pixels (height, width) of the images that a checkpoint was made for.

    Args:
        native: the checkpoint.
        sizes: candidates, the likeliest first.
        model_args: of the folder that it stood in; they say nothing about sizes in this family.
    """
    height, width = _grid(native.state, 1, sizes)
    patch = native.state["patch_embed.proj.weight"].shape[-1]
    return height * patch, width * patch


def _grid(state: Mapping[str, Tensor], prefix: int, sizes: Sequence[Any]) -> tuple[int, int]:
    return source_grid(state["pos_embed"].shape[1] - prefix, state["patch_embed.proj.weight"].shape[-1], sizes)
