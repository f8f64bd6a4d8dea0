"""Runs that learned nothing, or little, say so at their end; others do not."""

from __future__ import annotations

import json
import math
import random
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hiermim_zoo import evaluate, extract, features, pretrain, reconstruct
from hiermim_zoo.commands.evaluating import advice_for
from hiermim_zoo.training.endings import (
    CHANCES,
    FEW_MEASURED,
    FEWEST,
    Chance,
    about_groups,
    about_model,
    about_score,
    about_steps,
    about_trained,
    about_training,
    chance_of,
    fell,
)
from hiermim_zoo.training.probe import interval

IMAGE = Path(__file__).parent.parent / "examples" / "pictures" / "horse" / "0013.jpg"
SMALL = shlex.split(
    "digits --model hivit_atto --img-size 32 --decoder-depth 1 --decoder-dim 32 --decoder-heads 2 --batch-size 8 "
    "--workers 0 --device cpu --look-every 0"
)


# ---- what is said


def wandering(seed: int, count: int, fall: float = 0.0, noise: float = 0.01) -> list[float]:
    numbers = random.Random(seed)
    return [1 - fall * n / count + numbers.gauss(0, noise) for n in range(count)]


@pytest.mark.parametrize("count", [8, 20, 300])
def test_a_loss_that_only_wanders_did_not_fall(count: int) -> None:
    found = [fell(wandering(seed, count)) for seed in range(200)]
    assert found.count(True) < 20  # of 200, by chance
    assert all(fell(wandering(seed, count, fall=0.3)) for seed in range(200))
    assert not any(fell(wandering(seed, count, fall=-0.3)) for seed in range(200))


@pytest.mark.parametrize("losses", [[1.1 * 0.8**n + 0.4 for n in range(count)] for count in (2, 3, 7, 8, 9, 40, 400)])
def test_a_loss_that_decays_fell(losses: list[float]) -> None:
    assert fell(losses)
    assert fell(losses[::-1]) is False


def test_a_long_plateau_after_a_fall_is_a_fall() -> None:
    assert fell([1.1, *wandering(0, 500)[1:]]) is True
    assert fell([1.0] * 10) is False


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, math.nan]])
def test_of_too_few_losses_nothing_is_said(losses: list[float]) -> None:
    assert fell(losses) is None
    assert about_training(FEWEST, FEWEST, 0, False, losses) == []


def test_a_good_training_says_nothing_and_a_bad_one_all() -> None:
    good = [1.0, 0.9, 0.8]
    assert about_training(FEWEST, FEWEST, 10, False, good) == []
    few, rising, flat = about_training(FEWEST - 1, FEWEST - 1, 400, True, [1.0, 1.0], "more --steps")
    assert "199 times" in few
    assert "after 199 of 400 steps of warm-up" in rising
    assert "the loss did not fall: it was 1 at first and 1 in the mean of the last quarter" in flat
    [wanders] = about_training(FEWEST, FEWEST, 0, False, [1.026, *[1.03, 1.02] * 4, 1.024])
    assert "did not fall by more than it varies: it was 1.026 at first and 1.022 in the mean of the last" in wanders
    assert all("more --steps" in line for line in (few, rising, flat))


def test_a_run_at_no_rate_says_that_nothing_could_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.main([*SMALL, "-o", str(tmp_path / "out"), "--epochs", "1", "--warmup", "0", "--steps", "1", "--lr", "0"])
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "the learning rate was 0, so nothing could change" in warnings[0]


def test_chance_is_the_most_frequent_class_or_a_lot() -> None:
    assert chance_of([0, 2, 2, 1], 3) == Chance(0.5, "always the most frequent class, 2")
    assert chance_of([0, 2, 2, 1], 3, ["a", "b", "c"]).words == "always the most frequent class, c"
    assert chance_of(None, 4) == Chance(0.25, "1 of 4 classes, drawn by lot")
    assert chance_of([], 4).share == 0.25


@pytest.mark.parametrize("total", [10, 100, 10000])
def test_a_score_is_chance_if_its_interval_says_so(total: int) -> None:
    chance = Chance(0.3, "always cats")
    for right in range(0, total + 1, max(1, total // 100)):
        low, high = interval(right, total)
        lines = about_score("few", (100 * low, 100 * high), chance, total, ["sleep"])
        assert bool(lines) == (low <= 0.3), right
        for line in lines:  # what is clearly worse than chance is so of few images, too
            assert ("measure on 100 or more" in line) == (total < FEW_MEASURED and high >= 0.3), line
    [line] = about_score("30 % right", (20.8, 40.3), chance, FEW_MEASURED, ["sleep", "eat"])
    assert line == "30 % right is no better than chance, 30 % (always cats); try sleep, or eat"
    [line] = about_score("30 % right", (10.8, 60.3), chance, 1, ["sleep"])
    assert "cannot be told from chance, 30 % (always cats), because only 1 image was measured; measure on" in line


def test_few_images_to_train_on_are_named() -> None:
    [line] = about_trained(32, 10, "classes")
    assert line.startswith(
        "trained on 32 images for 10 classes, which is little to learn from; try 10 or more for each"
    )
    assert "on 1 image for 1 tag," in about_trained(1, 1, "tags")[0]
    assert about_trained(100, 10, "classes") == about_trained(None, 10, "classes") == []


def test_advice_fits_the_method_and_the_model() -> None:
    def advice(method: str, kind: str = "classes", taught: bool = True) -> str:
        options = evaluate.VERB.options(data="x", model="hivit_atto", method=method)
        return ", ".join(advice_for(options, kind, taught))

    assert "--epochs" in advice("finetune")
    assert "--method finetune" not in advice("finetune")
    assert "--epochs" not in advice("knn") + advice("linear") + advice("classify")
    assert "trained longer" in advice("knn")
    assert "trained longer" not in advice("knn", taught=False)
    assert "in this order" in advice("classify")
    assert "order" not in advice("classify", "values")


def test_steps_that_were_left_out_are_the_cause_that_is_named() -> None:
    [line] = about_training(FEWEST, FEWEST - 1, 0, False, [])
    assert "in 200 steps, because in the others loss or gradients were not finite; try a lower --lr" in line
    assert "--batch-size" not in about_training(2, 2, 0, False, [], "more --steps")[0]
    assert "or a smaller --batch-size" in about_training(2, 2, 0, False, [])[0]


def test_few_groups_have_intervals_that_mean_little() -> None:
    [line] = about_groups(1)
    assert line == "intervals of 1 group mean little, for they say how much groups differ; measure on 10 or more"
    assert "of 9 groups mean" in about_groups(9)[0]
    assert about_groups(10) == about_groups(0) == []


def test_other_labels_have_a_chance_of_their_own() -> None:
    for chance, low in ((CHANCES["tags"], 0.5), (CHANCES["values"], 0.0)):
        assert about_score("a score", (low, 0.9), chance, 9, ["sleep"])
        assert not about_score("a score", (low + 1e-3, 0.9), chance, 9, ["sleep"])


# ---- who was never trained


def test_models_that_were_never_trained_are_known(tmp_path: Path) -> None:
    assert about_model("hivit_atto") == []
    assert "its weights are random" in about_model("hivit_atto", False)[0]
    assert "no pretrained weights" in about_model("hivit_tiny")[0]
    assert "try --model local-dir" in about_model("hivit_tiny", False)[0]  # there are none to leave the option out for
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "hivit_atto", "hiermim_zoo": {"step": 0}}))
    assert "0 steps" in about_model(f"local-dir:{tmp_path}")[0]
    assert about_steps("it", {"step": 3}) == []
    assert about_steps("it", {}) == [], "a folder of others says nothing"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, its encoder, and one that claims to have taken no step."""
    out = tmp_path_factory.mktemp("runs") / "out"
    pretrain.main([*SMALL, "-o", str(out), "--steps", "2", "--epochs", "1", "--warmup", "0.5", "--log-steps", "1"])
    shutil.copytree(out / "encoder", out / "untaught")
    file = out / "untaught" / "config.json"
    config = json.loads(file.read_text())
    config["hiermim_zoo"]["step"] = 0
    file.write_text(json.dumps(config))
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(out / "image.png")
    return out


def test_a_run_notes_what_it_says(trained: Path) -> None:
    lines = json.loads((trained / "encoder" / "config.json").read_text())["hiermim_zoo"]["warnings"]
    assert any("changed 2 times" in line and "more --steps" in line for line in lines)
    assert any("after 2 of 94 steps of warm-up" in line for line in lines)
    assert all(line in (trained / "encoder" / "README.md").read_text() for line in lines)


@pytest.mark.parametrize("folder", ["encoder", "untaught"])
def test_commands_say_once_that_a_model_was_never_trained(
    trained: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, image = f"local-dir:{trained / folder}", str(trained / "image.png")
    small = ["--img-size", "32", "--workers", "0", "--device", "cpu"]
    expected = 1 if folder == "untaught" else 0
    capsys.readouterr()
    extract.main([image, "--model", model, "-o", str(tmp_path / "a.safetensors"), *small])
    assert capsys.readouterr().err.count("was never trained (its folder") == expected
    checkpoint = ["--checkpoint", str(trained / folder)]
    reconstruct.main([image, "--model", "hivit_atto", *checkpoint, "-o", str(tmp_path / "a.png")])
    assert capsys.readouterr().err.count("was never trained (its folder") == expected
    evaluate.main(["digits", "--model", model, "--method", "knn", *small])
    said = capsys.readouterr()
    assert said.err.count("was never trained (its folder") == expected
    for_people, last = said.out.splitlines()[-2:]
    result = json.loads(last)
    assert len(result["warnings"]) == expected
    assert f"top-1 {result['top1']:.2f} % of 300 images" in for_people


def test_random_weights_are_named_where_they_are_asked_for(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(trained / "image.png")
    extract.main([image, "--model", "hivit_atto", "--no-pretrained", "-o", str(tmp_path / "a.safetensors")])
    said = "its weights are random): what it gives means little; try without --no-pretrained, or with --model local-dir"
    assert said in capsys.readouterr().err
    reconstruct.main([image, "--model", "hivit_atto", "-o", str(tmp_path / "a.png")])
    assert "its weights are random): what it gives means little; try --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [extract, features, evaluate])
@pytest.mark.parametrize("model", ["hivit_tiny", "vit_base_patch16_gap_224"])
def test_models_without_weights_are_refused_by_the_option_that_helps(
    verb: Any, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = ["-o", str(tmp_path / "a.png")] if verb is features else ["-o", str(tmp_path / "a.npz")]
    argv = ["digits", "--method", "knn"] if verb is evaluate else [str(IMAGE), *end]
    with pytest.raises(ValueError, match=f"--model {model}: no pretrained weights .* or add --no-pretrained"):
        verb.main([*argv, "--model", model])


# ---- evaluation at chance


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose classes cannot be told, two thirds of them of one class."""
    folder = tmp_path_factory.mktemp("noise")
    numbers = np.random.default_rng(0)
    for split in ("train", "val"):
        for n in range(30):
            place = folder / split / ("few" if n % 3 == 0 else "many")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{n}.png")
    return folder


def test_a_fine_tuning_that_ends_at_chance_says_so(noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"epochs": 2, "warmup": 0, "batch_size": 10, "auto_augment": "none", "lr": 1e-9}
    common: dict[str, Any] = {"data": str(noise), "model": "hivit_atto", "img_size": 32, "workers": 0, "device": "cpu"}
    result = evaluate.run(**common, method="finetune", pretrained=False, **options)
    scratch, chance, *_, few = (line for line in result["warnings"] if "loss did not fall" not in line)
    assert "this measures training from scratch" in scratch
    assert "cannot be told from chance, 66.67 % (always the most frequent class, many), because only 30" in chance
    assert "changed 6 times" in few
    err = capsys.readouterr().err
    assert all(err.count(f"warning: {line}\n") == 1 for line in result["warnings"])
    assert any("cannot be told from chance" in line for line in evaluate.run(**common, method="knn")["warnings"])


def test_a_method_that_tells_digits_apart_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    """The negative control."""
    result = evaluate.run(data="digits", model="hivit_atto", method="knn", img_size=32, workers=0, device="cpu")
    assert result["warnings"] == []
    assert "warning" not in capsys.readouterr().err
