"""Models leave Python: torch.export, ONNX, torch.compile with the default backend's graph capture."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import hiermim_zoo  # noqa: F401
from hiermim_zoo.models.shapes import without_memory

# The exporters' own deprecations, not ours.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


# Few blocks are as good as many. In another size than the model's own, tables are resampled in the graph.
HIVIT: dict[str, Any] = {"model_name": "hivit_atto", "depths": (1, 1, 1)}
HPVIT: dict[str, Any] = {"model_name": "hpvit_atto", "depths": (1, 1, 1, 1)}
HIERA: dict[str, Any] = {"model_name": "hiera_atto", "depths": (1, 1, 1, 1)}
SAM2: dict[str, Any] = {"model_name": "hiera_sam2_atto", "depths": (1, 1, 3, 2)}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "hivit classifier": (64, {**HIVIT, "num_classes": 5}),
    "hivit features of another size": (96, {**HIVIT, "features_only": True}),
    "hpvit classifier": (64, {**HPVIT, "num_classes": 5}),
    "hpvit features of another size": (96, {**HPVIT, "features_only": True}),
    "hiera classifier of another size": (64, {**HIERA, "num_classes": 5}),
    "hiera of SAM 2": (128, {**SAM2, "num_classes": 5}),
    "hiera of SAM 2, features of another size": (160, {**SAM2, "features_only": True}),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def model_and_size(request: pytest.FixtureRequest) -> tuple[nn.Module, int]:
    side, kwargs = request.param
    return timm.create_model(exportable=True, **kwargs).eval(), side


def flat(out: object) -> list[torch.Tensor]:
    return list(out) if isinstance(out, (list, tuple)) else [out]  # type: ignore[list-item]


@torch.inference_mode()
def test_torch_export_agrees_and_takes_any_batch(model_and_size: tuple[nn.Module, int]) -> None:
    model, side = model_and_size
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, side, side),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, side, side)
    for a, b in zip(flat(program.module()(x)), flat(model(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_torch_export_leaves_height_and_width_open() -> None:
    # Biases take most of the time; tests/neighbours has them, and the other families.
    model = timm.create_model(exportable=True, num_classes=5, rel_pos_bias=False, **HIVIT).eval()
    batch, sides = torch.export.Dim("batch", min=1, max=64), (torch.export.Dim(name, min=33, max=512) for name in "hw")
    shapes = (dict(zip((0, 2, 3), (batch, *sides), strict=True)),)
    program = torch.export.export(model, (torch.randn(2, 3, 80, 96),), dynamic_shapes=shapes).module()
    for shape in ((1, 3, 64, 64), (3, 3, 50, 128)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(program(x), model(x.flip(3)), rtol=1e-4, atol=1e-5), "negative control"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kwargs", [HIVIT, HPVIT, HIERA, SAM2], ids=lambda kwargs: str(kwargs["model_name"]))
@torch.inference_mode()
def test_traced_models_take_any_size(kwargs: dict[str, Any]) -> None:
    """Also one with as many cells as the size that was traced, in another shape: there a table seems to fit."""
    model = timm.create_model(exportable=True, num_classes=5, **kwargs).eval()
    traced = torch.jit.trace(model, torch.randn(2, 3, 128, 128))
    for shape in ((1, 3, 256, 64), (3, 3, 100, 70)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(traced(x), model(x.flip(3)), rtol=1e-4, atol=1e-5), "negative control"


@pytest.mark.parametrize("kwargs", [HIVIT, HPVIT, HIERA, SAM2], ids=lambda kwargs: str(kwargs["model_name"]))
@torch.inference_mode()
def test_maps_of_a_traced_file_cover_sides_that_nothing_divides(kwargs: dict[str, Any], tmp_path: Path) -> None:
    """ONNX divides towards zero, and knows no axes counted from behind."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = timm.create_model(exportable=True, features_only=True, **kwargs).eval()
    args: dict[str, Any] = {"dynamo": False, "input_names": ["x"]}
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(2, 3, 129, 130),), tmp_path / "m.onnx", dynamic_axes=axes, **args)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 100, 228), (2, 3, 129, 99)):
        x = torch.randn(shape)
        for found, expected in zip(session.run(None, {"x": x.numpy()}), model(x), strict=True):
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


TWINS: dict[str, Any] = {
    "model_name": "green_twins_small",
    "depths": (2, 1, 1, 1),
    "embed_dims": (16, 32, 64, 128),
}
SCRIPTED: dict[str, dict[str, Any]] = {
    "hivit": HIVIT,
    "clips": {"model_name": "hiera_atto_video", "depths": (1, 1, 1, 1)},
    "swin": {"model_name": "green_swin_atto", "depths": (2, 1, 1, 1)},
    "twins": TWINS,
}


@pytest.mark.parametrize("kwargs", SCRIPTED.values(), ids=SCRIPTED)
@torch.inference_mode()
def test_torchscript_gives_the_inference_of_a_model(kwargs: dict[str, Any]) -> None:
    model = timm.create_model(num_classes=5, **kwargs).train()
    frozen = next(iter(model.children())).eval()
    with torch.autocast("cpu", torch.bfloat16):
        scripted = torch.jit.script(model)  # casts are not part of it
    assert model.training
    assert not frozen.training
    frames = [model.num_frames] if model.axes == 3 else []
    with pytest.raises(torch.jit.Error, match=r"call eval\(\) first"):
        scripted(torch.randn(2, 3, *frames, 128, 128))
    scripted.eval(), model.eval()
    for batch, *sides in ((1, 224, 224), (3, 96, 160), (2, 100, 72)):
        x = torch.randn(batch, 3, *frames, *sides)
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(scripted(x), model(x.flip(-1)), rtol=1e-4, atol=1e-5), "negative control"
    with torch.no_grad():
        list(model.parameters())[-1].mul_(2)
    torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)


def test_torchscript_refuses_what_the_model_refuses() -> None:
    model = timm.create_model(strict_img_size=True, **HIVIT).eval()
    for x, message in (
        (torch.zeros(3, 64, 64), "expected 4 axes, of channels 3"),
        (torch.zeros(1, 1, 64, 64), "expected 4 axes, of channels 3"),
        (torch.zeros(0, 3, 64, 64), r"none empty; got shape \[0, 3, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64).long(), "floating-point"),
        (torch.zeros(1, 3, 64, 16), "image of 64 x 16 pixels is too small"),
        (torch.zeros(1, 3, 96, 64), "image of 96 x 64 pixels: this model takes 64 x 64 alone"),
    ):
        with pytest.raises(torch.jit.Error, match=message):
            torch.jit.script(model)(x)
    swin, clips = (torch.jit.script(timm.create_model(**SCRIPTED[name]).eval()) for name in ("swin", "clips"))
    with pytest.raises(
        torch.jit.Error, match=r"axis 3 of an input must be a multiple of 4, got shape \[1, 3, 64, 47\]"
    ):
        swin(torch.zeros(1, 3, 64, 47))
    with pytest.raises(torch.jit.Error, match="axis 2 of an input must be a multiple of 2"):
        clips(torch.zeros(1, 3, 5, 64, 64))
    with without_memory(), pytest.raises(ValueError, match="on the meta device has no values"):
        torch.jit.script(timm.create_model(**HIVIT))


def test_scripting_a_module_around_a_model_leaves_the_model_as_it_is() -> None:
    """torch puts what a part prepares into the module that it is part of, also where scripting then fails."""
    around = nn.Sequential(timm.create_model(num_classes=0, **HIVIT).eval())
    model = around[0]
    with pytest.raises(ValueError, match="annotation"):
        torch.jit.script(around)
    assert around[0] is model
    around[0] = torch.jit.script(model)  # as docs/neighbours.md says
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.jit.script(around)(x), model(x), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_onnxruntime_agrees(model_and_size: tuple[nn.Module, int], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, side = model_and_size
    x = torch.randn(2, 3, side, side)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for a, b in zip(found, flat(model(x)), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-3, atol=1e-4)
