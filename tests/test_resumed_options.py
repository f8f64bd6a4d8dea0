"""A run that goes on is told nothing again: every option is as it began, and the end is the same bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hiermim_zoo import convert, evaluate, pretrain
from hiermim_zoo.checkpoints.configs import TRAINING_KEY, check_training
from hiermim_zoo.training import snapshots

from .runs import largest_difference, weights

pytestmark = pytest.mark.usefixtures("one_thread")
AGAIN: dict[str, Any] = {"data": "digits", "model": "hivit_atto", "workers": 0, "resume": "auto"}
AGAIN |= {"log_steps": 1, "look_every": 0}
TOLD: dict[str, Any] = {"data": "digits", "model": "hivit_atto", "workers": 0, "img_size": 32, "batch_size": 8}
TOLD |= {"steps": 6, "decoder_depth": 1, "decoder_dim": 32, "decoder_heads": 2, "look_every": 0, "log_steps": 1}
BEGUN: dict[str, dict[str, Any]] = {
    "schedule": {"lr": 0.01, "warmup": 0.02, "weight_decay": 0.3, "betas": (0.8, 0.9), "clip": 0.5, "opt": "sgd"},
    "images": {"seed": 5, "crop_scale": (0.5, 1), "mean": (0.4, 0.4, 0.4), "std": (0.3, 0.3, 0.3), "split": "test"},
    "model": {
        "mask_ratio": 0.5,
        "masks": "batch",
        "raw_pixels": True,
        "drop_path": 0.2,
        "model_kwargs": {"mlp_ratio": 3.0},
    },
    "paper": {"recipe": "paper", "epochs": 2, "warmup": 1, "blr": 0.01, "accumulate": 2, "amp": "bf16"},
}


@pytest.mark.parametrize("told", BEGUN.values(), ids=BEGUN)
def test_a_run_that_goes_on_needs_no_option_again(told: dict[str, Any], tmp_path: Path) -> None:
    told = TOLD | told
    pretrain.run(output=tmp_path / "whole", **told)
    pretrain.run(output=tmp_path / "halves", stop_after=3, **told)
    pretrain.run(output=tmp_path / "halves", **AGAIN)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "halves")) == 0
    whole, halves = (
        json.loads((tmp_path / run / "encoder" / "config.json").read_text()) for run in ("whole", "halves")
    )
    said = halves["hiermim_zoo"].pop("command")
    assert said == whole["hiermim_zoo"].pop("command").replace("whole", "halves"), "the card says how the run began"
    assert halves == whole


def test_what_is_told_otherwise_is_refused_all_at_once(tmp_path: Path) -> None:
    pretrain.run(output=tmp_path / "out", stop_after=2, **TOLD)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"--steps is 7, but .* started with 6; leave it out") as error:
        pretrain.run(output=tmp_path / "out", **AGAIN, steps=7, lr=0.5, seed=0, raw_pixels=True, clip=1)
    lines = str(error.value).splitlines()
    assert {line.split()[0] for line in lines} == {"--steps", "--lr", "--raw-pixels", "--clip"}, lines
    assert "started without it: leave it out" in next(line for line in lines if line.startswith("--clip"))
    assert sorted(tmp_path.rglob("*")) == before
    pretrain.run(output=tmp_path / "out", **AGAIN, steps=6, seed=0, raw_pixels=False)


@pytest.mark.parametrize("decoder", [{}, {"decoder": "fresh", "decoder_dim": 64}])
def test_a_run_goes_on_without_the_folder_that_it_started_from(tmp_path: Path, decoder: dict[str, Any]) -> None:
    """A fresh decoder of another width than the folder's is remembered, too."""
    start = pretrain.run(output=tmp_path / "start", **TOLD)
    told = TOLD | {"checkpoint": str(start), **decoder}
    pretrain.run(output=tmp_path / "whole", **told)
    pretrain.run(output=tmp_path / "halves", stop_after=3, **told)
    (tmp_path / "start").rename(tmp_path / "elsewhere")
    pretrain.run(output=tmp_path / "halves", **AGAIN)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "halves")) == 0
    configs = [json.loads((tmp_path / run / "encoder" / "config.json").read_text()) for run in ("whole", "halves")]
    assert configs[0]["pretrained_cfg"] == configs[1]["pretrained_cfg"]
    assert configs[0].get("model_args") == configs[1].get("model_args")
    with pytest.raises((ValueError, OSError), match="start"):  # a run that begins needs it
        pretrain.run(output=tmp_path / "new", **told)


def test_folders_name_the_recipe_of_their_training(tmp_path: Path) -> None:
    def said(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text())["hiermim_zoo"]
        return found

    encoder = pretrain.run(output=tmp_path / "a", recipe="paper", epochs=1, warmup=0, lr=1e-3, **TOLD)
    training = {"recipe": "paper", "steps": 6, "batch": 8, "lr": 1e-3}
    assert said(encoder)[TRAINING_KEY] == training
    row = "| training | `recipe paper, steps 6, batch 8, lr 0.001` |"
    assert row in (encoder / "README.md").read_text()
    convert.run(source=str(encoder), model="hivit_atto", output=tmp_path / "b")
    assert said(tmp_path / "b")[TRAINING_KEY] == training
    assert row in (tmp_path / "b" / "README.md").read_text()
    model = f"local-dir:{encoder}"
    tuned = {"method": "finetune", "img_size": 32, "epochs": 1, "warmup": 0, "batch_size": 256, "workers": 0}
    found = evaluate.run(data="digits", model=model, output=tmp_path / "c", lr=1e-3, **tuned)
    steps = found["settings"]["steps"]
    assert said(tmp_path / "c")[TRAINING_KEY] == {"recipe": "small", "steps": steps, "batch": 256, "lr": 1e-3}
    assert said(tmp_path / "c")["training before"] == training
    assert (
        f"| training | `recipe small, steps {steps}, batch 256, lr 0.001` |"
        in (tmp_path / "c" / "README.md").read_text()
    )


@pytest.mark.parametrize("training", [["small"], {"recipe": "`x`"}, {"steps": -1}, {"moon": 1}, {"lr": "high"}])
def test_what_is_no_training_is_refused(training: Any) -> None:
    with pytest.raises(ValueError, match=r"config.json: training is .*recipe, steps, batch, lr"):
        check_training(training, Path("config.json"))
    check_training({"recipe": "small", "steps": 6, "batch": 8, "lr": 0.1}, Path("config.json"))
    check_training({}, Path("config.json"))


def test_a_snapshot_says_how_its_run_began(tmp_path: Path) -> None:
    left = pretrain.run(output=tmp_path / "out", stop_after=1, **TOLD)
    command = snapshots.load(left)["command"]
    assert "--steps 6" in command
    assert "--stop-after" not in command
