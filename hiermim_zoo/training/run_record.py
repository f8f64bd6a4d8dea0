"""What a run of training was told, what it runs on, and how it ended: run.json, from the first second of a run.

A run that goes on from a snapshot adds a session to it. Nothing of the environment goes in, and no run fails because
this file cannot be written.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..checkpoints.atomic import replacing
from ..checkpoints.configs import CONFIG_KEY
from ..checkpoints.folder import RUN_FILE
from ..version import __version__
from .lock import FILE as LOCK
from .run_clients import BOARD, SERVICE, TABLE
from .run_log import LOG, say

FINISHED, STOPPED, FAILED, KILLED, GOES_ON = "finished", "stopped", "failed", "killed", "goes on"  # how a session ended
BEGAN = "as the run began"  # where a value comes from that a run which goes on keeps
SESSION = "session"  # of what is said of a run, that which is about one part of it
OWN = (LOCK, RUN_FILE, BOARD, SERVICE, TABLE)  # what a run writes before its first step


class RunRecord:
    """run.json of a folder.

    Args:
        folder: of the run; None: nothing is written.
        active: False in all processes of the run but the first: they write nothing.
    """

    def __init__(self, folder: Path | None, active: bool = True) -> None:
        self.file = folder / RUN_FILE if folder and active else None
        self.content: dict[str, Any] = {}

    def begin(self, about: Mapping[str, Any], session: Mapping[str, Any], start: int = 0) -> None:
        """Write that a run begins, or goes on.

        Args:
            about: the run, by name, and what SESSION has of this part of it; of a run that goes on, and has said it,
                what it said stays.
            session: what else there is to say of this part.
            start: step from which it goes on.
        """
        had = read_record(self.file.parent) if self.file and start else {}
        before = [one if one.get("ended") else {**one, "ended": {"how": KILLED}} for one in had.get("sessions", [])]
        now = {"began": _now(), "start": start, "process": os.getpid(), "host": socket.gethostname(), **session}
        now |= about.get(SESSION, {})
        kept = {name: value for name, value in had.items() if name not in ("sessions", CONFIG_KEY)}
        new = {name: value for name, value in about.items() if name != SESSION}
        if kept:  # what a run may change when it goes on is as it is now
            now_said = {name: one for name, one in new.get("options", {}).items() if one["from"] != BEGAN}
            kept["options"] = {**kept.get("options", {}), **now_said}
        kept = kept or new
        self.content = {CONFIG_KEY: __version__, **kept, "sessions": [*before, now]}
        self.write()

    def end(self, how: str, why: str = "", step: int | None = None) -> None:
        """Write how this session ended.

        Args:
            why: in a line.
            step: after which.
        """
        if self.content:
            ended = {"how": how, "why": why, "step": step, "time": _now()}
            self.content["sessions"][-1]["ended"] = {
                key: value for key, value in ended.items() if value not in ("", None)
            }
            self.write()

    def write(self) -> None:
        """Replace the file; if that cannot be, say so."""
        if not self.file:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as part:
                part.write_text(json.dumps(self.content, indent=2, default=str) + "\n", encoding="utf-8")
        except (OSError, ValueError, TypeError) as error:
            say(f"warning: {self.file} cannot be written ({error}); the run goes on without it")

    @contextmanager
    def during(self, step: Callable[[], int], total: int) -> Iterator[None]:
        """Inside, the run runs: however that ends, it is written.

        Args:
            step: that is done by then.
            total: steps of the whole run.
        """
        with self._terminated(step):
            try:
                yield
            except KeyboardInterrupt:
                self.end(STOPPED, "Ctrl-C", step())
                raise
            except SystemExit as error:
                self.end(STOPPED, _signal_of(error), step())
                raise
            except BaseException as error:
                self.end(FAILED, " ".join(f"{_kind(error)}{error}".split()), step())
                raise
        done = step()
        self.end(*((FINISHED, "") if done >= total else (STOPPED, "--stop-after")), done)

    @contextmanager
    def _terminated(self, step: Callable[[], int]) -> Iterator[None]:
        """Inside, SIGTERM ends the process as ever, but is noted first. A run that heeds it by itself is left alone."""
        ours = threading.current_thread() is threading.main_thread()
        if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            yield
            return

        def note(number: int, _: object) -> None:
            self.end(STOPPED, signal.Signals(number).name, step())
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def read_record(folder: Path) -> dict[str, Any]:
    """What run.json of a folder says; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("sessions"), list):
            sessions = [one for one in found["sessions"] if isinstance(one, dict)]
            return {**found, "sessions": sessions}
    return {}


def how_it_ended(session: Mapping[str, Any]) -> dict[str, Any]:
    """How a session ended; of one that does not say it, whether it goes on, as far as can be told on this machine."""
    if isinstance(session.get("ended"), dict):
        return dict(session["ended"])
    if session.get("host") != socket.gethostname():
        return {"how": GOES_ON, "why": "or was killed: it runs on another machine"}
    try:
        os.kill(int(session["process"]), 0)
    except PermissionError:
        return {"how": GOES_ON}
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        return {"how": KILLED}
    return {"how": GOES_ON}


def has_no_step(folder: Path) -> bool:
    """Whether nothing is in a folder but what a run leaves that ended before its first step."""
    if not folder.is_dir():
        return True
    return all(path.name in OWN or (path.name == LOG and not path.stat().st_size) for path in folder.iterdir())


def _now() -> str:
    """UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _kind(error: BaseException) -> str:
    """What stands before the words of an error: nothing where it is made for people."""
    return "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "


def _signal_of(error: SystemExit) -> str:
    code = error.code if isinstance(error.code, int) else 0
    with suppress(ValueError):
        return signal.Signals(code - 128).name
    return f"exit code {error.code}"
