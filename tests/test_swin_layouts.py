"""Swin in the names of transformers and mmpretrain: there, back, and the same outputs as theirs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.layouts import all_layouts, find_layout
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.models.family import family_named

from .golden.case import differs, golden

State = dict[str, Tensor]
ARCH = "green_swin_atto"
CASES = {"hf_swin_toy": "swin_transformers", "mmpretrain_swin_toy": "swin_mmpretrain"}
REDUCTION = "layers.2.downsample.reduction.weight"


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def built(state: State) -> Any:
    """Our Swin with the weights of a checkpoint."""
    family = family_named("green")
    native = family.native(state)
    classes = len(native.state["head.fc.weight"]) if "head.fc.weight" in native.state else 0
    model = timm.create_model(ARCH, num_classes=classes).eval()
    model.load_state_dict(family.adapt(native, model))
    return model


def in_memory(state: State) -> State:
    """The names that models of transformers 5 have."""
    pairs: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
        (r"attention\.self\.(query|key|value)", lambda match: f"attention.{match[1][0]}_proj"),
        (r"attention\.self\.relative", "attention.relative_position_bias.relative"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
    )
    for pattern, to in pairs:
        state = {re.sub(pattern, to, name): tensor for name, tensor in state.items()}
    return state


def without(state: State, prefix: str, *others: str) -> State:
    """A prefix taken off, and tensors that begin otherwise left out."""
    return {name.removeprefix(prefix): t for name, t in state.items() if not name.startswith(others)}


def with_simmim(state: State, token: str, decoder: str) -> State:
    """As SimMIM's pre-training leaves it: no classifier, a mask token, a linear decoder."""
    rest = {token: torch.ones(1, 1, 24), f"{decoder}.weight": torch.ones(3072, 192, 1, 1)}
    return {**without(state, "", "head", "classifier"), **rest, f"{decoder}.bias": torch.ones(3072)}


KINDS: dict[str, tuple[str, Callable[[State], State]]] = {
    "transformers in memory": ("hf_swin_toy", in_memory),
    "transformers encoder": ("hf_swin_toy", lambda s: without(s, "swin.", "classifier")),
    "transformers SimMIM": ("hf_swin_toy", lambda s: with_simmim(s, "swin.embeddings.mask_token", "decoder.0")),
    "transformers with buffers": (
        "hf_swin_toy",
        lambda s: {**s, "swin.encoder.layers.0.blocks.1.attention.self.relative_position_index": torch.zeros(16, 16)},
    ),
    "mmpretrain encoder": ("mmpretrain_swin_toy", lambda s: without(s, "backbone.", "head")),
    "mmpretrain SimMIM": ("mmpretrain_swin_toy", lambda s: with_simmim(s, "backbone.mask_token", "neck.decoder.0")),
    "mmpretrain of old": (
        "mmpretrain_swin_toy",
        lambda s: {
            **{name.replace("norm3", "norm"): tensor for name, tensor in s.items()},
            "backbone.stages.0.blocks.1.attn.attn_mask": torch.zeros(64, 16, 16),
        },
    ),
    "mmdetection": ("mmpretrain_swin_toy", lambda s: {**s, "backbone.norm0.weight": torch.ones(24)}),
}


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_outputs_are_those_of_the_other_implementation(case: str) -> None:
    stored = golden(case)
    model, images = built(stored.state()), stored.images()
    torch.testing.assert_close(model.forward_features(images), stored.outputs["tokens"], **stored.tolerance)
    torch.testing.assert_close(model(images), stored.outputs["logits"], **stored.tolerance)
    weight = model.get_parameter(REDUCTION)  # negative control: two neighbours of a merging change places
    weight.copy_(torch.cat([weight[:, 48 * i : 48 * (i + 1)] for i in (0, 2, 1, 3)], dim=1))
    assert differs(model(images), stored.outputs["logits"], stored.tolerance)


@torch.inference_mode()
def test_a_merging_of_mmpretrain_is_an_unfold() -> None:
    """From the definition: torch's unfold, norm and reduction in its order of columns; negative control: as it is."""
    state = golden("mmpretrain_swin_toy").state()
    names = {part: f"backbone.stages.1.downsample.{part}" for part in ("norm.weight", "norm.bias", "reduction.weight")}
    ours = built(state).layers[2].downsample
    x = torch.randn(1, 8, 6, 48)
    columns = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    normed = F.layer_norm(columns, (192,), state[names["norm.weight"]], state[names["norm.bias"]])
    theirs = (normed @ state[names["reduction.weight"]].T).view(1, 4, 3, 96)
    torch.testing.assert_close(ours(x), theirs)
    ours.reduction.weight.copy_(state[names["reduction.weight"]])
    assert not torch.allclose(ours(x), theirs, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_variant_of_the_same_weights_gives_the_same_bits(kind: str) -> None:
    case, rename = KINDS[kind]
    family, state = family_named("green"), golden(case).state()
    found, expected = family.native(rename(state)), family.native(state).state
    assert [table.name for table in all_layouts() if table.fits(rename(state))] == [CASES[case]]
    assert found.state.keys() == {n for n in expected if not n.startswith("head") or "head.fc.weight" in found.state}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state.items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("classes", [5, 0])
def test_the_way_back_gives_the_same_tensors(case: str, classes: int, tmp_path: Path) -> None:
    stored, layout = golden(case), find_layout(CASES[case])
    torch.save({layout.top_key or "model": stored.state()}, tmp_path / "theirs.pth")
    command(tmp_path / "theirs.pth", "--model", ARCH, "-o", tmp_path / "ours", "--num-classes", classes, "--verify")
    file = tmp_path / "back.safetensors"
    command(tmp_path / "ours", "--model", ARCH, "--to", layout.name, "-o", file)
    back = load_file(file)
    heads = ("head", "classifier") if not classes else ()
    expected = without(stored.state(), "", *(heads or ("nothing",)))
    assert {name: list(t.shape) for name, t in back.items()} == {name: list(t.shape) for name, t in expected.items()}
    indices = [name for name in back if name.endswith("index")]
    assert all(back[name].dtype == torch.int64 for name in indices)
    assert all(torch.equal(back[name], tensor) for name, tensor in expected.items() if name not in indices)


@pytest.mark.parametrize(
    ("case", "name", "message"),
    [
        ("hf_swin_toy", "swin.encoder.layers.1.blocks.0.attention.self.key.bias", "attention.self.key.bias"),
        ("hf_swin_toy", "swin.encoder.layers.2.downsample.reduction.weight", "layers.3.downsample.reduction.weight"),
        ("mmpretrain_swin_toy", "backbone.stages.1.blocks.0.ffn.layers.1.weight", "layers.1.blocks.0.mlp.fc2.weight"),
    ],
)
def test_one_wrong_name_is_refused_by_name(case: str, name: str, message: str) -> None:
    state = golden(case).state()
    tensor = state.pop(name)
    with pytest.raises(ValueError, match=rf"tensor '{re.escape(name)}s' .* is not part of the layout '{CASES[case]}'"):
        built({**state, f"{name}s": tensor})
    with pytest.raises(ValueError, match=rf"{re.escape(message)}' .*is missing"):
        built(state)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("hf_swin_toy", "swin.embeddings.position_embeddings"),
        ("hf_swin_toy", "hidden_states_norms.stage4.weight"),
        ("mmpretrain_swin_toy", "backbone.absolute_pos_embed"),
        ("mmpretrain_swin_toy", "backbone.stages.0.blocks.0.attn.w_msa.logit_scale"),
    ],
)
def test_what_is_another_swin_is_refused_by_name(case: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"tensor '{re.escape(name)}' \[7\] is not part of the layout"):
        built({**golden(case).state(), name: torch.ones(7)})


def test_tables_of_other_windows_are_resampled_on_request_alone(tmp_path: Path) -> None:
    torch.save(golden("hf_swin_toy").state(), tmp_path / "theirs.pth")
    args = (tmp_path / "theirs.pth", "--model", ARCH, "-o", tmp_path / "out", "--window-size")
    command(*args, 8, "--img-size", 256)
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.layers[0].blocks[0].attn.relative_position_bias_table.shape == (225, 1)
    there = to_published(model.state_dict(), {}, find_layout("swin_transformers"), model)
    with pytest.raises(ValueError, match=r"of windows of 8 x 8 tokens, but the model has 4 x 4; window_size=8 builds"):
        built(there)


@pytest.mark.parametrize("case", CASES)
def test_the_decoder_of_another_kind_is_not_written(case: str) -> None:
    """GreenMIM's decoder has no place there; nothing of it appears."""
    model = built(golden(case).state())
    there = to_published(
        model.state_dict(), {"decoder.mask_token": torch.ones(1, 1, 8)}, find_layout(CASES[case]), model
    )
    assert not [name for name in there if "mask_token" in name or "decoder" in name]
