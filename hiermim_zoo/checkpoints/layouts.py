"""All layouts in which weights are published: which one a file has, and the way from it into a family's own names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..text import counted
from .layout import DECODER_REASON, Layout
from .rules import Drop, Rule, Step, apply_rules, then
from .tables.strangers import Strange, refuse_strangers

_logger = logging.getLogger(__name__)
_LAYOUTS: dict[str, Layout] = {}


class NoLayout(ValueError):
    """The names of the tensors are of no layout that is looked for."""


class Native(NamedTuple):
    """A checkpoint carried over into a family's own names."""

    state: dict[str, Tensor]
    layout: Layout
    steps: list[Step]
    decoder: dict[str, Tensor]  # "fusion.*" and "decoder.*"; empty unless asked for
    size: int | tuple[int, int] | None = None  # pixels of the images that it was made for, where known


def add_layouts(layouts: Iterable[Layout]) -> None:
    """Make layouts known; families that read one and the same name the same object."""
    _LAYOUTS.update({layout.name: layout for layout in layouts})


def all_layouts() -> list[Layout]:
    return list(_LAYOUTS.values())


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in _LAYOUTS:
        raise ValueError(f"layout {name!r} is unknown, there are {', '.join(_LAYOUTS)}")
    return _LAYOUTS[name]


def recognise(names: Collection[str], readable: Sequence[Layout], family: str) -> Layout:
    """The layout of a file with these tensor names.

    Args:
        names: of the tensors.
        readable: layouts that the family can read.
        family: its name, for messages.

    Raises:
        NoLayout: none fits, several do, the family cannot read it, or no family reads such files.
    """
    try:
        refuse_strangers(names)
    except Strange as error:
        raise NoLayout(str(error)) from error
    fitting = [layout for layout in all_layouts() if layout.fits(names) and not layout.by_name]
    known = [layout.name for layout in readable]
    ours = [layout for layout in fitting if layout.name in known]
    if len(ours) > 1:
        both = " and ".join(repr(layout.name) for layout in ours)
        raise NoLayout(f"the names of the {counted(len(names), 'tensors')} are those of the layouts {both} at once")
    if ours:
        return ours[0]
    if fitting:
        raise NoLayout(f"the file is {fitting[0].name!r} ({fitting[0].about}), which is no {family} checkpoint")
    first = ", ".join(list(names)[:4])
    raise NoLayout(
        f"the names of the {counted(len(names), 'tensors')} ({first}, ...) fit no layout of {family}; "
        f"known are {', '.join(known)}"
    )


def carry_over(
    state: Mapping[str, Tensor],
    table: Layout,
    more_rules: Callable[[Mapping[str, Tensor]], Sequence[Rule]],
    *,
    decoder: bool = False,
) -> Native:
    """Apply the rules of a layout to a checkpoint.

    Args:
        state: as read from the file.
        table: its layout.
        more_rules: those that the family applies to the result, which it is given.
        decoder: keep the decoder of a masked autoencoder, apart from the encoder.

    Raises:
        ValueError: a tensor that the layout does not know, or a decoder is wanted that it does not hold.
    """
    if decoder and not table.decoder:
        raise ValueError(f"the file is {table.name!r} ({table.about}), which holds no decoder that can be kept")
    if table.warning:
        _logger.warning("%s: %s", table.name, table.warning)
    rest: tuple[Rule, ...] = table.decoder
    if not decoder:
        rest = tuple(Drop(rule.pattern, DECODER_REASON) for rule in table.decoder)
    native, steps = apply_rules(state, (*table.rules, *rest), table.name, table.prefix)
    if rules := more_rules(native):
        native, more = apply_rules(native, rules, table.name)
        steps = then(steps, more)
    apart = {name: native.pop(name) for name in list(native) if name.startswith(("fusion.", "decoder."))}
    return Native(native, table, steps, apart)
