"""Windows in groups: how well they are packed, and that attention does not notice."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hiermim_zoo.layers.groups import (
    METHODS,
    Geometry,
    Plan,
    group_attention,
    make_plans,
    pair_bias,
    pair_mask,
    pair_rows,
)
from hiermim_zoo.layers.packing import cost, pack
from hiermim_zoo.layers.sparse import halo_conv, make_halo, patch_conv
from hiermim_zoo.masking import random_keep

INSTANCES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden" / "grouping.json").read_text())[
    "instances"
]
GEOMETRIES = [
    Geometry((7, 7), 8, (7, 7)),
    Geometry((7, 7), 8, (7, 7), (3, 3)),
    Geometry((7, 7), 8, (14, 14), (7, 7)),
    Geometry((7, 7), 4, (7, 7), (3, 3)),
    Geometry((7, 7), 1, (7, 7)),
    Geometry((3, 5), 8, (8, 5), (4, 0)),
    Geometry((3, 5), 2, (4, 4), (2, 2)),
]


# ---- packing


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda i: str(i["id"]))
def test_packing_is_optimal_at_a_given_size_and_better_than_the_greedy_rule_where_the_size_is_searched(
    instance: Any,
) -> None:
    counts, pairs = np.array(instance["counts"]), 2 * instance["channels"]
    reference, best = instance["reference"], instance["best_group_size"]
    assert pack(counts, pairs, reference["group_size"]).groups == instance["optimum_at_that_group_size"]["num_groups"]
    attention = pack(counts, 0)  # what this package pays for
    assert cost(attention.groups, attention.size, 0) == best["attention_only"]["exact"]["cost"]
    block = pack(counts, pairs)  # what it would pay if empty slots passed the projections
    assert cost(block.groups, block.size, pairs) <= min(reference["cost"], best["with_linear_term"]["greedy"]["cost"])
    assert cost(block.groups, block.size, pairs) <= 1.013 * best["with_linear_term"]["exact"]["cost"]


@pytest.mark.parametrize("instance", INSTANCES[::4], ids=lambda i: str(i["id"]))
def test_every_window_has_slots_of_its_own(instance: Any) -> None:
    counts = np.array(instance["counts"])
    packing = pack(counts, 48)
    taken = [
        (group, slot)
        for n, group, first in zip(counts, packing.group, packing.first, strict=True)
        for slot in range(first, first + n)
    ]
    assert len(set(taken)) == len(taken) == counts.sum()
    assert {group for group, _ in taken} == set(range(packing.groups))
    assert max(slot for _, slot in taken) < packing.size


def test_a_size_below_the_largest_window_is_refused() -> None:
    with pytest.raises(ValueError, match="size=5 is too small for a window of 6"):
        pack(np.array([6, 2]), 0, 5)


# ---- plans and attention


def one_by_one(qkv: Tensor, keep: Tensor, geometry: Geometry, table: Tensor, heads: int) -> Tensor:
    """The definition: all pairs of visible tokens, those of different windows masked, windows found by Swin's rule."""
    batch, tokens, _ = qkv.shape
    out = torch.zeros(batch, tokens, qkv.shape[2] // 3)
    t, (h, w) = geometry.tokens, geometry.window
    for b in range(batch):
        unit = keep[b].repeat_interleave(t * t)
        inside = torch.arange(t * t).repeat(keep.shape[1])
        at = (unit // geometry.units[1] * t + inside // t, unit % geometry.units[1] * t + inside % t)
        window = [(x + (size - s if s else 0)) // size for x, size, s in zip(at, (h, w), geometry.shift, strict=True)]
        same = (window[0][:, None] == window[0]) & (window[1][:, None] == window[1])
        row = (at[0][:, None] - at[0] + h - 1) * (2 * w - 1) + at[1][:, None] - at[1] + w - 1
        bias = table[row.where(same, 0)].permute(2, 0, 1).masked_fill(~same, -torch.inf)
        q, k, v = qkv[b].unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        weights = (q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1)
        out[b] = (weights @ v).transpose(0, 1).flatten(1)
    return out


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("masks", ["own", "shared"])
def test_attention_in_groups_is_attention_in_windows(geometry: Geometry, masks: str) -> None:
    units, heads = geometry.units[0] * geometry.units[1], 2
    keep = random_keep(3, units, units // 4)
    keep = keep[:1].expand(3, -1) if masks == "shared" else keep
    qkv = torch.randn(3, keep.shape[1] * geometry.tokens**2, 3 * 8 * heads)
    table = torch.randn((2 * geometry.window[0] - 1) * (2 * geometry.window[1] - 1), heads)
    expected = one_by_one(qkv, keep, geometry, table, heads)
    unbiased = one_by_one(qkv, keep, geometry, torch.zeros_like(table), heads)
    for method in METHODS:
        plan = make_plans(keep, [geometry], method)[geometry]
        plan = pickle.loads(pickle.dumps(plan))
        rows = pair_rows(plan)
        torch.testing.assert_close(
            group_attention(qkv, plan, heads, pair_bias(rows, table)), expected, rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(group_attention(qkv, plan, heads, pair_mask(plan)), unbiased, rtol=1e-5, atol=1e-5)
        blind = plan._replace(window=torch.zeros_like(plan.window))  # negative control: no window but one
        if plan.reach or bool((plan.window != plan.window[:, :1]).any()):
            assert not torch.allclose(group_attention(qkv, blind, heads, pair_mask(blind)), unbiased, atol=1e-2)


def tokens_of(plan: Plan) -> int:
    return plan.window.numel() if plan.back is None else len(plan.back)


def test_one_mask_is_planned_once_and_masks_of_their_own_are_packed_together() -> None:
    geometry, keep = GEOMETRIES[0], random_keep(16, 49, 12)
    for shared in (keep[:1].expand(16, -1), keep[:1].repeat(16, 1)):
        assert tokens_of(make_plans(shared, [geometry])[geometry]) == 12 * 64
    together = make_plans(keep, [geometry])[geometry]
    assert tokens_of(together) == 16 * 12 * 64
    alone = [make_plans(row[None], [geometry])[geometry] for row in keep]
    assert together.window.numel() < min(1.01 * 16 * 12 * 64, sum(plan.window.numel() for plan in alone))


def test_shapes_of_sorted_plans_do_not_depend_on_the_mask() -> None:
    shapes = set()
    for _ in range(5):
        plans = make_plans(random_keep(4, 49, 12), GEOMETRIES[:5], "sort")
        shapes.add(tuple(tuple(plan.window.shape) for plan in plans.values()))
    assert len(shapes) == 1


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method='knapsack' is unknown, use 'pack', 'sort', 'window', 'sequence'"):
        make_plans(random_keep(1, 49, 12), GEOMETRIES, "knapsack")


# ---- convolutions


def raster(units: Tensor, keep: Tensor, grid: tuple[int, int]) -> Tensor:
    """Visible units [B, K, t, t, C] in a grid of zeros: [B, C, h, w]."""
    b, _, t, _, c = units.shape
    out = torch.zeros(b, c, grid[0] * t, grid[1] * t)
    for i in range(b):
        for unit, tokens in zip(keep[i].tolist(), units[i], strict=True):
            top, left = unit // grid[1] * t, unit % grid[1] * t
            out[i, :, top : top + t, left : left + t] = tokens.permute(2, 0, 1)
    return out


@pytest.mark.parametrize("kernel", [1, 2, 4, 8])
def test_convolutions_of_whole_patches(kernel: int) -> None:
    x, conv = torch.randn(2, 3, 8, 8, 5), nn.Conv2d(5, 6, kernel, kernel)
    expected = conv(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unflatten(0, (2, 3))
    torch.testing.assert_close(patch_conv(x, conv), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no convolution of whole patches"):
        patch_conv(x, nn.Conv2d(5, 6, kernel + 1, kernel))


@pytest.mark.parametrize(("tokens", "kernel", "stride"), [(8, 3, 1), (8, 7, 4), (4, 3, 2), (1, 3, 1), (1, 5, 1)])
@pytest.mark.parametrize("depthwise", [True, False])
def test_convolutions_see_hidden_neighbours_as_zeros(tokens: int, kernel: int, stride: int, depthwise: bool) -> None:
    grid, keep, groups = (3, 4), random_keep(2, 12, 5), 6 if depthwise else 1
    x, conv = torch.randn(2, 5, tokens, tokens, 6), nn.Conv2d(6, 12, kernel, stride, kernel // 2, groups=groups)
    dense = conv(raster(x, keep, grid))
    halo = make_halo(keep, grid, tokens, kernel // 2)
    found = halo_conv(x.flatten(1, 3), conv, halo).unflatten(1, (5, tokens // stride, tokens // stride))
    shown = raster(torch.ones_like(found), keep, grid)
    torch.testing.assert_close(raster(found, keep, grid), dense * shown, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="does not fit a halo"):
        halo_conv(x.flatten(1, 3), nn.Conv2d(6, 6, kernel + 2, 1), halo)
