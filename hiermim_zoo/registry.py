"""Names of architectures in timm's registry."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

from timm.models import is_model, list_models, model_entrypoint, register_model
from torch import nn

Row = TypeVar("Row")


def register(entrypoint: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register an architecture with timm under the name of its function.

    Raises:
        ValueError: somebody else already registered the name. (timm itself would overwrite theirs with a warning.)
    """
    name = entrypoint.__name__
    if not is_model(name):
        return register_model(entrypoint)
    owner = model_entrypoint(name).__module__
    if owner != entrypoint.__module__:
        raise ValueError(f"the model name {name!r} is taken: {owner} registered it with timm")
    return entrypoint


def check_arch(name: str) -> str:
    """The architecture of "arch" or "arch.tag".

    Raises:
        ValueError: timm knows no such architecture, with the names that come close.
    """
    arch = name.partition(".")[0]
    if not is_model(arch):
        close = difflib.get_close_matches(arch, list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "python -c 'import timm; print(timm.list_models())' lists them"
        raise ValueError(f"model {arch!r} is unknown; {hint}")
    return arch


def family_of(arch: str) -> str:
    """The family of an architecture: the name of the module that defines it ("hivit", "vision_transformer")."""
    return model_entrypoint(arch).__module__.rpartition(".")[2]


def row_of(table: Mapping[str, Row], arch: str) -> Row | None:
    """What a table has for an architecture, else for its family; None where neither stands in it."""
    return table.get(arch) or table.get(family_of(arch))
