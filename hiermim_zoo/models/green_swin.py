"""Swin that can look at visible patches alone: timm's SwinTransformer with the protocol added (GreenMIM, arXiv
2205.13515).

Unmasked it is timm's model: same parameters, same names, same numbers to the last bit. Masked, a unit of 32 x 32 pixels
is a cell of the last stage, so at every stage it is hidden or shown as a whole; patch embedding and merging stay inside
units, window attention runs in groups (layers/groups.py), and there are no absolute positions.

Where windows do not divide a stage's grid, timm pads it with zeros that are attended to. The masked pass has no such
padding: hidden tokens and those beyond the edge are equally absent.

Letters: B images; H, W pixels; K visible units; t tokens along a side of one; N = K t t visible tokens; C channels of a
stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.fx
from timm.layers import to_2tuple
from timm.models import checkpoint
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..geometry import up_to
from ..layers.group_attention import Band, group_attention, pair_rows
from ..layers.groups import Geometry, Plan, Plans, check_encoder_method, make_plans, plan_ahead, ready_plans
from ..layers.padding import check_images
from ..layers.scripting import Scriptable
from ..layers.sparse import patch_conv, unit_grid, visible_pixels
from ..layers.tokens import tokenwise
from ..layers.windows import from_windows, shift_mask, to_windows
from ..masking import check_keep
from ..protocol import MaskLayout, Stage, Visible

# What these do depends on shapes.
for _leaf in ("check_images", "shift_mask", "to_windows", "from_windows", "tokenwise"):
    torch.fx.wrap(_leaf)


class GreenSwinBlock(SwinTransformerBlock):
    """timm's block, which can be given visible tokens and their plan."""

    def forward(self, x: Tensor, plan: Plan | None = None, pairs: Tensor | Band | None = None) -> Tensor:
        """Attention inside windows and MLP.

        Args:
            x: [B, h, w, C]; with a plan, visible tokens [B, N, C].
            plan: of these tokens.
            pairs: of :func:`pair_rows`; blocks of one geometry share it.

        Returns:
            Like ``x``.
        """
        if plan is None or pairs is None:
            out: Tensor = super().forward(x)
            return out
        attn: Any = self.attn
        dropout = attn.attn_drop.p if attn.training else 0.0
        qkv, table = attn.qkv(self.norm1(x)), attn.relative_position_bias_table
        attended = group_attention(qkv, plan, attn.num_heads, pairs, table, dropout)
        x = x + self.drop_path1(attn.proj_drop(attn.proj(attended)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attn(self, x: Tensor) -> Tensor:
        """timm's attention inside windows, [B, h, w, C] -> the same, in arithmetic that exporters take with sides left
        open.
        """
        x = torch.roll(x, (-self.shift_size[0], -self.shift_size[1]), (1, 2)) if any(self.shift_size) else x
        mask = self.get_attn_mask(x) if self.dynamic_mask else self.attn_mask
        x = from_windows(self.attn(to_windows(x, self.window_size), mask=mask), x, self.window_size)
        return torch.roll(x, self.shift_size, (1, 2)) if any(self.shift_size) else x

    def get_attn_mask(
        self, x: Tensor | None = None, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor | None:
        """timm's, for any size computed without writing into a tensor, which torch.fx cannot trace."""
        if x is None or not any(self.shift_size):
            timms: Tensor | None = super().get_attn_mask(x, device, dtype)
            return timms
        return shift_mask(x, self.window_size, self.shift_size)


class Merging(PatchMerging):
    """timm's, in arithmetic that exporters take with sides left open."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> [B, h / 2, w / 2, C'], sides rounded up."""
        h, w = x.shape[1], x.shape[2]
        rows, columns = up_to(h, 2), up_to(w, 2)
        x = F.pad(x, (0, 0, 0, columns - w, 0, rows - h))
        x = x.reshape(x.shape[0], rows // 2, 2, columns // 2, 2, x.shape[3]).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return tokenwise(self.reduction, self.norm(x))


class Checked(Scriptable):
    """timm's forward passes, of images that are checked."""

    def forward_features(self, x: Tensor) -> Any:
        """See timm's model."""
        base: Any = super()
        return base.forward_features(check_images(x, self.in_chans))

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """See timm's model."""
        base: Any = super()
        return base.forward_intermediates(check_images(x, self.in_chans), *args, **kwargs)


class GreenSwin(Checked, SwinTransformer):
    """timm's SwinTransformer, maskable.

    Args:
        norm_eps: of every LayerNorm, where it is not to be timm's 1e-5 (masked pre-training used 1e-6).
        plan_method: how windows are grouped in the masked pass, see make_plans; None: what suits the device.
        resample_windows: weights that were made for windows of another size may be resampled while loading.
        **kwargs: timm's; ``dynamic_img_size`` is on unless ``strict_img_size`` asks otherwise.

    Raises:
        ValueError: a window larger than the grid of the first stage, a way to plan that is unknown or does not fit.
    """

    patch_embed: Any
    layers: Any
    norm: Any

    def __init__(
        self,
        norm_eps: float | None = None,
        plan_method: str | None = None,
        resample_windows: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dynamic_img_size": not kwargs.get("strict_img_size", False), **kwargs})
        _check_windows(kwargs.get("window_size", 7), self.patch_embed.grid_size)
        recast(self, {SwinTransformerBlock: GreenSwinBlock, PatchMerging: Merging})
        self.plan_method = check_encoder_method(plan_method, (block.attn for block in self.called_blocks))
        self.resample_windows = resample_windows
        self.multiples = tuple(self.patch_embed.patch_size)
        set_norm_eps(self, norm_eps)

    @property
    def only_size(self) -> tuple[int, int] | None:  # type: ignore[override]
        """(H, W), where the model takes no other size."""
        return None if self.dynamic_img_size else tuple(self.patch_embed.img_size)

    @property
    def called_blocks(self) -> list[Any]:
        """Blocks whose own forward pass runs in masked training: all."""
        return [block for layer in self.layers for block in layer.blocks]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as the authors' fine-tuning counts them (SimMIM, optimizer.py): the embedding 0, each block one more,
        a merging with the block before it, the last norm with the classifier.
        """
        if coarse:
            timms: dict[str, Any] = super().group_matcher(coarse)
            return timms
        before = (-1, 99999)  # behind all blocks of the stage before, and with the last of them
        blocks = [(r"^layers\.(\d+)\.downsample", before), (r"^layers\.(\d+)\.\w+\.(\d+)", None)]
        return {"stem": r"^patch_embed", "blocks": blocks}

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
        return max(self.patch_embed.patch_size) * 2 ** (self.num_layers - 1)

    @property
    def mask_layout(self) -> MaskLayout:
        """One token for every unit, for inputs of the configured size."""
        return unit_layout(self.patch_embed.img_size, self.unit, self.num_features)

    def geometries(self, units: tuple[int, int]) -> Iterator[Geometry]:
        """The windows of every block, for images of so many rows and columns of units; all that planning needs to
        know.
        """
        for stage, layer in enumerate(self.layers):
            for block in layer.blocks:
                yield Geometry(units, self._side(stage), tuple(block.window_size), tuple(block.shift_size))

    def _side(self, stage: int) -> int:
        return 2 ** (self.num_layers - 1 - stage)  # t

    def forward_visible(self, images: Tensor, keep: Tensor, plans: Plans | None = None) -> Visible:
        """Encode the visible units alone; see :class:`hiermim_zoo.protocol.MaskableEncoder`.

        Args:
            images: [B, C, H, W], sides that are multiples of ``unit``.
            keep: int64 [B, K].
            plans: of the planner, or of ``make_plans(keep, geometries(units))`` for images of another size.
        """
        units = unit_grid(check_images(images, self.in_chans), self.unit)
        if self.only_size not in (None, tuple(images.shape[-2:])):
            raise ValueError(f"images of {tuple(images.shape[-2:])} pixels, but the model takes {self.only_size} alone")
        check_keep(keep, images.shape[0], units[0] * units[1])
        geometries = list(self.geometries(units))
        plans = (
            make_plans(keep, geometries, self.plan_method) if plans is None else ready_plans(plans, geometries, keep)
        )
        geometry_of = iter(geometries)  # block after block
        x = patch_conv(visible_pixels(images, keep, self.unit), self.patch_embed.proj)  # [B, K, t, t, C]
        x = self.patch_embed.norm(x)
        for layer in self.layers:
            x = layer.downsample(x.flatten(0, 1)).unflatten(
                0, keep.shape
            )  # units are images of their own: [B, K, t, t, C]
            shape, x = x.shape, x.flatten(1, 3)  # [B, N, C]
            pairs: dict[Geometry, Tensor | Band] = {}
            for block in layer.blocks:
                geometry = next(geometry_of)
                if geometry not in pairs:
                    pairs[geometry] = pair_rows(plans[geometry])
                args = (x, plans[geometry], pairs[geometry])
                x = checkpoint(block, *args) if layer.grad_checkpointing else block(*args)
            x = x.view(shape)
        return Visible(prefix=None, stages=(self.norm(x),))


def unit_layout(img_size: tuple[int, int], unit: int, dim: int) -> MaskLayout:
    """One token of ``dim`` channels for every unit of ``unit`` pixels.

    Raises:
        ValueError: a side that is no multiple of the unit.
    """
    height, width = img_size
    if height % unit or width % unit:
        raise ValueError(f"img_size={height, width} cannot be masked: both sides must be multiples of {unit}")
    return MaskLayout(units=(height // unit, width // unit), stages=(Stage((1, 1), dim),), stride=(unit, unit))


def recast(model: nn.Module, classes: Mapping[type, type[nn.Module]]) -> None:
    """Give modules of timm's classes the methods of ours, where timm's models take no classes of their parts."""
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]


def set_norm_eps(model: nn.Module, eps: float | None) -> None:
    """Give every LayerNorm this eps; None leaves them as they are."""
    for module in model.modules():
        if eps is not None and isinstance(module, nn.LayerNorm):
            module.eps = eps


def _check_windows(window_size: Any, grid: tuple[int, int]) -> None:
    """timm cuts windows down to the grids of later stages; one that is too large for the first was hardly meant."""
    one = isinstance(window_size, int) or (len(window_size) == 2 and isinstance(window_size[0], int))
    for height, width in map(to_2tuple, [window_size] if one else window_size):
        if height > grid[0] or width > grid[1]:
            raise ValueError(f"window_size={window_size} is larger than the grid of {grid[0]} x {grid[1]} tokens")
