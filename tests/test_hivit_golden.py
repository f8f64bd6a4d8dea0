"""HiViT computes what the authors' code computes, from their checkpoints, through the commands that users call."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from hiermim_zoo import convert
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.shapes import without_memory

from .golden.case import differs, ends, golden

CASES = {"hivit_tiny_sup": "hivit_tiny", "hivit_base_ft": "hivit_base"}


@pytest.fixture(scope="module", params=CASES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module]:
    """A published checkpoint in a model: the smaller by the command and timm's loader, the other in memory (faster)."""
    case, arch = request.param, CASES[request.param]
    if arch == "hivit_tiny":
        folder: Path = tmp_path_factory.mktemp(case)
        golden(case).publish(folder / "published.pth")
        convert.main([str(folder / "published.pth"), "--model", arch, "-o", str(folder / "out"), "--verify"])
        return case, timm.create_model(f"local-dir:{folder / 'out'}", pretrained=True).eval()
    with without_memory():
        model = timm.create_model(arch).eval()
    hivit = family_named("hivit")
    model.load_state_dict(hivit.adapt(hivit.native(golden(case).state()), model), assign=True)
    return case, model


@torch.inference_mode()
def outputs(model: nn.Module, case: str) -> dict[str, Tensor]:
    images = golden(case).images()
    tokens = model.forward_features(images)
    found = {
        "logits": model(images),
        "pooled": model.forward_head(tokens, pre_logits=True),
        "tokens": ends(tokens, 8),
        "tokens_stats": torch.stack([tokens.mean(), tokens.std(correction=0)]),
    }
    units = model.mask_layout.units[0] * model.mask_layout.units[1]
    everything = torch.arange(units).expand(len(images), -1)
    fine, middle, _ = model.forward_visible(images, everything).stages
    found |= {"stage4px": ends(fine, 2), "stage8px": ends(middle, 4)}
    found |= {
        f"{k}_stats": torch.stack([v.mean(), v.std(correction=0)])
        for k, v in (("stage4px", fine), ("stage8px", middle))
    }
    return found


def test_every_stored_output_is_reproduced(converted: tuple[str, nn.Module]) -> None:
    case, model = converted
    found = outputs(model, case)
    for name, expected in golden(case).outputs.items():
        torch.testing.assert_close(
            found[name], expected, **golden(case).tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(
    "name",
    [
        "patch_embed.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "first attn.relative_position_bias_table",
        "last mlp.fc2.weight",
    ],
)
def test_a_perturbed_weight_is_noticed(converted: tuple[str, nn.Module], name: str) -> None:
    """Negative control: one early or late tensor changed a little must move the logits beyond the tolerance."""
    case, model = converted
    blocks = {"first ": f"blocks.{model.first_attention}.", "last ": f"blocks.{len(model.blocks) - 1}."}
    for word, block in blocks.items():
        name = name.replace(word, block)
    parameter = dict(model.named_parameters())[name]
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
            assert differs(model(golden(case).images()), golden(case).outputs["logits"], golden(case).tolerance)
    finally:
        parameter.data.copy_(before)


@pytest.fixture(scope="module")
def masked() -> nn.Module:
    """The published autoencoder's encoder, whose file has no bias tables."""
    model: nn.Module = timm.create_model("hivit_base", num_classes=0).eval()
    hivit = family_named("hivit")
    model.load_state_dict(hivit.adapt(hivit.native(golden("mae_hivit_base").state()), model))
    return model


@torch.inference_mode()
def latent(model: nn.Module) -> Tensor:
    """The levels of each visible unit joined and normalised, as the authors' autoencoder hands them to its decoder."""
    case = golden("mae_hivit_base")
    stages = model.forward_visible(case.images(), case.keep()).stages
    joined = torch.cat([s.flatten(2) for s in stages], dim=-1)  # [B, K, 16 * 128 + 4 * 256 + 512]
    state = case.state()
    joined = nn.functional.layer_norm(joined, joined.shape[-1:], state["norm.weight"], state["norm.bias"], eps=1e-6)
    return torch.cat([joined[..., start : start + 8] for start in (0, 2044, 3068, 3576)], dim=-1)


def test_visible_units_are_encoded_as_in_the_authors_pretraining(masked: nn.Module) -> None:
    case = golden("mae_hivit_base")
    torch.testing.assert_close(latent(masked), case.outputs["latent"], **case.tolerance)


def test_a_bias_table_would_be_noticed_in_the_masked_run(masked: nn.Module) -> None:
    """Negative control: the pre-training has no relative bias, so a table that is not zero must show."""
    case, table = golden("mae_hivit_base"), masked.blocks[-1].attn.relative_position_bias_table
    with torch.no_grad():
        table.normal_(std=0.2)
        try:
            assert differs(latent(masked), case.outputs["latent"], case.tolerance)
        finally:
            table.zero_()
