"""A folder belongs to one run at a time.

The lock is that of the operating system on a file in the folder (``flock``). It ends with the process that holds it,
however that ends, so nothing is left to be removed by hand. On NFS it needs a server that locks, as those of version 4
do; where a file system has no locks, a line says that nobody looks out for a second run. Nobody does on Windows.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = "run.lock"  # in the folder; stays there, and says nothing but who came last
MISSING = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system that knows no locks
_held: set[int] = set()  # descriptors of this process


def _let_go_in_child() -> None:
    """A process that reads images was forked from the run: it must not hold the lock longer than the run lives."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


class FolderLock:
    """Says that a run of this process writes to a folder.

    Args:
        folder: of the run; it need not exist yet.
        active: False in all processes of the run but the first: they do nothing.
    """

    def __init__(self, folder: Path, active: bool) -> None:
        self.file, self.active = folder / FILE, active
        self.descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def look(self) -> None:
        """Take the lock of a folder that some run has had before; an error comes before any work, and writes nothing.

        Raises:
            ValueError: see :meth:`take`.
        """
        if self.file.is_file():
            self.take()

    def take(self) -> None:
        """Take the lock of a folder, which is made if there is none.

        Raises:
            ValueError: another run holds it.
        """
        if not self.active or self.descriptor is not None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            who = os.pread(descriptor, 300, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno in MISSING:
                why = f"cannot be locked ({error.strerror})"
                print(f"warning: {self.file.parent} {why}: start no second run there", file=sys.stderr)
                return
            raise ValueError(
                f"another run is writing to {self.file.parent} ({who or 'unknown'}): "
                "wait for its end or stop it, or give another -o"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self.descriptor = descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """Let another run have the folder."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None and descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)
