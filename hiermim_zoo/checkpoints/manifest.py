"""The list of pretrained weights: weights/manifest.toml as frozen records, and as timm's pretrained configs."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODEL_FILE = "model.safetensors"  # with the weights, in the folder of a tag
PARAMETERS = "parameters.toml"  # beside manifest.toml

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy in percent, and how it was measured."""

    top1: float
    by: str
    crop: float | None = None  # of the shorter side; None: whoever measured it does not say


@dataclass(frozen=True)
class Weights:
    """One row of the manifest: a pretrained tag of an architecture."""

    name: str  # "arch.tag"
    hub: (
        str  # name of a repository on the Hugging Face Hub that timm's config shows; see ``places.sources`` for its use
    )
    layout: str  # name of the checkpoint layout of the origin file
    license: str  # licence of the weights; "unstated" where the authors name none (see ``licenses``)
    source: str  # who trained them, in words
    paper: str  # arXiv number
    family_name: str = ""  # where it is not what the name begins with
    timm: bool = False  # the architecture is timm's own, which knows no tags but its own: see ``models.weights``
    url: str = (
        ""  # where the origin file can be downloaded; "hf-hub:ORG/NAME" for somebody else's repository on the Hub
    )
    also: str = ""  # "hf-hub:ORG/NAME" that has the same weights in the same layout, asked after ``url``
    file: str = ""  # file name in weights/, for those that ship with the package
    sha256: str = ""  # of the origin file (or of the shipped one), where known
    md5: str = ""  # of the origin file, or its first digits, where the authors publish them
    bytes: int = 0  # of the origin file (or of the shipped one), where known
    hub_revision: str = ""  # commit of ``hub``, 40 hexadecimal digits
    hub_sha256: str = ""  # of model.safetensors in that commit
    hub_bytes: int = 0  # likewise
    classes: int = 0  # classes of the head, 0 for an encoder alone
    data: str = ""  # what it was trained on
    top1: float | None = None  # top-1 accuracy in percent
    top1_by: str = ""  # who measured it: a name, then how
    top1_crop: float | None = None  # of the shorter side, with which they did
    top1_also: tuple[Accuracy, ...] = ()  # what others measured
    note: str = ""
    license_also: str = ""  # another licence that may hold for the weights, by what their authors say
    license_note: str = ""  # where the licence is not said plainly, or others say another
    input_size: tuple[int, int, int] | None = None  # where it differs from the architecture's
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    labels: tuple[str, ...] = ()  # class names, where they are few

    @property
    def arch(self) -> str:
        return self.name.partition(".")[0]

    @property
    def accuracies(self) -> tuple[Accuracy, ...]:
        """All that were measured, first the one of ``top1``."""
        own = () if self.top1 is None else (Accuracy(self.top1, self.top1_by, self.top1_crop),)
        return own + self.top1_also

    @property
    def tag(self) -> str:
        return self.name.partition(".")[2]

    @property
    def family(self) -> str:
        return self.family_name or self.arch.partition("_")[0]

    @property
    def hub_pinned(self) -> bool:
        """Whether the file in the repository on the Hub is known to the bit."""
        known = ((self.hub_revision, 40), (self.hub_sha256, 64))
        return all(re.fullmatch(f"[0-9a-f]{{{digits}}}", value) for value, digits in known)

    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm should know of it."""
        optional = {key: getattr(self, key) for key in ("input_size", "mean", "std", "crop_pct")}
        return {
            "hf_hub_id": self.hub,
            "license": self.license,
            "origin_url": self.url or None,
            "paper_ids": f"arXiv:{self.paper}",
            "num_classes": self.classes,
            "label_names": self.labels or None,
            **{key: value for key, value in optional.items() if value is not None},
        }


@dataclass(frozen=True)
class Measurement:
    """What this project measured of one encoder on the way to its embedded weights; a number for each seed."""

    encoder: str  # and where its weights come from, in words
    gmacs: float | None = None  # multiply-adds of the forward pass of one image, in 10^9
    time: float | None = None  # of a training step, beside that of the first row
    knn: tuple[float, ...] = ()  # top-1 accuracy in percent of 20 nearest neighbours in the frozen features
    linear: tuple[float, ...] = ()  # of a linear probe on them
    finetuned: tuple[float, ...] = ()  # after fine-tuning
    note: str = ""  # about the budget


@dataclass(frozen=True)
class Table:
    """Measurements that belong together."""

    title: str
    text: str
    rows: tuple[Measurement, ...]


def weights_dir() -> Path:
    """The folder with the manifest and the embedded weights: inside the wheel, or beside the package in a checkout."""
    for folder in (_PACKAGE / "weights", _PACKAGE.parent / "weights"):
        if (folder / "manifest.toml").is_file():
            return folder
    raise FileNotFoundError(f"weights/manifest.toml is missing from the installation of hiermim_zoo in {_PACKAGE}")


@functools.cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads((weights_dir() / "manifest.toml").read_text(encoding="utf-8"))


@functools.cache
def records() -> Mapping[str, Weights]:
    """All rows of the manifest by name, in its order (the first tag of an architecture is its default)."""
    known = {field.name for field in fields(Weights)}
    rows: dict[str, Weights] = {}
    for row in _table()["weights"]:
        assert not row.keys() - known, f"manifest.toml: unknown keys {row.keys() - known} in {row.get('name')}"
        assert row["name"] not in rows, f"manifest.toml: {row['name']} stands there twice"
        also = tuple(Accuracy(**one) for one in row.get("top1_also", ()))
        rows[row["name"]] = Weights(**{**_frozen(row), "top1_also": also})
    return rows


@functools.cache
def parameters() -> Mapping[str, int]:
    """Parameters of the model of each tag, with the tag's classes; python -m hiermim_zoo.cards counts them."""
    path = weights_dir() / PARAMETERS
    counted: Mapping[str, int] = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return counted


def tables() -> list[Table]:
    """All measurements, in their order."""
    return [
        Table(table["title"], table["text"].strip(), tuple(Measurement(**_frozen(row)) for row in table["rows"]))
        for table in _table().get("tables", ())
    ]


def _frozen(row: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of TOML as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def archs() -> set[str]:
    """The architectures that have weights."""
    return {row.arch for row in records().values()}
