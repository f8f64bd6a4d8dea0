"""How far something is: a line every half minute where there is no terminal."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from hiermim_zoo import progress
from hiermim_zoo.progress import Progress

EVERY = 30.0


class Clock:
    """A time that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "EVERY", EVERY)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(progress, "are_progress_bars_disabled", lambda name: False)
    return clock


def test_without_a_terminal_there_is_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(200, "step", done=100) as bar:
        for step in range(100, 200):
            clock.now += 2
            bar.update(loss=f"{step / 100:.2f}", images_s="64")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out
    assert len(lines) == 200 // EVERY
    assert lines[0] == "step 115 of 200, 57 %: loss 1.14, images_s 64, 3 min left"
    assert lines[-1] == "step 190 of 200, 95 %: loss 1.89, images_s 64, 20 s left"


def test_what_is_short_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "image") as bar:
        for _ in bar.over(range(10)):
            clock.now += 2.9
    assert bar.done == 10
    assert capsys.readouterr() == ("", "")


def test_what_has_no_end_is_counted(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None, "B", what="model\x1b[2J") as bar:
        clock.now += EVERY
        bar.update(3_400_000)
    assert capsys.readouterr().err == "model\\x1b[2J: 3 MB: 0.113 MB/s\n"


@pytest.mark.parametrize("quiet", ["other processes", "the environment"])
def test_it_can_be_silent(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quiet: str
) -> None:
    if quiet == "the environment":
        monkeypatch.setattr(progress, "are_progress_bars_disabled", lambda name: True)
    with Progress(10, "step", shown=quiet != "other processes") as bar:
        for _ in range(10):
            clock.now += EVERY
            bar.update()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(2, "step", leave=True) as bar:
        for _ in range(2):
            clock.now += EVERY
            bar.update(loss="0.5")
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "loss=0.5" in shown
    assert " of 2" not in shown  # no lines beside it


def test_a_closed_stderr_is_no_matter(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere: Any = None
    monkeypatch.setattr(sys, "stderr", nowhere)
    with Progress(2, "step") as bar:
        clock.now += EVERY
        bar.update()
    assert bar.done == 1


def test_what_does_not_say_how_far_it_is_says_for_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.01)
    enough = threading.Event()
    monkeypatch.setattr(progress, "duration", lambda seconds: enough.set() or "5 s")
    with progress.waiting("sending 3 files"):
        assert enough.wait(10)
    said = capsys.readouterr().err.splitlines()
    assert set(said) == {"sending 3 files: 5 s so far"}
    monkeypatch.setattr(progress, "are_progress_bars_disabled", lambda: True)
    enough.clear()
    with progress.waiting("sending 3 files"):
        assert not enough.wait(0.05)
