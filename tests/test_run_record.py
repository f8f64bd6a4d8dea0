"""What a run leaves for those who follow it: run.json, one form of log, and the clients of --log."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hiermim_zoo import evaluate, pretrain
from hiermim_zoo.commands.options.problems import BadOptions
from hiermim_zoo.training import run_clients
from hiermim_zoo.training.run_log import COLUMNS, RunLog, read_log
from hiermim_zoo.training.run_record import RunRecord, how_it_ended, read_record

from .forks import Forks

ROOT = Path(__file__).parents[1]
IMAGES = str(ROOT / "examples" / "pictures")
RUN: dict[str, Any] = {"data": IMAGES, "model": "hivit_atto", "img_size": 32, "workers": 0, "batch_size": 20}
RUN |= {"decoder_depth": 1, "decoder_dim": 16, "decoder_heads": 2, "steps": 4, "log_steps": 1, "look_every": 0}
RUN |= {"device": "cpu", "seed": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a preview that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    pretrain.run(**RUN | {"look_every": 0.4}, output=folder, log=["csv"])
    return folder


@pytest.fixture(scope="module")
def tuned(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning of its encoder."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    how: dict[str, Any] = {"model": f"local-dir:{whole / 'encoder'}", "method": "finetune", "workers": 0}
    how |= {"epochs": 2, "warmup": 0, "batch_size": 40, "eval_every": 2, "device": "cpu"}
    evaluate.run(data=IMAGES, output=folder, log=["csv"], **how)
    return folder


# ---- run.json


def test_the_record_says_where_each_value_comes_from(whole: Path) -> None:
    found = read_record(whole)
    options = found["options"]
    assert set(options) == set(pretrain.VERB.options.__dataclass_fields__)
    assert options["batch_size"] == {"value": 20, "from": "option --batch-size", "recipe": "4096"}
    assert options["output"]["from"] == "option -o"
    assert options["weight_decay"]["from"] == "recipe"
    assert "main_pretrain" in options["weight_decay"]["source"]
    assert "mae" in options["masks"]["source"]
    assert options["lr"]["from"].startswith("recipe small")
    assert options["max_bad"] == {"value": 0.01, "from": "default"}
    assert options["steps"]["value"] == 4
    assert found["derived"]["images seen"] == {"value": "80", "from": "rule: steps * batch size"}
    assert found["data"]["count"] == 200
    assert found["data"]["classes"] == 10
    assert found["data"]["first image"] == [32, 32]
    [session] = found["sessions"]
    assert session["ended"]["how"] == "finished"
    assert session["ended"]["step"] == session["total"] == 4
    assert session["versions"]["torch"]
    assert session["machine"]["processor"]
    assert found["parameters"]["autoencoder"] > found["parameters"]["encoder"] > 500_000


def test_the_record_of_fine_tuning_has_the_same_form(whole: Path, tuned: Path) -> None:
    ours, theirs = read_record(whole), read_record(tuned)
    assert ours.keys() - {"input_size"} == theirs.keys()
    assert ours["sessions"][0].keys() == theirs["sessions"][0].keys()
    assert theirs["options"]["epochs"] == {"value": 2, "from": "option --epochs", "recipe": "100"}
    assert theirs["options"]["layer_decay"]["from"] == "recipe"
    assert theirs["sessions"][0]["ended"]["how"] == "finished"
    assert read_record(tuned)["options"]["amp"]["from"] == "default"  # nobody said it
    assert "--amp" not in read_record(tuned)["sessions"][0]["command"]


def test_nothing_of_the_environment_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hf_secret_of_mine")
    pretrain.run(**RUN | {"steps": 1}, output=tmp_path / "run")
    assert "hf_secret" not in (tmp_path / "run" / "run.json").read_text(encoding="utf-8")


def test_a_run_that_goes_on_adds_a_session_and_changes_no_bit(whole: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    pretrain.run(**RUN | {"look_every": 0.4, "stop_after": 2}, output=parts, log=["csv"])
    assert read_record(parts)["sessions"][0]["ended"]["why"] == "--stop-after"
    with (parts / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "loss"')  # of a process that was killed
    again = {name: RUN[name] for name in ("data", "model", "workers", "device", "log_steps")}
    pretrain.run(**again, look_every=0.4, output=parts, resume="auto")  # whom it told, it goes on telling
    first, second = read_record(parts)["sessions"]
    assert (first["start"], second["start"], second["ended"]["how"]) == (0, 2, "finished")
    assert second["given"]["resume"] == "auto"
    assert read_record(parts)["options"] == {
        **read_record(whole)["options"],
        "output": {"value": str(parts), "from": "option -o"},
        "resume": {"value": "auto", "from": "option --resume"},
    }  # no --stop-after, which was of the first part
    for name in ("encoder/model.safetensors", "encoder/decoder.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()

    def numbers(folder: Path) -> list[dict[str, Any]]:
        timed = {"time", "images_s", "waiting", "gib", "left"}
        notes = [note for note in read_log(folder) if "loss" in note]  # each part ends with a preview
        return [{k: v for k, v in note.items() if k not in timed} for note in notes]

    assert numbers(parts) == numbers(whole)
    tables = [list(csv.DictReader((folder / "log.csv").read_text().splitlines())) for folder in (parts, whole)]
    losses = [[row["loss"] for row in table if row["loss"]] for table in tables]
    assert losses[0] == losses[1]
    assert list(tables[0][0]) == list(COLUMNS)


def test_how_a_run_ended_is_noted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="were not finite"):
        pretrain.run(**RUN | {"steps": 9, "lr": 1e30, "max_nonfinite": 1}, output=tmp_path / "a")
    ended = read_record(tmp_path / "a")["sessions"][0]["ended"]
    assert ended["how"] == "failed"
    assert "--max-nonfinite 1" in ended["why"]
    record = RunRecord(tmp_path)
    record.begin({}, {})
    with pytest.raises(KeyboardInterrupt), record.during(lambda: 7, 9):
        raise KeyboardInterrupt
    assert how_it_ended(read_record(tmp_path)["sessions"][0])["why"] == "Ctrl-C"


def test_a_signal_that_ends_the_process_is_noted_first(forked: Forks, tmp_path: Path) -> None:
    code = (
        "import os, signal, pathlib, sys\n"
        "from hiermim_zoo.training.run_record import RunRecord\n"
        "record = RunRecord(pathlib.Path(sys.argv[1])); record.begin({}, {})\n"
        "with record.during(lambda: 5, 9): os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert forked.run(code, tmp_path).returncode == -signal.SIGTERM
    ended = read_record(tmp_path)["sessions"][0]["ended"]
    assert (ended["how"], ended["why"], ended["step"]) == ("stopped", "SIGTERM", 5)


def test_a_run_without_an_end_was_killed_or_goes_on(tmp_path: Path) -> None:
    RunRecord(tmp_path).begin({}, {})
    [session] = read_record(tmp_path)["sessions"]
    assert how_it_ended(session)["how"] == "goes on"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert how_it_ended({**session, "process": gone.pid})["how"] == "killed"
    assert "another machine" in how_it_ended({**session, "host": "elsewhere"})["why"]


def test_a_record_that_cannot_be_written_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").mkdir()
    record = RunRecord(tmp_path)
    record.begin({}, {})
    with record.during(lambda: 1, 1):
        pass
    assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.part"))


def test_a_run_that_failed_before_its_first_step_is_in_nobodys_way(tmp_path: Path) -> None:
    RunRecord(tmp_path).begin({}, {})
    pretrain.run(**RUN | {"steps": 1}, output=tmp_path)
    assert len(read_record(tmp_path)["sessions"]) == 1


def test_images_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for file in sorted(Path(IMAGES).glob("cat/*.jpg"))[:8]:
        (data / file.name).write_bytes(file.read_bytes())
    (data / "bad\x1b.jpg").write_bytes(b"no image")
    pretrain.run(**RUN | {"data": str(data), "batch_size": 9, "steps": 1}, max_bad=2, output=tmp_path / "run")
    [line] = (tmp_path / "run" / "unreadable" / "rank-0.txt").read_text().splitlines()
    assert re.fullmatch(r"\S*bad\\\\?x1b.jpg \(.*\)", line)


# ---- the log


def test_the_log_is_as_documented(whole: Path, tuned: Path) -> None:
    text = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
    table = text.partition("<!-- columns -->")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M) == list(COLUMNS.items())
    every = [name for name in COLUMNS if name not in ("knn", "top1", "map", "r2")]
    for folder, score in ((whole, "knn"), (tuned, "top1")):
        notes = read_log(folder)
        steps, looks = ([note for note in notes if ("loss" in note) is wanted] for wanted in (True, False))
        assert steps
        assert looks
        assert all(list(note) == every for note in steps)
        assert all(list(note) == ["step", "epoch", "samples", "time", score] for note in looks)
        assert steps[-1]["left"] == 0
        for note in steps:
            for name in ("loss", "lr", "norm", "images_s", "gib"):
                assert float(f"{note[name]:.5g}") == note[name]
        with (folder / "log.csv").open(newline="") as file:
            assert [row["step"] for row in csv.DictReader(file)] == [str(note["step"]) for note in notes]


def test_logs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    old = {"epoch": 0, "samples": 64, "loss": 2.3, "lr": 1e-3, "images/s": 51.0, "seconds": 1.2, "top1": 9.5}
    (tmp_path / "log.jsonl").write_text(f'{json.dumps(old)}\n3\n{{"step": 7, "lo', encoding="utf-8")
    [note] = read_log(tmp_path)
    assert (note["epoch"], note["images_s"], note["top1"]) == (1, 51.0, 9.5)


def test_the_log_takes_no_other_names(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 2, True)
    with pytest.raises(TypeError, match="no column speed"):
        log.note(1, speed=3.0)
    log.note(2, loss=1 / 3, norm=float("inf"), images_s=123456.789)
    assert {"loss": 0.33333, "norm": None, "images_s": 123460.0}.items() <= read_log(tmp_path)[0].items()
    log.close()


# ---- clients


def test_a_client_that_is_absent_is_refused_with_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadOptions) as error:
        pretrain.run(**RUN | {"steps": 1, "opt": "no_such"}, output=tmp_path / "run", log=["wandb"])
    [line] = [line for line in error.value.lines if line.startswith("--log wandb")]
    assert 'pip install "hiermim-zoo[wandb]"' in line
    assert len(error.value.lines) == 2
    assert not (tmp_path / "run").exists()
    with pytest.raises(BadOptions, match="--log csv goes with"):
        evaluate.run(data=IMAGES, model="hivit_atto", method="finetune", log=["csv"])


class Calls:
    """A module like wandb that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.begun: dict[str, Any] = {}
        self.id, self.over = "abc", False

    def init(self, **how: Any) -> Calls:
        self.begun = how
        return self

    def Settings(self, **how: Any) -> Any:
        return SimpleNamespace(**how)

    def define_metric(self, *_: str, **__: str) -> None:
        return

    def log(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if len(self.lines) > 2:
            raise ConnectionError("gone")

    def finish(self, **_: Any) -> None:
        self.over = True


def test_wandb_is_told_and_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls()
    monkeypatch.setitem(sys.modules, "wandb", calls)
    log = RunLog(tmp_path, 0, 4, True, ["wandb", "csv"], {"options": {"lr": 1}})
    for step in (1, 2, 3, 4):
        log.note(step, loss=1.0 / step)
    log.close()
    assert calls.begun["config"] == {"options": {"lr": 1}}
    assert [line["step"] for line in calls.lines] == [1, 2, 3]
    assert calls.lines[1] == {"step": 2, "loss": 0.5, "left": calls.lines[1]["left"]}
    assert "--log wandb is told no more: ConnectionError: gone" in capsys.readouterr().err
    assert len(read_log(tmp_path)) == 4
    RunLog(tmp_path, 2, 4, True, ["wandb"]).close()
    assert calls.begun["id"] == "abc"
    assert calls.over


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_wandb_writes_offline(tmp_path: Path) -> None:
    code = f"from hiermim_zoo import pretrain; pretrain.run(**{RUN!r}, output='run', log=['wandb'])"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, timeout=300, check=True, capture_output=True)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert (tmp_path / "run" / "encoder" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_values_of_the_log(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 0, 3, True, ["tensorboard"])
    for step in (1, 2, 3):
        log.note(step, loss=1.0 / step)
    log.close()
    events = EventAccumulator(str(tmp_path / run_clients.BOARD))
    events.Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.3333)]
