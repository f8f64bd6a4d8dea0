"""Models of any kind, made to look at images of the size that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def model_errors(name: str, task: str) -> Iterator[None]:
    """Complaints of a model's code become one line (HIERMIM_DEBUG=1 shows where they come from).

    Args:
        name: of the model.
        task: what it is to do, in words: "--img-size 64".

    Raises:
        ValueError: in their place.
    """
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"model {name!r} fails on {task}: {error}") from error


def set_img_size(model: Any, side: int | None) -> None:
    """Set a model to images of ``side`` x ``side`` pixels, if a size was asked for and it has to be told.

    Most plain ViTs take no other size without.
    """
    if side and hasattr(model, "set_input_size"):
        model.set_input_size((side, side))
