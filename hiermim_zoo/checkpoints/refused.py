"""What can become of a download but a file: each in one line."""

from __future__ import annotations

from pathlib import Path


class DownloadError(OSError):
    """The file could not be had; the message says why, and where a part of it waits, if one does."""

    part: Path | None = None  # from which the next call would go on

    def __str__(self) -> str:
        """Looks at the disk when it is shown: a part in a temporary folder is gone by then."""
        message = super().__str__()
        if self.part is None or not self.part.is_file() or not (kept := self.part.stat().st_size):
            return message
        return f"{message}; {kept} bytes are kept in {self.part}: run the same again to go on"


class CannotWrite(DownloadError):
    """The disk does not take it, wherever it comes from."""


class Broken(Exception):
    """A connection ended before the file did; another one may bring the rest."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for


class Unreachable(Broken):
    """There was no connection at all."""


class Changed(Exception):
    """What the server has now is not what the part began as."""
