"""Masked pre-training goes on at another size, or with other channels, from the folder of an autoencoder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import adapt_input_conv

from hiermim_zoo import pretrain
from hiermim_zoo.checkpoints.folder import Contents, own_cfg, write_folder
from hiermim_zoo.geometry import sincos_table
from hiermim_zoo.layers.position import resample_positions
from hiermim_zoo.mae import MaskedAutoencoder, create_mae, decoder_state, recipe_changes
from hiermim_zoo.training.export import size_args

RECIPE = {"depth": 1, "dim": 32, "heads": 2}


def written(folder: Path, arch: str, order: str | None = None, **kwargs: Any) -> MaskedAutoencoder:
    """An autoencoder with random weights, all of them, in a folder as a run leaves it."""
    mae = create_mae(arch, recipe=RECIPE | ({"pixel_order": order} if order else {}), **kwargs)
    with torch.no_grad():
        for parameter in mae.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02)
    encoder: Any = mae.encoder
    encoder.pretrained_cfg = own_cfg(arch, {}, "mit", 0, (mae.in_chans, *mae.input_size))
    recipe = recipe_changes(arch, mae.recipe)
    args = size_args(mae)
    write_folder(
        Contents(arch, encoder, {"license": "mit"}, "", args, decoder=decoder_state(mae), recipe=recipe), folder
    )
    return mae


@pytest.mark.parametrize("arch", ["hivit_atto", "hiera_atto", "green_swin_atto", "test_vit"])
@pytest.mark.parametrize(("size", "channels"), [((64, 96), 3), ((96, 64), 1), ((64, 64), 5)])
def test_every_family_goes_on(arch: str, size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    old = written(tmp_path / "a", arch, img_size=(64, 64))
    new = create_mae(arch, checkpoint=tmp_path / "a", img_size=size, in_chans=channels)
    assert (new.in_chans, new.input_size) == (channels, size)
    assert torch.isfinite(new(torch.randn(2, channels, *size)).loss)
    before, after = old.state_dict(), new.state_dict()
    same = {name for name in before if before[name].shape == after[name].shape and before[name].equal(after[name])}
    changed = before.keys() - same
    assert all(
        "pos_embed" in name or ".pred." in name or "patch_embed" in name or "bias_table" in name for name in changed
    ), changed
    assert bool(changed) == ((size, channels) != ((64, 64), 3))


def test_what_is_the_same_stays_bit_for_bit(tmp_path: Path) -> None:
    """The negative control."""
    old = written(tmp_path / "a", "hiera_atto", img_size=(64, 96))
    new = create_mae("hiera_atto", checkpoint=tmp_path / "a")
    assert all(tensor.equal(old.state_dict()[name]) for name, tensor in new.state_dict().items())


def test_fixed_positions_are_those_of_the_grid_and_learned_ones_move(tmp_path: Path) -> None:
    written(tmp_path / "fixed", "hivit_atto", img_size=(64, 96))
    moved = create_mae("hivit_atto", checkpoint=tmp_path / "fixed", img_size=(96, 64))  # as many tokens, another grid
    assert torch.equal(moved.decoder.pos_embed, sincos_table((6, 4), 32))
    old = written(tmp_path / "learned", "hiera_atto", img_size=(64, 96))
    moved = create_mae("hiera_atto", checkpoint=tmp_path / "learned", img_size=(96, 64))
    assert old.decoder.pos_embed.requires_grad
    expected = resample_positions(old.decoder.pos_embed.detach(), [4, 6], [6, 4])
    assert torch.equal(moved.decoder.pos_embed, expected)
    assert not torch.equal(moved.decoder.pos_embed, old.decoder.pos_embed)


@pytest.mark.parametrize("arch", ["hivit_atto", "hiera_atto"])
@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_new_channels_start_as_the_mean_of_the_old(arch: str, order: str, tmp_path: Path) -> None:
    old = written(tmp_path / "a", arch, order, img_size=64).eval()
    new = create_mae(arch, checkpoint=tmp_path / "a", in_chans=2).eval()
    latent = torch.randn(1, old.decoder.pos_embed.shape[1] - old.layout.prefix, 32)
    with torch.no_grad():
        image, two = (mae.from_patches(mae.decoder.pred(latent)) for mae in (old, new))
    torch.testing.assert_close(two, image.mean(1, keepdim=True).repeat(1, 2, 1, 1))
    stems = (mae.encoder.state_dict()["patch_embed.proj.weight"] for mae in (old, new))
    assert torch.equal(adapt_input_conv(2, next(stems)), next(stems))


def test_a_model_of_clips_goes_on_at_another_size(tmp_path: Path) -> None:
    old = written(tmp_path / "a", "hiera_atto_video")
    side = old.input_size[-1]
    new = create_mae("hiera_atto_video", checkpoint=tmp_path / "a", img_size=(side, 2 * side), in_chans=1)
    frames = old.input_size[0]
    assert new.input_size == (frames, side, 2 * side)
    assert torch.isfinite(new(torch.randn(1, 1, frames, side, 2 * side)).loss)
    assert new.decoder.pos_embed.shape[1] == 2 * old.decoder.pos_embed.shape[1]


@pytest.mark.parametrize("recipe", [{"dim": 64}, {"depth": 2}])
def test_what_cannot_go_on_names_what_helps(tmp_path: Path, recipe: dict[str, Any]) -> None:
    written(tmp_path / "a", "hivit_atto", img_size=64)
    with pytest.raises(
        ValueError, match=r"the autoencoder of hivit_atto.*; a new decoder works: --decoder fresh"
    ) as error:
        create_mae("hivit_atto", checkpoint=tmp_path / "a", recipe=recipe)
    assert "\n" not in str(error.value)
    fresh = create_mae("hivit_atto", checkpoint=tmp_path / "a", recipe=recipe, decoder="fresh")
    assert torch.isfinite(fresh(torch.randn(1, 3, 64, 64)).loss)


def test_the_command_goes_on_from_its_own_folder(tmp_path: Path) -> None:
    common = shlex.split(
        "digits --model hivit_atto --batch-size 8 --steps 1 --warmup 0 --workers 0 --look-every 0 --device cpu"
    )
    small = [*common, *shlex.split("--decoder-depth 1 --decoder-dim 32 --decoder-heads 2 --img-size 32 --in-chans 1")]
    pretrain.main([*small, "-o", str(tmp_path / "a")])
    start = ["--checkpoint", str(tmp_path / "a" / "encoder")]
    pretrain.main([*common, *start, "-o", str(tmp_path / "b")])
    again = create_mae("hivit_atto", checkpoint=tmp_path / "b" / "encoder")
    assert (again.in_chans, again.input_size) == (1, (32, 32)), "as the folder says"
    pretrain.main([*common, *start, "-o", str(tmp_path / "c"), "--img-size", "64", "--in-chans", "3"])
    again = create_mae("hivit_atto", checkpoint=tmp_path / "c" / "encoder")
    assert (again.in_chans, again.input_size, again.recipe.dim) == (3, (64, 64), 32)
    fresh = ["--decoder", "fresh", "--decoder-dim", "64", "--decoder-heads", "4"]
    pretrain.main([*common, *start, "-o", str(tmp_path / "d"), *fresh])
    again = create_mae("hivit_atto", checkpoint=tmp_path / "d" / "encoder")
    assert (again.in_chans, again.recipe.dim) == (1, 64)
    with pytest.raises(ValueError, match="--decoder fresh belongs to --checkpoint"):
        pretrain.VERB.parse([*common, "-o", "x", "--decoder", "fresh"])
    with pytest.raises(ValueError, match="--mean has 3 values, but --in-chans is 1"):
        pretrain.main([*common, *start, "-o", str(tmp_path / "e"), "--mean", "0.5", "0.5", "0.5"])
    assert not (tmp_path / "e").exists()
