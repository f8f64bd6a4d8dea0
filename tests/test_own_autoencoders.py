"""Snapshots of runs and autoencoders' state dicts are checkpoints: convert reads them as what the run leaves behind."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from hiermim_zoo import convert, pretrain
from hiermim_zoo.checkpoints.files import read_checkpoint
from hiermim_zoo.checkpoints.layouts import all_layouts
from hiermim_zoo.mae import create_mae, decoder_state, recipe_changes
from hiermim_zoo.models.family import family_of
from hiermim_zoo.training import snapshots

SHORT = "digits --batch-size 8 --steps 1 --epochs 1 --warmup 0 --workers 0 --device cpu --look-every 0"
SMALL = "--decoder-depth 1 --decoder-dim 32 --decoder-heads 2"
RUNS = {  # one of each family; sizes, channels and parts that are not the architecture's
    "hivit": ("hivit_atto", f"--img-size 32 {SMALL} --mask-ratio 0.5"),
    "hivit, other parts": (
        "hivit_atto", f"--img-size 32 64 --in-chans 1 --masks batch {SMALL} --model-kwargs depths=1,1,2",
    ),
    "hiera": ("hiera_atto", f"--img-size 64 {SMALL}"),
    "green swin": ("green_swin_atto", f"{SMALL}"),
    "plain vit": ("vit_tiny_patch16_224", f"--img-size 32 {SMALL} --model-kwargs depth=2"),
}  # fmt: skip
ARCHS = {
    "hivit_atto": {}, "hiera_atto": {}, "hiera_atto_video": {}, "green_swin_atto": {},
    "green_twins_small": {"img_size": 64, "depths": (1, 1, 1, 1)}, "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
}  # fmt: skip


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Architecture and output folder of a short run."""
    arch, words = RUNS[request.param]
    output = tmp_path_factory.mktemp("run") / "out"
    pretrain.main(shlex.split(f"{SHORT} {words} --model {arch} -o {output}"))
    return arch, output


def last(output: Path) -> Path:
    return snapshots.found(output / "checkpoints")[-1]


def test_a_snapshot_becomes_what_the_run_leaves(run: tuple[str, Path], tmp_path: Path) -> None:
    arch, output = run
    command(last(output), "--model", arch, "--mae", "-o", tmp_path / "out", "--verify")
    for name in ("model.safetensors", "decoder.safetensors"):
        assert same(load_file(tmp_path / "out" / name), load_file(output / "encoder" / name)), name
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", output / "encoder")
    )
    ours["model_args"].pop("global_pool", None)  # of plain ViTs a conversion says it
    assert ours["model_args"] == theirs["model_args"]
    assert ours["hiermim_zoo"]["recipe"] == theirs["hiermim_zoo"]["recipe"]
    cfg = ("mean", "std", "input_size", "interpolation")
    assert [ours["pretrained_cfg"][key] for key in cfg] == [theirs["pretrained_cfg"][key] for key in cfg]
    mae = create_mae(arch, checkpoint=tmp_path / "out")
    assert same(dict(mae.state_dict()), snapshots.weights_of(last(output)))
    assert mae.recipe == create_mae(arch, checkpoint=output / "encoder").recipe


def test_without_the_decoder_it_is_left_out_for_its_reason(
    run: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch, output = run
    command(last(output), "--model", arch, "-o", tmp_path / "out")
    said = capsys.readouterr().out
    assert "this package's own autoencoders" in said
    assert ": decoder of the masked autoencoder\n" in said
    assert not (tmp_path / "out" / "decoder.safetensors").exists()
    written = load_file(tmp_path / "out" / "model.safetensors")
    encoder = load_file(output / "encoder" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in encoder.items())
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_state_dict_of_any_family_is_of_one_layout(arch: str) -> None:
    args: dict[str, Any] = ARCHS[arch]
    mae = create_mae(arch, recipe={"depth": 1, "dim": 32, "heads": 2}, **args)
    state = dict(mae.state_dict())
    [layout] = [layout for layout in all_layouts() if layout.fits(state)]
    assert layout.name.endswith("_autoencoder")
    native = family_of(arch).native(state, decoder=True)
    assert same(native.state, dict(mae.encoder.state_dict()))
    assert same(native.decoder, decoder_state(mae))
    state["encoder.surprise"] = torch.ones(1)  # negative control
    with pytest.raises(ValueError, match=r"tensor 'encoder\.surprise' \[1\] is not part of the layout"):
        family_of(arch).native(state)


def test_a_decoder_that_nothing_tells_of_is_refused_by_its_tensor(tmp_path: Path) -> None:
    mae = create_mae("hivit_atto", recipe={"depth": 1, "dim": 32, "heads": 2})
    torch.save(mae.state_dict(), tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=r"'decoder\.\S+' .* (missing from|in) the checkpoint"):
        command(tmp_path / "mae.pth", "--model", "hivit_atto", "--mae", "-o", tmp_path / "out")
    torch.save(create_mae("hivit_atto", img_size=96).state_dict(), tmp_path / "mae.pth")
    command(tmp_path / "mae.pth", "--model", "hivit_atto", "--mae", "-o", tmp_path / "out")
    assert create_mae("hivit_atto", checkpoint=tmp_path / "out").input_size == (96, 96)


def test_the_decoder_belongs_to_one_size(tmp_path: Path) -> None:
    torch.save(create_mae("green_swin_atto", img_size=256).state_dict(), tmp_path / "mae.pth")
    command(tmp_path / "mae.pth", "--model", "green_swin_atto", "--mae", "-o", tmp_path / "out")  # its positions tell
    assert create_mae("green_swin_atto", checkpoint=tmp_path / "out").input_size == (256, 256)
    torch.save(create_mae("hivit_atto", img_size=(32, 128)).state_dict(), tmp_path / "mae.pth")  # 16 units
    for size in ((96,), (32, 128)):
        make = (tmp_path / "mae.pth", "--model", "hivit_atto", "--mae", "-o", tmp_path / "hivit")
        with pytest.raises(ValueError, match="positions belong to one size: leave out --img-size"):
            command(*make, "--img-size", *size)  # 16 units are taken for a square


def snapshot(file: Path, arch: str, recipe: dict[str, Any] | None, **options: Any) -> Path:
    """As a run writes it; ``recipe`` None: as it was written before snapshots had one."""
    mae = create_mae(arch, recipe={"depth": 1, "dim": 32, "heads": 2})
    sizes = {"decoder_depth": 1, "decoder_dim": 32, "decoder_heads": 2, "mask_ratio": None, "masks": None}
    said = {"model": arch, "img_size": None, "in_chans": 3, "model_kwargs": [], **sizes, **options}
    rest = {} if recipe is None else {"recipe": recipe}
    torch.save({"model": mae.state_dict(), "optimizer": {}, "options": said, "step": 3, **rest}, file)
    return file


def test_older_snapshots_say_their_decoder_in_their_options(tmp_path: Path) -> None:
    make = ("--model", "hivit_atto", "--mae", "-o", tmp_path / "out", "--force")
    command(snapshot(tmp_path / "a.pt", "hivit_atto", None), *make)
    recipe = create_mae("hivit_atto", checkpoint=tmp_path / "out").recipe
    assert recipe_changes("hivit_atto", recipe) == {"depth": 1, "dim": 32, "heads": 2}
    command(snapshot(tmp_path / "b.pt", "hivit_atto", {"depth": 1, "dim": 32, "heads": 4}, checkpoint="x"), *make)
    assert create_mae("hivit_atto", checkpoint=tmp_path / "out").recipe.heads == 4
    with pytest.raises(ValueError, match="its snapshot does not say with which decoder"):
        command(snapshot(tmp_path / "c.pt", "hivit_atto", None, checkpoint="x", decoder_heads=None), *make)


@pytest.mark.parametrize(
    "options", [{"model": 3}, {"model_kwargs": 7}, {"model_kwargs": [1]}, {"img_size": ["a"]}, {"mean": {}}]
)
def test_options_of_a_stranger_are_no_reason_to_fail(options: dict[str, Any], tmp_path: Path) -> None:
    """They stand beside weights that are read all the same."""
    file = snapshot(tmp_path / "a.pt", "hivit_atto", None, **options)
    assert read_checkpoint(file).config.get("architecture", "hivit_atto") == "hivit_atto"
    command(file, "--model", "hivit_atto", "-o", tmp_path / "out")


def test_arguments_of_a_builder_are_refused(tmp_path: Path) -> None:
    file = snapshot(tmp_path / "a.pt", "hivit_atto", None, model_kwargs=[["checkpoint_path", "/etc/passwd"]])
    with pytest.raises(ValueError, match="model_args has 'checkpoint_path', which is no argument of a model"):
        command(file, "--model", "hivit_atto", "-o", tmp_path / "out")


def test_a_snapshot_that_is_a_folder_says_how_its_weights_are_had(tmp_path: Path) -> None:
    folder = tmp_path / "step-00000004-0123456789abcdef"
    folder.mkdir()
    for name in (".metadata", "__RANK_0.distcp", "run.pt", "complete.json"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"spread over files \(--fsdp\): .* --resume .*cdef --export-only added writes"
    ):
        command(folder, "--model", "hivit_atto", "-o", tmp_path / "out")


def test_a_plain_vits_snapshot_becomes_an_hpvit(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"img_size": 64, "embed_dim": 96, "depth": 6, "num_heads": 3}
    mae = create_mae("vit_tiny_patch16_224", **kwargs)
    torch.save({"model": mae.state_dict()}, tmp_path / "mae.pth")
    command(tmp_path / "mae.pth", "--model", "hpvit_atto", "-o", tmp_path / "out")
    encoder: Any = mae.encoder
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["blocks.5.attn.qkv.weight"], encoder.blocks[5].attn.qkv.weight)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["hiermim_zoo"]
    assert said["pre-training of the plain ViT"] == "masked autoencoding (MAE)"
