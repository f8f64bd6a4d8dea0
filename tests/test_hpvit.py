"""What is HPViT's own: the plain ViT that it was, pooling, windows, and the arguments that change them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

import hiermim_zoo
from hiermim_zoo.geometry import sincos_table
from hiermim_zoo.layers.windows import from_windows, to_windows, window_mask
from hiermim_zoo.models.hpvit_model import HPViT, WindowAttention
from hiermim_zoo.models.measure import measure
from hiermim_zoo.models.shapes import without_memory

TOY: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


def toy(depths: tuple[int, ...] = (1, 1, 2, 1), **kwargs: Any) -> HPViT:
    model = HPViT(**{**TOY, "depths": depths, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def image(height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


# ---- the plain ViT that it was


@torch.inference_mode()
@pytest.mark.parametrize(("patch", "side"), [(16, 64), (14, 70)])
def test_without_pooling_it_is_timms_plain_vit(patch: int, side: int) -> None:
    plain = VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=32,
        depth=3,
        num_heads=2,
        num_classes=5,
        class_token=False,
        global_pool="avg",
    ).eval()
    for parameter in plain.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    flat = HPViT(
        **{**TOY, "img_size": side}, depths=(3,), patch_size=patch, patch_stride=patch, window_size=None
    ).eval()
    flat.load_state_dict(plain.state_dict())
    x = image(side, side)
    torch.testing.assert_close(flat.forward_features(x), plain.forward_features(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flat(x), plain(x), rtol=1e-5, atol=1e-6)
    # Negative control: positions in other places, or rows of a weight.
    for parameter in (flat.pos_embed, flat.blocks[0].mlp.fc1.weight):
        before = parameter.clone()
        parameter.copy_(parameter.roll(1, 1))
        assert not torch.allclose(flat(x), plain(x), rtol=1e-3, atol=1e-4)
        parameter.copy_(before)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("hpvit_tiny", "vit_tiny_patch16_224"),
        ("hpvit_small", "vit_small_patch16_224"),
        ("hpvit_base", "vit_base_patch16_224"),
        ("hpvit_huge", "vit_huge_patch14_224"),
    ],
)
def test_parameters_are_the_plain_vits_but_for_positions_and_pooling(name: str, plain: str) -> None:
    with without_memory():
        ours = timm.create_model(name, num_classes=1000).state_dict()
        conv = timm.create_model(name, num_classes=1000, pool="conv").state_dict()
        theirs = timm.create_model(plain, class_token=False, global_pool="avg", num_classes=1000).state_dict()
    shapes = {n: t.shape for n, t in theirs.items()}
    width = theirs["pos_embed"].shape[-1]
    assert {n: t.shape for n, t in ours.items()} == {**shapes, "pos_embed": (1, 56 * 56, width)}
    pools = {f"pools.{i}.{n}": s for i in range(3) for n, s in (("weight", (width, 1, 2, 2)), ("bias", (width,)))}
    assert {n: t.shape for n, t in conv.items()} == {**{n: t.shape for n, t in ours.items()}, **pools}


def test_the_smallest_is_small() -> None:
    model = timm.create_model("hpvit_atto", num_classes=10)
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 0.9e6
    assert model.patch_embed.grid_size == (16, 16)


@torch.inference_mode()
@pytest.mark.parametrize("patch", [16, 14])
def test_every_patch_is_centred_on_its_cell(patch: int) -> None:
    """Token (i, j) sees the p x p pixels around the middle of its 4 x 4 cell."""
    model = toy(patch_size=patch)
    x = image()
    found = model.patch_embed(x)
    border = (patch - 4) // 2
    padded = F.pad(x, (border,) * 4)
    for i, j in ((0, 0), (5, 9), (15, 15)):
        patch_of = padded[:, :, 4 * i : 4 * i + patch, 4 * j : 4 * j + patch]
        expected = torch.einsum("bchw,ochw->bo", patch_of, model.patch_embed.proj.weight) + model.patch_embed.proj.bias
        torch.testing.assert_close(found[:, i, j], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[:, i, (j + 1) % 16], expected, rtol=1e-2, atol=1e-2)


# ---- pooling


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 64), (50, 90)])
def test_convolutional_pooling_starts_as_the_mean(size: tuple[int, int]) -> None:
    mean = toy()
    conv = HPViT(**TOY, depths=(1, 1, 2, 1), pool="conv").eval()
    missing, unexpected = conv.load_state_dict(mean.state_dict(), strict=False)
    assert (sorted(missing), unexpected) == (sorted(f"pools.{i}.{n}" for i in range(3) for n in ("weight", "bias")), [])
    torch.testing.assert_close(conv(image(*size)), mean(image(*size)), rtol=1e-5, atol=1e-6)
    conv.pools[1].weight[:, :, 0, 0] = 0.3  # negative control
    assert not torch.allclose(conv(image(*size)), mean(image(*size)), rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_the_model_is_pooling_between_blocks() -> None:
    """The whole pass, written out on maps."""
    model = toy(window_size=None)
    x = model.patch_embed(image()) + model.pos_embed.unflatten(1, (16, 16))
    maps = []
    for stage in ((0,), (1,), (2, 3), (4,)):
        if maps:
            x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        for i in stage:
            x = model.blocks[i](x)
        maps.append(x.permute(0, 3, 1, 2))
    for found, expected in zip(model.forward_intermediates(image(), intermediates_only=True), maps, strict=True):
        torch.testing.assert_close(found, expected)


# ---- windows


def test_stages_finer_than_the_plain_vits_patches_have_windows() -> None:
    with without_memory():
        for name, first_global in (("hpvit_base", 2), ("hpvit_large", 4), ("hpvit_huge", 4)):
            windows = [block.attn.window for block in timm.create_model(name).blocks]
            assert windows == [14] * first_global + [None] * (len(windows) - first_global)
        assert {b.attn.window for b in timm.create_model("hpvit_base", window_size=0).blocks} == {None}


@torch.inference_mode()
def test_one_window_over_the_grid_is_global_attention() -> None:
    model, everywhere = toy(window_size=16), toy(window_size=None)
    everywhere.load_state_dict(model.state_dict())
    assert torch.equal(model(image()), everywhere(image()))
    smaller = toy(window_size=8)  # negative control
    smaller.load_state_dict(model.state_dict())
    assert not torch.allclose(smaller(image()), everywhere(image()), rtol=1e-3, atol=1e-4)


def attention_by_hand(attn: WindowAttention, x: Tensor, window: int, masked: bool) -> Tensor:
    """Window by window, the tokens of the grid alone (or, not ``masked``, with those of the padding)."""
    b, h, w, c = x.shape
    padded = F.pad(x, (0, 0, 0, -w % window, 0, -h % window))
    out = torch.zeros_like(x)
    for top in range(0, h, window):
        for left in range(0, w, window):
            source = x if masked else padded
            part = source[:, top : top + window, left : left + window]
            rows, cols = part.shape[1:3]
            q, k, v = attn.qkv(part.flatten(1, 2)).reshape(b, rows * cols, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
            result = attn.proj((weights @ v).transpose(1, 2).reshape(b, rows, cols, c))
            out[:, top : top + window, left : left + window] = result[:, : h - top, : w - left]
    return out


@torch.inference_mode()
@pytest.mark.parametrize(("grid", "window"), [((9, 7), 4), ((8, 10), 4), ((5, 5), 3)])
def test_padding_of_windows_is_not_attended_to(grid: tuple[int, int], window: int) -> None:
    attn = WindowAttention(32, 2, window).eval()
    torch.nn.init.normal_(attn.qkv.bias)
    x = torch.randn(2, *grid, 32)
    torch.testing.assert_close(attn(x), attention_by_hand(attn, x, window, masked=True), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        attn(x), attention_by_hand(attn, x, window, masked=False), rtol=1e-2, atol=1e-3
    )  # negative control
    attn.fused_attn = False
    torch.testing.assert_close(attn(x), attention_by_hand(attn, x, window, masked=True), rtol=1e-4, atol=1e-5)


def test_windows_and_back() -> None:
    x = torch.arange(2 * 5 * 7).reshape(2, 5, 7, 1)
    for window in (2, 3, 7, 9, None):
        assert torch.equal(from_windows(to_windows(x, window), x, window), x)
    assert to_windows(x, None).shape == (2, 35, 1)
    assert to_windows(x, 4)[1, :, 0].tolist() == [4, 5, 6, 0, 11, 12, 13, 0, 18, 19, 20, 0, 25, 26, 27, 0]
    mask = window_mask(x, 4)
    assert mask is not None
    assert mask.shape == (8, 1, 1, 16)
    assert mask[1].flatten().tolist() == [True, True, True, False] * 4
    assert mask[3].flatten().tolist() == [True, True, True, False] + [False] * 12
    assert window_mask(x, 7) is None, "a window of 5 x 7 covers the grid"


def test_attention_is_fused_four_dimensional_and_masked_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[int, ...], bool]] = []
    fused = F.scaled_dot_product_attention

    def spy(q: Tensor, *args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        calls.append((tuple(q.shape), attn_mask is not None))
        return fused(q, *args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    toy((1, 1, 1, 1), window_size=8)(image())
    assert calls == [((8, 2, 64, 16), False), ((2, 2, 64, 16), False), ((2, 2, 16, 16), False), ((2, 2, 4, 16), False)]
    calls.clear()
    toy((1, 1, 1, 1), window_size=7)(image())
    assert calls[:2] == [((18, 2, 49, 16), True), ((8, 2, 49, 16), True)]
    assert not any(masked for _, masked in calls[2:])


# ---- the class token


@torch.inference_mode()
def test_without_pooling_the_class_token_is_that_of_timms_plain_vit() -> None:
    shape: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 16,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "num_classes": 5,
    }
    plain = VisionTransformer(**shape, global_pool="avg").eval()
    for parameter in plain.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    flat = HPViT(**TOY, depths=(3,), patch_stride=16, class_token=True).eval()
    state = dict(plain.state_dict())
    state["cls_embed"] = state.pop("cls_token") + state["pos_embed"][:, :1]
    flat.load_state_dict({**state, "pos_embed": state["pos_embed"][:, 1:]})
    torch.testing.assert_close(flat(image()), plain(image()), rtol=1e-5, atol=1e-6)
    flat.cls_embed.zero_()  # negative control
    assert not torch.allclose(flat(image()), plain(image()), rtol=1e-3, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 64), (50, 90)])
def test_windows_share_one_class_token(size: tuple[int, int]) -> None:
    """A token of every window, without its padding; what the windows make of it is averaged."""
    attn = WindowAttention(32, 2, 4).eval()
    x, token = torch.randn(2, *(-(-side // 16) for side in size), 32), torch.randn(2, 1, 32)
    found, averaged = attn(x, token)
    tokens = []
    for top in range(0, x.shape[1], 4):
        for left in range(0, x.shape[2], 4):
            part = x[:, top : top + 4, left : left + 4]
            both = torch.cat([token, part.flatten(1, 2)], 1)
            expected = super(WindowAttention, attn).forward(both)
            inside = found[:, top : top + 4, left : left + 4].flatten(1, 2)
            torch.testing.assert_close(inside, expected[:, 1:], rtol=1e-4, atol=1e-5)
            tokens.append(expected[:, :1])
    torch.testing.assert_close(averaged, torch.stack(tokens).mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(averaged, tokens[0], rtol=1e-2, atol=1e-3) or len(tokens) == 1


def test_a_class_token_is_trained_like_the_rest() -> None:
    model = toy(class_token=True, window_size=7, drop_path_rate=0.1).train()
    model.set_grad_checkpointing()
    model(image()).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert "cls_embed" in model.no_weight_decay()
    layer = {name: i for i, names in group_parameters(model, model.group_matcher()).items() for name in names}
    assert layer["cls_embed"] == layer["pos_embed"] == 0


def test_the_multiply_adds_of_a_class_token_are_counted() -> None:
    assert 1 < measure("hpvit_atto", class_token=True).macs / measure("hpvit_atto").macs < 1.1


@torch.inference_mode()
def test_a_class_token_is_exported_and_traced_like_the_rest() -> None:
    model = toy((1, 1), class_token=True, window_size=7)
    exported = torch.export.export(model, (image(),), strict=True).module()  # one graph, without breaks
    torch.testing.assert_close(exported(image()), model(image()), rtol=1e-4, atol=1e-5)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(image()), model(image()), rtol=1e-4, atol=1e-5)


# ---- stages, layers, arguments


@torch.inference_mode()
def test_fewer_stages_have_fewer_maps() -> None:
    flat = timm.create_model("hpvit_atto", depths=(6,), patch_stride=16, features_only=True)
    assert (flat.feature_info.reduction(), [tuple(m.shape) for m in flat(image())]) == ([16], [(2, 96, 4, 4)])
    two = timm.create_model("hpvit_atto", depths=(3, 3), patch_stride=8, features_only=True)
    assert (two.feature_info.reduction(), [tuple(m.shape[2:]) for m in two(image())]) == ([8, 16], [(8, 8), (4, 4)])


def test_unused_parts_are_pruned_for_fine_features() -> None:
    backbone = timm.create_model("hpvit_atto", features_only=True, out_indices=(0, 1), pool="conv")
    sum(m.mean() for m in backbone(image())).backward()
    assert not [n for n, p in backbone.named_parameters() if p.grad is None]
    assert backbone.feature_info.reduction() == [4, 8]


def test_layers_are_counted_as_in_the_plain_vits_finetuning() -> None:
    """0 for stem and positions, 1 to 12 for the blocks, a pooling with the block before it, 13 for norm and head."""
    with without_memory():
        model = timm.create_model("hpvit_base", num_classes=10, pool="conv")
    layer = {name: i for i, names in group_parameters(model, model.group_matcher()).items() for name in names}
    assert {layer[n] for n in ("pos_embed", "patch_embed.proj.weight")} == {0}
    assert [layer[f"blocks.{i}.norm2.weight"] for i in range(12)] == list(range(1, 13))
    assert [layer[f"pools.{i}.weight"] for i in range(3)] == [1, 2, 11]
    assert {layer[n] for n in ("fc_norm.weight", "head.weight")} == {13}
    coarse = {
        name: i for i, names in group_parameters(model, model.group_matcher(coarse=True)).items() for name in names
    }
    assert [coarse[f"blocks.{i}.mlp.fc1.weight"] for i in (0, 1, 2, 10, 11)] == [1, 2, 3, 3, 4]
    assert [coarse[f"pools.{i}.bias"] for i in range(3)] == [1, 2, 3]


def test_stochastic_depth_rises_over_the_blocks() -> None:
    model = timm.create_model("hpvit_atto", drop_path_rate=0.5)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(6)])


def test_initial_values_also_after_a_build_without_memory() -> None:
    with without_memory():
        model = timm.create_model("hpvit_atto", pool="conv")
    model.to_empty(device="cpu").init_weights()
    torch.testing.assert_close(model.pos_embed.data, sincos_table((16, 16), 96))
    assert (model.pools[0].weight == 1 / 4).all()
    assert not model.pools[0].bias.any()
    assert 0.015 < model.blocks[-1].mlp.fc1.weight.std() < 0.025
    assert torch.isfinite(model(image())).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pool": "max"}, "pool='max' is unknown, use 'avg' or 'conv'"),
        ({"depths": ()}, r"depths=\(\)"),
        ({"depths": (1, 0, 1, 1)}, r"depths=\(1, 0, 1, 1\)"),
        ({"depths": (1,) * 5}, "one to four"),
        ({"patch_stride": 3}, "patch_stride=3"),
        ({"patch_stride": 18}, "patch_stride=18"),
        ({"window_size": -1}, "window_size=-1"),
        ({"num_heads": 5}, "num_heads=5"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("hpvit_atto", **kwargs)


def test_it_is_converted_and_not_pretrained() -> None:
    assert not hasattr(HPViT, "forward_visible")
    with pytest.raises(ValueError, match="hpvit_atto cannot be pre-trained by masking"):
        hiermim_zoo.create_mae("hpvit_atto")
