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

from .arguments import MIN_SIDE, checked_pool, checked_size
from .maps import check_format, in_format
from .scripting import Scriptable


class Backbone(Scriptable, nn.Module):
    """An encoder of tokens under a classifier: mean pooling, LayerNorm, linear.

    A family sets ``patch_embed`` and ``feature_info``, and gives ``forward_features`` and ``level_maps``.
    """

    patch_embed: Any
    feature_info: list[dict[str, Any]]
    min_side = MIN_SIDE
    masked_levels = 0  # levels that there are of visible units alone
    pruned_to: int | None = None  # levels that are left; None: all

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

    @property
    def levels(self) -> int:
        """Levels that there are."""
        return len(self.feature_info) if self.pruned_to is None else self.pruned_to

    def prune_ends(self, deepest: int, prune_norm: bool, prune_head: bool) -> None:
        """Forget what is behind a level: also norm and classifier, if these are of another width."""
        self.pruned_to, width = deepest + 1, self.feature_info[deepest]["num_chs"]
        if prune_norm or width != self.embed_dim:
            self.fc_norm = nn.Identity()
        if prune_head or width != self.embed_dim:
            self.reset_classifier(0, "")
        self.num_features = self.head_hidden_size = width

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> tokens [B, N, C]; the family's."""
        raise NotImplementedError

    def level_maps(
        self, x: Tensor, take: Sequence[int], count: int, norm: bool, keep: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the first ``count`` levels; the family's.

        Args:
            x: [B, C, H, W], or clips [B, C, T, H, W].
            take: ascending, levels whose maps are wanted.
            count: of levels.
            norm: apply ``fc_norm`` to maps of its width.
            keep: int64 [B, K], visible units, or None.

        Returns:
            The tokens that the last of them ends with [B, N, C], and maps [B, c, *sides] or, of visible units,
            [B, K, c, *tokens of a unit].
        """
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Any:
        """Feature maps of chosen levels: 0 for 1/4, 1 for 1/8, and so on (of clips in space; in time 1/2 at every
        level).

        Args:
            x: [B, C, H, W], or clips [B, C, T, H, W].
            indices: levels; a number n for the last n, None for all.
            return_prefix_tokens: changes nothing, there are no prefix tokens (as in timm's ViT without class token).
            norm: apply ``fc_norm`` to the levels of its width; the others have no norm of their own.
            stop_early: do not run blocks behind the last level asked for.
            output_fmt: "NCHW", "NHWC" or "NLC"; of clips [B, C, T, H, W], [B, T, H, W, C] or [B, T H W, C].
            intermediates_only: return the list of maps alone.
            output_dict: return a dict with "image_intermediates" and "image_features".
            attn_mask: not supported, must be None.
            keep: int64 [B, K], visible units, where the model can be masked. Each level then is [B, K, c, *s] (NCHW),
                [B, K, *s, c] (NHWC) or [B, K S, c] (NLC) with the S tokens s of a unit; levels that pool over units do
                not exist.

        Returns:
            The maps, fine to coarse, alone or as (features [B, N, C], maps). A map has ceil(side / r) rows and columns.

        Raises:
            ValueError: an unknown format, an attention mask, a level that does not exist, a ``keep`` that does not fit.
        """
        instead = (
            "name the visible units with keep instead" if self.masked_levels else "this model looks at whole images"
        )
        if keep is not None and not self.masked_levels:
            raise ValueError(f"keep is not supported: {instead}")
        count = self.levels if keep is None else min(self.levels, self.masked_levels)
        take, deepest = take_levels(indices, count, output_fmt, attn_mask, instead)
        run = deepest + 1 if stop_early or intermediates_only else count
        features, maps = self.level_maps(x, sorted(set(take)), run, norm, keep)
        maps = [in_format(m, output_fmt, self.axes) for m in maps]
        if keep is not None and output_fmt == "NLC":
            maps = [m.flatten(1, 2) for m in maps]  # [B, K, S, c] -> [B, K S, c]
        return as_asked(features, maps, intermediates_only, output_dict)

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
