"""Scores of classes, tags and values agree with hand-made cases and scikit-learn, and their intervals cover."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hiermim_zoo.training import scores
from hiermim_zoo.training.probe import interval
from hiermim_zoo.training.scores import Resampling, class_draws, draws_for, ranking_draws, scored, value_draws

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with the extra probe")

NAN = float("nan")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(n: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))


def logits(truth: Tensor, classes: int, strength: float, seed: int = 1) -> Tensor:
    """Random, but higher at the true class."""
    return random(len(truth), classes, seed=seed) + strength * torch.nn.functional.one_hot(truth, classes)


def draw(n: int, seed: int) -> np.ndarray:
    """Weights [N, 1] of one draw."""
    picked = np.random.default_rng(seed).integers(0, n, n)
    return np.bincount(picked, minlength=n).astype(np.float32)[:, None]


# ---- by hand


def test_classes_by_hand() -> None:
    truth = torch.tensor([0, 0, 0, 1])  # class 2 occurs nowhere
    outputs = torch.eye(3)[[0, 0, 1, 1]]
    found = scored("classes", outputs, truth, ["a", "b", "c"])
    assert found["top1"] == 75
    assert found["balanced"] == round(100 * (2 / 3 + 1) / 2, 4)
    assert found["f1"] == round(100 * (0.8 + 2 / 3) / 2, 4)
    assert found["top1_interval"] == [round(100 * end, 4) for end in interval(3, 4)], "as evaluate has it"
    assert found["left_out"] == []


def test_tags_by_hand() -> None:
    """Ranked yes, no, yes, no: precision 1 at the first, 2/3 at the second; 3 of 4 pairs in order."""
    truth = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, NAN], [0.0, 1.0], [NAN, 1.0]])
    outputs = torch.tensor([4.0, 3.0, 2.0, 1.0, 9.0])[:, None].expand(5, 2)
    found = scored("tags", outputs, truth, ["seen", "always"])
    assert found["map"] == found["per_tag"]["seen"]["ap"] == round(5 / 6, 6)
    assert found["auc"] == found["per_tag"]["seen"]["auc"] == 0.75
    assert (found["per_tag"]["seen"]["yes"], found["per_tag"]["seen"]["no"]) == (2, 2)
    assert found["per_tag"]["always"] == {
        "ap": None, "ap_interval": None, "auc": None, "auc_interval": None, "yes": 4, "no": 0,
    }  # fmt: skip
    assert found["left_out"] == ["always: every image has this tag"]


def test_values_by_hand() -> None:
    truth = torch.tensor([[0.0, 5.0, NAN], [2.0, 5.0, NAN], [4.0, NAN, NAN]])
    outputs = torch.tensor([[1.0, 6.0, 0.0], [2.0, 7.0, 0.0], [4.0, 0.0, 0.0]])
    found = scored("values", outputs, truth, ["age", "weight", "height"])
    age, weight, height = (found["per_value"][name] for name in ("age", "weight", "height"))
    assert (age["mae"], age["rmse"], age["r2"]) == (0.333333, 0.57735, 0.875)
    assert (weight["mae"], weight["rmse"], weight["r2"]) == (1.5, 1.58114, None)
    assert set(height.values()) == {None}
    assert (found["mae"], found["r2"]) == (0.916667, 0.875), "means over the values that have one"
    assert found["left_out"] == ["weight: no r2, as all images have the same", "height: it is known of no image"]


def test_nothing_can_be_computed() -> None:
    found = scored("tags", random(4, 2), torch.full((4, 2), NAN), ["a", "b"])
    assert found["map"] is found["map_interval"] is found["auc"] is None
    assert found["left_out"] == ["a: no image has this tag", "b: no image has this tag"]


# ---- scikit-learn


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_classes_are_those_of_scikit_learn(classes: int) -> None:
    truth = labels(200, classes)
    outputs = logits(truth, classes, 1.5)
    found, guess = scored("classes", outputs, truth, list("x" * classes)), outputs.argmax(1)
    expected = {
        "top1": metrics.accuracy_score(truth, guess),
        "balanced": metrics.balanced_accuracy_score(truth, guess),
        "f1": metrics.f1_score(truth, guess, average="macro"),
    }
    assert {name: found[name] for name in expected} == {
        n: pytest.approx(100 * e, abs=1e-4) for n, e in expected.items()
    }
    shuffled = scored("classes", outputs[torch.randperm(200)], truth, list("x" * classes))
    assert all(shuffled[f"{name}_interval"][1] < found[f"{name}_interval"][0] for name in expected)


@pytest.mark.parametrize("decimals", [7, 0])
def test_a_draw_of_tags_is_scikit_learn_with_weights(decimals: int) -> None:
    """Also where many images have the same score."""
    truth = (random(150, 1) > 0.5).float()
    truth[::7] = NAN
    score = (random(150, 1, seed=1) + truth.nan_to_num()).round(decimals=decimals)
    found = scored("tags", score, truth, ["a"])
    known = ~truth[:, 0].isnan()
    y, x = truth[known, 0].numpy(), score[known, 0].numpy()
    assert found["map"] == pytest.approx(metrics.average_precision_score(y, x), abs=1e-6)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(y, x), abs=1e-6)
    for seed in range(5):
        weights = draw(150, seed)
        w = weights[known.numpy(), 0]
        ap, auc = ranking_draws(weights, score[:, 0].double().numpy(), truth[:, 0].numpy())
        assert ap[0] == pytest.approx(metrics.average_precision_score(y, x, sample_weight=w), abs=1e-5)
        assert auc[0] == pytest.approx(metrics.roc_auc_score(y, x, sample_weight=w), abs=1e-5)
    shuffled = scored("tags", score[torch.randperm(150)], truth, ["a"])
    assert shuffled["auc_interval"][1] < found["auc"], "negative control"


def test_a_draw_of_classes_is_scikit_learn_with_weights() -> None:
    truth = labels(60, 9)
    guess = logits(truth, 9, 1.0).argmax(1)
    for seed in range(5):
        weights = draw(60, seed)
        w = weights[:, 0]
        drawn = class_draws(weights, guess.numpy(), truth.numpy(), 9)
        there = np.unique(truth[w > 0])
        expected = metrics.recall_score(truth, guess, labels=there, average="macro", sample_weight=w)
        assert drawn["balanced"][0] == pytest.approx(expected, abs=1e-5)
        either = np.unique(np.concatenate([truth[w > 0], guess[w > 0]]))
        expected = metrics.f1_score(truth, guess, labels=either, average="macro", sample_weight=w)
        assert drawn["f1"][0] == pytest.approx(expected, abs=1e-5)


def test_values_and_a_draw_of_them_are_scikit_learn() -> None:
    truth = 1e4 + random(80, 3) * torch.tensor([1.0, 10.0, 0.1])
    outputs = truth + random(80, 3, seed=1) * 0.3
    truth[::5, 1] = NAN
    found = scored("values", outputs, truth, ["a", "b", "c"])
    weights = draw(80, 0)
    drawn = value_draws(weights, outputs.double().numpy(), truth.double().numpy())
    for t, name in enumerate("abc"):
        known = ~truth[:, t].isnan()
        y, x, w = truth[known, t].double(), outputs[known, t].double(), weights[known.numpy(), 0]
        expected: dict[str, Any] = {
            "mae": metrics.mean_absolute_error, "rmse": metrics.root_mean_squared_error, "r2": metrics.r2_score,
        }  # fmt: skip
        for number, function in expected.items():
            assert found["per_value"][name][number] == pytest.approx(function(y, x), rel=1e-5)
            assert drawn[number][0, t] == pytest.approx(function(y, x, sample_weight=w), rel=1e-6)
    shuffled = scored("values", outputs[torch.randperm(80)], truth, ["a", "b", "c"])
    assert shuffled["mae_interval"][0] > found["mae_interval"][1], "negative control"


# ---- intervals


@pytest.mark.parametrize("kind", ["classes", "tags", "values"])
def test_intervals_hold_their_number_and_are_the_same_again(kind: str) -> None:
    truth = {"classes": labels(90, 3), "tags": (random(90, 3) > 0).float(), "values": random(90, 3)}[kind]
    outputs = logits(truth, 3, 1.0) if kind == "classes" else truth + random(90, 3, seed=1)
    before = torch.random.get_rng_state()
    found = scored(kind, outputs, truth, ["a", "b", "c"])
    assert torch.equal(before, torch.random.get_rng_state())
    assert found == scored(kind, outputs, truth, ["a", "b", "c"]) == json.loads(json.dumps(found))
    assert found["draws"] == 1000
    parts = [found, *found.get("per_tag", {}).values(), *found.get("per_value", {}).values()]
    numbers = [(part[name], part[f"{name}_interval"]) for part in parts for name in part if f"{name}_interval" in part]
    assert len(numbers) == {"classes": 3, "tags": 2 + 6, "values": 3 + 9}[kind]
    assert all(low < number < high for number, (low, high) in numbers)


@pytest.mark.parametrize("kind", ["classes", "tags", "values"])
def test_four_times_the_images_halve_an_interval(kind: str) -> None:
    def width(n: int) -> float:
        truth = {"classes": labels(n, 3), "tags": (random(n, 2) > 0).float(), "values": random(n, 2)}[kind]
        outputs = logits(truth, 3, 1.0) if kind == "classes" else truth + random(n, 2, seed=1)
        found = scored(kind, outputs, truth, ["a", "b", "c"][: outputs.shape[1]])
        low, high = found[{"classes": "f1", "tags": "map", "values": "mae"}[kind] + "_interval"]
        return float(high - low)

    assert 1.6 < width(300) / width(1200) < 2.5


@pytest.mark.parametrize("kind", ["classes", "tags", "values"])
def test_groups_of_equal_images_widen_intervals(kind: str) -> None:
    """Each image four times: without groups that looks like four times as much evidence."""
    truth = {"classes": labels(60, 3), "tags": (random(60, 2) > 0).float(), "values": random(60, 2)}[kind]
    outputs = logits(truth, 3, 1.0) if kind == "classes" else truth + random(60, 2, seed=1)
    names = ["a", "b", "c"][: outputs.shape[1]]
    four = [torch.cat([x] * 4) for x in (outputs, truth)]
    groups = torch.arange(60).repeat(4) * 17 - 5
    once, fooled, grouped = (
        scored(kind, outputs, truth, names),
        scored(kind, *four, names),
        scored(kind, *four, names, groups),
    )
    for name in {"classes": ["balanced", "f1"], "tags": ["map", "auc"], "values": ["mae", "rmse", "r2"]}[kind]:
        wide, narrow, same = (np.ptp(found[f"{name}_interval"]) for found in (once, fooled, grouped))
        assert same == pytest.approx(wide, rel=0.1)
        assert narrow < 0.65 * wide
    if kind == "classes":
        assert np.ptp(grouped["top1_interval"]) == pytest.approx(np.ptp(once["top1_interval"]), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "tags", "values"])
def test_intervals_cover(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of ten hold what very many images give; of half their width, clearly fewer do."""
    monkeypatch.setattr(scores, "MOST_DRAWS", 200)

    def sample(n: int, seed: int) -> dict[str, Any]:
        truth = {
            "classes": labels(n, 4, seed),
            "tags": (random(n, 2, seed=seed) > 0.5).float(),
            "values": random(n, 2, seed=seed),
        }[kind]
        noise = 10**6 + seed
        outputs = logits(truth, 4, 1.5, noise) if kind == "classes" else truth + random(n, 2, seed=noise)
        return scored(kind, outputs, truth, list("abcd")[: outputs.shape[1]])

    truth, samples = sample(20_000, 0), [sample(200, seed) for seed in range(1, 101)]
    for name in {"classes": ["top1", "balanced", "f1"], "tags": ["map", "auc"], "values": ["mae", "rmse", "r2"]}[kind]:
        ends = np.array([found[f"{name}_interval"] for found in samples])
        middle, half = ends.mean(1), np.ptp(ends, axis=1) / 2
        away = np.abs(truth[name] - middle)
        assert (away <= half).mean() >= 0.88, name
        assert (away <= half / 2).mean() < 0.85, f"{name}, negative control"


def test_draws_take_whole_groups() -> None:
    groups = np.array([7, 7, 3, 9, 9, 9])
    [weights] = Resampling(6, groups, 50).weights()
    assert weights.shape == (6, 50)
    assert all((weights[groups == group] == weights[groups == group][0]).all() for group in groups)
    drawn = np.stack([weights[0], weights[2], weights[3]])
    assert (drawn.sum(0) == 3).all(), "three groups are drawn"
    assert len({tuple(column) for column in drawn.T}) > 5


@pytest.mark.parametrize("kind", ["classes", "tags", "values"])
def test_chunks_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = {"classes": labels(50, 3), "tags": (random(50, 3) > 0).float(), "values": random(50, 3)}[kind]
    outputs = random(50, 3, seed=1)
    whole = scored(kind, outputs, truth, ["a", "b", "c"])
    monkeypatch.setattr(scores, "CHUNK", 50 * 300)
    assert scored(kind, outputs, truth, ["a", "b", "c"]) == whole


def test_large_tables_get_fewer_draws() -> None:
    assert draws_for(50_000 * 14) == 1000
    assert draws_for(50_000 * 1000) == 200


# ---- what is refused or left out


@pytest.mark.parametrize(
    ("groups", "said"),
    [(None, "there is only one image"), (torch.tensor([4]), "there is only one group of images")],
)
def test_one_image_has_no_interval(groups: Tensor | None, said: str) -> None:
    found = scored("classes", random(1, 3), torch.tensor([1]), ["a", "b", "c"], groups)
    assert found["f1_interval"] is None
    assert found["left_out"] == [f"intervals: {said}"]
    assert (found["top1_interval"] is None) == (groups is not None)


@pytest.mark.parametrize(
    ("kind", "outputs", "targets", "names", "said"),
    [
        ("classes", (0, 2), torch.zeros(0).long(), "ab", "there are no images"),
        ("classes", (2, 2), torch.tensor([0, 2]), "ab", "labels go from 0 to 2, but there are 2 classes"),
        ("classes", (2, 2), torch.tensor([-1, 0]), "ab", "labels go from -1 to 0"),
        ("tags", (2, 3), torch.zeros(2, 2), "abc", "do not fit"),
        ("values", (2, 2), torch.zeros(2, 2), "abc", "do not fit 3 names"),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: str, outputs: tuple[int, ...], targets: Tensor, names: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        scored(kind, random(*outputs), targets, names)


def test_without_scikit_learn_there_is_top1(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = labels(30, 3)
    outputs, groups = logits(truth, 3, 1.0), torch.arange(30) // 3
    full = [scored("classes", outputs, truth, ["a", "b", "c"], of) for of in (None, groups)]
    for module in ("sklearn.metrics", "scipy.sparse"):
        monkeypatch.setitem(sys.modules, module, None)
    bare = [scored("classes", outputs, truth, ["a", "b", "c"], of) for of in (None, groups)]
    for with_it, without in zip(full, bare, strict=True):
        assert without["top1"] == with_it["top1"]
        assert without["top1_interval"] == with_it["top1_interval"]
        assert without["f1"] is without["balanced_interval"] is None
        assert "hiermim-zoo[probe]" in without["left_out"][0]
    for kind in ("tags", "values"):
        with pytest.raises(ValueError, match=rf"{kind} need scikit-learn.*hiermim-zoo\[probe\]"):
            scored(kind, random(4, 1), torch.ones(4, 1), ["a"])
