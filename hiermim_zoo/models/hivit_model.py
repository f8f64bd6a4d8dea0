"""HiViT: a hierarchical vision transformer whose mask units serialise like a plain ViT's (arXiv 2205.14949).

An image is cut into units of 16 x 16 pixels. Inside a unit 4 x 4 tokens pass MLP blocks, are merged to 2 x 2, pass MLP
blocks again and are merged to one token; only then do the units attend to each other. No token sees another unit before
that, so hidden units can be dropped right after the embedding.

Letters: B images; H, W pixels; N = h w units (h = H / 16, w = W / 16) in raster order, K of them visible, n either; s
tokens along a side of a unit (4, 2, 1); c channels of the stage at hand, C of the last one; r pixels under a token.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from torch.nn import functional as F

from ..geometry import covering, sincos_table, to_units, unflatten, up_to
from ..layers.arguments import MIN_SIDE, checked_size
from ..layers.backbone import Backbone
from ..layers.maps import maps_of_units
from ..layers.padding import pad_to_multiple
from ..layers.position import relative_position_bias, relative_position_index, resample_bias_table, resample_positions
from ..masking import check_keep, gather_units
from ..protocol import MaskLayout, Stage, Visible

UNIT = 16  # pixels along a side of a mask unit
STEM = 4  # pixels along a side of a token of the first stage
TABLE = "attn.relative_position_bias_table"

# Their branches depend on shapes: leaves for torch.fx, so that feature extractors built on it can trace the model.
for _leaf in ("unflatten", "pad_to_multiple", "relative_position_index", "resample_bias_table", "resample_positions"):
    torch.fx.wrap(_leaf)


class Halve(nn.MaxPool2d):
    """Max pooling that covers odd sides, too; in arithmetic that exporters take with sides left open."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, ceil(h / 2), ceil(w / 2)]."""
        h, w = x.shape[2], x.shape[3]
        x = F.pad(x, (0, up_to(w, 2) - w, 0, up_to(h, 2) - h), value=float("-inf"))
        return super().forward(x)


class UnitEmbed(nn.Module):
    """Cut an image into units of 4 x 4 tokens (section 3.2)."""

    def __init__(self, img_size: tuple[int, int], in_chans: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.patch_size = (UNIT, UNIT)  # what consumers of plain ViTs read: pixels under a token of the last stage
        self.proj = nn.Conv2d(in_chans, dim, STEM, STEM, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.set_size(img_size)

    def set_size(self, img_size: tuple[int, int]) -> None:
        self.img_size = img_size
        self.grid_size = (covering(img_size[0], UNIT), covering(img_size[1], UNIT))
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.proj(images).permute(0, 2, 3, 1)  # [B, 4h, 4w, c]
        x = to_units(x, (UNIT // STEM, UNIT // STEM))  # [B, N, 4, 4, c]
        return self.norm(x if keep is None else gather_units(x, keep))  # [B, n, 4, 4, c]


class MlpBlock(nn.Module):
    """x + MLP(LN(x)), without attention: the block of the two fine stages."""

    def __init__(self, dim: int, mlp_ratio: float, drop: float, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(x)))


class UnitMerge(nn.Module):
    """Join the 2 x 2 neighbours inside a unit: [B, n, s, s, c] -> [B, n, s / 2, s / 2, 2c]."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=1e-6, **dd)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = unflatten(unflatten(x, 3, (-1, 2)), 2, (-1, 2))  # [B, n, s/2, 2, s/2, 2, c]
        x = x.permute(0, 1, 2, 4, 5, 3, 6)  # the row is the faster of the two: (0, 0), (1, 0), (0, 1), (1, 1)
        return self.reduction(self.norm(x.flatten(4)))  # [B, n, s/2, s/2, 2c]


class UnitAttention(Attention):
    """Multi-head attention over units, with a learned bias for every offset between two units."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int] | None, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, qkv_bias=True, **kwargs)
        self.grid = grid
        if grid is not None:
            dd = {name: kwargs.get(name) for name in ("device", "dtype")}
            rows = (2 * grid[0] - 1) * (2 * grid[1] - 1)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads, **dd))

    def forward(self, x: Tensor, grid: tuple[int, int], index: Tensor | None) -> Tensor:  # type: ignore[override]
        if self.grid is None or index is None:
            return super().forward(x)
        table = resample_bias_table(self.relative_position_bias_table, self.grid, grid)
        return super().forward(x, attn_mask=relative_position_bias(table, index).to(x.dtype))


class AttentionBlock(nn.Module):
    """Pre-norm transformer block of the last stage."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        grid: tuple[int, int] | None,
        attn_drop: float,
        drop: float,
        drop_path: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = UnitAttention(dim, num_heads, grid, attn_drop=attn_drop, proj_drop=drop, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int], index: Tensor | None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid, index))  # [B, n, C]
        return x + self.drop_path(self.mlp(self.norm2(x)))


class HiViT(Backbone):
    """HiViT encoder and classifier (arXiv 2205.14949, section 3; Table 1 for the variants).

    Any height and width of at least 32 pixels can be fed: positions and bias tables are resampled, sides that are no
    multiple of 16 are padded inside, feature maps are cropped back to ceil(side / reduction).

    Args:
        img_size: pixels, one number or (height, width); decides the size of the position and bias tables.
        in_chans: channels of the input.
        num_classes: classes of the head, 0 for none.
        global_pool: "avg", "max", "avgmax", or "" to leave the tokens unpooled.
        embed_dim: C, the width of the last stage; the first two have C / 4 and C / 2.
        depths: of the three stages. The first two hold two MLP blocks for every unit of depth.
        num_heads: attention heads of the last stage.
        stem_mlp_ratio: MLP expansion of the first two stages.
        mlp_ratio: MLP expansion of the last stage.
        rel_pos_bias: learned relative position bias in the last stage (off in the authors' pre-training). The tables
            start at zero, which is the same function as without them.
        feature_taps: where the maps at 1/4 and 1/8 are taken: "stages" (the ends of the stages) or "detectors"
            (half-way through the first stage, and right after the first merge: what the authors' released detection
            code does).
        drop_rate: dropout before the head.
        proj_drop_rate: dropout after attention and MLP projections.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth, rising linearly over the blocks.
        dynamic_img_size: False accepts images of ``img_size`` alone.
        strict_img_size: True likewise.
        output_stride: 32, the only one there is.
        device, dtype: of the parameters.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    masked_levels = 3

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 512,
        depths: Sequence[int] = (2, 2, 20),
        num_heads: int = 8,
        stem_mlp_ratio: float = 3.0,
        mlp_ratio: float = 4.0,
        rel_pos_bias: bool = True,
        feature_taps: str = "stages",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = True,
        strict_img_size: bool = False,
        output_stride: int = 32,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        img_size = checked_size(img_size)
        _check_shape(output_stride, embed_dim, num_heads)
        self.set_arguments(
            img_size, in_chans, num_classes, global_pool, embed_dim, fixed=strict_img_size or not dynamic_img_size
        )
        self.patch_embed = UnitEmbed(img_size, in_chans, embed_dim // 4, **dd)
        grid = self.patch_embed.grid_size
        self.absolute_pos_embed: nn.Parameter | None = nn.Parameter(torch.zeros(1, grid[0] * grid[1], embed_dim, **dd))

        fine = (2 * depths[0], 2 * depths[1])  # blocks of the first two stages
        rates: Any = calculate_drop_path_rates(drop_path_rate, sum(fine) + depths[2])
        self.add_fine_blocks(fine, stem_mlp_ratio, proj_drop_rate, rates[: sum(fine)], **dd)
        self.first_attention = len(self.blocks)
        args = (embed_dim, num_heads, mlp_ratio, grid if rel_pos_bias else None, attn_drop_rate, proj_drop_rate)
        self.blocks.extend(AttentionBlock(*args, drop_path=rate, **dd) for rate in rates[sum(fine) :])
        self.stage_ends = (fine[0] - 1, self.first_attention - 2, len(self.blocks) - 1)
        self.taps = _taps(feature_taps, depths, self.stage_ends)
        self.downsample = Halve(2)  # 1/16 -> 1/32
        self.add_head(drop_rate, **dd)

        dims = (embed_dim // 4, embed_dim // 2, embed_dim, embed_dim)
        modules = (*(f"blocks.{tap}" for tap in self.taps), "downsample")
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**level, "module": module}
            for level, (dim, module) in enumerate(zip(dims, modules, strict=True))
        ]
        self.init_weights(needs_reset=False)

    def add_fine_blocks(
        self, depths: tuple[int, int], mlp_ratio: float, drop: float, rates: Sequence[float], **dd: Any
    ) -> None:
        """The first two stages, each with the merge behind it.

        The list is flat, and a merge takes a slot in it: the names of the published state dicts depend on that.
        """
        self.blocks, rate = nn.ModuleList(), iter(rates)
        for dim, depth in zip((self.embed_dim // 4, self.embed_dim // 2), depths, strict=True):
            self.blocks.extend(MlpBlock(dim, mlp_ratio, drop, next(rate), **dd) for _ in range(depth))
            self.blocks.append(UnitMerge(dim, **dd))

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """(Re)initialise every parameter, also after a build on the meta device.

        Linear layers truncated normal 0.02 with zero biases, norms 1 and 0, sine-cosine positions, bias tables zero;
        the convolution keeps the framework's default.
        """
        for module in self.modules():
            if needs_reset and isinstance(module, (nn.LayerNorm, nn.Conv2d)):
                module.reset_parameters()
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, UnitAttention) and module.grid is not None:
                nn.init.zeros_(module.relative_position_bias_table)
        if self.absolute_pos_embed is not None:
            with torch.no_grad():
                self.absolute_pos_embed.copy_(sincos_table(self.patch_embed.grid_size, self.embed_dim))

    # ---- what optimisers ask

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the tables that take no weight decay (self-supervised fine-tuning recipe)."""
        return {name for name, _ in self.named_parameters() if name == "absolute_pos_embed" or name.endswith(TABLE)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as the authors' fine-tuning counts them: the stem 0, each block one more, a merge with the block
        before it.
        """
        first_merge, second_merge = self.stage_ends[0] + 1, self.stage_ends[1] + 1
        blocks: list[tuple[str, tuple[int, ...] | None]]
        if coarse:
            stages = (range(first_merge), range(first_merge, second_merge), range(second_merge, len(self.blocks)))
            blocks = [
                (rf"^blocks\.(?:{'|'.join(map(str, members))})\.", (stage,)) for stage, members in enumerate(stages)
            ]
        else:
            blocks = [(rf"^blocks\.({first_merge}|{second_merge})\.", (99999,)), (r"^blocks\.(\d+)\.", None)]
        return {"stem": r"^absolute_pos_embed|^patch_embed", "blocks": blocks}

    # ---- what consumers change

    def set_input_size(self, img_size: int | tuple[int, int], patch_size: int | tuple[int, int] | None = None) -> None:
        """Resample positions and bias tables for good (any size can be fed without this, resampling every time)."""
        if patch_size is not None and to_2tuple(patch_size) != (UNIT, UNIT):
            raise ValueError(f"patch_size={patch_size} cannot be set, a HiViT unit has {UNIT} pixels")
        old = self.change_size(img_size)
        grid = self.patch_embed.grid_size
        with torch.no_grad():
            if self.absolute_pos_embed is not None:
                table = resample_positions(self.absolute_pos_embed, old, grid)
                self.absolute_pos_embed = nn.Parameter(table, requires_grad=self.absolute_pos_embed.requires_grad)
            for module in self.modules():
                if isinstance(module, UnitAttention) and module.grid is not None:
                    table = module.relative_position_bias_table
                    module.relative_position_bias_table = nn.Parameter(
                        resample_bias_table(table, module.grid, grid).contiguous(), requires_grad=table.requires_grad
                    )
                    module.grid = grid

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the named levels do not need; returns their indices counted from the finest."""
        take, deepest = feature_take_indices(self.levels, indices)
        last = self.taps[min(deepest, 2)]
        self.blocks = self.blocks[: last + 1]
        if last < self.first_attention:
            self.absolute_pos_embed = None
        self.prune_ends(deepest, prune_norm, prune_head)
        return take

    # ---- the forward pass

    @property
    def mask_layout(self) -> MaskLayout:
        """Units of 16 x 16 pixels and the three levels inside them, for inputs of the configured size."""
        c = self.embed_dim
        stages = (Stage((4, 4), c // 4), Stage((2, 2), c // 2), Stage((1, 1), c))
        return MaskLayout(units=self.patch_embed.grid_size, stages=stages, stride=(UNIT, UNIT))

    def _run(self, images: Tensor, taps: Sequence[int], keep: Tensor | None = None) -> list[Tensor]:
        """Run up to the last of ``taps`` (block indices); returns [B, n, s, s, c] for each of them."""
        images = pad_to_multiple(images, self.in_chans, UNIT, MIN_SIDE, self.only_size)
        grid = (images.shape[-2] // UNIT, images.shape[-1] // UNIT)
        if keep is not None:
            check_keep(keep, images.shape[0], grid[0] * grid[1])
        x = self.patch_embed(images, keep)  # [B, n, 4, 4, c]
        index, levels = None, []
        for i, block in enumerate(self.blocks[: max(taps) + 1]):
            args: tuple[Any, ...] = ()
            if i == self.first_attention:
                x = x.flatten(1, 3) + self._position(grid, keep)  # [B, n, C]
                index = self._bias_index(grid, keep, x)
            if i >= self.first_attention:
                args = (grid, index)
            x = checkpoint(block, x, *args) if self.grad_checkpointing else block(x, *args)
            if i in taps:
                levels.append(x if i < self.first_attention else x[:, :, None, None])
        return levels

    def _position(self, grid: tuple[int, int], keep: Tensor | None) -> Tensor:
        table: Any = self.absolute_pos_embed
        table = resample_positions(table, self.patch_embed.grid_size, grid)  # [1, N, C]
        return table if keep is None else gather_units(table, keep)  # [1 or B, n, C]

    def _bias_index(self, grid: tuple[int, int], keep: Tensor | None, x: Tensor) -> Tensor | None:
        block: Any = self.blocks[self.first_attention]
        if block.attn.grid is None:
            return None
        index = relative_position_index(grid, x.device)  # [N, N]
        return index[None] if keep is None else index[keep[:, :, None], keep[:, None, :]]  # [1 or B, n, n]

    def forward_visible(self, images: Tensor, keep: Tensor) -> Visible:
        """Encode the visible units alone (section 3.3); see :class:`hiermim_zoo.protocol.MaskableEncoder`."""
        return Visible(prefix=None, stages=tuple(self._run(images, self.stage_ends, keep)))

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> tokens of the last stage [B, N, C] in raster order, no norm applied."""
        if self.levels < 3:  # blocks in units of several tokens are the last
            return self.level_maps(x, (self.levels - 1,), self.levels, norm=False, keep=None)[1][0].flatten(2).mT
        return self._run(x, self.stage_ends[2:])[0].flatten(1, 3)

    def level_maps(
        self, x: Tensor, take: Sequence[int], count: int, norm: bool, keep: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`Backbone`. The level 1/32 pools over units: it does not exist of visible ones."""
        taken = self._run(x, sorted({*self.taps[:count]}), keep)
        features = taken[-1].flatten(1, 3)
        if norm:
            taken = [self.fc_norm(t) if t.shape[-1] == self.embed_dim else t for t in taken]
        if keep is None:
            maps = maps_of_units(taken, x.shape[-2:], (UNIT, UNIT))
            maps += [self.downsample(maps[-1])] if count > len(maps) else []
        else:
            maps = [level.permute(0, 1, 4, 2, 3) for level in taken]  # [B, K, c, s, s]
        return features, [maps[i] for i in take]


def _check_shape(output_stride: int, dim: int, heads: int) -> None:
    if output_stride != 32:
        raise ValueError(f"output_stride={output_stride} is not available, HiViT has 32")
    if dim % 4 or dim % heads:
        raise ValueError(f"embed_dim={dim} must be a multiple of 4 and of num_heads={heads}")


def _taps(name: str, depths: Sequence[int], ends: tuple[int, int, int]) -> tuple[int, int, int]:
    if name == "stages":
        return ends
    if name != "detectors":
        raise ValueError(f"feature_taps={name!r} is unknown, use 'stages' or 'detectors'")
    if depths[0] != depths[1]:
        raise ValueError(f"feature_taps='detectors' needs two fine stages of one depth, got depths={tuple(depths)}")
    return depths[0] - 1, depths[0] + depths[1], ends[2]
