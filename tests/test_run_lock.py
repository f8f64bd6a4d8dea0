"""One folder, one run: a second one is refused, and the lock is gone with the process that held it, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hiermim_zoo import pretrain
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.commands.options.pretrain import PretrainOptions
from hiermim_zoo.training import lock as locks
from hiermim_zoo.training import resuming, snapshots
from hiermim_zoo.training.distributed import World
from hiermim_zoo.training.lock import FILE, FolderLock

SMALL = shlex.split(
    "digits --model hivit_atto --img-size 32 --decoder-depth 1 --decoder-dim 32 --decoder-heads 2 --batch-size 8 "
    "--epochs 1 --warmup 0 --workers 0 --device cpu --look-every 0"
)
# Holds a lock, and has a child that outlives it, as a process that reads images may for a while.
HOLDER = """
import os, sys, time
from pathlib import Path
from hiermim_zoo.training.lock import FolderLock
FolderLock(Path(sys.argv[1]), True).take()
child = os.fork()
if not child:
    os.close(1)
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


def test_a_folder_has_one_lock_at_a_time(tmp_path: Path) -> None:
    with FolderLock(tmp_path, True) as first:
        first.take()
        first.take()  # it is its own
        with (
            FolderLock(tmp_path, True) as second,
            pytest.raises(ValueError, match=rf"another run is writing to .*process {os.getpid()} on .*another -o"),
        ):
            second.take()
        with FolderLock(tmp_path, False) as other:  # a further process of the first run
            other.take()
    with FolderLock(tmp_path, True) as later:
        later.look()
        assert later.descriptor is not None


def test_looking_writes_nothing(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "new", True) as lock:
        lock.look()
    with FolderLock(tmp_path, True) as lock:
        lock.look()
    assert not (tmp_path / FILE).exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_lock_ends_with_its_process_though_a_child_lives_on(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        child = int(holder.stdout.readline())
        try:
            with FolderLock(tmp_path, True) as lock, pytest.raises(ValueError, match=f"process {holder.pid} on"):
                lock.look()
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            os.kill(child, 0)  # it lives
            with FolderLock(tmp_path, True) as lock:
                lock.look()
                assert lock.descriptor is not None
        finally:
            os.kill(child, signal.SIGKILL)


def test_where_nothing_can_be_locked_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*what: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = set(locks._held)
    with FolderLock(tmp_path, True) as lock:
        lock.take()
    assert "cannot be locked (No locks available)" in capsys.readouterr().err
    assert locks._held == before


def test_a_second_run_is_refused_before_it_writes_and_goes_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = [*SMALL, "-o", str(out), "--steps", "2"]
    pretrain.main([*argv, "--stop-after", "1"])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != FILE}
    capsys.readouterr()
    with FolderLock(out, True) as lock:
        lock.take()
        for more in ([], ["--resume", "auto"]):
            with pytest.raises(SystemExit) as stop:
                run_command(partial(pretrain.main, [*argv, *more]))
            assert stop.value.code == 2
            [line] = capsys.readouterr().err.splitlines()
            assert "another run is writing to" in line
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != FILE} == before
    pretrain.main([*argv, "--resume", "auto"])
    assert [snapshots.step_of(path) for path in snapshots.found(out / snapshots.FOLDER)] == [1, 2]


def test_all_processes_say_why_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that another process failed: the first one tells the others what it found."""
    told: list[Any] = []

    def first_says(own: Any) -> list[Any]:
        told.append(own)
        return told[:1]

    monkeypatch.setattr(resuming, "gather_objects", first_says)
    options = PretrainOptions(data="digits", model="hivit_atto", output=tmp_path, resume="auto")
    with FolderLock(tmp_path, True) as lock:
        lock.take()
        for rank in range(2):
            world = World(rank, 2, torch.device("cpu"))
            with pytest.raises(ValueError, match=r"another run is writing to .* or give another -o"):
                resuming.begun_run(options, world, FolderLock(tmp_path, world.first))
    assert told[1] == (None, "")  # the second process found nothing by itself


def test_two_that_begin_together_do_not_both_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one comes after the first look at the folder."""
    out = tmp_path / "out"
    look = FolderLock.look
    others: list[FolderLock] = []

    def look_and_lose(self: FolderLock) -> None:
        look(self)
        out.mkdir()
        others.append(FolderLock(out, True))
        others[-1].take()

    monkeypatch.setattr(FolderLock, "look", look_and_lose)
    monkeypatch.setattr(snapshots, "where", lambda output, resume: None)
    with pytest.raises(ValueError, match="another run is writing to"):
        pretrain.main([*SMALL, "-o", str(out), "--steps", "1"])
    assert [path.name for path in out.iterdir()] == [FILE]
    others[0].release()
