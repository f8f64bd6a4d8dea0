"""Whatever can be told of options without data is told in one message, whichever of them are wrong; nothing is
written.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from hiermim_zoo import benchmark, convert, evaluate, extract, features, pretrain, reconstruct, stats
from hiermim_zoo.commands.options import BadOptions
from hiermim_zoo.training.small import PRETRAINING, Size, small_pretraining

pytestmark = pytest.mark.usefixtures("one_thread")

Wrong = dict[str, tuple[dict[str, Any], str]]  # what is wrong -> options, and what the message says
PRETRAIN: Wrong = {
    "kind": ({"lr": "nan"}, "--lr nan is not"),
    "pair": ({"crop_scale": (1, 0.5)}, "--crop-scale 1 0.5: the lower end"),
    "own option": ({"model_kwargs": {"num_classes": 4}}, "--model-kwargs num_classes=4: this has an option"),
    "optimiser": ({"opt": "best"}, "--opt 'best' is none"),
    "device": ({"device": "abacus"}, "device 'abacus'"),
    "folder": ({"output": "{used}"}, "is not empty and holds no run"),
    "size": ({"img_size": 40}, "--img-size 40 40: an image of"),
    "decoder": ({"decoder_dim": 30, "decoder_heads": 4}, "width 30 and 4 heads cannot be built"),
    "target": ({"target": "features:hivit_atoo"}, "--target features:hivit_atoo: model 'hivit_atoo' is unknown; did"),
    "mask": ({"mask_ratio": 0.99}, "mask_ratio=0.99 keeps 0"),
    "batch": ({"batch_size": 7, "accumulate": 3}, "--batch-size 6 would work"),
    "warm-up": ({"recipe": "paper", "epochs": 5}, "--epochs 5 is no more than the recipe's warm-up of 40"),
    "form": ({"scale": "odd"}, "--scale odd: use"),
    "bands": ({"show_bands": 9}, "--show-bands 9: one or three"),
    "video": ({"frame_stride": 2}, "--frame-stride is for models of video"),
    "processes": ({"fsdp": True}, "--fsdp spreads"),
    "start": ({"decoder": "fresh"}, "--decoder fresh belongs to --checkpoint"),
    "root": ({"data_dir": "/data"}, "--data-dir /data: "),
}
EVALUATE: Wrong = {
    "kind": ({"mixup": "inf"}, "--mixup inf is not"),
    "pair": ({"epochs": 3, "warmup": 4}, "--epochs 3 with --warmup 4: the warm-up must be shorter"),
    "method": ({"k": 3}, "-k belongs to --method knn"),
    "own option": ({"model_kwargs": {"num_classes": 4}}, "--model-kwargs num_classes=4: this has an option"),
    "optimiser": ({"opt": "best"}, "--opt 'best' is none"),
    "device": ({"device": "abacus"}, "device 'abacus'"),
    "folder": ({"output": "{used}"}, "{used}"),
    "file": ({"json": "/nowhere/a"}, "--json /nowhere/a cannot be written"),
    "size": ({"img_size": 30}, "fails on --img-size 30"),
    "batch": ({"batch_size": 7, "accumulate": 3}, "--batch-size 6 would work"),
    "augmentation": ({"auto_augment": "rnd"}, "timm knows no augmentation 'rnd'"),
    "form": ({"scale": "odd"}, "--scale odd: use"),
    "video": ({"views": (2, 1)}, "--views is for models of video"),
    "root": ({"data_dir": "/data"}, "--data-dir /data: "),
}
EXTRACT: Wrong = {
    "kind": ({"workers": -1}, "--workers -1 is not"),
    "pair": ({"seed": 3}, "--seed 3 is of the random weights"),
    "device": ({"device": "abacus"}, "device 'abacus'"),
    "input": (
        {"images": ("{used}/none.png",)},
        "IMAGES {used}/none.png: no such file or folder; {used} has no none.png",
    ),
    "file": ({"output": "{used}/file"}, "-o {used}/file exists; --force replaces it"),
    "size": ({"img_size": 30}, "fails on --img-size 30"),
    "levels": ({"what": ("maps",), "levels": (9,)}, "--levels 9: hivit_atto has the levels 0 to 3"),
    "form": ({"scale": "odd"}, "--scale odd: use"),
    "bands": ({"bands": (1, 2)}, "--bands names 2 bands, and the model takes 3 channels"),
    "video": ({"frame_stride": 2}, "--frame-stride is for models of video"),
}
RECONSTRUCT: Wrong = {
    "kind": ({"seed": -1}, "--seed -1 is not"),
    "input": ({"images": ("{used}/none.png",)}, "IMAGES {used}/none.png: no such file or folder"),
    "file": ({"output": "{out}.txt"}, "name an image file that can be written, like"),
    "start": ({"checkpoint": "{used}/start"}, "--checkpoint {used}/start: no such file or folder"),
    "mask": ({"mask_ratio": 0.99}, "mask_ratio=0.99 keeps 0"),
    "form": ({"scale": "odd"}, "--scale odd: use"),
    "shown": ({"show_bands": 9}, "--show-bands 9: one or three"),
    "bands": ({"bands": (1, 2)}, "--bands names 2 bands, and the model takes 3 channels"),
    "video": ({"frame_rate": 2}, "--frame-rate is for models of video"),
}
FEATURES: Wrong = {
    "kind": ({"img_size": 0}, "--img-size 0 is not"),
    "pair": ({"seed": 1}, "--seed 1 is of the random weights"),
    "input": ({"images": ("{used}/none",)}, "IMAGES {used}/none: no such file or folder"),
    "model": ({"model": ("hivit_atto", "hivit_atoo")}, "did you mean hivit_atto"),
    "file": ({"output": "/nowhere/a.png"}, "-o /nowhere/a.png cannot be written"),
    "form": ({"scale": "odd"}, "--scale odd: use"),
    "device": ({"device": "abacus"}, "device 'abacus'"),
}
STATS: Wrong = {
    "kind": ({"most": 0}, "--most 0 is not"),
    "input": ({"data": "{used}/none"}, "{used}/none: no such folder, tar or table"),
    "file": ({"json": "/nowhere/a"}, "--json /nowhere/a cannot be written"),
    "form": ({"scale": "odd"}, "--scale odd: use"),
    "axes": ({"axes": "cwh"}, "--axes cwh is not"),
    "root": ({"data_dir": "/data"}, "--data-dir /data: "),
}
BENCHMARK: Wrong = {
    "kind": ({"rounds": 0}, "--rounds 0 is not"),
    "pair": ({"jobs": 2}, "--jobs: goes with --suite alone"),
    "model": ({"models": ("hivit_atto", "hivit_atoo")}, "model 'hivit_atoo' is unknown; did you mean hivit_atto"),
    "peer": ({"versus": "hpvit_atto:dense"}, "hpvit_atto cannot be pre-trained by masking here"),
    "device": ({"device": "abacus"}, "device 'abacus'"),
    "graphs": ({"compile": "cudagraphs"}, "--compile cudagraphs records what a GPU does"),
    "size": ({"img_size": 30}, "img_size=(30, 30) is too small"),
    "file": ({"output": "/nowhere/a"}, "-o /nowhere/a cannot be written"),
}
CONVERT: Wrong = {
    "kind": ({"dtype": "f8"}, "--dtype f8 is not one of float32"),
    "pair": ({"verify": True, "allow_nonfinite": True}, "--verify compares values, and NaN equals nothing"),
    "source": ({"source": "{used}/none.pth"}, "SOURCE {used}/none.pth does not exist; {used} has no none.pth"),
    "choice": ({"pool": "odd"}, "--pool odd is not one of avg, conv"),
    "layout": ({"layout": "x"}, "--layout x: layout 'x' is unknown"),
    "size": ({"img_size": 9000}, "--img-size 9000 9000: sides of 8192 pixels are the largest"),
    "clips": ({"inflate": "mean"}, "--inflate mean: hpvit_atto is no model of clips"),
    "folder": ({"output": "{used}"}, "-o {used} is not empty; use --force"),
}
FEW = {"model_kwargs": {"depths": (1, 0, 1)}}
VERBS = {
    "pretrain": (pretrain, PRETRAIN, {"data": "nowhere", "model": "hivit_atto", "output": "{out}", **FEW}),
    "evaluate": (evaluate, EVALUATE, {"data": "nowhere", "model": "hivit_atto", "method": "finetune"}),
    "extract": (extract, EXTRACT, {"images": ("{used}",), "model": "hivit_atto", "output": "{out}"}),
    "features": (features, FEATURES, {"images": ("{used}",), "model": "hivit_atto", "output": "{out}.html"}),
    "reconstruct": (reconstruct, RECONSTRUCT, {"images": ("{used}",), "model": "hivit_atto", "output": "{out}.png"}),
    "stats": (stats, STATS, {"data": "{used}"}),
    "benchmark": (benchmark, BENCHMARK, {"models": ("hivit_atto",)}),
    "convert": (convert, CONVERT, {"source": "{used}/file", "model": "hpvit_atto", "output": "{out}"}),
}


def combinations(wrong: Wrong) -> list[tuple[str, ...]]:
    """Some pairs and triples; a triple is three pairs at the cost of one."""
    chance = random.Random(0)
    kinds = ((list(itertools.combinations(wrong, count)), most) for count, most in ((2, 6), (3, 24)))
    return [names for found, most in kinds for names in chance.sample(found, min(most, len(found)))]


def filled(value: Any, paths: dict[str, str]) -> Any:
    """A value with the paths of the test."""
    if isinstance(value, tuple):
        return tuple(filled(one, paths) for one in value)
    return value.format(**paths) if isinstance(value, str) else value


@pytest.mark.parametrize("verb", VERBS)
def test_wrong_values_of_different_groups_are_all_found(verb: str, tmp_path: Path) -> None:
    module, wrong, fine = VERBS[verb]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    paths = {"used": str(tmp_path / "used"), "out": str(tmp_path / "out")}
    for names in [*((name,) for name in wrong), *combinations(wrong)]:
        given: dict[str, Any] = dict(fine)
        for name in names:
            given |= wrong[name][0]
        given = {name: filled(value, paths) for name, value in given.items()}
        with pytest.raises(BadOptions) as error:
            module.run(**given)
        lines = error.value.lines
        for name in names:
            assert sum(wrong[name][1].format(**paths) in line for line in lines) == 1, (names, lines)
        assert len(lines) == len(names), (names, lines)
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "file"]


def test_the_first_words_are_what_is_wrong_with_the_rest_too(tmp_path: Path) -> None:
    """A line that lacks an option says what is wrong with those that it has."""
    with pytest.raises(BadOptions) as error:
        pretrain.main(["--model", "hivit_atto", "--epochs", "2", "--warmup", "3", "--img-size", "40", "--opt", "best"])
    missing, *others = error.value.lines
    assert "required: DATA, -o" in missing
    assert [line.split()[0] for line in others] == ["--epochs", "--opt", "--img-size"]
    with pytest.raises(BadOptions, match=r"^DATA is missing; only --explain does without\n-o DIR is missing"):
        pretrain.run(model="hivit_atto")


# ---- what the recipe chose


def options_of(**said: Any) -> Any:
    return pretrain.VERB.options(data="x", model="hiera_atto_video", output="y", recipe="small", **said)


@pytest.mark.parametrize(("repeat", "accumulate"), [(1, 1), (4, 1), (6, 2), (100, 1), (256, 1), (1, 256), (3, 80)])
@pytest.mark.parametrize("images", [300, 5000])
def test_a_batch_counts_clips_and_stays_within_the_largest(repeat: int, accumulate: int, images: int) -> None:
    size = Size(images, repeat, 1)
    batch = small_pretraining(options_of(accumulate=accumulate), size).batch_size
    assert 0 < batch <= PRETRAINING.batches[1]
    assert batch % (repeat * accumulate) == 0


@pytest.mark.parametrize(
    ("said", "size", "words"),
    [
        ({}, Size(40, 6000, 1), r"^--repeat 6000: .* 256 clips in a batch at most.*--repeat 256 would work"),
        (
            {"accumulate": 300},
            Size(400, 1, 1),
            r"^--accumulate 300: .*--accumulate 256 would work, or say",
        ),
        ({"accumulate": 100}, Size(400, 4, 1), r"^--accumulate 100: .* 4 clips of a video.*--accumulate 64 would work"),
        (
            {"accumulate": 9},
            Size(8, 1, 1),
            r"^--accumulate 9: 9 passes are more than the 8 images.*--accumulate 8",
        ),
        ({}, Size(1, 1, 2), r"^2 processes are more than the 1 image of the data: start 1"),
        (
            {"warmup": 2400},
            Size(40, 1, 1),
            r"^--warmup 2400 epochs: the 2000 steps .* are 2000 epochs.*--warmup 200 w",
        ),
        (
            {"warmup": 9, "steps": 6},
            Size(40, 1, 1),
            r"^--warmup 9 epochs: --steps 6 are 6 epochs.*--warmup 0.6 ",
        ),
        ({"blr": 1e308}, Size(40, 1, 1), r"^--blr 1e\+308 is no rate for a batch of 40"),
    ],
)
def test_messages_speak_of_what_was_given(said: dict[str, Any], size: Size, words: str) -> None:
    if "blr" in said:
        said = said | {"batch_size": None}
        size = size._replace(images=5000)
        words = words.replace("40", "64")
    with pytest.raises(ValueError, match=words) as error:
        small_pretraining(options_of(**said), size)
    assert ("--epochs" in str(error.value)) == ("epochs" in said)


def test_repeat_is_refused_before_data_are_opened(tmp_path: Path) -> None:
    options = {"data": "nowhere", "model": "hiera_atto_video", "output": tmp_path / "out", "recipe": "small"}
    with pytest.raises(ValueError, match=r"^--repeat 6000: .*; --repeat 256 would work"):
        pretrain.run(**options, repeat=6000)
    with pytest.raises(ValueError, match=r"^--repeat 6000: .*; --repeat 256 would work"):
        evaluate.run(data="nowhere", model="hiera_atto_video", method="finetune", recipe="small", repeat=6000)


# ---- explained without data


@pytest.mark.parametrize("model", ["hivit_atto", "hiera_atto_video", "vit_tiny_patch16_224"])
def test_a_recipe_is_explained_without_data(model: str) -> None:
    found = {line["name"]: line for line in pretrain.run(model=model, explain=True, device="cpu")}
    assert found["batch_size"]["value"] == "64 to 256"
    assert "which DATA would tell" in found["warmup"]["origin"]
    assert found["steps"]["value"] == "2000 or more"
    assert found["videos" if "video" in model else "images"]["value"] == "unknown"
    paper = {line["name"]: line for line in pretrain.run(model=model, explain=True, recipe="paper")}
    assert not [line for line in paper.values() if line["instead"]]
    assert (paper["steps"]["value"], paper["batch_size"]["origin"]) == ("unknown", "recipe")
    told = {line["name"]: line for line in pretrain.run(model=model, explain=True, steps=40, batch_size=8, lr=1e-3)}
    assert [told[name]["value"] for name in ("steps", "batch_size", "lr")] == ["40", "8", "0.001"]


def test_fine_tuning_is_explained_without_data() -> None:
    lines = evaluate.run(model="hivit_atto", method="finetune", explain=True, device="cpu", epochs=7)
    found = {line["name"]: line["value"] for line in lines}
    assert (found["epochs"], found["batch_size"], found["steps"]) == ("7", "64 to 256", "500 or more")
    with pytest.raises(ValueError, match="DATA is missing"):
        evaluate.run(model="hivit_atto", method="knn")
