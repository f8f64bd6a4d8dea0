"""The image encoder of SAM 2 (arXiv 2408.00714): a Hiera whose later stages attend inside windows, and can be masked.

What differs from Hiera: in the third and fourth stage tokens attend inside windows of several mask units, but for a few
blocks that see everything; positions are a coarse table resampled to the tokens of the image, plus one of a unit that
is tiled over them (arXiv 2311.05613). The first block of a stage still has the windows of the stage before, which in
the third stage are units, and in the fourth the windows that it has itself.

Windows are made of whole units. Of a whole image they are views of the tokens, or filled up with empty units where they
do not divide it. Visible units are put into groups by the plans of layers/groups.py, one "token" a unit; the first two
stages, and blocks that see everything, need no plan.

Letters: as in hiera_model.py; h, w units of the input along rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.fx
from timm.models import checkpoint
from torch import Tensor, nn

from ..geometry import cubic_weights
from ..layers.groups import Geometry, Plans, check_method, make_plans, plan_ahead, ready_plans
from ..layers.position import resample_grid
from ..layers.unit_attention import UnitGroups, from_window_order, plan_groups, to_window_order, window_groups
from ..protocol import Visible
from .hiera_model import Hiera
from .hiera_parts import POOLINGS, SIDE

# Their branches depend on shapes: leaves for torch.fx.
for _leaf in ("tiled_positions", "window_groups", "to_window_order", "from_window_order"):
    torch.fx.wrap(_leaf)

LOCAL = 2  # stages whose windows are units


class HieraSam2(Hiera):
    """Image encoder of SAM 2 and 2.1, with this package's classifier.

    Any height and width of at least 32 pixels can be fed; sides that are no multiple of 32 are padded inside, and
    feature maps are cropped back to ceil(side / reduction). The masked pass is that of whole images with all units
    visible wherever windows divide the grid of units; elsewhere whole images have empty units in their windows, which
    are attended to, and the masked pass has none.

    Args:
        img_size: pixels, one number or (height, width); no table depends on it.
        window_spec: tokens along a side of a window, for each of the four stages. Those of the first two are units (8,
            4), and those of the last two windows of the same units (14, 7).
        global_att_blocks: blocks that attend to everything, counted from 0, none of the first two stages.
        global_pos_size: rows and columns of the coarse table of positions.
        plan_method: how windows of visible units are grouped, see make_plans; None: what suits the device.
        q_pool: as of Hiera. In masked pre-training 2, and then the windows of the last stage keep their units, with
            four tokens each.
        **kwargs: all others of :class:`hiermim_zoo.models.hiera_model.Hiera`, but those of clips and ``pos_resize``.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    pos_embed_window: Any

    def __init__(
        self,
        img_size: int | tuple[int, int] = 896,
        embed_dim: int = 96,
        depths: Sequence[int] = (1, 2, 7, 2),
        window_spec: Sequence[int] = (8, 4, 14, 7),
        global_att_blocks: Sequence[int] = (5, 7, 9),
        global_pos_size: tuple[int, int] = (7, 7),
        plan_method: str | None = None,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        for name in ("num_frames", "pos_resize"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name}={kwargs[name]!r} does not fit: this is a Hiera of images, whose positions are tiled"
                )
        super().__init__(img_size, embed_dim=embed_dim, depths=depths, device=device, dtype=dtype, **kwargs)
        self.window = _checked_window(window_spec)
        if not _whole(global_pos_size) or len(global_pos_size) != 2 or min(global_pos_size) < 1:
            raise ValueError(f"global_pos_size={global_pos_size!r} must be rows and columns, as in (7, 7)")
        self.window_spec, self.global_pos_size = tuple(window_spec), tuple(global_pos_size)
        self.global_att_blocks = _checked_blocks(global_att_blocks, self.stage_ends)
        if check_method(plan_method, "plan_method") == "flex":
            raise ValueError("plan_method='flex' moves single tokens, and here units move as a whole: use 'sort'")
        self.plan_method = plan_method
        dd = {"device": device, "dtype": dtype}
        self.pos_embed = nn.Parameter(torch.zeros(1, embed_dim, *global_pos_size, **dd))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, embed_dim, SIDE, SIDE, **dd))
        self.init_positions()

    def add_positions(self, dim: int, **dd: Any) -> None:
        """None of Hiera's: they follow when their sizes are known."""

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        num_frames: int | None = None,
    ) -> None:
        """Be configured for images of another size. No table changes: positions are resampled at any size."""
        super().set_input_size(None, patch_size, num_frames)
        if img_size is not None:
            self.change_size(img_size)

    def windowed(self, block: int) -> bool:
        """Whether a block, counted from 0, attends inside windows of several units."""
        return block > self.stage_ends[LOCAL - 1] + 1 and block not in self.global_att_blocks

    def _positions(self, grid: tuple[int, ...]) -> Tensor:
        """[1, 8 h, 8 w, c]."""
        return tiled_positions(self.pos_embed, self.pos_embed_window, grid)

    # ---- plans of the masked pass

    def geometries(self, units: tuple[int, int]) -> Iterator[Geometry]:
        """The windows of images of so many rows and columns of units: one kind, or none where one window holds all."""
        if max(units) > self.window:
            yield Geometry(units, 1, (self.window, self.window), together=(SIDE // 2**LOCAL) ** 2)

    @property
    def planner(self) -> Callable[[Tensor], Plans]:
        """See :class:`hiermim_zoo.protocol.PlanningEncoder`; for inputs of the configured size."""
        geometries = tuple(self.geometries(self.patch_embed.grid_size))
        return partial(plan_ahead, geometries=geometries, method=self.plan_method)

    def plan(self, keep: Tensor) -> Plans:
        """See :class:`hiermim_zoo.protocol.PlanningEncoder`; for inputs of the configured size."""
        return make_plans(keep, self.geometries(self.patch_embed.grid_size), self.plan_method)

    def forward_visible(self, images: Tensor, keep: Tensor, plans: Plans | None = None) -> Visible:
        """Encode the visible units alone; see :class:`hiermim_zoo.protocol.PlanningEncoder`.

        Args:
            images: [B, C, H, W].
            keep: int64 [B, K].
            plans: of the planner, or of ``make_plans(keep, geometries(units))`` for images of another size.
        """
        return self._visible(self._run(images, len(self.stage_ends), keep, plans)[0])

    # ---- the forward pass

    def _run(
        self, images: Tensor, stages: int, keep: Tensor | None = None, plans: Plans | None = None
    ) -> tuple[list[Tensor], tuple[int, ...]]:
        """As Hiera's: what each stage ends with, [B, n, T, c], units in raster order."""
        x, units = self._embed(images, keep)
        grid = (units[0], units[1])
        groups = window_groups(grid, self.window, x.device) if keep is None else self._visible_groups(grid, keep, plans)
        ordered = keep is None
        levels: list[Tensor] = []
        for i, block in enumerate(self.blocks[: self.stage_ends[stages - 1] + 1]):
            if ordered and i == self.stage_ends[LOCAL - 1] + 1:
                x = to_window_order(x, grid, self.window)
            args = (x, groups) if self.windowed(i) else (x,)
            x = checkpoint(block, *args) if self.grad_checkpointing else block(*args)
            if i in self.stage_ends:
                levels.append(from_window_order(x, grid, self.window) if ordered and len(levels) >= LOCAL else x)
        return levels, grid

    def _visible_groups(self, grid: tuple[int, int], keep: Tensor, plans: Plans | None) -> UnitGroups | None:
        """The visible units that see each other; None for all of an input."""
        geometries = list(self.geometries(grid))
        plans = (
            make_plans(keep, geometries, self.plan_method) if plans is None else ready_plans(plans, geometries, keep)
        )
        return plan_groups(plans[geometries[0]]) if geometries else None


def tiled_positions(coarse: Tensor, unit: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Positions of all tokens (arXiv 2311.05613): a coarse table resampled to them, bicubic, and one of a unit tiled.

    Args:
        coarse: [1, c, h_0, w_0].
        unit: [1, c, 8, 8].
        grid: units along rows and columns (h, w).

    Returns:
        [1, 8 h, 8 w, c].
    """
    tokens = [units * SIDE for units in grid]
    resampled = resample_grid(coarse[0].permute(1, 2, 0), tokens, cubic_weights)  # [8 h, 8 w, c]
    return resampled[None] + unit.permute(0, 2, 3, 1).repeat(1, *grid, 1)


def _checked_window(spec: Any) -> int:
    """Units along a side of the windows of the last two stages."""
    if not _whole(spec):
        raise ValueError(f"window_spec={spec!r} must be four whole numbers, as in (8, 4, 14, 7)")
    units = [SIDE >> stage for stage in range(POOLINGS + 1)]  # tokens of a unit: 8, 4, 2, 1
    if len(spec) != len(units) or tuple(spec[:LOCAL]) != tuple(units[:LOCAL]):
        raise ValueError(
            f"window_spec={tuple(spec)} must be four numbers that begin with 8, 4: units of 32 x 32 pixels"
        )
    if spec[2] < 2 or spec[2] != 2 * spec[3]:
        raise ValueError(
            f"window_spec={tuple(spec)}: the windows of the last two stages must hold the same units, as in 14, 7"
        )
    return spec[3]


def _whole(numbers: Any) -> bool:
    """Whether these are whole numbers in a row."""
    return isinstance(numbers, Sequence) and all(type(number) is int for number in numbers)


def _checked_blocks(blocks: Any, stage_ends: Sequence[int]) -> tuple[int, ...]:
    first, last = stage_ends[LOCAL - 1] + 2, stage_ends[-1]
    if not _whole(blocks):
        raise ValueError(f"global_att_blocks={blocks!r} must be the numbers of blocks, from {first} to {last}")
    for block in blocks:
        if not first <= block <= last:
            raise ValueError(
                f"global_att_blocks={tuple(blocks)}: block {block} cannot attend to everything, "
                f"blocks {first} to {last} can"
            )
    return tuple(blocks)
