"""GreenMIM's encoders: timm's own models when nothing is hidden, and what their masks promise."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.twins import Twins
from torch import Tensor, nn

import hiermim_zoo  # noqa: F401
from hiermim_zoo.checkpoints.layouts import find_layout
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.layers import group_attention
from hiermim_zoo.layers.groups import METHODS, make_plans
from hiermim_zoo.layers.windows import shift_mask
from hiermim_zoo.mae import create_mae, decoder_state
from hiermim_zoo.masking import random_keep
from hiermim_zoo.models import green
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.shapes import without_memory

from .golden.case import golden

TOY_TWINS: dict[str, Any] = {"embed_dims": (16, 32, 64, 128), "num_heads": (1, 2, 4, 4), "depths": (2, 2, 2, 1)}
TOYS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("green_swin_atto", {}),
    "twins": ("green_twins_small", {"img_size": 128, "wss": (4, 4, 4, 2), **TOY_TWINS}),
}


def toy(kind: str, **kwargs: Any) -> Any:
    """With every parameter drawn: tables that start at zero would hide mistakes."""
    name, own = TOYS[kind]
    model = timm.create_model(name, **{"num_classes": 0, **own, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def timms(kind: str, **kwargs: Any) -> nn.Module:
    """timm's model of the same arguments."""
    name, own = TOYS[kind]
    args = {"num_classes": 0, **green.VARIANTS[name], **own, **kwargs}
    return (SwinTransformer(dynamic_img_size=True, **args) if kind == "swin" else Twins(**args)).eval()


# ---- unmasked: timm's model


@pytest.mark.parametrize("kind", TOYS)
@torch.inference_mode()
def test_unmasked_it_is_timms_model(kind: str) -> None:
    """Swin to the last bit; in Twins fused kernels round otherwise."""
    ours, theirs = toy(kind, num_classes=5).double(), timms(kind, num_classes=5).double()
    theirs.load_state_dict(ours.state_dict())
    atol = 0 if kind == "swin" else 1e-12
    for sides in ((128, 128), (100, 148), (44, 64)):  # windows divide the grids of the first alone
        images = torch.randn(2, 3, *sides).double()
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=atol)
        for a, b in zip(
            ours.forward_intermediates(images, intermediates_only=True),
            theirs.forward_intermediates(images, intermediates_only=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=atol)
    images = torch.randn(2, 3, 128, 128)
    maps = timm.create_model(TOYS[kind][0], features_only=True, **TOYS[kind][1])
    assert maps.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(m.shape[2:]) for m in maps(images)] == [(32, 32), (16, 16), (8, 8), (4, 4)]


class Adapter(nn.Module):
    """What fine-tuning libraries put in the place of a convolution."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv, self.more = conv, copy.deepcopy(conv)
        self.more.weight = nn.Parameter(conv.weight.detach().roll(1, 0))
        for name in ("kernel_size", "stride", "padding", "dilation", "groups", "weight", "bias"):
            setattr(self, name, getattr(conv, name))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.more(x)


@pytest.mark.parametrize("kind", TOYS)
@torch.inference_mode()
def test_the_masked_pass_calls_what_stands_in_the_place_of_a_convolution(kind: str) -> None:
    model, x = toy(kind), torch.randn(2, 3, 128, 128)
    keep = torch.arange(16).repeat(2, 1)
    plain = model.forward_visible(x, keep).stages[-1].flatten(1, -2)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    called = []
    for name in names:
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], Adapter(model.get_submodule(name)))
        model.get_submodule(name).register_forward_hook(lambda module, args, out: called.append(module))
    found = model.forward_visible(x, keep).stages[-1].flatten(1, -2)
    assert len(called) == len(names)
    torch.testing.assert_close(found, model.forward_features(x).flatten(1, -2), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, plain, rtol=1e-4, atol=1e-2), "negative control"


@pytest.mark.parametrize("kind", TOYS)
@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_a_traced_masked_pass_takes_other_masks(kind: str) -> None:
    model, x = toy(kind).requires_grad_(False), torch.randn(2, 3, 128, 128)

    def encode(images: Tensor, keep: Tensor) -> Tensor:
        found: Tensor = model.forward_visible(images, keep).stages[-1]
        return found

    keep, other = random_keep(2, 16, 5), random_keep(2, 16, 5)
    traced = torch.jit.trace(encode, (x, keep), check_trace=False)
    torch.testing.assert_close(traced(x, other), encode(x, other), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(traced(x, keep), encode(x, other), rtol=1e-2, atol=1e-2), "negative control"


@pytest.mark.parametrize("shift", [(3, 3), (0, 2), (1, 0), (2, 1)])
@pytest.mark.parametrize("window", [(7, 7), (4, 6)])
def test_shifted_windows_are_masked_as_by_timm(window: tuple[int, int], shift: tuple[int, int]) -> None:
    for rows, columns in ((1, 1), (1, 3), (3, 2)):
        x = torch.zeros(1, rows * window[0], columns * window[1], 8)
        args = {"window_size": window, "shift_size": shift, "always_partition": True, "dynamic_mask": True}
        theirs = SwinTransformerBlock(8, tuple(x.shape[1:3]), 1, **args)
        theirs.shift_size = shift  # which timm cuts down for itself
        mask = shift_mask(x, window, shift)
        assert torch.equal(mask, theirs.get_attn_mask(x))
        assert mask.any(), "negative control: there is something to mask"


@pytest.mark.parametrize("kind", TOYS)
@torch.inference_mode()
def test_symbolic_tracing_takes_the_model_as_it_is_built_by_default(kind: str) -> None:
    model = toy(kind)
    graph = torch.fx.symbolic_trace(model)
    for x in (torch.randn(1, 3, 128, 128), torch.randn(2, 3, 160, 72)):
        torch.testing.assert_close(graph(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOYS)
@torch.inference_mode()
def test_exported_programs_take_any_batch_height_and_width(kind: str) -> None:
    model, (multiple, least) = toy(kind, depths=(2, 1, 1, 1)), {"swin": (4, 9), "twins": (1, 64)}[kind]
    sides = [torch.export.Dim(name, min=least, max=256) for name in ("height", "width")]
    height, width = (multiple * side if multiple > 1 else side for side in sides)
    shapes = ({0: torch.export.Dim("batch", max=64), 2: height, 3: width},)
    program = torch.export.export(model, (torch.randn(2, 3, 160, 192),), dynamic_shapes=shapes).module()
    for x in (torch.randn(1, 3, 128, 128), torch.randn(3, 3, 96, 160), torch.randn(2, 3, 68, 256)):
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(program(x), model(x.flip(3)), rtol=1e-4, atol=1e-5), "negative control"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("green_swin_tiny", "swin_tiny_patch4_window7_224"),
        ("green_swin_small", "swin_small_patch4_window7_224"),
        ("green_swin_base", "swin_base_patch4_window7_224"),
        ("green_twins_small", "twins_svt_small"),
        ("green_twins_base", "twins_svt_base"),
        ("green_twins_large", "twins_svt_large"),
    ],
)
def test_names_and_shapes_are_those_of_timms_architectures(ours: str, theirs: str) -> None:
    with without_memory():
        a, b = timm.create_model(ours, num_classes=1000), timm.create_model(theirs)
    assert [(n, t.shape) for n, t in a.state_dict().items()] == [(n, t.shape) for n, t in b.state_dict().items()]
    assert a.default_cfg["classifier"] == b.default_cfg["classifier"]
    assert a.default_cfg["first_conv"] == b.default_cfg["first_conv"]
    assert [info["num_chs"] for info in a.feature_info] == [info["num_chs"] for info in b.feature_info]


def test_windows_of_14_have_the_parameters_of_the_paper() -> None:
    with without_memory():
        for name, count in (("green_swin_base_win14", 86_917_944), ("green_swin_large_win14", 195_257_556)):
            assert sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters()) == count


# ---- masked


@pytest.mark.parametrize("kind", TOYS)
@torch.inference_mode()
def test_any_size_of_whole_units_can_be_masked(kind: str) -> None:
    model = toy(kind)
    images, keep = torch.randn(2, 3, 96, 160), random_keep(2, 15, 4)
    (last,) = model.forward_visible(images, keep).stages
    assert last.shape == (2, 4, 1, 1, model.num_features)
    built = toy(kind, img_size=(96, 160))
    assert built.mask_layout.units == (3, 5)


@pytest.mark.parametrize("kind", TOYS)
@torch.inference_mode()
def test_ways_to_plan_agree_and_plans_can_be_made_beforehand(kind: str) -> None:
    model = toy(kind)
    images, keep = torch.randn(3, 3, 128, 128), random_keep(3, 16, 6)
    (expected,) = model.forward_visible(images, keep).stages
    for method in METHODS:
        (found,) = model.forward_visible(images, keep, make_plans(keep, model.geometries((4, 4)), method)).stages
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for method in ("sort", "flex"):  # negative control
        other = make_plans(random_keep(3, 16, 6), model.geometries((4, 4)), method)
        assert not torch.allclose(model.forward_visible(images, keep, other).stages[0], expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOYS)
@torch.no_grad()
def test_flex_attention_gives_equal_numbers_and_is_part_of_one_graph(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its backward pass it runs on GPUs alone."""
    model = toy(kind, plan_method="flex", depths=(1, 1, 1, 1))
    images, keep = torch.randn(3, 3, 128, 128), random_keep(3, 16, 6)
    (expected,) = model.forward_visible(images, keep).stages
    monkeypatch.setattr(group_attention, "FLEXIBLE", ("cpu",))
    followed = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal followed
        followed += sum("flex_attention" in str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(model.forward_visible, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(images, keep).stages[0], expected, rtol=1e-5, atol=1e-5)
    assert followed == 1  # in the first stage; the others have few tokens


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("masks", ["own", "shared"])
@torch.inference_mode()
def test_what_the_planner_makes_changes_nothing(kind: str, masks: str) -> None:
    mae = toy_mae(kind)
    images, keep = torch.randn(3, 3, 128, 128), random_keep(3, 16, mae.kept)
    keep = keep[:1].expand(3, -1) if masks == "shared" else keep
    planner = pickle.loads(pickle.dumps(mae.planner))
    assert len(pickle.dumps(mae.planner)) < 10_000  # no weights
    plans = pickle.loads(pickle.dumps(planner(keep.clone())))
    assert torch.equal(mae(images, keep, plans).loss, mae(images, keep).loss)


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_plans_as_it_is_told(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plan = METHODS[method]
    monkeypatch.setitem(METHODS, method, lambda *args: made.append(plan(*args)) or made[-1])
    images, keep = torch.randn(2, 3, 128, 128), random_keep(2, 16, 4)
    for kind in TOYS:
        model = toy(kind, plan_method=method)
        model.forward_visible(images, keep)
        assert len(made) == len(set(model.geometries((4, 4))))
        made.clear()


@pytest.mark.parametrize("kind", ["swin", "twins"])
def test_checkpointing_changes_no_gradient_of_the_masked_pass(kind: str) -> None:
    model = toy(kind, drop_path_rate=0.0).train()
    images, keep = torch.randn(2, 3, 128, 128), random_keep(2, 16, 4)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model.forward_visible(images, keep).stages[0].square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.set_grad_checkpointing(True)
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", TOYS)
def test_drop_path_acts_on_samples(kind: str) -> None:
    model = toy(kind, drop_path_rate=0.5).train()
    images, keep = torch.randn(2, 3, 128, 128), random_keep(2, 16, 4)
    first, second = (model.forward_visible(images, keep).stages[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: toy("swin").forward_visible(torch.randn(1, 3, 100, 64), torch.tensor([[0]])),
            "100 x 64 .* multiples of 32",
        ),
        (
            lambda: toy("twins").forward_visible(torch.randn(1, 3, 64, 72), torch.tensor([[0]])),
            "64 x 72 .* multiples of 32",
        ),
        (
            lambda: toy("swin").forward_visible(torch.randn(3, 64, 64), torch.tensor([[0]])),
            r"expected images \[B, C, H, W\]",
        ),
        (
            lambda: toy("swin").forward_visible(torch.randn(1, 3, 64, 64), torch.tensor([[4]])),
            "names unit 4, .* 0 to 3",
        ),
        (lambda: toy("twins").forward_visible(torch.randn(1, 3, 64, 64), torch.tensor([[1, 1]])), "without repeats"),
        (
            lambda: toy("swin", strict_img_size=True).forward_visible(torch.randn(1, 3, 64, 64), torch.tensor([[0]])),
            r"\(64, 64\) pixels, but the model takes \(128, 128\) alone",
        ),
        (lambda: toy("swin", img_size=100).mask_layout, r"img_size=\(100, 100\) cannot be masked"),
        (lambda: toy("swin", window_size=33), "window_size=33 is larger than the grid of 32 x 32"),
        (lambda: toy("twins", wss=(40, 7, 7, 7)), "a window is larger than the grid of 32 x 32"),
        (lambda: toy("swin", plan_method="knapsack"), "plan_method='knapsack' is unknown, use 'pack'"),
        (lambda: toy("twins", plan_method="knapsack"), "plan_method='knapsack' is unknown, use 'pack'"),
        (
            lambda: toy("swin", plan_method="flex", num_heads=(2, 4, 4, 8)),
            "flex' needs heads of at least 16 channels, these have .*: use 'sort'",
        ),
        (
            lambda: toy("twins", plan_method="flex", attn_drop_rate=0.1),
            r"flex' cannot drop attention weights \(dropout 0.1\): use 'sort'",
        ),
        (
            lambda: other_plans(toy_mae("swin"), toy_mae("twins"), 2),
            "the plans are of other windows: they lack Geometry",
        ),
        (
            lambda: other_plans(toy_mae("swin"), toy_mae("swin"), 3),
            "the plans are of another batch: 768 tokens of Geometry",
        ),
        (lambda: toy_mae("swin")(torch.randn(1, 3, 128, 128), None, {}), "plans cannot be used: no keep"),
        (
            lambda: other_plans(create_mae("hivit_atto"), toy_mae("swin"), 2),
            "plans cannot be used: HiViT plans nothing",
        ),
        (lambda: toy("twins", wss=(1, 7, 7, 7)), r"wss=\(1, 7, 7, 7\) must name the windows"),
    ],
)
def test_bad_input_is_one_line(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def other_plans(mae: Any, other: Any, batch: int) -> None:
    """Run an autoencoder on two images with what another planned for a batch of so many."""
    mae(torch.randn(2, 3, *mae.input_size), random_keep(2, mae.units, 4), other.planner(random_keep(batch, 16, 4)))


# ---- checkpoints


@pytest.mark.parametrize(
    ("case", "layout", "arch", "kwargs"),
    [
        ("green_swin_base_w7", "green_mim", "green_swin_base", {}),
        ("green_twins_large", "green_mim_twins", "green_twins_large", {}),
        ("simmim_swin_base_layout", "simmim_swin", "green_swin_base", {"img_size": 192, "window_size": 6}),
        ("timm_swin_base_layout", "green_swin_timm", "green_swin_base", {"num_classes": 1000}),
        ("timm_twins_svt_large_layout", "green_twins_timm", "green_twins_large", {"num_classes": 1000}),
    ],
)
def test_published_layouts_are_recognised_and_fit(case: str, layout: str, arch: str, kwargs: dict[str, Any]) -> None:
    state = {name: torch.empty(shape, device="meta") for name, shape in golden(case).about["manifest"].items()}
    assert family_named("green").layout_of(state).name == layout
    native = family_named("green").native(state, decoder=bool(find_layout(layout).decoder))
    with without_memory():
        model = timm.create_model(arch, **{"num_classes": 0, **kwargs})
        assert {n: t.shape for n, t in green.FAMILY.adapt(native, model).items()} == {
            n: t.shape for n, t in model.state_dict().items()
        }
        if native.decoder:
            mae = create_mae(arch)
            assert {n: t.shape for n, t in native.decoder.items()} == {
                n: t.shape for n, t in decoder_state(mae).items()
            }
    state["encoder.extra"] = torch.empty(1)  # negative control
    with pytest.raises(ValueError, match=r"encoder\.extra"):
        family_named("green").native(state, layout)


def toy_mae(kind: str) -> Any:
    name, own = TOYS[kind]
    mae = create_mae(name, recipe={"dim": 32, "heads": 2}, **own)
    with torch.no_grad():
        for parameter in mae.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return mae


@pytest.mark.parametrize(
    ("kind", "layout"), [("swin", "green_mim"), ("swin", "green_mim_2022"), ("twins", "green_mim_twins")]
)
def test_checkpoints_go_to_their_authors_names_and_back(kind: str, layout: str) -> None:
    mae = toy_mae(kind)
    there = to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout(layout), mae.encoder)
    back = family_named("green").native(there, layout, decoder=True)
    for name, tensor in {**mae.encoder.state_dict(), **decoder_state(mae)}.items():
        torch.testing.assert_close({**back.state, **back.decoder}[name], tensor, msg=name)


def test_files_of_may_2022_join_four_neighbours_in_another_order() -> None:
    """By rows instead of columns: the same merging, its inputs in another order."""
    mae = toy_mae("swin")
    old = to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout("green_mim_2022"), mae.encoder)
    gain, shift, linear = (
        old[f"encoder.layers.0.downsample.{n}"] for n in ("norm.weight", "norm.bias", "reduction.weight")
    )
    x = torch.randn(1, 2, 2, 24)
    by_rows = torch.cat([x[:, 0, 0], x[:, 0, 1], x[:, 1, 0], x[:, 1, 1]], dim=-1)
    found = nn.functional.layer_norm(by_rows, by_rows.shape[-1:], gain, shift, eps=1e-6) @ linear.T
    expected = mae.encoder.layers[1].downsample(x)[:, 0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    read_as_new = family_named("green").native(old).state["layers.1.downsample.reduction.weight"]
    assert not torch.allclose(read_as_new, mae.encoder.layers[1].downsample.reduction.weight)


def test_files_that_names_do_not_tell_apart_are_read_as_the_later_ones_unless_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mae = toy_mae("swin")
    old = to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout("green_mim_2022"), mae.encoder)
    assert family_named("green").native(old).layout.name == "green_mim"
    assert family_named("green").native(old, "green_mim_2022").layout.name == "green_mim_2022"
    assert "likely, but unproven" in caplog.text


def test_microsofts_names_and_simmims() -> None:
    native = toy("swin", num_classes=5).state_dict()
    microsoft = {name.replace("head.fc.", "head."): tensor for name, tensor in native.items()}
    for stage in (1, 2, 3):
        for part in ("norm.weight", "norm.bias", "reduction.weight"):
            microsoft[f"layers.{stage - 1}.old.{part}"] = microsoft.pop(f"layers.{stage}.downsample.{part}")
    microsoft = {name.replace(".old.", ".downsample."): tensor for name, tensor in microsoft.items()}
    microsoft["layers.0.blocks.1.attn_mask"] = microsoft["layers.0.blocks.0.attn.relative_position_index"] = (
        torch.zeros(1)
    )
    found = family_named("green").native(microsoft)
    assert found.layout.name == "swin_microsoft"
    assert found.state.keys() == native.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in native.items())
    simmim = {f"encoder.{n}": t for n, t in microsoft.items() if not n.startswith("head")}
    simmim |= {
        "encoder.mask_token": torch.zeros(1),
        "decoder.0.weight": torch.zeros(1),
        "decoder.0.bias": torch.zeros(1),
    }
    found = family_named("green").native(simmim)
    assert found.layout.name == "simmim_swin"
    assert found.state.keys() == {name for name in native if not name.startswith("head")}


def test_sparse_kernels_are_read_as_either_version_of_spconv_stores_them() -> None:
    mae = toy_mae("twins")
    new = to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout("green_mim_twins"), mae.encoder)
    name = "encoder.blocks.0.1.attn.sr.weight"
    assert new[name].shape == (16, 8, 8, 16)
    old = {**new, name: new[name].permute(1, 2, 0, 3)}  # 2.1, kernels of more than 32 taps: [k, k, out, in]
    for state in (new, old):
        found = family_named("green").native(state).state["blocks.0.1.attn.sr.weight"]
        assert torch.equal(found, mae.encoder.blocks[0][1].attn.sr.weight)


def test_the_centre_tap_makes_up_for_the_residual() -> None:
    mae = toy_mae("twins")
    there = to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout("green_mim_twins"), mae.encoder)
    block, x = mae.encoder.pos_block[1], torch.randn(1, 16, 32)
    kernel, bias = (there[f"encoder.pos_block.1.proj.0.{n}"] for n in ("weight", "bias"))
    image = x.transpose(1, 2).unflatten(2, (4, 4))
    expected = nn.functional.conv2d(image, kernel, bias, padding=1, groups=32).flatten(2).transpose(1, 2)
    torch.testing.assert_close(block(x, (4, 4)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of timm's set_input_size
def test_tables_of_another_window_are_resampled_with_permission_alone() -> None:
    source = toy("swin")
    file = {"state_dict": source.state_dict(), "num_classes": 0}
    with without_memory():
        eight = green.GreenSwin(**{**green.SWINS["green_swin_atto"], "window_size": 8, "num_classes": 0})
    message = (
        r"windows of 4 x 4 tokens, but the model has 8 x 8; window_size=4 builds such a model, window_size=8 allows"
    )
    with pytest.raises(ValueError, match=message):
        green.FAMILY.adapt(family_named("green").native(source.state_dict()), eight)
    loaded = timm.create_model(
        "green_swin_atto", pretrained=True, pretrained_cfg_overlay=file, num_classes=0, window_size=8
    )
    source.set_input_size(window_size=8)
    assert {n: t.shape for n, t in loaded.state_dict().items()} == {n: t.shape for n, t in source.state_dict().items()}
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, source.state_dict()[name], msg=name)


# ---- the example: another model of timm, with convolutions that overlap


@pytest.fixture(scope="module")
def pvt() -> Any:
    path = Path(__file__).parents[1] / "examples" / "green_pvt.py"
    spec: Any = importlib.util.spec_from_file_location("green_pvt", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module.GreenPVT((128, 96), num_classes=0, depths=(1, 2, 1, 1), embed_dims=(16, 32, 64, 128)).eval()


@torch.inference_mode()
def test_an_adapted_pyramid_computes_what_timms_computes(pvt: Any) -> None:
    theirs = PyramidVisionTransformerV2(num_classes=0, depths=(1, 2, 1, 1), embed_dims=(16, 32, 64, 128)).eval()
    theirs.load_state_dict(pvt.state_dict())
    images = torch.randn(2, 3, 128, 96)
    found = pvt.forward_visible(images, torch.arange(12).expand(2, -1)).stages[0].flatten(1, -2)
    torch.testing.assert_close(found, theirs.forward_features(images).flatten(2).mT, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_an_adapted_pyramid_sees_visible_pixels_alone(pvt: Any) -> None:
    images, keep = torch.randn(2, 3, 128, 96), random_keep(2, 12, 4)
    shown = torch.zeros(2, 12).scatter(1, keep, 1).view(2, 1, 4, 3).repeat_interleave(32, 2).repeat_interleave(32, 3)
    (expected,) = pvt.forward_visible(images, keep).stages
    assert torch.equal(pvt.forward_visible(torch.where(shown > 0, images, torch.randn(())), keep).stages[0], expected)
    assert not torch.equal(pvt.forward_visible(images + 0.1, keep).stages[0], expected)
    alone = pvt.forward_visible(images[1:], keep[1:]).stages[0]
    torch.testing.assert_close(alone, expected[1:], rtol=1e-5, atol=1e-5)
