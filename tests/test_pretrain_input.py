"""What pre-training refuses: options, folders and data, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hiermim_zoo import pretrain
from hiermim_zoo.training import snapshots
from hiermim_zoo.training.checks import problems

from .forks import Forks
from .runs import SMALL, TWIN, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--model", "hivit_huge"), "'hivit_huge' is unknown.*did you mean"),
        (("--model", "resnet18"), "resnet18 is a model of timm.*not of this package"),
        (("--mask-ratio", "1.5"), "--mask-ratio 1.5"),
        (("--mask-ratio", "0"), "--mask-ratio 0"),
        (("--mask-ratio", "0.9"), "mask_ratio=0.9 keeps 0 of 4 units"),
        (
            ("--img-size", "40"),
            "--img-size 40 40: .* is not a whole number of mask units; 48 x 48 is",
        ),
        (("--img-size", "8"), "8"),
        (("--img-size", "32", "32", "32"), "--img-size 32 32 32: one number, or height and width"),
        (("--batch-size", "9", "--accumulate", "2"), "batch of 9 cannot be shared"),
        (("--batch-size", "5000"), "batch of 5000 is more than the 1497 images"),
        (("--decoder-dim", "30"), "width 30"),
        (("--warmup", "3"), "--epochs 1 with --warmup 3: the warm-up must be shorter than the run"),
        (("--model-kwargs", "depth=3", "img_size=64"), "--model-kwargs img_size=64: this has an option of its own"),
        (("--model-kwargs", "colour='red'"), "cannot be built with .*'colour': 'red'"),
        (("--epochs", "-1"), "--epochs -1"),
        (("--mean", "0.5", "0.5"), "--mean has 2 values"),
        (("--opt", "adamwish"), "'adamwish'"),
        (("--fsdp",), "--fsdp.*torchrun"),
        (
            ("--model", "green_swin_atto", "--img-size", "64", "--model-kwargs", "plan_method='window'", "--compile"),
            "use 'sort'",
        ),
        (("--checkpoint", "missing"), "missing"),
        (("--checkpoint", "missing", "--pretrained"), "exclude each other"),
        (("--export-only",), "--resume auto"),
        (("--export-only", "--resume", "auto"), "holds no snapshot"),
        (("--device", "tpu"), "'tpu' cannot be used"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path: Path, argv: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train(tmp_path / "out", *argv)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_a_runs_own(tmp_path: Path) -> None:
    """What a run left that ended before its first step is in nobody's way; what is of no run is never written among."""
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    for folder in (own, foreign):
        folder.mkdir()
        (folder / "run.lock").write_text("process 1\n")
        (folder / "log.jsonl").touch()
    (foreign / "image.jpg").touch()
    for resume in (None, "auto"):
        assert snapshots.where(own, resume) is None
        with pytest.raises(ValueError, match=r"foreign is not empty and holds no run; name another -o"):
            snapshots.where(foreign, resume)
    (own / "log.jsonl").write_text("{}\n")
    assert snapshots.where(own, "auto") is None
    with pytest.raises(ValueError, match="own holds another run: --resume auto goes on"):
        snapshots.where(own, None)


def test_previews_are_never_written_among_the_images_of_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    for inside in (data / "train" / "run", data / "train" / "more" / "run"):
        assert any(f"-o {inside} is inside {data / 'train'}" in line for line in problems_with(data, inside))
    assert not problems_with(data, data / "run")  # beside the split, where nobody looks for images
    (data / "train").rmdir()
    assert any(f"-o {data / 'run'} is inside {data}" in line for line in problems_with(data, data / "run"))


def problems_with(data: Path, output: Path) -> list[str]:
    return problems({"data": str(data), "output": output, "model": "hivit_atto"})


def test_checks_come_in_the_order_of_their_cost(tmp_path: Path) -> None:
    """Options, output folder, model, data, batch: of several mistakes the first is named, and nothing is written."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    mistakes: dict[str, dict[str, Any]] = {
        "--epochs -1": {"epochs": -1},
        "'adamwish'": {"opt": "adamwish"},
        "holds no run": {"output": tmp_path / "used"},
        "--img-size 40 40": {"img_size": 40},
        "missing: no such folder": {"data": "missing"},
        "batch of 5000": {"batch_size": 5000},
    }
    right = {"data": "digits", "output": tmp_path / "out", **TWIN}
    for n, words in enumerate(mistakes):
        wrong = {name: value for one in list(mistakes.values())[n:] for name, value in one.items()}
        with pytest.raises(ValueError, match=words):
            pretrain.run(**{**right, **wrong})
    assert [path.name for path in tmp_path.rglob("*") if path.name != "cache"] == ["used", "file"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "holds no images of a kind"),
        ("missing", "no such folder"),
        ("a.png", "a single image: name the folder"),
    ],
)
def test_bad_data_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=words):
        train(tmp_path / "out", data=str(tmp_path / name))
    assert not (tmp_path / "out").exists()


def test_the_command_says_so_in_one_line(forked: Forks, tmp_path: Path) -> None:
    done = forked.command("hiermim_zoo.pretrain", "digits", *SMALL, "-o", tmp_path / "out", "--mask-ratio", "2")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("error: --mask-ratio 2 is not")
