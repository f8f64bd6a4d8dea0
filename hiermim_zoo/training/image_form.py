"""In which form a model takes images: what a command is told, else what the folder of the model remembers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import parse_model_name
from timm.models._hub import download_from_hf

from ..checkpoints.configs import CONFIG_KEY, IMAGE_KINDS, IMAGES_KEY, LABELS_KEY, read_config
from ..checkpoints.folder import CONFIG_FILE
from ..data.decoding import Form
from ..data.scale import Scale


def form_of(options: Any, channels: int, beside: Mapping[str, Any]) -> Form:
    """The form of images.

    Args:
        options: of a command, with ``max_pixels`` and those of ``IMAGE_KINDS`` that it has.
        channels: of the model.
        beside: see :func:`remembered`.

    Raises:
        ValueError: a rule that does not exist, or bands that do not go with the channels.
    """
    said = {key: getattr(options, key, None) or beside.get(key) for key in IMAGE_KINDS}
    return Form(
        channels,
        Scale.parse(said["scale"] or "dtype"),
        tuple(said["bands"] or ()),
        said["axes"] or "",
        tuple(said["stack"].split(",")) if said["stack"] else (),
        options.max_pixels,
    )


def form_for(options: Any, channels: int) -> Form:
    """The form of images for the model that a command names; see :func:`form_of`.

    Args:
        options: with ``model``, too.
        channels: of the model; 0: as many as a file has.

    Raises:
        ValueError: see :func:`form_of` and :func:`remembered`.
    """
    return form_of(options, channels, remembered(options.model))


def to_remember(form: Form) -> dict[str, Any]:
    """What is not the default, for config.json."""
    said = {"scale": str(form.scale), "bands": list(form.bands), "axes": form.axes, "stack": ",".join(form.stack)}
    return {key: value for key, value in said.items() if value not in ("dtype", "", [])}


def remembered(model: str) -> dict[str, Any]:
    """What config.json of a model says of its images; nothing where there is none.

    Args:
        model: as timm names it: "arch", "local-dir:DIR", "hf-hub:ORG/NAME".

    Raises:
        ValueError: it says what cannot be.
    """
    images: dict[str, Any] = said_of(model).get(IMAGES_KEY, {})
    return images


def remembered_in(folder: Path) -> dict[str, Any]:
    """Likewise, of a folder."""
    images: dict[str, Any] = said_in(folder).get(IMAGES_KEY, {})
    return images


def told_by(model: str) -> dict[str, Any]:
    """What the outputs of a model are, by its config.json: kind and names; nothing where they are classes."""
    labels: dict[str, Any] = said_of(model).get(LABELS_KEY, {})
    return labels


def said_of(model: str) -> dict[str, Any]:
    """All that this package wrote into config.json of a model; nothing where there is none.

    Raises:
        ValueError: it says what cannot be.
    """
    source, name = parse_model_name(model)
    if source == "hf-hub":
        return said_in(Path(download_from_hf(name, CONFIG_FILE)).parent)
    return said_in(Path(name)) if source == "local-dir" else {}


def said_in(folder: Path) -> dict[str, Any]:
    """Likewise, of a folder."""
    file = folder / CONFIG_FILE
    said: dict[str, Any] = read_config(file)[CONFIG_KEY] if file.is_file() else {}
    return said
