"""Measuring models on labelled images: neighbours, linear probe, fine-tuning, and the command that does it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from hiermim_zoo import evaluate
from hiermim_zoo.checkpoints import manifest
from hiermim_zoo.commands import evaluating_frozen
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.data.decoding import Form
from hiermim_zoo.data.images import Digits
from hiermim_zoo.data.kinds import KINDS, Kind
from hiermim_zoo.data.source import Stream
from hiermim_zoo.data.transforms import data_config
from hiermim_zoo.training import linear, probe
from hiermim_zoo.training.distributed import World
from hiermim_zoo.training.finetuning import (
    FineTune,
    TuningSettings,
    augmentation,
    new_classifier,
    recipe_for,
)
from hiermim_zoo.training.linear import Bank, class_probe
from hiermim_zoo.training.probe import Inference, interval, knn, pooled_features
from hiermim_zoo.training.tasks import Goal, objective

IMAGES = Path(__file__).parents[1] / "examples" / "pictures"
CPU = torch.device("cpu")
SMALL = ["--img-size", "32", "--workers", "0"]
SHORT = ["--epochs", "1", "--warmup", "0", "--batch-size", "100", "--auto-augment", "none", *SMALL]


def result(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    """What a call of the command prints."""
    capsys.readouterr()
    evaluate.main(list(args))
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits("train", Form())


def make_splits(folder: Path, classes: str = "ab", splits: tuple[str, ...] = ("train", "val"), each: int = 4) -> Path:
    """Folders of images that are dark in the first class and bright in the second."""
    for split in splits:
        for i, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for n in range(each):
                Image.new("RGB", (32, 32), (200 * i + n,) * 3).save(folder / split / name / f"{n}.png")
    return folder


# ---- neighbours, interval, linear probe


def brute_force(bank: Tensor, labels: Tensor, query: Tensor, k: int, temperature: float) -> int:
    similarity = [float(torch.cosine_similarity(x, query, dim=0)) for x in bank]
    votes: dict[int, float] = {}
    for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
        votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + float(torch.tensor(similarity[i] / temperature).exp())
    return max(votes, key=lambda label: votes[label])


@pytest.mark.parametrize("k", [1, 5, 20, 1000])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_is_the_weighted_vote(monkeypatch: pytest.MonkeyPatch, k: int, temperature: float) -> None:
    bank, labels, queries = torch.randn(50, 6), torch.randint(0, 4, (50,)), torch.randn(17, 6)
    expected = [brute_force(bank, labels, query, k, temperature) for query in queries]
    assert knn(bank, labels, queries, k, temperature).tolist() == expected
    monkeypatch.setattr(probe, "CELLS", 3 * 50)
    assert knn(bank, labels, queries, k, temperature).tolist() == expected, "chunks change nothing"


def test_probes_tell_clusters_apart() -> None:
    centres = 5 * torch.eye(3, 8)
    labels = torch.arange(3).repeat(30)
    bank, queries = (centres[labels] + 0.1 * torch.randn(90, 8) for _ in range(2))
    assert (knn(bank, labels, queries, k=500) == labels).all()
    found, settings = class_probe(Bank(bank, labels, 3), queries)
    assert (found.argmax(1) == labels).all()
    assert settings["held_out_top1"] == 100
    assert settings["converged"]


def test_a_sharp_vote_does_not_overflow() -> None:
    bank = torch.randn(10, 4)
    assert (knn(bank, torch.arange(10), bank, k=10, temperature=1e-4) == torch.arange(10)).all()


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],  # Newcombe 1998 has the last
)
def test_wilson_interval(right: int, total: int, low: float, high: float) -> None:
    assert interval(right, total) == pytest.approx((low, high), abs=5e-5)


def test_no_interval_of_nothing() -> None:
    with pytest.raises(ValueError, match="0 of 0"):
        interval(0, 0)


# ---- features


class Coming(Stream):
    """Digits as a stream."""

    def __init__(self, digits: Digits, count: int) -> None:
        self.digits, self.count, self.identity = digits, count, "digits that come"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return (self.digits.read(i) for i in range(self.count))


def test_features_are_in_order_whatever_the_source(digits: Digits) -> None:
    model: Any = timm.create_model("hivit_atto", num_classes=0).train()
    config = data_config(model, (32, 32))
    streamed, labels, numbers = pooled_features(model, Coming(digits, 50), Inference(config, CPU, 20, progress=False))
    assert model.training, "the mode of the model is as it was"
    read, same, positions = pooled_features(model, digits, Inference(config, CPU, 7), positions=range(50))
    assert labels.tolist() == same.tolist() == digits.labels[:50]
    assert numbers.tolist() == positions.tolist() == list(range(50))
    torch.testing.assert_close(streamed, read)
    assert streamed.shape == (50, model.num_features)


def test_unreadable_images_are_named_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_splits(tmp_path / "data")
    (folder / "val" / "a" / "0.png").write_bytes(b"no image")
    args = [str(folder), "--model", "hivit_atto", "--method", "knn", *SMALL]
    with pytest.raises(ValueError, match=r"a/0\.png cannot be read"):
        evaluate.main(args)
    found = result(capsys, *args, "--max-bad", "0.2")
    assert found["pictures"] == 7
    assert found["top1"] == 100


# ---- the command


@pytest.mark.parametrize(
    ("model", "share", "low", "high"), [("hivit_atto", 84.0, 78.29, 88.43), ("hpvit_atto", 86.5, 81.07, 90.55)]
)
def test_classify_gives_the_known_share(
    model: str, share: float, low: float, high: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    args = [str(IMAGES), "--model", model, "--method", "classify", "--workers", "0"]
    found = result(capsys, *args, "--json", str(file))
    assert (found["top1"], found["pictures"]) == (share, 200)
    assert json.loads(file.read_text()) == found
    assert found["interval"] == pytest.approx([low, high], abs=0.005)
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_classes_go_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data whose classes are ordered otherwise than the model's give the same share."""
    monkeypatch.setattr(
        evaluating_frozen, "make_model", lambda *a, **k: shuffled(timm.create_model("hivit_atto", pretrained=True))
    )

    def shuffled(model: Any) -> Any:
        order = torch.randperm(10)
        with torch.no_grad():
            model.head.weight.copy_(model.head.weight[order])
            model.head.bias.copy_(model.head.bias[order])
        model.pretrained_cfg["label_names"] = [model.pretrained_cfg["label_names"][i] for i in order]
        return model

    assert (
        result(capsys, str(IMAGES), "--model", "hivit_atto", "--method", "classify", "--workers", "0")["top1"] == 84.0
    )


@pytest.mark.parametrize("tag", [row.name for row in manifest.records().values() if row.file and row.classes == 10])
def test_embedded_classifiers_are_as_good_as_the_manifest_says(tag: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(capsys, str(IMAGES), "--model", tag, "--method", "classify", "--workers", "0")
    assert found["top1"] == pytest.approx(manifest.records()[tag].top1, abs=6.5)  # of 200 images, 95 % are that near


def test_random_features_beat_chance_on_digits(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["digits", "--model", "hivit_atto", "--method", "knn", "--no-pretrained", "-k", "5", *SMALL]
    found = result(capsys, *args)
    assert found["top1"] > 50
    assert found["settings"]["k"] == 5
    assert result(capsys, *args)["top1"] == found["top1"]


def test_linear_reads_features_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "STRENGTHS", (0.01, 1.0))
    args = ["digits", "--model", "hivit_atto", "--method", "linear", "--cache", str(tmp_path / "features"), *SMALL]
    first = result(capsys, *args)
    assert first["top1"] > 80
    assert len(list((tmp_path / "features").iterdir())) == 2

    def fail(*args: object) -> None:
        raise ValueError("an image was read")

    monkeypatch.setattr(Digits, "read", fail)
    assert result(capsys, *args)["top1"] == first["top1"]
    with pytest.raises(ValueError, match="an image was read"):
        evaluate.main([*args[:-3], "64", "--workers", "0"])  # another size: other features
    with pytest.raises(ValueError, match="an image was read"):
        evaluate.main([*args, "--no-pretrained"])


def test_splits_of_a_folder_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_splits(tmp_path, splits=("train", "val", "test"))
    for more in ([], ["--split", "test"], ["--train", str(folder / "train")]):
        found = result(capsys, str(folder), "--model", "hivit_atto", "--method", "knn", *more, *SMALL)
        assert (found["pictures"], found["top1"]) == (8, 100)


# ---- fine-tuning


def test_finetuned_folder_is_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    args = [
        "digits",
        "--model",
        "hivit_atto",
        "--method",
        "finetune",
        *SHORT,
        "--mix-prob",
        "0",
        "--erase",
        "0",
        "--lr",
        "5e-3",
    ]
    more = [
        "--epochs",
        "4",
        "--drop-path",
        "0",
        "--crop-scale",
        "0.8",
        "1",
        "--eval-every",
        "2",
        "--ema",
        "0.8",
        "--seed",
        "3",
    ]
    found = result(capsys, *args, *more, "-o", str(out))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["out"]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 2, 3, 4, 4]
    assert log[-2]["loss"] < log[0]["loss"] - 0.2
    assert ["top1" in line for line in log] == [False, False, True, False, False, True]
    assert log[-1]["top1"] == pytest.approx(found["top1"], abs=1e-3)

    model: Any = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == [str(i) for i in range(10)]
    assert model.pretrained_cfg["input_size"][1:] == [32, 32]
    again = result(capsys, "digits", "--model", f"local-dir:{out}", "--method", "classify", "--workers", "0")
    assert again["top1"] == found["top1"]
    card = (out / "README.md").read_text()
    measured = f"{found['top1']:.2f} % of 300 images of digits (validation)"
    for piece in ("--seed 3", measured, "license: apache-2.0"):
        assert piece in card

    small = ["--no-pretrained", "--model-kwargs", "embed_dim=24", "--epochs", "1"]
    result(capsys, *args, *small, "-o", str(tmp_path / "small"))
    assert timm.create_model(f"local-dir:{tmp_path / 'small'}", pretrained=True).embed_dim == 24

    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="not empty"):
        evaluate.main([*args, "-o", str(out)])
    assert (out / "model.safetensors").read_bytes() == before
    result(capsys, *args, "-o", str(out), "--force")
    assert (out / "model.safetensors").read_bytes() != before
    assert len((out / "log.jsonl").read_text().splitlines()) == 1, "the log of the run that was replaced is gone"


def trained(digits: Digits, seed: int, pretrained: bool = True, **recipe: Any) -> FineTune:
    """A few steps of fine-tuning with all that is random."""
    row = replace(recipe_for("hivit_atto"), batch=500, epochs=1, warmup=0, **recipe)
    model: Any = new_classifier("hivit_atto", "hivit_atto", 10, row, pretrained=pretrained, seed=seed)
    model.set_input_size(32)
    goal = Goal("classes", 10)
    tuning = FineTune(
        model, digits, goal, data_config(model, (32, 32)), row, TuningSettings(seed=seed), World(0, 1, CPU)
    )
    tuning.train()
    return tuning


def test_all_follows_from_the_seed(digits: Digits) -> None:
    torch.manual_seed(1)
    one = trained(digits, 0).model.state_dict()
    torch.manual_seed(2)
    same, other = trained(digits, 0).model.state_dict(), trained(digits, 1).model.state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_the_start_is_the_pretrained_encoder() -> None:
    row = recipe_for("hivit_atto")
    known: Any = timm.create_model("hivit_atto", pretrained=True)
    made: Any = new_classifier("hivit_atto", "hivit_atto", 10, row, pretrained=True, seed=0)
    scratch: Any = new_classifier("hivit_atto", "hivit_atto", 10, row, pretrained=False, seed=0)
    assert torch.equal(made.patch_embed.proj.weight, known.patch_embed.proj.weight)
    assert not torch.equal(scratch.patch_embed.proj.weight, known.patch_embed.proj.weight)
    assert made.head.weight.std().item() == pytest.approx(2e-5, rel=0.1), "though the number of classes is the same"


def test_lower_layers_learn_slower_and_tables_do_not_decay(digits: Digits) -> None:
    tuning = trained(digits, 0)
    of = {id(p): group for group in tuning.optimizer.param_groups for p in group["params"]}
    groups = {name: of[id(p)] for name, p in tuning.model.named_parameters()}
    blocks = [groups[name]["lr"] for name in groups if name.startswith("blocks.") and name.endswith("norm2.weight")]
    assert blocks == sorted(blocks)
    assert groups["patch_embed.proj.weight"]["lr"] < blocks[0] < blocks[-1] < groups["head.weight"]["lr"]
    assert groups["absolute_pos_embed"]["weight_decay"] == 0
    assert groups["head.bias"]["weight_decay"] == 0
    assert groups["head.weight"]["weight_decay"] == 0.05


def test_a_loss_that_is_not_finite_stops_the_run(digits: Digits) -> None:
    with pytest.raises(ValueError, match="loss of step 1 is nan"):
        trained(digits, 0, blr=float("inf"), min_lr=float("nan"))


def test_a_label_beyond_the_classes_stops_the_run(digits: Digits) -> None:
    row = replace(recipe_for("hivit_atto"), batch=100, epochs=1, warmup=0)
    model: Any = new_classifier("hivit_atto", "hivit_atto", 9, row, pretrained=False, seed=0)
    with pytest.raises(ValueError, match="an image has label 9, but there are 9 classes"):
        FineTune(model, digits, Goal("classes", 9), data_config(model), row, TuningSettings(), World(0, 1, CPU)).train()


@pytest.mark.parametrize("name", ["rand-m10-inc1", "rand-m9-mstd0.5-inc1"])
def test_the_strongest_augmentation_works(digits: Digits, name: str) -> None:
    row = replace(recipe_for("hivit_atto"), auto_augment=name)
    transform = augmentation(data_config(timm.create_model("hivit_atto")), row, TuningSettings())
    assert all(transform(digits.read(i)[0]).dtype == torch.uint8 for i in range(300))


def test_odd_batches_cannot_be_mixed() -> None:
    recipe = recipe_for("hivit_atto")
    with pytest.raises(ValueError, match="pair the images"):
        objective(recipe, 1.0, Goal("classes", 10), 5)
    mix, _ = objective(recipe, 0.0, Goal("classes", 10), 5)
    images, labels = torch.randn(5, 3, 4, 4), torch.arange(5)
    assert mix(images, labels)[0] is images


def test_the_class_token_of_a_vit_is_not_used() -> None:
    recipe = recipe_for("vit_tiny_patch16_224")
    assert recipe_for("vit_large_patch16_224").epochs == 50
    model: Any = new_classifier("vit_tiny_patch16_224", "vit_tiny_patch16_224", 2, recipe, pretrained=False, seed=0)
    assert model.global_pool == "avg"


# ---- bad input

KNN, LINEAR, FINETUNE = (["--model", "hivit_atto", "--method", method] for method in ("knn", "linear", "finetune"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["digits", "--model", "hivit_huge", "--method", "knn"], "'hivit_huge' is unknown"),
        (["missing", *KNN, "--train", "digits"], "missing: no such folder"),
        (["{data}", *KNN, "--train", "missing"], "missing: no such folder"),
        (["{data}/val", *KNN], "--train DATA is needed"),
        (["{data}/train", *KNN, "--train", "{data}"], "--train DATA is needed"),
        (["{data}", *KNN, "--split", "test"], "has no split 'test', but train, val"),
        (["{data}", *KNN, "--train", "digits"], "classes of digits and {data} differ: 0, 1, 2"),
        (["{data}/val/a", *KNN, "--train", "{data}"], "{data}/val/a has no labels"),
        (["{data}", "--model", "hivit_atto", "--method", "classify"], "tells 10 classes apart, but {data} has 2"),
        (["digits", "--model", "hivit_atto", "--method", "classify"], "does not know the classes of digits: 0, 1, 2"),
        (["digits", "--model", "hivit_base", "--no-pretrained", "--method", "classify", "--img-size", "30"], "30"),
        (
            ["digits", "--model", "resnet18", "--no-pretrained", "--method", "finetune"],
            "resnet18 is a model of timm.models.resnet, not of this package",
        ),
        (["digits", *KNN, "-o", "{out}"], "-o belongs to --method finetune, not to --method knn"),
        (["digits", *LINEAR, "--epochs", "3"], "--epochs belongs to --method finetune"),
        (["digits", *FINETUNE, "-k", "3"], "-k belongs to --method knn"),
        (["digits", *FINETUNE, "--force"], "--force replaces the folder of -o DIR"),
        (["digits", *FINETUNE, "--batch-size", "2000", "-o", "{out}"], "a batch of 2000 is more"),
        (["digits", *KNN, "--train-split", "test"], "--train DATA is needed: digits"),
        (["digits", *FINETUNE, *SHORT, "--accumulate", "3", "-o", "{out}"], "must be a multiple of 3"),
        (
            ["digits", *FINETUNE, *SHORT, "--warmup", "1", "-o", "{out}"],
            "--epochs 1 with --warmup 1: the warm-up must be shorter",
        ),
        (["digits", *FINETUNE, *SHORT, "--auto-augment", "rnd", "-o", "{out}"], "timm knows no augmentation 'rnd'"),
        (
            ["digits", *FINETUNE, "--color-jitter", "0.4", "--batch-size", "100", "--recipe", "paper"],
            "has no effect beside --auto-augment",
        ),
        (["digits", *FINETUNE, *SHORT, "--crop-scale", "1", "0.5"], "the lower bound comes first"),
        (["digits", *FINETUNE, *SHORT, "--opt", "best"], "--opt 'best' is none of timm's optimisers"),
        (["digits", *FINETUNE, *SHORT, "--num-classes", "9"], "--num-classes 9, but digits has 10"),
        (
            ["digits", *KNN, "--model-kwargs", "img_size=32"],
            "--model-kwargs img_size=32: this has an option of its own",
        ),
        (["digits", *KNN, "--model-kwargs", "colour=red"], "unexpected keyword argument 'colour'"),
        (["digits", *KNN, "--json", "/nowhere/out.json"], "/nowhere/out.json cannot be written"),
        (["digits", *KNN, "--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"data": str(make_splits(tmp_path / "data", each=1)), "out": str(tmp_path / "out")}
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: evaluate.main([a.format(**names) for a in args] + ["--workers", "0"]))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message.format(**names) in line
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["data"]


def test_images_without_classes_are_no_labelled_data(tmp_path: Path) -> None:
    folder = make_splits(tmp_path / "data")
    shutil.rmtree(folder / "train" / "b")
    with pytest.raises(ValueError, match="has no labels"):
        evaluate.main([str(folder), *KNN, *SMALL])


def test_labels_of_minus_one_are_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the test set of a competition."""
    unlabelled = Digits("train", Form())
    unlabelled.labels = None
    monkeypatch.setattr(unlabelled, "read", lambda position: (unlabelled.images[position], -1))
    monkeypatch.setitem(KINDS, "digits", Kind(images=lambda spec, request: unlabelled))
    with pytest.raises(ValueError, match="digits has no labels in its split"):
        evaluate.main(["digits", *KNN, *SMALL])


def test_encoders_classify_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating_frozen, "make_model", lambda *a, **k: timm.create_model("hivit_atto", num_classes=0))
    with pytest.raises(ValueError, match="has no classifier"):
        evaluate.main([str(IMAGES), "--model", "hivit_atto", "--method", "classify", *SMALL])


def test_missing_scikit_learn_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(ValueError, match=r"hiermim-zoo\[probe\]"):
        class_probe(Bank(torch.randn(4, 2), torch.arange(4) % 2, 2), torch.randn(4, 2))
