"""What a masked autoencoder has beside its encoder: the fusion of its levels, and the decoder (MAE, arXiv 2111.06377;
HiViT, arXiv 2205.14949, section 3.3; Hiera, arXiv 2306.00989, appendix A).

Letters: B inputs; U units, K of them visible; t tokens of a unit in the last stage; N = U t decoder tokens in raster
order; C channels of a stage, D decoder width; P values of the patch of pixels under a decoder token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..geometry import from_units, sincos_table
from ..protocol import MaskLayout
from .recipes import Recipe

EPS = 1e-6

# ---- fusion: levels of the visible units -> one latent per decoder token


class LastStage(nn.Module):
    """The tokens of the last stage as they are."""

    def __init__(self, layout: MaskLayout) -> None:
        super().__init__()
        self.dim = layout.stages[-1].dim

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        return stages[-1].flatten(2, -2)  # [B, K, t, C]


class ConcatNorm(nn.Module):
    """All values of a unit at all levels side by side, then one LayerNorm (HiViT: 2048 + 1024 + 512 values at base
    size).
    """

    def __init__(self, layout: MaskLayout) -> None:
        super().__init__()
        self.dim = sum(math.prod(stage.tokens) * stage.dim for stage in layout.stages)
        self.norm = nn.LayerNorm(self.dim, eps=EPS)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        return self.norm(torch.cat([x.flatten(2) for x in stages], dim=-1))[:, :, None]  # [B, K, 1, sum]


class ConvSum(nn.Module):
    """Each finer level brought to the last one by a convolution whose kernel is its stride; their sum, then LayerNorm
    (Hiera).
    """

    def __init__(self, layout: MaskLayout) -> None:
        super().__init__()
        last = layout.stages[-1]
        self.dim = last.dim
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(last.tokens) - 1]
        self.heads = nn.ModuleList()
        for stage in layout.stages[:-1]:
            kernel: Any = tuple(a // b for a, b in zip(stage.tokens, last.tokens, strict=True))
            self.heads.append(conv(stage.dim, last.dim, kernel, kernel))
        self.norm = nn.LayerNorm(self.dim, eps=EPS)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        total = stages[-1].flatten(2, -2)  # [B, K, t, C]
        for head, x in zip(self.heads, stages[:-1], strict=True):
            y = head(x.flatten(0, 1).movedim(-1, 1))  # [B K, C, *tokens of the last stage]
            total = total + y.flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])
        return self.norm(total)


FUSIONS: dict[str, type[Any]] = {"last": LastStage, "concat": ConcatNorm, "conv": ConvSum}


# ---- decoder


class Decoder(nn.Module):
    """A plain transformer over all tokens; hidden ones start as one learned token (MAE, section 3)."""

    def __init__(self, recipe: Recipe, layout: MaskLayout, latent: int, values: int) -> None:
        super().__init__()
        self.layout = layout
        grid = token_grid(layout)
        self.embed = nn.Linear(latent, recipe.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, recipe.dim))
        positions = torch.zeros(1, layout.prefix + math.prod(grid), recipe.dim)
        self.pos_embed = nn.Parameter(positions, requires_grad=recipe.learned_positions)
        norm_layer: Any = partial(nn.LayerNorm, eps=EPS)
        self.blocks = nn.Sequential(
            *(
                Block(recipe.dim, recipe.heads, qkv_bias=True, norm_layer=norm_layer)  # MLP ratio 4
                for _ in range(recipe.depth)
            )
        )
        self.norm = nn.LayerNorm(recipe.dim, eps=EPS)
        self.pred = nn.Linear(recipe.dim, values)
        self.xavier = recipe.xavier
        self.grad_checkpointing = False
        self.init_weights()

    def init_weights(self) -> None:
        """Linear layers Xavier-uniform or truncated normal 0.02, tokens (and learned positions) normal 0.02, else fixed
        sine-cosine positions.
        """
        self.apply(xavier_uniform if self.xavier else truncated_normal)
        nn.init.normal_(self.mask_token, std=0.02)
        with torch.no_grad():
            if self.pos_embed.requires_grad:
                nn.init.trunc_normal_(self.pos_embed, std=0.02)
            else:
                rows, cols = token_grid(self.layout)
                self.pos_embed[:, self.layout.prefix :] = sincos_table((rows, cols), self.pos_embed.shape[-1])

    def forward(self, latent: Tensor, prefix: Tensor | None, keep: Tensor) -> Tensor:
        """Latents of the visible units [B, K, t, C] (and of prefix tokens [B, prefix, C]) -> pixels [B, N, P]."""
        x = self.embed(latent)  # [B, K, t, D]
        units = math.prod(self.layout.units)
        everything = self.mask_token[:, None].to(x.dtype).expand(x.shape[0], units, *x.shape[2:])
        x = everything.scatter(1, keep[:, :, None, None].expand_as(x), x)  # [B, U, t, D]
        x = raster(x, self.layout)  # [B, N, D]
        if prefix is not None:
            x = torch.cat([self.embed(prefix), x], dim=1)
        x = x + self.pos_embed
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return self.pred(self.norm(x)[:, self.layout.prefix :])


# ---- small things


def token_grid(layout: MaskLayout) -> tuple[int, ...]:
    return tuple(u * t for u, t in zip(layout.units, layout.stages[-1].tokens, strict=True))


def raster(x: Tensor, layout: MaskLayout) -> Tensor:
    """Tokens by unit [B, U, t, C] -> tokens in raster order [B, N, C]."""
    x = from_units(x.unflatten(2, layout.stages[-1].tokens), layout.units)
    return x.flatten(1, -2)


def truncated_normal(module: nn.Module) -> None:
    if isinstance(module, nn.LayerNorm):
        module.reset_parameters()
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def xavier_uniform(module: nn.Module) -> None:
    if isinstance(module, nn.LayerNorm):
        module.reset_parameters()
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
