"""What can be wrong with a conversion, as far as it can be told without the source: all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..checkpoints.folder import check_target
from ..checkpoints.hub import HUB
from ..checkpoints.layouts import find_layout
from ..checkpoints.manifest import Weights, archs, records
from ..checkpoints.store import writable_store
from ..checkpoints.unconvert import check_file
from ..data.kinds import check_there
from ..models.conversion import LARGEST_SIDE
from ..models.family import family_of
from .converting import architecture, known_family, known_row, options_of
from .input_files import what_is_there
from .options.convert import ConvertOptions
from .options.fields import long_flag
from .options.problems import check_all, gathered
from .output_files import check_ending

WEIGHTS = (".pth", ".pt", ".pkl", ".safetensors")  # endings that are true of the file of --to


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    words = [str(said[name]) for name in ("source", "install") if said.get(name)]
    return gathered(*checks(options_of(said.get("model"), words).unchecked(said)))


def check(options: ConvertOptions) -> None:
    """Refuse what cannot be done or written before the source is opened or fetched.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    check_all(*checks(options))


def checks(options: ConvertOptions) -> list[Callable[[], object]]:
    row = known_row(options.install or options.source)
    found: list[Callable[[], object]] = [partial(check_architecture, options, row)]
    found.append(partial(check_choices, options, row))
    if options.source:
        found.append(partial(check_source, options.source))
    names = {"--layout": options.layout, "--to": options.to}
    found += [partial(check_layout, flag, name) for flag, name in names.items() if name]
    if options.img_size and max(options.img_size) > LARGEST_SIDE:
        size = " ".join(map(str, options.img_size))
        found.append(lambda: [f"--img-size {size}: sides of {LARGEST_SIDE} pixels are the largest"])
    if options.images and options.verify:
        found.append(partial(check_there, options.images))
    return [*found, partial(check_written, options, row)]


def check_architecture(options: ConvertOptions, row: Weights | None) -> None:
    """Refuse an architecture that there is not, or that is not that of the tag.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    lines = gathered(partial(family_of, options.model)) if options.model else []
    if options.source:
        lines += gathered(partial(architecture, options, row))
    check_all(lambda: lines)


def check_choices(options: ConvertOptions, row: Weights | None) -> Iterator[str]:
    """A line for each choice that the family of the architecture does not offer, or that has no such value."""
    arch = options.model or (row.arch if row else None)
    if (family := known_family(arch)) is None:
        return
    choices = {choice.name: choice for choice in family.choices}
    for name, value in options.chosen().items():
        if name not in choices:
            yield f"{long_flag(name)} is nothing that a conversion to {arch} can choose: leave it out"
        elif (among := choices[name].among) and value not in among:
            yield f"{long_flag(name)} {value} is not one of {', '.join(among)}"
    if options.inflate and family.inflate is None:
        yield f"--inflate {options.inflate}: {arch} is no model of clips"


def check_source(source: str) -> None:
    """Refuse a path that leads nowhere, and what looks like a tag and is none.

    Raises:
        ValueError: naming it.
    """
    if known_row(source) or source.startswith(HUB) or urlsplit(source).scheme in ("http", "https"):
        return
    if source.partition(".")[0] in archs() and not Path(source).exists():
        raise ValueError(f"{source}: no such tag; known are {', '.join(records())}")
    if not Path(source).exists():
        raise ValueError(f"SOURCE {source} does not exist; {what_is_there(Path(source))}")


def check_layout(flag: str, name: str) -> None:
    """Refuse a layout that there is not.

    Raises:
        ValueError: naming those that there are.
    """
    try:
        find_layout(name)
    except ValueError as error:
        raise ValueError(f"{flag} {name}: {error}") from error


def check_written(options: ConvertOptions, row: Weights | None) -> None:
    """Refuse what cannot or must not be written.

    Raises:
        ValueError: naming it.
    """
    if options.install and row and not options.dry_run:
        writable_store()
    try:
        if options.output and options.to:
            check_ending(options.output, str(options.output), WEIGHTS, "weights")
            check_file(options.output, options.force)
        elif options.output and not options.dry_run:
            check_target(options.output, options.force)
    except ValueError as error:
        raise ValueError(f"-o {error}") from error
