"""What people who know timm by heart expect of a model, for every registered architecture."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hiermim_zoo
from hiermim_zoo.models.build import input_shape
from hiermim_zoo.models.measure import measure, sketch
from hiermim_zoo.models.shapes import without_memory
from hiermim_zoo.protocol import MaskableEncoder

SIDE = 64  # small images: every model takes any size

# Models of clips: tests/test_hiera.py. Sizes of a family differ in numbers alone, so one published size, made for
# 224 pixels, stands for the others, with fewer and narrower blocks: these show as much, and take no gigabytes.
SIZES: dict[str, dict[str, Any]] = {
    **{name: {} for name in hiermim_zoo.list_models() if name.endswith("_atto")},
    "hivit_base": {"depths": (1, 1, 2), "embed_dim": 128, "num_heads": 2},
    "hpvit_base": {"depths": (1, 1, 2, 1), "embed_dim": 192, "num_heads": 3},
    "green_twins_small": {"depths": (2, 2, 2, 1), "embed_dims": (16, 32, 64, 128), "num_heads": (1, 2, 4, 4)},
}


def create(name: str, **kwargs: Any) -> Any:
    return timm.create_model(name, **{**SIZES[name], **kwargs})


@pytest.fixture(scope="module")
def make() -> Callable[..., nn.Module]:
    """Models of one architecture and one set of arguments are built once; tests that change one copy it."""
    built: dict[str, nn.Module] = {}

    def get(name: str, **kwargs: object) -> nn.Module:
        key = f"{name} {sorted(kwargs.items())}"
        if key not in built:
            torch.manual_seed(0)
            built[key] = create(name, **kwargs).eval()
        return built[key]

    return get


# GreenMIM's encoders are timm's own Swin and Twins, and do as these do: tests that are left out for them, and why.
OTHERWISE = {
    r"classifier_can_be_reset": "there is no fc_norm: features are normalised before they are pooled",
    r"intermediates_can_be_normalised": "there is no fc_norm, and only the last level is normalised",
    r"intermediates_agree|intermediates_can_be_chosen": "maps come as NCHW in a list, in no other form",
    r"intermediates_of_visible_units": "forward_intermediates is timm's and knows no masks",
    r"intermediates_refuse|arguments_that_do_not_fit": "timm asserts, or takes them",
    r"any_size.*size[13]": "what patches and merging do not divide is cut off or padded otherwise",
    r"too_small_images": "there is no lower bound",
    r"setting_the_input_size|weights_of_another_size": "Swin's windows grow with the size; Twins has none to be set",
    r"strict_sizes": "Swin asserts, Twins takes any size",
    r"feature_modules_can_be_traced": "a norm stands behind the last of them",
    r"what_plain_vits_are_asked_for": "there are neither prefix tokens nor one width",
}


@pytest.fixture(params=SIZES)
def name(request: pytest.FixtureRequest) -> str:
    for tests, reason in OTHERWISE.items():
        if request.param.startswith("green_") and re.search(tests, request.node.name):
            pytest.skip(f"timm's: {reason}")
    return request.param


def image(side: int = SIDE, batch: int = 1, chans: int = 3) -> Tensor:
    return torch.randn(batch, chans, side, side, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_features_only_gives_four_nchw_maps(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(name, features_only=True)
    maps = model(image())
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [tuple(m.shape[2:]) for m in maps] == [(SIDE // r, SIDE // r) for r in (4, 8, 16, 32)]
    assert all(m.is_contiguous() for m in maps)


@pytest.mark.parametrize("level", [0, 1, -1])
@torch.inference_mode()
def test_pruned_models_end_with_their_last_level(name: str, make: Callable[..., nn.Module], level: int) -> None:
    model, x = copy.deepcopy(make(name, num_classes=5)), image()
    whole = model.forward_intermediates(x, intermediates_only=True)
    (last,) = model.prune_intermediate_layers([level], prune_head=False)
    left = model.forward_intermediates(x, intermediates_only=True)
    assert len(left) == last + 1
    for found, expected in zip(left, whole, strict=False):
        torch.testing.assert_close(found, expected)
    assert model(x).shape[-1] == (5 if isinstance(model.get_classifier(), nn.Linear) else model.num_features)


def test_layer_decay_reaches_into_feature_maps(name: str, make: Callable[..., nn.Module]) -> None:
    maps = make(name, features_only=True)
    whole = {f"model.{n}": p for n, p in maps.model.named_parameters()}
    assert whole.keys() == dict(maps.named_parameters()).keys()
    groups = [
        {id(p): (g["lr_scale"], g["weight_decay"]) for g in param_groups_layer_decay(m, 0.05) for p in g["params"]}
        for m in (maps, maps.model)
    ]
    assert groups[0] == groups[1]
    assert len({scale for scale, _ in groups[0].values()}) > 4


@pytest.mark.parametrize("name", hiermim_zoo.list_models())
def test_every_size_can_be_built_without_memory(name: str) -> None:
    with without_memory():
        model = timm.create_model(name, num_classes=7).eval()
        frames = () if getattr(model, "num_frames", None) is None else (4,)
        images = torch.empty(2, 3, *frames, 96, 64)
        maps, _ = sketch(timm.create_model(name, features_only=True).eval(), images)
        assert sketch(model, images)[0].shape == (2, 7)
    assert [tuple(m.shape[-2:]) for m in maps] == [(96 // r, 64 // r) for r in (4, 8, 16, 32)]
    layers = group_parameters(model, model.group_matcher())
    assert sum(map(len, layers.values())) == len(list(model.parameters()))


@pytest.mark.parametrize("name", [*SIZES, "hiera_atto_video"])
def test_what_is_counted_cheaply_is_what_a_full_count_says(name: str) -> None:
    """Without values, and equal blocks once: the same model, and not a multiply-add more or less."""
    args = SIZES.get(name, {})
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = timm.create_model(name, **args).eval()
        model(torch.empty(1, *input_shape(model)))
    size = measure(name, **args)
    assert size.macs == counter.get_total_flops() // 2
    assert size.parameters == sum(p.numel() for p in model.parameters())
    with without_memory():
        same = timm.create_model(name, **args)
    for (a, tensor), (b, other) in zip(model.state_dict().items(), same.state_dict().items(), strict=True):
        assert (a, tensor.shape, tensor.dtype, tensor.device) == (b, other.shape, other.dtype, other.device)


@torch.inference_mode()
def test_feature_modules_are_called_where_maps_are_made(name: str, make: Callable[..., nn.Module]) -> None:
    model = copy.deepcopy(make(name, num_classes=5))
    called = []
    modules = [info["module"] for info in model.feature_info]
    for module in modules:
        model.get_submodule(module).register_forward_hook(lambda *_, module=module: called.append(module))
    model.forward_intermediates(image(), intermediates_only=True)
    assert called == modules


@torch.inference_mode()
def test_no_linear_layer_is_given_four_axes(name: str, make: Callable[..., nn.Module]) -> None:
    """Adapters such as peft's OFT take those for the axes of an image."""
    model = copy.deepcopy(make(name, num_classes=5))
    axes = set()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, args: axes.add(args[0].ndim))
    model(image())
    assert axes
    assert 4 not in axes


@torch.inference_mode()
def test_forward_is_head_of_features(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(name, num_classes=5)
    features = model.forward_features(image())
    assert torch.equal(model(image()), model.forward_head(features))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (1, model.num_features) == (1, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(pooled), model(image()))


@torch.inference_mode()
def test_classifier_can_be_reset_and_removed(name: str, make: Callable[..., nn.Module]) -> None:
    model = copy.deepcopy(make(name, num_classes=5))
    model.reset_classifier(7)
    assert model(image()).shape == (1, 7)
    assert model.num_classes == 7
    model.reset_classifier(0, "")
    assert torch.equal(model(image()), model.fc_norm(model.forward_features(image())))
    assert model.num_classes == 0
    model.reset_classifier(0, "avg")
    assert model(image()).shape == (1, model.num_features)


@torch.inference_mode()
def test_intermediates_agree_in_every_format(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(name, num_classes=5)
    final, nchw = model.forward_intermediates(image())
    assert torch.equal(final, model.forward_features(image()))
    nhwc = model.forward_intermediates(image(), output_fmt="NHWC", intermediates_only=True)
    nlc = model.forward_intermediates(image(), output_fmt="NLC", intermediates_only=True)
    for a, b, c in zip(nchw, nhwc, nlc, strict=True):
        assert torch.equal(a.permute(0, 2, 3, 1), b)
        assert torch.equal(a.flatten(2).transpose(1, 2), c)
    assert any(m.shape == final.shape and torch.allclose(m, final, rtol=1e-5, atol=1e-6) for m in nlc[2:])


@torch.inference_mode()
@pytest.mark.parametrize(
    ("indices", "levels"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3]), ([1], [1])]
)
def test_intermediates_can_be_chosen(
    name: str, make: Callable[..., nn.Module], indices: object, levels: list[int]
) -> None:
    model = make(name, num_classes=5)
    everything = model.forward_intermediates(image(), intermediates_only=True)
    for stop_early in (False, True):
        chosen = model.forward_intermediates(image(), indices=indices, stop_early=stop_early, intermediates_only=True)
        assert len(chosen) == len(levels)
        assert all(torch.equal(a, everything[i]) for a, i in zip(chosen, levels, strict=True))
    as_dict = model.forward_intermediates(image(), indices=indices, output_dict=True)
    assert torch.equal(as_dict["image_features"], model.forward_features(image()))
    assert all(torch.equal(a, everything[i]) for a, i in zip(as_dict["image_intermediates"], levels, strict=True))


@torch.inference_mode()
def test_intermediates_can_be_normalised(name: str, make: Callable[..., nn.Module]) -> None:
    model = copy.deepcopy(make(name, num_classes=5))
    model.fc_norm.weight.data.mul_(3)
    level = [2, 3][
        model.feature_info[2]["num_chs"] != model.num_features
    ]  # the finest of the last two that has the norm's width
    raw = model.forward_intermediates(image(), [level], output_fmt="NLC", intermediates_only=True)[0]
    normed = model.forward_intermediates(image(), [level], norm=True, output_fmt="NLC", intermediates_only=True)[0]
    torch.testing.assert_close(normed, model.fc_norm(raw))


@torch.inference_mode()
def test_intermediates_of_visible_units(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(name, num_classes=5)
    keep = torch.tensor([[1, 2, 3]])
    if not isinstance(model, MaskableEncoder):
        with pytest.raises(ValueError, match="keep is not supported"):
            model.forward_intermediates(image(), keep=keep)
        return
    stages = model.forward_visible(image(), keep).stages
    final, levels = model.forward_intermediates(image(), keep=keep, output_fmt="NHWC")
    handed_on = [[level.shape[-1] for level in levels].index(stage.shape[-1]) for stage in stages]
    assert all(torch.equal(levels[i], stage) for i, stage in zip(handed_on, stages, strict=True))
    assert torch.equal(final, stages[-1].flatten(1, -2))
    nchw = model.forward_intermediates(image(), keep=keep, intermediates_only=True)
    assert all(torch.equal(a.permute(0, 1, 3, 4, 2), b) for a, b in zip(nchw, levels, strict=True))
    nlc = model.forward_intermediates(image(), keep=keep, output_fmt="NLC", intermediates_only=True)
    assert all(torch.equal(a, b.flatten(1, -2)) for a, b in zip(nlc, levels, strict=True))
    with pytest.raises(ValueError, match="level"):
        model.forward_intermediates(image(), [len(levels)], keep=keep)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("output_fmt", "NCL", "NCL"),
        ("attn_mask", torch.ones(1), "attn_mask is not supported"),
        ("indices", [4], "level"),
    ],
)
def test_intermediates_refuse_what_they_cannot_do(
    name: str, make: Callable[..., nn.Module], argument: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, num_classes=5).forward_intermediates(image(), **{argument: value})


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (33, 95), (96, 64), (100, 50)])
def test_any_size_from_32_on(name: str, make: Callable[..., nn.Module], size: tuple[int, int]) -> None:
    maps = make(name, num_classes=5).forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-size[0] // r), -(-size[1] // r)) for r in (4, 8, 16, 32)]
    assert all(torch.isfinite(m).all() for m in maps)


def test_too_small_images_are_refused(name: str, make: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="31 x 64 pixels is too small"):
        make(name, num_classes=5)(torch.randn(1, 3, 31, 64))
    with pytest.raises(ValueError, match="expected images"):
        make(name, num_classes=5)(torch.randn(3, 64, 64))


@torch.inference_mode()
def test_setting_the_input_size_equals_resampling_on_the_fly(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(name, num_classes=5)
    for table in (p for n, p in model.named_parameters() if n.endswith("table")):
        table.normal_(std=0.1)
    resized = copy.deepcopy(model)
    resized.set_input_size((96, 64))
    x = torch.randn(1, 3, 96, 64)
    torch.testing.assert_close(resized(x), model(x))
    built = create(name, num_classes=5, img_size=(96, 64))
    assert {n: t.shape for n, t in built.state_dict().items()} == {n: t.shape for n, t in resized.state_dict().items()}


@torch.inference_mode()
def test_weights_of_another_size_and_other_channels_are_adapted(name: str, make: Callable[..., nn.Module]) -> None:
    """timm's own loading path, with a state dict in memory as the source."""
    model = make(name, num_classes=5)
    size = model.pretrained_cfg["input_size"]
    source = {"state_dict": dict(model.state_dict()), "num_classes": 5}
    other = (size[1] + 32, size[2])
    loaded = create(name, pretrained=True, pretrained_cfg_overlay=source, num_classes=5, img_size=other).eval()
    resized = copy.deepcopy(model)
    resized.set_input_size(other)
    torch.testing.assert_close(loaded(image()), resized(image()))
    gray = create(name, pretrained=True, pretrained_cfg_overlay=source, num_classes=0, in_chans=1).eval()
    assert gray(image(chans=1)).shape == (1, model.num_features)
    stem = model.get_parameter(f"{model.pretrained_cfg['first_conv']}.weight")
    torch.testing.assert_close(
        gray.get_parameter(f"{model.pretrained_cfg['first_conv']}.weight"), stem.sum(1, keepdim=True)
    )


def test_strict_sizes_are_honoured(name: str) -> None:
    for option in ({"strict_img_size": True}, {"dynamic_img_size": False}):
        model = create(name, img_size=64, num_classes=0, **option)
        with pytest.raises(ValueError, match="64 x 64 alone"):
            model(torch.randn(1, 3, 96, 96))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"img_size": 16}, "img_size=16"),
        ({"global_pool": "token"}, "token"),
        ({"output_stride": 16}, "output_stride=16"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name: str, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, **kwargs)


def test_drop_rates_act_in_training_only(name: str) -> None:
    model = create(name, drop_rate=0.5, drop_path_rate=0.5, proj_drop_rate=0.1, attn_drop_rate=0.1, num_classes=5)
    x = image(batch=2)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointing_changes_no_gradient(name: str, make: Callable[..., nn.Module], features_only: bool) -> None:
    model = copy.deepcopy(make(name, features_only=True) if features_only else make(name, num_classes=5)).train()

    def gradients() -> list[Tensor]:
        torch.manual_seed(0)  # timm's Swin drops paths
        model.zero_grad()
        out = model(image())
        (sum(m.square().mean() for m in out) if features_only else out.square().mean()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.set_grad_checkpointing(True)
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def test_parameter_groups(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(name, num_classes=5)
    assert model.no_weight_decay() <= {n for n, _ in model.named_parameters()}
    for coarse in (False, True):
        layers = group_parameters(model, model.group_matcher(coarse))
        assert sorted(n for names in layers.values() for n in names) == sorted(n for n, _ in model.named_parameters())
        assert model.pretrained_cfg["first_conv"] + ".weight" in layers[0]
        assert model.pretrained_cfg["classifier"] + ".weight" in layers[max(layers)]
    assert param_groups_layer_decay(model, layer_decay=0.8)
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(p) in decayed for n, p in model.named_parameters() if p.ndim < 2 or n in model.no_weight_decay())


def test_it_survives_pickling_and_copying(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(name, num_classes=5)
    with torch.inference_mode():
        for clone in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert torch.equal(clone(image()), model(image()))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, make: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    model = make(name, num_classes=5)
    expected = model(image())
    half = create(name, num_classes=5, dtype=dtype).eval()
    half.load_state_dict(model.state_dict())
    found = half(image().to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(image()).float(), expected, rtol=0.1, atol=0.05)


def test_it_has_what_plain_vits_are_asked_for(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(name, num_classes=5)
    embed = model.patch_embed
    side = model.pretrained_cfg["input_size"][-1]
    assert embed.grid_size == (side // embed.patch_size[0], side // embed.patch_size[1])
    assert embed.num_patches == embed.grid_size[0] * embed.grid_size[1]
    assert (model.num_prefix_tokens, model.embed_dim, model.in_chans) == (0, model.num_features, 3)


def test_the_forward_pass_is_one_graph(name: str, make: Callable[..., nn.Module]) -> None:
    """Also for a size other than the model's own, where tables are resampled inside the graph.

    What backends make of graphs: tests/test_mae.py and tests/test_export.py.
    """
    model = make(name, num_classes=5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(image(96)), model(image(96)), rtol=1e-4, atol=1e-5)


def test_its_feature_modules_can_be_traced(name: str, make: Callable[..., nn.Module]) -> None:
    """torchvision's and timm's extractors built on torch.fx."""
    from timm.models import create_feature_extractor as timm_extractor
    from torchvision.models.feature_extraction import create_feature_extractor

    model = make(name, num_classes=5)
    module = [info["module"] for info in model.feature_info if info["module"].startswith("blocks.")][-1]
    with torch.inference_mode():
        expected = model.forward_features(image())  # [B, N, C]; a block may end with the same tokens as [B, h, w, C]
        for extractor in (create_feature_extractor, timm_extractor):
            assert torch.equal(extractor(model, {f"{module}.add_1": "x"})(image())["x"].flatten(1, -2), expected)
