"""The model card that goes beside weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from textwrap import dedent
from typing import Any

from torch import nn

from ..text import printable
from .licenses import UNSTATED, commercial_use

LICENSE_NOTE = "license note"  # a row of the provenance
# The end of the line that makes the model, in the card of a folder.
_HERE = '"local-dir:THIS_FOLDER", pretrained=True)  # or "hf-hub:ORG/NAME" after an upload'
_GOLDEN, _PERMISSION = "## Golden outputs", "## Permission"  # sections of the card of a publication
_GOLDEN_TEXT = """\
`golden.safetensors` has photographs and what the model computed for them when it was published. Whether it still
computes that, with other versions or on another machine: `hiermim_zoo.checkpoints.golden.check_golden(FOLDER, model)`.
"""


def model_card(
    model: nn.Module,
    arch: str,
    provenance: Mapping[str, Any],
    made: str,
    images: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
) -> str:
    """README.md in the form of the Hub: front matter, origin, how to use.

    Args:
        model: the model (its ``pretrained_cfg`` and sizes are stated).
        arch: its name in timm.
        provenance: where the weights come from, a row each; "license" among it.
        made: a sentence about how they came about.
        images: how files become the images of the model, where that is not the default.
        labels: what its outputs are, where they are not one class an image.
    """
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    task = "image-classification" if cfg["num_classes"] else "image-feature-extraction"
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    size = " x ".join(map(str, cfg["input_size"]))
    rows = "\n".join(f"| {in_cell(key)} | `{in_cell(value)}` |" for key, value in provenance.items())
    return (
        dedent(f"""\
        ---
        tags: [{task}, timm, hiermim_zoo]
        pipeline_tag: {task}
        library_name: timm
        license: {hub_license(provenance["license"])}
        ---
        # {arch}

        {(type(model).__doc__ or "").strip().splitlines()[0]}

        - parameters: {parameters:.1f} M
        - input: {size}
        - {outputs(cfg["num_classes"], labels or {})}
        """)
        + licensing(provenance["license"], provenance.get(LICENSE_NOTE, ""))
        + reading(images or {})
        + dedent("""
        ## Use

        ```python
        import timm
        import hiermim_zoo  # registers the architecture

        model = timm.create_model(HERE
        ```

        ## Provenance

        """).replace("HERE", _HERE)
        + f"{made}\n\n| | |\n| --- | --- |\n"
        + rows
        + "\n"
    )


def published_card(card: str, repository: str, license: str, permission: str = "") -> str:
    """The card of a folder, for the repository that it is published in.

    Args:
        card: of the folder; with front matter, which tells the Hub the licence.
        repository: "ORG/NAME".
        license: of the weights, as the configuration says.
        permission: who allowed to pass them on, in words.

    Raises:
        ValueError: no front matter, or one that says another licence.
    """
    front = re.match(r"---\n(.*?)^---$", card, re.DOTALL | re.MULTILINE)
    said = re.search(r"^license:\s*(\S.*?)\s*$", front[1], re.MULTILINE) if front else None
    if said is None:
        raise ValueError("no licence stands between two lines of --- at its beginning; without the file one is written")
    if said[1] != hub_license(license):
        raise ValueError(f"its licence is {printable(said[1], 60)}, that of config.json is {printable(license, 60)}")
    for section in (_GOLDEN, _PERMISSION):  # of an earlier publication
        card = re.sub(rf"\n{section}\n.*?(?=\n## |\Z)", "", card, flags=re.DOTALL)
    card = card.replace(_HERE, f'"hf-hub:{repository}", pretrained=True)')
    card = f"{card.rstrip()}\n\n{_GOLDEN}\n\n{_GOLDEN_TEXT}"
    if permission:
        card += f"\n{_PERMISSION}\n\nWhoever published these weights here says: {printable(permission)}\n"
    return card


def licensing(license: str, note: str) -> str:
    """What users have to know of the licence; empty where it allows commercial use and nobody says otherwise.

    Args:
        note: where it is not said plainly, or others say another.
    """
    said = {
        True: "",
        False: f"These weights are for non-commercial use only ({license}).",
        None: "No licence is stated for these weights." if license == UNSTATED and not note else "",
    }[commercial_use(license)]
    lines = [line for line in (said, f"About the licence: {printable(note)}" if note else "") if line]
    return "".join(f"\n{line}\n" for line in lines)


def outputs(count: int, labels: Mapping[str, Any]) -> str:
    """What the outputs of a model are."""
    if not labels:
        return f"classes: {count or 'none (an encoder)'}"
    each = "any number of which an image has, each with the sigmoid of its output"
    what = each if labels["kind"] == "tags" else "in the units of the data that it was trained on"
    names = ", ".join(f"`{in_cell(name)}`" for name in labels["names"][:20])
    return f"{labels['kind']} ({what}): {count}: {names}{', ...' if count > 20 else ''}"


def reading(images: Mapping[str, Any]) -> str:
    """How files become images, for those who use timm alone."""
    if not images:
        return ""
    words = {
        "scale": "numbers become values from 0 to 1 by the rule `--scale {}`",
        "bands": "of the bands of a file, counted from 1, these are taken in this order: {}",
        "axes": "arrays have the axes `{}`",
        "stack": "each band lies in a file of its own, which has one of these words in its name, in this order: {}",
    }
    said = "\n".join(f"- {words[key].format(value)}" for key, value in images.items())
    who = "The commands of hiermim_zoo read images so by themselves; with timm alone, do so before its transforms:"
    return f"\n## Images\n\n{who}\n\n{said}\n"


def hub_license(license: str) -> str:
    """The Hub's identifier of a licence, as YAML; whatever is no identifier stands in quotes."""
    if license == UNSTATED:
        return "unknown"
    return license if re.fullmatch(r"[A-Za-z][A-Za-z0-9.+-]*", license) else json.dumps(printable(license))


def in_cell(text: object) -> str:
    """Text of a stranger, in a cell of a table and in backquotes: it can close neither. Of a mapping its pairs, of a
    list its items.
    """
    if isinstance(text, list):
        text = "; ".join(map(str, text))
    if isinstance(text, Mapping):
        words = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in text.values())
        text = ", ".join(map(" ".join, zip(text, words, strict=True)))
    return printable(text).replace("`", "'").replace("|", "\\|")
