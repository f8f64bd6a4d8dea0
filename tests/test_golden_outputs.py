"""Golden outputs beside weights: written, compared, and told from those of other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hiermim_zoo import convert, create_mae
from hiermim_zoo.checkpoints.folder import GOLDEN_FILE, MODEL_FILE
from hiermim_zoo.checkpoints.golden import COUNT, TOLERANCE, check_golden, outputs, write_golden
from hiermim_zoo.data.photographs import photographs, shown

from .embedded import CLASSIFIERS

ENCODERS = ("hivit_atto.mae_cifar10", "hiera_atto_video.mae_moving")
AUTOENCODERS = ("hivit_atto", "vit_tiny_patch16_224", "green_swin_atto", "hiera_atto", "hiera_atto_video")


def perturbed(model: Any) -> Any:
    """One matrix of it, which every output depends on, changed by a hundredth of its deviation."""
    weight = next(p for p in model.parameters() if p.ndim > 3)
    with torch.no_grad():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        weight += 0.01 * weight.std() * noise
    return model


@pytest.mark.parametrize("name", [*CLASSIFIERS, *ENCODERS])
def test_a_model_agrees_with_its_golden_outputs_and_another_does_not(name: str, tmp_path: Path) -> None:
    model: Any = timm.create_model(name, pretrained=True)
    path = write_golden(tmp_path, model)
    assert path == tmp_path / GOLDEN_FILE
    again = check_golden(tmp_path, timm.create_model(name, pretrained=True))
    assert again.within
    assert again.difference < TOLERANCE / 10
    assert again.outputs == (("logits",) if name in CLASSIFIERS else ("features",))
    assert again.versions["torch"] == str(torch.__version__)
    assert model.training
    assert not check_golden(tmp_path, perturbed(model)).within


@pytest.mark.parametrize("arch", AUTOENCODERS)
def test_an_autoencoder_has_a_loss_for_each_photograph(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mae = create_mae(arch)
    golden = load_file(write_golden(tmp_path, mae))
    assert golden["loss"].shape == golden["keep"].shape[:1] == (COUNT,)
    assert check_golden(tmp_path, mae).outputs == ("loss", "features")
    assert check_golden(tmp_path, mae).within
    assert check_golden(tmp_path, mae.encoder).outputs == ("features",)
    mae.decoder.load_state_dict(create_mae(arch).decoder.state_dict())
    assert not check_golden(tmp_path, mae).within
    assert check_golden(tmp_path, mae.encoder).within


def test_a_model_of_other_channels_and_sizes_is_shown_the_same_photographs(tmp_path: Path) -> None:
    model = timm.create_model("hivit_atto", in_chans=5, img_size=96)
    inputs = shown(photographs(3), model)
    assert inputs.shape == (3, 5, 96, 96)
    assert torch.equal(inputs[:, 0], inputs[:, 3])
    write_golden(tmp_path, model)
    assert check_golden(tmp_path, model).within


def test_a_clip_is_a_photograph_that_moves() -> None:
    inputs = shown(photographs(2), timm.create_model("hiera_atto_video"))
    assert inputs.shape == (2, 3, 8, 64, 64)
    assert torch.equal(inputs[:, :, 1, :, 2:], inputs[:, :, 0, :, :-2])


def test_outputs_do_not_depend_on_what_the_model_did_before() -> None:
    model = timm.create_model("hivit_atto", pretrained=True, drop_path_rate=0.5).train()
    first = outputs(model, photographs(2))["logits"]
    assert torch.equal(first, outputs(model, photographs(2))["logits"])


def test_a_new_model_in_the_folder_takes_its_golden_outputs_away(tmp_path: Path) -> None:
    source = "hivit_atto.mae_cifar10_ft_cifar10"
    convert.run(source=source, output=str(tmp_path))
    write_golden(tmp_path, timm.create_model(f"local-dir:{tmp_path}", pretrained=True))
    assert (tmp_path / GOLDEN_FILE).stat().st_mode == (tmp_path / MODEL_FILE).stat().st_mode
    convert.run(source=source, output=str(tmp_path), num_classes=0, force=True)
    assert not (tmp_path / GOLDEN_FILE).exists()


def test_what_cannot_be_golden_is_refused(tmp_path: Path) -> None:
    model: Any = timm.create_model("hivit_atto")
    with pytest.raises(ValueError, match=r"holds no golden\.safetensors"):
        check_golden(tmp_path, model)
    write_golden(tmp_path, model)
    with pytest.raises(ValueError, match=r"logits are \[4, 10\], those of the model \[4, 7\]"):
        check_golden(tmp_path, timm.create_model("hivit_atto", num_classes=7))
    with pytest.raises(ValueError, match="holds logits; the model computes features"):
        check_golden(tmp_path, timm.create_model("hivit_atto", num_classes=0))
    with pytest.raises(ValueError, match="is not of a masked autoencoder; it holds logits"):
        check_golden(tmp_path, create_mae("hivit_atto"))
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    assert not check_golden(tmp_path, model).within
    with pytest.raises(ValueError, match="the logits of the photographs are not finite"):
        write_golden(tmp_path, model)
    save_file({"logits": torch.zeros(4, 10)}, tmp_path / GOLDEN_FILE)
    with pytest.raises(ValueError, match="holds no images of golden outputs"):
        check_golden(tmp_path, model)
    (tmp_path / GOLDEN_FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"no complete \.safetensors file"):
        check_golden(tmp_path, model)
