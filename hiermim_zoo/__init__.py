"""Hierarchical vision transformers for masked image modelling, as a plug-in for timm.

Importing the package registers its architectures::

    import timm, hiermim_zoo
    model = timm.create_model("hivit_base", pretrained=True)
"""

from __future__ import annotations

import fnmatch

from . import manifest
from .mae import create_mae
from .models import ARCHITECTURES
from .version import __version__

__all__ = ["__version__", "create_mae", "list_models"]


def list_models(family: str | None = None, pretrained: bool = False, license: str | None = None) -> list[str]:
    """Names of this package's models.

    Args:
        family: "hivit", ...; None for all.
        pretrained: list "arch.tag" for every set of weights instead of architectures.
        license: only what has weights of this licence; wildcards as in file names ("cc-by-nc*").

    Raises:
        ValueError: an unknown family.
    """
    if family is not None and family not in ARCHITECTURES:
        raise ValueError(f"family {family!r} is unknown, there are {', '.join(ARCHITECTURES)}")
    archs = [arch for name, members in ARCHITECTURES.items() if family in (None, name) for arch in members]
    if not pretrained and license is None:
        return archs
    rows = [row for row in manifest.records().values() if row.arch in archs and fnmatch.fnmatch(row.license, license or "*")]
    return [row.name for row in rows] if pretrained else [arch for arch in archs if any(row.arch == arch for row in rows)]
