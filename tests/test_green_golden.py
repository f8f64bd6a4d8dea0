"""GreenMIM's autoencoders compute what the authors' code computes, from the authors' checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.rules import check_fits
from hiermim_zoo.mae import MaskedAutoencoder, create_mae
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.green_swin import set_norm_eps
from hiermim_zoo.models.shapes import without_memory

from .golden.case import Case, differs, ends, golden

CASES = {
    "green_swin_base_w7": ("green_swin_base", "swin_base_patch4_window7_224", "layers.2.blocks.1.mlp.fc1.weight"),
    "green_twins_large": ("green_twins_large", "twins_svt_large", "pos_block.1.proj.0.weight"),
}
pytestmark = pytest.mark.slow
Published = tuple[Case, MaskedAutoencoder]


@pytest.fixture(scope="module", params=CASES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A file through ``convert --mae`` and ``create_mae(checkpoint=...)``; the larger in memory, to save time."""
    case, folder = golden(request.param), tmp_path_factory.mktemp(request.param)
    arch, file = CASES[request.param][0], Path(folder) / "published.pth"
    if arch == "green_swin_base":
        case.publish(file)
        convert.main([str(file), "--model", arch, "--mae", "-o", str(folder / "out")])
        file.unlink()
        return case, create_mae(arch, checkpoint=folder / "out").eval()
    green = family_named("green")
    native = green.native(case.state(), decoder=True)
    with without_memory():
        mae = create_mae(arch).eval()
    encoder = {f"encoder.{name}": tensor for name, tensor in green.adapt(native, mae.encoder).items()}
    check_fits({**encoder, **native.decoder}, mae.state_dict(), model=arch)
    mae.load_state_dict({**encoder, **native.decoder}, assign=True)
    return case, mae


def keep_of(case: Case) -> Tensor:
    return case.keep()[:1].expand(2, -1)  # the authors hide the same units of every image


@torch.inference_mode()
def test_stored_outputs_are_reproduced(published: Published) -> None:
    case, mae = published
    images, keep = case.images(), keep_of(case)
    out = mae(images, keep)
    found = {
        "loss": out.loss[None],
        "encoder": mae.maskable.forward_visible(images, keep).stages[-1].flatten(1, -2),
        "pred": ends(out.pred, 8),
        "pred.stats": torch.stack([out.pred.mean(), out.pred.std(correction=0)]),
        "loss_plain_pixels": (out.pred - mae.patches(images)).square().mean(-1)[out.hidden].mean()[None],
    }
    for name, value in found.items():
        torch.testing.assert_close(value, case.outputs[name], **case.tolerance, msg=lambda m, n=name: f"{n}: {m}")


@torch.inference_mode()
def test_a_perturbed_weight_is_noticed(published: Published) -> None:
    """Negative control."""
    case, mae = published
    parameter = mae.encoder.get_parameter(CASES[case.name][2])
    before = parameter.clone()
    parameter.add_(0.1 * torch.randn_like(parameter))
    try:
        assert differs(mae(case.images(), keep_of(case)).loss[None], case.outputs["loss"], case.tolerance)
    finally:
        parameter.copy_(before)


@torch.inference_mode()
def test_the_encoder_is_timms_model(published: Published) -> None:
    """Its weights load into it strictly, and with all units visible it computes the same tokens."""
    case, mae = published
    theirs = timm.create_model(CASES[case.name][1], num_classes=0).eval()
    theirs.load_state_dict(mae.encoder.state_dict())
    set_norm_eps(theirs, 1e-6)
    images = case.images()[:1]
    expected = theirs.forward_features(images).reshape(1, 49, -1)
    found = mae.maskable.forward_visible(images, torch.arange(49)[None]).stages[-1].flatten(1, -2)
    torch.testing.assert_close(found, expected, **case.tolerance)
