"""The convert command and GreenMIM: what pictures tell of a file, and the way to other people's names."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.folder import Contents, own_cfg, write_folder
from hiermim_zoo.checkpoints.layouts import find_layout
from hiermim_zoo.checkpoints.published import to_published
from hiermim_zoo.mae import MaskedAutoencoder, create_mae, decoder_state
from hiermim_zoo.masking import random_keep
from hiermim_zoo.verify import SAMPLE, sample, sample_folder

ARCH = "green_swin_atto"


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def publish(mae: MaskedAutoencoder, layout: str, file: Path) -> Path:
    torch.save({"model": to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout(layout), mae.encoder)}, file)
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
    """An autoencoder whose last layer is the least-squares solution for the package's pictures: only its own order fits them."""
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
    [line] = [line for line in text.splitlines() if line.startswith("reconstruction loss on 10 pictures")]
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


def test_a_folder_with_its_decoder_is_asked_too(fitted: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mae, images, keep = fitted
    command(publish(mae, "green_mim", tmp_path / "file.pth"), "--model", ARCH, "--mae", "-o", tmp_path / "a")
    kept = "the authors' code trained it with visible tokens permuted"
    assert kept in (tmp_path / "a" / "README.md").read_text()
    assert kept in json.loads((tmp_path / "a" / "config.json").read_text())["hiermim_zoo"]["decoder"]
    capsys.readouterr()
    command(tmp_path / "a", "--model", ARCH, "-o", tmp_path / "b", "--verify", "--pictures", sample_folder())
    said, best = losses_said(capsys.readouterr().out)
    assert best == "green_swin_timm"
    assert list(said.values()) == pytest.approx(losses(mae, images, keep), rel=1e-3, abs=1e-4)
    assert "trained it" not in (tmp_path / "b" / "README.md").read_text()  # there is no decoder any more
    command(tmp_path / "b", "--model", ARCH, "-o", tmp_path / "c", "--verify")
    assert "cannot be told: it holds no decoder, which alone could tell green_swin_timm from" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--pictures .*: it holds no decoder"):
        command(tmp_path / "b", "--model", ARCH, "-o", tmp_path / "d", "--verify", "--pictures", sample_folder())
    assert not (tmp_path / "d").exists()


def test_a_small_decoder_is_rebuilt_as_its_folder_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"dim": 32, "heads": 2, "depth": 2}
    mae = create_mae(ARCH, recipe=recipe)
    mae.encoder.pretrained_cfg = own_cfg(ARCH, {}, "mit", 0, (3, 128, 128))
    contents = Contents(ARCH, mae.encoder, {"license": "mit"}, "Made by a test.", decoder=decoder_state(mae), recipe=recipe)
    write_folder(contents, tmp_path / "a")
    command(tmp_path / "a", "--model", ARCH, "-o", tmp_path / "b", "--verify")
    losses_said(capsys.readouterr().out)
    publish(mae, "green_mim", tmp_path / "file.pth")  # nothing beside it says what decoder that is
    command(tmp_path / "file.pth", "--model", ARCH, "-o", tmp_path / "c", "--verify")
    assert re.search(r"cannot be told: tensor 'decoder\.\S+' is \[", capsys.readouterr().out)
