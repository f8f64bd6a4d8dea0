"""Which models there are."""

from __future__ import annotations

import fnmatch

from ..checkpoints import manifest
from .family import families


def list_models(family: str | None = None, pretrained: bool = False, license: str | None = None) -> list[str]:
    """Names of this package's models.

    Args:
        family: "hivit", ...; None for all.
        pretrained: list "arch.tag" for every set of weights instead of architectures.
        license: only what has weights of this licence; wildcards as in file names ("cc-by-nc*").

    Raises:
        ValueError: an unknown family.
    """
    known = {own.name: own.variants for own in families() if own.own}
    if family is not None and family not in known:
        raise ValueError(f"family {family!r} is unknown, there are {', '.join(known)}")
    archs = [arch for name, variants in known.items() if family in (None, name) for arch in variants]
    if not pretrained and license is None:
        return archs
    rows = [
        row for row in manifest.records().values() if row.arch in archs and fnmatch.fnmatch(row.license, license or "*")
    ]
    if pretrained:
        return [row.name for row in rows]
    return [arch for arch in archs if any(row.arch == arch for row in rows)]
