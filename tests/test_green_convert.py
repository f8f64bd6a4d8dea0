"""The convert command and GreenMIM: what images tell of a file, and the way to other people's names."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.folder import Contents, own_cfg, write_folder
from hiermim_zoo.checkpoints.layouts import find_layout
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.commands.verify import SAMPLE, sample
from hiermim_zoo.data.photographs import sample_folder
from hiermim_zoo.mae import MaskedAutoencoder, create_mae, decoder_state
from hiermim_zoo.masking import random_keep
from hiermim_zoo.models import green
from hiermim_zoo.models.family import family_named
from hiermim_zoo.models.shapes import without_memory

from .golden.case import golden

ARCH = "green_swin_atto"


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def publish(mae: MaskedAutoencoder, layout: str, file: Path) -> Path:
    torch.save(
        {"model": to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout(layout), mae.encoder)}, file
    )
    return file


# ---- which order of patch merging a file means


@torch.no_grad()
def swap(mae: MaskedAutoencoder) -> None:
    """The other order of the four neighbours, by hand."""
    encoder: Any = mae.encoder
    for layer in encoder.layers[1:]:
        merging = layer.downsample
        for tensor in (merging.norm.weight, merging.norm.bias, merging.reduction.weight):
            a, b, c, d = tensor.clone().chunk(4, -1)
            tensor.copy_(torch.cat([a, c, b, d], -1))


@pytest.fixture(scope="module")
def fitted() -> tuple[MaskedAutoencoder, Tensor, Tensor]:
    """An autoencoder whose last layer is a least-squares solution for the package's images: only its own order fits."""
    torch.manual_seed(0)
    mae = create_mae(ARCH).eval()
    with torch.no_grad():
        for parameter in mae.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        images = sample(sample_folder(), mae.encoder)
        keep = random_keep(SAMPLE, mae.units, mae.kept, generator=torch.Generator().manual_seed(0))
        inner: list[Tensor] = []
        mae.decoder.pred.register_forward_pre_hook(lambda _, args: inner.append(args[0]))
        hidden = mae(images, keep).hidden
        mae.decoder.pred._forward_pre_hooks.clear()
        x = nn.functional.pad(inner[0][hidden], (0, 1), value=1.0)
        solution = torch.linalg.lstsq(x, mae.target(images)[hidden], driver="gelsd").solution  # [D + 1, P]
        mae.decoder.pred.weight.copy_(solution[:-1].T)
        mae.decoder.pred.bias.copy_(solution[-1])
    return mae, images, keep


def losses_said(text: str) -> tuple[dict[str, float], str]:
    [line] = [line for line in text.splitlines() if line.startswith("reconstruction loss on 10 images")]
    best = re.search(r"; (.+) is better, on \d+ of them$", line)
    assert best
    return {name: float(value) for value, name in re.findall(r"(\d+\.\d+) read as ([^,;]+)", line)}, best[1]


@torch.inference_mode()
def losses(mae: MaskedAutoencoder, images: Tensor, keep: Tensor) -> tuple[float, float]:
    """As it is, and with the other order."""
    there = mae(images, keep).loss.item()
    swap(mae)
    back = mae(images, keep).loss.item()
    swap(mae)
    return there, back


@pytest.mark.parametrize(("written", "other"), [("green_mim", "green_mim_2022"), ("green_mim_2022", "green_mim")])
def test_the_order_that_reconstructs_better_is_named(
    fitted: Any, written: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the layout under which the file is read; the names in it are the same."""
    mae, images, keep = fitted
    own, swapped = losses(mae, images, keep)
    assert own < 0.5 * swapped
    file = publish(mae, written, tmp_path / "file.pth")
    for layout in (written, other):
        command(file, "--model", ARCH, "--layout", layout, "-o", tmp_path / layout, "--verify")
        said, best = losses_said(capsys.readouterr().out)
        assert list(said) == [layout, *({written, other} - {layout})]
        assert said == pytest.approx({written: own, other: swapped}, rel=1e-3, abs=1e-4)
        assert best == written
    changed = copy.deepcopy(mae)  # negative control: another model has other losses
    changed.encoder.layers[2].blocks[0].mlp.fc1.weight.data.mul_(1.5)
    assert losses(changed, images, keep) != pytest.approx((own, swapped), rel=1e-3, abs=1e-4)


def test_a_folder_with_its_decoder_is_asked_too(
    fitted: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mae, images, keep = fitted
    command(publish(mae, "green_mim", tmp_path / "file.pth"), "--model", ARCH, "--mae", "-o", tmp_path / "a")
    kept = "the authors' code trained it with visible tokens permuted"
    assert kept in (tmp_path / "a" / "README.md").read_text()
    assert kept in json.loads((tmp_path / "a" / "config.json").read_text())["hiermim_zoo"]["decoder"]
    capsys.readouterr()
    command(tmp_path / "a", "--model", ARCH, "-o", tmp_path / "b", "--verify", "--images", sample_folder())
    said, best = losses_said(capsys.readouterr().out)
    assert best == "green_swin_timm"
    assert list(said.values()) == pytest.approx(losses(mae, images, keep), rel=1e-3, abs=1e-4)
    assert "trained it" not in (tmp_path / "b" / "README.md").read_text()  # there is no decoder any more
    command(tmp_path / "b", "--model", ARCH, "-o", tmp_path / "c", "--verify")
    assert "cannot be told: it holds no decoder, which alone could tell green_swin_timm from" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--images .*: it holds no decoder"):
        command(tmp_path / "b", "--model", ARCH, "-o", tmp_path / "d", "--verify", "--images", sample_folder())
    assert not (tmp_path / "d").exists()


def test_a_small_decoder_is_rebuilt_as_its_folder_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"dim": 32, "heads": 2, "depth": 2}
    mae = create_mae(ARCH, recipe=recipe)
    mae.encoder.pretrained_cfg = own_cfg(ARCH, {}, "mit", 0, (3, 128, 128))
    contents = Contents(
        ARCH, mae.encoder, {"license": "mit"}, "Made by a test.", decoder=decoder_state(mae), recipe=recipe
    )
    write_folder(contents, tmp_path / "a")
    command(tmp_path / "a", "--model", ARCH, "-o", tmp_path / "b", "--verify")
    losses_said(capsys.readouterr().out)
    publish(mae, "green_mim", tmp_path / "file.pth")  # nothing beside it says what decoder that is
    command(tmp_path / "file.pth", "--model", ARCH, "-o", tmp_path / "c", "--verify")
    assert re.search(r"cannot be told: tensor 'decoder\.\S+' is \[", capsys.readouterr().out)


# ---- other people's names


def exported(source: Path, layout: str, file: Path, *more: object) -> dict[str, Tensor]:
    command(source, "--model", ARCH, "--to", layout, "-o", file, "--force", *more)
    state: dict[str, Tensor] = torch.load(file, weights_only=True)["model"]
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with its decoder, every parameter drawn."""
    torch.manual_seed(1)
    mae = create_mae(ARCH, recipe={"dim": 32, "heads": 2})
    with torch.no_grad():
        for parameter in mae.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    mae.encoder.pretrained_cfg = own_cfg(ARCH, {}, "mit", 0, (3, 128, 128))
    out = tmp_path_factory.mktemp("export") / "folder"
    write_folder(Contents(ARCH, mae.encoder, {"license": "mit"}, "Made by a test.", decoder=decoder_state(mae)), out)
    return out


LEFT_OUT = "the source's decoder is left out: {} has none of its kind"


@pytest.mark.parametrize("layout", ["swin_microsoft", "simmim_swin"])
def test_an_encoder_comes_back_from_their_names(
    folder: Path, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = exported(folder, layout, tmp_path / "there.pth")
    said = capsys.readouterr().out
    assert LEFT_OUT.format(layout) in said
    assert ("encoder.mask_token is zero" in said) == (layout == "simmim_swin")
    native, back = load_file(folder / "model.safetensors"), family_named("green").native(there)
    assert back.layout.name == layout
    assert back.state.keys() == native.keys()
    assert all(torch.equal(tensor, native[name]) for name, tensor in back.state.items())
    name = ("encoder." if layout == "simmim_swin" else "") + "layers.1.downsample.reduction.weight"  # negative control
    assert torch.equal(there[name], native["layers.2.downsample.reduction.weight"])
    there[name] = there[name].flip(-1)
    assert not torch.equal(
        family_named("green").native(there).state["layers.2.downsample.reduction.weight"],
        back.state["layers.2.downsample.reduction.weight"],
    )


def test_a_classifier_goes_to_microsofts_names_and_from_there_into_timms_model(tmp_path: Path) -> None:
    ours = timm.create_model(ARCH, num_classes=5).eval()
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    there = exported(tmp_path / "ours.pth", "swin_microsoft", tmp_path / "there.pth")
    assert torch.equal(there["head.weight"], ours.head.fc.weight)
    theirs = SwinTransformer(num_classes=5, **green.SWINS[ARCH]).eval()
    theirs.load_state_dict(checkpoint_filter_fn(there, theirs))  # timm's own reader of Microsoft's files
    images = torch.randn(1, 3, 128, 128)
    assert torch.equal(theirs(images), ours(images))
    with pytest.raises(ValueError, match=r"'head\.fc\.\w+' .* is not part of the layout 'simmim_swin'"):
        exported(tmp_path / "ours.pth", "simmim_swin", tmp_path / "simmim.pth")
    assert not (tmp_path / "simmim.pth").exists()
    assert "encoder.norm.bias" in exported(
        tmp_path / "ours.pth", "simmim_swin", tmp_path / "simmim.pth", "--num-classes", 0
    )


def test_buffers_are_what_strict_loading_asks_for(folder: Path, tmp_path: Path) -> None:
    """The index and the mask of shifted windows, each from its definition: 32 x 32 tokens, windows of 4, shift 2."""
    there = exported(folder, "swin_microsoft", tmp_path / "there.pth")
    row, col = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    rows, cols = (x.flatten()[:, None] - x.flatten()[None] for x in (row, col))
    assert torch.equal(there["layers.0.blocks.0.attn.relative_position_index"], (rows + 3) * 7 + cols + 3)
    wrapped = torch.arange(32).roll(-2) < 2  # rows and columns that the shift brought around
    part = (
        (2 * wrapped[:, None] + wrapped[None]).view(8, 4, 8, 4).transpose(1, 2).reshape(64, 16)
    )  # of the tokens of a window
    expected = torch.where(part[:, None] == part[:, :, None], 0.0, -100.0)
    assert torch.equal(there["layers.0.blocks.1.attn_mask"], expected)
    assert expected.any()
    shifted = [name for name in there if name.endswith("attn_mask")]
    assert shifted == [f"layers.{stage}.blocks.1.attn_mask" for stage in (0, 1, 2)]  # the last grid is a window


@pytest.mark.parametrize(
    ("case", "layout", "arch", "kwargs"),
    [
        ("green_swin_base_w7", "green_mim", "green_swin_base", {}),
        ("green_swin_base_w7", "green_mim_2022", "green_swin_base", {}),
        ("simmim_swin_base_layout", "simmim_swin", "green_swin_base", {"img_size": 192, "window_size": 6}),
    ],
)
def test_names_shapes_and_types_are_those_of_the_authors_files(
    case: str, layout: str, arch: str, kwargs: dict[str, Any]
) -> None:
    """Buffers included; of SimMIM's all but its linear head."""
    with without_memory():
        mae = create_mae(arch, **kwargs)
        there = to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout(layout), mae.encoder)
    about = golden(case).about
    expected = {name: tuple(shape) for name, shape in about["manifest"].items() if not name.startswith("decoder.0.")}
    assert {name: tuple(tensor.shape) for name, tensor in there.items()} == expected
    indices = {name for name in about["buffers"] if name.endswith("index")}
    assert {name for name, tensor in there.items() if tensor.dtype == torch.int64} == indices


def test_a_file_that_holds_its_decoder_needs_no_folder_in_between(tmp_path: Path) -> None:
    mae = create_mae(ARCH, recipe={"dim": 32, "heads": 2})
    old = publish(mae, "green_mim_2022", tmp_path / "old.pth")
    new = exported(old, "green_mim", tmp_path / "new.pth", "--layout", "green_mim_2022")
    expected = torch.load(publish(mae, "green_mim", tmp_path / "expected.pth"), weights_only=True)["model"]
    assert new.keys() == expected.keys()
    assert all(torch.equal(new[name], tensor) for name, tensor in expected.items())


def test_what_is_no_swin_has_no_place_there(tmp_path: Path) -> None:
    model = timm.create_model("green_twins_small", num_classes=0, depths=(1, 1, 1, 1))
    torch.save(model.state_dict(), tmp_path / "twins.pth")
    with pytest.raises(ValueError, match=r"'\S+' .* (is not part of the layout|is missing|no place)"):
        command(
            tmp_path / "twins.pth", "--model", "green_twins_small", "--to", "swin_microsoft", "-o", tmp_path / "out.pth"
        )
    assert not (tmp_path / "out.pth").exists()
