"""What is HiViT's own: sizes, taps, layers as the authors count them, attention, initial values."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from hiermim_zoo.geometry import from_units, sincos_table, to_units
from hiermim_zoo.layers.position import relative_position_bias, relative_position_index, resample_bias_table
from hiermim_zoo.models.hivit_model import UnitMerge
from hiermim_zoo.models.shapes import without_memory


@pytest.mark.parametrize(
    ("name", "parameters"), [("hivit_tiny", 19_181_668), ("hivit_small", 37_526_464), ("hivit_base", 66_418_952)]
)
def test_parameters_are_those_of_the_authors_classes(name: str, parameters: int) -> None:
    with without_memory():
        model = timm.create_model(name, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_embedded_size_is_what_it_should_be() -> None:
    model = timm.create_model("hivit_atto", num_classes=10)
    assert 0.45e6 < sum(p.numel() for p in model.parameters()) < 0.55e6
    assert model.patch_embed.img_size == (64, 64)
    assert model.patch_embed.num_patches == 16


def test_layers_are_counted_as_in_the_authors_finetuning() -> None:
    """0 for the stem and positions, 1 to 28 for the blocks, a merge with the block before it, 29 for norm and head."""
    with without_memory():
        model = timm.create_model("hivit_base")
    layer = {name: i for i, names in group_parameters(model, model.group_matcher()).items() for name in names}
    assert {layer[n] for n in ("absolute_pos_embed", "patch_embed.proj.weight", "patch_embed.norm.bias")} == {0}
    found = [layer[f"blocks.{i}.{'norm' if i in (4, 9) else 'norm2'}.weight"] for i in range(30)]
    assert found == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, *range(9, 29)]
    assert {layer[n] for n in ("fc_norm.weight", "head.weight", "head.bias")} == {29}
    coarse = {
        name: i for i, names in group_parameters(model, model.group_matcher(coarse=True)).items() for name in names
    }
    assert [coarse[f"blocks.{i}.mlp.fc1.weight"] for i in (0, 3, 5, 8, 10, 29)] == [1, 1, 2, 2, 3, 3]


def test_tables_take_no_weight_decay() -> None:
    model = timm.create_model("hivit_atto")
    tables = {f"blocks.{i}.attn.relative_position_bias_table" for i in range(6, 10)}
    assert model.no_weight_decay() == {"absolute_pos_embed"} | tables


def test_stochastic_depth_rises_over_the_blocks_and_spares_the_merges() -> None:
    model = timm.create_model("hivit_atto", drop_path_rate=0.7)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks if not isinstance(block, UnitMerge)]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def outputs_of(model: nn.Module, modules: list[str], image: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [model.get_submodule(m).register_forward_hook(lambda _m, _i, out: found.append(out)) for m in modules]
    model(image)
    for hook in hooks:
        hook.remove()
    return found


@torch.inference_mode()
@pytest.mark.parametrize(
    ("taps", "modules"), [("stages", ["blocks.1", "blocks.4"]), ("detectors", ["blocks.0", "blocks.2"])]
)
def test_fine_maps_are_taken_where_asked(taps: str, modules: list[str]) -> None:
    """Ends of the stages, or half-way through the first and right after the first merge; feature_info names them."""
    model = timm.create_model("hivit_atto", feature_taps=taps).eval()
    assert [info["module"] for info in model.feature_info[:2]] == modules
    image = torch.randn(1, 3, 64, 64)
    maps = model.forward_intermediates(image, [0, 1], output_fmt="NHWC", intermediates_only=True)
    for found, units in zip(maps, outputs_of(model, modules, image), strict=True):
        assert torch.equal(found, from_units(units, (4, 4)))
    backbone = timm.create_model("hivit_atto", feature_taps=taps, features_only=True)
    assert [tuple(m.shape[1:]) for m in backbone(image)] == [(24, 16, 16), (48, 8, 8), (96, 4, 4), (96, 2, 2)]


def test_taps_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="feature_taps='ends' is unknown"):
        timm.create_model("hivit_atto", feature_taps="ends")
    with pytest.raises(ValueError, match=r"depths=\(1, 2, 4\)"):
        timm.create_model("hivit_atto", feature_taps="detectors", depths=(1, 2, 4))


@torch.inference_mode()
def test_the_coarsest_map_is_the_pooled_one() -> None:
    maps = timm.create_model("hivit_atto", features_only=True).eval()(torch.randn(1, 3, 64, 96))
    assert torch.equal(maps[3], F.max_pool2d(maps[2], 2))


def test_unused_parts_are_pruned_for_fine_features() -> None:
    backbone = timm.create_model("hivit_atto", features_only=True, out_indices=(0, 1))
    sum(m.mean() for m in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert not [n for n, p in backbone.named_parameters() if p.grad is None]
    assert backbone.feature_info.reduction() == [4, 8]


def test_a_merge_joins_neighbours_column_by_column() -> None:
    merge = UnitMerge(1)
    seen: list[Tensor] = []
    merge.norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    merge(torch.arange(16.0).reshape(1, 1, 4, 4, 1))
    assert seen[0][0, 0, 0, 0].tolist() == [0, 4, 1, 5]
    assert seen[0][0, 0, 1, 1].tolist() == [10, 14, 11, 15]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_fused_and_four_dimensional(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    """5-D tensors would fall to a slow path."""
    calls: list[tuple[int, ...]] = []
    fused = F.scaled_dot_product_attention

    def spy(q: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append(tuple(q.shape))
        return fused(q, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = timm.create_model("hivit_atto")
    images = torch.randn(2, 3, 64, 64)
    _ = model.forward_visible(images, torch.tensor([[0, 5, 9], [1, 2, 3]])) if masked else model(images)
    assert calls == [(2, 3, 3 if masked else 16, 32)] * 4


# ---- geometry


def test_the_relative_index_is_the_published_formula() -> None:
    h, w = 3, 5
    index = relative_position_index((h, w))
    for i in range(h * w):
        for j in range(h * w):
            rows, cols = i // w - j // w, i % w - j % w
            assert index[i, j] == (rows + h - 1) * (2 * w - 1) + cols + w - 1


def test_the_bias_of_a_pair_is_its_row_of_the_table() -> None:
    table = torch.randn(5 * 9, 2)
    index = relative_position_index((3, 5))
    bias = relative_position_bias(table, index[None])
    assert bias.shape == (1, 2, 15, 15)
    assert bias.is_contiguous()
    assert torch.equal(bias[0, 1, 4, 7], table[index[4, 7], 1])


def test_resampled_tables_keep_the_meaning_of_offsets() -> None:
    """A table that is linear in the offset stays so, as nearly as bicubic interpolation can; the middle stays."""
    rows = torch.arange(-6.0, 7.0)
    table = torch.stack([rows[:, None].expand(13, 13).flatten(), rows.expand(13, 13).flatten()], dim=1)
    new = resample_bias_table(table, (7, 7), (14, 14)).reshape(27, 27, 2)
    assert new[13, 13].tolist() == pytest.approx([0, 0], abs=1e-5)
    torch.testing.assert_close(new[4:-4, 13, 0], torch.arange(-9.0, 10.0) * 13 / 27, rtol=0, atol=0.05)
    assert resample_bias_table(table, (7, 7), (7, 7)) is table


def test_units_and_back() -> None:
    for axes, cells in (((6, 8), (2, 4)), ((4, 6, 8), (2, 3, 2))):
        x = torch.arange(2 * torch.Size(axes).numel() * 3).reshape(2, *axes, 3)
        units = to_units(x, cells)
        grid = [a // c for a, c in zip(axes, cells, strict=True)]
        assert units.shape == (2, torch.Size(grid).numel(), *cells, 3)
        assert torch.equal(from_units(units, grid), x)
    assert torch.equal(
        to_units(torch.arange(16).reshape(1, 4, 4, 1), (2, 2))[0, 1, :, :, 0], torch.tensor([[2, 3], [6, 7]])
    )


def test_sine_cosine_positions_put_the_column_first() -> None:
    table = sincos_table((2, 3), 8)[0].reshape(2, 3, 8)
    frequency = torch.tensor([1.0, 0.01])
    row, col = 1.0, 2.0
    expected = torch.cat(
        [(col * frequency).sin(), (col * frequency).cos(), (row * frequency).sin(), (row * frequency).cos()]
    )
    torch.testing.assert_close(table[1, 2], expected)
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sincos_table((2, 2), 6)


def test_initial_values() -> None:
    model = timm.create_model("hivit_atto")
    torch.testing.assert_close(model.absolute_pos_embed.data, sincos_table((4, 4), 96))
    assert not any(model.get_parameter(n).any() for n in model.state_dict() if n.endswith("bias_table"))
    assert 0.015 < model.blocks[-1].mlp.fc1.weight.std() < 0.025
    assert not model.blocks[-1].mlp.fc1.bias.any()
