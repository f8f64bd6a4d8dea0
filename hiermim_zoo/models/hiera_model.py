"""Hiera: a hierarchical vision transformer without bells and whistles, for images and video (arXiv 2306.00989).

An image is cut into mask units of 32 x 32 pixels (a clip into units of 2 frames x 32 x 32 pixels), a unit into 8 x 8
tokens. In the first two stages tokens attend inside their unit, later to all; from stage to stage 2 x 2 tokens become
one, because the queries of the first block of a stage are max-pooled.

Tokens stand unit by unit, and in each unit in *pooling order*: those that the first pooling brings together are a
quarter of the unit apart, those of the second a sixteenth, and so on. Every window of attention, every pooling and the
sequence of all tokens are then views of one tensor, and hidden units are left out by one gather before the first block.

Letters: B inputs; D axes (2: rows and columns, 3: frames before them); N units in raster order, n of them seen (all, or
the K visible ones); T tokens of a unit in pooling order, t of them after pooling; s_i tokens of a unit along axis i; c
channels of the stage at hand, C of the last one; h heads; g_i tokens along axis i of the whole input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.fx
from timm.layers import calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..geometry import from_units, to_units, unflatten
from ..layers.arguments import MIN_SIDE, checked_size
from ..layers.backbone import Backbone
from ..layers.maps import maps_of_units
from ..layers.padding import pad_to_multiple
from ..masking import check_keep, gather_units
from ..protocol import MaskLayout, Stage, Visible
from .hiera_parts import (
    POOL,
    POOLINGS,
    SIDE,
    STRIDE,
    UNIT,
    Block,
    HaloEmbed,
    from_pooling_order,
    resize_frames,
    resize_table,
    to_pooling_order,
)

POSITIONS = ("pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_window")
RESIZE = ("plain", "window")

# Their branches depend on shapes: leaves for torch.fx, so that feature extractors built on it can trace the model.
for _leaf in ("unflatten", "from_units", "pad_to_multiple", "check_pairs", "resize_table", "resize_frames"):
    torch.fx.wrap(_leaf)


# ---- the model


class Hiera(Backbone):
    """Hiera encoder and classifier of images or clips (arXiv 2306.00989, section 3; Table 2 for the variants).

    Any height and width of at least 32 pixels can be fed, and any even number of frames: positions are resampled, sides
    that are no multiple of 32 are padded inside, feature maps are cropped back to ceil(side / reduction).

    Args:
        img_size: pixels, one number or (height, width); decides the size of the position table.
        num_frames: of a clip; decides the size of the table in time. None: a model of images.
        in_chans: channels of the input.
        num_classes: classes of the head, 0 for none.
        global_pool: "avg", "max", "avgmax", or "" to leave the tokens unpooled.
        embed_dim: width of the first stage; each stage doubles it.
        depths: blocks of each of the four stages.
        num_heads: attention heads of the first stage; each stage doubles them.
        mlp_ratio: MLP expansion.
        q_pool: how many of the stages behind the first begin with pooling: 3 in a classifier, 2 in masked pre-training,
            whose last stage stays at 1/16. No parameter depends on it.
        pos_resize: how positions are resampled for another size: "plain", or "window", which keeps what repeats in
            every unit (arXiv 2311.05613; :func:`resize_table`).
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

    pos_embed: Any
    pos_embed_spatial: Any
    masked_levels = 4

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        num_frames: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 3, 16, 3),
        num_heads: int = 1,
        mlp_ratio: float = 4.0,
        q_pool: int = 3,
        pos_resize: str = "plain",
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
        _check_shape(num_frames, embed_dim, num_heads, depths, q_pool, pos_resize)
        reductions = [STRIDE[-1] * 2 ** min(stage, q_pool) for stage in range(len(depths))]
        if output_stride not in (None, reductions[-1]):
            raise ValueError(f"output_stride={output_stride} is not available, this Hiera has {reductions[-1]}")
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        self.set_arguments(
            img_size, in_chans, num_classes, global_pool, widths[-1], fixed=strict_img_size or not dynamic_img_size
        )
        self.axes = 2 if num_frames is None else 3
        self.multiples = (STRIDE[0], 1, 1)[-self.axes :]
        self.num_frames, self.widths, self.q_pool, self.pos_resize = num_frames, widths, q_pool, pos_resize
        self.cells = tuple(u // s for u, s in zip(UNIT, STRIDE, strict=True))[-self.axes :]  # tokens of a unit
        self.pools = POOL[-self.axes :]

        self.patch_embed = HaloEmbed(img_size, self.axes, in_chans, embed_dim, **dd)
        self.add_positions(embed_dim, **dd)
        rates = calculate_drop_path_rates(drop_path_rate, sum(depths))
        rest = {"mlp_ratio": mlp_ratio, "attn_drop": attn_drop_rate, "drop": proj_drop_rate, **dd}
        self.add_blocks(depths, num_heads, rates, **rest)
        self.add_head(drop_rate, **dd)
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": f"blocks.{end}"}
            for width, reduction, end in zip(widths, reductions, self.stage_ends, strict=True)
        ]
        self.init_weights(needs_reset=False)

    def add_positions(self, dim: int, **dd: Any) -> None:
        """A row for each token of an image, or for each in space and each in time."""
        space = "pos_embed" if self.num_frames is None else "pos_embed_spatial"
        rows = self.patch_embed.num_patches * SIDE**2
        self.register_parameter(space, nn.Parameter(torch.zeros(1, rows, dim, **dd)))
        if self.num_frames is not None:
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.num_frames // STRIDE[0], dim, **dd))

    def add_blocks(self, depths: Sequence[int], num_heads: int, drop_path_rates: Any, **rest: Any) -> None:
        """All stages; the first block of one widens and, up to ``q_pool`` times, pools."""
        self.blocks, rates = nn.ModuleList(), iter(drop_path_rates)
        for stage, depth in enumerate(depths):
            for i in range(depth):
                # The stage of the block before: pooling joins the two, and windows lag behind.
                before = max(stage - (i == 0), 0)
                pool = math.prod(POOL) if before < stage <= self.q_pool else 1
                heads, local = num_heads * 2**stage, before < 2
                args = {"pool": pool, "local": local, "drop_path": next(rates), **rest}
                self.blocks.append(Block(self.widths[before], self.widths[stage], heads, **args))
        self.stage_ends = tuple(end - 1 for end in accumulate(depths))

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """(Re)initialise every parameter, also after a build on the meta device.

        Linear layers and the convolution truncated normal 0.02, biases of linear layers and norms 0.02, the classifier
        a thousandth of that, positions truncated normal 0.02; the convolution's bias keeps the framework's default.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)) and needs_reset:
                module.reset_parameters()
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
                trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                nn.init.constant_(module.bias, 0.02)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(0.001)
        self.init_positions()

    def init_positions(self) -> None:
        for name in sorted(self.no_weight_decay()):  # a set, whose order differs from process to process
            trunc_normal_(self.get_parameter(name), std=0.02)

    # ---- what optimisers ask

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the tables that take no weight decay."""
        return {name for name, _ in self.named_parameters(recurse=False) if name in POSITIONS}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers: the stem 0, each block one more; ``coarse``: each stage."""
        blocks: list[tuple[str, tuple[int, ...] | None]] = [(r"^blocks\.(\d+)\.", None)]
        if coarse:
            starts = [0, *(end + 1 for end in self.stage_ends)]
            members = ["|".join(map(str, range(a, b))) for a, b in pairwise(starts)]
            blocks = [(rf"^blocks\.(?:{names})\.", (stage,)) for stage, names in enumerate(members)]
        return {"stem": r"^pos_embed|^patch_embed", "blocks": blocks}

    # ---- what consumers change

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        num_frames: int | None = None,
    ) -> None:
        """Resample positions for good (any size can be fed without this, resampling every time)."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_embed.patch_size:
            raise ValueError(f"patch_size={patch_size} cannot be set, a unit of Hiera has {UNIT[-1]} pixels")
        if num_frames is not None:
            if self.num_frames is None:
                raise ValueError(f"num_frames={num_frames} cannot be set, this is a model of images")
            check_pairs(num_frames, "num_frames={} does not fit")
            self._set_table("pos_embed_temporal", resize_frames(self.pos_embed_temporal, num_frames // STRIDE[0]))
            self.num_frames = num_frames
            self._traits = {
                **getattr(self, "_traits", {}),
                "num_frames": num_frames,
            }  # what timm writes into config.json
        if img_size is not None:
            old = self.change_size(img_size)
            name = "pos_embed" if self.num_frames is None else "pos_embed_spatial"
            self._set_table(
                name, resize_table(self.get_parameter(name), old, self.patch_embed.grid_size, self.pos_resize)
            )

    def _set_table(self, name: str, table: Tensor) -> None:
        setattr(self, name, nn.Parameter(table.detach().clone(), requires_grad=self.get_parameter(name).requires_grad))

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the named levels do not need; returns their indices counted from the finest."""
        take, deepest = feature_take_indices(self.levels, indices)
        self.blocks = self.blocks[: self.stage_ends[deepest] + 1]
        self.prune_ends(deepest, prune_norm, prune_head)
        return take

    # ---- the forward pass

    @property
    def mask_layout(self) -> MaskLayout:
        """Units, and the levels in them that fusion takes: the first two and the last (appendix A of the paper)."""
        units = self.patch_embed.grid_size
        if self.num_frames is not None:
            units = (self.num_frames // UNIT[0], *units)
        stages = tuple(Stage(self._tokens_of(stage), self.widths[stage]) for stage in self.handed_on)
        stride = tuple(u // t for u, t in zip(self.patch_embed.unit, stages[-1].tokens, strict=True))
        return MaskLayout(units=units, stages=stages, stride=stride)

    @property
    def handed_on(self) -> tuple[int, ...]:
        """Stages whose tokens an autoencoder gets."""
        return (0, 1, len(self.stage_ends) - 1)

    def _tokens_of(self, stage: int) -> tuple[int, ...]:
        """Tokens of a unit along each axis, at the end of a stage."""
        times = min(stage, self.q_pool)
        return tuple(cells // pool**times for cells, pool in zip(self.cells, self.pools, strict=True))

    def _embed(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens with their positions in pooling order [B, n, T, c], and the units along each axis."""
        images = pad_to_multiple(images, self.in_chans, UNIT[-1], MIN_SIDE, self.only_size, axes=self.axes)
        if self.num_frames is not None:
            check_pairs(images.shape[2], "clip of {} frames does not fit")
        grid = tuple(images.shape[2 + axis] // unit for axis, unit in enumerate(self.patch_embed.unit))
        if keep is not None:
            check_keep(keep, images.shape[0], math.prod(grid))
        positions = to_units(self._positions(grid), self.cells)  # [1, N, s_1, ..., s_D, c]
        if keep is not None:
            positions = gather_units(positions, keep)
        return to_pooling_order(self.patch_embed(images, keep) + positions, self.pools, POOLINGS), grid

    def _run(self, images: Tensor, stages: int, keep: Tensor | None = None) -> tuple[list[Tensor], tuple[int, ...]]:
        """Run the first ``stages``; returns what each of them ends with, [B, n, T, c], and the units along each
        axis.
        """
        x, grid = self._embed(images, keep)
        levels = []
        for i, block in enumerate(self.blocks[: self.stage_ends[stages - 1] + 1]):
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            if i in self.stage_ends:
                levels.append(x)
        return levels, grid

    def _positions(self, grid: tuple[int, ...]) -> Tensor:
        """[1, g_1, ..., g_D, c]."""
        spatial = self.pos_embed if self.num_frames is None else self.pos_embed_spatial
        units = (grid[-2], grid[-1])  # along rows and columns
        table = resize_table(spatial, self.patch_embed.grid_size, units, self.pos_resize)  # [1, g_2 g_3, c]
        table = unflatten(table, 1, [side * SIDE for side in units])
        if self.num_frames is not None:
            times = resize_frames(self.pos_embed_temporal, grid[0])  # a unit is one token long in time
            table = table[:, None] + times[:, :, None, None]  # [1, g_1, g_2, g_3, c]
        return table

    def _in_place(self, x: Tensor, stage: int) -> Tensor:
        """[B, n, T, c] at the end of a stage -> [B, n, s_1, ..., s_D, c]."""
        return from_pooling_order(x, self.pools, POOLINGS - min(stage, self.q_pool))

    def forward_visible(self, images: Tensor, keep: Tensor) -> Visible:
        """Encode the visible units alone; see :class:`hiermim_zoo.protocol.MaskableEncoder`."""
        return self._visible(self._run(images, len(self.stage_ends), keep)[0])

    def _visible(self, levels: Sequence[Tensor]) -> Visible:
        """What an autoencoder gets of what the stages end with."""
        return Visible(prefix=None, stages=tuple(self._in_place(levels[stage], stage) for stage in self.handed_on))

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, C, H, W] or [B, C, T, H, W] -> tokens of the last stage [B, N, C] in raster order, no norm applied."""
        levels, grid = self._run(x, self.levels)
        return from_units(self._in_place(levels[-1], self.levels - 1), grid).flatten(1, -2)

    def level_maps(
        self, x: Tensor, take: Sequence[int], count: int, norm: bool, keep: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`Backbone`."""
        levels, grid = self._run(x, count, keep)
        levels = [self._in_place(level, stage) for stage, level in enumerate(levels)]  # [B, n, s_1, ..., s_D, c]
        features = (levels[-1] if keep is not None else from_units(levels[-1], grid)).flatten(1, -2)
        if norm:
            levels = [self.fc_norm(level) if level.shape[-1] == self.embed_dim else level for level in levels]
        taken = [levels[i] for i in take]
        if keep is not None:
            return features, [level.movedim(-1, 2) for level in taken]  # [B, K, c, s_1, ..., s_D]
        return features, maps_of_units(taken, x.shape[2:], self.patch_embed.unit)


def check_pairs(frames: int, what: str) -> None:
    """Refuse a number of frames that cannot be taken in pairs."""
    if frames < UNIT[0] or frames % UNIT[0]:
        raise ValueError(f"{what.format(frames)}: frames are taken in pairs, there must be 2, 4, 6, ... of them")


def _check_shape(
    num_frames: int | None, embed_dim: int, num_heads: int, depths: Sequence[int], q_pool: int, pos_resize: str
) -> None:
    if num_frames is not None:
        check_pairs(num_frames, "num_frames={} does not fit")
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim={embed_dim} must be a multiple of num_heads={num_heads}")
    if len(depths) != POOLINGS + 1 or min(depths) < 1:
        raise ValueError(f"depths={tuple(depths)} must be {POOLINGS + 1} numbers of blocks, each at least 1")
    if not 0 <= q_pool <= POOLINGS:
        raise ValueError(f"q_pool={q_pool} must be from 0 to {POOLINGS}")
    if pos_resize not in RESIZE:
        raise ValueError(f"pos_resize={pos_resize!r} is unknown, use {' or '.join(map(repr, RESIZE))}")
