"""``doctor``: the installation in lines or records. What it finds out of weights is in ``examining.py``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import store
from ..checkpoints.catalogue import amount, chosen, where
from ..checkpoints.hub import offline
from ..progress import Progress
from ..text import printable
from .examining import examined, find_targets
from .machine import libraries, versions
from .options import Outcome
from .options.doctor import DoctorOptions

# Environment variables that say where weights are looked for and whether servers are asked.
SWITCHES = (
    "HIERMIM_WEIGHTS", "HIERMIM_MIRROR", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
)  # fmt: skip


def look(options: DoctorOptions) -> Outcome:
    """The result has "installation" and "targets", one for each that was named.

    Raises:
        ValueError: a target is neither a tag nor a folder; all are looked up before any is looked at.
    """
    targets = find_targets(options.targets or ())
    found: dict[str, Any] = {"installation": installation(), "targets": []}
    with Progress(len(targets), "model", shown=bool(targets)) as bar:
        for target in bar.over(targets):

            def say(check: str, name: str = target.name) -> None:
                bar.update(0, at=f"{check} of {printable(name)}")

            found["targets"].append({"name": target.name, **examined(target, options.fetch, say)})
    if options.json:
        return Outcome(found, json.dumps(found, indent=2))
    return Outcome(found, "\n".join(_lines_of(found["targets"]) if targets else _lines(found["installation"])))


def installation() -> dict[str, Any]:
    """What there is on this machine; nothing is asked of any server."""
    return {
        "versions": {**versions(), **libraries()},
        "device": device(),
        "folders": [{"path": str(path), "bytes": _size(path)} for path in _folders()],
        "environment": {name: _hidden(value) for name in SWITCHES if (value := _setting(name))},
        "offline": offline(),
        "here": [row.name for row in chosen(here=True)],
        "elsewhere": {row.name: where(row) for row in chosen(here=False)},
    }


def device() -> str:
    """The fastest that torch can use."""
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return "mps" if torch.backends.mps.is_available() else f"cpu, {torch.get_num_threads()} threads"


def _folders() -> Iterable[Path]:
    """The local store, in its order, and the Hub's cache."""
    from huggingface_hub import constants

    return dict.fromkeys([*store.folders(None), Path(constants.HF_HUB_CACHE)])


def _size(folder: Path) -> int | None:
    """Bytes of all files in it; links, of which the Hub's cache is full, count nothing. None: no such folder."""
    if not folder.is_dir():
        return None
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            path = Path(root, file)
            total += 0 if path.is_symlink() or not path.exists() else path.stat().st_size
    return total


def _setting(name: str) -> str:
    """Variables of proxies are read in both spellings."""
    return os.environ.get(name) or (os.environ.get(name.upper()) if name.endswith("_proxy") else "") or ""


def _hidden(value: str) -> str:
    """Without the name and password that a proxy's address may hold."""
    scheme, mark, rest = value.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else value


# ---- in lines


def _lines(found: Mapping[str, Any]) -> list[str]:
    rows = [
        *((name, text) for name, text in found["versions"].items() if text),
        ("device", found["device"]),
        *(("folder", f"{one['path']}: {_amount(one['bytes'])}") for one in found["folders"]),
        *((name, value) for name, value in found["environment"].items()),
        ("servers", "not asked: HF_HUB_OFFLINE is set" if found["offline"] else "asked where weights are not here"),
    ]
    width = max(len(name) for name, _ in rows)
    places: dict[str, list[str]] = {}
    for name, place in found["elsewhere"].items():
        places.setdefault(place, []).append(name)
    return [
        *(f"{name:{width}}  {printable(text)}" for name, text in rows),
        "",
        f"weights that are here: {len(found['here'])}",
        *(f"  {name}" for name in found["here"]),
        *(line for place, names in places.items() for line in (f"weights from {place}: {len(names)}", *_two(names))),
    ]


def _two(names: list[str]) -> list[str]:
    width = max(map(len, names))
    return [f"  {'  '.join(f'{name:{width}}' for name in names[i : i + 2]).rstrip()}" for i in range(0, len(names), 2)]


def _amount(bytes: int | None) -> str:
    return "not there" if bytes is None else amount(bytes)


def _lines_of(targets: list[dict[str, Any]]) -> list[str]:
    """A line for each check, with what is wrong in capitals."""
    lines = []
    for target in targets:
        lines.append(f"{printable(target['name'])}: {target['path'] or 'not here'}")
        for check in target["checks"]:
            state = check["state"].upper() if check["state"] == "wrong" else check["state"]
            lines.append(f"  {check['check']:12}  {state:5}  {printable(check['found'])}")
    return lines
