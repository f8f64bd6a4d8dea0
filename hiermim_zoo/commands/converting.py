"""What ``convert`` does: fetch a checkpoint, carry it over, say what became of it, write it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from ..checkpoints import manifest, store
from ..checkpoints.download import download
from ..checkpoints.files import Checkpoint, read_checkpoint
from ..checkpoints.folder import check_target, write_folder
from ..checkpoints.layouts import find_layout
from ..checkpoints.rules import check_fits
from ..checkpoints.unconvert import check_file, to_published, write_published
from ..mae import create_mae, decoder_state
from ..models.conversion import Converted, Wanted, convert
from ..models.family import families, family_of
from ..models.shapes import without_memory
from ..text import printable
from .options.convert import ConvertOptions, with_choices
from .verify import compare, verify


def options_of(model: str | None, words: Sequence[str]) -> type[ConvertOptions]:
    """The options of a conversion to an architecture, with what its family lets it choose.

    Args:
        model: value of --model.
        words: of the command line; a tag among them names the architecture, too.
    """
    row = next((row for word in words if (row := known_row(word)) is not None), None)
    arch = model or (row.arch if row else None)
    everybodys = [choice for family in families() for choice in family.choices]
    own = family_of(arch) if arch else None
    return with_choices(own.choices if own else (), everybodys, own.name if own else "")


def values_of(model: str) -> dict[str, str]:
    """What help says of a family's own: its layouts, and those that can be written."""
    layouts = family_of(model).layouts
    back = ", ".join(layout.name for layout in layouts if layout.back)
    names = ", ".join(layout.name for layout in layouts)
    return {"layout": f"recognised; there are {names}"} | ({"to": f"none; there are {back}"} if back else {})


def convert_source(options: ConvertOptions) -> Path | None:
    """Convert as asked for.

    Returns:
        The folder, or with ``--to`` the file, that was written; None of a dry run.

    Raises:
        ValueError, OSError: the source cannot be had or does not fit, or the target cannot be written.
    """
    row = known_row(options.install or options.source)
    arch = architecture(options, row)
    target = target_of(options, row)
    if options.to:
        check_file(options.output or Path(), options.force)
    elif target is not None:
        check_target(target, options.force)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = fetch(options.source, Path(scratch), options.allow_nonfinite)
        converted = convert(checkpoint, arch, wanted_by(options), source=options.source, row=row)
        if options.mae:
            check_decoder(converted)
        found = compare(converted, options.images) if options.verify else ""
        print(report(converted, every=options.dry_run))
        if target is None:
            return None
        if options.to:
            write_back(converted, options.to, target, options.force)
            return target
        write_folder(converted.contents(), target, options.force)
    print(f"wrote {target}: timm.create_model({f'local-dir:{target}'!r}, pretrained=True)")
    if options.verify:
        print("\n".join(filter(None, (verify(converted, target), found))))
    return target


def architecture(options: ConvertOptions, row: manifest.Weights | None) -> str:
    """The architecture that is meant.

    Raises:
        ValueError: none is named, or one that does not fit the tag, or the tag cannot be installed.
    """
    if row is None and options.install:
        raise ValueError(f"--install {options.install}: no such tag; known are {', '.join(manifest.records())}")
    arch = options.model or (row.arch if row else None)
    if arch is None:
        raise ValueError("--model ARCH is needed: which architecture is the checkpoint of?")
    if row and arch != row.arch:
        raise ValueError(f"--model {arch} does not fit {row.name}")
    if row and row.file and options.install:
        raise ValueError(f"--install {row.name}: these weights ship with the package")
    family_of(arch)
    return arch


def wanted_by(options: ConvertOptions) -> Wanted:
    return Wanted(
        layout=options.layout,
        img_size=options.img_size,
        num_classes=options.num_classes,
        dtype=getattr(torch, options.dtype),
        license=options.license,
        decoder=options.mae,
        model_args=options.chosen(),
        inflate=options.inflate,
    )


def write_back(converted: Converted, layout: str, file: Path, force: bool) -> None:
    """Write a model, or encoder and decoder, as their authors would."""
    decoder = converted.source_decoder()
    contents = replace(converted.contents(), decoder=decoder)
    with torch.random.fork_rng(devices=[]):
        fresh = family_of(converted.arch).construct(converted.arch, num_classes=0, **converted.model_args)
    table = find_layout(layout)
    write_published(to_published(contents.state(), contents.decoder_state(), table, fresh), file, force, table.top_key)
    print(f"wrote {file}: {'encoder and decoder' if table.decoder else 'the model'} under the names of {layout}")
    if decoder and not table.decoder:
        print(f"  the source's decoder is left out: {layout} has none of its kind")
    if table.added_why:
        print(f"  {table.added_why}")


def check_decoder(converted: Converted) -> None:
    """Refuse a decoder that the architecture's autoencoder cannot take."""
    model: Any = converted.model
    size = {name: value for name, value in converted.model_args.items() if name in ("img_size", "num_frames")}
    with without_memory():
        mae = create_mae(converted.arch, in_chans=model.in_chans, **size)
    check_fits(converted.native.decoder, decoder_state(mae), model=f"the autoencoder of {converted.arch}")


def known_row(name: str) -> manifest.Weights | None:
    return manifest.records().get(name)


def target_of(options: ConvertOptions, row: manifest.Weights | None) -> Path | None:
    """What is to be written; None of a dry run."""
    if options.dry_run:
        return None
    return store.user_store() / row.name if options.install and row else options.output


def fetch(source: str, scratch: Path, allow_nonfinite: bool = False) -> Checkpoint:
    """Bring a source of any kind onto the disk and read it.

    Args:
        source: as named by the user.
        scratch: folder for what is downloaded.
        allow_nonfinite: take values that are NaN or infinite as they are.

    Raises:
        ValueError, OSError: it cannot be had or read.
    """
    read = partial(read_checkpoint, allow_nonfinite=allow_nonfinite)
    row = known_row(source)
    if row is not None:
        local = store.find_local(row) if row.file else None
        return read(local or store.fetch_origin(row, scratch))
    if source.startswith("hf-hub:"):
        name, _, revision = source.removeprefix("hf-hub:").partition("@")
        return read(store.fetch_repository(name, revision or None))
    if source.partition(".")[0] in manifest.archs() and not Path(source).exists():
        raise ValueError(f"{source}: no such tag; known are {', '.join(manifest.records())}")
    if urlsplit(source).scheme in ("http", "https"):
        target = scratch / (Path(urlsplit(source).path).name or "checkpoint.pth")
        download(source, target)
        return read(target)
    return read(source)


def report(converted: Converted, every: bool) -> str:
    """What became of the tensors: in numbers, or (``every``) one line each."""
    native = converted.native
    lines = [
        f"source  {converted.source} ({len(converted.checkpoint.state)} tensors"
        + (f" under {converted.checkpoint.top_key!r})" if converted.checkpoint.top_key else ")"),
        f"layout  {native.layout.name}: {native.layout.about}",
        f"licence {converted.license}",
    ]
    steps = [step for step in native.steps if every or step.action == "reshaped"]
    lines += [
        f"  {s.action:8} {s.source}"
        + (f" -> {s.target}" if s.target != s.source and s.target else "")
        + (f" ({s.why})" if s.why else "")
        for s in steps
    ]
    counts = Counter(step.action for step in native.steps)
    lines.append(
        "tensors " + ", ".join(f"{counts[a]} {a}" for a in ("kept", "renamed", "reshaped", "joined", "dropped"))
    )
    reasons = Counter(step.why for step in native.steps if step.action == "dropped")
    lines += [f"  dropped {count}: {why}" for why, count in reasons.items()]
    lines += [f"  not finite: {count} values of {name}" for name, count in converted.checkpoint.nonfinite.items()]
    lines += [f"  resampled {line}" for line in converted.resampled]
    lines += [f"  {key}: {value}" for key, value in converted.notes.items()]
    if converted.initial:
        lines.append(f"  missing in the source, initial values kept: {', '.join(converted.initial)}")
    return "\n".join(map(printable, lines))
