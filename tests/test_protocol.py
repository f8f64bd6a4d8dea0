"""The contract of hiermim_zoo.protocol, for every maskable encoder at toy size."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.twins import Twins
from torch import Tensor, nn

import hiermim_zoo  # noqa: F401
from hiermim_zoo.geometry import from_units
from hiermim_zoo.masking import random_keep
from hiermim_zoo.protocol import MaskableEncoder

FEW = {"depths": (1, 1, 2)}
TWINS = {"embed_dims": (8, 16, 32, 64), "num_heads": (1, 2, 4, 4), "depths": (2, 2, 2, 1), "wss": (4, 4, 4, 2)}
ENCODERS = {
    "hivit": ("hivit_atto", {"num_classes": 0, **FEW}),
    "hivit without bias": ("hivit_atto", {"num_classes": 0, "rel_pos_bias": False, **FEW}),
    "hivit not square": ("hivit_atto", {"num_classes": 0, "img_size": (64, 96), **FEW}),
    "hiera in pre-training": (
        "hiera_atto",
        {"num_classes": 0, "img_size": (96, 64), "q_pool": 2, "depths": (1, 1, 2, 1)},
    ),
    "hiera of SAM 2": ("hiera_sam2_atto", {"num_classes": 0}),
    "hiera of SAM 2 in pre-training": (
        "hiera_sam2_atto",
        {"num_classes": 0, "img_size": (128, 192), "q_pool": 2, "depths": (1, 1, 3, 2)},
    ),
    "green swin": ("green_swin_atto", {"num_classes": 0, "depths": (2, 1, 1, 1)}),
    "green swin not square": (
        "green_swin_atto",
        {"num_classes": 0, "img_size": (128, 64), "window_size": 8, "depths": (2, 1, 1, 1)},
    ),
    "green twins": ("green_twins_small", {"num_classes": 0, "img_size": (128, 64), **TWINS}),
    "hiera of clips": ("hiera_atto", {"num_classes": 0, "num_frames": 4, "depths": (1, 1, 2, 1)}),
}
BATCH = 3


@pytest.fixture(params=ENCODERS.values(), ids=ENCODERS.keys())
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    name, kwargs = request.param
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():  # tables that start at zero would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def inputs(encoder: nn.Module, share: float = 0.25) -> tuple[Tensor, Tensor]:
    layout = encoder.mask_layout
    size = [u * t * s for u, t, s in zip(layout.units, layout.stages[-1].tokens, layout.stride, strict=True)]
    units = torch.Size(layout.units).numel()
    return torch.randn(BATCH, encoder.in_chans, *size), random_keep(BATCH, units, max(2, int(units * share)))


def pixels_of(encoder: nn.Module, keep: Tensor, images: Tensor) -> Tensor:
    """Bool like the images: True in the pixels of visible units."""
    units = encoder.mask_layout.units
    visible = torch.zeros(BATCH, torch.Size(units).numel(), dtype=torch.bool).scatter(1, keep, True)
    grid = visible.view(BATCH, 1, *units)
    for axis in range(2, images.ndim):
        grid = grid.repeat_interleave(images.shape[axis] // units[axis - 2], dim=axis)
    return grid.expand_as(images)


def test_it_is_a_maskable_encoder(encoder: nn.Module) -> None:
    assert isinstance(encoder, MaskableEncoder)


def test_shapes_are_those_of_the_mask_layout(encoder: nn.Module) -> None:
    images, keep = inputs(encoder)
    visible = encoder.forward_visible(images, keep)
    layout = encoder.mask_layout
    assert (visible.prefix is None) == (layout.prefix == 0)
    assert [tuple(s.shape) for s in visible.stages] == [(BATCH, keep.shape[1], *s.tokens, s.dim) for s in layout.stages]


@torch.inference_mode()
def test_hidden_pixels_change_nothing(encoder: nn.Module) -> None:
    images, keep = inputs(encoder)
    shown = pixels_of(encoder, keep, images)
    other = torch.where(shown, images, torch.randn_like(images) * 100)
    for a, b in zip(
        encoder.forward_visible(images, keep).stages, encoder.forward_visible(other, keep).stages, strict=True
    ):
        assert torch.equal(a, b)


@torch.inference_mode()
def test_visible_pixels_do_change_the_output(encoder: nn.Module) -> None:
    """Negative control of the test above."""
    images, keep = inputs(encoder)
    other = images + 0.1 * pixels_of(encoder, keep, images)
    for a, b in zip(
        encoder.forward_visible(images, keep).stages, encoder.forward_visible(other, keep).stages, strict=True
    ):
        assert not torch.allclose(a, b)


@torch.inference_mode()
def test_all_units_visible_is_the_ordinary_forward_pass(encoder: nn.Module) -> None:
    images, keep = inputs(encoder, share=1.0)
    last = encoder.forward_visible(images, keep).stages[-1]
    raster = from_units(last, encoder.mask_layout.units).flatten(1, -2)
    torch.testing.assert_close(raster, encoder.forward_features(images).flatten(1, -2), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_each_sample_may_have_its_own_mask(encoder: nn.Module) -> None:
    images, keep = inputs(encoder)
    while torch.equal(keep[0], keep[1]):  # there are few units, chance may give two samples one mask
        _, keep = inputs(encoder)
    together = encoder.forward_visible(images, keep).stages
    for i in range(BATCH):
        alone = encoder.forward_visible(images[i : i + 1], keep[i : i + 1]).stages
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter(encoder: nn.Module) -> None:
    images, keep = inputs(encoder)
    encoder.train()
    visible = encoder.forward_visible(images, keep)
    sum((s * torch.randn_like(s)).sum() for s in visible.stages).backward()
    without = [
        n for n, p in encoder.named_parameters() if p.grad is None and not n.startswith(("fc_norm", "head", "norm"))
    ]
    assert not without
    dead = [n for n, p in encoder.named_parameters() if p.grad is not None and not p.grad.abs().sum()]
    assert not dead


def test_blocks_that_can_be_sharded_run_their_own_forward_pass(encoder: nn.Module) -> None:
    """Or nobody would gather their weights."""
    blocks = encoder.called_blocks if hasattr(encoder, "called_blocks") else encoder.blocks
    assert blocks
    ran = set()
    for block in blocks:
        block.register_forward_hook(lambda module, *_: ran.add(module))
    encoder.forward_visible(*inputs(encoder))
    assert ran == set(blocks)


def test_built_on_meta_and_initialised_it_is_complete(encoder: nn.Module, request: pytest.FixtureRequest) -> None:
    name, kwargs = request.node.callspec.params["encoder"]
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    model.init_weights()
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    fresh = timm.create_model(name, **kwargs).state_dict()
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in fresh.items()}
    for name in fresh.keys() & {"absolute_pos_embed"}:  # the ones that are not random
        torch.testing.assert_close(model.get_parameter(name), fresh[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, n: k + n, "has units 0 to"),
        (lambda k, n: k - n, "has units 0 to"),
        (lambda k, n: k.flip(1), "ascending without repeats"),
        (lambda k, n: k[:, :1].expand(-1, 2), "ascending without repeats"),
        (lambda k, n: k.int(), "must be int64"),
        (lambda k, n: k[0], "must be int64"),
        (lambda k, n: k[:1], "must be int64"),
        (lambda k, n: k[:, :0], "must be int64"),
    ],
    ids=["too high", "negative", "descending", "repeated", "int32", "one axis", "wrong batch", "nothing kept"],
)
def test_a_keep_that_does_not_fit_is_refused(encoder: nn.Module, change: Any, message: str) -> None:
    images, keep = inputs(encoder)
    with pytest.raises(ValueError, match=message):
        encoder.forward_visible(images, change(keep, torch.Size(encoder.mask_layout.units).numel()))


@torch.no_grad()
def test_the_masked_pass_is_one_graph(encoder: nn.Module) -> None:
    """With its backward pass and as backends want it: tests/test_mae.py, where Twins has no part."""
    images, keep = inputs(encoder)
    backend = "aot_eager" if isinstance(encoder, Twins) else "eager"
    compiled = torch.compile(encoder.forward_visible, fullgraph=True, backend=backend)
    for a, b in zip(compiled(images, keep).stages, encoder.forward_visible(images, keep).stages, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
