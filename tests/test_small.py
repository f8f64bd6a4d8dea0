"""The small recipe: what it chooses, that options win, that a run goes on as it began, and what it says."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hiermim_zoo import evaluate, pretrain
from hiermim_zoo.mae import create_mae
from hiermim_zoo.progress import duration
from hiermim_zoo.training import beginning, memory, run_log, small, snapshots
from hiermim_zoo.training.finetuning import recipe_for
from hiermim_zoo.training.run_log import Forecast
from hiermim_zoo.training.small import FEW, PRETRAINING, TUNING, Size, recipe_of_size, small_tuning

from .runs import largest_difference, weights

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = Path(__file__).parents[1] / "examples" / "pictures"
MODEL: dict[str, Any] = {"model": "hivit_atto", "workers": 0}
RULES = {"pretraining": PRETRAINING, "tuning": TUNING}


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules ask for few steps."""
    monkeypatch.setattr(small, "PRETRAINING", replace(PRETRAINING, steps=6, pace=0))
    monkeypatch.setattr(small, "TUNING", replace(TUNING, steps=6, pace=0))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Fifteen images in two classes."""
    files = sorted(IMAGES.rglob("*.jpg"))[:15]
    for n, file in enumerate(files):
        copy = tmp_path / "photos" / "ab"[n % 2] / f"{n}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    assert len(files) == 15
    return tmp_path / "photos"


def explained(**options: Any) -> dict[str, tuple[str, str]]:
    found = pretrain.run(**{**MODEL, "explain": True, **options})
    return {line["name"]: (line["value"], line["origin"]) for line in found}


# ---- the rule


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("parts", [1, 3, 8])
def test_a_batch_fits_the_data_and_can_be_divided(rule: small.Rule, parts: int) -> None:
    batches = [rule.batch_for(count, parts) for count in range(parts, 100_000, 97)]
    assert all(batch % parts == 0 for batch in batches)
    assert all(batch <= count for batch, count in zip(batches, range(parts, 100_000, 97), strict=True))
    assert batches == sorted(batches), "more images never make a smaller batch"
    assert max(batches) <= rule.batches[1]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_no_run_is_too_short_to_learn(rule: small.Rule) -> None:
    for count in (1, 2, 40, 200, 5_000, 99_999):
        steps = rule.steps_for(count)
        assert steps >= 200, "below which a run warns that it learned little"
        assert rule.warmup * steps >= 10
    assert rule.rate_for(256) == rule.rate
    assert rule.rate_for(64) == pytest.approx(rule.rate / 2)


@pytest.mark.parametrize(
    ("said", "count", "device", "followed"),
    [
        ("auto", 200, "cuda", "small"),
        ("auto", FEW - 1, "cuda", "small"),
        ("auto", FEW, "cuda", "paper"),
        ("auto", FEW, "cpu", "small"),
        ("paper", 200, "cpu", "paper"),
        ("small", 10**7, "cuda", "small"),
    ],
)
def test_few_images_or_a_cpu_make_a_run_small(said: str, count: int, device: str, followed: str) -> None:
    assert recipe_of_size(said, count, device) == followed


def test_fine_tuning_keeps_what_the_rule_does_not_name() -> None:
    row = recipe_for("green_swin_atto")
    found = small_tuning(row, Size(500, 1, 1), None, None)
    kept = ("layer_decay", "weight_decay", "betas", "schedule", "clip", "smoothing", "head_std")
    assert [getattr(found, name) for name in kept] == [getattr(row, name) for name in kept]
    by_hand = small_tuning(row, Size(500, 1, 1), 50, 7)
    assert (by_hand.batch, by_hand.epochs) == (50, 7)
    assert by_hand.warmup == pytest.approx(0.7)
    assert by_hand.blr * 50 / 256 == pytest.approx(TUNING.rate_for(50))


# ---- options win, and paper is the paper


def test_options_by_hand_win(photos: Path, tmp_path: Path) -> None:
    by_hand = {"batch_size": 5, "epochs": 30, "warmup": 4, "lr": 0.01, "accumulate": 5, "decoder_dim": 64}
    by_hand |= {"decoder_depth": 3, "decoder_heads": 4}
    found = explained(data=photos, output=tmp_path / "out", **by_hand)
    assert found["recipe"][0] == "small"
    for name, value in by_hand.items():
        assert found[name] == (f"{value:g}", f"option --{name.replace('_', '-')}"), name
    assert found["steps"][0] == "90"


def test_steps_by_hand_are_the_length_of_the_run(photos: Path, tmp_path: Path) -> None:
    """More than the rule's or less; the warm-up is a share of them."""
    for steps in (10, 5000):
        found = explained(data=photos, output=tmp_path / "out", steps=steps)
        assert found["steps"][0] == str(steps)
        assert found["epochs"][1] == "option --steps"
        assert float(found["warmup"][0]) == pytest.approx(steps / 10)
    assert explained(data=photos, output=tmp_path / "out", blr=1e-3, batch_size=15)["lr"][0] == f"{1e-3 * 15 / 256:g}"


@pytest.mark.parametrize("model", ["hivit_base", "hiera_base", "green_swin_base", "vit_base_patch16_224"])
def test_paper_is_exactly_the_paper(photos: Path, tmp_path: Path, model: str) -> None:
    options = {"data": photos, "model": model, "output": tmp_path / "out", "explain": True}
    assert not [line["name"] for line in pretrain.run(**options, recipe="paper") if line["instead"]]
    assert [line["name"] for line in pretrain.run(**options) if line["instead"]], "auto is not"
    del options["output"]
    lines = evaluate.run(**options, method="finetune", recipe="paper")
    assert not [line["name"] for line in lines if line["instead"]]


def test_a_wide_encoder_keeps_the_papers_decoder(photos: Path, tmp_path: Path) -> None:
    found = explained(data=photos, output=tmp_path / "out", model="hivit_base")
    assert found["decoder_dim"] == ("512", "recipe")
    assert explained(data=photos, output=tmp_path / "out")["decoder_dim"] == ("96", "recipe small")
    some = explained(data=photos, output=tmp_path / "out", decoder_heads=7)
    assert [some[f"decoder_{name}"][0] for name in ("depth", "dim", "heads")] == ["2", "112", "7"], (
        "the rest is the rule's"
    )


# ---- first runs


@pytest.mark.parametrize("count", [1, 2, 15])
@pytest.mark.usefixtures("brief")
def test_a_first_run_needs_no_options(photos: Path, tmp_path: Path, count: int) -> None:
    files = sorted(photos.rglob("*.jpg"))[:count]
    for file in files:
        (tmp_path / "some").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "some")
    encoder = pretrain.run(data=tmp_path / "some", output=tmp_path / "run", **MODEL)
    log = run_log.read_log(tmp_path / "run")
    assert log[-1]["step"] == 6
    assert math.isfinite(log[-1]["loss"])
    assert (encoder / "model.safetensors").is_file()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3
    assert len(list((tmp_path / "run" / "looks").iterdir())) == 1, "not one after each step"


@pytest.mark.usefixtures("brief")
def test_what_was_trained_is_measured_without_options(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"local-dir:{pretrain.run(data=photos, output=tmp_path / 'run', **MODEL)}"
    for method in ("knn", "finetune"):
        capsys.readouterr()
        found = evaluate.run(data=photos, model=model, method=method, workers=0)
        assert (found["pictures"], found["split_fraction"]) == (3, 0.2)
        said = capsys.readouterr().err
        assert "has one split: 20% of its images are measured on" in said
        assert ("recipe small, for 12 images on cpu: 6 steps" in said) == (method == "finetune")
    assert found["settings"]["recipe"] == "small"
    assert found["settings"]["steps"] == 6
    found = evaluate.run(data=photos, model=model, method="knn", workers=0, split_fraction=0.4)
    assert (found["pictures"], found["split_fraction"]) == (6, 0.4)


@pytest.mark.parametrize("name", ["val", "train", "test"])
def test_one_of_two_splits_is_not_cut(photos: Path, tmp_path: Path, name: str) -> None:
    """Whoever forgets --train beside a folder of a split means the other split."""
    photos.rename(tmp_path / name)
    options = {"data": tmp_path / name, "model": "hivit_atto", "method": "knn", "workers": 0}
    with pytest.raises(ValueError, match="--train DATA is needed"):
        evaluate.run(**options)
    assert evaluate.run(**options, split_fraction=0.2)["pictures"] == 3


# ---- what is said


def test_two_lines_say_what_was_chosen_and_how_long_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.run(data="digits", output=tmp_path / "run", img_size=32, steps=30, batch_size=4, look_every=0, **MODEL)
    lines = capsys.readouterr().err.splitlines()
    [chosen] = [line for line in lines if line.startswith("recipe small, for 1497 images on cpu: 30 steps")]
    assert "batches of 4, learning rate 0.00025 after 3 steps of warm-up, decoder of 2 blocks and 96 channels" in chosen
    [told] = [line for line in lines if line.startswith("the run takes about")]
    assert "in steps 4 to 13" in told


def test_a_forecast_is_told_once_and_leaves_out_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: clock)
    forecast, told = Forecast(100, 1100), {}
    for step in range(101, 1101):
        clock += 50.0 if step < 104 else 0.9 if step % 2 else 0.5 if step == 110 else 0.9
        if line := forecast.after(step):
            told[step] = line
    assert list(told) == [113]
    assert "about 15 min, 0.9 s a step in steps 104 to 113" in told[113]
    short = Forecast(0, 20)
    assert not any(short.after(step) for step in range(1, 21))


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (130, "2 min"), (7300, "2 hours"), (4e5, "5 days")]
)
def test_times_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# ---- going on


@pytest.mark.usefixtures("brief")
def test_a_run_goes_on_as_it_began(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, though the rule has changed since, and memory has become scarce."""
    whole = tmp_path / "whole"
    pretrain.run(data=photos, output=whole, **MODEL)
    pretrain.run(data=photos, output=tmp_path / "halves", stop_after=3, **MODEL)
    monkeypatch.setattr(small, "PRETRAINING", replace(PRETRAINING, steps=9, pace=50, rate=1.0, batches=(2, 2)))
    monkeypatch.setattr(beginning, "free_bytes", lambda device: 0)
    with pytest.raises(ValueError, match=r"--recipe is paper, but the run of .* was started with small"):
        pretrain.run(data=photos, output=tmp_path / "halves", resume="auto", recipe="paper", **MODEL)
    with pytest.raises(ValueError, match=r"--lr is 0.5, but the run of .* was started with"):
        pretrain.run(data=photos, output=tmp_path / "halves", resume="auto", lr=0.5, **MODEL)
    pretrain.run(data=photos, output=tmp_path / "halves", resume="auto", **MODEL)
    assert largest_difference(weights(whole), weights(tmp_path / "halves")) == 0


@pytest.mark.usefixtures("brief")
def test_a_run_of_the_paper_goes_on_with_what_it_was_told(photos: Path, tmp_path: Path) -> None:
    """Though it is only told the recipe again."""
    told: dict[str, Any] = {"batch_size": 5, "epochs": 2, "warmup": 0, "lr": 1e-3, "recipe": "paper"}
    told |= {"decoder_depth": 1, "decoder_dim": 32, "decoder_heads": 2}  # the paper's takes long
    pretrain.run(data=photos, output=tmp_path / "whole", **told, **MODEL)
    pretrain.run(data=photos, output=tmp_path / "halves", stop_after=3, **told, **MODEL)
    pretrain.run(data=photos, output=tmp_path / "halves", resume="auto", recipe="paper", **MODEL)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "halves")) == 0


@pytest.mark.usefixtures("brief")
def test_a_fresh_decoder_follows_the_rule(photos: Path, tmp_path: Path) -> None:
    two: dict[str, Any] = {**MODEL, "steps": 2}
    start = pretrain.run(data=photos, output=tmp_path / "start", decoder_dim=128, mask_ratio=0.5, **two)
    more: dict[str, Any] = {"data": photos, "checkpoint": str(start)}
    found = explained(output=tmp_path / "out", **more)
    assert (found["decoder_dim"], found["mask_ratio"]) == (("128", "checkpoint"), ("0.5", "checkpoint"))
    assert explained(output=tmp_path / "out", decoder="fresh", **more)["decoder_dim"] == ("96", "recipe small")
    encoder = pretrain.run(output=tmp_path / "out", decoder="fresh", **more, **two)
    assert create_mae("hivit_atto", checkpoint=encoder).recipe.dim == 96
    deep = pretrain.run(data=photos, output=tmp_path / "deep", decoder_dim=128, decoder_depth=3, **two)
    more |= {"checkpoint": str(deep), "decoder": "fresh", "decoder_dim": 128}
    encoder = pretrain.run(output=tmp_path / "same", **more, **two)
    assert create_mae("hivit_atto", checkpoint=encoder).recipe.depth == 2, "as it says, though the width is the same"


# ---- memory


def test_passes_divide_a_step_as_memory_asks() -> None:
    assert memory.passes_for(64, 1, 10, 10_000) == 1
    assert memory.passes_for(64, 1, 10, 1000) == 2
    assert memory.passes_for(64, 1, 10, 0) == 64, "as many as there can be"
    assert memory.passes_for(60, 4, 10, 300) == 5, "passes of whole videos"
    assert memory.passes_for(7, 1, 10, 100) == 7, "a prime"


@pytest.mark.usefixtures("brief")
def test_scarce_memory_makes_passes_and_no_other_result(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.run(data=photos, output=tmp_path / "plenty", **MODEL)
    mae = create_mae("hivit_atto", recipe={"depth": 2, "dim": 96, "heads": 3})
    learned = 16 * sum(parameter.numel() for parameter in mae.parameters())
    room = learned + int(2 * 5 * memory.kept_bytes(mae, "none") / memory.SHARE / 2)
    monkeypatch.setattr(beginning, "free_bytes", lambda device: room)
    pretrain.run(data=photos, output=tmp_path / "scarce", **MODEL)
    assert "batches of 15 in 3 passes" in capsys.readouterr().err
    assert 0 < largest_difference(weights(tmp_path / "plenty"), weights(tmp_path / "scarce")) < 1e-3
    state = snapshots.load(snapshots.found(tmp_path / "scarce" / "checkpoints")[-1])
    assert state["micro_batches"] == 3


def test_what_is_kept_is_counted_without_a_trace() -> None:
    mae = create_mae("green_swin_atto", recipe={"depth": 1, "dim": 32, "heads": 2})
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert memory.kept_bytes(mae, "none") > memory.kept_bytes(mae, "bf16") > 0
    assert torch.equal(state, torch.get_rng_state())
    assert mae.training
    assert all(parameter.grad is None for parameter in mae.parameters())


def test_a_container_may_have_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    alone = memory.free_bytes(device)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert memory.free_bytes(device) == 600 < alone
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(device) > 600
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.free_bytes(device) <= alone * 0.6


def test_the_card_says_what_was_chosen(photos: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("brief")
    encoder = pretrain.run(data=photos, output=tmp_path / "run", **MODEL)
    config = json.loads((encoder / "config.json").read_text())["hiermim_zoo"]
    assert {"depth": 2, "dim": 96, "heads": 3}.items() <= config["recipe"].items()
