"""Options of ``mirror``."""

from __future__ import annotations

from dataclasses import dataclass

from . import OptionSet
from .fields import flag, option
from .publish import i_have_permission, private, token


@dataclass(frozen=True, kw_only=True)
class MirrorOptions(OptionSet):
    tags: tuple[str, ...] = option(
        "names of weights, with wildcards as in timm: hivit_base (all its tags), 'hivit*', '*.mae_in1k'",
        positional=True,
        many="+",
    )
    to: str = option(
        "a folder (with a /, or one that exists), or an organisation of the Hub ($HF_ENDPOINT names another one)",
        metavar="DIR|ORG",
    )
    private: bool = private(group="for an organisation")
    token: str | None = token(group="for an organisation")
    i_have_permission: str | None = i_have_permission(group="for an organisation")
    force: bool = flag("see publish", group="for an organisation")
    dry_run: bool = flag("say what would be done, send and write nothing")
