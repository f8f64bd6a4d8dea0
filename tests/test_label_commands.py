"""evaluate on tables of classes, tags and values: every method tells them, and shuffled labels are told by chance."""

from __future__ import annotations

import csv
import json
import random
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

from hiermim_zoo import convert, evaluate, pretrain
from hiermim_zoo.commands import evaluating_frozen
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.training.finetuning import recipe_for
from hiermim_zoo.training.linear import Bank, class_probe, tag_probe, value_probe
from hiermim_zoo.training.probe import class_votes, mean_votes
from hiermim_zoo.training.tasks import TASKS, Goal, Wanted, objective, outputs_of, tell_values

from .forks import Forks

COLOURS = ("red", "green", "blue")
SMALL = {"model": "hivit_atto", "img_size": 32, "workers": 0}
TUNED: dict[str, Any] = {
    **SMALL,
    "method": "finetune",
    "epochs": 6,
    "warmup": 0,
    "batch_size": 20,
    "auto_augment": "none",
    "erase": 0.0,
    "crop_scale": (0.7, 1.0),
    "lr": 2e-3,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of some colours, as bright as their column says; the other columns say the same in other ways."""
    folder = tmp_path_factory.mktemp("colours")
    numbers, rows = np.random.default_rng(0), []
    for n in range(60):
        colours, bright = numbers.integers(0, 2, 3), numbers.uniform(0.3, 1)
        pixels = 40 + 200 * bright * colours + numbers.normal(0, 6, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{n:02d}.png")
        rows.append(
            {
                "file": f"{n:02d}.png",
                "names": "; ".join(name for name, there in zip(COLOURS, colours, strict=True) if there),
                **{name: str(there) for name, there in zip(COLOURS, colours, strict=True)},
                "level": f"{1000 + 100 * pixels.mean() / 255:.3f}",
                "kind": "red, and more" if colours[0] else "ohne Röte",
                "who": f"p{n // 5}",
                "split": "train" if n < 40 else "val",
            }
        )
    for name, left_out in (("t.csv", ()), ("one.csv", ("split",))):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [key for key in rows[0] if key not in left_out], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    return folder / "t.csv"


def shuffled(table: Path, folder: Path, columns: Sequence[str]) -> Path:
    """The same table, in which the cells of some columns went to other images."""
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cells = [{name: row[name] for name in columns} for row in rows]
    random.Random(0).shuffle(cells)
    with (folder / "shuffled.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, **own} for row, own in zip(rows, cells, strict=True))
    return folder / "shuffled.csv"


KINDS = [
    (("names",), "tags", "map", 0.85, 0.75),
    (("level",), "values", "r2", 0.3, 0.1),
    (("kind",), "classes", "top1", 79, 72),
]


@pytest.mark.parametrize("method", ["knn", "linear"])
@pytest.mark.parametrize(("columns", "kind", "score", "good", "chance"), KINDS)
def test_frozen_features_tell_labels_and_not_shuffled_ones(
    table: Path,
    tmp_path: Path,
    method: str,
    columns: tuple[str, ...],
    kind: str,
    score: str,
    good: float,
    chance: float,
) -> None:
    how: dict[str, Any] = {**SMALL, "method": method, "target_columns": columns, "data_dir": str(table.parent)}
    found = evaluate.run(data=str(table), **how)
    assert found["labels"]["kind"] == kind
    assert found["labels"]["columns"] == list(columns)
    assert found["pictures"] == 20
    assert found[score] > good
    low, high = found[f"{score}_interval"]
    assert low <= found[score] <= high
    wrong = evaluate.run(data=str(shuffled(table, tmp_path, columns)), **how)
    assert wrong[score] < chance, "negative control"


def test_tags_in_columns_are_the_tags_in_one(table: Path) -> None:
    how: dict[str, Any] = {**SMALL, "method": "knn", "data": str(table)}
    one, several = (evaluate.run(target_columns=columns, **how) for columns in (("names",), COLOURS))
    assert one["map"] == several["map"]
    assert one["per_tag"] == several["per_tag"]
    assert list(several["per_tag"]) == list(COLOURS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "score", "good"), [(("names",), "map", 0.9), (("level",), "r2", 0.5)], ids=["tags", "values"]
)
def test_a_fine_tuned_folder_tells_what_it_was_trained_for(
    table: Path, tmp_path: Path, columns: tuple[str, ...], score: str, good: float
) -> None:
    out = tmp_path / "out"
    found = evaluate.run(data=str(table), target_columns=columns, output=out, **TUNED, eval_every=3)
    assert found[score] > good
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert logged[-1][score] == pytest.approx(found[score], abs=1e-3)
    labels = json.loads((out / "config.json").read_text())["hiermim_zoo"]["labels"]
    again: dict[str, Any] = {"model": f"local-dir:{out}", "method": "classify", "data": str(table), "workers": 0}
    if score == "r2":
        assert (labels["kind"], labels["names"]) == ("values", ["level"])
        assert 1030 < labels["mean"][0] < 1070
        assert found["settings"]["mixup"] == found["settings"]["smoothing"] == 0
        image = torch.zeros(1, 3, 32, 32)
        model: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        assert 950 < model(image).item() < 1150, "timm alone gets values in their own units"
        assert evaluate.run(**again)[score] == pytest.approx(found[score], abs=1e-4), "columns are those it knows"
        with pytest.raises(ValueError, match=r"--task tags, but the outputs of .* are values"):
            evaluate.run(**again, task="tags")
    else:
        assert labels == {"kind": "tags", "names": sorted(COLOURS)}
        for folder, more in (("same", {}), ("encoder", {"num_classes": 0})):
            convert.run(source=str(out), model="hivit_atto", output=tmp_path / folder, **more)
            written = json.loads((tmp_path / folder / "config.json").read_text())["hiermim_zoo"]
            assert written.get("labels") == (None if more else labels), "labels belong to the classifier"
        assert evaluate.run(**again, target_columns=columns)[score] == pytest.approx(found[score], abs=1e-4)
        assert evaluate.run(**again)[score] == pytest.approx(found[score], abs=1e-4), "it finds columns of its names"
    card = (out / "README.md").read_text()
    assert f"| {score} | `{found[score]:.4f} of 20 images" in card
    with pytest.raises(ValueError, match=r"not among the known ones|not those that are known"):
        evaluate.run(**again, target_columns=("kind",))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 on forking
def test_two_processes_tell_what_one_tells(forked: Forks, table: Path, tmp_path: Path) -> None:
    """Values are looked up by position, and every image is measured once, in order."""
    how: dict[str, Any] = {**TUNED, "epochs": 1, "drop_path": 0.0, "target_columns": "level"}
    evaluate.run(data=str(table), predictions=tmp_path / "one.csv", **how, device="cpu")
    options = evaluate.VERB.options(data=str(table), predictions=tmp_path / "two.csv", **how, device="cpu")
    done = forked.command(*shlex.split(options.command("evaluate"))[2:], processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("labels of") == 1
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in ("one.csv", "two.csv")]
    one, two = (list(csv.DictReader(text.splitlines())) for text in texts)
    assert [row["file"] for row in one] == [row["file"] for row in two]
    for mine, other in zip(one, two, strict=True):
        assert float(mine["predicted_level"]) == pytest.approx(float(other["predicted_level"]), abs=0.05)
    assert len({row["predicted_level"] for row in one}) > 10


def test_a_split_by_groups_and_what_is_written(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(table.with_name("one.csv"))
    how: dict[str, Any] = {**SMALL, "method": "knn", "data": data, "target_columns": "kind", "split_fraction": 0.25}
    predictions, confusion = tmp_path / "p.csv", tmp_path / "c.png"
    found = evaluate.run(**how, group="who", predictions=predictions, confusion=confusion)
    assert (found["pictures"], found["group"], found["split_fraction"]) == (15, "who", 0.25)
    assert capsys.readouterr().err.splitlines() == [
        f"labels of {data}: 2 classes in column kind",
        *(f"warning: {line}" for line in found["warnings"]),
    ]
    assert found["interval"] == found["top1_interval"]
    with predictions.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["truth"] for row in rows} == {"red, and more", "ohne Röte"}
    right = sum(row["truth"] == row["predicted"] for row in rows)
    assert 100 * right / 15 == pytest.approx(found["top1"], abs=1e-3)
    assert len({int(Path(row["file"]).stem) // 5 for row in rows}) == 3, "whole groups of five"
    assert any("intervals of 3 groups mean little" in line for line in found["warnings"])
    with Image.open(confusion) as image:
        assert image.format == "PNG"
    assert evaluate.run(**how, group="who")["top1"] == found["top1"], "it follows from the seed"
    alone = evaluate.run(**how)
    assert alone["pictures"] == 15
    assert alone["interval"] != found["interval"]


def test_groups_on_both_sides_are_refused(table: Path, tmp_path: Path) -> None:
    text = table.read_text(encoding="utf-8").replace(",p9,", ",p3,")
    (tmp_path / "leak.csv").write_text(text, encoding="utf-8")
    how: dict[str, Any] = {**SMALL, "method": "knn", "target_columns": "kind", "group": "who"}
    how |= {"data_dir": str(table.parent)}
    assert evaluate.run(data=str(table), **how)["pictures"] == 20
    leak = str(tmp_path / "leak.csv")
    with pytest.raises(ValueError, match=r"1 group \(p3\) is in the training images and has 5 of the 20"):
        evaluate.run(data=leak, **how)
    assert evaluate.run(data=leak, **how, allow_shared_groups=True)["pictures"] == 20


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("{t} --method knn --target-columns red", "column red holds whole numbers, which could be classes or values"),
        (
            "{one} --method knn --target-columns kind --split test",
            "has no two splits 'train' and 'test'; --split-fraction 0.2",
        ),
        ("{t} --method knn --target-columns kind --split-fraction 0.2", "cuts data of one split, and {t} has two"),
        ("{t} --method knn --target-columns level --confusion {out}", "values have no confusion matrix, classes have"),
        ("{t} --method knn --target-columns level --class-weights balanced", "belongs to --method linear or finetune"),
        ("{t} --method linear --target-columns level --class-weights balanced", "for classes and tags, not for values"),
        ("{t} --method linear --target-columns kind --sampling balanced", "--sampling belongs to --method finetune"),
        (
            "{t} --method finetune --target-columns names --sampling balanced --batch-size 20",
            "--sampling balanced is for classes, not for tags",
        ),
        (
            "{t} --method finetune --target-columns level --mixup 0.8",
            "--mixup 0.8 is for classes and tags, not for val",
        ),
        ("{t} --method finetune --target-columns level --num-classes 3", "--num-classes 3, but the labels of"),
        (
            "{t} --method classify --target-columns names",
            "is not among the known ones: airplane, automobile",
        ),
        (
            "{t} --method classify --target-columns names --task tags",
            "--task tags, but the outputs of hivit_atto are cl",
        ),
        ("digits --method classify --task tags", "--task tags, but the outputs of hivit_atto are classes"),
        (
            "{t} --method knn --target-columns kind --predictions /nowhere/p.csv",
            "--predictions /nowhere/p.csv cannot be",
        ),
        ("{t} --method knn --target-columns kind --json {out} --predictions {out}", "is named by two of --json"),
        ("{t} --method knn --target-columns kind --allow-shared-groups", "is about the groups of --group COLUMN"),
        ("digits --method knn --group who", "digits is no table; --group needs one"),
        ("digits --method knn --labels {dir}/none.csv", "none.csv cannot be read: No such file"),
        ("digits --method knn --split-fraction 0.2", "cuts data of one split, and digits has two"),
    ],
)
def test_bad_input_is_one_line(
    table: Path, tmp_path: Path, argv: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"t": table, "one": table.with_name("one.csv"), "out": tmp_path / "out", "dir": table.parent}
    words = [word.format(**names) for word in argv.split()]
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: evaluate.main([*words, "--model", "hivit_atto", "--img-size", "32", "--workers", "0"]))
    assert stop.value.code == 2
    assert message.format(**names) in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_features_that_are_kept_are_those_of_the_rows(table: Path, tmp_path: Path) -> None:
    """A table with as many rows in another order finds no features of others."""
    how: dict[str, Any] = {**SMALL, "method": "linear", "target_columns": "kind", "cache": tmp_path / "cache"}
    how |= {"data_dir": str(table.parent)}
    lines = table.read_text(encoding="utf-8").splitlines()
    copy = tmp_path / "copy.csv"
    copy.write_text("\n".join(lines), encoding="utf-8")
    first = evaluate.run(data=str(copy), **how)
    files = len(list((tmp_path / "cache").iterdir()))
    assert evaluate.run(data=str(copy), **how)["top1"] == first["top1"]
    assert len(list((tmp_path / "cache").iterdir())) == files == 2
    copy.write_text("\n".join([lines[0], *reversed(lines[1:])]), encoding="utf-8")
    assert evaluate.run(data=str(copy), **how)["top1"] == pytest.approx(first["top1"], abs=10.1)
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_pretraining_says_that_it_measures_no_tags(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how: dict[str, Any] = {"model": "hivit_atto", "img_size": 32, "workers": 0, "batch_size": 10, "steps": 1}
    how |= {"decoder_depth": 1, "decoder_dim": 16, "decoder_heads": 2, "data_dir": str(table.parent)}
    said = {}
    for old, new in (("names", "label"), ("kind", "label")):
        copy = tmp_path / f"{old}.csv"
        copy.write_text(table.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
        pretrain.run(data=str(copy), output=tmp_path / old, **how)
        log = (tmp_path / old / "log.jsonl").read_text()
        said[old] = ("previews measure no neighbours" in capsys.readouterr().out, '"knn"' in log)
    assert said == {"names": (True, False), "kind": (False, True)}


# ---- what the records do


def test_votes_are_weighted_means_of_what_is_known() -> None:
    bank, queries = torch.randn(40, 6), torch.randn(9, 6)
    labels = torch.randint(0, 3, (40,))
    shares = class_votes(bank, labels, queries, 7, 0.5, 3)
    torch.testing.assert_close(shares, mean_votes(bank, F.one_hot(labels, 3).float(), queries, 7, 0.5))
    torch.testing.assert_close(shares.sum(1), torch.ones(9))
    truth = torch.randn(40, 2)
    truth[::2, 0] = float("nan")
    found = mean_votes(bank, truth, queries, 7, 0.5)
    for query, row in zip(queries, found, strict=True):
        similar = F.cosine_similarity(bank, query[None])
        near = similar.topk(7).indices
        weights = (similar[near] / 0.5).exp()
        for column in range(2):
            known = ~truth[near, column].isnan()
            if known.any():
                mean = (weights * truth[near, column])[known].sum() / weights[known].sum()
                torch.testing.assert_close(row[column], mean)
    nothing = torch.full((40, 1), float("nan"))
    assert mean_votes(bank, nothing, queries, 7, 0.5).tolist() == [[0.0]] * 9


def test_linear_probes_respect_groups_and_unknown_labels() -> None:
    features = torch.randn(80, 5)
    truth = (features[:, :2] > 0).float()
    unknown = torch.where(torch.rand(80, 2) < 0.3, float("nan"), truth)
    said, settings = tag_probe(Bank(features, unknown, 2), features)
    assert ((said > 0) == truth.bool()).float().mean() > 0.9
    assert settings["fitted"] == 2
    never = torch.stack([truth[:, 0], torch.zeros(80)], 1)
    assert (tag_probe(Bank(features, never, 2), features)[0][:, 1] < -50).all()
    values = features[:, :1] * 300 + 5000
    found, _ = value_probe(Bank(features, values, 1), features)
    assert (found - values).abs().mean() < 30
    groups = torch.arange(80) // 20
    held = Bank(features, truth, 2, groups).held()
    assert len(set(groups[held].tolist()) & set(groups[~held].tolist())) == 0
    assert held.sum() == 20, "whole groups"


def test_weights_move_the_decision_towards_the_rare_class() -> None:
    labels = torch.tensor([0] * 95 + [1] * 5)
    features = torch.randn(100, 3) + labels[:, None]
    plain, _ = class_probe(Bank(features, labels, 2), features)
    heavy, _ = class_probe(Bank(features, labels, 2, weights=torch.tensor([1.0, 19.0])), features)
    light, _ = class_probe(Bank(features, labels, 2, weights=torch.tensor([19.0, 1.0])), features)
    counts = [int((found.argmax(1) == 1).sum()) for found in (light, plain, heavy)]
    assert counts[0] <= counts[1] < counts[2], counts


def row(**changes: Any) -> Any:
    return replace(recipe_for("hivit_atto"), **{"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, **changes})


def test_weighted_losses_weigh_what_they_should() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 1, 0])
    loss = objective(row(), 1.0, Goal("classes", 3, weights=torch.tensor([1.0, 4.0, 1.0])), 6)[1]
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss(logits, labels), (each * torch.tensor([1.0, 1, 4, 1, 4, 1])).mean())
    soft = F.one_hot(labels, 3).float()
    torch.testing.assert_close(loss(logits, soft), loss(logits, labels))
    plain = objective(row(smoothing=0.1), 1.0, Goal("classes", 3), 6)[1]
    even = objective(row(smoothing=0.1), 1.0, Goal("classes", 3, weights=torch.ones(3)), 6)[1]
    torch.testing.assert_close(plain(logits, labels), even(logits, labels))
    tags, weights = (torch.rand(6, 3) < 0.4).float(), torch.tensor([1.0, 9.0, 2.0])
    loss = objective(row(), 1.0, Goal("tags", 3, tags, weights), 6)[1]
    each = F.binary_cross_entropy_with_logits(logits, tags, reduction="none")
    torch.testing.assert_close(loss(logits, tags), (each * torch.where(tags > 0, weights, 1.0)).mean())


def test_unknown_tags_and_values_teach_nothing() -> None:
    nan = float("nan")
    truth = torch.tensor([[1.0, nan], [0.0, 1.0]])
    for kind in ("tags", "values"):
        outputs = torch.randn(2, 2, requires_grad=True)
        _, loss = objective(row(), 1.0, Goal(kind, 2, truth), 2)
        loss(outputs, truth).backward()
        assert outputs.grad is not None
        assert (outputs.grad == 0).tolist() == [[False, True], [False, False]]
    full = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    _, loss = objective(row(), 1.0, Goal("tags", 2, full), 2)
    logits = torch.randn(2, 2)
    torch.testing.assert_close(loss(logits, full), F.binary_cross_entropy_with_logits(logits, full))


def test_mixed_tags_are_blended_like_their_images() -> None:
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    mix, _ = objective(row(mixup=0.8), 1.0, Goal("tags", 3, tags), 2)
    mixed, target = mix(images.clone(), tags)
    share = mixed[0, 0, 0, 0]  # of the second image in the first
    torch.testing.assert_close(target[0], torch.stack([1 - share, torch.zeros(()), torch.ones(())]))
    smooth, _ = objective(row(smoothing=0.2), 1.0, Goal("tags", 3, tags), 2)
    torch.testing.assert_close(smooth(images, tags)[1], tags * 0.8 + 0.1)
    with pytest.raises(ValueError, match="mixup, cutmix and smoothing are for classes and tags, not for values"):
        objective(row(mixup=0.8), 1.0, Goal("values", 3, tags), 2)


def test_values_are_learned_as_deviations_and_told_in_their_units() -> None:
    truth = torch.tensor([[10.0, 1e4], [20.0, 3e4], [30.0, float("nan")]])
    goal = Goal("values", 2, truth)
    columns = torch.tensor([[-1, 0, 2], [-1, 1, 1]])  # label, wanted, read
    torch.testing.assert_close(
        Wanted(goal, torch.device("cpu"))(columns), torch.tensor([[1.2247, float("nan")], [0.0, 1.0]]),
        atol=1e-4, rtol=0, equal_nan=True,
    )  # fmt: skip
    model: Any = timm.create_model("hivit_atto", num_classes=2).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        scaled = outputs_of(model, "values", goal.scale)(image)
        assert goal.scale
        tell_values(model, goal.scale)
        torch.testing.assert_close(outputs_of(model, "values")(image), scaled, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", ["classes", "tags", "values"])
def test_what_is_averaged_over_views_comes_back(kind: str) -> None:
    logits = torch.randn(5, 3)
    back = TASKS[kind].said(TASKS[kind].averaged(logits))
    torch.testing.assert_close(TASKS[kind].averaged(back), TASKS[kind].averaged(logits))


def test_missing_scikit_learn_is_one_line(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Callable[..., Any]] = []
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with monkeypatch.context() as patch:
        patch.setattr(evaluating_frozen, "make_model", lambda *a, **k: made.append(a))
        with pytest.raises(ValueError, match=r"hiermim-zoo\[probe\]"):
            evaluate.run(data=str(table), **SMALL, method="linear", target_columns="level")
    assert not made, "before any work is done"
    with pytest.raises(ValueError, match="measuring values needs scikit-learn"):
        evaluate.run(data=str(table), **TUNED, target_columns="level")
    assert evaluate.run(data=str(table), **SMALL, method="knn", target_columns="kind")["top1"] > 50
