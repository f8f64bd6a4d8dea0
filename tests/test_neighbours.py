"""Models of this package under the registries of TerraTorch and torchgeo, where these are installed.

They are large and no extra of this package: pip install terratorch torchgeo.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F

from hiermim_zoo.models.build import make_model

from .test_package import ROOT, blocks

# Their warnings, many on import alone, are not about this package.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

FAMILIES = ["hivit_atto", "hpvit_atto", "green_swin_atto", "green_twins_small", "hiera_atto"]
PAGE = ROOT / "docs" / "families.md"
BANDS, CLASSES, SIDE = 6, 3, 64


def images() -> Tensor:
    return torch.randn(2, BANDS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def check_learns(model: nn.Module, again: nn.Module, forward: Any, target: Tensor) -> None:
    """A step reaches every parameter, and what was learned survives a file of weights."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss = F.cross_entropy(forward(model), target)
    loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    optimizer.step()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    model.eval(), again.eval()
    with torch.no_grad():
        expected = forward(model)
        assert not torch.equal(forward(again), expected), "negative control"
        again.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(forward(again), expected)


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A folder of an encoder of six bands, as timm writes it, and its weights."""
    encoder: Any = make_model("hivit_atto", pretrained=False, in_chans=BANDS, num_classes=0)
    save_for_hf(encoder, str(tmp_path / "encoder"), safe_serialization=True)
    return tmp_path / "encoder", encoder.state_dict()


def run_page(name: str) -> dict[str, Any]:
    """What the block of the page that is about a package makes."""
    [code] = [code for code in blocks(PAGE, "py") if name in code]
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope


# ---- TerraTorch


def segmenter(backbone: str, decoder: str = "UperNetDecoder", **kwargs: Any) -> nn.Module:
    from terratorch.models import EncoderDecoderFactory

    channels = [16, 16, 8, 8] if decoder == "UNetDecoder" else 16
    model: nn.Module = EncoderDecoderFactory().build_model(
        task="segmentation", backbone=backbone, backbone_in_chans=BANDS, decoder=decoder, decoder_channels=channels,
        num_classes=CLASSES, **kwargs,
    )  # fmt: skip
    return model


@pytest.mark.parametrize(
    ("name", "decoder"),
    [*((name, "UperNetDecoder") for name in FAMILIES), ("hiera_atto", "FCNDecoder"), ("hivit_atto", "UNetDecoder")],
)
def test_terratorch_trains_a_segmenter(name: str, decoder: str) -> None:
    pytest.importorskip("terratorch", reason="TerraTorch is not installed")
    model, again = (segmenter(f"timm_{name}", decoder, backbone_pretrained=False) for _ in range(2))
    x, target = images(), torch.randint(0, CLASSES, (2, SIDE, SIDE))
    assert model(x).output.shape == (2, CLASSES, SIDE, SIDE)
    check_learns(model, again, lambda m: m(x).output, target)


def test_terratorch_takes_folders_and_refuses_what_does_not_exist(folder: tuple[Path, dict[str, Tensor]]) -> None:
    pytest.importorskip("terratorch", reason="TerraTorch is not installed")
    from terratorch.registry import BACKBONE_REGISTRY

    path, weights = folder
    found = segmenter(f"timm_local-dir:{path}", backbone_pretrained=True).state_dict()
    shared = [name for name in weights if f"encoder.model.{name}" in found]
    assert len(shared) > 0.9 * len(weights)
    assert all(torch.equal(found[f"encoder.model.{name}"], weights[name]) for name in shared)
    assert "timm_hivit_base" in BACKBONE_REGISTRY
    with pytest.raises(Exception, match="hivit_nothing"):
        BACKBONE_REGISTRY.build("timm_hivit_nothing")


def test_terratorch_imports_custom_modules(tmp_path: Path) -> None:
    """What the page says of its command; in a process of its own, where nothing else has imported this package."""
    pytest.importorskip("terratorch", reason="TerraTorch is not installed")
    code = "from terratorch.registry import BACKBONE_REGISTRY; print('timm_hivit_base' in BACKBONE_REGISTRY)"

    def known() -> str:
        command = [sys.executable, "-W", "ignore", "-c", code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()[-1]

    assert known() == "False"
    (tmp_path / "custom_modules").mkdir()
    (tmp_path / "custom_modules" / "__init__.py").write_text("import hiermim_zoo\n")
    assert known() == "True"


def test_the_page_is_right_about_terratorch() -> None:
    pytest.importorskip("terratorch", reason="TerraTorch is not installed")
    assert run_page("terratorch")["model"].eval()(images()).output.shape == (2, CLASSES, SIDE, SIDE)


# ---- torchgeo


@pytest.mark.parametrize("name", FAMILIES)
def test_torchgeo_trains_a_classifier(name: str) -> None:
    trainers = pytest.importorskip("torchgeo.trainers", reason="torchgeo is not installed")
    model, again = (trainers.ClassificationTask(name, in_channels=BANDS, num_classes=CLASSES) for _ in range(2))
    x = images()
    check_learns(model, again, lambda m: m(x), torch.tensor([0, 2]))


@pytest.mark.parametrize("name", FAMILIES)
def test_torchgeo_trains_a_segmenter(name: str) -> None:
    trainers = pytest.importorskip("torchgeo.trainers", reason="torchgeo is not installed")
    model, again = (
        trainers.SemanticSegmentationTask("unet", f"tu-{name}", in_channels=BANDS, num_classes=CLASSES)
        for _ in range(2)
    )
    x = images()
    check_learns(model, again, lambda m: m(x), torch.randint(0, CLASSES, (2, SIDE, SIDE)))


def test_torchgeo_takes_folders(folder: tuple[Path, dict[str, Tensor]]) -> None:
    trainers = pytest.importorskip("torchgeo.trainers", reason="torchgeo is not installed")
    path, weights = folder
    how: dict[str, Any] = {"weights": True, "in_channels": BANDS, "num_classes": CLASSES}
    classifier = trainers.ClassificationTask(f"local-dir:{path}", **how).model.state_dict()
    encoder = trainers.SemanticSegmentationTask("unet", f"tu-local-dir:{path}", **how).model.encoder.state_dict()
    for found in (classifier, {name.removeprefix("model.model."): tensor for name, tensor in encoder.items()}):
        shared = [name for name in weights if name in found]
        assert len(shared) > 0.9 * len(weights)
        assert all(torch.equal(found[name], weights[name]) for name in shared)


def test_torchgeos_deeplab_is_refused_in_words() -> None:
    trainers = pytest.importorskip("torchgeo.trainers", reason="torchgeo is not installed")
    with pytest.raises(ValueError, match="output_stride=16 is not available"):
        trainers.SemanticSegmentationTask("deeplabv3+", "tu-hivit_atto", num_classes=CLASSES)


def test_the_page_is_right_about_torchgeo() -> None:
    pytest.importorskip("torchgeo.trainers", reason="torchgeo is not installed")
    scope = run_page("torchgeo")
    assert scope["classifier"](images()).shape == (2, CLASSES)
    assert scope["segmenter"](images()).shape == (2, CLASSES, SIDE, SIDE)
    embedded = timm.create_model("hivit_atto", pretrained=True, in_chans=BANDS).state_dict()
    found = scope["classifier"].model.state_dict()
    assert all(torch.equal(found[name], embedded[name]) for name in embedded if "head" not in name)
