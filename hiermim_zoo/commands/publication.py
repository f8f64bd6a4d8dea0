"""What is published of a tag or of a folder, made ready on this machine: weights, configuration, decoder, card, golden
logits. ``publish`` sends it to the Hub, ``mirror`` also puts it into a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints.card import model_card, published_card
from ..checkpoints.catalogue import accuracy_words
from ..checkpoints.configs import CONFIG_KEY, IMAGES_KEY, LABELS_KEY, read_config
from ..checkpoints.files import read_checkpoint
from ..checkpoints.folder import CARD, CONFIG_FILE, DECODER_FILE, MODEL_FILE, write_folder
from ..checkpoints.golden import write_golden
from ..checkpoints.licenses import UNSTATED, why_not_passed_on
from ..checkpoints.manifest import Weights, records
from ..mae import complete_alone, create_mae
from ..models.build import make_model
from ..models.conversion import CONVERTED, convert
from ..models.weights import locate
from ..training.export import ENCODER

_NO_ROWS = ("recipe", IMAGES_KEY, LABELS_KEY)  # of what a configuration says of weights: none of their provenance


@dataclass(frozen=True)
class Publication:
    """Files that are ready, and what is known of them."""

    arch: str
    license: str
    files: Mapping[str, Path]  # by their names in the repository


def row_of(source: str) -> Weights | None:
    """The row of a tag; None: the source is a folder.

    Raises:
        ValueError: it is neither.
    """
    if source in records() or Path(source).is_dir():
        return records().get(source)
    raise ValueError(f"{source} is no folder and no tag; python -m hiermim_zoo.list shows the tags")


def license_of(source: str) -> str:
    """The licence of a tag or folder, "unstated" where none is stated.

    Raises:
        ValueError: what :func:`row_of` and :func:`check_folder` refuse, or two licences.
    """
    row = row_of(source)
    return row.strict_license if row else said_license(Path(source), check_folder(Path(source)))


def check_license(license: str, permission: str | None, source: str) -> None:
    """Refuse to pass weights on that must not be.

    Raises:
        ValueError: says why, and what would help.
    """
    if permission is None and (why := why_not_passed_on(license)):
        own = "" if source in records() else "; if they are your own: convert with --license NAME states one"
        raise ValueError(f"{source}: {why}; with --i-have-permission TEXT the card says who allowed it{own}")


def check_folder(folder: Path) -> dict[str, Any]:
    """The configuration of a folder that can be published.

    Raises:
        ValueError: it is none that ``convert``, ``pretrain`` or ``evaluate`` could have written.
    """
    if missing := [name for name in (CONFIG_FILE, MODEL_FILE) if not (folder / name).is_file()]:
        inside = folder / ENCODER
        hint = f": {inside} is the folder of the encoder" if (inside / CONFIG_FILE).is_file() else ""
        raise ValueError(f"{folder} has no {missing[0]}, so it is no model in timm's form{hint}")
    config = read_config(folder / CONFIG_FILE)
    if not config.get("architecture"):
        raise ValueError(f"{folder / CONFIG_FILE} names no architecture")
    return config


def said_license(folder: Path, config: Mapping[str, Any]) -> str:
    """What a configuration says.

    Raises:
        ValueError: two licences.
    """
    said = [config[part].get("license") for part in (CONFIG_KEY, "pretrained_cfg")]
    named = sorted({str(license) for license in said if license})
    if len(named) > 1:
        raise ValueError(f"{folder / CONFIG_FILE} says two licences, {' and '.join(named)}: leave the right one")
    return named[0] if named else UNSTATED


def prepared(source: str, scratch: Path, repository: str, permission: str = "") -> Publication:
    """Make ready what is published.

    Args:
        source: a tag or a folder.
        scratch: an empty folder for what is made; weights and configuration stay where they are.
        repository: "ORG/NAME", for the card.
        permission: for the card, see :func:`hiermim_zoo.checkpoints.card.published_card`.

    Raises:
        ValueError, OSError: the weights cannot be had, or timm cannot load them as they are.
    """
    row = row_of(source)
    if row is None:
        _link(Path(source), scratch, (MODEL_FILE, DECODER_FILE, CONFIG_FILE))
    else:
        _link_tag(row, locate(row), scratch)
    config = check_folder(scratch)
    arch = config["architecture"]
    license = said_license(scratch, config)
    if row and (arch, license) != (row.arch, row.strict_license):
        said = f"{arch} and {license}, the manifest {row.arch} and {row.strict_license}"
        raise ValueError(f"{row.name}: the configuration in the local store says {said}: remove it from the store")
    model = make_model(f"local-dir:{scratch}", pretrained=True).eval()
    written = Path(source) / CARD
    try:
        old = row is None and written.is_file()
        text = written.read_text("utf-8") if old else _new_card(model, config, license, row)
        card = published_card(text, repository, license, permission)
    except ValueError as error:
        raise ValueError(f"{written}: {error}") from error
    (scratch / CARD).write_text(card, encoding="utf-8")
    decoded = (scratch / DECODER_FILE).is_file()
    whole = complete_alone(create_mae(arch, checkpoint=str(scratch))) if decoded else model
    write_golden(scratch, whole)
    return Publication(arch, license, {path.name: path for path in sorted(scratch.iterdir())})


def _link_tag(row: Weights, path: Path, scratch: Path) -> None:
    """The weights of a tag as they are in the store, with the configuration that belongs to them."""
    beside = path.with_name(CONFIG_FILE)
    if path.name == MODEL_FILE and beside.is_file() and read_config(beside)[CONFIG_KEY]:
        _link(path.parent, scratch, (MODEL_FILE, DECODER_FILE, CONFIG_FILE))
        return
    converted = convert(read_checkpoint(path), row.arch, source=row.name, row=row)
    write_folder(converted.contents(), scratch)
    (scratch / MODEL_FILE).unlink()  # the file itself is published, to the bit
    (scratch / MODEL_FILE).symlink_to(path.resolve())


def _link(folder: Path, scratch: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (folder / name).is_file():
            (scratch / name).symlink_to((folder / name).resolve())


def _new_card(model: nn.Module, config: Mapping[str, Any], license: str, row: Weights | None) -> str:
    """The card of a tag, or of a folder without one."""
    said = config[CONFIG_KEY]
    provenance = {key: value for key, value in said.items() if key not in _NO_ROWS} | {"license": license}
    made = CONVERTED if said else "Nothing is said about how these weights came about."
    if row:
        made = f"Trained by {row.source}." if row.file else f"Trained by {row.source}. {CONVERTED}"
        figures = "; ".join(map(accuracy_words, row.accuracies))
        more = {"origin": row.url, "data": row.data, "paper": f"arXiv:{row.paper}", "top-1": figures, "note": row.note}
        provenance |= {key: value for key, value in more.items() if value}
    images, labels = said.get(IMAGES_KEY, {}), said.get(LABELS_KEY, {})
    return model_card(model, config["architecture"], provenance, made, images, labels)
