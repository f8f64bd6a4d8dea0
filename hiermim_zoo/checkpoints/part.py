"""An unfinished download on the disk, and what is remembered of the file that it is the beginning of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path

from .atomic import replacing, sweep

_STRONG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')  # an ETag that changes with every byte; weak ones begin with W/
_NOTE = 1 << 14  # bytes; no note is longer


@dataclass(frozen=True)
class Wanted:
    """What is to be downloaded, and what is known of it."""

    url: str
    size: int = 0  # bytes; 0: not known
    checked: bool = False  # a digest is known, so that the complete file can be checked


@dataclass(frozen=True)
class Version:
    """The state of the server's file that a part is the beginning of."""

    url: str
    validator: str  # for If-Range; "": the server gave none that is strong
    total: int  # bytes of the complete file; 0: not announced


class Part:
    """``target`` + ".part", and beside it the version of the file as JSON."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def version(self) -> Version | None:
        """What is remembered, or None."""
        try:
            with self.note.open("rb") as file:
                found = Version(**json.loads(file.read(_NOTE)))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        right = isinstance(found.url, str) and isinstance(found.validator, str) and type(found.total) is int
        return found if right else None

    def usable(self, wanted: Wanted) -> bool:
        """Whether it may be continued: the server can be asked if the file is still the same, or a digest tells."""
        if not self.size or (wanted.size and self.size > wanted.size):
            return False
        version = self.version
        return wanted.checked or (version is not None and version.url == wanted.url and version.validator != "")

    def begin(self, version: Version) -> None:
        """Start anew. The old bytes go before the new note comes: bytes never stand under the note of others."""
        self.remove()
        sweep(self.note)
        with replacing(self.note) as file:
            file.write_text(json.dumps(asdict(version)), encoding="utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def validator(headers: Mapping[str, str]) -> str:
    """What If-Range may name (RFC 9110, 13.1.5): a strong ETag, or without any ETag a date that is old enough."""
    tag = headers.get("ETag", "")
    if tag:
        return tag if _STRONG.fullmatch(tag) else ""
    modified, now = date(headers.get("Last-Modified", "")), date(headers.get("Date", ""))
    # A file that was written in this second may be written again in it, and has the same date then.
    old = modified is not None and now is not None and now - modified >= timedelta(seconds=1)
    return headers["Last-Modified"] if old else ""


def date(text: str) -> datetime | None:
    """A date of HTTP, None if it is none."""
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
