"""Reading checkpoints of strangers: a set of weights comes out, nothing in the file ever runs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..text import printable
from .configs import checked_config, read_config
from .content import read_content
from .inspection import damage_named
from .runs import refuse_shards, run_config
from .sets import at, check_no_arrays, choose, find_sets, plain
from .shards import INDEX, check_whole, is_index, parts_of, read_parts
from .soundness import check_sound
from .wrappers import bare, bare_names, bookkeeping, unwrapped

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pyth")
# Of several files in a folder: where others find a model, too.
_PREFERRED = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")


@dataclass(frozen=True)
class Checkpoint:
    """A set of weights of one file and where it comes from."""

    path: Path  # of several files the index
    state: dict[str, Tensor]
    top_key: str  # dotted, under which the set stood, empty at the root
    sha256: str  # of the file; of several, of what the program sha256sum prints of them in the order of their names
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json beside it, if any; of a snapshot its options
    prefix: str = ""  # that was taken off the names
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of the tensors of every set of the file
    left_out: Mapping[str, str] = field(default_factory=dict)  # what else is in the set, and why it is not in ``state``
    nonfinite: Mapping[str, int] = field(default_factory=dict)  # values that are NaN or infinite, of tensors with any

    @property
    def sets(self) -> tuple[str, ...]:
        """Dotted names of all sets of weights in the file; "" is the file itself."""
        return tuple(self.names)


def find_file(path: Path) -> Path:
    """The checkpoint meant by a path: the file itself, or the one in a folder.

    Raises:
        ValueError: no such path, an empty file, a folder without a checkpoint or with several, one file of several.
    """
    if path.is_dir():
        refuse_shards(path)
        return _find_in(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    check_whole(path)
    return path


def _find_in(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES or is_index(p))
    for name in _PREFERRED:
        if folder / name in files:
            return folder / name
    indices = [file for file in files if is_index(file)]
    if len(indices) == 1:
        return indices[0]
    if len(files) != 1:
        found = (
            f"holds {', '.join(p.name for p in files)}: name one of them"
            if files
            else f"holds no {'/'.join(SUFFIXES)} file"
        )
        raise ValueError(f"folder {folder} {found}")
    return find_file(files[0])


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    return digests_of(path, {"sha256"})["sha256"]


def digests_of(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Digests of a file as hexadecimal digits, by the names that hashlib gives them, in one pass over the file."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def wrong_digest(path: Path, known: Collection[tuple[str, str]]) -> str:
    """What is wrong with a file of which digests are known, in words; empty: nothing.

    Args:
        path: of the file.
        known: kinds ("sha256", "md5"), each with all hexadecimal digits or the first ones; without any nothing is
            read.
    """
    found = digests_of(path, {kind for kind, _ in known}) if known else {}
    for kind, expected in known:
        if not (digest := found[kind]).startswith(expected.lower()):
            return f"{kind} is {digest} instead of {expected}"
    return ""


def sha256_of_checkpoint(file: Path) -> str:
    """SHA-256 as it stands in a card: of the file, or of a checkpoint in several files, whose index this is."""
    return sha256_of_parts(file) if is_index(file) else sha256_of(file)


def sha256_of_parts(index: Path) -> str:
    """SHA-256 of a checkpoint in several files: of the lines "DIGEST  NAME" in the order of their names."""
    lines = (f"{sha256_of(index.with_name(part))}  {part}\n" for part in sorted(parts_of(index)))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_checkpoint(path: str | Path, key: str = "", prefix: str = "", *, allow_nonfinite: bool = False) -> Checkpoint:
    """Read a file of torch or of safetensors, one in several files by its index, or a folder with one.

    Args:
        path: of file, index or folder.
        key: dotted name of a set of weights in the file; default: the one that timm's loader takes, else the only one.
        prefix: names that begin with it are read alone, and without it.
        allow_nonfinite: take values that are NaN or infinite as they are.

    Raises:
        ValueError: the file cannot be read, would run code, holds no such set, or tensors that are not sound;
            SeveralSets: it does not say which set is meant.
    """
    file = find_file(Path(path))
    content = read_parts(file) if is_index(file) else read_content(file)
    with damage_named(file):
        sets = find_sets(content)
    key = choose(content, sets, file, key)
    if key not in sets:  # deeper than they are looked for
        sets[key] = plain(at(content, key))
    weights = sets[key]
    prefix = bare(f"{prefix.rstrip('.')}.x").removesuffix("x") if prefix else ""
    check_no_arrays(weights, file, prefix)
    state, left_out = unwrapped(weights), bookkeeping(weights)
    if prefix:
        state, others = _without(state, prefix)
        left_out |= others
    with damage_named(file):
        nonfinite = check_sound(state, file, allow_nonfinite)
    beside, run = file.parent / "config.json", run_config(content)
    config = checked_config(run, file) if run else read_config(beside) if beside.is_file() else {}
    return Checkpoint(
        file,
        state,
        key,
        sha256_of_checkpoint(file),
        config,
        prefix,
        {name: bare_names(found) for name, found in sets.items()},
        left_out,
        nonfinite,
    )


def _without(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors whose names begin with a prefix, without it; the others, with the reason.

    Raises:
        ValueError: none does.
    """
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not found:
        begins = dict.fromkeys(f"{name.partition('.')[0]}." for name in state if "." in name)
        there = f"they begin with {', '.join(list(begins)[:12])}" if begins else "they have no parts"
        raise ValueError(f"--prefix {prefix}: no name of a tensor begins so; {printable(there, 300)}")
    return found, {name: f"does not begin with --prefix {prefix}" for name in state if not name.startswith(prefix)}
