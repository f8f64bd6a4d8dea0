"""All layouts in which weights are published: which one a file has, and the way from it into a family's own names."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

from .layout import DECODER_REASON, Layout
from .rules import Drop, Rule, Step, apply_rules, then
from .tables import green, hiera, hivit, vit
from .tables.vit import hpvit_from_plain

__all__ = ["DECODER_REASON", "LAYOUTS", "Layout", "Native", "find_layout", "recognise", "to_native"]

_logger = logging.getLogger(__name__)

LAYOUTS = (*hivit.LAYOUTS, *vit.LAYOUTS, *hiera.LAYOUTS, *green.LAYOUTS)


class Native(NamedTuple):
    """A checkpoint carried over into a family's own names."""

    state: dict[str, Tensor]
    layout: Layout
    steps: list[Step]
    decoder: dict[str, Tensor]  # "fusion.*" and "decoder.*"; empty unless asked for


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ValueError: there is none.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise ValueError(f"layout {name!r} is unknown, there are {', '.join(layout.name for layout in LAYOUTS)}")


def recognise(names: Collection[str], family: str) -> Layout:
    """The layout of a file with these tensor names.

    Raises:
        ValueError: no layout fits, or one of another family does.
    """
    fitting = [layout for layout in LAYOUTS if layout.fits(names) and not layout.by_name]
    assert len(fitting) < 2, f"layouts must exclude each other: {[layout.name for layout in fitting]}"
    if fitting and family in fitting[0].families:
        return fitting[0]
    if fitting:
        raise ValueError(f"the file is {fitting[0].name!r} ({fitting[0].about}), which is no {family} checkpoint")
    known = ", ".join(layout.name for layout in LAYOUTS if family in layout.families)
    first = ", ".join(list(names)[:4])
    raise ValueError(f"the names of the {len(names)} tensors ({first}, ...) fit no layout of {family}; known are {known}")


def to_native(
    state: Mapping[str, Tensor],
    family: str,
    layout: str | None = None,
    *,
    decoder: bool = False,
    class_token: bool = False,
) -> Native:
    """Carry a checkpoint of any known layout over into the family's own names.

    Args:
        state: as read from the file.
        family: "hivit", ...
        layout: forces a layout instead of recognising it.
        decoder: keep the decoder of a masked autoencoder, apart from the encoder.
        class_token: keep the class token of a plain ViT that becomes an HPViT.

    Raises:
        ValueError: unknown layout, one of another family or without decoder, or a tensor that it does not know.
    """
    table = find_layout(layout) if layout else recognise(state.keys(), family)
    if family not in table.families:
        raise ValueError(f"layout {table.name!r} is of {' and '.join(table.families)}, not of {family}")
    if decoder and not table.decoder:
        raise ValueError(f"the file is {table.name!r} ({table.about}), which holds no decoder")
    if table.warning:
        _logger.warning("%s: %s", table.name, table.warning)
    rest: tuple[Rule, ...] = table.decoder
    if not decoder:
        rest = tuple(Drop(rule.pattern, DECODER_REASON) for rule in table.decoder)
    native, steps = apply_rules(state, (*table.rules, *rest), table.name)
    if "cls_token" in native and family == "hpvit":
        native, more = apply_rules(native, hpvit_from_plain(native, class_token), table.name)
        steps = then(steps, more)
    apart = {name: native.pop(name) for name in list(native) if name.startswith(("fusion.", "decoder."))}
    return Native(native, table, steps, apart)
