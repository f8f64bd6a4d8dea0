"""The plain API at its edges, in every family and the autoencoder: one line that names the value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch

import hiermim_zoo

MODELS: dict[str, dict[str, Any]] = {
    "hivit_atto": {"depths": (1, 1, 1)},
    "hpvit_atto": {"depths": (1, 1, 1, 1)},
    "hiera_atto": {"depths": (1, 1, 1, 1), "img_size": 64},
    "hiera_sam2_atto": {"depths": (1, 1, 3, 2), "img_size": 64},
    "green_swin_atto": {"depths": (1, 1, 1, 1), "img_size": 64, "window_size": 2},
    "green_twins_small": {
        "depths": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128), "num_heads": (1, 2, 4, 4), "img_size": 64
    },
}  # fmt: skip
IMAGES = {
    "empty": (torch.zeros(0, 3, 64, 64), r"the batch is empty: got images of shape \[0, 3, 64, 64\]"),
    "integers": (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating-point numbers, got torch.uint8"),
    "channels": (torch.zeros(1, 4, 64, 64), r"images of 3 channels, got shape \[1, 4, 64, 64\]"),
    "one image": (torch.zeros(3, 64, 64), r"expected images \[B, C, H, W\], got shape \[3, 64, 64\]; images\[None\]"),
    "five axes": (torch.zeros(1, 3, 2, 64, 64), r"expected images \[B, C, H, W\], got shape \[1, 3, 2, 64, 64\]"),
}
ASCENDING = [[0, 1]]
KEEPS = {
    "list": (ASCENDING, "keep must be a tensor int64 .* got list"),
    "array": (np.array(ASCENDING), "keep must be a tensor int64 .* got ndarray"),
    "int32": (torch.tensor(ASCENDING, dtype=torch.int32), r"got torch.int32 \[1, 2\]"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return timm.create_model(request.param, num_classes=5, **MODELS[request.param]).eval()


@pytest.fixture(scope="module")
def mae() -> Any:
    return hiermim_zoo.create_mae("hivit_atto", depths=(1, 1, 1), recipe={"depth": 1, "dim": 32, "heads": 2}).eval()


@pytest.mark.parametrize("case", IMAGES)
def test_images_that_are_none_are_named(model: Any, mae: Any, case: str) -> None:
    images, said = IMAGES[case]
    calls = [model, model.forward_features, model.forward_intermediates, mae]
    if hasattr(model, "forward_visible"):
        calls.append(lambda x: model.forward_visible(x, torch.tensor(ASCENDING)))
    for call in calls:
        with pytest.raises(ValueError, match=said):
            call(images)


@pytest.mark.parametrize("case", KEEPS)
def test_masks_that_are_none_are_named(model: Any, mae: Any, case: str) -> None:
    keep, said = KEEPS[case]
    for call in (mae, *([model.forward_visible] if hasattr(model, "forward_visible") else [])):
        with pytest.raises(ValueError, match=said):
            call(torch.zeros(1, 3, 64, 64), keep)


def test_plain_vits_too() -> None:
    mae = hiermim_zoo.create_mae("vit_tiny_patch16_224", img_size=64, depth=1)
    for images, said in IMAGES.values():
        with pytest.raises(ValueError, match=said):
            mae(images)
        with pytest.raises(ValueError, match=said):
            mae.maskable.forward_visible(images, torch.tensor(ASCENDING))


def test_clips_too() -> None:
    model = timm.create_model("hiera_atto_video", depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"expected clips of 3 channels, got shape \[1, 2, 4, 64, 64\]"):
        model(torch.zeros(1, 2, 4, 64, 64))
    with pytest.raises(ValueError, match=r"expected clips \[B, C, T, H, W\], got shape .*; images\[None\] is"):
        model(torch.zeros(3, 4, 64, 64))
    with pytest.raises(ValueError, match="the batch is empty"):
        model(torch.zeros(0, 3, 4, 64, 64))
