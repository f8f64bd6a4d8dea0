"""Rows of recipes: a run follows those that it began with, and --explain says what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hiermim_zoo import evaluate, pretrain
from hiermim_zoo.data.batches import Batching
from hiermim_zoo.mae import create_mae
from hiermim_zoo.training import beginning, defaults, snapshots
from hiermim_zoo.training.masks import check_masks

from .runs import largest_difference, train

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- runs that began before


def begun_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are as they were before snapshots said which rows they follow, and so are their snapshots."""

    def as_before(model: str, state: Any) -> defaults.Followed:
        return defaults._before(model, defaults.pretraining_of(model), state or {"options": {}})

    def save(writer: Any, step: int, mae: Any, optimizer: Any, rest: dict[str, Any]) -> None:
        recipe = {name: rest["recipe"][name] for name in rest["recipe"].keys() & {"depth", "dim", "heads"}}
        old = {name: value for name, value in rest.items() if name not in ("rows", "micro_batches")} | {
            "recipe": recipe
        }
        del old["options"]["recipe"]
        saved(writer, step, mae, optimizer, old)

    saved = snapshots.SnapshotWriter.save
    monkeypatch.setattr(beginning, "followed", as_before)
    monkeypatch.setattr(snapshots.SnapshotWriter, "save", save)


@pytest.mark.parametrize(
    "model",
    [
        "--model hivit_atto --warmup 0.01",
        "--model green_swin_atto --img-size 64 --mask-ratio 0.5 --model-kwargs depths=(2,1,1,1) --accumulate 2",
        "--model vit_tiny_patch16_224 --model-kwargs embed_dim=32 depth=1 num_heads=2",
    ],
    ids=["hivit", "green", "vit"],
)
def test_a_run_that_began_before_ends_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Bit for bit: positions that were trained, masks of a step, the schedule, mean and deviation, the mask token."""
    argv = (*model.split(), "--steps", "4", "--lr", "1e-2", "--weight-decay", "0.5")
    with monkeypatch.context() as before:
        begun_before(before)
        whole = train(tmp_path / "whole", *argv, "--recipe", "paper")  # there was no other
        train(tmp_path / "halves", *argv, "--recipe", "paper", "--stop-after", "2")
    assert largest_difference(train(tmp_path / "halves", *argv, "--resume", "auto"), whole) == 0
    now = train(tmp_path / "now", *argv, "--recipe", "paper")
    assert largest_difference(now, whole) > 1e-3  # negative control


def test_a_run_goes_on_with_the_rows_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though those of its family have changed since."""
    argv = ("--steps", "4", "--lr", "1e-2", "--warmup", "0.01")
    whole = train(tmp_path / "whole", *argv)
    train(tmp_path / "halves", *argv, "--stop-after", "2")
    row = replace(defaults.pretraining_of("hivit_atto"), ahead=0.0, decay_mask_token=False)
    monkeypatch.setattr(defaults, "pretraining_of", lambda model: row)
    assert largest_difference(train(tmp_path / "halves", *argv, "--resume", "auto"), whole) == 0
    assert largest_difference(train(tmp_path / "now", *argv), whole) > 0


def test_rows_of_another_version_are_refused_by_name() -> None:
    state = {"rows": {"recipe": {}, "pretraining": {"moon": 1}}}
    with pytest.raises(ValueError, match="of another version of this package: it says moon"):
        defaults.followed("hivit_atto", state)


# ---- where a run starts from


def test_loaded_weights_keep_their_mean_and_deviation(tmp_path: Path) -> None:
    """Those of a folder, whatever the tag of the architecture says; random ones have the recipe's."""
    small = ("--model", "vit_tiny_patch16_224", "--model-kwargs", "embed_dim=32", "depth=1", "num_heads=2")
    train(tmp_path / "a", *small, "--steps", "1", "--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6")
    encoder: Any = create_mae("vit_tiny_patch16_224", checkpoint=tmp_path / "a" / "encoder").encoder
    assert encoder.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert encoder.pretrained_cfg["std"] == (0.4, 0.5, 0.6)
    assert not encoder.pos_embed.requires_grad
    train(tmp_path / "b", *small, "--steps", "1")
    assert create_mae("vit_tiny_patch16_224", checkpoint=tmp_path / "b" / "encoder").encoder.pretrained_cfg["mean"] == (
        0.485,
        0.456,
        0.406,
    )


@pytest.mark.parametrize("arch", ["hivit_atto", "hiera_atto_video"])
def test_positions_that_are_no_table_of_tokens_cannot_be_fixed(arch: str) -> None:
    with pytest.raises(ValueError, match=r"fixed_positions: .* has no pos_embed of a row for each token"):
        create_mae(arch, recipe={"fixed_positions": True})


@pytest.mark.parametrize(("shared", "masks"), [(True, "step"), (False, "sample")])
def test_older_folders_say_masks_in_another_way(tmp_path: Path, shared: bool, masks: str) -> None:
    train(tmp_path, "--steps", "1")
    file = tmp_path / "encoder" / "config.json"
    config = json.loads(file.read_text())
    config["hiermim_zoo"]["recipe"]["shared_mask"] = shared
    file.write_text(json.dumps(config))
    assert create_mae("hivit_atto", checkpoint=tmp_path / "encoder").recipe.masks == masks
    config["hiermim_zoo"]["recipe"] |= {"shared_mask": "moon"}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="recipe has no 'shared_mask'"):
        create_mae("hivit_atto", checkpoint=tmp_path / "encoder")


def test_one_mask_of_a_step_is_refused_where_nobody_knows_the_step() -> None:
    """Of a stream, in several parts."""
    for masks, accumulate, streamed in (("step", 1, True), ("step", 2, False), ("batch", 2, True), ("sample", 2, True)):
        check_masks(masks, Batching(64, 16, accumulate, 0, 1, 0), streamed)
    with pytest.raises(ValueError, match=r"--masks step: .* a step has 4 parts .* --masks batch and sample work"):
        check_masks("step", Batching(64, 16, 2, 0, 2, 0), True)


# ---- explained


@pytest.fixture
def images(tmp_path: Path) -> str:
    """A folder of twelve files that nobody can open; beside it ``others`` has two."""
    for n in range(14):
        file = tmp_path / ("images" if n < 12 else "others") / "ab"[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no image")
    return str(tmp_path / "images")


def explained(lines: list[dict[str, str]]) -> dict[str, tuple[str, str, str]]:
    return {line["name"]: (line["value"], line["origin"], line["instead"]) for line in lines}


def test_a_recipe_is_explained_before_any_image_is_read(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"data": images, "model": "green_swin_base", "output": tmp_path / "out", "explain": True}
    options |= {"recipe": "paper"}
    found = explained(pretrain.run(**options, batch_size=4, epochs=60, mask_ratio=0.5, mean=("auto",)))
    assert found["batch_size"] == ("4", "option --batch-size", "2048")
    assert found["epochs"] == ("60", "option --epochs", "800")
    assert found["lr"] == ("1.5625e-06", "rule: blr * batch size / 256", "")
    assert found["masks"] == ("batch", "recipe", "")
    assert found["visible units"] == ("24 of 49", "rule: int(units * (1 - mask_ratio))", "")
    assert found["mean"] == ("auto: measured on images", "option --mean", "0.485 0.456 0.406")
    assert found["no weight decay"][0].startswith("biases, tensors of one dimension, decoder.mask_token, encoder.")
    assert (found["images"][0], found["steps of an epoch"][0], found["steps"][0]) == ("12", "3", "180")
    assert found["images seen"][0] == "720"
    assert not (tmp_path / "out").exists()
    pretrain.main([images, "--model", "green_swin_base", "-o", str(tmp_path / "out"), "--explain", "--recipe", "paper"])
    printed = capsys.readouterr().out
    assert "recipe of pre-training: GreenMIM scripts/srun_greenmim_swin_base.sh" in printed
    assert "changed: nothing" in printed
    assert "none: a batch of 2048 is more than the 12 images of the data" in printed


def test_whatever_options_change_is_among_the_changes(images: str, tmp_path: Path) -> None:
    options = {"data": images, "model": "hivit_atto", "output": tmp_path / "out", "explain": True, "recipe": "paper"}
    plan = {"batch_size": 4, "epochs": 10, "warmup": 5, "clip": 0}
    plain = explained(pretrain.run(**options, **plan))
    assert [name for name, line in plain.items() if line[2]] == ["epochs", "batch_size", "warmup"]
    assert plain["ahead"] == ("1 epoch", "recipe", "")
    changes = {"raw_pixels": True, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "img_size": (96, 96)}
    changes |= {"accumulate": 2, "steps": 15}
    found = explained(pretrain.run(**options, **plan, **changes))
    names = {"pixels", *changes} - {"raw_pixels"}
    assert all(found[name][2] and found[name][1] == f"option --{name.replace('_', '-')}" for name in names - {"pixels"})
    assert found["pixels"] == ("raw", "option --raw-pixels", "normalised")
    assert found["steps"] == ("15", "option --steps", "30")
    assert found["img_size"] == ("96 96", "option --img-size", "64 64")
    assert "the run ends within the warm-up of 15 steps" in found["rates"][0]
    short = explained(pretrain.run(**options, **plan | {"warmup": 1}))["ahead"]
    assert short == ("0.2 epochs", "rule: a fifth of the warm-up or of the rest at most (recipe: 1 epoch)", "")
    with pytest.raises(ValueError, match=r"a batch of 4 cannot be shared .* with 3 accumulation steps"):
        pretrain.run(**options, **plan, accumulate=3)


def test_clips_are_explained(images: str, tmp_path: Path) -> None:
    options = {"data": f"moving:{images}", "model": "hiera_atto_video", "output": tmp_path / "out", "explain": True}
    plan = {"batch_size": 8, "repeat": 4, "epochs": 20, "warmup": 2}
    found = explained(pretrain.run(**options, **plan, frame_rate="native"))
    assert found["steps of an epoch"][:2] == ("6", "rule: (videos * 4 // batch size) / 4")
    assert found["frame_stride"] == ("4", "recipe", "")
    assert found["frame_rate"] == ("native", "option --frame-rate", "30")


def test_positions_that_a_folder_trained_are_explained(images: str, tmp_path: Path) -> None:
    small = {"model": "vit_tiny_patch16_224", "model_kwargs": {"embed_dim": 32, "depth": 1, "num_heads": 2}}
    options = {"data": images, "output": tmp_path / "out", "explain": True, **small}
    assert explained(pretrain.run(**options))["positions"] == ("sine-cosine, not trained", "recipe", "")
    argv = ["--model", small["model"], "--model-kwargs", "embed_dim=32", "depth=1", "num_heads=2", "--steps", "1"]
    train(tmp_path / "a", *argv)
    file = tmp_path / "a" / "encoder" / "config.json"
    config = json.loads(file.read_text())
    config["hiermim_zoo"]["recipe"] |= {"fixed_positions": False}
    file.write_text(json.dumps(config))
    found = explained(pretrain.run(**options, checkpoint=str(tmp_path / "a" / "encoder")))
    assert found["positions"] == ("trained", "checkpoint", "sine-cosine, not trained")


def test_statistics_of_weights_are_explained(images: str, tmp_path: Path) -> None:
    options = {"data": images, "model": "vit_base_patch16_224", "output": tmp_path / "out", "explain": True}
    assert explained(pretrain.run(**options))["mean"] == ("0.485 0.456 0.406", "recipe", "")
    loaded = explained(pretrain.run(**options, pretrained=True))["mean"]
    assert loaded == ("0.5 0.5 0.5", "the weights that it starts from", "")


def test_fine_tuning_is_explained(images: str) -> None:
    others = images.replace("images", "others")
    options = {"data": others, "train": images, "model": "green_swin_base", "method": "finetune", "explain": True}
    options |= {"recipe": "paper"}
    found = explained(evaluate.run(**options, batch_size=4, epochs=40, lr=1e-3, pretrained=False, ema=0.9))
    assert found["batch_size"] == ("4", "option --batch-size", "768")
    assert found["lr"][:2] == ("0.001", "option --lr")
    assert float(found["lr"][2]) == pytest.approx(6.25e-4 * 4 / 256, rel=1e-4)
    assert found["min_lr"][1:] == ("rule: 3.75e-07 * batch / 768", "")
    assert float(found["min_lr"][0]) == pytest.approx(2.5e-7 * 4 / 512, rel=1e-4)
    assert found["clip"] == ("5", "recipe", "")
    assert found["ema"] == ("0.9", "option --ema", "")
    assert found["steps"][0] == "120"
    with pytest.raises(ValueError, match=r"--epochs 3 is no more than .* warm-up of 20 epochs; --warmup 0 would work"):
        evaluate.run(**options, epochs=3, pretrained=False)
    with pytest.raises(ValueError, match="--explain belongs to --method finetune, not to --method knn"):
        evaluate.run(data=images, model="green_swin_base", method="knn", explain=True)
    with pytest.raises(ValueError, match="--explain says what a new run would do: leave out --resume"):
        pretrain.run(data=images, model="green_swin_base", output="out", explain=True, resume="auto")
