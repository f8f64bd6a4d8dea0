"""Hiera computes what the authors' code computes, from their checkpoints, through the commands that users call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.files import read_checkpoint
from hiermim_zoo.checkpoints.layouts import all_layouts, find_layout
from hiermim_zoo.checkpoints.rules import check_fits
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.commands.baselines import make_peer
from hiermim_zoo.mae import MaskedAutoencoder, create_mae, decoder_state
from hiermim_zoo.models import hiera
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.shapes import without_memory

from .golden.case import Case, differs, ends, golden

CLASSIFIERS = {"hiera_tiny_224": "hiera_tiny", "hiera_base_224": "hiera_base", "hiera_base_16x224": "hiera_base_video"}
AUTOENCODERS = {"mae_hiera_tiny_224": "hiera_tiny", "mae_hiera_base_16x224": "hiera_base_video"}
LAYOUT_OF = {
    **dict.fromkeys(CLASSIFIERS, "hiera"),
    **dict.fromkeys(AUTOENCODERS, "hiera_mae"),
    "timm_hiera_base_224_layout": "hiera_timm",
    "hf_hiera_tiny_layout": "hiera_transformers",
    "hf_hiera_mae_tiny_layout": "hiera_transformers_mae",
}


def statistics(x: Tensor) -> Tensor:
    return torch.stack([x.mean(), x.std(correction=0)])


# ---- classifiers


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published classifier of the smallest size, as a file."""
    return golden("hiera_tiny_224").publish(tmp_path_factory.mktemp("tiny") / "published.pth", top_key="model_state")


@pytest.fixture(scope="module", params=CLASSIFIERS)
def converted(request: pytest.FixtureRequest, classifier: Path) -> tuple[Case, nn.Module]:
    """A published checkpoint in a model: the smallest by the command and timm's loader; others in memory (faster)."""
    case = golden(request.param)
    if case.name == "hiera_tiny_224":
        folder = classifier.with_name("out")
        convert.main([str(classifier), "--model", "hiera_tiny", "-o", str(folder)])
        return case, timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return case, filled(CLASSIFIERS[case.name], case)


def filled(arch: str, case: Case) -> nn.Module:
    """The case's checkpoint in a model."""
    with without_memory():
        model: nn.Module = timm.create_model(arch).eval()
    model.load_state_dict(hiera.FAMILY.adapt(family_named("hiera").native(case.state()), model), assign=True)
    return model


@torch.inference_mode()
def outputs(model: nn.Module, case: Case) -> dict[str, Tensor]:
    """What is stored of the case: parts of the maps, and statistics of the whole."""
    if case.name == "hiera_base_224":
        return {"logits": model(case.images())}
    final, maps = model.forward_intermediates(case.images(), output_fmt="NHWC")
    found = {"logits": model.forward_head(final)}
    if case.name == "hiera_tiny_224":
        for i, (level, width) in enumerate(zip(maps, (4, 4, 8, 8), strict=True), 1):
            found[f"stage{i}"] = ends(level[: 1 if i == 1 else 2], width)
        masked = model.forward_intermediates(
            case.images(), keep=case.keep(), output_fmt="NHWC", intermediates_only=True
        )
        found |= {"masked_stage1": ends(masked[0][:1], 2), "masked_stage2": ends(masked[1][:1], 4)}
        found["masked_tokens"] = ends(masked[3].flatten(1, -2), 8)
        masks = {"masked_stage1": masked[0], "masked_stage2": masked[1], "masked_tokens": masked[3]}
        found |= {f"{name}_mean_std": statistics(level) for name, level in masks.items()}
    else:
        for i, (level, width) in enumerate(zip(maps, (1, 2, 4, 8), strict=True), 1):
            found[f"stage{i}"] = ends(level[:, :, ::2] if i == 1 else level, width)
    found |= {f"stage{i}_mean_std": statistics(level) for i, level in enumerate(maps, 1)}
    return found


@pytest.mark.slow
def test_every_stored_output_is_reproduced(converted: tuple[Case, nn.Module]) -> None:
    case, model = converted
    found = outputs(model, case)
    if "probabilities" in case.outputs:  # what the reference returns outside training
        found["probabilities"] = found["logits"].softmax(dim=-1)
    assert found.keys() == case.outputs.keys()
    for name, expected in case.outputs.items():
        value = found[name].reshape(expected.shape)
        torch.testing.assert_close(value, expected, **case.tolerance, msg=lambda m, n=name: f"{n}: {m}")


@torch.inference_mode()
def test_a_perturbed_weight_is_noticed() -> None:
    """Negative control: one early or late tensor changed a little must move the logits beyond the tolerance."""
    case, model = golden("hiera_tiny_224"), filled("hiera_tiny", golden("hiera_tiny_224"))
    image, expected = case.images()[:1], case.outputs["logits"][:1]
    for name in ("pos_embed", "patch_embed.proj.weight", "blocks.1.proj.weight", "blocks.10.mlp.fc2.weight"):
        assert not differs(model(image), expected, case.tolerance)
        parameter = model.get_parameter(name)
        before = parameter.clone()
        parameter.add_(0.1 * torch.randn_like(parameter))
        assert differs(model(image), expected, case.tolerance), name
        parameter.copy_(before)


# ---- the autoencoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published autoencoder, converted by the command."""
    folder: Path = tmp_path_factory.mktemp("mae")
    golden("mae_hiera_tiny_224").publish(folder / "published.pth", top_key="model_state")
    convert.main([str(folder / "published.pth"), "--model", "hiera_tiny", "--mae", "-o", str(folder / "out")])
    return folder / "out"


@pytest.fixture(scope="module", params=AUTOENCODERS.items(), ids=AUTOENCODERS)
def autoencoder(request: pytest.FixtureRequest, folder: Path) -> tuple[Case, MaskedAutoencoder]:
    """The smaller by the command and ``create_mae(checkpoint=...)``, the other in memory, to save time."""
    name, arch = request.param
    if arch == "hiera_tiny":
        return golden(name), create_mae(arch, checkpoint=folder).eval()
    with without_memory():
        mae = create_mae(arch).eval()
    native = family_named("hiera").native(golden(name).state(), decoder=True)
    check_fits(native.decoder, decoder_state(mae), model=arch)
    mae.encoder.load_state_dict(hiera.FAMILY.adapt(native, mae.encoder), assign=True)
    mae.load_state_dict({**mae.state_dict(), **native.decoder}, assign=True)
    return golden(name), mae


@pytest.mark.slow
@torch.inference_mode()
def test_the_autoencoder_is_that_of_the_authors(autoencoder: tuple[Case, MaskedAutoencoder]) -> None:
    case, mae = autoencoder
    images, keep, expected = case.images(), case.keep(), case.outputs
    out = mae(images, keep)
    latent = mae.fusion(mae.maskable.forward_visible(images, keep).stages)  # [B, K, t, C]
    predicted, label = out.pred[out.hidden], mae.target(images)[out.hidden]
    shown = torch.zeros(len(images), mae.units).scatter(1, keep, 1.0)
    found = {
        "loss": out.loss,
        "mask": shown.to(expected["mask"].dtype),
        "latent": ends(latent, 8),
        "latent_mean_std": statistics(latent),
        "prediction_all": ends(out.pred, 4),
    }
    for name, rows in (("prediction", predicted), ("label", label)):
        found |= {name: ends(rows, 8), f"{name}_rows": rows[:4], f"{name}_mean_std": statistics(rows)}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        value = value.reshape(expected[name].shape)
        torch.testing.assert_close(value, expected[name], **case.tolerance, msg=lambda m, n=name: f"{n}: {m}")


@torch.inference_mode()
def test_other_norms_and_pixel_orders_would_be_noticed(folder: Path) -> None:
    """Negative control."""
    case, mae = golden("mae_hiera_tiny_224"), create_mae("hiera_tiny", checkpoint=folder).eval()
    out = mae(case.images(), case.keep())
    assert not differs(out.loss, case.outputs["loss"], case.tolerance)
    mae.recipe = replace(mae.recipe, pixel_order="hwc")
    assert differs(mae.target(case.images())[out.hidden][:4], case.outputs["label_rows"], case.tolerance)
    for module in mae.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    assert differs(ends(mae(case.images(), case.keep()).pred, 4), case.outputs["prediction_all"], case.tolerance)


def test_published_files_come_back_as_they_were(folder: Path, tmp_path: Path) -> None:
    case, back = golden("mae_hiera_tiny_224"), tmp_path / "back.pth"
    convert.main([str(folder), "--model", "hiera_tiny", "--to", "hiera_mae", "-o", str(back)])
    found = read_checkpoint(back)
    assert found.top_key == "model_state"
    assert found.state.keys() == case.about["manifest"].keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in case.state().items())


def test_classifiers_come_back_as_they_were() -> None:
    state = golden("hiera_tiny_224").state()
    with without_memory():
        model = timm.create_model("hiera_tiny")
    back = to_published(family_named("hiera").native(state).state, {}, find_layout("hiera"), model)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)
    with pytest.raises(ValueError, match=r"--to hiera needs what the source does not hold: head"):
        to_published({n: t for n, t in model.state_dict().items() if "head" not in n}, {}, find_layout("hiera"), model)


TRANSFORMERS = {"hf_hiera_tiny_layout": "hiera_transformers", "hf_hiera_mae_tiny_layout": "hiera_transformers_mae"}


@pytest.mark.parametrize(("case", "layout"), TRANSFORMERS.items())
def test_the_names_of_transformers_come_back_as_they_were(case: str, layout: str) -> None:
    state = golden(case).state()
    native = family_named("hiera").native(state, decoder=layout.endswith("mae"))
    with without_memory():
        model = timm.create_model("hiera_tiny", num_classes=1000 if native.state.keys() & {"head.weight"} else 0)
    back = to_published(native.state, native.decoder, find_layout(layout), model)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)
    again = family_named("hiera").native(back, decoder=layout.endswith("mae"))
    assert again.layout.name == layout
    assert all(again.state[name] is tensor for name, tensor in native.state.items())
    native.state.pop("blocks.3.proj.weight")  # negative control: where the third stage begins
    assert to_published(native.state, native.decoder, find_layout(layout), model).keys() != state.keys() - {
        "hiera.encoder.stages.2.layers.0.proj.weight"
    }


@pytest.mark.parametrize("name", ["hiera_base", "hiera_small"])
def test_blocks_of_other_depths_find_their_stages(name: str) -> None:
    with without_memory():
        model = timm.create_model(name)
    back = to_published(model.state_dict(), {}, find_layout("hiera_transformers"), model)
    depths = [len({n.split(".")[5] for n in back if f"stages.{stage}." in n}) for stage in range(4)]
    assert depths == {"hiera_base": [2, 3, 16, 3], "hiera_small": [1, 2, 11, 2]}[name]


def test_files_for_transformers_hold_the_tensors_alone(folder: Path, tmp_path: Path) -> None:
    """By the command; of an encoder, of an encoder with decoder, and of clips, which transformers has not."""
    expected = golden("hf_hiera_mae_tiny_layout").about["manifest"]
    file = tmp_path / "model.safetensors"
    convert.main([str(folder), "--model", "hiera_tiny", "--to", "hiera_transformers_mae", "-o", str(file)])
    found = read_checkpoint(file)
    assert (found.top_key, {name: list(tensor.shape) for name, tensor in found.state.items()}) == ("", expected)
    convert.main(
        [str(folder), "--model", "hiera_tiny", "--to", "hiera_transformers", "-o", str(tmp_path / "encoder.bin")]
    )
    state = torch.load(tmp_path / "encoder.bin", weights_only=True)
    own = {name for name in golden("hf_hiera_tiny_layout").about["manifest"] if not name.startswith("classifier")}
    assert state.keys() == own
    assert torch.equal(state["hiera.pooler.layernorm.weight"], torch.ones(768)), "their strict loading wants it"
    clips = timm.create_model("hiera_atto_video")
    with pytest.raises(ValueError, match=r"'pos_embed_spatial' .*: Hiera in transformers is of images alone"):
        to_published(clips.state_dict(), {}, find_layout("hiera_transformers"), clips)


# ---- layouts


@pytest.mark.parametrize("case", LAYOUT_OF)
def test_published_layouts_are_recognised_and_nothing_else_fits(case: str) -> None:
    names = golden(case).about["manifest"]
    assert family_named("hiera").layout_of(names).name == LAYOUT_OF[case]
    assert [table.name for table in all_layouts() if table.fits(names)] == [LAYOUT_OF[case]]


@pytest.mark.parametrize(
    ("case", "arch"), [("hf_hiera_tiny_layout", "hiera_tiny"), ("timm_hiera_base_224_layout", "hiera_base")]
)
def test_every_tensor_of_a_layout_finds_its_place(case: str, arch: str) -> None:
    state = golden(case).state()
    native = family_named("hiera").native(state)
    with without_memory():
        model = timm.create_model(arch)
    check_fits(native.state, model.state_dict(), model=arch)
    assert {step.action for step in native.steps} <= {"kept", "renamed"}
    assert family_named("hiera").native(native.state).layout.name == "hiera_own"
    state.pop(next(name for name in state if "mlp.fc1.bias" in name))
    with pytest.raises(ValueError, match=r"'blocks\.\d+\.mlp\.fc1\.bias' .* is missing"):
        check_fits(family_named("hiera").native(state).state, model.state_dict(), model=arch)


def test_the_names_of_transformers_mean_the_same_tensors() -> None:
    """Blocks are counted through the stages; a masked autoencoder of theirs becomes one of ours, tensor by tensor."""
    state = golden("hf_hiera_mae_tiny_layout").state()
    native = family_named("hiera").native(state, decoder=True)
    for theirs, ours in {
        "hiera.encoder.stages.0.layers.0.layernorm_before.bias": "blocks.0.norm1.bias",
        "hiera.encoder.stages.2.layers.6.attn.qkv.weight": "blocks.9.attn.qkv.weight",
        "hiera.encoder.stages.3.layers.0.proj.weight": "blocks.10.proj.weight",
    }.items():
        assert native.state[ours] is state[theirs]
    with without_memory():
        mae = create_mae("hiera_tiny")
    check_fits(native.decoder, decoder_state(mae), model="the autoencoder")
    bare = {name.removeprefix("hiera."): tensor for name, tensor in state.items() if name.startswith("hiera.")}
    again = family_named("hiera").native(bare).state
    assert again.keys() == {name for name in native.state if name in again}
    assert all(again[name] is tensor for name, tensor in native.state.items() if name in again)


def test_encoders_of_timm_leave_the_norm_of_pretraining_behind() -> None:
    """timm hosts the norm of the joined levels under the name of the norm before the classifier, which it is not."""
    state = golden("timm_hiera_base_224_layout").state()
    encoder = {name: tensor for name, tensor in state.items() if not name.startswith("head.fc")}
    native = family_named("hiera").native(encoder)
    assert native.layout.name == "hiera_timm_mae"
    assert not [name for name in native.state if name.startswith("fc_norm")]
    with without_memory():
        model = timm.create_model("hiera_base", num_classes=0)
    model.load_state_dict(hiera.FAMILY.adapt(native, model), assign=True)


@torch.inference_mode()
def test_what_is_written_for_timm_loads_there(classifier: Path, tmp_path: Path) -> None:
    """timm's own model loads the file strictly and gives the same logits."""
    case, out = golden("hiera_tiny_224"), tmp_path / "out.pth"
    convert.main([str(classifier), "--model", "hiera_tiny", "--to", "hiera_timm", "-o", str(out)])
    theirs = timm.create_model("hiera_tiny_224", checkpoint_path=str(out)).eval()
    state = torch.load(out, weights_only=True)["model"]
    theirs.load_state_dict(state, strict=True)
    ours, image = filled("hiera_tiny", case), case.images()[:1]
    torch.testing.assert_close(theirs(image), ours(image), rtol=1e-5, atol=1e-5)
    state["blocks.3.mlp.fc1.weight"][0, 0] += 1  # negative control
    theirs.load_state_dict(state, strict=True)
    assert not torch.allclose(theirs(image), ours(image), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_what_is_written_for_the_authors_loads_there(classifier: Path, tmp_path: Path) -> None:
    """hiera-transformer's own classifier loads the file strictly and gives the same logits (in evaluation: shares)."""
    case, out = golden("hiera_tiny_224"), tmp_path / "out.pth"
    convert.main([str(classifier), "--model", "hiera_tiny", "--to", "hiera", "-o", str(out)])
    theirs: Any = make_peer("hiera-transformer/hiera_tiny_224").train()
    state = torch.load(out, weights_only=True)["model_state"]
    theirs.load_state_dict(state, strict=True)
    ours, image = filled("hiera_tiny", case), case.images()[:1]
    torch.testing.assert_close(theirs(image), ours(image), rtol=1e-5, atol=1e-5)
    state["blocks.3.mlp.fc1.weight"][0, 0] += 1  # negative control
    theirs.load_state_dict(state, strict=True)
    assert not torch.allclose(theirs(image), ours(image), rtol=1e-5, atol=1e-5)
