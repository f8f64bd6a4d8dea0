"""What the files of plain ViTs can become beside an HPViT of 16-pixel patches: timm's plain ViT, HPViTs of others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hiermim_zoo import convert, extract, pretrain
from hiermim_zoo.checkpoints.layouts import find_layout
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.mae import create_mae, decoder_state
from hiermim_zoo.models import vit
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.shapes import without_memory

from .names import mmpretrain, transformers, transformers_in_memory, with_decoder, without
from .test_hpvit_convert import IMAGES, plain, same

State = dict[str, Tensor]
ARCH = "test_vit"  # timm's smallest plain ViT: 64 wide, 6 blocks
TOY: dict[str, Any] = {"embed_dim": 64, "num_heads": 2, "mlp_ratio": 3.0}


def toy(**kwargs: Any) -> State:
    return plain(**{**TOY, **kwargs})


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def converted(state: State, folder: Path, *more: object, arch: str = ARCH) -> State:
    torch.save({"model": state}, folder / "plain.pth")
    command(folder / "plain.pth", "--model", arch, "-o", folder / "out", "--force", *more)
    return load_file(folder / "out" / "model.safetensors")


def model_args(folder: Path) -> Any:
    return json.loads((folder / "out" / "config.json").read_text())["model_args"]


def head(state: State, name: str = "head") -> State:
    return {**state, f"{name}.weight": torch.linspace(-1, 1, 5 * 64).view(5, 64), f"{name}.bias": torch.ones(5)}


def batch_norm(state: State, name: str) -> State:
    stats = {"running_mean": torch.ones(64), "running_var": torch.ones(64), "num_batches_tracked": torch.tensor(3)}
    return {**state, **{f"{name}.{key}": value for key, value in stats.items()}}


# ---- a plain ViT of timm

# What a file holds, how its tensors are called, and the layout: each of the same encoder.
ENCODERS: dict[str, tuple[str, Callable[[State], State]]] = {
    "MAE encoder": ("vit_timm", dict),
    "MAE with decoder": ("vit_mae", with_decoder),
    "linear probe": ("vit_probe", lambda s: head(batch_norm(s, "head.0"), "head.1")),
    "transformers": ("vit_mae_transformers", lambda s: transformers(with_decoder(s))),
    "transformers in memory": ("vit_mae_transformers", lambda s: transformers_in_memory(with_decoder(s))),
    "transformers encoder": ("vit_mae_transformers", lambda s: without(transformers(s), "vit.")),
    "mmpretrain": ("vit_mae_mmpretrain", lambda s: mmpretrain(with_decoder(s))),
    "mmpretrain linear probe": (
        "vit_probe_mmpretrain",
        lambda s: head(batch_norm(mmpretrain(s), "neck.bn"), "head.layers.head"),
    ),
}
CLASSIFIERS: dict[str, tuple[str, str, Callable[[State], State]]] = {
    "timm": ("vit_class_token", "token", head),
    "mmpretrain": ("vit_class_token_mmpretrain", "token", lambda s: head(mmpretrain(s), "head.layers.head")),
    "MAE fine-tuned": ("vit_finetuned", "avg", head),
    "mmpretrain fine-tuned": ("vit_finetuned_mmpretrain", "avg", lambda s: mmpretrain(head(s))),
}


@pytest.mark.parametrize("kind", ENCODERS)
@torch.inference_mode()
def test_every_file_of_the_same_encoder_becomes_timms_vit(kind: str, tmp_path: Path) -> None:
    layout, rename = ENCODERS[kind]
    state = toy()
    written = converted(rename(state), tmp_path, "--verify")
    assert same(written, state)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hiermim_zoo"]["layout"] == layout
    assert model_args(tmp_path) == {"img_size": [64, 64]}
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    reference = VisionTransformer(img_size=64, depth=6, num_classes=0, **TOY).eval()
    reference.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    assert type(model) is VisionTransformer
    assert torch.equal(model.forward_features(images), reference.forward_features(images))
    reference.blocks[3].attn.qkv.bias[100] += 1  # negative control
    assert not torch.equal(model.forward_features(images), reference.forward_features(images))


@pytest.mark.parametrize("kind", CLASSIFIERS)
@torch.inference_mode()
def test_classifiers_keep_what_they_read(kind: str, tmp_path: Path) -> None:
    layout, pool, rename = CLASSIFIERS[kind]
    state = toy(global_pool=pool)
    converted(rename(state), tmp_path, "--verify")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hiermim_zoo"]["layout"] == layout
    assert model_args(tmp_path).get("global_pool", "token") == pool
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    reference = VisionTransformer(img_size=64, depth=6, num_classes=5, global_pool=pool, **TOY).eval()
    reference.load_state_dict(head(state))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images), reference(images))
    reference.global_pool = "avg" if pool == "token" else "token"  # negative control
    assert not torch.allclose(model(images), reference(images), atol=1e-2)
    again = converted(load_file(tmp_path / "out" / "model.safetensors"), tmp_path, "--num-classes", 0)
    assert same(again, state)
    assert model_args(tmp_path).get("global_pool", "token") == pool


def test_what_a_folder_holds_converts_again_and_to_an_hpvit(tmp_path: Path) -> None:
    written = converted(toy(global_pool="avg", num_classes=5), tmp_path, "--img-size", 96, 64)
    command(tmp_path / "out", "--model", ARCH, "-o", tmp_path / "again", "--verify")
    assert same(written, load_file(tmp_path / "again" / "model.safetensors"))
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True)
    assert model.patch_embed.img_size == (96, 64)
    wide = {"embed_dim": 96, "num_heads": 3, "mlp_ratio": 4.0}
    converted(
        {**plain(**wide), "head.weight": torch.ones(5, 96), "head.bias": torch.ones(5)}, tmp_path, arch="hpvit_atto"
    )
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if name.startswith("head")]


def test_a_model_has_one_norm_and_the_report_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = toy(global_pool="avg", num_classes=5)
    written = converted(tuned, tmp_path, "--global-pool", "token", "--verify")
    said = capsys.readouterr().out
    assert "dropped 2: norm behind mean pooling" in said
    assert "dropped 2: classifier of mean pooling, which is not what --global-pool asks for" in said
    assert "missing in the source, initial values kept: norm.weight, norm.bias" in said
    assert torch.equal(written["norm.weight"], torch.ones(64))
    written = converted(head(toy()), tmp_path, "--global-pool", "avg", "--verify")
    said = capsys.readouterr().out
    assert "dropped 2: norm over the tokens; fc_norm stands behind mean pooling instead" in said
    assert "classifier of the class token" in said
    assert "initial values kept: fc_norm.weight, fc_norm.bias" in said
    assert "norm.weight" not in written
    with pytest.raises(ValueError, match="--global-pool max is not one of token, avg"):
        converted(toy(), tmp_path, "--global-pool", "max")


# ---- what goes on from there


def test_masked_pre_training_goes_on_with_the_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mae = create_mae(ARCH, img_size=64)
    file = to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout("vit_mae"), mae.encoder)
    converted(file, tmp_path, "--mae")
    again = create_mae(ARCH, checkpoint=tmp_path / "out")
    assert same(dict(again.state_dict()), dict(mae.state_dict()))


def test_masked_pre_training_goes_on_from_every_kind_with_a_new_decoder(tmp_path: Path) -> None:
    recipe = {"depth": 1, "dim": 32, "heads": 2}
    for rename, state, more in (
        (mmpretrain, toy(), ()),
        (dict, head(toy()), ("--num-classes", 0)),
        (dict, toy(global_pool="avg", num_classes=5), ("--global-pool", "token")),
    ):
        written = converted(rename(state), tmp_path, *more)
        mae = create_mae(ARCH, checkpoint=tmp_path / "out", decoder="fresh", recipe=recipe)
        assert same({n[8:]: t for n, t in mae.state_dict().items() if n.startswith("encoder.")}, written)
        assert torch.isfinite(mae(torch.randn(2, 3, 64, 64)).loss)
    with pytest.raises(ValueError, match="start a new one: --decoder fresh"):
        create_mae(ARCH, checkpoint=tmp_path / "out")
    converted(toy(global_pool="avg", num_classes=5), tmp_path, "--num-classes", 0)
    with pytest.raises(ValueError, match=r"its norm behind mean pooling; .* convert --global-pool token"):
        create_mae(ARCH, checkpoint=tmp_path / "out", decoder="fresh")


def test_commands_take_the_folder(tmp_path: Path) -> None:
    written = converted(transformers(with_decoder(toy())), tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").symlink_to(IMAGES / "cat" / "0000.jpg")
    model = f"local-dir:{tmp_path / 'out'}"
    extract.main([str(tmp_path / "images"), "--model", model, "-o", str(tmp_path / "features.safetensors")])
    assert load_file(tmp_path / "features.safetensors")["pooled"].shape == (1, 64)
    run: list[Any] = ["digits", "--model", ARCH, "--checkpoint", tmp_path / "out", "--steps", 1, "--batch-size", 2]
    run += ["--decoder-depth", 1, "--decoder-dim", 32, "--decoder-heads", 2, "--workers", 0, "--amp", "none"]
    with pytest.raises(ValueError, match=r"holds no decoder.safetensors"):
        pretrain.main([*map(str, run), "-o", str(tmp_path / "run")])
    pretrain.main([*map(str, run), "--fresh-decoder", "--lr", "1e-9", "-o", str(tmp_path / "run")])
    trained = load_file(tmp_path / "run" / "encoder" / "model.safetensors")
    assert trained.keys() == written.keys()
    assert all(torch.allclose(tensor, written[name], atol=1e-6) for name, tensor in trained.items())
    with pytest.raises(ValueError, match="--decoder fresh belongs to --checkpoint"):
        pretrain.VERB.parse(["digits", "--model", ARCH, "--fresh-decoder", "-o", str(tmp_path)])


# ---- what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(extra=torch.ones(1)), r"'extra' \[1\] is not part of the layout"),
        (
            lambda s: s.update({"blocks.3.mlp.fc1.kernel": s.pop("blocks.3.mlp.fc1.weight")}),
            r"blocks\.3\.mlp\.fc1\.kernel",
        ),
        (lambda s: s.pop("blocks.3.mlp.fc1.weight"), r"'blocks\.3\.mlp\.fc1\.weight' .* is missing"),
        (lambda s: s.update({"norm.weight": torch.ones(65)}), r"'norm\.weight' is \[65\]"),
        (
            lambda s: s.update({"norm_pre.weight": torch.ones(64)}),
            r"'norm_pre\.weight' \[64\]: .* no norm before the first",
        ),
        (lambda s: s.update({"blocks.0.ls1.gamma": torch.ones(64)}), "no layer scale"),
        (lambda s: s.update({"pos_embed": torch.ones(17, 64)}), r"'pos_embed' is \[17, 64\] in the checkpoint"),
    ],
)
def test_the_tensor_in_the_way_is_named(change: Callable[[State], Any], message: str, tmp_path: Path) -> None:
    state = toy()
    change(state)
    with pytest.raises(ValueError, match=message):
        converted(state, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("test_vit2", r"'reg_token' .* is missing"),
        ("test_vit3", "has no place|is missing"),  # no class token
        ("vit_tiny_patch16_224", r"'blocks\.6\.\S+' .* is missing"),
        ("vit_base_patch16_clip_224", r"'norm_pre\.weight' .* is missing"),
        ("vit_small_patch16_18x2_224", r"is missing"),
    ],
)
def test_an_architecture_of_another_kind_is_refused(arch: str, message: str) -> None:
    """Its tensors have other names; nothing is built in memory."""
    native = family_named("vision_transformer").native(toy())
    with without_memory():
        model = vit.construct(arch, num_classes=0)
    with pytest.raises(ValueError, match=message):
        vit.FAMILY.adapt(native, model)


# ---- patches


def test_patches_of_another_architecture_name_it(tmp_path: Path) -> None:
    small = {"embed_dim": 384, "num_heads": 6, "depth": 12, "mlp_ratio": 4.0, "img_size": 32, "patch_size": 8}
    with without_memory():
        shapes = VisionTransformer(**small, num_classes=0).state_dict()
    state = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in shapes.items()}
    native = family_named("vision_transformer").native(state)
    assert vit.checkpoint_args(native, "vit_small_patch8_224") == {}
    assert vit.checkpoint_args(native, "eva_large_patch14_196") == {"global_pool": "token", "patch_size": 8}
    words = r"has patches of 8 x 8 pixels, vit_small_patch16_224 has 16 x 16: use --model vit_small_patch8_224$"
    with pytest.raises(ValueError, match=words):
        vit.checkpoint_args(native, "vit_small_patch16_224")


def test_patches_that_timm_has_no_name_for_are_remembered() -> None:
    with without_memory():
        tiny = VisionTransformer(embed_dim=192, num_heads=3, depth=12, img_size=56, patch_size=14, num_classes=0)
    native = family_named("vision_transformer").native(dict(tiny.state_dict()))
    args = vit.checkpoint_args(native, "vit_tiny_patch16_224")
    assert args == {"patch_size": 14}
    with without_memory():
        model = vit.construct("vit_tiny_patch16_224", num_classes=0, img_size=56, **args)
    assert vit.FAMILY.adapt(native._replace(size=56), model).keys() == model.state_dict().keys()
    assert vit.notes(native, {}, model) == {"patches": "14 x 14 pixels; timm has no name for this ViT"}


@pytest.mark.parametrize(
    ("patch", "more", "reductions", "args"),
    [
        (8, (), [2, 4, 8, 16], {"patch_size": 8, "patch_stride": 2}),
        (8, ("--patch-stride", 4), [4, 8, 16, 32], {"patch_size": 8, "patch_stride": 4}),
        (14, (), [4, 8, 16, 32], {"patch_size": 14}),
        (32, (), [8, 16, 32, 64], {"patch_size": 32, "patch_stride": 8}),
    ],
)
def test_an_hpvit_takes_its_patches_from_the_file(
    patch: int, more: tuple[object, ...], reductions: list[int], args: dict[str, int], tmp_path: Path
) -> None:
    """--verify compares it with the plain ViT at its own stride."""
    source = plain(patch_size=patch, img_size=4 * patch)
    written = converted(source, tmp_path, *more, "--verify", "--img-size", 64, arch="hpvit_atto")
    assert model_args(tmp_path) == args
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=0).eval()
    assert [info["reduction"] for info in model.feature_info] == reductions
    assert torch.equal(written["patch_embed.proj.weight"], source["patch_embed.proj.weight"])
    windows = [block.attn.window is not None for block in model.blocks]
    assert windows == [r < patch for r, depth in zip(reductions, (1, 1, 3, 1), strict=True) for _ in range(depth)]
    stem = model.patch_embed(torch.ones(1, 3, 64, 64))[0, 3, 3]  # inside, of ones: the sum of the kernel
    expected = source["patch_embed.proj.weight"].sum((1, 2, 3)) + source["patch_embed.proj.bias"]
    if reductions[0] * 3 >= patch:
        torch.testing.assert_close(stem, expected, rtol=1e-4, atol=1e-4)
    command(tmp_path / "out", "--model", "hpvit_atto", "-o", tmp_path / "again", "--verify")
    assert same(written, load_file(tmp_path / "again" / "model.safetensors"))
    source["patch_embed.proj.weight"][0] += 1  # negative control
    assert not same(written, converted(source, tmp_path, *more, "--img-size", 64, arch="hpvit_atto"))


@pytest.mark.parametrize(
    ("patch", "more", "message"),
    [
        (7, (), "patch_stride=4 must be at most patch_size=7 and differ from it by an even number"),
        (8, ("--patch-stride", 3), "patch_stride=3 must be at most patch_size=8"),
        (3, (), "patch_stride=4 must be at most patch_size=3"),
    ],
)
def test_patches_that_cannot_be_centred_are_refused(
    patch: int, more: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        converted(plain(patch_size=patch, img_size=12 * patch), tmp_path, *more, arch="hpvit_atto")
    assert not (tmp_path / "out").exists()


def test_weights_of_other_patches_are_not_loaded_as_they_are() -> None:
    source = {"state_dict": plain(patch_size=8), "num_classes": 0}
    with pytest.raises(RuntimeError, match=re.escape("patch_embed.proj.weight")):
        timm.create_model("hpvit_atto", pretrained=True, pretrained_cfg_overlay=source, num_classes=0)
