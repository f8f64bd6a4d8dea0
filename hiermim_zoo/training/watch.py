"""Processes of a run look after each other, so that none waits for ever for one that is gone.

Where a process ends with an error, torchrun ends those of the same machine. But nobody tells other machines, and nobody
notices a machine that vanishes. So each process counts its beats where all of them met (in torch's store), reads those
of the process before it, in a ring, and ends with one line when they stop. Whoever notices says so in the store, and
the others read it: a living process that comes after a dead one ends the whole run.

What counts is not time but the watcher's own beats: processes that are all stopped for a night go on in the morning.
Beats come from a thread, so a process that compiles, writes or waits goes on beating. One that a debugger stops does
not: ``HIERMIM_PATIENCE=0`` in the environment of all processes turns the watch off.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BEAT = 3.0  # seconds from one beat to the next
PATIENCE = 45.0  # seconds without a beat after which a process is given up
LEAST = 2.0  # of them: machines are busy
GRACE = 4.0  # seconds that a process has to end by itself once the run has failed
FAILED = 2  # exit code
VERDICT, LEAVING, LEFT = "verdict", "leaving", "left"


def patience() -> float:
    """Seconds that a process may be silent; 0: any.

    Raises:
        ValueError: the environment says something else.
    """
    said = os.environ.get("HIERMIM_PATIENCE", str(PATIENCE))
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1
    if seconds != 0 and not LEAST <= seconds < float("inf"):
        raise ValueError(f"HIERMIM_PATIENCE={said} is no number of seconds: {LEAST:g} or more, or 0 for no watch")
    return seconds


def end_process(line: str) -> None:
    """Print a line and end this process, whatever its other threads do or wait for."""
    if os.environ.get("HIERMIM_DEBUG"):
        faulthandler.dump_traceback()
    os.write(2, f"{chr(10) if sys.stderr.isatty() else ''}error: {line}\n".encode())  # off the line of a bar
    os._exit(FAILED)


class Watch:
    """This process beats, and listens to the one before it.

    One thread talks to the store, which may never answer; another one looks at what it heard, and judges.

    Args:
        store: where all processes of the run meet; a connection of its own.
        again: what the user is to do when the run has failed.
        seconds: that a process may be silent, more than 0.
        end: this process with a line.
    """

    def __init__(
        self, store: Any, rank: int, size: int, again: str, seconds: float, end: Callable[[str], None] = end_process
    ) -> None:
        self.store, self.rank, self.size, self.again, self.seconds, self.end = store, rank, size, again, seconds, end
        self.beat = min(BEAT, seconds / 5)
        self.before = (rank - 1) % size
        self.verdict = ""  # why the run ends
        self.heard = self.talks = 0  # beats of the process before; talks with the store
        self.stopping, self.ending = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._judge)]
        for thread in self.threads:
            thread.start()

    def _talk(self) -> None:
        try:
            while not self.stopping.is_set():
                self.store.add(f"beat/{self.rank}", 1)
                self.heard = self.store.add(f"beat/{self.before}", 0)
                if self.store.check([VERDICT]):
                    self.verdict = self.store.get(VERDICT).decode()
                self.talks += 1
                self.stopping.wait(self.beat)
        except RuntimeError:
            self.verdict = self.verdict or f"the process where this run met is gone: ended; {self.again}"

    def _judge(self) -> None:
        heard = talks = -1
        silent = mute = doomed = 0.0  # seconds
        while not self.stopping.wait(self.beat):
            silent = 0 if self.heard != heard or not self.heard else silent + self.beat  # it may start later
            mute = 0 if self.talks != talks else mute + self.beat
            heard, talks = self.heard, self.talks
            doomed += self.beat if self.verdict else 0
            if doomed > GRACE:
                self._end(self.verdict)
            elif not self.verdict and mute >= self.seconds:
                self._end(self._silence("the process where this run met"))
            elif not self.verdict and silent >= self.seconds:
                self._end(self._silence(f"process {self.before} of this run"), tell=True)

    def _silence(self, who: str) -> str:
        return f"{who} has not been heard of for {self.seconds:g} s: ended; {self.again}"

    def _end(self, line: str, tell: bool = False) -> None:
        if tell:
            self._tell(line)
        with self.ending:
            if not self.stopping.is_set():
                self.end(line)

    def _tell(self, line: str) -> None:
        """Let the others know; the store may never answer."""

        def tell() -> None:
            try:
                self.store.set(VERDICT, line)
            except RuntimeError:  # they notice by themselves that it is gone
                return

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        teller.join(GRACE)

    def leave(self, seconds: float = float("inf")) -> None:
        """Wait until all processes are ready to leave, then stop: none of them is missed.

        Args:
            seconds: to wait at most.

        Raises:
            ValueError: the store is gone.
        """
        try:
            self._wait_for_all(LEAVING, seconds)
            if self.rank == 0:  # the store may be its own
                self._wait_for_all(LEFT, min(seconds, self.seconds))
            else:
                self.store.add(LEFT, 1)
        except RuntimeError as error:
            raise ValueError(f"another process of this run failed; {self.again}") from error
        finally:
            self.stop()

    def _wait_for_all(self, name: str, seconds: float) -> None:
        until, nap = time.monotonic() + seconds, 0.01
        ready = self.store.add(name, 1)
        while ready < self.size and time.monotonic() < until:
            time.sleep(nap)
            nap = min(2 * nap, 1.0)
            ready = self.store.add(name, 0)

    def fail(self, who: str = "") -> None:
        """Tell the others that this process, or whoever it names, has failed; stop."""
        self._tell(f"{who or f'process {self.rank}'} of this run failed: ended; {self.again}")
        self.stop()

    def stop(self) -> None:
        """Neither beat nor judge any longer."""
        with self.ending:
            self.stopping.set()
        for thread in self.threads:
            thread.join(GRACE)
