"""Runs that go wrong: bad images, bad numbers, odd names. They go on where they can, and else end with a line."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hiermim_zoo import evaluate, pretrain
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.data.batches import NAMED, CheckedBatches, Companions
from hiermim_zoo.data.images import images_at
from hiermim_zoo.data.source import Request
from hiermim_zoo.mae import MAEOutput, MaskedAutoencoder
from hiermim_zoo.training import snapshots

MODEL = shlex.split("--model hivit_atto --img-size 32 --decoder-depth 1 --decoder-dim 32 --decoder-heads 2")
SMALL = [*MODEL, *shlex.split("--batch-size 4 --epochs 1 --warmup 0 --workers 0 --device cpu --look-every 1")]


def photographs(folder: Path, count: int, classes: str = "") -> Path:
    """Small images, in a folder for each class, if there are any."""
    for n in range(count):
        noise = np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        place = folder / classes[n % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(place / f"{n:03}.png")
    return folder


def exit_code(main: Any, argv: list[str]) -> Any:
    try:
        run_command(lambda: main(argv))
    except SystemExit as stop:
        return stop.code
    return 0


# ---- images that cannot be read


@pytest.mark.parametrize("count", [1, 5, 40])
def test_one_bad_image_ends_no_run_though_previews_look_at_it(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first image is one of those that are drawn, and with labels one of those whose neighbours are asked."""
    folder = photographs(tmp_path / "data", count + 1, "ab")
    (folder / "a" / "000.png").write_bytes(b"no image")
    argv = [str(folder), *SMALL, "--batch-size", "2", "-o", str(tmp_path / "out"), "--mean", "auto"]
    assert exit_code(pretrain.main, argv) == 0
    said = capsys.readouterr().err
    assert said.count("000.png (ValueError: it is no image") == 1
    assert len(list((tmp_path / "out" / "looks").iterdir())) == 1
    assert (tmp_path / "out" / "encoder" / "model.safetensors").exists()


def test_more_bad_images_than_allowed_end_it_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photographs(tmp_path / "data", 12)
    for n in (3, 7):
        (folder / f"{n:03}.png").write_bytes(b"no image")
    argv = [str(folder), *SMALL, "-o"]
    assert exit_code(pretrain.main, [*argv, str(tmp_path / "a")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 12 images cannot be read, which is more than --max-bad 0.01; the last one: " in line
    assert "(ValueError: it is no image" in line
    assert exit_code(pretrain.main, [*argv, str(tmp_path / "b"), "--max-bad", "2"]) == 0
    assert exit_code(pretrain.main, [*argv, str(tmp_path / "c"), "--max-bad", "0"]) == 2, "none means none"


def test_so_many_bad_images_are_named_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photographs(tmp_path / "data", 30)
    for n in range(20):
        (folder / f"{n:03}.png").write_bytes(b"no image")
    source = images_at(str(folder), Request())
    columns = torch.tensor([[0, n, 29] for n in range(20)])
    checked = CheckedBatches([(torch.zeros(20), Companions(columns))], source, max_bad=20)
    assert len(list(checked)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == NAMED + 1
    assert all("cannot be read, replaced by another: " in line for line in lines[:-1])
    assert "counted, not named" in lines[-1]


def test_in_place_of_a_bad_image_the_next_one_is_looked_at(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "data", 8)
    source = images_at(str(folder), Request())
    whole = [np.asarray(image) for image in source.some(4)]
    for n in (2, 3):
        (folder / f"{n:03}.png").write_bytes(b"")
    found = [np.asarray(image) for image in source.some(4)]
    expected = [np.asarray(source.read(n)[0]) for n in (0, 4, 5, 6)]  # in place of 2 comes 4, then 5 in place of 4
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert not (whole[1] == found[1]).all()
    assert len(source.some(50)) == 6
    for n in range(8):
        (folder / f"{n:03}.png").write_bytes(b"")
    assert source.some(4) == []


def test_evaluation_leaves_out_one_bad_image_of_any_share(tmp_path: Path) -> None:
    for split in ("train", "val"):
        photographs(tmp_path / "data" / split, 8, "ab")
    (tmp_path / "data" / "val" / "a" / "000.png").write_bytes(b"")
    options = {"data": str(tmp_path / "data"), "model": "hivit_atto", "method": "knn", "img_size": 32, "workers": 0}
    assert evaluate.run(**options, max_bad=0.01, pretrained=False)["pictures"] == 7
    assert evaluate.run(**options, max_bad=1, pretrained=False)["pictures"] == 7
    with pytest.raises(ValueError, match=r"a/000\.png cannot be read .*--max-bad N allows"):
        evaluate.run(**options, pretrained=False)


# ---- numbers


def test_a_run_that_skipped_every_step_writes_no_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = MaskedAutoencoder.forward

    def bad(mae: MaskedAutoencoder, *given: Any, **named: Any) -> MAEOutput:
        out = forward(mae, *given, **named)
        return out._replace(loss=out.loss * (float("nan") if mae.training else 1))

    argv = ["digits", *SMALL, "--look-every", "0", "--steps", "2", "-o", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(MaskedAutoencoder, "forward", bad)
        assert exit_code(pretrain.main, argv) == 2
    assert "no step changed the weights" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "encoder").exists()
    assert exit_code(pretrain.main, [*argv, "--resume", "auto", "--export-only"]) == 2, "its snapshot remembers"
    assert not (tmp_path / "out" / "encoder").exists()


def test_weights_that_are_not_finite_are_no_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["digits", *SMALL, "--look-every", "0", "--steps", "1", "--lr", "1e300", "-o", str(tmp_path / "out")]
    assert exit_code(pretrain.main, argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "holds values that are not finite, so no encoder is written" in line
    assert not (tmp_path / "out" / "encoder").exists()


def test_snapshots_of_before_that_count_no_updates_are_read(tmp_path: Path) -> None:
    argv = ["digits", *SMALL, "--look-every", "0", "--steps", "2", "-o", str(tmp_path / "out")]
    pretrain.main([*argv, "--stop-after", "1"])
    [snapshot] = snapshots.found(tmp_path / "out" / snapshots.FOLDER)
    state = snapshots.load(snapshot)
    assert state.pop("updates") == 1
    snapshot.unlink()
    snapshots.save_file(snapshot.parent, 1, state)
    pretrain.main([*argv, "--resume", "auto"])
    last = snapshots.load(snapshots.found(snapshot.parent)[-1])
    assert (last["step"], last["updates"]) == (2, 2)


# ---- names


ONE_BY_ONE = """
import ast, runpy, sys
for sys.argv in ast.literal_eval(sys.argv[1]):
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_names_that_are_no_text_are_written_escaped(tmp_path: Path) -> None:
    """In the language C, where the standard output knows ASCII alone."""
    folder = photographs(tmp_path / "data", 5)
    name = os.fsdecode(b"odd\xff\n.png")
    (folder / "000.png").rename(folder / name)
    (folder / name).write_bytes(b"no image")
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    out = os.fsdecode(os.fsencode(tmp_path) + b"/out\xe9")
    commands = (
        ["hiermim_zoo.pretrain", str(folder), *SMALL, "-o", out],
        ["hiermim_zoo.stats", str(folder), "--workers", "0", "--json", str(tmp_path / "stats.json")],
    )
    command = [sys.executable, "-c", ONE_BY_ONE, ascii(commands)]
    done = subprocess.run(command, env=env, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert rb"odd\udcff\n.png (ValueError: it is no image" in done.stderr
    trained, counted = done.stdout.split(b"\n", 1)
    assert rb"out\udce9/encoder" in trained
    assert rb"odd\udcff" in counted
    assert done.stdout.isascii()
    assert (tmp_path / "stats.json").read_bytes().isascii()
    [unreadable] = json.loads((tmp_path / "stats.json").read_text())["unreadable"]
    assert unreadable.endswith(name)


def test_the_list_of_a_skipped_step_takes_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photographs(tmp_path / "data", 4)
    for file in list(folder.iterdir()):
        file.rename(folder / os.fsdecode(os.fsencode(file.stem) + b"\xff\n.png"))
    forward = MaskedAutoencoder.forward

    def bad(mae: MaskedAutoencoder, *given: Any, **named: Any) -> MAEOutput:
        out = forward(mae, *given, **named)
        return out._replace(loss=out.loss * (float("nan") if mae.training else 1))

    monkeypatch.setattr(MaskedAutoencoder, "forward", bad)
    assert exit_code(pretrain.main, [str(folder), *SMALL, "-o", str(tmp_path / "out")]) == 2
    [file] = (tmp_path / "out" / "nonfinite").iterdir()
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    assert all(line.endswith(r"\udcff\n.png") for line in lines)
