"""Which models there are."""

from __future__ import annotations

from collections.abc import Iterable

import timm

from ..checkpoints.catalogue import chosen
from .family import families


def architectures(family: str | None = None) -> list[str]:
    """This package's architectures, family by family.

    Args:
        family: "hivit", ...; None for all.

    Raises:
        ValueError: an unknown family.
    """
    known = {own.name: own.variants for own in families() if own.own}
    if family is not None and family not in known:
        raise ValueError(f"family {family!r} is unknown, there are {', '.join(known)}")
    return [arch for name, variants in known.items() if family in (None, name) for arch in variants]


def list_models(
    filter: str | Iterable[str] = "",
    *,
    family: str | None = None,
    license: str | None = None,
    commercial: bool | None = None,
    here: bool | None = None,
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] = "",
) -> list[str]:
    """Names of this package's models, as ``timm.list_models`` gives them: in its order, by its wildcards.

    Args:
        filter: wildcards ("hivit*"), one or several of which one must fit; with ``pretrained`` also of tags
            ("*.mae_in1k").
        family: "hivit", ...; None for all.
        license: only what has weights of this licence; wildcards as in file names ("cc-by-nc*").
        commercial: only what has weights whose licence allows commercial use, or (False) forbids it.
        here: only what has weights in the local store or in the package, or (False) has some that are not.
        pretrained: list "arch.tag" for every set of weights instead of architectures.
        exclude_filters: wildcards of names to leave out.

    Raises:
        ValueError: an unknown family.
    """
    ours = set(architectures(family))
    names = timm.list_models(filter, pretrained=pretrained, exclude_filters=exclude_filters)
    found = [name for name in names if name.partition(".")[0] in ours]
    if (license, commercial, here) == (None, None, None):
        return found
    rows = chosen(license=license, commercial=commercial, here=here)
    fitting = {row.name if pretrained else row.arch for row in rows}
    return [name for name in found if name in fitting]
