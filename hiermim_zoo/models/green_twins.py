"""Twins-SVT that can look at visible patches alone: timm's Twins with the protocol added (GreenMIM, arXiv 2205.13515).

Unmasked it is timm's model: same parameters, same names, same numbers but for rounding. Masked, a unit of 32 x 32
pixels is a cell of the last stage. Patch embeddings stay inside units, window attention runs in groups
(layers/groups.py), the keys of global attention summarise one unit each, and the position block sees hidden neighbours
as zeros (layers/sparse.py). The position block keeps its residual, x + conv(x), as in Twins; the authors' masked
pre-training has none, which the centre tap of a converted kernel makes up for.

Letters: B images; H, W pixels; K visible units; t tokens along a side of one; N = K t t visible tokens; C channels of a
stage; n heads, d channels of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.fx
from timm.models import checkpoint
from timm.models.twins import Block, LocallyGroupedAttn, PatchEmbed, Twins
from torch import Tensor
from torch.nn import functional as F

from ..geometry import unflatten
from ..layers.group_attention import Band, group_attention, pair_mask
from ..layers.groups import Geometry, Plan, Plans, check_encoder_method, make_plans, plan_ahead, ready_plans
from ..layers.padding import check_images
from ..layers.sparse import halo_conv, make_halo, patch_conv, unit_grid, visible_pixels
from ..layers.windows import from_windows, to_windows
from ..masking import check_keep
from ..protocol import MaskLayout, Visible
from .green_swin import Checked, recast, set_norm_eps, unit_layout

for _leaf in ("unflatten", "to_windows", "from_windows"):  # what they do depends on shapes
    torch.fx.wrap(_leaf)


class GreenTwinsBlock(Block):
    """timm's block, which can be given visible tokens and their plan, and be computed again in the backward pass."""

    grad_checkpointing = False

    def forward(self, x: Tensor, size: Any, plan: Plan | None = None, pairs: Tensor | Band | None = None) -> Tensor:
        """Attention, local or global, and MLP.

        Args:
            x: [B, h w, C]; with a plan, visible tokens [B, N, C].
            size: (h, w); with a plan (K, t, t).
            plan: of these tokens.
            pairs: of :func:`pair_mask`; blocks of a stage share it.

        Returns:
            Like ``x``.
        """
        args = (x, size, plan, pairs)
        out: Tensor = checkpoint(self._forward, *args) if self.grad_checkpointing else self._forward(*args)
        return out

    def _forward(self, x: Tensor, size: Any, plan: Plan | None, pairs: Tensor | Band | None) -> Tensor:
        if plan is None or pairs is None:
            out: Tensor = super().forward(x, size)
            return out
        local, y = isinstance(self.attn, LocallyGroupedAttn), self.norm1(x)
        x = x + self.drop_path1(_local(self.attn, y, plan, pairs) if local else _global(self.attn, y, size))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class LocalAttention(LocallyGroupedAttn):
    """timm's attention inside windows, in arithmetic that compilers and exporters take with sides left open, and with
    four axes, which fused kernels want.
    """

    def forward(self, x: Tensor, size: Any) -> Tensor:
        """[B, h w, C] -> the same.

        Args:
            size: (h, w). What windows do not divide is padded with zeros, which are attended to.
        """
        grid = unflatten(x, 1, size)
        windows = to_windows(grid, (self.ws, self.ws))  # [B n, T, C]
        dropout = self.attn_drop.p if self.training else 0.0
        q, k, v = _heads(self.qkv(windows), 3, self.num_heads)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
        out = from_windows(out, grid, (self.ws, self.ws)).flatten(1, 2)
        return self.proj_drop(self.proj(out))


class Embedding(PatchEmbed):
    """timm's patch embedding, which takes its grid from the convolution, so that no side has to be shown equal."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, C, H, W] -> tokens [B, h w, C], and (h, w)."""
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class GreenTwins(Checked, Twins):
    """timm's Twins (the variants with local and global attention in turns), maskable.

    Args:
        norm_eps: of every LayerNorm, where it is not to be timm's 1e-6 and 1e-5 (masked pre-training used 1e-6
            throughout).
        plan_method: how windows are grouped in the masked pass, see make_plans; None: what suits the device.
        **kwargs: timm's.

    Raises:
        ValueError: no windows, or one larger than the grid of the first stage; a way to plan that is unknown or does
            not fit.
    """

    patch_embeds: Any
    pos_drops: Any
    blocks: Any
    pos_block: Any
    norm: Any

    def __init__(self, norm_eps: float | None = None, plan_method: str | None = None, **kwargs: Any) -> None:
        wss = kwargs.get("wss")
        if wss is None or min(wss) < 2:
            raise ValueError(f"wss={wss} must name the windows of each stage, of at least 2 tokens")
        super().__init__(block_cls=GreenTwinsBlock, **kwargs)
        recast(self, {PatchEmbed: Embedding, LocallyGroupedAttn: LocalAttention})
        local = (block.attn for block in self.called_blocks if isinstance(block.attn, LocalAttention))
        self.plan_method = check_encoder_method(plan_method, local)
        for level, (info, blocks) in enumerate(zip(self.feature_info, self.blocks, strict=True)):
            info["module"] = f"blocks.{level}.{len(blocks) - 1}"
        first = self.patch_embed
        first.grid_size = (first.H, first.W)
        if max(wss) > min(first.grid_size):
            raise ValueError(f"wss={tuple(wss)}: a window is larger than the grid of {first.H} x {first.W} tokens")
        set_norm_eps(self, norm_eps)

    @property
    def patch_embed(self) -> Any:
        """The first patch embedding, where consumers look for sizes."""
        return self.patch_embeds[0]

    @torch.jit.ignore
    def init_weights(self) -> None:
        """(Re)initialise every parameter, also after a build on the meta device."""
        self.apply(self._init_weights)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations; timm's Twins cannot."""
        for block in self.called_blocks:
            block.grad_checkpointing = enable

    @property
    def called_blocks(self) -> list[Any]:
        """Blocks whose own forward pass runs in masked training: all."""
        return [block for blocks in self.blocks for block in blocks]

    @property
    def planner(self) -> Callable[[Tensor], Plans]:
        """See :class:`hiermim_zoo.protocol.PlanningEncoder`; for inputs of the configured size."""
        units: Any = self.mask_layout.units
        return partial(plan_ahead, geometries=tuple(self.geometries(units)), method=self.plan_method)

    def plan(self, keep: Tensor) -> Plans:
        """See :class:`hiermim_zoo.protocol.PlanningEncoder`; for inputs of the configured size."""
        units: Any = self.mask_layout.units
        return make_plans(keep, self.geometries(units), self.plan_method)

    @property
    def unit(self) -> int:
        """Pixels along a side of a mask unit: those under a token of the last stage."""
        return self.patch_embed.patch_size[0] * 2 ** (len(self.depths) - 1)

    @property
    def mask_layout(self) -> MaskLayout:
        """One token for every unit, for inputs of the configured size."""
        return unit_layout(self.patch_embed.img_size, self.unit, self.num_features)

    def geometries(self, units: tuple[int, int]) -> Iterator[Geometry]:
        """The windows of every stage, for images of so many rows and columns of units; all that planning needs to
        know.
        """
        for stage, blocks in enumerate(self.blocks):
            window = blocks[0].attn.ws
            yield Geometry(units, self._side(stage), (window, window))

    def _side(self, stage: int) -> int:
        return 2 ** (len(self.depths) - 1 - stage)  # t

    def forward_visible(self, images: Tensor, keep: Tensor, plans: Plans | None = None) -> Visible:
        """Encode the visible units alone; see :class:`hiermim_zoo.protocol.MaskableEncoder`.

        Args:
            images: [B, C, H, W], sides that are multiples of ``unit``.
            keep: int64 [B, K].
            plans: of the planner, or of ``make_plans(keep, geometries(units))`` for images of another size.
        """
        units = unit_grid(check_images(images, self.in_chans), self.unit)
        check_keep(keep, images.shape[0], units[0] * units[1])
        geometries = list(self.geometries(units))
        plans = (
            make_plans(keep, geometries, self.plan_method) if plans is None else ready_plans(plans, geometries, keep)
        )
        x = visible_pixels(images, keep, self.unit)
        stages = zip(self.patch_embeds, self.pos_drops, self.blocks, self.pos_block, geometries, strict=True)
        for embed, drop, blocks, position, geometry in stages:
            x = drop(embed.norm(patch_conv(x, embed.proj)))  # [B, K, t, t, C]
            shape, x = x.shape, x.flatten(1, 3)  # [B, N, C]
            plan = plans[geometry]
            pairs = pair_mask(plan)
            halo = make_halo(keep, units, geometry.tokens)
            for j, block in enumerate(blocks):
                x = block(x, tuple(shape[1:4]), plan, pairs)
                if j == 0:
                    x = x + halo_conv(x, position.proj[0], halo)
            x = x.view(shape)
        return Visible(prefix=None, stages=(self.norm(x),))


def _local(attn: Any, x: Tensor, plan: Plan, pairs: Tensor | Band) -> Tensor:
    """Attention inside windows: [B, N, C] -> the same."""
    dropout = attn.attn_drop.p if attn.training else 0.0
    return attn.proj_drop(attn.proj(group_attention(attn.qkv(x), plan, attn.num_heads, pairs, dropout=dropout)))


def _global(attn: Any, x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Attention of all visible tokens to one summary of each visible unit: [B, N, C] -> the same; ``size`` is (K, t,
    t).
    """
    (q,) = _heads(attn.q(x), 1, attn.num_heads)  # [B, n, N, d]
    if attn.sr is not None:
        x = attn.norm(patch_conv(x.unflatten(1, size), attn.sr)).flatten(1, 3)  # [B, K, C]
    k, v = _heads(attn.kv(x), 2, attn.num_heads)  # [B, n, K, d]
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    return attn.proj_drop(attn.proj(out.transpose(1, 2).flatten(2)))


def _heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[B, N, parts n d] -> as many of [B, n, N, d]."""
    return unflatten(x, 2, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
