"""What all commands share: how they report bad input, and how they name models."""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import create_model
from torch import nn

from .layers.groups import ON_HOST
from .registry import check_arch

BAD_INPUT = 2  # exit code
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # what --amp may say


def run(main: Callable[[], None]) -> None:
    """Run a command; bad input ends it with one line on stderr and exit code 2.

    Set HIERMIM_DEBUG=1 to see the traceback instead.
    """
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("HIERMIM_DEBUG"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def check_compiled(encoder: nn.Module) -> None:
    """To be asked before a masked pass is compiled.

    Raises:
        ValueError: the encoder is to look at the mask.
    """
    method = getattr(encoder, "plan_method", None)
    if method in ON_HOST:
        raise ValueError(f"plan_method={method!r} looks at the mask, which a graph cannot do: use 'sort', or no --compile")


def make_model(name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` whose complaints about names and files are ValueErrors of one line.

    Args:
        name: "arch", "arch.tag", "local-dir:DIR" or "hf-hub:org/name".
    """
    if ":" not in name:
        check_arch(name)
    try:
        return create_model(name, **kwargs)
    except (RuntimeError, AssertionError, TypeError, KeyError, SafetensorError) as error:  # timm's, for bad names and files
        raise ValueError(f"model {name!r} cannot be made: {error}") from error


def at_least(minimum: int) -> Callable[[str], int]:
    """A type of options: whole numbers from ``minimum`` on."""

    def integer(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {minimum}")
        return int(text)

    return integer


def share_of_one(text: str) -> float:
    """A type of options: numbers from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def assignment(text: str) -> tuple[str, Any]:
    """A type of options: NAME=VALUE, the value a Python literal or else a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text} is not of the form NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


class _Size(argparse.Action):
    """One number, or height and width, as (height, width)."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        if len(values) > 2:
            raise ValueError(f"{option_string} {' '.join(map(str, values))}: one number, or height and width")
        setattr(namespace, self.dest, (values[0], values[-1]))


def add_img_size(add: Callable[..., Any], text: str) -> None:
    """The option for pixels along both sides of images; ``args.img_size`` is (height, width), or None where not given."""
    add("--img-size", type=at_least(1), nargs="+", action=_Size, metavar="N", help=f"N x N pixels, or height and width{text}")


def add_model_kwargs(add: Callable[..., Any]) -> None:
    """The option that timm's own scripts have for arguments of a model."""
    add("--model-kwargs", type=assignment, nargs="+", default=[], metavar="NAME=VALUE", help="arguments of the model")


def model_kwargs(args: argparse.Namespace, *own: str) -> dict[str, Any]:
    """What ``--model-kwargs`` says.

    Args:
        own: arguments of a model that have an option of their own.

    Raises:
        ValueError: one of these is among them.
    """
    given = dict(args.model_kwargs)
    for name in own:
        if name in given:
            raise ValueError(f"--model-kwargs {name}={given[name]}: this has an option of its own")
    return given
