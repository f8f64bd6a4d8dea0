"""What the folder of a run tells of it, whichever version wrote it, and whether it goes on or not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints.configs import CONFIG_KEY
from ..checkpoints.folder import CONFIG_FILE, RUN_FILE
from ..text import counted, printable
from ..training.previews import asking_of
from ..training.run_log import LOOKS, NONFINITE, UNREADABLE, read_log
from ..training.run_record import GOES_ON, how_it_ended, read_record

PRETRAINING, TUNING = "pre-training", "fine-tuning"
UNNOTED = "no record of its end"  # of a run of before there was run.json
VERSIONS = ("hiermim_zoo", "torch", "timm", "python")  # that are shown
_DIVERGED = re.compile(r"not finite|\bis -?(?:nan|inf)\b")  # in the reason why a run failed
LONGEST = 400  # letters of a value that is shown


@dataclass
class Told:
    """A run, as far as its folder tells it."""

    name: str
    kind: str
    notes: list[dict[str, Any]]
    options: dict[str, tuple[str, str]]  # value, and where it comes from
    facts: dict[str, str]  # of data, model and machine
    ended: dict[str, Any]  # how, why, step
    sessions: list[dict[str, Any]] = field(default_factory=list)
    total: int | None = None  # steps
    looks: list[tuple[int, Path]] = field(default_factory=list)  # step, image
    skipped: list[tuple[int, list[str]]] = field(default_factory=list)  # step, its images
    unreadable: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    queries: int | None = None  # images of the k-NN accuracy, unless some could not be read; None: not known

    def last(self, column: str) -> Any:
        """The last value that the log has; None: it has none."""
        return next((note[column] for note in reversed(self.notes) if note.get(column) is not None), None)

    def unfinite(self) -> str:
        """In words, that the loss was not finite when the log or the run ended; empty where it was, or none is known.

        A step that was left out, a line without a loss, and the reason why a run failed all tell of it.
        """
        losses = [note for note in self.notes if "loss" in note and "step" in note]
        sound = [note for note in losses if note["loss"] is not None]
        odd = [note["step"] for note in losses if note["loss"] is None]
        why, step = str(self.ended.get("why", "")), self.ended.get("step")
        if self.ended.get("how") != GOES_ON:  # of a run that goes on the next steps may be sound
            odd += [step for step, _ in self.skipped]
        if _DIVERGED.search(why):
            odd.append(step if isinstance(step, int) else max(odd, default=0))
        before = max((note["step"] for note in sound), default=0)
        if not odd or max(odd) < before or (max(odd) == before and not _DIVERGED.search(why)):
            return ""
        place = f" at step {max(odd):,.0f}" if max(odd) else ""
        known = f"{sound[-1]['loss']:.4g} at step {before:,.0f}" if sound else "none"
        return f"loss{place}; the last finite one in the log: {known}"


def read_runs(folders: Sequence[Path]) -> list[Told]:
    """The runs, each with a name of its own."""
    unique = list(dict.fromkeys(folder.resolve() for folder in folders))
    return [read_run(folder, name) for folder, name in zip(unique, names_of(unique), strict=True)]


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell folders apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = [printable("/".join(folder.parts[-depth:])) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def read_run(folder: Path, name: str) -> Told:
    """Everything that is known of a run."""
    record, notes = read_record(folder), [note for note in read_log(folder) if _is_sound(note)]
    unread, said = _unread(folder, record), _config(folder)
    tuned = record.get("command") == "evaluate" or (not record and (folder / CONFIG_FILE).is_file())
    options = {key: (_words(one.get("value")), str(one.get("from", ""))) for key, one in _entries(record)}
    if not record:
        options = {key: (_words(value), CONFIG_FILE) for key, value in said.items() if key != "warnings"}
    sessions = [{**session, "ended": how_it_ended(session)} for session in record.get("sessions", [])]
    totals = [session["total"] for session in sessions if isinstance(session.get("total"), int)]
    warnings = said.get("warnings")
    images = [file for file in sorted((folder / LOOKS).glob("step-*.png")) if _numbered(file)]
    looks = [(int(file.stem.partition("-")[2]), file) for file in images]
    return Told(
        name,
        TUNING if tuned else PRETRAINING,
        notes,
        options,
        _facts(record, sessions),
        sessions[-1]["ended"] if sessions else {"how": "finished" if said and not unread else UNNOTED},
        sessions,
        totals[-1] if totals else None,
        looks,
        _skipped(folder / NONFINITE),
        _lines(sorted((folder / UNREADABLE).glob("rank-*.txt"))),
        [*unread, *(map(str, warnings) if isinstance(warnings, list) else [])],
        _queries(record),
    )


def _unread(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """A line, if there is a record and it tells nothing."""
    if record or not (folder / RUN_FILE).is_file():
        return []
    return [f"{RUN_FILE} could not be read: it holds no record of a run, so options and how it ended are not known"]


def _queries(record: Mapping[str, Any]) -> int | None:
    """Of how many images the nearest neighbours of previews are asked for."""
    count = _part(record, "data").get("count")
    return asking_of(count) if isinstance(count, int) else None


def _is_sound(note: Mapping[str, Any]) -> bool:
    """Whether all that a line has are numbers: a log may be edited, or damaged."""
    return all(value is None or isinstance(value, (int, float)) for value in note.values())


def _numbered(file: Path) -> bool:
    return bool(re.fullmatch(r"step-\d{1,15}", file.stem))


def _entries(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Options, and what follows from them."""
    parts = (record.get(part) for part in ("options", "derived"))
    told = [part for part in parts if isinstance(part, dict)]
    return [(key, one) for part in told for key, one in part.items() if isinstance(one, dict)]


def _config(folder: Path) -> dict[str, Any]:
    """What this package says in the folder of the model that a run wrote; empty: there is none."""
    for file in (folder / "encoder" / CONFIG_FILE, folder / CONFIG_FILE):
        with suppress(OSError, ValueError):
            found = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get(CONFIG_KEY), dict):
                return dict(found[CONFIG_KEY])
    return {}


def _facts(record: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of model, data and machine, by what they are called."""
    last = sessions[-1] if sessions else {}
    data, parameters = (_part(record, key) for key in ("data", "parameters"))
    machine, versions = (_part(last, key) for key in ("machine", "versions"))
    where = [machine.get("card") or machine.get("processor"), f"{machine['cores']} cores" if "cores" in machine else ""]
    count = f"{data['count']:,} {data.get('kind', '')}" if isinstance(data.get("count"), int) else ""
    classes = counted(data["classes"], "classes") if data.get("classes") else ""
    sizes = [f"{key} {number / 1e6:.2f} M" for key, number in parameters.items() if _is_number(number)]
    shown = [f"{key} {versions[key]}" for key in VERSIONS if key in versions]
    found = {
        "model": _words(record.get("model")),
        "parameters": ", ".join(sizes),
        "data": ", ".join(filter(None, [_words(data.get("data")), count, classes])),
        "machine": ", ".join(str(part) for part in where if part),
        "versions": ", ".join(shown),
    }
    return {key: value for key, value in found.items() if value}


def _part(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _words(value: Any) -> str:
    """A value for people."""
    if value is None or value == "":
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return printable(" ".join(map(_words, value)), LONGEST)
    return printable(value if isinstance(value, str) else json.dumps(value, default=str), LONGEST)


def _skipped(folder: Path) -> list[tuple[int, list[str]]]:
    """Steps that were left out, with the images of all processes."""
    found: dict[int, list[str]] = {}
    for file in sorted(folder.glob("step-*-rank-*.txt")):
        number = file.name.split("-")[1]
        if number.isdigit():
            found.setdefault(int(number), []).extend(_lines([file]))
    return sorted(found.items())


def _lines(files: Sequence[Path]) -> list[str]:
    """The lines of some files, each once."""
    lines: list[str] = []
    for file in files:
        with suppress(OSError):
            lines += [printable(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return list(dict.fromkeys(lines))
