"""What ``convert`` does: fetch a checkpoint, carry it over, say what became of it, write it."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import torch

from ..checkpoints import manifest, mirrors, places, store
from ..checkpoints.configs import CONFIG_KEY, read_config
from ..checkpoints.download import DownloadError, download
from ..checkpoints.fetched import compare as compare_digest
from ..checkpoints.files import Checkpoint, find_file, read_checkpoint, sha256_of_checkpoint
from ..checkpoints.folder import CONFIG_FILE, DECODER_FILE, write_folder
from ..checkpoints.hub import HUB, fetch_beside, fetch_repository
from ..checkpoints.layouts import NoLayout, find_layout
from ..checkpoints.places import Place
from ..checkpoints.rules import NotOfLayout, check_fits
from ..checkpoints.sets import SeveralSets
from ..checkpoints.shards import is_index, parts_of
from ..checkpoints.unconvert import left_out, to_published, write_published
from ..checkpoints.ways import ways
from ..mae import create_mae, decoder_state
from ..models.beside import check_told
from ..models.conversion import Converted, Wanted, convert
from ..models.family import Family, families, family_of
from ..models.shapes import without_memory
from ..models.weights import BESIDE, keeps_decoder, places_of, put
from ..text import counted, printable
from .exchanging import put_into, whole_checkpoint
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
    own = known_family(arch)
    return with_choices(own.choices if own else (), everybodys, own.name if own else "")


def known_family(arch: str | None) -> Family | None:
    """The family of an architecture; None where there is none of that name."""
    try:
        return family_of(arch) if arch else None
    except ValueError:
        return None


def values_of(model: str) -> dict[str, str]:
    """What help says of a family's own: its layouts, and those that can be written."""
    layouts = family_of(model).layouts
    back = ", ".join(layout.name for layout in layouts if layout.back)
    names = ", ".join(layout.name for layout in layouts)
    return {"layout": f"recognised; there are {names}"} | ({"to": f"none; there are {back}"} if back else {})


def convert_source(options: ConvertOptions) -> Path | None:
    """Convert as asked for; :mod:`.converting_checks` has looked at the options.

    Returns:
        The folder, or with ``--to`` the file, that was written; None of a dry run.

    Raises:
        ValueError, OSError: the source cannot be had or does not fit, or the target cannot be written.
    """
    row = known_row(options.install or options.source)
    arch = architecture(options, row)
    target = target_of(options, row)
    into_store = row if options.install and target is not None else None
    whole = whole_checkpoint(options, arch) if options.into else None
    with tempfile.TemporaryDirectory() as scratch:
        converted = converted_by(options, arch, row, Path(scratch))
        if options.to and options.img_size not in (None, converted.native.size):
            size = " ".join(map(str, options.img_size))
            raise ValueError(f"--to writes tensors as the source has them: --img-size {size} would resample them")
        if options.to:
            usual = family_of(arch).variants[arch]
            check_told(converted.model, converted.model_args, usual, arch)
        if options.mae:
            check_decoder(converted)
        found = compare(converted, options.images) if options.verify else ""
        print(report(converted, every=options.dry_run))
        if not (options.to or converted.native.decoder) and converted.decoder_beside.is_file():
            print(f"  left out {DECODER_FILE} beside it: --mae keeps it")
        if target is None:
            return None
        if whole is not None:
            put_into(converted, whole, target)
            return target
        if options.to:
            write_back(converted, options.to, target, options.force)
            return target
        if into_store:
            put(converted.contents(), into_store, force=options.force)
        else:
            write_folder(converted.contents(), target, options.force)
    print(f"wrote {target}: timm.create_model({f'local-dir:{target}'!r}, pretrained=True)")
    if options.verify:
        print("\n".join(filter(None, (verify(converted, target), found))))
    return target


def converted_by(options: ConvertOptions, arch: str, row: manifest.Weights | None, scratch: Path) -> Converted:
    """Read the source and carry it over.

    Raises:
        ValueError, OSError: it cannot be had or does not fit; of names that fit no layout the message says what helps.
    """
    try:
        checkpoint, place = fetch(options, scratch)
    except SeveralSets as error:
        raise ValueError(f"{error}; {way_out(options, arch, error.names)}") from error
    try:
        converted = convert(checkpoint, arch, wanted_by(options), source=options.source, row=row)
    except (NoLayout, NotOfLayout) as error:
        raise ValueError("; ".join(filter(None, (str(error), way_out(options, arch, checkpoint.names))))) from error
    accept(checkpoint, place, options.sha256)
    return converted


def way_out(options: ConvertOptions, arch: str, names: Mapping[str, Sequence[str]]) -> str:
    """What to type for a source that fits no layout as it is; it is said, never done unasked.

    Args:
        names: of the tensors, by set of weights.
    """
    family = family_of(arch)
    layouts = [layout for layout in family.layouts if layout.decoder or not options.mae]
    tried = options.key or "", options.prefix or ""
    found = [way for way in ways(names, layouts) if (way.key, way.prefix) != tried]
    if not found:
        return f"no set of weights of the file is of {family.name}, with or without a prefix"
    lines = [
        f"layout {way.layout!r} fits with: "
        + replace(options, key=way.key or None, prefix=way.prefix or None).command("convert")
        for way in found
    ]
    return "; ".join(lines)


def architecture(options: ConvertOptions, row: manifest.Weights | None) -> str:
    """The architecture that is meant.

    Raises:
        ValueError: none is named, or one that does not fit the tag, or the tag cannot be installed.
    """
    if row is None and options.install:
        raise ValueError(f"--install {options.install}: no such tag; known are {', '.join(manifest.records())}")
    arch = options.model or (row.arch if row else said_arch(Path(options.source)))
    if arch is None:
        raise ValueError("--model ARCH is needed: which architecture is the checkpoint of?")
    if row and arch != row.arch:
        raise ValueError(f"--model {arch} does not fit {row.name}")
    if row and row.file and options.install:
        raise ValueError(f"--install {row.name}: these weights ship with the package")
    family_of(arch)
    return arch


def said_arch(folder: Path) -> str | None:
    """The architecture that a folder of this package names; those of others may mean another model by theirs.

    Raises:
        ValueError: its configuration cannot be read.
    """
    file = folder / CONFIG_FILE
    config = read_config(file) if file.is_file() else {}
    arch = config.get("architecture") if config.get(CONFIG_KEY) else None
    return arch.partition(".")[0] if isinstance(arch, str) else None


def wanted_by(options: ConvertOptions) -> Wanted:
    row = known_row(options.install) if options.install else None
    return Wanted(
        layout=options.layout,
        img_size=options.img_size,
        num_classes=options.num_classes,
        dtype=getattr(torch, options.dtype),
        license=options.license,
        decoder=options.mae or (row is not None and keeps_decoder(row)),
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
    state = contents.state()
    write_published(to_published(state, contents.decoder_state(), table, fresh), file, force, table.top_key)
    what = "encoder and decoder" if decoder and table.decoder else "the model"
    print(f"wrote {file}: {what} under the names of {layout}")
    if lost := left_out(state, table):
        print(f"  left out, as {layout} has no place for a classifier: {', '.join(lost)}")
    if decoder and not table.decoder:
        print(f"  the source's decoder is left out: {layout} has none of its kind")
    if table.added_why:
        print(f"  {table.added_why}")


def check_decoder(converted: Converted) -> None:
    """Refuse a decoder that the autoencoder which the source tells of cannot take."""
    model: Any = converted.model
    recipe = converted.recipe()
    if recipe is None:
        raise ValueError(
            f"--mae {converted.source}: the run went on from a folder, and its snapshot does not say with which "
            "decoder; the command of the run with --resume FILE --export-only added writes both"
        )
    with without_memory():
        mae = create_mae(converted.arch, recipe=recipe, **{"in_chans": model.in_chans, **converted.model_args})
    check_fits(converted.native.decoder, decoder_state(mae), model=f"the autoencoder of {converted.arch}")


def known_row(name: str) -> manifest.Weights | None:
    return manifest.records().get(name)


def target_of(options: ConvertOptions, row: manifest.Weights | None) -> Path | None:
    """What is to be written; None of a dry run."""
    if options.dry_run:
        return None
    return store.user_store() / row.name if options.install and row else options.output


def fetch(options: ConvertOptions, scratch: Path) -> tuple[Checkpoint, Place | None]:
    """Bring a source of any kind onto the disk, compare its digest and read it.

    Args:
        options: name the source, and what of it is read.
        scratch: folder for what is downloaded.

    Returns:
        The checkpoint, and the place that it came from; None: this machine, or a bundle.

    Raises:
        ValueError, OSError: it cannot be had or read, or is not what was asked for or came before.
    """
    try:
        path, place = located(options, scratch)
        if options.sha256 and (digest := sha256_of_checkpoint(find_file(path))) != options.sha256:
            raise ValueError(f"--sha256 {options.sha256}: {options.source} has {digest}")
        checkpoint = read_checkpoint(
            path, options.key or "", options.prefix or "", allow_nonfinite=options.allow_nonfinite
        )
    except ValueError as error:
        error.args = (str(error).replace(f"{scratch}{os.sep}", ""),)  # which is gone when the message is read
        raise
    if place and not place.known and not options.sha256:
        compare_digest(place.address, checkpoint.sha256)
    return checkpoint, place


def accept(checkpoint: Checkpoint, place: Place | None, sha256: str | None) -> None:
    """Record the digest of what could be converted, so that a file that is refused never stands in the way of another.

    Raises:
        DownloadError: another file came from there before.
    """
    if place:
        fetched = places.Fetched(checkpoint.path, checkpoint.sha256, checkpoint.path.stat().st_size)
        places.accept(place, fetched, pinned=bool(sha256))


def located(options: ConvertOptions, scratch: Path) -> tuple[Path, Place | None]:
    """The file or folder on the disk, and the place that it came from; what is downloaded goes to ``scratch`` or into
    the Hub's cache.
    """
    source = options.source
    row = known_row(source)
    if row is not None:
        return of_tag(row, options, scratch)
    if source.startswith(HUB):
        return fetch_repository(source), Place(source)
    if urlsplit(source).scheme not in ("http", "https"):
        return Path(source), None
    place = places.place_of(source)
    if reason := places.closed([place], None).get(place.address):
        raise DownloadError(f"{place.address}: {reason}")
    target = scratch / (Path(urlsplit(place.address).path).name or "checkpoint.pth")
    download(source, target, digests=place.digests, size=place.bytes)
    for part in parts_of(target) if is_index(target) else ():
        download(urljoin(source, quote(part)), scratch / part)
    return target, place


def of_tag(row: manifest.Weights, options: ConvertOptions, scratch: Path) -> tuple[Path, Place | None]:
    """The weights of a tag from where ``pretrained=True`` would take them, or from their origins where something is
    asked for that the authors' file alone has.

    Raises:
        DownloadError: no place has them; says why, of each.
    """
    authors = of_authors(row, options)
    if (row.file or not (authors or options.install)) and (local := store.find_local(row)):
        return local, None
    asked = places.origins(row) if authors else places_of(row)
    closed = places.closed(asked, None)
    reasons = []
    for place in asked:
        try:
            if place.address in closed:
                raise DownloadError(f"{place.address}: {closed[place.address]}")
            return from_place(row, place, scratch, options.sha256 or "")
        except DownloadError as error:
            reasons.append(str(error))
    raise DownloadError("; ".join(reasons) or f"{row.name}: the manifest names no origin")


def of_authors(row: manifest.Weights, options: ConvertOptions) -> bool:
    """Whether something is asked for that the authors' file alone tells: its own names or digest, a decoder that no
    folder of the tag has, what the source computes.
    """
    own = (options.key, options.prefix, options.layout, options.sha256, options.to, options.verify)
    return any(own) or (options.mae and not keeps_decoder(row))


def from_place(row: manifest.Weights, place: Place, scratch: Path, sha256: str) -> tuple[Path, Place | None]:
    """The weights of a tag from one place, which is none if it is a bundle: what is known of that is in its record.

    Raises:
        DownloadError: they cannot be had from there.
    """
    if place.ready and not place.on_hub:
        mirrors.fetch(place, row, scratch / row.name)
        return scratch / row.name, None
    path = places.fetch(place, scratch / row.name, sha256=sha256).path
    if place.ready and row.timm:
        fetch_beside(place.address, path, BESIDE)
    return path, place


def report(converted: Converted, every: bool) -> str:
    """What became of the tensors: in numbers, or (``every``) one line each."""
    native, checkpoint = converted.native, converted.checkpoint
    others = [name for name in checkpoint.sets if name != checkpoint.top_key]
    lines = [
        f"source  {converted.source} ({counted(len(checkpoint.state), 'tensors')}"
        + (f" under {checkpoint.top_key!r})" if checkpoint.top_key else ")"),
        f"set     {checkpoint.top_key or 'the file itself'}; "
        + (f"--key reads another: {', '.join(others)}" if others else "there is no other"),
        f"layout  {native.layout.name}: {native.layout.about}",
        f"sha256  {checkpoint.sha256}",
        f"licence {converted.license}",
    ]
    if converted.license_note:
        lines.append(f"  about the licence: {converted.license_note}")
    steps = [step for step in native.steps if every or step.action == "reshaped"]
    lines += [
        f"  {s.action:8} {s.source}"
        + (f" -> {s.target}" if s.target != s.source and s.target else "")
        + (f" ({s.why})" if s.why else "")
        for s in steps
    ]
    if every:
        lines += [f"  left out {name} ({why})" for name, why in checkpoint.left_out.items()]
    counts = Counter(step.action for step in native.steps)
    lines.append(
        "tensors " + ", ".join(f"{counts[a]} {a}" for a in ("kept", "renamed", "reshaped", "joined", "dropped"))
    )
    reasons = Counter(step.why for step in native.steps if step.action == "dropped")
    lines += [f"  dropped {count}: {why}" for why, count in reasons.items()]
    left_out = Counter(checkpoint.left_out.values())
    lines += [f"  left out {count}: {why}" for why, count in left_out.items()]
    lines += [
        f"  not finite: {counted(count, 'values')} of {name}" for name, count in converted.checkpoint.nonfinite.items()
    ]
    lines += [f"  resampled {line}" for line in converted.resampled]
    lines += [f"  {key}: {value}" for key, value in converted.notes.items()]
    if converted.initial:
        lines.append(f"  missing in the source, initial values kept: {', '.join(converted.initial)}")
    return "\n".join(map(printable, lines))
