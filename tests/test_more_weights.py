"""Weights of others that the families here hold: SimMIM's Swin, MAE's files for pictures, mmpretrain's ViTs, HiViT of
SARATR-X and Hiera of MAE-Lite. Files of random weights in their names compute what the reference does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, get_relative_position_index
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import hiermim_zoo.mae as autoencoders
from hiermim_zoo import convert, mirror
from hiermim_zoo.checkpoints import manifest, places, store
from hiermim_zoo.checkpoints.layouts import all_layouts, find_layout
from hiermim_zoo.checkpoints.manifest import Weights
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.commands import mirroring, publication
from hiermim_zoo.mae import MaskedAutoencoder, create_mae, decoder_state
from hiermim_zoo.models.build import make_model
from hiermim_zoo.models.family import family_named, family_of

from .names import State, mmpretrain, renamed
from .servers import serving

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def random(model: nn.Module) -> State:
    """A state with values that differ everywhere, also where models start from zero or one."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            found[name] = 1 + 0.1 * noise if name.endswith("weight") and tensor.ndim == 1 else 0.1 * noise
    return found


def filled(model: nn.Module) -> Any:
    model.load_state_dict(random(model), strict=False)
    return model.eval()


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def fitting(state: Mapping[str, Tensor]) -> list[str]:
    return [table.name for table in all_layouts() if table.fits(state) and not table.by_name]


# ---- the rows


def test_every_row_can_be_read_by_its_family() -> None:
    for row in manifest.records().values():
        family = family_of(row.arch)
        assert row.layout in {layout.name for layout in family.layouts}, row.name
        assert row.timm is not family.own, row.name
        assert "openmmlab" not in row.url or len(places.origins(row)[0].digests["sha256"]) == 8, row.name
    pixels = {row.name for row in manifest.records().values() if row.url.rpartition("/")[2].startswith("mae_visualize")}
    assert pixels == {row.name for row in manifest.records().values() if row.layout == "vit_mae_pixels"}
    assert len(pixels) == 4


# ---- SimMIM's Swin

SMALL_SWIN = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
WINDOWS = {"green_swin_base_win6": 6, "green_swin_large_win12": 12}


def reference_swin(window: int, classes: int) -> Any:
    torch.manual_seed(1)
    return filled(SwinTransformer(img_size=192, window_size=window, num_classes=classes, **SMALL_SWIN))


def by_microsoft(model: Any, prefix: str) -> State:
    """The names of SimMIM's authors, with their buffers."""
    state = {name: tensor for name, tensor in model.state_dict().items() if "attn_mask" not in name}
    for name, block in model.named_modules():
        if isinstance(block, SwinTransformerBlock):
            state[f"{name}.attn.relative_position_index"] = get_relative_position_index(*block.window_size)
            if block.get_attn_mask() is not None:
                state[f"{name}.attn_mask"] = block.get_attn_mask()
    state = {re.sub(r"^head\.fc", "head", name): tensor for name, tensor in state.items()}
    lower = {f"layers.{i}.downsample": f"layers.{i - 1}.downsample" for i in (1, 2, 3)}
    return {prefix + re.sub(r"^layers\.\d\.downsample", lambda m: lower[m[0]], n): t for n, t in state.items()}


def simmim(model: Any) -> State:
    token = {"encoder.mask_token": torch.ones(1, 1, 16)}
    return by_microsoft(model, "encoder.") | token | {"decoder.0.weight": torch.ones(3072, 128, 1, 1)}


def ours(state: State, arch: str, **kwargs: Any) -> Any:
    family = family_of(arch)
    model = timm.create_model(arch, **kwargs).eval()
    model.load_state_dict(family.load_filter(state, model))
    return model


@pytest.mark.parametrize(("arch", "window"), WINDOWS.items())
@pytest.mark.parametrize("kind", ["pre-trained", "fine-tuned"])
@torch.inference_mode()
def test_simmims_swin_computes_what_timms_does(arch: str, window: int, kind: str) -> None:
    reference = reference_swin(window, 5 if kind == "fine-tuned" else 0)
    state = by_microsoft(reference, "") if kind == "fine-tuned" else simmim(reference)
    assert fitting(state) == ["swin_microsoft" if kind == "fine-tuned" else "simmim_swin"]
    model = ours(state, arch, num_classes=reference.num_classes, **SMALL_SWIN)
    assert timm.get_pretrained_cfg(arch).input_size == (3, 192, 192)
    rows = [len(block.attn.relative_position_bias_table) for layer in model.layers for block in layer.blocks]
    assert rows[0] == (2 * window - 1) ** 2
    assert rows[-1] == 11**2, "the last stage has 6 x 6 tokens"
    images = torch.randn(2, 3, 192, 192)
    torch.testing.assert_close(model.forward_features(images), reference.forward_features(images), **CLOSE)
    torch.testing.assert_close(model(images), reference(images), **CLOSE)
    model.layers[1].blocks[1].attn.relative_position_bias_table.add_(torch.randn(rows[2], 2))  # negative control
    assert not torch.allclose(model.forward_features(images), reference.forward_features(images), atol=1e-2)


def test_its_tables_go_to_the_windows_of_fine_tuning_on_request_alone() -> None:
    state = simmim(reference_swin(6, 0))
    model = ours(state, "green_swin_base_win6", num_classes=0, img_size=224, window_size=7, **SMALL_SWIN)
    assert model.layers[0].blocks[0].attn.relative_position_bias_table.shape == (169, 1)
    with pytest.raises(ValueError, match="of windows of 6 x 6 tokens, but the model has 7 x 7"):
        ours(state, "green_swin_base", num_classes=0, **SMALL_SWIN)


# ---- MAE's decoders of raw pixels

VIT = "vit_tiny_patch16_224"
SMALL = {"depth": 1, "dim": 64, "heads": 2}
IN_CONFIG = {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 64, "decoder_num_attention_heads": 2}


@pytest.fixture(scope="module")
def plain() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return filled(create_mae(VIT, recipe=SMALL))


@pytest.fixture
def by_mae(plain: MaskedAutoencoder) -> State:
    """The file of the authors."""
    state = {name: tensor.clone() for name, tensor in plain.encoder.state_dict().items()}
    return to_published(state, decoder_state(plain), find_layout("vit_mae"), plain.encoder)


def folder(state: State, where: Path, **config: Any) -> Path:
    """A file beside a configuration in the form of transformers."""
    where.mkdir()
    torch.save(state, where / "pytorch_model.bin")
    (where / "config.json").write_text(json.dumps({**IN_CONFIG, **config}))
    return where


@torch.inference_mode()
def test_a_decoder_of_raw_pixels_is_remembered(by_mae: State, plain: MaskedAutoencoder, tmp_path: Path) -> None:
    there = folder(by_mae, tmp_path / "theirs")
    command(there, "--model", VIT, "--layout", "vit_mae_pixels", "--mae", "-o", tmp_path / "raw")
    command(there, "--model", VIT, "--mae", "-o", tmp_path / "normalised")
    images = torch.rand(2, 3, 224, 224) + torch.tensor([-3.0, 0.0, 3.0])[:, None, None]
    keep = torch.arange(49).expand(2, -1)
    raw, normalised = (create_mae(VIT, checkpoint=tmp_path / name).eval() for name in ("raw", "normalised"))
    out = raw(images, keep)
    patches = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)
    error = (plain(images, keep).pred - patches).square().mean(-1)[:, 49:].mean()  # the first 49 are visible
    torch.testing.assert_close(out.loss, error)
    shown = raw.reconstruct(images, out, paste=False)
    torch.testing.assert_close(shown, raw.from_patches(out.pred))
    assert (raw.norm_pix, normalised.norm_pix) == (False, True)
    other = normalised(images, keep)  # negative control
    torch.testing.assert_close(other.pred, out.pred)
    assert abs(other.loss - out.loss) > 0.1
    assert (normalised.reconstruct(images, other, paste=False) - shown).abs().mean() > 0.1
    reference = VisionTransformer(embed_dim=192, num_heads=3, num_classes=0).eval()
    reference.load_state_dict({name: by_mae[name] for name in reference.state_dict()})
    model = timm.create_model(f"local-dir:{tmp_path / 'raw'}", pretrained=True).eval()
    torch.testing.assert_close(model.forward_features(images), reference.forward_features(images), **CLOSE)


@pytest.mark.parametrize(("said", "normalised"), [(False, False), (True, True), ("no", True)])
def test_transformers_says_it_in_its_configuration(by_mae: State, tmp_path: Path, said: Any, normalised: bool) -> None:
    there = folder(by_mae, tmp_path / "theirs", norm_pix_loss=said)
    command(there, "--model", VIT, "--mae", "-o", tmp_path / "out")
    assert create_mae(VIT, checkpoint=tmp_path / "out").norm_pix is normalised
    assert create_mae(VIT, checkpoint=tmp_path / "out", norm_pix=not normalised).norm_pix is not normalised


@pytest.fixture
def tag(by_mae: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tag of a plain ViT on a server, whose recipe here has a small decoder."""
    recipe_of = autoencoders.recipe_of
    monkeypatch.setattr(autoencoders, "recipe_of", lambda name, changes: recipe_of(name, {**SMALL, **changes}))
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path / "store"))
    torch.save({"model": by_mae}, tmp_path / "origin.pth")
    with serving({"/o.pth": (tmp_path / "origin.pth").read_bytes()}) as server:
        name = f"{VIT}.toy"
        row = Weights(name, "o/n", "vit_mae_pixels", "mit", "a test", "0", timm=True, url=f"{server.url}/o.pth")
        row = replace(row, md5=hashlib.md5((tmp_path / "origin.pth").read_bytes()).hexdigest())
        monkeypatch.setattr(manifest, "records", lambda: {name: row})
        yield name, server


@torch.inference_mode()
def test_a_tag_of_a_plain_vit_has_its_decoder(tag: Any, plain: MaskedAutoencoder, tmp_path: Path) -> None:
    name, server = tag
    mae = create_mae(name, pretrained=True).eval()
    images, keep = torch.randn(1, 3, 224, 224), torch.arange(49)[None]
    torch.testing.assert_close(mae(images, keep).pred, plain(images, keep).pred)
    assert not mae.norm_pix
    model = make_model(name, pretrained=True).eval()
    torch.testing.assert_close(model.forward_features(images), plain.encoder.forward_features(images))
    assert (tmp_path / "store" / name / "decoder.safetensors").is_file()
    assert len(server.log) == 1
    fresh = create_mae(name, pretrained=True, decoder="fresh").eval()  # negative control
    assert not torch.allclose(fresh(images, keep).pred, plain(images, keep).pred, atol=0.1)
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.create_model(name, pretrained=True)


def test_the_decoder_is_tried_with_the_encoder(
    tag: Any, by_mae: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no digest is known: random ones are refused; of those that predict the mean of each patch it cannot be
    told.
    """
    name, server = tag
    row = replace(manifest.records()[name], md5="", layout="vit_mae")
    monkeypatch.setattr(manifest, "records", lambda: {name: row})
    with pytest.raises(store.WeightsNotFound, match="implausible: its loss on 10 images of photographs is"):
        create_mae(name, pretrained=True)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.suffix != ".lock"]
    for end in ("weight", "bias"):
        by_mae[f"decoder_pred.{end}"].zero_()
    torch.save({"model": by_mae}, tmp_path / "mean.pth")
    server.files["/o.pth"] = (tmp_path / "mean.pth").read_bytes()
    assert create_mae(name, pretrained=True).norm_pix


def test_a_tag_of_a_plain_vit_is_installed_from_a_file(tag: Any, tmp_path: Path) -> None:
    name, server = tag
    command(tmp_path / "origin.pth", "--install", name)
    assert store.find_local(manifest.records()[name]) == tmp_path / "store" / name / "model.safetensors"
    assert not create_mae(name, pretrained=True).norm_pix
    assert server.log == []


@pytest.fixture
def bundled(tag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with the tag, whose origin is gone, and a store without it."""
    name, server = tag
    for module in (mirroring, publication):
        monkeypatch.setattr(module, "records", lambda: manifest.records())
    mirror.run(tags=name, to=tmp_path / "bundle")
    server.files.clear()
    monkeypatch.setenv("HIERMIM_WEIGHTS", str(tmp_path / "empty"))
    return tmp_path / "bundle"


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["folder", "address", "store", "organisation"])
def test_a_bundle_has_the_decoder_too(
    kind: str, bundled: Path, tag: Any, plain: MaskedAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``create_mae`` and ``convert --mae`` work from it; the encoder alone is a model of timm."""
    name, server = tag
    repository = {
        f"/o/{name}/resolve/main/{path.name}": path.read_bytes()
        for path in (bundled / name).iterdir()
        if path.name in ("model.safetensors", "config.json", "decoder.safetensors")
    }
    server.files |= {
        f"/b/{path.relative_to(bundled)}": path.read_bytes() for path in bundled.rglob("*") if path.is_file()
    }
    with serving(repository, hub=True) as own_hub:
        monkeypatch.setattr(constants, "ENDPOINT", own_hub.url)
        files = own_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        if kind == "store":
            monkeypatch.setenv("HIERMIM_WEIGHTS", str(bundled))
        else:
            places = {"folder": str(bundled), "address": f"{server.url}/b", "organisation": "hf-hub:o"}
            monkeypatch.setenv("HIERMIM_MIRROR", places[kind])
        mae = create_mae(name, pretrained=True).eval()
        command(name, "--mae", "-o", tmp_path / "out")
        command(name, "-o", tmp_path / "encoder")
    images, keep = torch.randn(1, 3, 224, 224), torch.arange(49)[None]
    again = create_mae(VIT, checkpoint=tmp_path / "out").eval()
    for one in (mae, again):
        torch.testing.assert_close(one(images, keep).pred, plain(images, keep).pred)
        assert not one.norm_pix
    assert not (tmp_path / "encoder" / "decoder.safetensors").exists()
    assert not [path for _, path, _ in server.log[1:] if path == "/o.pth"], "the origin is not asked again"


# ---- mmpretrain


def test_mmselfsups_name_of_the_norm_is_read_too() -> None:
    reference = VisionTransformer(embed_dim=32, depth=1, num_heads=2, num_classes=5, global_pool="avg")
    state = mmpretrain(random(reference))
    older = renamed(state, (r"backbone\.ln2", "backbone.fc_norm"))
    assert older.keys() != state.keys()
    family = family_named("vision_transformer")
    native = [family.native(names) for names in (state, older)]
    assert [found.layout.name for found in native] == ["vit_finetuned_mmpretrain"] * 2
    assert native[0].state.keys() == native[1].state.keys() == reference.state_dict().keys()
    assert all(torch.equal(tensor, native[1].state[name]) for name, tensor in native[0].state.items())


# ---- SARATR-X's HiViT


def saratrx() -> State:
    """Encoder and decoder as the authors save them, with the filters of their target."""
    names = ((r"^encoder\.", ""), (r"^fusion\.", ""), (r"^decoder\.mask", "mask"), (r"^decoder\.", "decoder_"))
    state = renamed(random(create_mae("hivit_atto", recipe={"depth": 1}, rel_pos_bias=False)), *names)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc_norm")}
    return state | {
        f"sarfeature{i}.weight_{axis}{end}": torch.ones(1, 1, 2 * k + 1, 2 * k + 1)
        for i, k in enumerate((9, 13, 17), 1)
        for axis in "xy"
        for end in (1, 2)
    }


def test_saratrxs_encoder_is_read_and_its_decoder_left_out(tmp_path: Path) -> None:
    state = saratrx()
    plainly = {name: tensor for name, tensor in state.items() if not name.startswith("sar")}
    assert (fitting(state), fitting(plainly)) == (["hivit_saratrx"], ["hivit_mae"])
    for name, content in (("sar", state), ("plain", plainly)):
        torch.save({"model": content}, tmp_path / f"{name}.pth")
        command(tmp_path / f"{name}.pth", "--model", "hivit_atto", "-o", tmp_path / name)
    read, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("sar", "plain"))
    assert read.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.items())
    config = json.loads((tmp_path / "sar" / "config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["std"]) == ([0.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match=r"'hivit_saratrx' .* holds no decoder that can be kept"):
        command(tmp_path / "sar.pth", "--model", "hivit_atto", "--mae", "-o", tmp_path / "out")
    torch.save({"model": state | {"sarfeature4.weight_z1": torch.ones(2, 2)}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"tensor 'sarfeature4\.weight_z1' \[2, 2\] is not part of the layout"):
        command(tmp_path / "odd.pth", "--model", "hivit_atto", "-o", tmp_path / "odd")


# ---- MAE-Lite's Hiera

LITE = "hiera_lite"


def wrapped(state: State) -> State:
    """As MAE-Lite's trainer saves them."""
    return {f"module.model.{name}": tensor for name, tensor in state.items()}


@torch.inference_mode()
def test_mae_lites_classifier_computes_what_timms_hiera_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = filled(Hiera(embed_dim=46, num_heads=1, stages=(1, 2, 7, 2), num_classes=7))
    names = ((r"^head\.norm", "norm"), (r"^head\.fc", "head.projection"))
    state = wrapped(renamed(reference.state_dict(), *names))
    torch.save({"start_epoch": 300, "model": state, "best_top1": 78.9}, tmp_path / "ckpt.pth.tar")
    command(tmp_path / "ckpt.pth.tar", "--model", LITE, "-o", tmp_path / "out", "--verify")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hiermim_zoo"]["layout"] == "hiera_lite"
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(model(images), reference(images), **CLOSE)
    model.blocks[4].attn.proj.weight.mul_(2)  # negative control
    assert not torch.allclose(model(images), reference(images), atol=1e-2)


@torch.inference_mode()
def test_mae_lites_autoencoder_comes_with_its_small_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mae = filled(create_mae(LITE))
    assert (len(mae.decoder.blocks), mae.decoder.embed.out_features, mae.kept) == (1, 96, 29)
    state = to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout("hiera_mae"), mae.encoder)
    torch.save({"model": wrapped(state)}, tmp_path / "ckpt.pth.tar")
    command(tmp_path / "ckpt.pth.tar", "--model", LITE, "--mae", "-o", tmp_path / "out")
    again = create_mae(LITE, checkpoint=tmp_path / "out").eval()
    images, keep = torch.randn(1, 3, 224, 224), torch.arange(29)[None]
    torch.testing.assert_close(again(images, keep).pred, mae(images, keep).pred)
    again.decoder.pred.weight.add_(0.1)  # negative control
    assert not torch.allclose(again(images, keep).pred, mae(images, keep).pred, atol=1e-2)
