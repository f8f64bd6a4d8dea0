"""Weights under a magnifying glass: what ``doctor`` finds out of a tag or of the folder of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import is_model

from ..checkpoints.catalogue import use_of, where
from ..checkpoints.configs import CONFIG_KEY, read_config
from ..checkpoints.files import find_file, read_checkpoint, sha256_of
from ..checkpoints.folder import CONFIG_FILE, DECODER_FILE, GOLDEN_FILE
from ..checkpoints.golden import check_golden
from ..checkpoints.layouts import NoLayout
from ..checkpoints.licenses import UNSTATED, WORDS, commercial_use
from ..checkpoints.manifest import Weights, records
from ..checkpoints.store import WeightsNotFound, find_local
from ..data.photographs import photographs, shown
from ..mae import complete_alone, create_mae
from ..models.build import make_model
from ..models.family import family_of
from ..models.plausible import Trial, tried
from ..models.weights import locate
from ..text import counted, printable
from .front_door import PACKAGE

LONGEST = 300  # characters of what is said of an error
OK, WRONG, OPEN = "ok", "wrong", "open"  # states of a check; open: it cannot be told


@dataclass(frozen=True)
class Target:
    """What was asked about: a tag, or a folder."""

    name: str  # as it was typed
    row: Weights | None  # of a tag
    folder: Path | None  # in timm's form, where there is one
    file: Path | None  # with the weights; None: they are not here
    broken: str = ""  # why a folder cannot be looked at

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json beside the weights."""
        file = self.folder / CONFIG_FILE if self.folder else None
        return read_config(file) if file and file.is_file() else {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.config.get(CONFIG_KEY, {})

    @property
    def arch(self) -> str:
        return self.row.arch if self.row else str(self.config.get("architecture", "")).partition(".")[0]


def find_targets(names: Iterable[str]) -> list[Target]:
    """What users typed.

    Raises:
        ValueError: one is neither a tag nor a folder. A folder that is none of a model is looked at like one that
            was damaged.
    """
    return [_target(name) for name in names]


def _target(name: str) -> Target:
    path = Path(name).expanduser()
    if name in records():
        return _of_row(name, records()[name])
    if path.is_dir():
        try:
            return _of_folder(name, path)
        except ValueError as error:
            return Target(name, None, path, None, broken=_one_line(error))
    tags = [row.name for row in records().values() if row.arch == name]
    near = f"its weights are {', '.join(tags)}" if tags else f"python -m {PACKAGE}.list shows all weights"
    raise ValueError(f"{name} is neither the name of weights nor a folder; {near}")


def _of_folder(name: str, path: Path) -> Target:
    if not (path / CONFIG_FILE).is_file():
        raise ValueError(f"{name} holds no {CONFIG_FILE}: it is no folder of a model; convert writes one")
    target = Target(name, None, path, find_file(path))
    if not is_model(target.arch):
        raise ValueError(f"{name}: its architecture {target.arch!r} is not known to timm or this package")
    return target


def _of_row(name: str, row: Weights, fetched: Path | None = None) -> Target:
    file = fetched or find_local(row)
    folder = file.parent if file and (file.parent / CONFIG_FILE).is_file() else None
    return Target(name, row, folder, file)


# ---- the checks


def examined(target: Target, fetch: bool = False, say: Callable[[str], object] = str) -> dict[str, Any]:
    """All checks of a target, those that need a model only if one can be made.

    Args:
        target: of the user.
        fetch: weights that are not here.
        say: is told what is looked at next.

    Returns:
        "path": of the weights, or None. "checks": records of "check", "state" and "found" (in words), perhaps with
        "figures".
    """
    checks: list[dict[str, Any]] = []
    if target.broken:
        return {"path": str(target.folder), "checks": [_check("folder", WRONG, target.broken)]}
    if target.row and target.file is None and fetch:
        try:
            target = _of_row(target.name, target.row, locate(target.row))
        except WeightsNotFound as error:
            checks.append(_check("weights", WRONG, " ".join(str(error).split())))
    if target.file is None:
        if target.row and not checks:
            found = f"not here; they can be had from: {where(target.row)} (--fetch fetches them)"
            checks.append(_check("weights", WRONG, found))
        return {"path": None, "checks": [*checks, _license(target)]}
    say("digest")
    checks.append(_safely("digest", _digest, target))
    say("layout")
    checks += [_safely("layout", _layout, target), _license(target)]
    say("model")
    try:
        model = _model(target)
    except (ValueError, OSError, RuntimeError) as error:
        checks.append(_check("model", WRONG, _one_line(error)))
        return {"path": str(target.file), "checks": checks}
    whole: Any = model
    if target.folder and (target.folder / DECODER_FILE).is_file():
        try:
            whole = complete_alone(create_mae(target.arch, checkpoint=target.folder)).eval()
        except (ValueError, OSError, RuntimeError) as error:
            checks.append(_check("decoder", WRONG, _one_line(error)))
    say("plausibility")
    checks.append(_safely("plausibility", _plausibility, target, whole))
    if target.folder and (target.folder / GOLDEN_FILE).is_file():
        say("golden")
        checks.append(_safely("golden", _golden, target, whole))
    say("contract")
    checks.append(_safely("contract", _contract, model))
    return {"path": str(target.file), "checks": checks}


def _check(check: str, state: str, found: str, figures: Mapping[str, float] | None = None) -> dict[str, Any]:
    return {"check": check, "state": state, "found": found, **({"figures": dict(figures)} if figures else {})}


def _safely(name: str, check: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """A check that cannot be made has failed."""
    try:
        return check(*args)
    except (ValueError, OSError, RuntimeError, AttributeError, TypeError) as error:
        return _check(name, WRONG, _one_line(error))


def _one_line(error: Exception) -> str:
    """torch says in the second line what is wrong."""
    return printable(" ".join(str(error).split()), LONGEST) or type(error).__name__


def _digest(target: Target) -> dict[str, Any]:
    """The digest of the file, compared where one is known: of embedded weights, of a pinned repository; of a converted
    file the one of its origin.
    """
    assert target.file
    found, row = sha256_of(target.file), target.row
    origin = target.provenance.get("sha256")
    of_row = bool(row and row.sha256 and origin and target.provenance.get("layout") == row.layout)
    if row and row.file == target.file.name:
        known = row.sha256
    elif row and row.hub_pinned and not target.folder:
        known = row.hub_sha256
    else:
        known = ""
    if known and found != known:
        return _check("digest", WRONG, f"sha256 is {found} instead of {known}")
    if row and of_row and origin != row.sha256:
        return _check("digest", WRONG, f"the file that it was converted from has sha256 {origin}, not {row.sha256}")
    if known or of_row:
        return _check("digest", OK, f"sha256 {found}, as the manifest says{'' if known else ' of its origin'}")
    before = f"; converted from a file of sha256 {origin}" if origin else ""
    return _check("digest", OPEN, f"sha256 {found}{before}; nothing is known to compare it with")


def _layout(target: Target) -> dict[str, Any]:
    """The tensors by their names, and what was read from where."""
    assert target.file
    checkpoint = read_checkpoint(target.file)
    count = f"{counted(len(checkpoint.state), 'tensors')}, all finite"
    try:
        layout = family_of(target.arch).layout_of(checkpoint.state).name
    except NoLayout as error:
        return _check("layout", WRONG, _one_line(error))
    except ValueError:  # of timm's own models, which have no family here
        return _check("layout", OPEN, f"{count}; {target.arch} belongs to no family of this package")
    origin = target.provenance.get("layout")
    return _check("layout", OK, f"{layout}, {count}" + (f"; converted from {origin}" if origin else ""))


def _license(target: Target) -> dict[str, Any]:
    if target.row:
        license, use = target.row.licenses, use_of(target.row)
        note = target.row.license_note
    else:
        license = str(target.provenance.get("license") or target.config.get("license") or UNSTATED)
        use, note = WORDS[commercial_use(license)], ""
    words = f"{'not stated' if license == UNSTATED else license}; commercial use: {use}" + (f". {note}" if note else "")
    return _check("licence", OPEN if use == WORDS[None] else OK, words)


def _model(target: Target) -> Any:
    name = f"local-dir:{target.folder}" if target.folder else target.row.name if target.row else target.arch
    return make_model(name, pretrained=True).eval()


def _plausibility(target: Target, model: Any) -> dict[str, Any]:
    if target.row:
        photographic: bool | None = bool(target.row.accuracies)
    else:
        photographic = False if _of_another_family(target) else None
    trial: Trial = tried(model, photographic=photographic)
    state = {True: OK, False: WRONG, None: OPEN}[trial.plausible]
    classes = f"; top classes: {', '.join(trial.tops)}" if trial.tops else ""
    return _check("plausibility", state, f"{trial.verdict}: {trial.words}{classes}", trial.figures)


def _of_another_family(target: Target) -> bool:
    """Whether the weights were converted from those of another family: the model need not compute what they did."""
    layout = str(target.provenance.get("layout", ""))
    with suppress(ValueError):
        return bool(layout) and layout.partition("_")[0] != family_of(target.arch).name
    return False


def _golden(target: Target, model: Any) -> dict[str, Any]:
    assert target.folder
    check = check_golden(target.folder, model)
    made = ", ".join(f"{name} {text}" for name, text in check.versions.items())
    words = f"{', '.join(check.outputs)} differ by {check.difference:.2g} of the largest (written with {made})"
    return _check("golden", OK if check.within else WRONG, words, {"difference": check.difference})


@torch.inference_mode()
def _contract(model: Any) -> dict[str, Any]:
    """What timm asks of every model, in short. timm's own models are not asked for what they do not have."""
    wrong = [*_of_outputs(model), *_of_levels(model)]
    if wrong:
        return _check("contract", WRONG, "; ".join(wrong))
    return _check("contract", OK, "features, classifier and levels are as timm's users expect them")


def _of_outputs(model: Any) -> Iterator[str]:
    image = shown(photographs(1), model).to(next(model.parameters()).dtype)
    features, output = model.forward_features(image), model(image)
    if not torch.equal(model.forward_head(features), output):
        yield "forward is not forward_head of forward_features"
    if (classes := model.num_classes) and output.shape != (1, classes):
        yield f"{counted(classes, 'classes')}, but an output of {list(output.shape)}"
    other: Any = copy.deepcopy(model)
    for wanted in (7, 0):
        other.reset_classifier(wanted)
        width = other(image).shape[1]
        if width != (wanted or model.num_features):
            yield f"after reset_classifier({wanted}) the output has {counted(width, 'values')}"


def _of_levels(model: Any) -> Iterator[str]:
    """What ``features_only=True`` relies on."""
    image = shown(photographs(1), model).to(next(model.parameters()).dtype)
    maps = model.forward_intermediates(image, intermediates_only=True)
    if len(maps) != len(model.feature_info):
        yield f"{counted(len(maps), 'maps')}, feature_info has {len(model.feature_info)}"
        return
    sides = image.shape[-2:]
    for level, info in zip(maps, model.feature_info, strict=True):
        if level.shape[1] != info["num_chs"]:
            yield f"{info['module']}: {counted(level.shape[1], 'channels')}, feature_info says {info['num_chs']}"
        if any(
            abs(a * info["reduction"] - b) >= info["reduction"] for a, b in zip(level.shape[-2:], sides, strict=True)
        ):
            yield f"{info['module']}: a map of {list(level.shape[-2:])}, feature_info says 1/{info['reduction']}"
