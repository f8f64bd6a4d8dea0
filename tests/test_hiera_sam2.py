"""SAM 2's image encoder: timm's class is the reference, with random weights; windows, positions, the masked pass."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hiermim_zoo  # noqa: F401
from hiermim_zoo.geometry import cubic_weights, from_units, to_units
from hiermim_zoo.layers.groups import make_plans
from hiermim_zoo.layers.unit_attention import from_window_order, to_window_order, unit_attention, window_groups
from hiermim_zoo.masking import random_keep
from hiermim_zoo.protocol import PlanningEncoder

TINY = [(224, 224), (256, 256), (448, 448), (320, 480)]
LARGER = [("large", (256, 256)), ("base_plus", (448, 256)), ("small", (256, 448))]
NARROW = {"embed_dim": 48, "num_heads": 1}  # for large images
FEWER = {"depths": (1, 1, 3, 1), "global_att_blocks": (3, 4), **NARROW}  # of the tiny one
FEW = {"depths": (1, 1, 5, 3), "global_att_blocks": (4, 8), **NARROW}  # of the large one


def pair(size: str, **few: Any) -> tuple[Any, Any]:
    """timm's encoder with weights that hide nothing, and ours, with the same ones through our layouts."""
    torch.manual_seed(0)
    args = {"stages" if name == "depths" else name: value for name, value in few.items()}
    theirs: Any = timm.create_model(f"sam2_hiera_{size}", num_classes=0, **args).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms that are not 1, biases that are not 0: keys of empty units
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0)
        theirs.pos_embed.mul_(10)
        theirs.pos_embed_window.mul_(10)
    overlay = {"state_dict": theirs.state_dict(), "num_classes": 0}
    ours = timm.create_model(
        f"hiera_sam2_{size}", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=224, **few
    )
    return theirs, ours.eval()


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return pair("tiny")


@torch.inference_mode()
def assert_levels_agree(theirs: Any, ours: Any, size: tuple[int, int]) -> None:
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = theirs.forward_intermediates(images, intermediates_only=True)
    for a, b in zip(expected, ours.forward_intermediates(images, intermediates_only=True), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


# ---- the reference


@pytest.mark.parametrize("size", TINY, ids=str)
def test_all_levels_are_those_of_timm(tiny: tuple[Any, Any], size: tuple[int, int]) -> None:
    assert_levels_agree(*tiny, size)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "size"), LARGER, ids=str)
def test_all_levels_of_other_variants_are_those_of_timm(variant: str, size: tuple[int, int]) -> None:
    assert_levels_agree(*pair(variant), size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(896, 896), (1024, 1024), (640, 960)], ids=str)
def test_all_levels_are_those_of_timm_at_large_sizes(size: tuple[int, int]) -> None:
    assert_levels_agree(*pair("tiny", **FEWER), size)


@pytest.mark.slow
@pytest.mark.parametrize("side", [512, 1024])
def test_windows_of_eight_units_are_those_of_timm(side: int) -> None:
    assert_levels_agree(*pair("large", **FEW), (side, side))


@torch.inference_mode()
@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: setattr(m, "global_att_blocks", (5, 7)),
        lambda m: setattr(m, "global_att_blocks", (4, 7, 9)),
        lambda m: setattr(m, "window", 6),
        lambda m: m.pos_embed_window.copy_(m.pos_embed_window.mT.clone()),
        lambda m: m.pos_embed.copy_(m.pos_embed.flip(2)),
        lambda m: m.blocks[6].attn.qkv.bias.zero_(),  # what empty units have
    ],
    ids=["a block less sees all", "another block sees all", "windows of 6", "units turned", "positions", "empty units"],
)
def test_what_is_wrong_is_seen(spoil: Any) -> None:
    """Negative control of the tests above."""
    theirs, ours = pair("tiny")
    spoil(ours)
    with pytest.raises(AssertionError, match="not close"):
        assert_levels_agree(theirs, ours, (448, 320))


@torch.inference_mode()
def test_sides_that_are_no_multiple_of_32_are_padded_inside(tiny: tuple[Any, Any]) -> None:
    images = torch.randn(1, 3, 230, 250)
    padded = F.pad(images, (0, 6, 0, 26))
    maps, expected = (tiny[1].forward_intermediates(x, intermediates_only=True) for x in (images, padded))
    for m, e, reduction in zip(maps, expected, (4, 8, 16, 32), strict=True):
        rows, cols = -(-230 // reduction), -(-250 // reduction)
        torch.testing.assert_close(m, e[..., :rows, :cols])


@pytest.mark.parametrize(("old", "new"), [(7, 56), (14, 28), (8, 5), (7, 7), (1, 4)])
def test_cubic_weights_are_bicubic_interpolation(old: int, new: int) -> None:
    table = torch.randn(2, 3, old, old, dtype=torch.float64)
    rows = cubic_weights(old, new)
    expected = F.interpolate(table, size=(new, new), mode="bicubic", align_corners=False)
    torch.testing.assert_close(rows @ table @ rows.T, expected)


def test_autocast_does_not_round_positions() -> None:
    model: Any = timm.create_model("hiera_sam2_atto")
    exact = model._positions((3, 5))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model._positions((3, 5)), exact, rtol=0, atol=0)


# ---- windows


@pytest.mark.parametrize("grid", [(4, 6), (2, 2), (4, 2)])
def test_window_order_can_be_undone(grid: tuple[int, int]) -> None:
    x = torch.randn(2, grid[0] * grid[1], 4, 3)
    ordered = to_window_order(x, grid, 2)
    torch.testing.assert_close(from_window_order(ordered, grid, 2), x, rtol=0, atol=0)
    units = to_units(x[..., 0, :].unflatten(1, grid), (2, 2)).flatten(1, 3)  # window by window
    torch.testing.assert_close(ordered[..., 0, :], units, rtol=0, atol=0)


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 2), (5, 2)])
@pytest.mark.parametrize("pool", [1, 4])
def test_attention_in_windows_is_that_of_a_padded_grid(grid: tuple[int, int], pool: int) -> None:
    """Windows of 2 x 2 units, 4 tokens in each: what the definition says, window by window."""
    torch.manual_seed(0)
    qkv, empty = torch.randn(2, grid[0] * grid[1], 4, 24), torch.randn(24)
    attended = unit_attention(to_window_order(qkv, grid, 2), window_groups(grid, 2), 2, pool, empty)
    rows, cols = (units + units % 2 for units in grid)
    padded = empty.expand(2, rows, cols, 4, 24).clone()
    padded[:, : grid[0], : grid[1]] = qkv.unflatten(1, grid)
    expected = torch.zeros(2, rows, cols, 4 // pool, 8)
    for top in range(0, rows, 2):
        for left in range(0, cols, 2):
            window = padded[:, top : top + 2, left : left + 2].reshape(2, 4, 4, 24)
            q, k, v = window.chunk(3, dim=-1)
            q = q.unflatten(2, (pool, -1)).amax(dim=2)
            q, k, v = (y.flatten(1, 2).unflatten(-1, (2, 4)).transpose(1, 2) for y in (q, k, v))
            out = ((q @ k.mT) / 2).softmax(dim=-1) @ v
            expected[:, top : top + 2, left : left + 2] = out.transpose(1, 2).reshape(2, 2, 2, 4 // pool, 8)
    expected = expected[:, : grid[0], : grid[1]].flatten(1, 2)
    torch.testing.assert_close(from_window_order(attended, grid, 2), expected, rtol=1e-5, atol=1e-6)


# ---- the masked pass


def atto(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model("hiera_sam2_atto", **{"num_classes": 0, "img_size": (160, 224), **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def by_definition(model: nn.Module, images: Tensor, keep: Tensor) -> list[Tensor]:
    """The visible units with dense attention and a mask, unit by unit: [K, T, c] at the end of each stage."""
    encoder: Any = model
    x, grid = encoder._embed(images, keep)
    window = keep[0] // grid[1] // encoder.window * 1000 + keep[0] % grid[1] // encoder.window
    levels = []
    for i, block in enumerate(encoder.blocks):
        normed = block.norm1(x)
        short = x if block.proj is None else block.proj(normed).unflatten(2, (block.pool, -1)).amax(2)
        q, k, v = block.attn.qkv(normed).chunk(3, dim=-1)
        q = q.unflatten(2, (block.pool, -1)).amax(dim=2)
        unit = torch.arange(keep.shape[1])
        if i <= encoder.stage_ends[1] + 1:
            seen = unit[:, None] == unit
        elif i in encoder.global_att_blocks:
            seen = torch.ones(len(unit), len(unit), dtype=torch.bool)
        else:
            seen = window[:, None] == window
        seen = seen.repeat_interleave(q.shape[2], 0).repeat_interleave(k.shape[2], 1)
        heads = [y.flatten(1, 2).unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for y in (q, k, v)]
        out = F.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2).reshape(q.shape)
        x = short + block.attn.proj(out)
        x = x + block.mlp(block.norm2(x))
        if i in encoder.stage_ends:
            levels.append(x)
    return levels


@torch.inference_mode()
@pytest.mark.parametrize("method", ["pack", "sort", "window", "sequence"])
@pytest.mark.parametrize("q_pool", [2, 3])
def test_visible_units_see_those_of_their_window(method: str, q_pool: int) -> None:
    """Windows of 2 x 2 units do not divide 5 x 7 of them, and each sample has its own mask."""
    model = atto(q_pool=q_pool, plan_method=method)
    images, keep = torch.randn(3, 3, 160, 224), random_keep(3, 35, 17)
    levels, _ = model._run(images, 4, keep)
    for i in range(3):
        for level, expected in zip(levels, by_definition(model, images[i : i + 1], keep[i : i + 1]), strict=True):
            torch.testing.assert_close(level[i : i + 1], expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("method", ["pack", "sort", "window", "sequence"])
def test_samples_that_share_a_mask_are_as_with_masks_of_their_own(method: str) -> None:
    model, images = atto(plan_method=method), torch.randn(2, 3, 160, 224)
    keep = random_keep(1, 35, 17)
    shared = model.forward_visible(images, keep.expand(2, -1), model.plan(keep)).stages
    for i in range(2):
        for a, b in zip(shared, model.forward_visible(images[i : i + 1], keep).stages, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_masked_pass_knows_no_padding() -> None:
    """Whole images have empty units in windows that reach beyond them; visible units do not see any."""
    model, images = atto(), torch.randn(1, 3, 160, 224)
    all_units = model.forward_visible(images, torch.arange(35)[None]).stages[-1]
    whole = from_units(all_units, (5, 7)).flatten(1, 2)
    assert not torch.allclose(whole, model.forward_features(images), atol=1e-3)
    divided = torch.randn(1, 3, 128, 192)
    same = model.forward_visible(divided, torch.arange(24)[None]).stages[-1]
    torch.testing.assert_close(from_units(same, (4, 6)).flatten(1, 2), model.forward_features(divided))


@torch.inference_mode()
def test_plans_from_another_process_are_those_made_here() -> None:
    model, images = atto(), torch.randn(2, 3, 160, 224)
    assert isinstance(model, PlanningEncoder)
    keep = random_keep(2, 35, 12)
    for plans in (model.planner(keep), model.plan(keep)):
        for a, b in zip(
            model.forward_visible(images, keep, plans).stages, model.forward_visible(images, keep).stages, strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(ValueError, match="another batch"):
        model.forward_visible(images, keep, model.plan(random_keep(2, 35, 5)))
    with pytest.raises(ValueError, match="other windows"):
        model.forward_visible(images, keep, make_plans(keep, []))
    with pytest.raises(ValueError, match="are no plans"):
        model.forward_visible(images, keep, "plans")


@torch.inference_mode()
def test_one_window_needs_no_plan() -> None:
    model = atto(img_size=64)
    keep = random_keep(2, 4, 2)
    assert model.plan(keep) == {}
    images = torch.randn(2, 3, 64, 64)
    levels, _ = model._run(images, 4, keep, model.planner(keep))
    for level, expected in zip(levels, by_definition(model, images[:1], keep[:1]), strict=True):
        torch.testing.assert_close(level[:1], expected, rtol=1e-5, atol=1e-5)


# ---- what is refused, and what consumers change


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window_spec": (8, 4, 14)}, "four numbers that begin with 8, 4"),
        ({"window_spec": (7, 4, 14, 7)}, "four numbers that begin with 8, 4"),
        ({"window_spec": (8, 4, 14, 8)}, "must hold the same units"),
        ({"window_spec": (8, 4, 0, 0)}, "must hold the same units"),
        ({"window_spec": 14}, "window_spec=14 must be four whole numbers"),
        ({"window_spec": (8, 4, 3, 1.5)}, "must be four whole numbers"),
        ({"global_att_blocks": 5}, "global_att_blocks=5 must be the numbers of blocks, from 3 to 6"),
        ({"global_pos_size": 7}, "global_pos_size=7 must be rows and columns"),
        ({"global_pos_size": (0, 3)}, "must be rows and columns"),
        ({"global_att_blocks": (1,)}, "block 1 cannot attend to everything, blocks 3 to 6 can"),
        ({"global_att_blocks": (9,)}, "block 9 cannot attend to everything"),
        ({"plan_method": "flex"}, "units move as a whole: use 'sort'"),
        ({"plan_method": "fastest"}, "plan_method='fastest' is unknown"),
        ({"num_frames": 8}, "num_frames=8 does not fit"),
        ({"pos_resize": "plain"}, "pos_resize='plain' does not fit"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("hiera_sam2_atto", **kwargs)


@torch.inference_mode()
def test_another_input_size_changes_no_table() -> None:
    model, images = atto(), torch.randn(1, 3, 96, 128)
    before, tables = model.forward_features(images), {n: t.clone() for n, t in model.state_dict().items()}
    model.set_input_size((96, 128))
    assert model.mask_layout.units == (3, 4)
    torch.testing.assert_close(model.forward_features(images), before, rtol=0, atol=0)
    assert all(torch.equal(t, tables[n]) for n, t in model.state_dict().items())
