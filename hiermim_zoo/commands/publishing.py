"""``publish``: weights, configuration, card and golden logits into a repository of the Hub, in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import pins
from ..checkpoints.configs import read_json
from ..checkpoints.files import SUFFIXES, sha256_of
from ..checkpoints.folder import CONFIG_FILE, DECODER_FILE, MODEL_FILE
from ..checkpoints.upload import NotPublished, Repository, There, check_name, is_same
from ..progress import waiting
from ..text import counted, printable
from .options import Outcome
from .options.publish import PublishOptions
from .publication import Publication, check_license, license_of, prepared, row_of


def publish(options: PublishOptions) -> Outcome:
    """The result is what was published: repository, commit, and bytes and SHA-256 of each file; of a dry run without
    a commit.

    Raises:
        ValueError: the source, the licence, or what the repository has already, forbids it.
        OSError: weights cannot be had, or the Hub does not do its part; nothing was published then.
    """
    row = row_of(options.source)
    check_name(options.to)
    if options.manifest:
        if row is None:
            raise ValueError(f"--manifest {options.manifest} has rows of tags, and {options.source} is a folder")
        pins.check_manifest(options.manifest, row.name)
    check_license(license_of(options.source), options.i_have_permission, options.source)
    repository = Repository(options.to, options.token)
    with tempfile.TemporaryDirectory() as scratch:
        ready = prepared(options.source, Path(scratch), options.to, options.i_have_permission or "")
        found = send(ready, repository, options.source, options)
    if found["commit"] is None:
        return Outcome(found, "dry run: nothing was sent")
    text = f"published {repository.url}/commit/{found['commit']}: downloaded again, all files are equal bit by bit"
    if row:
        model = found["files"][MODEL_FILE]
        pin = {"hub_revision": found["commit"], "hub_sha256": model["sha256"], "hub_bytes": model["bytes"]}
        pin = {"hub": options.to, **pin}
        text += f"\nfor {row.name} in weights/manifest.toml:\n" + "\n".join(f"  {line}" for line in pins.lines(pin))
        if options.manifest:
            print(text)  # also if the file cannot be written
            pins.write_pin(options.manifest, row.name, pin)
            text = f"written into {options.manifest}"
    return Outcome(found, text)


def send(ready: Publication, repository: Repository, source: str, options: Any) -> dict[str, Any]:
    """Publish what is ready, unless it is a dry run, and say what becomes of each file.

    Args:
        ready: what is published.
        repository: where.
        source: as the user named it.
        options: of ``publish`` or ``mirror``: private, force, dry_run.

    Raises:
        ValueError: what is there forbids it.
        NotPublished: the Hub does not do its part.
    """
    there = repository.there()
    if there is not None:
        check_there(ready, repository, there, options)
    gone = stale(ready, there.files) if there else []
    print(plan(ready, repository, there, gone, source, options.private), flush=True)
    files = {name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for name, path in ready.files.items()}
    commit = None
    if not options.dry_run:
        onto = there or repository.create(options.private)
        size = sum(path.stat().st_size for path in ready.files.values()) / 1e6
        try:
            with waiting(f"sending {counted(len(ready.files), 'files')}, {size:.0f} MB"):
                commit = repository.commit(ready.files, gone, f"Publish {ready.arch}", onto)
        except NotPublished as error:
            if there is not None:
                raise
            help = f"run the same again, or delete it at {repository.url}/settings"
            raise NotPublished(f"{error}; the repository was made and may be empty: {help}") from error
        with waiting(f"downloading {size:.0f} MB again, to compare"):
            repository.compare(ready.files, commit)
    return {"repository": repository.name, "commit": commit, "license": ready.license, "files": files}


def check_there(ready: Publication, repository: Repository, there: There, options: Any) -> None:
    """Refuse a repository that is somebody's for something else.

    Raises:
        ValueError: it is public and should be private; or, without --force, has weights of another architecture, or
            files of this package that belong to other weights.
    """
    if options.private and not there.private:
        raise ValueError(f"{repository.name} exists and is public: --private makes new repositories private")
    if options.force:
        return
    weights = [name for name in there.files if "/" not in name and name.endswith(SUFFIXES)]
    other = architecture(repository, there) if weights else ready.arch
    if other != ready.arch:
        whose = f"of {other}" if other else "of an architecture that it does not name"
        raise ValueError(
            f"{repository.name} has weights {whose} ({', '.join(map(printable, weights[:5]))}), not of {ready.arch}: "
            "name another repository, or add --force"
        )
    if gone := stale(ready, there.files):
        raise ValueError(
            f"{repository.name} has {gone[0]} of other weights: name another repository; --force removes it "
            "from the new commit"
        )


def stale(ready: Publication, there: Collection[str]) -> list[str]:
    """Files of this package that would stay beside weights that they do not belong to."""
    return [DECODER_FILE] if DECODER_FILE in there and DECODER_FILE not in ready.files else []


def architecture(repository: Repository, there: There) -> str:
    """What the configuration in a repository names; empty: nothing."""
    if CONFIG_FILE not in there.files:
        return ""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            named = read_json(repository.fetch(CONFIG_FILE, there.head, Path(scratch))).get("architecture")
        except ValueError:  # none that can be read
            return ""
    return printable(named, 60) if isinstance(named, str) else ""


def plan(
    ready: Publication,
    repository: Repository,
    there: There | None,
    gone: Collection[str],
    source: str,
    private: bool,
) -> str:
    """What becomes of each file of a repository, a line each."""
    had: Mapping[str, str] = there.files if there else {}
    state = "exists" if there else "is new"
    seen = "private" if (there.private if there else private) else "public"
    lines = [
        f"{printable(source)} -> {repository.url} (as {repository.user}; {state}, {seen})",
        f"  licence {printable(ready.license)}",
    ]
    for name, path in ready.files.items():
        what = "new"
        if name in had:
            what = "there already" if is_same(path, had[name]) else "replaces the one there"
        lines.append(f"  {name}: {path.stat().st_size} bytes, {what}")
    lines += [f"  {name}: removed, it belongs to other weights" for name in gone]
    others = [printable(name, 80) for name in had if name not in ready.files and name not in gone]
    return "\n".join([*lines, *([f"  stays as it is: {', '.join(others)}"] if others else [])])
