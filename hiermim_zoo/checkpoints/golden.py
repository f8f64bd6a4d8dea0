"""Golden outputs: what a model computes for a few photographs, in a small file beside its weights.

Whoever has the folder later, with other versions or on another machine, can tell whether it still computes that. The
file holds the photographs too, so nothing but the file is needed.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from torch import Tensor, nn

from ..data.photographs import photographs, shown
from ..masking import random_keep
from ..progress import Progress
from ..version import __version__
from .atomic import replacing, save_tensors
from .content import read_content
from .folder import GOLDEN_FILE, MODEL_FILE

COUNT = 4  # photographs
# Largest difference, as a share of the largest output. Processors and versions of torch differ by 1e-5 and less in
# float32; a stem that is changed by a hundredth of its deviation alone changes outputs by more than this.
TOLERANCE = 1e-3
_INPUTS = ("images", "keep")  # what else is in the file


@dataclass(frozen=True)
class GoldenCheck:
    """How a model compares with the golden outputs of its folder."""

    difference: float  # the largest, as a share of the largest golden output; nan where the model computes nan
    tolerance: float
    outputs: tuple[str, ...]  # that were compared: "logits", "features", "loss"
    versions: Mapping[str, str]  # that the golden outputs were made with

    @property
    def within(self) -> bool:
        return self.difference <= self.tolerance


def write_golden(folder: str | Path, model: Any) -> Path:
    """Write golden.safetensors.

    Args:
        folder: of the model, in which its weights are.
        model: a classifier (its "logits", [4, classes]), an encoder without classifier ("features", [4, C]: what the
            model returns), or a MaskedAutoencoder ("loss", [4], and "features" of its encoder). It is asked on its
            own device and in its own type, in evaluation; float32 is what others will compare with.

    Returns:
        The file. Tensors: "images", uint8 [4, 32, 32, 3]; "keep", int64 [4, K], of autoencoders; and the outputs,
        float32. Metadata: the versions.

    Raises:
        ValueError: an output is not finite.
        OSError: the file cannot be written.
    """
    images = photographs(COUNT)
    tensors = {"images": images}
    if _masked(model):
        tensors["keep"] = random_keep(COUNT, model.units, model.kept, generator=torch.Generator().manual_seed(0))
    found = outputs(model, images, tensors.get("keep"))
    for name, values in found.items():
        if not values.isfinite().all():
            raise ValueError(f"the {name} of the photographs are not finite: they cannot be golden")
    path = Path(folder) / GOLDEN_FILE
    with replacing(path) as part:
        save_tensors({**tensors, **found}, part, {"format": "pt", **versions()})
        if (weights := path.with_name(MODEL_FILE)).is_file():
            part.chmod(weights.stat().st_mode)  # safetensors writes for the owner alone
    return path


def check_golden(folder: str | Path, model: nn.Module) -> GoldenCheck:
    """Compare what a model computes with the golden outputs of its folder.

    Args:
        folder: with golden.safetensors.
        model: as for :func:`write_golden`; of a masked autoencoder's golden outputs its encoder alone has "features".

    Raises:
        ValueError: there is no such file, it is damaged, or holds nothing that this model computes in this shape.
    """
    path = Path(folder) / GOLDEN_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {GOLDEN_FILE}")
    golden: dict[str, Tensor] = read_content(path)
    images, keep = golden.get("images"), golden.get("keep")
    if images is None or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"{path} is damaged: it holds no images of golden outputs")
    if _masked(model) and (keep is None or len(keep) != len(images)):
        raise ValueError(f"{path} is not of a masked autoencoder; it holds {', '.join(_names(golden))}")
    found = outputs(model, images, keep)
    common = tuple(name for name in found if name in golden)
    if not common:
        raise ValueError(f"{path} holds {', '.join(_names(golden))}; the model computes {', '.join(found)}")
    for name in common:
        if golden[name].shape != found[name].shape:
            shapes = list(golden[name].shape), list(found[name].shape)
            raise ValueError(f"{path}: {name} are {shapes[0]}, those of the model {shapes[1]}")
    difference = max(_difference(found[name], golden[name].float()) for name in common)
    return GoldenCheck(difference, TOLERANCE, common, _metadata(path))


@torch.inference_mode()
def outputs(model: nn.Module, images: Tensor, keep: Tensor | None = None) -> dict[str, Tensor]:
    """What a model computes for images, one after the other: large models need little memory then.

    Args:
        images: uint8 [B, h, w, 3].
        keep: int64 [B, K], visible units, of an autoencoder.

    Returns:
        Float32 on the CPU: "logits" or "features" [B, ...]; of an autoencoder "loss" [B] and "features".
    """
    training, at = model.training, next(model.parameters())
    model.eval()
    try:
        inputs = [image[None].to(at.device, at.dtype) for image in shown(images, model)]
        if not _masked(model):
            name = "logits" if getattr(model, "num_classes", 0) else "features"
            with Progress(len(inputs), "image", what="golden outputs") as bar:
                return {name: torch.cat([model(one) for one in bar.over(inputs)]).float().cpu()}
        assert keep is not None
        rows = keep.to(at.device)
        encoder: Any = model.encoder
        losses, found = [], []
        with Progress(len(inputs), "image", what="golden outputs") as bar:
            for i, one in enumerate(bar.over(inputs)):
                losses.append(model(one, rows[i : i + 1]).loss)
                found.append(encoder(one))
        features = torch.cat(found)
        return {"loss": torch.stack(losses).float().cpu(), "features": features.float().cpu()}
    finally:
        model.train(training)


def versions() -> dict[str, str]:
    """Of what the outputs depend on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "safetensors": safetensors.__version__,
        "hiermim_zoo": __version__,
    }


def _masked(model: Any) -> bool:
    """Whether it is a MaskedAutoencoder, which this level does not know."""
    return hasattr(model, "encoder") and hasattr(model, "kept")


def _names(golden: Mapping[str, Tensor]) -> list[str]:
    return [name for name in golden if name not in _INPUTS] or ["nothing"]


def _difference(found: Tensor, golden: Tensor) -> float:
    """The largest, as a share of the largest golden value."""
    return ((found - golden).abs().max() / golden.abs().max().clamp_min(1e-12)).item()


def _metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return {name: value for name, value in (file.metadata() or {}).items() if name != "format"}
