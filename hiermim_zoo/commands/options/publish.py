"""Options of ``publish``, and what ``mirror`` shares with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import OptionSet
from .fields import flag, option
from .values import PATH, ValueKind

SENTENCE = ValueKind(
    lambda value: " ".join(str(value).split()),
    "a text that says who gave the permission, where and when",
    lambda text: len(text) >= 10,
    "'Mail of the authors to me, 3 May 2025'",
)


def token(**about: Any) -> Any:
    help = "of the Hub, with the right to write; it is never shown, but other users of this machine see command lines"
    return option(help, default=None, metavar="TOKEN", auto="$HF_TOKEN, or that of hf auth login", **about)


def i_have_permission(**about: Any) -> Any:
    help = "pass weights on whose licence does not allow it, or states nothing; TEXT goes into the card"
    return option(help, default=None, kind=SENTENCE, metavar="TEXT", auto="none", **about)


def private(**about: Any) -> Any:
    return flag("a new repository is private", **about)


@dataclass(frozen=True, kw_only=True)
class PublishOptions(OptionSet):
    source: str = option("tag of the manifest, or folder as the other commands write them", positional=True)
    to: str = option("repository on the Hub ($HF_ENDPOINT names another one); made if it is new", metavar="ORG/NAME")
    private: bool = private()
    token: str | None = token()
    i_have_permission: str | None = i_have_permission()
    force: bool = flag(
        "also into a repository that has weights of another architecture; a decoder and golden logits of other weights "
        "are removed; nothing else ever is"
    )
    manifest: Path | None = option(
        "write commit, SHA-256 and bytes into the row of the tag in this file, weights/manifest.toml of a checkout",
        default=None,
        kind=PATH,
        metavar="FILE",
        auto="they are printed",
    )
    dry_run: bool = flag("ask the Hub what is there, say what would become of each file, send nothing")

    def check_together(self) -> Iterator[str]:
        if self.manifest and self.dry_run:
            yield "--manifest takes what was published, --dry-run publishes nothing: choose one"
        if self.manifest and self.private:
            yield "--manifest tells everybody where weights are, --private hides them: choose one"
