"""Models that give maps under torchvision's feature pyramid."""

from __future__ import annotations

import pytest
import timm
import torch
from torchvision.models.detection import MaskRCNN

import hiermim_zoo  # noqa: F401
from hiermim_zoo.detection import FeaturePyramid


def test_every_level_has_its_place_in_the_pyramid() -> None:
    body = timm.create_model("hpvit_atto", features_only=True)
    pyramid = FeaturePyramid(body, out_channels=16).eval()
    x = torch.randn(2, 3, 64, 96)
    maps = pyramid(x)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "0": (2, 16, 16, 24),
        "1": (2, 16, 8, 12),
        "2": (2, 16, 4, 6),
        "3": (2, 16, 2, 3),
        "pool": (2, 16, 1, 2),
    }
    coarsest = pyramid.fpn.layer_blocks[3](pyramid.fpn.inner_blocks[3](body(x)[3]))
    torch.testing.assert_close(maps["3"], coarsest)  # nothing comes down to it
    two = FeaturePyramid(timm.create_model("hivit_atto", features_only=True, out_indices=(1, 2)), out_channels=8)
    assert [m.shape[-2:] for m in two(x).values()] == [(8, 12), (4, 6), (2, 3)]


def test_what_gives_no_maps_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"HPViT gives no maps: make it with timm\.create_model\(\.\.\., features_only=True\)"
    ):
        FeaturePyramid(timm.create_model("hpvit_atto"))
    with pytest.raises(ValueError, match="output_fmt='NCHW'"):
        FeaturePyramid(timm.create_model("swin_tiny_patch4_window7_224", features_only=True))


def test_mask_rcnn_takes_a_training_step() -> None:
    """Every part of the model gets a gradient, the backbone's finest and coarsest blocks too."""
    torch.manual_seed(0)
    body = timm.create_model("hpvit_atto", features_only=True)
    model = MaskRCNN(FeaturePyramid(body, out_channels=16), num_classes=3, min_size=64, max_size=64).train()
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 8:40, 16:56] = 1
    target = {"boxes": torch.tensor([[16.0, 8.0, 56.0, 40.0]]), "labels": torch.tensor([2]), "masks": masks}
    losses = model([torch.rand(3, 64, 64)], [target])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    for block in (body.blocks[0], body.blocks[-1]) if hasattr(body, "blocks") else ():
        assert block.attn.qkv.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in body.parameters())
