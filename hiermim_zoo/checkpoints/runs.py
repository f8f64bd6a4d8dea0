"""Snapshots of this package's own runs as checkpoints: their options say what config.json says of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .configs import CONFIG_KEY, IMAGES_KEY

_SAID = {"decoder_depth": "depth", "decoder_dim": "dim", "decoder_heads": "heads", "mask_ratio": "mask_ratio"}


def run_config(content: Any) -> dict[str, Any]:
    """What config.json would say of a snapshot: architecture, arguments of the model, preprocessing, recipe.

    Args:
        content: of a file; its options may be a stranger's.

    Returns:
        Empty where it is no snapshot of pre-training. The recipe is None where nothing tells it: the run went on from
        a folder that had one, and the snapshot is older than version 0.1.
    """
    options = content.get("options") if isinstance(content, Mapping) and "optimizer" in content else None
    if not (isinstance(options, Mapping) and isinstance(options.get("model"), str)):
        return {}
    pairs, size = options.get("model_kwargs") or [], options.get("img_size")
    try:
        args = {str(name): value for name, value in pairs}
        size = tuple(int(side) for side in size) if size else None
    except (TypeError, ValueError):
        return {}
    images = content.get("images")
    said = images if isinstance(images, Mapping) else options  # snapshots of before version 0.1 have no images
    cfg = {key: list(said[key]) for key in ("mean", "std") if isinstance(said.get(key), (list, tuple))}
    if size:
        args["img_size"] = size
        cfg["input_size"] = [options.get("in_chans", 3), *size]
    return {
        "architecture": options["model"].partition(".")[0],
        "model_args": args,
        "pretrained_cfg": cfg,
        CONFIG_KEY: {"recipe": _recipe(content, options), IMAGES_KEY: said.get("form") or {}},
    }


def _recipe(content: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Values of the autoencoder's recipe that are not the family's."""
    raw = {"norm_pix": False} if options.get("raw_pixels") is True else {}  # older snapshots say it there alone
    if isinstance(content.get("recipe"), dict):
        return {**raw, **content["recipe"]}
    if options.get("checkpoint"):
        return None
    recipe = raw | {to: options[name] for name, to in _SAID.items() if options.get(name) is not None}
    return recipe | ({"shared_mask": options["masks"] == "batch"} if options.get("masks") else {})


def refuse_shards(folder: Path) -> None:
    """Say of a snapshot that is a folder how its weights are had.

    Raises:
        ValueError: it is one.
    """
    if (folder / ".metadata").is_file():
        raise ValueError(
            f"{folder} is a snapshot that is spread over files (--fsdp): the command of its run with "
            f"--resume {folder} --export-only added writes encoder and decoder into a folder, which can be read"
        )
