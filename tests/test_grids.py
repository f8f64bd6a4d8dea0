"""Of which grid a table of positions is: what the folder says, a square, or what the caller says; never a guess."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from hiermim_zoo import convert
from hiermim_zoo.checkpoints.layouts import find_layout
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.layers.position import resample_positions
from hiermim_zoo.mae import create_mae, decoder_state
from hiermim_zoo.models.grids import Sizes, sizes_beside, source_grid

from .test_hpvit_convert import plain, same, with_decoder

State = dict[str, Tensor]
# architecture -> its table, rows of the table along a side of 32 pixels, pixels in the family's message
TABLES = {
    "hivit_atto": ("absolute_pos_embed", 2),
    "hiera_atto": ("pos_embed", 8),
    "hiera_atto_video": ("pos_embed_spatial", 8),
    "hpvit_atto": ("pos_embed", 8),
    "test_vit": ("pos_embed", 2),
}


def own(arch: str, size: tuple[int, int]) -> State:
    """A state dict in the names of the family, every table drawn."""
    torch.manual_seed(5)
    model = timm.create_model(arch, num_classes=0, img_size=size)
    return {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


def resampled(table: Tensor, old: tuple[int, int], new: tuple[int, int], per_side: int, prefix: int = 0) -> Tensor:
    """From one size of images in pixels to another."""
    before, after = ([side * per_side // 32 for side in size] for size in (old, new))
    if prefix:  # a plain ViT, whose positions timm resamples
        return resample_abs_pos_embed(table, after, before, num_prefix_tokens=prefix)
    return resample_positions(table, before, after)


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def converted(source: State | Path, folder: Path, arch: str, *more: object) -> State:
    if not isinstance(source, Path):
        torch.save({"model": source}, folder / "source.pth")
        source = folder / "source.pth"
    command(source, "--model", arch, "-o", folder / "out", "--force", *more)
    return load_file(folder / "out" / "model.safetensors")


# ---- tables that are not square


@pytest.mark.parametrize("arch", TABLES)
def test_the_caller_says_of_which_grid_a_table_is(arch: str, tmp_path: Path) -> None:
    table, per_side = TABLES[arch]
    state, prefix = own(arch, (64, 96)), int(arch == "test_vit")
    with pytest.raises(ValueError, match=r"no square, and nothing says of which grid.*--img-size 64 96"):
        converted(state, tmp_path, arch)
    with pytest.raises(
        ValueError, match=r"\(128 x 96 pixels have .*for another size convert once with the source's own"
    ):
        converted(state, tmp_path, arch, "--img-size", 128, 96)
    assert not (tmp_path / "out").exists()
    assert same(converted(state, tmp_path, arch, "--img-size", 64, 96, "--verify"), state)
    (tmp_path / "out").rename(tmp_path / "first")
    other = converted(tmp_path / "first", tmp_path, arch, "--img-size", 128, 64, "--verify")
    assert torch.equal(other[table], resampled(state[table], (64, 96), (128, 64), per_side, prefix))
    wrong = resampled(state[table], (96, 64), (128, 64), per_side, prefix)  # negative control: the other way round
    assert not torch.allclose(other[table], wrong, atol=1e-2)
    tables = {name: tensor for name, tensor in state.items() if name == table or name.endswith("bias_table")}
    assert same({**other, **tables}, state)


def test_a_plain_vits_table_becomes_an_hpvits(tmp_path: Path) -> None:
    state = plain(img_size=(64, 96))
    words = (
        r"25 rows, 24 and one of the class token: no square.* 6 x 4 \(--img-size 96 64\), 4 x 6 \(--img-size 64 96\)"
    )
    with pytest.raises(ValueError, match=words):
        converted(state, tmp_path, "hpvit_atto")
    written = converted(state, tmp_path, "hpvit_atto", "--img-size", 64, 96, "--verify")
    table = state["pos_embed"][:, 1:]
    assert torch.equal(written["pos_embed"], resample_positions(table, [4, 6], [16, 24]))
    other = resample_positions(table, [6, 4], [16, 24])  # negative control
    assert not torch.allclose(written["pos_embed"], other, atol=1e-2)


def in_timms_form(state: State, folder: Path, arch: str, size: tuple[int, int], **more: Any) -> Path:
    """A repository: the model's name is that of somebody's plain ViT, or one of ours."""
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    config = {"architecture": arch, "num_classes": 0, "model_args": {"img_size": list(size), **more}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("arch", ["hpvit_atto", "test_vit"])
def test_the_folder_of_an_audio_model_says_it(arch: str, tmp_path: Path) -> None:
    """AudioMAE: spectrograms of 1024 x 128, 64 x 8 patches and a class token."""
    shape: dict[str, Any] = {"embed_dim": 64, "num_heads": 2, "mlp_ratio": 3.0} if arch == "test_vit" else {}
    state = plain(img_size=(1024, 128), in_chans=1, **shape)
    folder = in_timms_form(state, tmp_path / "audio", "vit_base_patch16_224", (1024, 128), in_chans=1)
    written = converted(folder, tmp_path, arch)
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert (model.in_chans if arch == "hpvit_atto" else model.patch_embed.proj.in_channels) == 1
    assert model.patch_embed.img_size == (1024, 128)
    if arch == "test_vit":
        assert same(written, state)
    else:
        table = resample_positions(state["pos_embed"][:, 1:], [64, 8], [256, 32])
        assert torch.equal(written["pos_embed"], table)
    (folder / "config.json").unlink()  # negative control
    words = r"513 rows, 512 and one of the class token: no square.* 64 x 8 \(--img-size 1024 128\)"
    with pytest.raises(ValueError, match=words):
        converted(folder, tmp_path, arch)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"model_args": {"img_size": 96}, "pretrained_cfg": {"input_size": [1, 64, 32]}}, [(96, 96), (64, 32), None]),
        ({"image_size": [64, 96]}, [None, None, (64, 96)]),
        ({"model_args": [1], "pretrained_cfg": "x", "image_size": {}}, [None] * 3),
        ({"model_args": {"img_size": True}, "pretrained_cfg": {"input_size": "224"}, "image_size": -3}, [None] * 3),
        ({"model_args": {"img_size": [1, 2, 3]}, "pretrained_cfg": {"input_size": [3]}, "image_size": 2.5}, [None] * 3),
    ],
)
def test_what_is_no_size_says_nothing(config: dict[str, Any], sizes: list[Any]) -> None:
    assert list(sizes_beside(config)) == sizes


def test_a_decoder_is_kept_at_the_size_of_the_source(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mae = create_mae("test_vit", img_size=(64, 96))
    state = to_published(mae.encoder.state_dict(), decoder_state(mae), find_layout("vit_mae"), mae.encoder)
    converted(state, tmp_path, "test_vit", "--mae", "--img-size", 64, 96)
    again = create_mae("test_vit", checkpoint=tmp_path / "out")
    assert same(dict(again.state_dict()), dict(mae.state_dict()))
    state["pos_embed"], state["decoder_pos_embed"] = (torch.ones(1, 17, 64), torch.ones(1, 17, 512))
    with pytest.raises(ValueError, match="--mae keeps the decoder, whose positions belong to one size"):
        converted(state, tmp_path, "test_vit", "--mae", "--img-size", 32, 128)


def test_the_way_back_needs_the_grid_too(tmp_path: Path) -> None:
    state = own("hiera_atto", (64, 96))
    torch.save(state, tmp_path / "source.pth")
    args: Any = (
        tmp_path / "source.pth",
        "--model",
        "hiera_atto",
        "--to",
        "hiera_transformers",
        "-o",
        tmp_path / "back.pth",
    )
    with pytest.raises(ValueError, match="no square"):
        command(*args)
    torch.save(own("hiera_atto", (64, 64)), tmp_path / "square.pth")
    with pytest.raises(ValueError, match="--img-size 96 64 would resample them"):
        command(tmp_path / "square.pth", *args[1:], "--img-size", 96, 64)
    assert not (tmp_path / "back.pth").exists()
    command(*args, "--img-size", 64, 96)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert torch.equal(back["hiera.embeddings.position_embeddings"], state["pos_embed"])


# ---- tables that may be square


@pytest.mark.parametrize("arch", TABLES)
def test_what_the_folder_says_counts_before_a_square(
    arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 x 4 cells of 32 pixels are as many as 2 x 2."""
    table, per_side = TABLES[arch]
    state, prefix = own(arch, (32, 128)), int(arch == "test_vit")
    raw = converted(state, tmp_path, arch, "--img-size", 32, 128)
    assert torch.equal(raw[table], resampled(state[table], (64, 64), (32, 128), per_side, prefix))
    assert ", images of 64 x 64 -> 32 x 128 pixels" in capsys.readouterr().out
    assert not torch.allclose(raw[table], state[table], atol=1e-2)
    folder = in_timms_form(state, tmp_path / "said", arch, (32, 128))
    assert same(converted(folder, tmp_path, arch), state)
    assert "resampled" not in capsys.readouterr().out
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert same(dict(loaded.state_dict()), state)
    larger = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, img_size=(64, 128))
    expected = resampled(state[table], (32, 128), (64, 128), per_side, prefix)
    assert torch.equal(larger.state_dict()[table], expected)


@pytest.mark.parametrize("arch", ["hivit_atto", "hiera_atto", "test_vit"])
def test_masked_pre_training_goes_on_at_the_folders_size(arch: str, tmp_path: Path) -> None:
    table, per_side = TABLES[arch]
    state, prefix = own(arch, (32, 256)), int(arch == "test_vit")
    if arch == "hivit_atto":  # as pre-training leaves it
        state = {name: tensor for name, tensor in state.items() if not re.search(r"bias_table|fc_norm", name)}
        state |= {"mask_token": torch.zeros(1, 1, 8), "norm.weight": torch.ones(1)}
    folder = in_timms_form(state, tmp_path / "said", arch, (32, 256))
    args: dict[str, Any] = {"checkpoint": folder, "decoder": "fresh", "recipe": {"depth": 1, "dim": 32, "heads": 2}}
    mae = create_mae(arch, **args)
    assert torch.equal(mae.encoder.state_dict()[table], state[table])
    larger = create_mae(arch, img_size=(64, 256), **args)
    expected = resampled(state[table], (32, 256), (64, 256), per_side, prefix)
    assert torch.equal(larger.encoder.state_dict()[table], expected)


def test_a_square_stays_one_whatever_is_asked(tmp_path: Path) -> None:
    state = own("hivit_atto", (64, 64))
    written = converted(state, tmp_path, "hivit_atto", "--img-size", 32, 128)
    expected = resampled(state["absolute_pos_embed"], (64, 64), (32, 128), 2)
    assert torch.equal(written["absolute_pos_embed"], expected)


# ---- what is said


@pytest.mark.parametrize(
    ("count", "sizes", "grid"),
    [
        (196, Sizes(), (14, 14)),
        (512, Sizes((None, (1024, 128))), (64, 8)),
        (512, Sizes((224, (128, 1024))), (8, 64)),
        (512, Sizes(asked=(1024, 128)), (64, 8)),
        (64, Sizes(((64, 256),), asked=(256, 64)), (4, 16)),
        (64, Sizes(asked=(64, 256)), (8, 8)),
    ],
)
def test_the_order_of_the_sources(count: int, sizes: Sizes, grid: tuple[int, int]) -> None:
    assert source_grid(count, 16, sizes) == grid


@pytest.mark.parametrize(
    ("count", "prefix", "rows", "words"),
    [
        (200, 1, 1, r"201 rows, 200 and one .*; 5 more than 196 = 14 x 14: 1 class and 4 register rows\?"),
        (201, 0, 1, r"201 rows: no square.*; 5 more than 196 = 14 x 14: 1 class and 4 register rows\? No model here"),
        (197, 0, 1, r"197 rows: no square.*; 1 more than 196 = 14 x 14: a class row\?; no grid of at least 2 x 2"),
        (512, 0, 1, r"possible are 32 x 16 \(--img-size 512 256\), 16 x 32 \(--img-size 256 512\), 64 x 8 "),
        (6, 0, 64, r"384 rows, 6 units: no square"),
    ],
)
def test_the_message_names_grids_and_hidden_rows(count: int, prefix: int, rows: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        source_grid(count, 16, Sizes(), prefix, rows)


@pytest.mark.parametrize("arch", ["hpvit_atto", "test_vit"])
def test_registers_that_hide_in_the_table_are_not_resampled(arch: str, tmp_path: Path) -> None:
    state = with_decoder(plain(img_size=224))
    state["pos_embed"] = torch.randn(1, 201, 96)
    with pytest.raises(ValueError, match="1 class and 4 register rows"):
        converted(state, tmp_path, arch)
