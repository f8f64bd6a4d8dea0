"""What is tried: each consumer takes a model by name, and its numbers are compared with the plain forward pass.

A check raises where something does not hold. Its docstring is what the page says of it; `NEEDS` are the packages.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from hiermim_zoo.cam import ForCam

SIDE, CLASSES = 128, 5
SMALL: dict[str, dict[str, Any]] = {
    "hivit_atto": {"depths": (1, 1, 1)},
    "hpvit_atto": {"depths": (1, 1, 1, 1)},
    "hiera_atto": {"depths": (1, 1, 1, 1)},
    "hiera_sam2_atto": {"depths": (1, 1, 3, 2)},
    "green_swin_atto": {"depths": (2, 1, 1, 1), "drop_path_rate": 0.0},
    "green_twins_small": {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128), "num_heads": (1, 2, 4, 4)},
}
PEERS: dict[str, dict[str, Any]] = {  # timm's own, for comparison
    "vit_tiny_patch16_224": {"depth": 4, "dynamic_img_size": True},
    "hiera_tiny_224": {"stages": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {"depths": (2, 1, 1, 1), "strict_img_size": False, "drop_path_rate": 0.0},
}
Check = Callable[[str], None]


class Consumer(NamedTuple):
    needs: tuple[str, ...]  # packages
    check: Check
    own: bool  # by what this package alone has: nothing to compare with timm's models


CHECKS: dict[str, Consumer] = {}


def consumer(title: str, *needs: str, own: bool = False) -> Callable[[Check], Check]:
    def added(check: Check) -> Check:
        CHECKS[title] = Consumer(needs, check, own)
        return check

    return added


def arguments(name: str) -> dict[str, Any]:
    """Those of a small model."""
    return {**SMALL, **PEERS}[name]


def make(name: str, **kwargs: Any) -> Any:
    """With every parameter drawn: tables and heads that start at zero would hide mistakes."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**arguments(name), "img_size": SIDE, "num_classes": CLASSES, **kwargs})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def images(batch: int = 2, side: int = SIDE, width: int | None = None) -> Tensor:
    return torch.randn(batch, 3, side, width or side, generator=torch.Generator().manual_seed(1))


# Batches, heights and widths, with one of as many cells as an image of 128 x 128 has.
SHAPES = ((1, 128, 128), (3, 96, 160), (2, 256, 64))


SIDES = {  # what a side that is left open is a multiple of, and the least multiple; as docs/neighbours.md says
    "green_swin_atto": (4, 9),
    "green_twins_small": (1, 64),
}


def left_open(name: str, sides: bool) -> Any:
    """What torch.export is told of the input of a model."""
    dims: list[Any] = [torch.export.Dim("batch", min=1, max=64)]
    multiple, least = SIDES.get(name, (1, 33))
    for side in ("height", "width") if sides else ():
        dim = torch.export.Dim(side, min=least, max=1024 // multiple)
        dims.append(multiple * dim if multiple > 1 else dim)
    return (dict(zip((0, 2, 3), dims, strict=False)),)


def agree(run: Callable[[Tensor], Any], model: nn.Module, sides: bool) -> None:
    """At every batch, and every size or the one; another size is then refused."""
    for batch, height, width in SHAPES:
        x = images(batch, height, width) if sides else images(batch)
        same(run(x), model(x))
    if not sides:
        try:
            run(images(2, 256, 64))
        except Exception:
            return
        raise AssertionError("a size that was not left open was taken")


def same(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal, beside the largest of the numbers, and not equal to the same numbers in another order."""
    found, expected = (
        torch.as_tensor(np.asarray(x.detach() if isinstance(x, Tensor) else x)).double() for x in (found, expected)
    )
    found, expected = (x / expected.abs().max() for x in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert not torch.allclose(found.flatten().flip(0), expected.flatten(), rtol=0, atol=tolerance), "negative control"


def learns(model: nn.Module, forward: Callable[[], Tensor]) -> None:
    """One step changes parameters and outputs, and what was learned survives a file."""
    before = forward().detach().clone()
    trained = [p for p in model.parameters() if p.requires_grad]
    out = forward().flatten()
    (out @ torch.linspace(-3, 3, len(out)).sin()).backward()  # of a normalised output no plain sum has a gradient
    assert trained
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    torch.optim.SGD(trained, 1e-4).step()
    after = forward().detach().clone()
    assert not torch.equal(before, after), "a step changed nothing"
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    with torch.no_grad():
        for p in trained:
            p.add_(0.1)
    assert not torch.equal(forward(), after), "control"
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True))
    same(forward(), after, 1e-5)


# ---- leaving Python


@consumer("torch.compile, trained at a second size")
def compiled(name: str) -> None:
    model = make(name).train()
    graph = torch.compile(model, backend="aot_eager", fullgraph=True)
    for side in (128, 192):
        grads = []
        for f in (graph, model):
            model.zero_grad()
            f(images(2, side)).square().sum().backward()
            grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        same(*grads)


def export_agrees(name: str, sides: bool) -> None:
    model = make(name, exportable=True)
    example = images(2, 160, 192) if sides else images()
    agree(torch.export.export(model, (example,), dynamic_shapes=left_open(name, sides)).module(), model, sides)


@consumer("torch.export, any batch")
def exported(name: str) -> None:
    export_agrees(name, sides=False)


@consumer("torch.export, any batch, height and width")
def exported_open(name: str) -> None:
    export_agrees(name, sides=True)


def onnx_agrees(name: str, dynamo: bool, sides: bool) -> None:
    import onnxruntime

    model = make(name, exportable=True)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        if dynamo:
            kwargs: dict[str, Any] = {"dynamo": True, "dynamic_shapes": left_open(name, sides), "verbose": False}
        else:
            axes = {0: "batch", **({2: "height", 3: "width"} if sides else {})}
            kwargs = {"dynamo": False, "dynamic_axes": {"x": axes, "y": {0: "batch"}}}
        example = images(2, 160, 192) if sides else images()
        torch.onnx.export(model, (example,), path, input_names=["x"], output_names=["y"], **kwargs)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        agree(lambda x: session.run(None, {"x": x.numpy()})[0], model, sides)


@consumer("ONNX by tracing, any batch", "onnx", "onnxruntime")
def traced_onnx(name: str) -> None:
    onnx_agrees(name, dynamo=False, sides=False)


@consumer("ONNX by tracing, any batch, height and width", "onnx", "onnxruntime")
def traced_onnx_open(name: str) -> None:
    onnx_agrees(name, dynamo=False, sides=True)


@consumer("ONNX by torch.export, gradients on, any batch", "onnx", "onnxscript", "onnxruntime")
def exported_onnx(name: str) -> None:
    onnx_agrees(name, dynamo=True, sides=False)


@consumer("ONNX by torch.export, any batch, height and width", "onnx", "onnxscript", "onnxruntime")
def exported_onnx_open(name: str) -> None:
    onnx_agrees(name, dynamo=True, sides=True)


class Levels(nn.Module):
    """The four maps of a model in one tensor: each resampled to the first, as a detector's neck does it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = make(name, exportable=True, num_classes=0, features_only=True)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x)
        last = maps[0].shape[1] != self.body.feature_info.channels()[0]  # timm's Swin
        means = [m.permute(0, 3, 1, 2).mean(dim=1, keepdim=True) if last else m.mean(dim=1, keepdim=True) for m in maps]
        return torch.cat([nn.functional.interpolate(m, size=means[0].shape[2:]) for m in means], dim=1)


@consumer("torch.export of feature maps, any batch, height and width")
def exported_maps(name: str) -> None:
    model = Levels(name)
    example = (images(2, 160, 192),)
    agree(torch.export.export(model, example, dynamic_shapes=left_open(name, True)).module(), model, sides=True)


@consumer("ONNX by tracing of feature maps, any batch, height and width", "onnx", "onnxruntime")
def traced_maps(name: str) -> None:
    import onnxruntime

    model, file = Levels(name), io.BytesIO()
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    example = (images(2, 160, 192),)
    torch.onnx.export(model, example, file, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    agree(lambda x: session.run(None, {"x": x.numpy()})[0], model, sides=True)


@consumer("OpenVINO, from torch.export", "openvino")
def openvino(name: str) -> None:
    import openvino as ov

    model = make(name, exportable=True)
    program = torch.export.export(model, (images(),))
    compiled = ov.compile_model(ov.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    same(compiled(images().numpy())[0], model(images()))


@consumer("ExecuTorch, portable operators", "executorch")
def executorch(name: str) -> None:
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    model = make(name, exportable=True)
    program = to_edge(torch.export.export(model, (images(),))).to_executorch()
    method = Runtime.get().load_program(program.buffer).load_method("forward")
    same(method.execute([images()])[0], model(images()))


@consumer("torch.jit.trace")
def traced(name: str) -> None:
    model = make(name, exportable=True)
    agree(torch.jit.trace(model, images()), model, sides=True)


@consumer("torch.jit.script")
def scripted(name: str) -> None:
    model = make(name, exportable=True)
    agree(torch.jit.script(model), model, sides=True)


@consumer("torch.fx: symbolic_trace")
def symbolically_traced(name: str) -> None:
    model = make(name)
    agree(torch.fx.symbolic_trace(model), model, sides=True)


# ---- being a part of something


@consumer("segmentation_models_pytorch: Unet", "segmentation_models_pytorch")
def segmenter(name: str) -> None:
    import segmentation_models_pytorch as smp

    model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=3).eval()
    body, x = model.encoder.model, images(1, 224)
    for found, expected in zip(model.encoder(x)[-4:], body(x), strict=True):
        same(found, expected if found.shape == expected.shape else expected.movedim(-1, 1))  # timm's Swin
    learns(model, lambda: model(x))


@consumer("torchvision detectors, by FeaturePyramid", own=True)
def detector(name: str) -> None:
    from hiermim_zoo.detection import FeaturePyramid

    model = FeaturePyramid(make(name, num_classes=0, features_only=True), 16).eval()
    learns(model, lambda: torch.cat([x.flatten(1) for x in model(images()).values()], dim=1))


def lightly_agrees(wrapped: Any) -> None:
    maps = wrapped.forward_features(images())["features"]
    body: Any = wrapped.get_model()
    same(maps, body.forward_intermediates(images(), 1, norm=True, intermediates_only=True)[-1])
    learns(wrapped, lambda: wrapped.forward_pool(wrapped.forward_features(images()))["pooled_features"])


@consumer("lightly_train, by name", "lightly_train")
def lightly(name: str) -> None:
    from lightly_train._models import package_helpers

    args = {**arguments(name), "img_size": SIDE}
    lightly_agrees(package_helpers.get_wrapped_model(f"timm/{name}", num_input_channels=3, model_args=args).eval())


@consumer("lightly_train, an instance in TIMMModelWrapper", "lightly_train")
def lightly_instance(name: str) -> None:
    from lightly_train._models.package_helpers import get_wrapped_model
    from lightly_train._models.timm.timm import TIMMModelWrapper

    lightly_agrees(get_wrapped_model(TIMMModelWrapper(make(name)), num_input_channels=3))


@consumer("anomalib: layers as numbers", "anomalib")
def anomalib(name: str) -> None:
    from anomalib.models.components.feature_extractors import TimmFeatureExtractor

    taken = TimmFeatureExtractor(name, layers=[1, 2], pre_trained=False, norm=False).eval()
    body: Any = taken.feature_extractor
    size = images(1, 224)
    getter = not hasattr(body, "forward_intermediates")
    expected = body(size) if getter else body.forward_intermediates(size, [1, 2], intermediates_only=True)
    found = list(taken(size).values())
    for a, b in zip(found, expected, strict=True):
        same(a, b)
    assert list(taken.out_dims) == [x.shape[1] for x in found], f"out_dims says {taken.out_dims}"


@consumer("anomalib: PaDiM, levels as numbers, HiViT from a folder", "anomalib", own=True)
def padim(name: str) -> None:
    from anomalib.models.image.padim.torch_model import PadimModel

    with tempfile.TemporaryDirectory(prefix="folder") as folder:
        saved = make(name, img_size=256)
        save_for_hf(saved, folder, model_args=arguments(name), safe_serialization=True)
        taken = PadimModel(backbone=f"local-dir:{folder}", layers=[1, 2], pre_trained=True, n_features=20)
    found = taken.feature_extractor(images(2, 256))
    expected = timm_maps(saved, images(2, 256))
    for a, b in zip(found.values(), expected, strict=True):
        same(a, b)
    assert list(taken.feature_extractor.out_dims) == [x.shape[1] for x in expected]
    assert taken.train()(images(4, 256)).shape == (4, 20, 32, 32)


def timm_maps(model: Any, x: Tensor) -> Any:
    return model.forward_intermediates(x, [1, 2], intermediates_only=True)


@consumer("fastai: create_timm_model", "fastai")
def fastai(name: str) -> None:
    from fastai.vision.learner import create_timm_model

    model, _ = create_timm_model(name, CLASSES, pretrained=False, **arguments(name), img_size=SIDE)
    model.eval()
    body = model[0].model
    expected = body.forward_features(images()) if model[0].needs_pool else body(images())
    same(model[0](images()), expected)
    learns(model, lambda: model(images()))


@consumer("open_clip: image tower, linear projection", "open_clip")
def open_clip(name: str) -> None:
    from open_clip.timm_model import TimmModel

    model = TimmModel(name, 16, image_size=224, pool="", proj="linear").eval()
    same(model(images(2, 224)), model.head(model.trunk(images(2, 224))))
    learns(model, lambda: model(images(2, 224)))


@consumer("open_clip: attention pools", "open_clip")
def open_clip_pools(name: str) -> None:
    from open_clip.timm_model import TimmModel

    assert TimmModel(name, 16, image_size=224, pool="abs_attn", proj="").eval()(images(2, 224)).shape == (2, 16)


@consumer("transformers: AutoModel, of folders by convert", "transformers", own=True)
def transformers(name: str) -> None:
    from transformers import AutoModel, AutoModelForImageClassification

    from hiermim_zoo.convert import main

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, img_size=SIDE).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(model, f"{folder}/saved", safe_serialization=True)
        with contextlib.redirect_stdout(io.StringIO()):
            main([f"{folder}/saved", "--model", name, "-o", f"{folder}/new"])
        body = AutoModel.from_pretrained(f"{folder}/new").eval()
        same(body(images()).last_hidden_state, model.forward_features(images()))
        classifier = AutoModelForImageClassification.from_pretrained(f"{folder}/new").eval()
    same(classifier(images()).logits, model(images()))


def linear_layers(model: nn.Module) -> list[str]:
    """All that a block of 8 divides, without the classifier and Swin's mergings."""
    named = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear))
    return [name for name, m in named if not m.in_features % 8 and "head" not in name]


@consumer("peft: OFT", "peft")
def oft(name: str) -> None:
    from peft import OFTConfig, get_peft_model

    model = make(name)
    expected = model(images())
    adapted = get_peft_model(model, OFTConfig(target_modules=linear_layers(model), r=0, oft_block_size=8)).eval()
    same(adapted(images()), expected)
    learns(adapted, lambda: adapted(images()))


@consumer("peft: LoRA", "peft")
def lora(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = make(name)
    expected = model(images())
    layers = linear_layers(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=layers, init_lora_weights=True)).eval()
    same(adapted(images()), expected)
    learns(adapted, lambda: adapted(images()))


@consumer("lightning: Trainer", "lightning")
def lightning(name: str) -> None:
    import lightning as pl

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make(name)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    task = Task()
    before = task.model(images()).detach()
    data = torch.utils.data.TensorDataset(images(), torch.tensor([0, 1]))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(task, torch.utils.data.DataLoader(data, 2))
        trainer.save_checkpoint(Path(folder) / "last.ckpt")
        after = task.model.eval()(images()).detach()
        assert not torch.equal(before, after)
        again = Task()
        file = torch.load(Path(folder) / "last.ckpt", weights_only=True)
        again.load_state_dict(file["state_dict"])
    same(again.model(images()), after)


@consumer("torchao: 8-bit weights", "torchao")
def torchao(name: str) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = make(name)
    expected = model(images())
    quantize_(model, Int8WeightOnlyConfig())
    same(model(images()), expected, 0.05)


# ---- looking inside


@consumer("pytorch-grad-cam, by ForCam", "pytorch_grad_cam", own=True)
def grad_cam(name: str) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    shown = ForCam(make(name))
    heat = GradCAM(model=shown, target_layers=[shown.maps])(images(), [ClassifierOutputTarget(1)] * 2)
    same(heat, own_heat(shown, 1), 0.05)  # OpenCV enlarges it a little otherwise


@consumer("captum, by ForCam", "captum", own=True)
def captum(name: str) -> None:
    from captum.attr import LayerGradCam

    shown = ForCam(make(name))
    found = LayerGradCam(shown, shown.maps).attribute(images(), target=1)
    maps, gradient = maps_of(shown, 1)
    same(found, (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True))


def maps_of(shown: ForCam, target: int) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []
    hook = shown.maps.register_forward_hook(lambda module, args, out: seen.append(out))
    logits = shown(images())
    hook.remove()
    return seen[0], torch.autograd.grad(logits[:, target].sum(), seen[0])[0]


def own_heat(shown: ForCam, target: int) -> Tensor:
    maps, gradient = maps_of(shown, target)
    heat = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    low, high = heat.amin((1, 2, 3), keepdim=True), heat.amax((1, 2, 3), keepdim=True)
    heat = (heat - low) / (high - low + 1e-7)
    return nn.functional.interpolate(heat, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
