"""Options of ``convert``. The arguments that a family lets a conversion choose are added by :func:`with_choices`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from . import OptionSet
from .fields import flag, flag_of, img_size, option, option_of
from .values import PATH, TEXT, ValueKind, whole

DTYPES = ("float32", "float16", "bfloat16")
WHOLE, INTEGER = whole(0), ValueKind(int, "a whole number")
DIGEST = ValueKind(
    lambda value: str(value).lower(),
    "the 64 hexadecimal digits of a SHA-256",
    lambda digest: re.fullmatch("[0-9a-f]{64}", digest) is not None,
    "0123456789abcdef" * 4,
)


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(OptionSet):
    source: str = option(
        "file, folder, hf-hub:ORG/NAME[@REVISION], http(s) URL, or a tag of the manifest (hivit_base.mae_in1k)",
        positional=True,
    )
    model: str | None = option("architecture", default=None, metavar="ARCH", auto="a tag's own")
    key: str | None = option(
        "which set of weights of the file: its key, dotted where it stands under several (ema.module)",
        default=None,
        metavar="KEY",
        auto="the one that timm's loader takes, or the only one",
    )
    prefix: str | None = option(
        "read the tensors alone whose names begin with P, without it", default=None, metavar="P", auto="none"
    )
    sha256: str | None = option(
        "the digest that the source must have; of an address it replaces the one recorded when it was first fetched",
        default=None,
        kind=DIGEST,
        metavar="HEX",
        auto="that of the manifest or the one recorded, if any",
    )
    layout: str | None = option(
        "force a layout of checkpoints", default=None, metavar="NAME", auto="recognised by its names"
    )

    output: Path | None = option(
        "folder to write; with --to the file",
        default=None,
        kind=PATH,
        flags=("-o",),
        metavar="DIR",
        group="what is written",
    )
    install: str | None = option(
        "put it into the local store, where pretrained=True finds it",
        default=None,
        many="?",
        const="",
        metavar="TAG",
        group="what is written",
    )
    mae: bool = flag(
        "keep the decoder: hiermim_zoo.create_mae(ARCH, checkpoint=DIR) continues", group="what is written"
    )
    to: str | None = option(
        "the other way round: -o FILE gets SOURCE under the names of this layout",
        default=None,
        metavar="LAYOUT",
        group="what is written",
    )
    into: Path | None = option(
        "with --to: a whole checkpoint of that layout; -o FILE gets it with SOURCE in the place of its encoder",
        default=None,
        kind=PATH,
        metavar="FILE",
        group="what is written",
    )
    dtype: str = option("type of the tensors", default="float32", choices=DTYPES, group="what is written")
    license: str = option(
        "licence of the weights, written into configuration and card", default="", group="what is written"
    )
    force: bool = flag("replace what this package wrote to the folder before", group="what is written")
    dry_run: bool = flag("report on every tensor, write nothing", group="what is written")

    img_size: tuple[int, int] | None = img_size(
        "N x N pixels, or height and width, that positions are resampled to; of a table that is not square: those that "
        "it was made for",
        auto="those of the checkpoint",
        group="the model",
    )
    num_classes: int | None = option(
        "0 leaves the classifier out",
        default=None,
        kind=WHOLE,
        metavar="N",
        auto="those of the checkpoint",
        group="the model",
    )
    inflate: str | None = option(
        "weights of images become those of a model of clips",
        default=None,
        choices=("center", "mean"),
        group="the model",
    )

    allow_nonfinite: bool = flag("take values that are NaN or infinite as they are", group="checks")
    verify: bool = flag("load what was written and compare it", group="checks")
    images: str | None = option(
        "images on which --verify compares",
        default=None,
        hidden=("--pictures",),
        metavar="DATA",
        auto="those of the package",
        group="checks",
    )

    def __post_init__(self) -> None:
        if self.install == "":
            object.__setattr__(self, "install", self.source)
        super().__post_init__()

    def chosen(self) -> dict[str, Any]:
        """Arguments of the model that were chosen."""
        base = {field.name for field in dataclasses.fields(ConvertOptions)}
        named = (field.name for field in dataclasses.fields(self) if field.name not in base)
        return {name: value for name in named if (value := getattr(self, name)) is not None}

    def check_together(self) -> Iterator[str]:
        if not self.source:
            yield "SOURCE is empty: name a file, folder, address or tag"
        chosen = self.chosen()
        if self.install and chosen:
            names = {field.name: option_of(field) for field in dataclasses.fields(self)}
            flags = " and ".join(flag_of(name, names[name]) for name in chosen)
            yield f"--install puts weights into the store as their tag describes them: leave out {flags}"
        if self.install and self.output:
            yield "--install and -o exclude each other"
        if not (self.output or self.install or self.dry_run):
            yield "-o DIR is needed (or --install, or --dry-run)"
        if self.to and (self.mae or self.install or self.dry_run or self.verify or chosen):
            yield (
                "--to goes with SOURCE, --model, --key, --prefix, --sha256, --layout, --img-size (that of the source), "
                "--num-classes, --dtype, --allow-nonfinite, --force, --into and -o FILE alone"
            )
        if self.into and not self.to:
            yield f"--into {self.into} belongs to --to LAYOUT"
        if self.into and self.dtype != "float32":
            yield f"--into {self.into} says the types of the tensors: leave out --dtype"
        if self.inflate and (self.mae or self.install or self.to):
            yield "--inflate makes an encoder of clips: leave out --mae, --install and --to"
        if self.mae and self.install:
            yield "--mae keeps the decoder, which no tag has: leave out --install"
        if self.verify and self.dry_run:
            yield "--verify compares what was written, --dry-run writes nothing: choose one"
        if self.verify and self.allow_nonfinite:
            yield ("--verify compares values, and NaN equals nothing: leave out one of it and --allow-nonfinite")
        if self.images and not self.verify:
            yield f"--images {self.images} belongs to --verify"


def with_choices(choices: Iterable[Any], others: Iterable[Any], family: str) -> type[ConvertOptions]:
    """The options with what a family lets a conversion choose.

    Args:
        choices: of the family (``Family.choices``): name, help, type, many, among.
        others: of other families, understood so that they can be refused by name.
        family: its name, for the help.
    """
    shown = {choice.name: choice for choice in choices}
    hidden = {choice.name: choice for choice in others if choice.name not in shown}
    fields: list[Any] = []
    for choice in (*shown.values(), *hidden.values()):
        about: dict[str, Any] = {"group": f"choices of {family}", "auto": "the architecture's"}
        if choice.name in hidden:
            about = {"unlisted": True}
        if choice.type is bool:
            field = flag(choice.help, default=None, **about)
        else:  # the model itself refuses what it cannot be built with
            kind: ValueKind = INTEGER if choice.type is int else TEXT
            metavar = f"{{{','.join(choice.among)}}}" if choice.among else "N"
            many = "+" if choice.many else None
            field = option(choice.help, default=None, kind=kind, many=many, metavar=metavar, **about)
        fields.append((choice.name, Any, field))
    made = dataclasses.make_dataclass("ConvertOptions", fields, bases=(ConvertOptions,), frozen=True, kw_only=True)
    return cast("type[ConvertOptions]", made)
