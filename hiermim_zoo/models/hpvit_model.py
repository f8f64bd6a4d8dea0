"""HPViT: a plain vision transformer made hierarchical by pooling between its blocks (arXiv 2211.01785).

Converted, not pre-trained: every block, the patch convolution and the position table are those of a plain ViT,
pre-trained by masking. The convolution takes steps of 4 pixels instead of 16, and pooling between the blocks makes
levels of 1/4, 1/8, 1/16 and 1/32 out of it. Neither code nor weights were ever published. Where the public text is
silent this project chose: padding of the convolution, depths of the stages, window size, which stages attend in
windows, where pooling stands, the head.

Letters: B images; H, W pixels; h, w the grid of a level; N = h w tokens of it; C channels, the same at every level; p
pixels along a side of the plain ViT's patch; s pixels from one token to the next; r pixels under a token of a level; n
windows of an image, T tokens of one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.fx
from timm.layers import (
    Attention,
    DropPath,
    Mlp,
    calculate_drop_path_rates,
    to_2tuple,
    trunc_normal_,
)
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..geometry import covering, cropped, sincos_table, unflatten, up_to
from ..layers.arguments import MIN_SIDE, checked_size
from ..layers.backbone import Backbone
from ..layers.padding import pad_to_multiple
from ..layers.position import resample_positions
from ..layers.tokens import tokenwise
from ..layers.windows import from_windows, to_windows, window_mask

POOLS = ("avg", "conv")
STRIDE = 4  # pixels from one token of the first level to the next

# Their branches depend on shapes: leaves for torch.fx, so that feature extractors built on it can trace the model.
for _leaf in ("unflatten", "pad_to_multiple", "resample_positions", "to_windows", "from_windows", "window_mask"):
    torch.fx.wrap(_leaf)


class OverlapEmbed(nn.Module):
    """The patch convolution of a plain ViT, taken every ``stride`` pixels; padding centres patch i on cell i."""

    def __init__(
        self, img_size: tuple[int, int], multiple: int, in_chans: int, dim: int, patch: int, stride: int, **dd: Any
    ) -> None:
        super().__init__()
        self.patch_size = (stride, stride)  # what consumers of plain ViTs read: pixels under a token
        self.multiple = multiple
        self.proj = nn.Conv2d(in_chans, dim, patch, stride, (patch - stride) // 2, **dd)
        self.set_size(img_size)

    def set_size(self, img_size: tuple[int, int]) -> None:
        self.img_size = img_size
        self.grid_size = grid_of(img_size, self.multiple, self.patch_size[0])
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)  # [B, H / s, W / s, C]


class WindowAttention(Attention):
    """Multi-head attention inside windows of a grid (None: over the whole grid)."""

    def __init__(self, dim: int, num_heads: int, window: int | None, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, qkv_bias=True, **kwargs)
        self.window = window

    def forward(self, x: Tensor, token: Tensor | None = None) -> Any:  # type: ignore[override]
        """[B, h, w, C] -> the same; with a class token [B, 1, C] both.

        The class token takes part in every window; what the windows of an image make of it is averaged.
        """
        windows = to_windows(x, self.window)  # [B n, T, C]
        if token is None:
            return from_windows(super().forward(windows, attn_mask=window_mask(x, self.window)), x, self.window)
        n = windows.shape[0] // x.shape[0]
        windows = torch.cat([token.repeat_interleave(n, 0), windows], dim=1)  # [B n, 1 + T, C]
        windows = super().forward(windows, attn_mask=window_mask(x, self.window, prefix=1))
        token = unflatten(windows[:, :1], 0, (-1, n)).mean(1)  # [B, 1, C]
        return from_windows(windows[:, 1:], x, self.window), token


class Block(nn.Module):
    """Pre-norm transformer block of a plain ViT, on a grid of tokens."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        window: int | None,
        attn_drop: float,
        drop: float,
        drop_path: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = WindowAttention(dim, num_heads, window, attn_drop=attn_drop, proj_drop=drop, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, token: Tensor | None = None) -> Any:
        """[B, h, w, C] -> the same; with a class token [B, 1, C] both."""
        if token is None:
            return self._mlp(x + self.drop_path(self.attn(self.norm1(x))))
        attended, seen = self.attn(self.norm1(x), self.norm1(token))
        return self._mlp(x + self.drop_path(attended)), self._mlp(token + self.drop_path(seen))

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.drop_path(tokenwise(self.mlp, self.norm2(x)))


class HPViT(Backbone):
    """HPViT encoder and classifier, converted from a plain ViT (arXiv 2211.01785).

    Any height and width of at least 32 pixels can be fed: positions are resampled, sides that are no multiple of the
    coarsest cell are padded with zeros inside, feature maps are cropped back to ceil(side / reduction). Masks are not
    supported (there is no ``forward_visible``): convolution and windows look beyond every hidden patch, so the model is
    converted, not pre-trained.

    Args:
        img_size: pixels, one number or (height, width); decides the size of the position table.
        in_chans: channels of the input.
        num_classes: classes of the head, 0 for none.
        global_pool: "avg", "max", "avgmax", or "" to leave the tokens unpooled.
        embed_dim: C, at every level that of the plain ViT.
        depths: blocks of each of one to four stages; together those of the plain ViT.
        num_heads: attention heads.
        mlp_ratio: MLP expansion.
        patch_size: p, side of the patch convolution.
        patch_stride: s, pixels from one token of the first level to the next.
        pool: between the stages: "avg", the mean of 2 x 2 tokens, or "conv", a depthwise convolution that starts as
            this mean.
        window_size: tokens along a side of a window, in stages finer than the plain ViT's own patches (r < p); the
            others attend globally. None or 0: all do (timm's ``create_model`` hands no None on).
        class_token: keep the plain ViT's class token as one more token of every window. Features and head do not use
            it.
        drop_rate: dropout before the head.
        proj_drop_rate: dropout after attention and MLP projections.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth, rising linearly over the blocks.
        dynamic_img_size: False accepts images of ``img_size`` alone.
        strict_img_size: True likewise.
        output_stride: reduction of the last stage, the only one there is.
        device, dtype: of the parameters.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 768,
        depths: Sequence[int] = (1, 1, 9, 1),
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        patch_stride: int = STRIDE,
        pool: str = "avg",
        window_size: int | None = 14,
        class_token: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = True,
        strict_img_size: bool = False,
        output_stride: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        img_size = checked_size(img_size)
        _check_shape(embed_dim, num_heads, depths, patch_size, patch_stride, pool, window_size)
        reductions = [patch_stride * 2**level for level in range(len(depths))]
        if output_stride not in (None, reductions[-1]):
            raise ValueError(f"output_stride={output_stride} is not available, this HPViT has {reductions[-1]}")
        self.set_arguments(
            img_size, in_chans, num_classes, global_pool, embed_dim, fixed=strict_img_size or not dynamic_img_size
        )
        self.depths, self.num_heads, self.mlp_ratio = tuple(depths), num_heads, mlp_ratio
        self.pool, self.window_size, self.class_token = pool, window_size or None, class_token

        self.patch_embed = OverlapEmbed(img_size, reductions[-1], in_chans, embed_dim, patch_size, patch_stride, **dd)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, embed_dim, **dd))
        if class_token:  # with its position: not the plain ViT's ``cls_token``, which has none
            self.cls_embed = nn.Parameter(torch.zeros(1, 1, embed_dim, **dd))
        rates: Any = calculate_drop_path_rates(drop_path_rate, sum(depths))
        of_blocks = (r for r, depth in zip(reductions, depths, strict=True) for _ in range(depth))
        windows = [self.window_size if reduction < patch_size else None for reduction in of_blocks]
        rest = {"attn_drop": attn_drop_rate, "drop": proj_drop_rate, **dd}
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, window, drop_path=rate, **rest)
            for window, rate in zip(windows, rates, strict=True)
        )
        self.stage_ends = tuple(end - 1 for end in accumulate(depths))
        self.pools = nn.ModuleList(_pooling(pool, embed_dim, **dd) for _ in depths[1:])
        self.add_head(drop_rate, **dd)
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": reduction, "module": f"blocks.{end}"}
            for reduction, end in zip(reductions, self.stage_ends, strict=True)
        ]
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """(Re)initialise every parameter, also after a build on the meta device.

        Linear layers truncated normal 0.02 with zero biases, norms 1 and 0, sine-cosine positions, pooling the mean;
        the patch convolution keeps the framework's default.
        """
        for module in self.modules():
            if needs_reset and isinstance(module, (nn.LayerNorm, nn.Conv2d)):
                module.reset_parameters()
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for pool in self.pools:
            if isinstance(pool, nn.Conv2d):
                nn.init.constant_(pool.weight, 1 / 4)
                nn.init.zeros_(pool.bias)  # type: ignore[arg-type]
        if self.class_token:
            nn.init.normal_(self.cls_embed, std=1e-6)  # as timm's plain ViT
        with torch.no_grad():
            self.pos_embed.copy_(sincos_table(self.patch_embed.grid_size, self.embed_dim))

    # ---- what optimisers ask

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the tables that take no weight decay."""
        return {"pos_embed", "cls_embed"} if self.class_token else {"pos_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as in the fine-tuning of the plain ViT: the stem 0, each block one more, a pooling with the block
        before it.
        """
        blocks: list[tuple[str, tuple[int, ...] | None]]
        if coarse:
            first = 0
            blocks = []
            for stage, end in enumerate(self.stage_ends):
                members = "|".join(map(str, range(first, end + 1)))
                blocks.append((rf"^blocks\.(?:{members})\.|^pools\.{stage}\.", (stage,)))
                first = end + 1
        else:
            blocks = [(rf"^pools\.{stage}\.", (end, 99999)) for stage, end in enumerate(self.stage_ends)]
            blocks.append((r"^blocks\.(\d+)\.", None))
        return {"stem": r"^pos_embed|^cls_embed|^patch_embed", "blocks": blocks}

    # ---- what consumers change

    def set_input_size(self, img_size: int | tuple[int, int], patch_size: int | tuple[int, int] | None = None) -> None:
        """Resample positions for good (any size can be fed without this, resampling every time)."""
        own = self.patch_embed.proj.kernel_size
        if patch_size is not None and to_2tuple(patch_size) != own:
            raise ValueError(
                f"patch_size={patch_size} cannot be set, the convolution of this HPViT has {own[0]} pixels"
            )
        old = self.change_size(img_size)
        with torch.no_grad():
            table = resample_positions(self.pos_embed, old, self.patch_embed.grid_size)
            self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the named levels do not need; returns their indices counted from the finest."""
        take, deepest = feature_take_indices(self.levels, indices)
        self.blocks = self.blocks[: self.stage_ends[deepest] + 1]
        self.pools = self.pools[:deepest]
        self.prune_ends(deepest, prune_norm, prune_head)
        return take

    # ---- the forward pass

    def _run(self, images: Tensor, stages: int) -> list[Tensor]:
        """Run the first ``stages``; returns what each of them ends with, [B, h, w, C]."""
        images = pad_to_multiple(images, self.in_chans, self.patch_embed.multiple, MIN_SIDE, self.only_size)
        stride = self.patch_embed.patch_size[0]
        grid = (images.shape[-2] // stride, images.shape[-1] // stride)
        positions = resample_positions(self.pos_embed, self.patch_embed.grid_size, grid)  # [1, N, C]
        x = self.patch_embed(images) + unflatten(positions, 1, grid)  # [B, h, w, C]
        # a copy: without gradients torch's counters of operations stumble over a view of a parameter
        token = self.cls_embed.repeat(x.shape[0], 1, 1) if self.class_token else None  # [B, 1, C]
        levels: list[Tensor] = []
        for i, block in enumerate(self.blocks[: self.stage_ends[stages - 1] + 1]):
            if i - 1 in self.stage_ends:
                x = self.pools[len(levels) - 1](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # [B, h / 2, w / 2, C]
            run = partial(checkpoint, block) if self.grad_checkpointing else block
            if token is None:
                x = run(x)
            else:
                x, token = run(x, token)
            if i in self.stage_ends:
                levels.append(x)
        return levels

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> tokens of the last stage [B, N, C] in raster order, no norm applied."""
        return self._run(x, self.levels)[-1].flatten(1, 2)

    def level_maps(
        self, x: Tensor, take: Sequence[int], count: int, norm: bool, keep: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`Backbone`; there is no ``keep``."""
        levels = self._run(x, count)
        return levels[-1].flatten(1, 2), [self._map(levels[i], x, i, norm) for i in take]

    def _map(self, tokens: Tensor, images: Tensor, level: int, norm: bool) -> Tensor:
        """[B, h, w, C] -> [B, C, ceil(H / r), ceil(W / r)], what was padded cropped away."""
        r = self.patch_embed.patch_size[0] * 2**level
        for axis in (1, 2):
            tokens = cropped(tokens, axis, covering(images.shape[1 + axis], r))
        return (self.fc_norm(tokens) if norm else tokens).permute(0, 3, 1, 2)


def _pooling(pool: str, dim: int, **dd: Any) -> nn.Module:
    """What halves both sides of a grid [B, C, h, w]."""
    return nn.Conv2d(dim, dim, 2, 2, groups=dim, **dd) if pool == "conv" else nn.AvgPool2d(2)


def grid_of(size: Sequence[int], multiple: int, stride: int) -> tuple[int, int]:
    """Tokens along both sides of an image that is padded to a multiple."""
    height, width = (up_to(side, multiple) // stride for side in size)
    return height, width


def _check_shape(
    dim: int, heads: int, depths: Sequence[int], patch: int, stride: int, pool: str, window: int | None
) -> None:
    if dim % 4 or dim % heads:
        raise ValueError(f"embed_dim={dim} must be a multiple of 4 and of num_heads={heads}")
    if not 1 <= len(depths) <= 4 or min(depths) < 1:
        raise ValueError(f"depths={tuple(depths)} must be one to four numbers of blocks, each at least 1")
    if not 1 <= stride <= patch or (patch - stride) % 2:
        raise ValueError(
            f"patch_stride={stride} must be at most patch_size={patch} and differ from it by an even number"
        )
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r} is unknown, use {' or '.join(map(repr, POOLS))}")
    if window is not None and window < 0:
        raise ValueError(f"window_size={window} must be at least 1, or None or 0 for global attention everywhere")
