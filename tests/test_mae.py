"""The masked autoencoder: parity with the published ones, and what must hold for every encoder."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor, nn

import hiermim_zoo  # noqa: F401
from hiermim_zoo import convert
from hiermim_zoo.mae import MaskedAutoencoder, create_mae
from hiermim_zoo.masking import random_keep
from hiermim_zoo.models.decoder import ConvSum
from hiermim_zoo.protocol import MaskLayout, Stage

from .golden.case import Case, differs, ends, golden

PUBLISHED = {"mae_hivit_base": "hivit_base", "mae_vit_base": "vit_base_patch16_224"}
SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": 1}
TOYS = {
    "hivit": ("hivit_atto", {"depths": (1, 1, 2)}),
    "hivit not square": ("hivit_atto", {"img_size": (64, 96), "in_chans": 1, "depths": (1, 1, 2)}),
    "green": (
        "green_swin_atto",
        {"img_size": (64, 128), "embed_dim": 16, "num_heads": (1, 1, 2, 2), "depths": (2, 1, 1, 1)},
    ),
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "vit without class token": (
        "vit_tiny_patch16_224",
        {"img_size": (32, 64), "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False, "global_pool": "avg"},
    ),
    "hiera": ("hiera_tiny", {"img_size": (64, 96), **SMALL}),
    "hiera of clips": ("hiera_base_video", {"img_size": 64, "num_frames": 6, **SMALL}),
}


# ---- parity


@pytest.fixture(scope="module", params=PUBLISHED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published file, and what the command makes of it with its decoder."""
    folder: Path = tmp_path_factory.mktemp("published") / request.param
    folder.mkdir()
    golden(folder.name).publish(folder / "published.pth")
    arch = PUBLISHED[folder.name]
    convert.main([str(folder / "published.pth"), "--model", arch, "--mae", "-o", str(folder / "out"), "--verify"])
    return folder


@pytest.fixture(scope="module")
def published(folder: Path) -> tuple[Case, MaskedAutoencoder]:
    """A published file through ``convert --mae`` and ``create_mae(checkpoint=...)``."""
    return golden(folder.name), create_mae(PUBLISHED[folder.name], checkpoint=folder / "out").eval()


def test_published_files_come_back_as_they_were(folder: Path, tmp_path: Path) -> None:
    arch, back = PUBLISHED[folder.name], tmp_path / "back.pth"
    layout = {"mae_hivit_base": "hivit_mae", "mae_vit_base": "vit_mae"}[folder.name]
    convert.main([str(folder / "out"), "--model", arch, "--to", layout, "-o", str(back)])
    before, after = golden(folder.name).state(), torch.load(back, weights_only=True)["model"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.inference_mode()
def test_stored_outputs_are_reproduced(published: tuple[Case, MaskedAutoencoder]) -> None:
    case, mae = published
    images, expected = case.images(), case.outputs
    out = mae(images, case.keep())
    target = mae.target(images)
    found = {
        "loss": out.loss[None],
        "pred": ends(out.pred, 8),
        "pred_stats": torch.stack([out.pred.mean(), out.pred.std(correction=0)]),
        "pred_rows": out.pred[:, [0, 1, 13, 14, 97, 98, 194, 195]],
        "mask": out.hidden.to(expected["mask"].dtype),
        "target_rows": target[:, [0, 97, 195]],
        "patch_loss": (out.pred - target).square().mean(-1),
    }
    mae.norm_pix = False
    found["loss_unnormalised"] = mae(images, case.keep()).loss[None]
    mae.norm_pix = True
    assert expected.keys() - found.keys() == {"latent", "latent_stats"}
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name].reshape(value.shape), **case.tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    "name", ["encoder.patch_embed.proj.weight", "decoder.mask_token", "decoder.blocks.5.mlp.fc2.weight"]
)
@torch.inference_mode()
def test_a_perturbed_weight_is_noticed(published: tuple[Case, MaskedAutoencoder], name: str) -> None:
    """Negative control."""
    case, mae = published
    parameter = mae.get_parameter(name)
    before = parameter.clone()
    parameter.add_(0.1 * torch.randn_like(parameter))
    try:
        assert differs(mae(case.images(), case.keep()).loss[None], case.outputs["loss"], case.tolerance)
    finally:
        parameter.copy_(before)


def test_plain_vits_are_written_with_the_preprocessing_of_mae(folder: Path) -> None:
    """timm's default for the architecture normalises with 0.5, which MAE's weights do not want."""
    if PUBLISHED[folder.name] != "vit_base_patch16_224":
        pytest.skip("no plain ViT")
    model = timm.create_model(f"local-dir:{folder / 'out'}", pretrained=True)
    assert tuple(model.pretrained_cfg["mean"]) == IMAGENET_DEFAULT_MEAN
    assert model.num_classes == 0


# ---- properties at toy size


@pytest.fixture(params=TOYS.values(), ids=TOYS)
def mae(request: pytest.FixtureRequest) -> MaskedAutoencoder:
    """With a decoder of toy size."""
    name, kwargs = request.param
    return create_mae(name, recipe={"depth": 2, "dim": 64, "heads": 4}, **kwargs)


def images_for(mae: MaskedAutoencoder, batch: int = 2) -> Tensor:
    layout = mae.layout
    sides = zip(layout.units, layout.stages[-1].tokens, layout.stride, strict=True)
    return torch.randn(batch, mae.in_chans, *(u * t * s for u, t, s in sides))


def test_the_encoder_is_what_timm_builds(request: pytest.FixtureRequest, mae: MaskedAutoencoder) -> None:
    name, kwargs = request.node.callspec.params["mae"]
    encoder = timm.create_model(name, num_classes=0, **mae.recipe.encoder, **kwargs)
    assert {n: t.shape for n, t in mae.encoder.state_dict().items()} == {
        n: t.shape for n, t in encoder.state_dict().items()
    }
    assert {name.partition(".")[0] for name in mae.state_dict()} - {"fusion"} == {"encoder", "decoder"}


def test_shapes_and_masks(mae: MaskedAutoencoder) -> None:
    images = images_for(mae)
    out = mae(images)
    tokens = [u * t for u, t in zip(mae.layout.units, mae.layout.stages[-1].tokens, strict=True)]
    assert out.loss.shape == ()
    assert out.loss.dtype == torch.float32
    assert (
        out.pred.shape == mae.target(images).shape == (2, math.prod(tokens), mae.layout.stride[-1] ** 2 * mae.in_chans)
    )
    assert out.keep.shape == (2, int(mae.units * (1 - mae.recipe.mask_ratio)))
    hidden = torch.ones(2, mae.units, dtype=torch.bool).scatter(1, out.keep, False).unflatten(1, mae.layout.units)
    for axis, repeats in enumerate(mae.layout.stages[-1].tokens, 1):
        hidden = hidden.repeat_interleave(repeats, dim=axis)
    assert torch.equal(out.hidden, hidden.flatten(1))
    expected = (out.pred - mae.target(images)).square().mean(-1)[out.hidden].mean()
    torch.testing.assert_close(out.loss, expected)


def test_it_learns_one_batch_by_heart(mae: MaskedAutoencoder) -> None:
    images = images_for(mae)
    mode = "bilinear" if images.ndim == 4 else "trilinear"
    images = nn.functional.interpolate(images[..., ::8, ::8], size=images.shape[2:], mode=mode)
    keep = random_keep(2, mae.units, mae.kept)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3)
    first = mae(images, keep).loss.item()
    for _ in range(300):
        loss = mae(images, keep).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < first / 10:
            return
    pytest.fail(f"the loss fell from {first} to {loss.item()} only")


def test_gradients_reach_every_parameter(mae: MaskedAutoencoder) -> None:
    mae(images_for(mae)).loss.backward()
    unused = [n for n, p in mae.named_parameters() if p.requires_grad and p.grad is None]
    assert [n for n in unused if not n.startswith(("encoder.fc_norm", "encoder.norm"))] == []


def test_hidden_pixels_do_not_reach_the_prediction(mae: MaskedAutoencoder) -> None:
    images = images_for(mae)
    keep = random_keep(2, mae.units, mae.kept)
    out = mae(images, keep)
    shown = torch.zeros(2, mae.units, dtype=torch.bool).scatter(1, keep, True).view(2, 1, *mae.layout.units)
    for axis in range(2, images.ndim):
        shown = shown.repeat_interleave(images.shape[axis] // shown.shape[axis], dim=axis)
    other = torch.where(shown, images, torch.randn_like(images))
    assert torch.equal(mae(other, keep).pred, out.pred)
    assert not torch.equal(mae(other + 0.1, keep).pred, out.pred)


def test_patches_and_back(mae: MaskedAutoencoder) -> None:
    """Of clips the first frames of pairs."""
    images = images_for(mae)
    predicted = images[:, :, ::2] if images.ndim == 5 else images
    p = mae.layout.stride[-1]
    patch = (images[0, :, 0] if images.ndim == 5 else images[0])[:, :p, p : 2 * p]
    for order, values in (("hwc", patch.permute(1, 2, 0)), ("chw", patch)):
        mae.recipe = replace(mae.recipe, pixel_order=order)
        assert torch.equal(mae.patches(images)[0, 1], values.flatten())
        assert torch.equal(mae.from_patches(mae.patches(images)), predicted)


def test_reconstruction_shows_the_visible_and_undoes_the_normalisation(mae: MaskedAutoencoder) -> None:
    images = images_for(mae) * 3 + 5
    out = mae(images)
    perfect = out._replace(pred=mae.target(images))
    predicted = images[:, :, ::2] if images.ndim == 5 else images
    torch.testing.assert_close(mae.reconstruct(images, perfect), predicted, rtol=1e-4, atol=1e-3)
    estimated = mae.reconstruct(images, perfect, statistics="visible")
    shown = ~out.hidden[..., None].expand_as(out.pred)
    assert torch.equal(estimated, torch.where(mae.from_patches(shown), predicted, estimated))
    assert not torch.allclose(estimated, predicted, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="statistics='own' is unknown"):
        mae.reconstruct(images, out, statistics="own")


@pytest.mark.slow
def test_forward_and_backward_are_one_graph(request: pytest.FixtureRequest, mae: MaskedAutoencoder) -> None:
    if "hivit not square" in request.node.name:
        pytest.skip("the graph is that of the square one, with other numbers")
    mae.decoder.blocks = mae.decoder.blocks[:1]  # the second is traced as the first
    images, keep = images_for(mae), random_keep(2, mae.units, mae.kept)
    expected = mae(images, keep).loss
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in mae.named_parameters() if p.grad is not None}
    mae.zero_grad()
    loss = torch.compile(mae, fullgraph=True, backend="aot_eager")(images, keep).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in mae.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_the_loss_is_float32_under_autocast(mae: MaskedAutoencoder) -> None:
    images, keep = images_for(mae), random_keep(2, mae.units, mae.kept)
    with torch.autocast("cpu", torch.bfloat16):
        out = mae(images, keep)
    assert out.loss.dtype == torch.float32
    assert out.pred.dtype == torch.bfloat16
    torch.testing.assert_close(out.loss, mae(images, keep).loss, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio=0.0 keeps 16 of 16"),
        ({"mask_ratio": 1.0}, "keeps 0 of 16"),
        ({"mask_ratio": 1.5}, "mask_ratio=1.5"),
    ],
)
def test_ratios_that_hide_nothing_or_everything_are_refused(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mae("hivit_atto", **kwargs)


@pytest.mark.parametrize("name", ["green_swin_atto", "hivit_atto"])
def test_one_mask_for_all_is_that_mask_for_each_and_checked(name: str) -> None:
    """Also by encoders that plan, before they do."""
    mae = create_mae(name, recipe={"depth": 1, "dim": 32, "heads": 2}).eval()
    images, keep = images_for(mae, 3), random_keep(1, mae.units, mae.kept)
    with torch.inference_mode():
        shared, each = mae(images, keep), mae(images, keep.expand(3, -1))
    assert torch.equal(shared.pred, each.pred)
    assert torch.equal(shared.keep, each.keep)
    for bad, said in (
        (keep.float(), "must be int64"),
        (keep - mae.units, "names unit"),
        (keep[:, :0], "must be int64"),
        (keep.flip(1), "ascending"),
    ):
        with pytest.raises(ValueError, match=said):
            mae(images, bad)


def test_other_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resnet18 cannot be pre-trained by masking"):
        create_mae("resnet18")
    with pytest.raises(ValueError, match="'hivit_nano' is unknown"):
        create_mae("hivit_nano")
    with pytest.raises(ValueError, match=r"built for \[B, 3, 64, 64\], got \[1, 3, 96, 96\]"):
        create_mae("hivit_atto")(torch.randn(1, 3, 96, 96))
    with pytest.raises(ValueError, match="registers"):
        create_mae("vit_small_patch14_reg4_dinov2", img_size=28)


# ---- checkpoints


def toy_file(tmp_path: Path) -> Path:
    """A masked autoencoder of hivit_atto under the authors' names."""
    mae = create_mae("hivit_atto")
    state = {n.removeprefix("encoder."): t for n, t in mae.encoder.state_dict().items() if not n.startswith("fc_norm")}
    for name, tensor in mae.state_dict().items():
        if not name.startswith("encoder."):
            old = (
                name.replace("fusion.norm", "norm")
                .replace("decoder.mask_token", "mask_token")
                .replace("decoder.", "decoder_")
            )
            state[old] = tensor
    torch.save({"model": state}, tmp_path / "mae.pth")
    return tmp_path / "mae.pth"


def test_a_decoder_is_carried_over_or_started_anew(tmp_path: Path) -> None:
    file, out, bare = toy_file(tmp_path), tmp_path / "out", tmp_path / "bare"
    convert.main([str(file), "--model", "hivit_atto", "--mae", "-o", str(out), "--verify"])
    mae = create_mae("hivit_atto", checkpoint=out)
    published = torch.load(file, weights_only=True)["model"]
    assert torch.equal(mae.decoder.pred.weight, published["decoder_pred.weight"])
    assert torch.equal(mae.encoder.blocks[-1].mlp.fc1.weight, published["blocks.9.mlp.fc1.weight"])
    assert timm.create_model(f"local-dir:{out}", pretrained=True).num_classes == 0

    convert.main([str(file), "--model", "hivit_atto", "-o", str(bare)])
    assert not (bare / "decoder.safetensors").exists()
    with pytest.raises(ValueError, match=r"holds no decoder\.safetensors.*decoder='fresh'"):
        create_mae("hivit_atto", checkpoint=bare)
    fresh = create_mae("hivit_atto", checkpoint=bare, decoder="fresh")
    assert torch.equal(fresh.encoder.blocks[-1].mlp.fc1.weight, published["blocks.9.mlp.fc1.weight"])
    assert not torch.equal(fresh.decoder.pred.weight, published["decoder_pred.weight"])


def test_the_folder_of_a_classifier_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save(timm.create_model("hivit_atto", num_classes=10).state_dict(), tmp_path / "w.pth")
    convert.main([str(tmp_path / "w.pth"), "--model", "hivit_atto", "-o", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=r"holds no decoder\.safetensors"):
        create_mae("hivit_atto", checkpoint=tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds a classifier, for which .* has no place: convert .* --num-classes 0"):
        create_mae("hivit_atto", checkpoint=tmp_path / "out", decoder="fresh")


@pytest.mark.parametrize("family", ["hivit", "vit"])
def test_pretrained_encoders_keep_their_weights(family: str) -> None:
    name, kwargs = TOYS[family]
    encoder = timm.create_model(name, num_classes=0, **kwargs)
    source = {"state_dict": encoder.state_dict(), "num_classes": 0, "input_size": (3, 64, 64)}
    mae = create_mae(name, pretrained=True, pretrained_cfg_overlay=source, **kwargs)
    found = mae.encoder.state_dict()
    assert found.keys() <= encoder.state_dict().keys()
    assert all(torch.equal(tensor, encoder.state_dict()[key]) for key, tensor in found.items())
    assert not torch.equal(
        create_mae(name, **kwargs).encoder.blocks[-1].mlp.fc1.weight, mae.encoder.blocks[-1].mlp.fc1.weight
    )


def test_decoders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = toy_file(tmp_path)
    state = torch.load(file, weights_only=True)["model"]
    state["decoder_pred.bias"] = state["decoder_pred.bias"][:-1]
    torch.save(state, tmp_path / "spoiled.pth")
    with pytest.raises(ValueError, match=r"'decoder\.pred\.bias' is \[767\] in the checkpoint"):
        convert.main([str(tmp_path / "spoiled.pth"), "--model", "hivit_atto", "--mae", "-o", str(tmp_path / "out")])
    torch.save(timm.create_model("hivit_atto").state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ValueError, match=r"'hivit_timm'.*holds no decoder"):
        convert.main([str(tmp_path / "plain.pth"), "--model", "hivit_atto", "--mae", "-o", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="leave out --img-size"):
        convert.main([str(file), "--model", "hivit_atto", "--mae", "--img-size", "96", "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# ---- fusion by convolution


def test_conv_fusion_sums_the_levels_of_each_unit() -> None:
    layout = MaskLayout(units=(2, 2), stages=(Stage((8, 8), 3), Stage((4, 4), 5), Stage((2, 2), 7)), stride=(16, 16))
    fusion = ConvSum(layout)
    stages = [torch.randn(2, 3, *stage.tokens, stage.dim) for stage in layout.stages]
    found = fusion(stages)
    assert found.shape == (2, 3, 4, 7)
    with torch.no_grad():
        first, second = fusion.heads
        token = first.bias + second.bias + stages[2][1, 2, 1, 0]
        token = token + torch.einsum("yxc,ocyx->o", stages[0][1, 2, 4:8, 0:4], first.weight)
        token = token + torch.einsum("yxc,ocyx->o", stages[1][1, 2, 2:4, 0:2], second.weight)
        torch.testing.assert_close(
            found[1, 2, 2], nn.functional.layer_norm(token, (7,), eps=1e-6), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("name", "size", "works"), [("hivit_atto", 100, "112 x 112"), ("hiera_atto", (96, 70), "96 x 96")]
)
def test_a_size_of_no_whole_units_is_refused(name: str, size: Any, works: str) -> None:
    with pytest.raises(ValueError, match=f"is not a whole number of mask units; {works} is"):
        create_mae(name, img_size=size)
