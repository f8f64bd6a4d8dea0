"""Hierarchical vision transformers for masked image modelling, as a plug-in for timm.

Importing the package registers its architectures::

    import timm, hiermim_zoo
    model = timm.create_model("hivit_base", pretrained=True)

The commands are here too, each with a twin in Python::

    hiermim_zoo.pretrain.run(data="IMAGES", model="hivit_base", output="DIR")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .commands.front_door import VERBS, refuse_helper, started
from .version import __version__

__all__ = ["__version__", "create_mae", "list_models"]

_module = started()
if TYPE_CHECKING or _module is None:
    from .mae import create_mae
    from .models.listing import list_models
else:  # a command, which imports what it needs once it has read its options
    refuse_helper(_module)

_LATER = {"create_mae": "mae", "list_models": "models.listing"}


def __getattr__(name: str) -> Any:
    """The commands; and in a process that was started as one, what is imported above in others."""
    if name in VERBS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *VERBS})
