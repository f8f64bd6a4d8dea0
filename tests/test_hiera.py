"""What is Hiera's own: order of tokens, windows, pooling, positions, clips, initial values, its autoencoder."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv, group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from hiermim_zoo import convert
from hiermim_zoo.geometry import from_units, to_units
from hiermim_zoo.mae import create_mae
from hiermim_zoo.models import hiera
from hiermim_zoo.models.family import family_named, family_of
from hiermim_zoo.models.hiera_parts import from_pooling_order, max_pool, resize_frames, resize_table, to_pooling_order
from hiermim_zoo.models.shapes import without_memory
from hiermim_zoo.training.autoencoder import undecayed
from hiermim_zoo.training.defaults import pretraining_of

PARAMETERS = {
    "hiera_tiny": 27_910_216,
    "hiera_small": 35_008_072,
    "hiera_base": 51_524_968,
    "hiera_base_plus": 69_896_616,
    "hiera_large": 213_739_912,
    "hiera_huge": 672_779_752,
    "hiera_base_video": 51_092_560,
    "hiera_base_plus_video": 69_392_240,
    "hiera_large_video": 213_091_600,
    "hiera_huge_video": 671_627_664,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters_are_those_of_the_authors_classes(name: str, parameters: int) -> None:
    with without_memory():
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.num_classes == (400 if name.endswith("_video") else 1000)


@pytest.mark.parametrize(
    ("name", "parameters", "kept", "units"),
    [
        ("hiera_tiny", 55_020_896, 19, 49),
        ("hiera_base_video", 79_367_104, 39, 392),
        ("hiera_huge_video", 710_861_568, 39, 392),
    ],
)
def test_autoencoders_are_those_of_the_authors(name: str, parameters: int, kept: int, units: int) -> None:
    """The norm before the classifier is not theirs. What is kept is rounded down."""
    with without_memory():
        mae = create_mae(name)
    assert sum(p.numel() for n, p in mae.named_parameters() if "fc_norm" not in n) == parameters
    assert (mae.kept, mae.units) == (kept, units)
    assert mae.layout.stride[-2:] == (16, 16)
    assert mae.decoder.pred.out_features == 16 * 16 * 3


def test_the_small_size_is_what_it_should_be() -> None:
    model = timm.create_model("hiera_atto", num_classes=10)
    assert 0.7e6 < sum(p.numel() for p in model.parameters()) < 0.85e6
    assert (model.patch_embed.img_size, model.patch_embed.grid_size) == ((96, 96), (3, 3))


def test_layers_are_the_blocks() -> None:
    model = timm.create_model("hiera_atto")
    layer = {name: i for i, names in group_parameters(model, model.group_matcher()).items() for name in names}
    assert {layer[n] for n in ("pos_embed", "patch_embed.proj.weight")} == {0}
    assert [layer[f"blocks.{i}.norm1.weight"] for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert layer["blocks.1.proj.weight"] == 2
    assert {layer[n] for n in ("fc_norm.weight", "head.weight")} == {7}
    coarse = {
        name: i for i, names in group_parameters(model, model.group_matcher(coarse=True)).items() for name in names
    }
    assert [coarse[f"blocks.{i}.mlp.fc1.weight"] for i in range(6)] == [1, 2, 3, 3, 3, 4]
    assert model.no_weight_decay() == {"pos_embed"}
    clips = timm.create_model("hiera_atto", num_frames=4)
    assert clips.no_weight_decay() == {"pos_embed_spatial", "pos_embed_temporal"}


def test_initial_values() -> None:
    model = timm.create_model("hiera_atto", num_classes=10)
    block = model.blocks[-1]
    assert 0.015 < block.mlp.fc1.weight.std() < 0.025
    assert torch.equal(block.mlp.fc1.bias, torch.full((768,), 0.02))
    assert torch.equal(block.norm1.bias, torch.full((96,), 0.02))
    assert model.head.weight.abs().max() < 1e-4
    assert 0.015 < model.pos_embed.std() < 0.025
    encoder = create_mae("hiera_atto").encoder
    assert not encoder.blocks[-1].mlp.fc1.bias.any()
    assert not encoder.blocks[-1].norm1.bias.any()
    assert encoder.patch_embed.proj.weight.std() > 0.03  # Xavier-uniform: sqrt(2 / (147 + 24)) = 0.1


# ---- order, windows, pooling


@pytest.mark.parametrize("pool", [(2, 2), (1, 2, 2)])
def test_pooling_in_its_order_is_pooling_of_the_map(pool: tuple[int, ...]) -> None:
    """Three times over; and the order can be undone after each."""
    cells = tuple(p**3 for p in pool)
    x = torch.randn(2, 5, *cells, 3)
    tokens = to_pooling_order(x, pool, 3)
    for times in (3, 2, 1, 0):
        assert torch.equal(from_pooling_order(tokens, pool, times), x)
        assert torch.equal(to_pooling_order(x, pool, times), tokens)
        if times:
            tokens = max_pool(tokens, 4)
            flat = x.flatten(0, -4).movedim(-1, 1)  # frames are pooled one by one
            x = F.max_pool2d(flat, 2).movedim(1, -1).unflatten(0, x.shape[:-3])


def test_the_order_is_that_of_the_paper() -> None:
    """y = 4 y3 + 2 y2 + y1: the first two tokens differ by 4 columns, the first quarter is of even places."""
    place = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"), dim=-1)[None, None]
    tokens = to_pooling_order(place, (2, 2), 3)[0, 0]
    assert tokens[:3].tolist() == [[0, 0], [0, 4], [4, 0]]
    assert not (tokens[:16] % 2).any()


@pytest.mark.parametrize(("q_pool", "masked"), [(3, False), (2, True)])
def test_attention_is_fused_and_its_windows_lag_behind(
    monkeypatch: pytest.MonkeyPatch, q_pool: int, masked: bool
) -> None:
    """Four dimensions: 5-D tensors would take a slow path. The first block of stage 3 still attends inside its unit."""
    calls: list[tuple[tuple[int, ...], int]] = []
    fused = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append((tuple(q.shape[:3]), k.shape[2]))
        return fused(q, k, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = timm.create_model("hiera_atto", q_pool=q_pool)
    images, n = torch.randn(2, 3, 64, 96), 4 if masked else 6
    _ = model.forward_visible(images, torch.tensor([[0, 1, 2, 3], [0, 2, 4, 5]])) if masked else model(images)
    inside = [((2 * n, 1, 64), 64), ((2 * n, 2, 16), 64), ((2 * n, 4, 4), 16)]
    last = ((2, 8, n if q_pool == 3 else 4 * n), 4 * n)
    assert calls == [*inside, *[((2, 4, 4 * n), 4 * n)] * 2, last]


@torch.inference_mode()
def test_the_embedding_unit_by_unit_is_the_convolution() -> None:
    for name, images, kernel in (("hiera_atto", torch.randn(2, 3, 64, 96), (3, 3)),):
        embed = timm.create_model(name).patch_embed
        whole = F.conv2d(images, embed.proj.weight, embed.proj.bias, (4, 4), kernel).movedim(1, -1)
        torch.testing.assert_close(from_units(embed(images), (2, 3)), whole, rtol=1e-4, atol=1e-5)
    embed, clips = timm.create_model("hiera_atto", num_frames=4).patch_embed, torch.randn(1, 3, 4, 64, 32)
    whole = F.conv3d(clips, embed.proj.weight, embed.proj.bias, (2, 4, 4), (1, 3, 3)).movedim(1, -1)
    torch.testing.assert_close(from_units(embed(clips), (2, 2, 1)), whole, rtol=1e-4, atol=1e-5)
    keep = torch.tensor([[1, 2]])
    shown = torch.zeros(2, 2, 1).flatten().scatter(0, keep[0], 1.0).view(1, 1, 2, 2, 1)
    for axis, repeats in enumerate((2, 32, 32), 2):
        shown = shown.repeat_interleave(repeats, axis)
    whole = F.conv3d(clips * shown, embed.proj.weight, embed.proj.bias, (2, 4, 4), (1, 3, 3)).movedim(1, -1)
    visible = to_units(whole, (1, 8, 8))[:, keep[0]]
    torch.testing.assert_close(embed(clips, keep), visible, rtol=1e-4, atol=1e-5)


# ---- positions at other sizes


def test_what_repeats_in_every_unit_stays_in_its_place() -> None:
    """A table that is a slope plus a pattern of the units: "window" stretches the slope alone, "plain" both."""
    pattern = torch.randn(8, 8, 3)
    pattern = pattern - pattern.mean(dim=(0, 1))
    slope = torch.linspace(-1, 1, 32)[:, None, None].expand(32, 32, 3)
    table = (slope + pattern.repeat(4, 4, 1)).reshape(1, -1, 3)
    resized = {how: resize_table(table, (4, 4), (6, 5), how) for how in ("window", "plain")}
    ideal = torch.linspace(-1, 1, 48)[:, None, None].expand(48, 40, 3) + pattern.repeat(6, 5, 1)
    error = {how: (found.reshape(48, 40, 3) - ideal).abs().mean() for how, found in resized.items()}
    assert error["window"] < 0.1
    assert error["plain"] > 0.5
    assert all(resize_table(table, (4, 4), (4, 4), how) is table for how in resized)


def test_positions_in_time_are_resampled_linearly() -> None:
    table = torch.arange(8.0).reshape(1, 8, 1)
    assert resize_frames(table, 8) is table
    assert resize_frames(table, 4).flatten().tolist() == [0.5, 2.5, 4.5, 6.5]
    assert resize_frames(table, 16).flatten()[1:-1].diff().tolist() == pytest.approx([0.5] * 13)


@torch.inference_mode()
@pytest.mark.parametrize("how", ["plain", "window"])
def test_loading_at_another_size_resizes_as_asked(how: str) -> None:
    source = timm.create_model("hiera_atto", num_classes=0)
    overlay = {"state_dict": source.state_dict(), "num_classes": 0}
    loaded = timm.create_model(
        "hiera_atto", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=(96, 64), pos_resize=how
    )
    assert torch.equal(loaded.pos_embed, resize_table(source.pos_embed, (3, 3), (3, 2), how))


# ---- clips


@pytest.fixture(scope="module")
def clips() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("hiera_atto", num_frames=4, num_classes=5).eval()


CLIP = torch.randn(2, 3, 4, 64, 96, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_clips_have_maps_with_frames(clips: nn.Module) -> None:
    final, maps = clips.forward_intermediates(CLIP)
    assert [tuple(m.shape) for m in maps] == [(2, 24 * 2**s, 2, 16 // 2**s, 24 // 2**s) for s in range(4)]
    assert torch.equal(final, clips.forward_features(CLIP))
    assert torch.equal(final, maps[3].flatten(2).mT)
    assert torch.equal(clips(CLIP), clips.forward_head(final))
    assert torch.equal(clips.train()(CLIP), clips.eval()(CLIP))  # logits, not probabilities, either way
    for output_fmt, form in (("NHWC", lambda m: m.movedim(1, -1)), ("NLC", lambda m: m.flatten(2).mT)):
        same = clips.forward_intermediates(CLIP, output_fmt=output_fmt, intermediates_only=True)
        assert all(torch.equal(a, form(b)) for a, b in zip(same, maps, strict=True))
    backbone = timm.create_model("hiera_atto", num_frames=4, features_only=True, out_indices=(1, 2)).eval()
    assert [m.shape[1:] for m in backbone(CLIP)] == [(48, 2, 8, 12), (96, 2, 4, 6)]
    odd = clips.forward_intermediates(torch.randn(1, 3, 6, 33, 95), intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in odd] == [(3, -(-33 // r), -(-95 // r)) for r in (4, 8, 16, 32)]


@torch.inference_mode()
def test_visible_parts_of_clips(clips: nn.Module) -> None:
    keep = torch.tensor([[0, 7], [5, 6]])
    stages = clips.forward_visible(CLIP[..., :64], keep).stages
    _, levels = clips.forward_intermediates(CLIP[..., :64], keep=keep)
    assert [tuple(level.shape[2:]) for level in levels] == [(24 * 2**s, 1, 8 // 2**s, 8 // 2**s) for s in range(4)]
    for level, stage in zip((levels[0], levels[1], levels[3]), stages, strict=True):
        assert torch.equal(level.movedim(2, -1), stage)


@torch.inference_mode()
def test_setting_frames_and_size_equals_resampling_on_the_fly(clips: nn.Module) -> None:
    resized = copy.deepcopy(clips)
    resized.set_input_size((64, 96), num_frames=8)
    longer = CLIP.repeat_interleave(2, dim=2)
    torch.testing.assert_close(resized(longer), clips(longer))
    assert resized.mask_layout.units == (4, 2, 3)
    built = timm.create_model("hiera_atto", num_frames=8, num_classes=5, img_size=(64, 96))
    assert {n: t.shape for n, t in built.state_dict().items()} == {n: t.shape for n, t in resized.state_dict().items()}


@torch.inference_mode()
def test_checkpoints_of_clips_keep_their_frames_or_are_resampled(clips: nn.Module, tmp_path: Path) -> None:
    torch.save(clips.state_dict(), tmp_path / "clips.pth")
    args = ["--model", "hiera_atto", "-o", str(tmp_path / "out"), "--verify"]
    convert.main([str(tmp_path / "clips.pth"), *args])
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(loaded(CLIP), clips(CLIP))
    other = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_frames=8, in_chans=1)
    assert torch.equal(other.pos_embed_temporal, resize_frames(clips.pos_embed_temporal, 4))
    torch.testing.assert_close(other.patch_embed.proj.weight, clips.patch_embed.proj.weight.sum(1, keepdim=True))


@torch.inference_mode()
def test_inflated_weights_see_in_a_still_clip_what_they_saw_in_an_image() -> None:
    torch.manual_seed(5)
    source: Any = timm.create_model("hiera_atto", img_size=64, num_classes=7).eval()
    for parameter in source.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    native = family_named("hiera").native(source.state_dict())
    found = {}
    for how in ("center", "mean"):
        video: Any = timm.create_model("hiera_atto_video", num_classes=7).eval()
        video.load_state_dict(hiera.FAMILY.adapt(hiera.inflate(native, "hiera_atto_video", how), video))
        found[how] = video
    image = torch.randn(2, 3, 64, 64)
    still = image[:, :, None].expand(-1, -1, 8, -1, -1)
    torch.testing.assert_close(found["center"](still), source(image), rtol=1e-4, atol=1e-5)
    ours_all, theirs_all = found["center"].forward_intermediates(still)[1], source.forward_intermediates(image)[1]
    for ours, theirs in zip(ours_all, theirs_all, strict=True):
        torch.testing.assert_close(ours, theirs[:, :, None].expand_as(ours), rtol=1e-4, atol=1e-4)
    moved = found["center"](still.roll(1, -1))  # negative control
    assert not torch.allclose(moved, source(image), rtol=1e-3, atol=1e-4)
    frames = (
        found["mean"].patch_embed(still).unflatten(1, (4, -1))[:, 1:, :, 0]
    )  # [B, 3, u, 8, 8, c], all but the first
    torch.testing.assert_close(frames, source.patch_embed(image)[:, None].expand_as(frames), rtol=1e-4, atol=1e-5)


def test_inflating_is_a_matter_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = timm.create_model("hiera_atto", img_size=32, num_classes=3).state_dict()
    torch.save({"model_state": dict(state)}, tmp_path / "image.pth")
    source, out = str(tmp_path / "image.pth"), str(tmp_path / "out")
    convert.main([source, "--model", "hiera_atto_video", "--inflate", "center", "-o", out])
    assert "inflated in time, center" in capsys.readouterr().out
    model: Any = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert (model.num_frames, model.num_classes, model.patch_embed.img_size) == (8, 3, (32, 32))
    assert torch.equal(model.patch_embed.proj.weight[:, :, 1], state["patch_embed.proj.weight"])
    for more, words in (
        (["--model", "hiera_atto_video", "--inflate", "max"], "--inflate max is not one of center, mean"),
        (["--model", "hiera_atto", "--inflate", "mean"], "hiera_atto or the source is not of that kind"),
        (["--model", "hivit_atto", "--inflate", "mean"], "fit|hivit"),
        (["--model", "hiera_atto_video", "--inflate", "mean", "--mae"], "leave out --mae"),
    ):
        with pytest.raises(ValueError, match=words):
            convert.main([source, *more, "-o", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_clips_are_trained_and_copied(clips: nn.Module) -> None:
    model = copy.deepcopy(clips)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(CLIP).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    with torch.inference_mode():
        assert torch.equal(pickle.loads(pickle.dumps(clips))(CLIP), clips(CLIP))


@pytest.mark.parametrize("order", [1, -1])
def test_initial_positions_follow_from_the_seed(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order of a set of names is, which differs from process to process."""
    torch.manual_seed(3)
    expected = timm.create_model("hiera_atto_video").state_dict()
    names = ["pos_embed_spatial", "pos_embed_temporal"][::order]
    monkeypatch.setattr(hiera.Hiera, "no_weight_decay", lambda self: names)
    torch.manual_seed(3)
    state = timm.create_model("hiera_atto_video").state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in names)


# ---- recipes


@pytest.mark.parametrize(
    ("name", "pretraining", "tuning"),
    [
        ("hiera_tiny", 8e-4, 2e-3),
        ("hiera_base_plus", 8e-4, 1e-3),
        ("hiera_large_video", 8e-4, 8e-4),
        ("hiera_huge_video", 3.2e-4, 4e-4),
    ],
)
def test_learning_rates_are_the_papers_at_its_batch(name: str, pretraining: float, tuning: float) -> None:
    family = family_of(name)
    for row, rate in ((family.pretraining(name), pretraining), (family.fine_tuning(name), tuning)):
        assert row.blr * row.batch / 256 == pytest.approx(rate)


def test_positions_take_no_weight_decay_in_pretraining() -> None:
    mae = create_mae("hiera_atto", recipe={"depth": 1, "dim": 32, "heads": 2})
    assert undecayed(mae, pretraining_of("hiera_atto")) == {"encoder.pos_embed", "decoder.pos_embed"}
    assert undecayed(create_mae("hivit_atto"), pretraining_of("hivit_atto")) == set()


# ---- bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_frames": 5}, "num_frames=5 does not fit: frames are taken in pairs"),
        ({"num_frames": 0}, "num_frames=0 does not fit"),
        ({"depths": (1, 1, 1)}, r"depths=\(1, 1, 1\) must be 4 numbers"),
        ({"q_pool": 4}, "q_pool=4 must be from 0 to 3"),
        ({"pos_resize": "bicubic"}, "pos_resize='bicubic' is unknown, use 'plain' or 'window'"),
        ({"num_heads": 5}, "embed_dim=24 must be a multiple of num_heads=5"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("hiera_atto", **kwargs)


def test_inputs_that_do_not_fit_are_refused(clips: nn.Module) -> None:
    images = timm.create_model("hiera_atto")
    for call, message in (
        (lambda: clips(CLIP[:, :, :3]), "clip of 3 frames does not fit: frames are taken in pairs"),
        (lambda: clips(CLIP[:, :, 0]), r"expected clips \[B, C, T, H, W\], got shape \[2, 3, 64, 96\]"),
        (lambda: images(CLIP), r"expected images \[B, C, H, W\], got shape \[2, 3, 4, 64, 96\]"),
        (
            lambda: clips.forward_visible(CLIP, torch.tensor([[0, 12], [1, 2]])),
            "names unit 12, but the input has units 0 to 11",
        ),
        (lambda: images.set_input_size(num_frames=4), "num_frames=4 cannot be set, this is a model of images"),
        (lambda: clips.set_input_size(num_frames=3), "num_frames=3 does not fit"),
        (lambda: clips.set_input_size(patch_size=16), "patch_size=16 cannot be set"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_checkpoints_of_the_other_kind_are_refused(clips: nn.Module) -> None:
    images = timm.create_model("hiera_atto", num_classes=5)
    with pytest.raises(ValueError, match=r"'pos_embed_spatial' .* is missing"):
        hiera.checkpoint_filter_fn(images.state_dict(), clips)
    with pytest.raises(ValueError, match=r"'pos_embed' .* is missing"):
        hiera.checkpoint_filter_fn(clips.state_dict(), images)
    odd = {**images.state_dict(), "pos_embed": torch.zeros(1, 100, 24)}
    with pytest.raises(ValueError, match="'pos_embed' has 100 rows, which are no units of 8 x 8 tokens"):
        hiera.checkpoint_filter_fn(odd, images)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 6), (1, 3), (6, 2), (2, 6), (6, 13)])
@pytest.mark.parametrize("arch", ["hiera_atto", "hiera_atto_video"])
def test_stems_adapt_from_any_channels_to_any(arch: str, old: int, new: int, tmp_path: Path) -> None:
    """timm adapts those of images; those of clips are adapted in the same way."""
    source: Any = timm.create_model(arch, num_classes=0, in_chans=old)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    overlay = {"file": str(tmp_path / "w.safetensors"), "input_size": (old, 64, 64), "num_classes": 0}
    loaded: Any = timm.create_model(arch, pretrained=True, in_chans=new, num_classes=0, pretrained_cfg_overlay=overlay)
    weight, found = source.patch_embed.proj.weight, loaded.patch_embed.proj.weight
    frames = weight.unbind(2) if weight.ndim == 5 else [weight]
    expected = torch.stack([adapt_input_conv(new, frame, base_chans=old) for frame in frames], dim=2)
    assert torch.equal(found, expected if weight.ndim == 5 else expected[:, :, 0])
