"""SAM 2's encoder in pre-training: the command, its plans, its resumed runs, and the way on from somebody's weights."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from hiermim_zoo import convert, evaluate, extract, pretrain, reconstruct
from hiermim_zoo.mae import MaskedAutoencoder, create_mae
from hiermim_zoo.masking import random_keep
from hiermim_zoo.training import pretraining, snapshots
from hiermim_zoo.training.run_log import read_log

ARCH = "hiera_sam2_atto"
SIZE = "--img-size 160 96"  # 5 x 3 units, which windows of 2 x 2 do not divide
SHORT = shlex.split(
    f"--model {ARCH} {SIZE} --decoder-depth 1 --decoder-dim 32 --decoder-heads 2 --batch-size 4 --epochs 1 --warmup 0 "
    "--steps 4 --workers 0 --device cpu --look-every 0 --log-steps 1"
)
IMAGES = Path(__file__).parents[1] / "examples" / "pictures"

pytestmark = pytest.mark.usefixtures("one_thread")


def train(output: Path, *argv: object) -> dict[str, torch.Tensor]:
    """The weights that a run ends with."""
    pretrain.main([str(IMAGES), *SHORT, "-o", str(output), *map(str, argv)])
    return weights(output)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return snapshots.weights_of(snapshots.found(output / "checkpoints")[-1])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in read_log(output)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(output)
    return output


# ---- runs


@pytest.mark.parametrize("sharing", ["sample", "batch"])
def test_plans_of_workers_are_those_of_the_step(sharing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans come with the batches, and without them the losses are the same."""
    seen: list[bool] = []  # beside passes without plans, which count memory
    forward = MaskedAutoencoder.forward

    def watched(mae: Any, images: torch.Tensor, keep: Any = None, plans: Any = None, features: Any = None) -> Any:
        seen.append(plans is not None)
        return forward(mae, images, keep, plans, features)

    monkeypatch.setattr(MaskedAutoencoder, "forward", watched)
    ahead = train(tmp_path / "ahead", "--workers", 1, "--masks", sharing, "--steps", 2)
    assert sum(seen) == 2
    monkeypatch.setattr(pretraining, "planned_ahead", lambda *_: None)
    there = train(tmp_path / "there", "--masks", sharing, "--steps", 2)
    assert sum(seen) == 2
    assert losses(tmp_path / "ahead") == losses(tmp_path / "there")
    assert same(ahead, there)


def test_other_masks_are_noticed(whole: Path, tmp_path: Path) -> None:
    """Negative control of what is compared here: one mask for a batch is another run."""
    train(tmp_path / "out", "--masks", "batch")
    assert losses(tmp_path / "out") != losses(whole)


def test_halves_are_the_whole_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    half = train(tmp_path / "out", "--stop-after", 2)
    assert not same(half, weights(whole))
    rest = train(tmp_path / "out", "--resume", "auto")
    assert same(rest, weights(whole))
    assert losses(tmp_path / "out") == losses(whole)


def test_saving_memory_changes_no_bit(whole: Path, tmp_path: Path) -> None:
    assert same(train(tmp_path / "out", "--grad-checkpointing"), weights(whole))


def test_every_parameter_learns() -> None:
    """But the norm of a classifier, which a masked pass has no use for."""
    torch.manual_seed(0)
    mae = create_mae(ARCH, recipe={"depth": 1, "dim": 32, "heads": 2})
    keep = random_keep(2, mae.units, mae.kept)
    mae(torch.randn(2, 3, 128, 128), keep).loss.backward()
    still = {name for name, p in mae.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert still == {"encoder.fc_norm.weight", "encoder.fc_norm.bias"}


# ---- before and after


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trunk that has timm's names."""
    torch.manual_seed(1)
    theirs = timm.create_model(
        "sam2_hiera_tiny",
        embed_dim=24,
        stages=(1, 1, 3, 2),
        global_att_blocks=(4,),
        window_spec=(8, 4, 4, 2),
        global_pos_size=(4, 4),
        num_classes=0,
    )
    with torch.no_grad():
        for table in (theirs.pos_embed, theirs.pos_embed_window):  # which start at zero
            table.normal_(std=0.02)
    folder = tmp_path_factory.mktemp("published")
    torch.save(theirs.state_dict(), folder / "trunk.pth")
    convert.run(source=str(folder / "trunk.pth"), model=ARCH, output=folder / "trunk", num_classes=0)
    return folder / "trunk"


def test_a_published_trunk_goes_on_at_another_size_and_with_one_channel(published: Path, tmp_path: Path) -> None:
    """No table of positions is resampled; the stem is adapted; a rate of 0 leaves all the rest as it was."""
    before = load_file(published / "model.safetensors")
    more = ["--checkpoint", published, "--decoder", "fresh", "--in-chans", 1, "--mean", 0.4, "--std", 0.2]
    train(tmp_path / "still", *more, "--lr", 0)
    after = load_file(tmp_path / "still" / "encoder" / "model.safetensors")
    stem = "patch_embed.proj.weight"
    torch.testing.assert_close(after.pop(stem), before[stem].sum(dim=1, keepdim=True))
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == set()
    train(tmp_path / "moved", *more)
    moved = load_file(tmp_path / "moved" / "encoder" / "model.safetensors")
    changed = {name for name in after if not torch.equal(moved[name], before[name])}
    assert changed == {name for name in after if not name.startswith("fc_norm.")}


def test_the_other_commands_take_its_folder(whole: Path, tmp_path: Path) -> None:
    encoder = whole / "encoder"
    cats = str(IMAGES / "cat")
    name = f"local-dir:{encoder}"
    extract.run(images=[cats], model=name, output=tmp_path / "f.safetensors", what=["pooled", "maps"], workers=0)
    shapes = {tuple(tensor.shape) for tensor in load_file(tmp_path / "f.safetensors").values()}
    assert {(20, 192), (20, 24, 40, 24), (20, 48, 20, 12), (20, 96, 10, 6), (20, 192, 5, 3)} <= shapes
    out = tmp_path / "r.png"
    reconstruct.run(images=[next((IMAGES / "cat").iterdir())], model=ARCH, checkpoint=encoder, output=out)
    assert out.stat().st_size > 1000
    report = evaluate.run(data=str(IMAGES), model=name, method="knn", workers=0)
    assert 0 <= report["top1"] <= 100
