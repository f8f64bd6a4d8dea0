"""Attention that follows a plan of groups.py: every visible token sees the visible tokens of its window.

On most devices it is plain attention inside groups, with a bias for every pair of slots. On GPUs, plans of "flex" are
followed by FlexAttention, which computes the bias where it needs it. Both are exact.

Letters: B samples; N visible tokens of one; M tokens that a plan is for: N where the samples share it, else B N;
R = B N / M; G groups; g slots of one; S slots that a slot can see, g or 3 g; n heads; C channels, d of one head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .groups import BLOCK, Plan, aligned, check_flex_dropout
from .position import relative_position_bias

FLEXIBLE = ("cuda", "xpu")  # where FlexAttention has a backward pass


class Band(NamedTuple):
    """The blocks of slots that blocks of slots see: made of shapes alone, and the same seen from either side."""

    counts: Tensor  # int32 [1, 1, g / BLOCK]
    blocks: Tensor  # int32 [1, 1, g / BLOCK, g / BLOCK]: the first ``counts`` of each row are seen


# ---- what all blocks of a geometry share


def pair_rows(plan: Plan) -> Tensor | Band:
    """Where the bias of each pair of slots is: for attention with a table of relative positions.

    Returns:
        int64 [G, g, S], a row of the table; for pairs of different windows the row behind the last. On devices S is
        filled up to a multiple of 8. For FlexAttention a Band.
    """
    if _flexible(plan):
        return make_band(plan)
    window, place = plan.window, plan.place
    if plan.reach:
        window, place = around(window, 0, 1, -2), around(place, 0, 1, 0)  # [G, 3 g]
    same = plan.window[:, :, None] == window[:, None]
    rows = torch.where(same, plan.place[:, :, None] - place[:, None] + plan.centre, 2 * plan.centre + 1).long()
    more = aligned(rows.shape[-1], rows.device) - rows.shape[-1]
    return F.pad(rows, (0, more), value=2 * plan.centre + 1) if more else rows


def pair_mask(plan: Plan) -> Tensor | Band:
    """Which pairs of slots see each other: for attention without such a table.

    Returns:
        bool [G, 1, g, S]. For FlexAttention a Band.
    """
    if _flexible(plan):
        return make_band(plan)
    window = around(plan.window, 0, 1, -2) if plan.reach else plan.window
    return (plan.window[:, :, None] == window[:, None])[:, None]


def make_band(plan: Plan) -> Band:
    """The blocks around each block, as FlexAttention wants them."""
    assert plan.band is not None
    at = torch.arange(plan.window.shape[1] // BLOCK, device=plan.window.device)
    first, last = (at - plan.band).clamp(min=0), (at + plan.band).clamp(max=len(at) - 1)
    return Band((last - first + 1).int()[None, None], ((first[:, None] + at) % len(at)).int()[None, None])


def _flexible(plan: Plan) -> bool:
    return plan.band is not None and plan.window.device.type in FLEXIBLE


def around(x: Tensor, groups: int, slots: int, beyond: float) -> Tensor:
    """Put the slots of the groups on either side next to those of each group.

    Args:
        x: [..., G, ..., g, ...].
        groups: axis of the groups.
        slots: axis of the slots.
        beyond: what the slots before the first group and behind the last one hold.

    Returns:
        [..., G, ..., 3 g, ...].
    """
    edge = torch.full_like(x.narrow(groups, 0, 1), beyond)
    x = torch.cat([edge, x, edge], dim=groups)
    return torch.cat([x.narrow(groups, i, x.shape[groups] - 2) for i in range(3)], dim=slots)


# ---- attention


def group_attention(
    qkv: Tensor, plan: Plan, heads: int, pairs: Tensor | Band, table: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention of every token to those of its window.

    Args:
        qkv: [B, N, 3 C], queries, keys and values side by side.
        plan: of these tokens.
        heads: n.
        pairs: of :func:`pair_rows`, where there is a table, else of :func:`pair_mask`.
        table: [(2 h - 1)(2 w - 1), n], biases of relative positions in windows of h x w tokens.
        dropout: of attention weights.

    Returns:
        [B, N, C].

    Raises:
        ValueError: dropout, which FlexAttention does not have.
    """
    batch, tokens, _ = qkv.shape
    groups, size = plan.window.shape
    if plan.slots is None or plan.back is None:
        x = qkv.reshape(-1, groups * size, qkv.shape[-1])  # [R, G g, 3 C]
    else:
        x = qkv.reshape(-1, len(plan.back), qkv.shape[-1]).index_select(1, plan.slots)  # [R, M, 3 C] -> [R, G g, 3 C]
    x = x.unflatten(2, (3, heads, -1)).unflatten(1, (groups, size))  # [R, G, g, 3, n, d]
    q, k, v = x.permute(3, 0, 1, 4, 2, 5).unbind(0)  # [R, G, n, g, d]
    if plan.reach:
        k, v = around(k, 1, 3, 0), around(v, 1, 3, 0)  # [R, G, n, 3 g, d]
    shared = q.shape[0] > 1  # the batch is one of samples, which share groups and bias; else groups are the batch
    q, k, v = (y.flatten(1, 2) if shared else y[0] for y in (q, k, v))  # [R, G n, S, d] or [G, n, S, d]
    if isinstance(pairs, Band):
        check_flex_dropout(dropout)
        follow = banded_attention if torch.compiler.is_compiling() else _compiled()
        x = follow(q, k, v, plan, pairs, table)
    else:
        bias = pairs if table is None else pair_bias(pairs, table, q.dtype)  # [G, n or 1, g, S and what fills it up]
        if shared:
            bias = bias.expand(-1, heads, -1, -1).flatten(0, 1)[None]  # [1, G n, g, S]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[..., : k.shape[-2]], dropout_p=dropout)
    x = x.reshape(-1, groups, heads, size, x.shape[-1]).transpose(2, 3).reshape(-1, groups * size, heads * x.shape[-1])
    if plan.back is not None:
        x = x.index_select(1, plan.back)  # [R, M, C]
    return x.reshape(batch, tokens, -1)


def pair_bias(rows: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Bias of every pair, minus infinity between windows.

    Args:
        rows: int64 [G, g, S], of :func:`pair_rows`.
        table: [(2 h - 1)(2 w - 1), n] of windows of h x w tokens.
        dtype: of the attention: fused kernels take no other.

    Returns:
        [G, n, g, S].
    """
    return relative_position_bias(F.pad(table, (0, 0, 0, 1), value=-torch.inf), rows, dtype)


# ---- FlexAttention


def banded_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, band: Band, table: Tensor | None) -> Tensor:
    """FlexAttention along the band.

    Args:
        q: [B, n, g, d], as ``k`` and ``v``.
        plan: of "flex", with a group for all samples or one for each.
        band: of :func:`make_band`.
        table: see :func:`group_attention`; it stays in its own type, as do its gradients.

    Returns:
        [B, n, g, d].
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention  # not loaded where it is not used

    size = plan.window.shape[1]
    seen, biased = pair_functions(plan, table)
    mask = BlockMask(
        seq_lengths=(size, size),
        kv_num_blocks=band.counts,
        kv_indices=band.blocks,
        full_kv_num_blocks=None,
        full_kv_indices=None,
        q_num_blocks=band.counts,
        q_indices=band.blocks,
        full_q_num_blocks=None,
        full_q_indices=None,
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=seen,
    )
    x: Tensor = flex_attention(q, k, v, score_mod=biased, block_mask=mask)
    return x


def pair_functions(plan: Plan, table: Tensor | None) -> tuple[Callable[..., Tensor], Callable[..., Tensor] | None]:
    """What FlexAttention asks of a pair of slots i and j of sample b: whether they see each other (empty slots do, so
    that no softmax is of nothing), and their score in head h with its bias.
    """
    window, place = plan.window, plan.place  # [1 or B, g]

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row = b % len(window)
        return window[row, i] == window[row, j]

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert table is not None
        row = b % len(place)
        offset = (place[row, i] - place[row, j]).clamp(-plan.centre, plan.centre)  # beyond: pairs of different windows
        return score + table[offset + plan.centre, h]

    return seen, None if table is None else biased


@cache
def _compiled() -> Callable[..., Tensor]:
    """For what is no graph: not compiled, FlexAttention would store all scores."""
    return torch.compile(banded_attention, dynamic=False)
