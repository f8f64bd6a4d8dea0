"""What timm asks of every encoder of this package and what does not depend on its family: head, checkpointing, levels.

Letters: B images, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import global_pool_nlc, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .arguments import checked_pool, checked_size
from .maps import check_format


class Backbone(nn.Module):
    """An encoder of tokens under a classifier: mean pooling, LayerNorm, linear.

    A family sets ``patch_embed`` and ``feature_info``, and gives ``forward_features`` and ``forward_intermediates``.
    """

    patch_embed: Any
    feature_info: list[dict[str, Any]]

    def set_arguments(
        self, img_size: tuple[int, int], in_chans: int, num_classes: int, global_pool: str, embed_dim: int, fixed: bool
    ) -> None:
        """Keep what timm and its consumers read; ``fixed`` refuses images of any size but ``img_size``."""
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = checked_pool(global_pool)
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.num_prefix_tokens = 0
        self.only_size = img_size if fixed else None
        self.grad_checkpointing = False

    def add_head(self, drop_rate: float, **dd: Any) -> None:
        """Norm, dropout and classifier; the last parameters of the state dict."""
        self.fc_norm: nn.Module = nn.LayerNorm(self.embed_dim, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.embed_dim, self.num_classes, **dd) if self.num_classes else nn.Identity()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one of ``num_classes`` (0: none), and the pooling if one is named."""
        if global_pool is not None:
            self.global_pool = checked_pool(global_pool)
        self.num_classes = num_classes
        like = self.patch_embed.proj.weight
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def change_size(self, img_size: int | tuple[int, int]) -> tuple[int, int]:
        """Take images of another size for good; returns the grid of before, from which tables are to be resampled."""
        size, old = checked_size(img_size), self.patch_embed.grid_size
        self.patch_embed.set_size(size)
        if self.only_size is not None:
            self.only_size = size
        self._traits = {**getattr(self, "_traits", {}), "img_size": size}  # what timm writes into config.json
        return old

    def prune_ends(self, prune_norm: bool, prune_head: bool) -> None:
        if prune_norm:
            self.fc_norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> tokens [B, N, C]; the family's."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, N, C] -> pooled and normalised features [B, C], or logits [B, num_classes]."""
        x = self.head_drop(self.fc_norm(global_pool_nlc(x, self.global_pool, num_prefix_tokens=0)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def take_levels(
    indices: int | Sequence[int] | None, count: int, output_fmt: str, attn_mask: Any, instead: str
) -> tuple[Any, int]:
    """Check the arguments of ``forward_intermediates``.

    Args:
        indices: levels; a number n for the last n, None for all.
        count: levels that there are.
        instead: what to do without an attention mask.

    Returns:
        The levels, and the deepest of them.

    Raises:
        ValueError: an unknown format, an attention mask, a level that does not exist.
    """
    check_format(output_fmt)
    if attn_mask is not None:
        raise ValueError(f"attn_mask is not supported: {instead}")
    if isinstance(indices, (list, tuple)) and any(not -count <= i < count for i in indices):
        raise ValueError(f"level {indices} does not exist, there are 0 to {count - 1}")
    wanted: Any = indices
    return feature_take_indices(count, wanted)


def as_asked(features: Tensor, maps: list[Tensor], intermediates_only: bool, output_dict: bool) -> Any:
    """The result of ``forward_intermediates`` in the form that timm's arguments ask for."""
    if output_dict:
        return {"image_intermediates": maps, **({} if intermediates_only else {"image_features": features})}
    return maps if intermediates_only else (features, maps)
