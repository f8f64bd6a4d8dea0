"""Window attention on visible tokens alone: plans of who attends to whom (arXiv 2205.13515). group_attention.py follows
them.

A plan is made of the mask and the geometry; it knows no weights. Tokens are put into groups of one size, so that
attention is dense; inside a group a token sees the tokens of its own window. Norms, projections and MLP run on the
tokens themselves: empty slots cost attention and nothing else. There are five ways to make groups:

- "pack": windows are packed into groups that they fill almost completely; one group a sample, where that costs less.
  Cheapest to follow, and made on the host: in a data loader's workers, or just before the step.
- "sort": tokens in the order of their windows are cut into groups of at least a window's length, which look at their
  neighbours too; one group a sample, where few tokens are visible. Nothing looks at the mask and no shape depends on
  it: for masks on a device, where a look would stop it, and for graphs.
- "flex": tokens in the order of their windows, one group a sample, for FlexAttention: of each block of slots it looks
  at the blocks around alone, and it stores no bias. Nothing looks at the mask. For GPUs; elsewhere the group is dense.
- "window": every window is a group, filled up to the size of the largest. Made on the host.
- "sequence": all tokens of a sample are one group. Nothing looks at the mask.

The last two are what the others are measured against (docs/green.md).

Samples with one mask share one plan, which is made of the one row of it. Otherwise the windows of all samples are
packed together.

Letters: B samples; K visible units, t tokens along a side of one; N = K t t tokens of a sample; M tokens that a plan is
for: N where the samples share it, else B N; G groups; g slots of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..masking import on_host
from .packing import Packing, apart, cost, pack

SLOT_COST = 48  # what moving a token into a slot and back costs, in pairs of tokens of attention
BLOCK = 128  # slots of a block of FlexAttention
NARROWEST = 16  # channels of a head that FlexAttention can multiply on a GPU


class Geometry(NamedTuple):
    """The windows of a stage."""

    units: tuple[int, int]  # mask units of the image, rows and columns
    tokens: int  # t
    window: tuple[int, int]  # tokens, rows and columns
    shift: tuple[int, int] = (0, 0)  # as Swin counts: the first window has so many rows and columns; 0 for none
    together: int = 1  # tokens in a slot, where whole units move: then "tokens" of this file are units


class Plan(NamedTuple):
    """Who attends to whom: tensors alone, or arrays in their place where it travels between processes."""

    slots: (
        Tensor | None
    )  # int64 [G g]: the token in every slot (some token in empty ones); None: slots are tokens as they come
    back: Tensor | None  # int64 [M]: the slot of every token
    window: Tensor  # int32 [G, g]: the window of every slot, -1 in empty ones
    place: Tensor  # int32 [G, g]: the difference of two places of one window, plus centre, is a row of its bias table
    centre: int  # the middle row of that table
    reach: int  # groups on either side that a group sees too: 0 or 1
    band: int | None = None  # for FlexAttention: blocks of slots on either side that a block sees; None: not for it

    def to(self, device: torch.device) -> Plan:
        """The plan on a device."""
        moved: Any = [
            x if isinstance(x, int | None) else torch.as_tensor(x).to(device, non_blocking=True) for x in self
        ]
        return Plan(*moved)

    def arrays(self) -> Plan:
        """The plan in NumPy's arrays: a tensor that leaves its process takes a file of shared memory, thirty of them a
        batch.
        """
        arrays: Any = [x.numpy() if isinstance(x, Tensor) else x for x in self]
        return Plan(*arrays)


Plans = dict[Geometry, Plan]


def make_plans(keep: Tensor, geometries: Iterable[Geometry], method: str | None = None) -> Plans:
    """Plan every window attention of an encoder for a batch; on a CPU a matter of a few milliseconds.

    Args:
        keep: int64 [B, K], or [1, K] where every sample has the same mask. On the CPU rows are compared: if they are
            equal, the plan is that of one.
        geometries: of the encoder; equal ones are planned once.
        method: a key of METHODS, inside graphs none of ON_HOST; None packs on the CPU and sorts on devices and inside
            graphs.

    Raises:
        ValueError: an unknown method.
    """
    check_method(method)
    if on_host(keep) and bool((keep == keep[:1]).all()):
        keep = keep[:1]
    make = METHODS[method or ("pack" if on_host(keep) else "sort")]
    return {geometry: make(keep, geometry) for geometry in dict.fromkeys(geometries)}


def check_method(method: str | None, name: str = "method") -> str | None:
    """A way to plan, by its name, or None.

    Raises:
        ValueError: it is unknown; the argument is called ``name``.
    """
    if method not in (None, *METHODS):
        raise ValueError(f"{name}={method!r} is unknown, use {', '.join(map(repr, METHODS))}")
    return method


def check_encoder_method(method: str | None, attentions: Iterable[Any]) -> str | None:
    """The ``plan_method`` of an encoder, or None.

    Args:
        method: as the user names it.
        attentions: the window attentions of the encoder, modules with qkv, num_heads and attn_drop.

    Raises:
        ValueError: it is unknown, or cannot do what these modules ask for.
    """
    for attn in attentions if check_method(method, "plan_method") == "flex" else ():
        channels = attn.qkv.out_features // (3 * attn.num_heads)
        if channels < NARROWEST:
            raise ValueError(
                f"plan_method='flex' needs heads of at least {NARROWEST} channels, these have {channels}: use 'sort'"
            )
        check_flex_dropout(attn.attn_drop.p)
    return method


def check_flex_dropout(dropout: float) -> None:
    """Refuse dropout of attention weights, which FlexAttention does not have."""
    if dropout:
        raise ValueError(f"plan_method='flex' cannot drop attention weights (dropout {dropout:g}): use 'sort'")


def plan_ahead(keep: Tensor, geometries: Iterable[Geometry], method: str | None = None) -> Plans:
    """As :func:`make_plans`, for another process: plans of arrays."""
    return {geometry: plan.arrays() for geometry, plan in make_plans(keep, geometries, method).items()}


def ready_plans(plans: Plans, geometries: Iterable[Geometry], keep: Tensor) -> Plans:
    """Plans that were made beforehand, moved to where the mask is. That they are of this very mask is not looked at:
    it would stop a device.

    Args:
        plans: of :func:`make_plans` or :func:`plan_ahead`, for this mask.
        geometries: that are to be followed.
        keep: int64 [B, K].

    Raises:
        ValueError: plans of other windows, or of another number of tokens, or what is none.
    """
    if not isinstance(plans, dict):
        raise ValueError(f"plans={plans!r} are no plans: planner(keep) or plan(keep) of the encoder makes them")
    ready: Plans = {}
    for geometry in dict.fromkeys(geometries):
        if geometry not in plans:
            raise ValueError(f"the plans are of other windows: they lack {geometry}")
        plan, tokens = plans[geometry].to(keep.device), keep.shape[1] * geometry.tokens**2
        planned = plan.window.numel() if plan.back is None else len(plan.back)
        if planned not in (tokens, len(keep) * tokens):
            raise ValueError(
                f"the plans are of another batch: {planned} tokens of {geometry}, not {len(keep)} x {tokens}"
            )
        ready[geometry] = plan
    return ready


def aligned(slots: int, device: torch.device) -> int:
    """So many slots or a few more: on devices fused attention copies a bias whose rows do not begin at multiples of 8
    numbers.
    """
    return slots if device.type == "cpu" else slots + -slots % 8


# ---- windows


def _windows(keep: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The window of every visible token, unit after unit, and its place: int64 [B, N] each.

    Places are rows of the bias table: (row - row' + h - 1)(2 w - 1) + (col - col' + w - 1) for windows of h x w tokens.
    """
    t, (h, w) = geometry.tokens, geometry.window
    inside = torch.arange(t, device=keep.device)
    rows = (keep // geometry.units[1] * t)[:, :, None] + inside  # [B, K, t]
    cols = (keep % geometry.units[1] * t)[:, :, None] + inside
    place = rows[..., :, None] * (2 * w - 1) + cols[..., None, :]  # [B, K, t, t]
    above, before = (-s % size if s else 0 for s, size in zip(geometry.shift, (h, w), strict=True))
    across = (geometry.units[1] * t + before - 1) // w + 1  # windows in a row of them
    window = ((rows + above) // h)[..., :, None] * across + ((cols + before) // w)[..., None, :]
    return window.flatten(1), place.flatten(1)


def _centre(geometry: Geometry) -> int:
    h, w = geometry.window
    return (h - 1) * (2 * w - 1) + w - 1


def _window_ids(window: Tensor, geometry: Geometry) -> Tensor:
    """int64 [B, N] -> [B N], with other numbers in every sample."""
    (rows, cols), t, (h, w) = geometry.units, geometry.tokens, geometry.window
    most = (rows * t // h + 2) * (cols * t // w + 2)
    return (window + most * torch.arange(window.shape[0], device=window.device)[:, None]).flatten()


# ---- the ways to plan


def _packed(keep: Tensor, geometry: Geometry) -> Plan:
    """Windows packed into groups, or one group a sample where that is cheaper; on the host."""
    window, place = _windows(keep.cpu(), geometry)
    ids = _window_ids(window, geometry)
    counts = _counts(ids)
    slot_cost = SLOT_COST // geometry.together
    packing = pack(counts, slot_cost)
    samples, tokens = window.shape
    if cost(samples, tokens, 0) <= cost(packing.groups, packing.size, slot_cost):
        return _one_sequence(window, place, geometry).to(keep.device)
    return _grouped(ids, place.flatten(), counts, packing, geometry).to(keep.device)


def _one_window_each(keep: Tensor, geometry: Geometry) -> Plan:
    """Every window a group of its own; on the host."""
    window, place = _windows(keep.cpu(), geometry)
    ids = _window_ids(window, geometry)
    counts = _counts(ids)
    return _grouped(ids, place.flatten(), counts, apart(counts), geometry).to(keep.device)


def _counts(ids: Tensor) -> np.ndarray:
    """Tokens of every window that has any, in the order of their numbers: int64 [windows]."""
    counts = ids.bincount()
    return counts[counts > 0].numpy()


def _grouped(ids: Tensor, place: Tensor, sizes: np.ndarray, packing: Packing, geometry: Geometry) -> Plan:
    """The tokens of all samples (int64 [B N] each) in the slots that a packing has for their windows of these sizes."""
    order = ids.argsort(stable=True)
    counts = torch.from_numpy(sizes)
    start = counts.cumsum(0) - counts
    first = torch.from_numpy(packing.group * packing.size + packing.first)  # slot of the first token of a window
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order)) + (first - start).repeat_interleave(counts)
    slots = torch.zeros(packing.groups * packing.size, dtype=torch.int64)
    slots[back] = torch.arange(len(order))
    used = torch.full_like(slots, -1, dtype=torch.int32)
    used[back] = ids.int()
    shape = packing.groups, packing.size
    return Plan(slots, back, used.view(shape), place[slots].int().view(shape), _centre(geometry), 0)


def _sorted(keep: Tensor, geometry: Geometry) -> Plan:
    """Tokens in the order of their windows, cut into groups; no shape depends on the mask, and nothing looks at it."""
    window, place = _windows(keep, geometry)
    tokens = window.shape[1]
    size = aligned(geometry.window[0] * geometry.window[1], keep.device)  # a window ends in its group or in the next
    if tokens <= 3 * size + SLOT_COST // geometry.together:
        return _one_sequence(window, place, geometry)
    ids = _window_ids(window, geometry)
    order = ids.argsort(stable=True)
    empty = -len(order) % size
    back = torch.zeros_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    window = F.pad(ids[order], (0, empty), value=-1).int().view(-1, size)
    slots = F.pad(order, (0, empty))
    return Plan(slots, back, window, place.flatten()[slots].int().view(-1, size), _centre(geometry), 1)


def _banded(keep: Tensor, geometry: Geometry) -> Plan:
    """The tokens of each sample in the order of their windows, and empty slots up to a whole number of blocks. No shape
    depends on the mask, and nothing looks at it.

    Other tokens of a window of s slots are at most s - 1 slots away: the blocks that a block sees are known beforehand.
    """
    window, place = _windows(keep, geometry)
    samples, tokens = window.shape
    if tokens <= BLOCK:
        return _one_sequence(window, place, geometry)
    order = window.argsort(dim=1, stable=True)
    empty = (0, -tokens % BLOCK)
    sample = torch.arange(samples, device=order.device)[:, None]
    slot = torch.arange(tokens, device=order.device) + sample * (tokens + empty[1])
    back = torch.zeros_like(order).scatter(1, order, slot)
    return Plan(
        slots=F.pad(order + sample * tokens, empty).flatten(),
        back=back.flatten(),
        window=F.pad(window.gather(1, order), empty, value=-1).int(),
        place=F.pad(place.gather(1, order), empty).int(),
        centre=_centre(geometry),
        reach=0,
        band=-(-(geometry.window[0] * geometry.window[1] - 1) // BLOCK),
    )


def _sequence(keep: Tensor, geometry: Geometry) -> Plan:
    """One group a sample, whatever it costs."""
    return _one_sequence(*_windows(keep, geometry), geometry)


def _one_sequence(window: Tensor, place: Tensor, geometry: Geometry) -> Plan:
    """All tokens of a sample in one group, as they come."""
    return Plan(None, None, window.int(), place.int(), _centre(geometry), 0)


METHODS: dict[str, Callable[[Tensor, Geometry], Plan]] = {
    "pack": _packed,
    "sort": _sorted,
    "flex": _banded,
    "window": _one_window_each,
    "sequence": _sequence,
}
ON_HOST = ("pack", "window")  # those that look at the mask
