"""Models of any kind: whether they exist, and what they are without their weights; set to the size asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.folder import CONFIG_FILE
from ..data.transforms import data_config
from ..models.build import LOCAL, has_weights, make_model
from ..models.family import check_arch
from ..models.saved import check_folder
from ..models.shapes import without_memory
from .input_files import what_is_there


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


def check_model(name: str) -> None:
    """Refuse a name that stands for no model.

    Raises:
        ValueError: naming it.
    """
    if ":" not in name:
        check_arch(name)
    if not name.startswith(LOCAL):
        return
    folder = Path(name.removeprefix(LOCAL))
    if not folder.is_dir():
        raise ValueError(f"--model {name}: no such folder; {what_is_there(folder)}")
    if not (folder / CONFIG_FILE).is_file():
        of_run = (folder / "encoder" / CONFIG_FILE).is_file()
        works = f"--model {LOCAL}{folder / 'encoder'} would work" if of_run else "convert and pretrain write one"
        raise ValueError(f"--model {name}: the folder holds no {CONFIG_FILE}; {works}")
    check_folder(folder)


def check_weights(name: str) -> None:
    """Refuse pretrained weights of a model of which none are known.

    Raises:
        ValueError: naming the model, and what would work.
    """
    if has_weights(name) is False:
        raise ValueError(
            f"--model {name}: no pretrained weights of it are known; name a folder of yours, --model {LOCAL}DIR, "
            "or add --no-pretrained for random ones"
        )


def without_weights(name: str, kwargs: Mapping[str, Any]) -> Any:
    """A model without values: what it is can be read from it, and nothing was loaded.

    Raises:
        ValueError: there is no such model.
    """
    with without_memory():
        return make_model(name, pretrained=False, **kwargs)


def check_img_size(name: str, sketch: Any, side: int) -> None:
    """Refuse a size that a model cannot take.

    Args:
        name: of the model.
        sketch: see :func:`without_weights`; it is set to the size.

    Raises:
        ValueError: naming the option.
    """
    with model_errors(name, f"--img-size {side}"), without_memory():
        set_img_size(sketch, side)
        sketch(torch.zeros(1, *data_config(sketch, (side, side))["input_size"]))


@torch.no_grad()
def check_levels(name: str, sketch: Any, levels: Sequence[int]) -> None:
    """Refuse levels that a model does not have.

    Args:
        sketch: the model without weights; it has ``forward_intermediates``.

    Raises:
        ValueError: naming those that it has.
    """
    with model_errors(name, "its own size"), without_memory():
        zeros = torch.zeros(1, *data_config(sketch)["input_size"])
        count = len(sketch.forward_intermediates(zeros, intermediates_only=True))
    if max(levels) >= count:
        said = " ".join(map(str, levels))
        raise ValueError(f"--levels {said}: {name} has the levels 0 to {count - 1}")
