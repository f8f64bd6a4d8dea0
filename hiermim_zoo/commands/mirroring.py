"""``mirror``: weights of the manifest in a bundle of one's own, or in repositories of an organisation."""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import mirrors
from ..checkpoints.catalogue import amount, matching, size_of
from ..checkpoints.download import DownloadError
from ..checkpoints.files import sha256_of
from ..checkpoints.folder import MODEL_FILE, PART, move_into
from ..checkpoints.licenses import why_not_passed_on
from ..checkpoints.manifest import Weights, parameters, records
from ..checkpoints.mirrors import RECORD
from ..checkpoints.upload import Repository
from ..progress import shown
from ..text import printable
from .listing import near
from .options import Outcome
from .options.mirror import MirrorOptions
from .options.problems import BadOptions, together
from .publication import check_license, prepared
from .publishing import send


def mirror(options: MirrorOptions) -> Outcome:
    """The result is a list of what was mirrored: the tag, and the folder or what ``publish`` returns.

    Raises:
        ValueError: a pattern fits nothing, a licence forbids it, or the target holds something else.
        OSError: weights cannot be had, or the target cannot be written. What was finished before stays.
    """
    rows = chosen(options.tags)
    target = mirrors.mirror_named(options.to)
    if target.address:
        raise ValueError(f"--to {options.to} is an address; a folder, or hf-hub:ORG for an organisation, would work")
    if target.folder is not None:
        return into_folder(rows, target.folder, options)
    return into_organisation(rows, target.organisation, options)


def chosen(patterns: Sequence[str]) -> list[Weights]:
    """The rows that fit one of some patterns, in the order of the manifest.

    Raises:
        ValueError: a line for each pattern that fits none.
    """
    rows = records().values()
    if lines := [f"TAGS {one} fits no weights; {near(one, records())}" for one in patterns if not matching(rows, one)]:
        raise BadOptions(lines)
    wanted = {row.name for one in patterns for row in matching(rows, one)}
    return [row for row in rows if row.name in wanted]


# ---- an organisation


def into_organisation(rows: Sequence[Weights], organisation: str, options: MirrorOptions) -> Outcome:
    """One repository for each tag, of the tag's name."""
    permission = options.i_have_permission
    if not options.to.startswith(mirrors.HUB):
        print(f"{organisation} is taken for an organisation of the Hub; ./{organisation} would be a folder")
    together(*(lambda row=row: check_license(row.strict_license, permission, row.name) for row in rows))
    user = Repository(f"{organisation}/{rows[0].name}", options.token)
    found = []
    for row in shown(rows, "tag"):
        repository = user.at(f"{organisation}/{row.name}")
        with tempfile.TemporaryDirectory() as scratch:
            ready = prepared(row.name, Path(scratch), repository.name, permission or "")
            found.append({"name": row.name, **send(ready, repository, row.name, options)})
    if options.dry_run:
        return Outcome(found, "dry run: nothing was sent")
    return Outcome(found, f"{len(found)} mirrored: {mirrors.VARIABLE}={mirrors.HUB}{organisation} finds them")


# ---- a folder


def into_folder(rows: Sequence[Weights], folder: Path, options: MirrorOptions) -> Outcome:
    """A bundle, tag by tag: each is whole, or not there."""
    for flag, given in (
        ("--private", options.private),
        ("--token", options.token),
        ("--i-have-permission", options.i_have_permission),
        ("--force", options.force),
    ):
        if given:
            raise ValueError(f"{flag} is for an organisation of the Hub, and --to {options.to} is a folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to {options.to} is a file; name a folder")
    recorded(folder)
    for row in rows:
        if why := why_not_passed_on(row.strict_license):
            print(f"warning: {row.name}: {why}: keep the bundle to yourself", file=sys.stderr)
    if options.dry_run:
        lines = [f"  {row.name}: {size_of(row, parameters().get(row.name))}, licence {row.licenses}" for row in rows]
        return Outcome([], "\n".join([f"into {folder}:", *lines, "dry run: nothing was written"]))
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for row in shown(rows, "tag"):
        size = bundled(row, folder)
        print(f"{row.name}: {amount(size)} in {printable(folder / row.name)}")
        found.append({"name": row.name, "folder": str(folder / row.name)})
    return Outcome(found, f"{len(found)} mirrored: {mirrors.VARIABLE}={folder.resolve()} finds them, without a network")


def recorded(folder: Path) -> Mapping[str, Any]:
    """What the record of a bundle has, if there is one.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return mirrors.read_record(folder) if (folder / RECORD).exists() else {}
    except DownloadError as error:
        raise ValueError(str(error)) from error


def bundled(row: Weights, folder: Path) -> int:
    """Put a tag into a bundle, beside its place and then renamed; bytes of its weights.

    Args:
        row: the tag.
        folder: of the bundle.

    Raises:
        ValueError: there is another file already, or the weights here are not those that the manifest pins.
        OSError: the weights cannot be had, or the folder cannot be written.
    """
    if had := whole(row, folder):
        return had
    place, part = folder / row.name, folder / f"{PART}{secrets.token_hex(8)}"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            ready = prepared(row.name, Path(scratch), f"ORG/{row.name}")
            check_pinned(row, sha256_of(ready.files[MODEL_FILE]))
            part.mkdir()
            for name, path in ready.files.items():
                shutil.copyfile(path, part / name)
                if sha256_of(part / name) != sha256_of(path):
                    raise OSError(f"{part / name}: what was written is not what came: is the disk in order?")
        with mirrors.locked(folder):
            if had := whole(row, folder):  # another process was faster
                return had
            # The record first: of whoever is killed in between, the next makes the folder anew.
            mirrors.add_to_record(
                folder, row.name, row.strict_license, {path.name: path for path in sorted(part.iterdir())}
            )
            if place.exists():  # damaged since it was recorded; files of others stay
                move_into(place, part)
            else:
                part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return (place / MODEL_FILE).stat().st_size


def whole(row: Weights, folder: Path) -> int:
    """Bytes of the weights of a tag in a bundle; 0 if they are not there, or not as its record says.

    Raises:
        ValueError: there is a folder of the tag's name that is not in the record.
    """
    place, had = folder / row.name, recorded(folder).get(row.name)
    if had is None and place.exists():
        raise ValueError(f"{place} is there and not in {RECORD}: remove it, or name another folder")
    files = had["files"] if had else {}
    sound = all((place / name).is_file() and sha256_of(place / name) == one["sha256"] for name, one in files.items())
    return files[MODEL_FILE]["bytes"] if files and sound else 0


def check_pinned(row: Weights, sha256: str) -> None:
    """Refuse weights that whoever asks the mirror would refuse.

    Raises:
        ValueError: the manifest knows another digest.
    """
    known = mirrors.known(row, mirrors.Place("")).digests.get("sha256", sha256)
    if known != sha256:
        raise ValueError(f"{row.name}: the weights here have sha256 {sha256}, the manifest says {known}: remove them")
