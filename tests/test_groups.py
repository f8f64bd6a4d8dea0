"""Windows in groups: how well they are packed, and that attention does not notice."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from hiermim_zoo.layers import group_attention as following
from hiermim_zoo.layers import groups
from hiermim_zoo.layers.group_attention import (
    Band,
    banded_attention,
    group_attention,
    make_band,
    pair_bias,
    pair_functions,
    pair_mask,
    pair_rows,
)
from hiermim_zoo.layers.groups import BLOCK, METHODS, ON_HOST, Geometry, Plan, make_plans
from hiermim_zoo.layers.packing import cost, pack
from hiermim_zoo.layers.sparse import halo_conv, make_halo, patch_conv
from hiermim_zoo.masking import random_keep

INSTANCES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden" / "grouping.json").read_text())[
    "instances"
]
graph_of_flex = torch.compile(banded_attention, dynamic=False, backend="eager")  # needs no compiler
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


def inputs(batch: int, tokens: int, geometry: Geometry, heads: int = 2) -> tuple[Tensor, Tensor]:
    """Queries, keys and values of heads of 16 channels, and a table."""
    h, w = geometry.window
    return torch.randn(batch, tokens, 3 * 16 * heads), torch.randn((2 * h - 1) * (2 * w - 1), heads)


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
        found = group_attention(qkv, plan, heads, pair_rows(plan), table)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
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


BLIND = [method for method in METHODS if method not in ON_HOST]


@pytest.mark.parametrize("method", BLIND)
def test_shapes_do_not_depend_on_the_mask(method: str) -> None:
    shapes = set()
    for _ in range(5):
        plans = make_plans(random_keep(4, 49, 12), GEOMETRIES[:5], method)
        shapes.add(tuple((tuple(plan.window.shape), plan.band) for plan in plans.values()))
    assert len(shapes) == 1


class NoLook(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looks = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "bincount")
        assert func.overloadpacket.__name__ not in looks, f"{func} looks at the values"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_looks_at_the_mask_but_what_is_made_on_the_host(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FLEXIBLE", ("cpu",))
    monkeypatch.setattr(following, "_compiled", lambda: emulated)
    geometry, keep = GEOMETRIES[1], random_keep(3, 49, 12)
    qkv, table = torch.randn(3, 12 * 64, 48), torch.randn(13 * 13, 2)

    def step() -> None:
        plan = METHODS[method](keep, geometry)
        group_attention(qkv, plan, 2, pair_rows(plan), table)
        group_attention(qkv, plan, 2, pair_mask(plan))

    with NoLook():
        if method in BLIND:
            step()
        else:  # negative control
            with pytest.raises(AssertionError, match="looks at the values"):
                step()


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="'knapsack' is unknown, use 'pack', 'sort', 'flex', 'window', 'sequence'"):
        make_plans(random_keep(1, 49, 12), GEOMETRIES, "knapsack")


# ---- devices: a bias whose rows begin at multiples of 8 numbers is not copied


@pytest.mark.parametrize("method", BLIND)
def test_on_devices_a_bias_is_stored_as_fused_attention_wants_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    attend = F.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float) -> Tensor:
        seen.append(attn_mask)
        return attend(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p)

    monkeypatch.setattr(following.F, "scaled_dot_product_attention", noted)
    for batch in (1, 3):  # of one mask
        for geometry in (*GEOMETRIES[:4], Geometry((7, 7), 1, (7, 7))):
            keep = random_keep(1, 49, 13).to("meta")
            plan = make_plans(keep, [geometry], method)[geometry]
            qkv = torch.empty(batch, 13 * geometry.tokens**2, 3 * 32, dtype=torch.bfloat16, device="meta")
            table = torch.empty(2 * plan.centre + 1, 2, device="meta")
            group_attention(qkv, plan, 2, pair_rows(plan), table)
    for bias in seen:
        assert bias.dtype == torch.bfloat16
        assert bias.stride(-1) == 1
        assert not any(stride % 8 for stride in bias.stride()[:-1])
    plan = make_plans(random_keep(1, 49, 13), [GEOMETRIES[4]], method)[GEOMETRIES[4]]  # negative control: on a CPU
    assert any(stride % 8 for stride in pair_rows(plan).stride()[:-1])  # type: ignore[union-attr]


def test_slots_that_fill_up_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What devices do, on a CPU."""
    for module in (groups, following):
        monkeypatch.setattr(module, "aligned", lambda slots, device: slots + -slots % 8)
    sizes = set()
    for geometry in GEOMETRIES:
        keep = random_keep(2, geometry.units[0] * geometry.units[1], 7)
        qkv, table = inputs(2, 7 * geometry.tokens**2, geometry)
        for method in METHODS:
            plan = make_plans(keep, [geometry], method)[geometry]
            expected = one_by_one(qkv, keep, geometry, table, 2)
            found = group_attention(qkv, plan, 2, pair_rows(plan), table)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            sizes |= {plan.window.shape[1]} if plan.reach else set()
    assert sizes
    assert not any(size % 8 for size in sizes)


def test_the_bias_is_rounded_once_and_its_gradients_are_summed_up_in_the_type_of_the_table() -> None:
    geometry = GEOMETRIES[1]
    _, table = inputs(1, 1, geometry)
    rows = pair_rows(make_plans(random_keep(1, 49, 12), [geometry])[geometry])
    assert isinstance(rows, Tensor)

    def bias_and_gradient(table: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        bias = pair_bias(rows, table.requires_grad_(), dtype)
        assert bias.is_contiguous()
        return bias.detach(), torch.autograd.grad(bias.exp().sum(), table)[0]

    half, found = bias_and_gradient(table, torch.bfloat16)
    full, exact = bias_and_gradient(table, torch.float32)
    assert torch.equal(half, full.bfloat16())
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=0)
    _, lost = bias_and_gradient(table.detach().bfloat16(), torch.bfloat16)  # negative control
    assert not torch.allclose(lost.float(), exact, rtol=1e-2, atol=0)


# ---- FlexAttention


def visible_blocks(band: Band) -> Tensor:
    """Bool [blocks, blocks]: which blocks a block sees."""
    count, blocks = band.counts[0, 0], band.blocks[0, 0].long()
    shown = torch.arange(len(count)) < count[:, None]
    return torch.zeros(shown.shape, dtype=torch.bool).scatter(1, blocks, shown)


def emulated(q: Tensor, k: Tensor, v: Tensor, plan: Plan, band: Band, table: Tensor | None) -> Tensor:
    """What FlexAttention is told, done with all pairs: it has no backward pass on CPUs."""
    seen, biased = pair_functions(plan, table)
    b, h, i, j = torch.meshgrid(
        *map(torch.arange, (*q.shape[:3], q.shape[2])),
        indexing="ij",
    )
    score = q @ k.mT / q.shape[-1] ** 0.5
    score = score if biased is None else biased(score, b, h, i, j)
    shown = seen(b, h, i, j) & visible_blocks(band)[i // BLOCK, j // BLOCK]
    return score.masked_fill(~shown, -torch.inf).softmax(-1) @ v


FLEX = [GEOMETRIES[1], GEOMETRIES[2], GEOMETRIES[5]]


def planned(geometry: Geometry, masks: str) -> tuple[Tensor, Plan]:
    units = geometry.units[0] * geometry.units[1]
    keep = random_keep(3, units, units // 4)
    keep = keep[:1].expand(3, -1) if masks == "shared" else keep
    plan = make_plans(keep, [geometry], "flex")[geometry]
    assert plan.band is not None
    return keep, plan


@pytest.mark.parametrize("geometry", FLEX, ids=str)
@pytest.mark.parametrize("masks", ["own", "shared"])
@torch.no_grad()
def test_flex_attention_is_attention_in_windows(
    geometry: Geometry, masks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "FLEXIBLE", ("cpu",))
    monkeypatch.setattr(following, "_compiled", lambda: graph_of_flex)
    keep, plan = planned(geometry, masks)
    qkv, table = inputs(3, keep.shape[1] * geometry.tokens**2, geometry)
    expected = one_by_one(qkv, keep, geometry, table, 2)
    band = pair_rows(plan)
    assert isinstance(band, Band)
    torch.testing.assert_close(group_attention(qkv, plan, 2, band, table), expected, rtol=1e-5, atol=1e-5)
    unbiased = one_by_one(qkv, keep, geometry, torch.zeros_like(table), 2)
    torch.testing.assert_close(group_attention(qkv, plan, 2, pair_mask(plan)), unbiased, rtol=1e-5, atol=1e-5)
    blind = plan._replace(window=torch.zeros_like(plan.window))  # negative control
    assert not torch.allclose(group_attention(qkv, blind, 2, band, table), expected, atol=1e-2)
    with pytest.raises(ValueError, match=r"cannot drop attention weights \(dropout 0.1\): use 'sort'"):
        group_attention(qkv, plan, 2, band, table, 0.1)


@torch.no_grad()
def test_flex_attention_is_compiled_once_for_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FLEXIBLE", ("cpu",))
    counter = CompileCounter()
    compiled = torch.compile(banded_attention, dynamic=False, fullgraph=True, backend=counter)
    monkeypatch.setattr(following, "_compiled", lambda: compiled)
    for _ in range(3):  # other masks, plans and tables
        keep, plan = planned(GEOMETRIES[1], "own")
        qkv, table = inputs(3, keep.shape[1] * 64, GEOMETRIES[1])
        group_attention(qkv, plan, 2, pair_rows(plan), table)
    assert counter.frame_count == 1


@pytest.mark.parametrize("geometry", FLEX[:2], ids=str)
@pytest.mark.parametrize("masks", ["own", "shared"])
def test_gradients_of_what_flex_attention_is_told(
    geometry: Geometry, masks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, plan = planned(geometry, masks)
    qkv, table = (x.requires_grad_() for x in inputs(3, keep.shape[1] * geometry.tokens**2, geometry))
    weight = torch.randn(3, qkv.shape[1], 32)

    def gradients(plan: Plan, pairs: Tensor | Band) -> tuple[Tensor, ...]:
        return torch.autograd.grad((group_attention(qkv, plan, 2, pairs, table) * weight).sum(), (qkv, table))

    plain = make_plans(keep, [geometry], "sequence")[geometry]
    expected = gradients(plain, pair_rows(plain))
    monkeypatch.setattr(following, "_compiled", lambda: emulated)
    for a, b in zip(gradients(plan, make_band(plan)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    narrow = gradients(plan, make_band(plan._replace(band=0)))  # negative control
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in zip(narrow, expected, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own look, while it compiles
def test_gradients_of_flex_attention_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backward pass in plain operations, which torch has but refuses to use on CPUs."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    compiled = torch.compile(banded_attention, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(following, "_compiled", lambda: compiled)
    keep, plan = planned(GEOMETRIES[1], "own")
    qkv, table = (x.requires_grad_() for x in inputs(3, keep.shape[1] * 64, GEOMETRIES[1]))
    weight = torch.randn(3, qkv.shape[1], 32)

    def gradients(plan: Plan, pairs: Tensor | Band) -> tuple[Tensor, ...]:
        return torch.autograd.grad((group_attention(qkv, plan, 2, pairs, table) * weight).sum(), (qkv, table))

    plain = make_plans(keep, [GEOMETRIES[1]], "sequence")[GEOMETRIES[1]]
    for a, b in zip(gradients(plan, make_band(plan)), gradients(plain, pair_rows(plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    other = plan._replace(place=plan.place.flip(1))  # negative control
    found = gradients(other, make_band(other))
    assert not torch.allclose(found[1], gradients(plain, pair_rows(plain))[1], atol=1e-2)


def test_the_band_covers_every_pair_of_a_window_and_none_narrower_would() -> None:
    draw = random.Random(0)
    reached: dict[int, int] = {}
    for _ in range(150):
        window = draw.randint(2, 16), draw.randint(2, 16)
        shift = draw.randrange(window[0]), draw.randrange(window[1])
        geometry = Geometry((draw.randint(2, 7), draw.randint(2, 7)), draw.choice((4, 8)), window, shift)
        units = geometry.units[0] * geometry.units[1]
        plan = METHODS["flex"](random_keep(draw.randint(1, 3), units, draw.randint(1, units)), geometry)
        if plan.band is None:
            assert plan.window.shape[1] <= BLOCK
            continue
        assert plan.slots is not None
        assert torch.equal(plan.slots[plan.back], torch.arange(len(plan.slots[plan.back])))
        same = plan.window[:, :, None] == plan.window[:, None]
        pairs = same.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).any(dim=(0, 2, 4))  # of blocks
        away = torch.arange(len(pairs))
        away = (away[:, None] - away).abs()
        assert torch.equal(visible_blocks(make_band(plan)), away <= plan.band)
        assert int(away[pairs].max()) <= plan.band
        reached[plan.band] = max(reached.get(plan.band, 0), int(away[pairs].max()))
    assert reached == {1: 1, 2: 2}


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
