"""What hooks see of a classifier: maps in place, and not a bit of its outputs changed."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from hiermim_zoo.cam import ForCam

from .test_edges import MODELS

PLAIN = {"vit_tiny_patch16_224": {"img_size": 64, "depth": 1, "global_pool": "avg", "dynamic_img_size": True}}


def hooked(name: str) -> tuple[Any, ForCam, list[Tensor]]:
    model = timm.create_model(name, num_classes=5, **{**MODELS, **PLAIN}[name]).eval()
    shown, seen = ForCam(model), []
    shown.maps.register_forward_hook(lambda module, args, out: seen.append(out))
    return model, shown, seen


@pytest.mark.parametrize("name", [*MODELS, *PLAIN])
def test_maps_are_where_the_image_is(name: str) -> None:
    """A change in one corner changes the map most in that corner, in another shape than the model's own too."""
    model, shown, seen = hooked(name)
    images = torch.randn(1, 3, 64, 128)
    with torch.inference_mode():
        assert torch.equal(shown(images), model(images))
        images[:, :, 32:, 96:] = 3
        shown(images)
    before, after = seen
    assert before.shape[2] * 2 == before.shape[3]
    change = (after - before).abs().sum(1)[0]
    rows, cols = change.shape
    assert int(change.argmax()) in {r * cols + c for r in range(rows // 2, rows) for c in range(cols * 3 // 4, cols)}


@pytest.mark.parametrize("name", ["hivit_atto", "hpvit_atto", "hiera_atto", "hiera_sam2_atto"])
def test_maps_are_those_of_the_last_level_of_tokens(name: str) -> None:
    model, shown, seen = hooked(name)
    images = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        shown(images)
        maps = model.forward_intermediates(images, intermediates_only=True)
    [expected] = [m for m in maps if m.shape == seen[0].shape]
    assert torch.equal(seen[0], expected)
    assert not torch.equal(seen[0], expected.flip(-1)), "negative control"


def test_gradients_reach_the_maps() -> None:
    _, shown, seen = hooked("hiera_atto")
    logits = shown(torch.randn(1, 3, 64, 64))
    (gradient,) = torch.autograd.grad(logits[0, 2], seen[0])
    assert gradient.abs().sum() > 0


def test_what_has_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match="build it with global_pool='avg'"):
        ForCam(timm.create_model("vit_tiny_patch16_224", depth=1))
    with pytest.raises(ValueError, match="has no classifier"):
        ForCam(timm.create_model("hivit_atto", num_classes=0))
    with pytest.raises(ValueError, match="tokens: no grid of images"):
        ForCam(timm.create_model("hiera_atto_video", num_classes=5))(torch.randn(1, 3, 4, 64, 64))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", ["hook", "list", "fx"])
def test_hooks_on_blocks_are_no_feature_maps(name: str, way: str) -> None:
    with pytest.raises(ValueError, match=f"feature_cls='{way}' is not available: blocks hand on tokens"):
        timm.create_model(name, features_only=True, feature_cls=way, **MODELS[name])
