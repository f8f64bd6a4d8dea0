"""Runs of clips: what an epoch is, what a log and a snapshot say of it, and runs that older versions began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hiermim_zoo import pretrain
from hiermim_zoo.commands.options.pretrain import PretrainOptions
from hiermim_zoo.data.batches import Batching
from hiermim_zoo.data.clips import Clips
from hiermim_zoo.data.decoding import Form
from hiermim_zoo.data.transforms import data_config
from hiermim_zoo.data.videos import VideoFolder
from hiermim_zoo.models.recipes import FineTuning
from hiermim_zoo.training import snapshots
from hiermim_zoo.training.distributed import World
from hiermim_zoo.training.finetuning import FineTune, TuningSettings
from hiermim_zoo.training.resuming import check_units
from hiermim_zoo.training.run_log import RunLog
from hiermim_zoo.training.snapshot_files import save_file
from hiermim_zoo.training.tasks import Goal

from .test_clips import Stripes, write_frames

TINY: dict[str, Any] = {
    "model": "hiera_atto_video",
    "model_kwargs": {"num_frames": 4, "embed_dim": 8, "depths": (1, 1, 1, 1)},
    "decoder_depth": 1,
    "decoder_dim": 32,
    "decoder_heads": 2,
    "mask_ratio": 0.5,
    "batch_size": 4,
    "repeat": 2,
    "lr": 2e-3,
    "look_every": 0,
    "log_steps": 1,
    "workers": 0,
    "device": "cpu",
}
PLAN = {"epochs": 6.0, "warmup": 2.0}  # of four videos, a step each


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four videos: an image on its four ways."""
    return f"moving:{write_frames(tmp_path_factory.mktemp('data') / 'images', 1, size=(32, 32))}"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    return pretrain.run(data=data, output=tmp_path_factory.mktemp("run") / "out", **TINY, **PLAN, frame_rate="native")


def test_an_epoch_shows_as_many_clips_as_there_are_videos(whole: Path) -> None:
    log = [json.loads(line) for line in (whole.parent / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"], line["samples"]) for line in log] == [(n, n, 4 * n) for n in range(1, 7)]
    assert [line["lr"] for line in log[:3]] == [0.0, 1e-3, 2e-3], "two epochs of warm-up"
    names = sorted(path.name.split("-")[1] for path in (whole.parent / "checkpoints").iterdir())
    assert names == ["00000004", "00000005", "00000006"], "a snapshot after every epoch, the last three stay"


def test_a_run_says_what_its_epochs_are(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.run(data=data, output=tmp_path / "out", **TINY, **PLAN, steps=1)
    said = capsys.readouterr().err
    assert "steps 0 to 1 of 1, 1 an epoch" in said
    assert "an epoch shows 4 clips; each time a video is opened it gives 2, so 2 epochs open every video once" in said
    with pytest.raises(ValueError, match=r"--epochs 0\.1 .* less than a batch of 4; --epochs 1 would work"):
        pretrain.run(data=data, output=tmp_path / "other", **TINY, epochs=0.1, warmup=0)


def begun_long_ago(data: str, output: Path) -> None:
    """Three steps, and their snapshot as the versions before wrote it: epochs that open every video, no rate."""
    snapshot = pretrain.run(data=data, output=output, **TINY, **PLAN, frame_rate="native", stop_after=3)
    state = snapshots.load(snapshot)
    options = state["options"]
    assert options.pop("frame_rate") == "native"
    options |= {name: options[name] / TINY["repeat"] for name in ("epochs", "warmup")}
    for path in snapshot.parent.iterdir():
        path.unlink()
    save_file(snapshot.parent, 3, state)


def test_a_run_of_an_older_version_goes_on_as_it_began(data: str, whole: Path, tmp_path: Path) -> None:
    begun_long_ago(data, tmp_path / "out")
    wanted = "--epochs 6 --warmup 2 --frame-rate native"
    for options in ({"epochs": 3.0, "warmup": 1.0}, {**PLAN, "frame_rate": 30}, {**PLAN, "epochs": 12.0}):
        with pytest.raises(
            ValueError, match=f"epochs opened every video once .* it goes on without .*, or with {wanted}$"
        ):
            pretrain.run(data=data, output=tmp_path / "out", **TINY, **options, resume="auto")
    later = pretrain.run(data=data, output=tmp_path / "out", model=TINY["model"], workers=0, resume="auto")
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(later).items())


def test_the_epochs_that_a_refusal_names_are_taken() -> None:
    """Though 0.7 * 3 is not 2.1."""
    began = {"epochs": 0.7, "warmup": 0.1, "repeat": 3}
    said: dict[str, Any] = {"data": "videos", "output": "out", "model": "hiera_atto_video", "repeat": 3}
    wrong = PretrainOptions(**said, epochs=0.7, warmup=0.1)
    with pytest.raises(ValueError, match=r"or with --epochs 2\.1 --warmup 0\.3 --frame-rate native$"):
        check_units(dict(began), wrong, Path("step"))
    right = PretrainOptions(**said, epochs=2.1, warmup=0.3, frame_rate="native")
    check_units(began, right, Path("step"))
    snapshots.check_options(began, {name: getattr(right, name) for name in began}, Path("step"))


def test_runs_of_images_have_the_units_that_they_had() -> None:
    began = {"epochs": 3.0, "warmup": 1.0, "repeat": 1}
    said: dict[str, Any] = {"data": "digits", "output": "out", "model": "hivit_atto"}
    check_units(began, PretrainOptions(**said, epochs=3.0, warmup=1.0, repeat=1), Path("step"))
    assert began == {"epochs": 3.0, "warmup": 1.0, "repeat": 1}


def test_a_run_goes_on_at_the_rate_that_it_began_with(data: str, tmp_path: Path) -> None:
    pretrain.run(data=data, output=tmp_path / "out", **TINY, **PLAN, stop_after=1)
    with pytest.raises(ValueError, match=r"--frame-rate is 25\.0, but .* started without it: leave it out"):
        pretrain.run(data=data, output=tmp_path / "out", **TINY, **PLAN, frame_rate=25, resume="auto")


# ---- fine-tuning


def test_epochs_of_fine_tuning_count_what_is_shown(tmp_path: Path) -> None:
    """Two videos of two clips fill a batch: an opening of both is a step, and two epochs."""
    for name in "ab":
        write_frames(tmp_path / "data" / name / "clip", 12)
    source = Clips(VideoFolder(str(tmp_path / "data"), "train", Form()), 4, 1, repeat=2)
    recipe = FineTuning(4, 1e-3, layer_decay=1.0, drop_path=0.0, batch=4, warmup=0, repeat=2)
    model = Stripes(2)
    world = World(0, 1, torch.device("cpu"))
    tuning = FineTune(model, source, Goal("classes", 2), data_config(model), recipe, TuningSettings(hflip=0.0), world)
    tuning.train(RunLog(tmp_path, 0, tuning.total, True))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert tuning.total == 2
    assert [(line["epoch"], line["samples"]) for line in log] == [(2, 4), (4, 8)], "epochs without a step have no line"


def test_a_run_of_less_than_a_step_is_refused() -> None:
    batching = Batching(2, 4, 1, 0, 1, 0, repeat=2)
    with pytest.raises(ValueError, match=r"--epochs 1 shows 2 samples 1 time, .*of 4; --epochs 2 would work"):
        batching.steps_of_run(1)
    assert batching.steps_of_run(2) == 1


@pytest.mark.parametrize("epochs", [1e308, 10**300])
def test_a_run_of_more_steps_than_can_be_counted_is_refused(epochs: float) -> None:
    with pytest.raises(ValueError, match=r"--epochs 1e\+30[08] is more than 1e\+15 steps; --epochs 100 would work"):
        Batching(1000, 64, 1, 0, 1, 0).steps_of_run(epochs)
