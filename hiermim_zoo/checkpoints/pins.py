"""Pins: what the manifest says of a published repository, written into the text of weights/manifest.toml."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from .atomic import replacing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Pin = Mapping[str, str | int]  # hub, hub_revision, hub_sha256, hub_bytes


def lines(pin: Pin) -> list[str]:
    """As they stand in the manifest."""
    return [f"{key} = {value}" if isinstance(value, int) else f'{key} = "{value}"' for key, value in pin.items()]


def write_pin(manifest: Path, tag: str, pin: Pin) -> None:
    """Put a pin into the row of a tag; all other text stays as it is.

    Raises:
        ValueError: this is no manifest that has the tag.
    """
    text = with_pin(_text(manifest), tag, pin, manifest)
    with replacing(manifest) as part:
        part.write_text(text, encoding="utf-8")


def check_manifest(manifest: Path, tag: str) -> None:
    """Refuse a file into which no pin of a tag can be written, before anything is published.

    Raises:
        ValueError: this is no manifest that has the tag.
    """
    with_pin(_text(manifest), tag, {}, manifest)


def with_pin(text: str, tag: str, pin: Pin, manifest: Path) -> str:
    """The text of a manifest with a pin in the row of a tag."""
    begins = [found.start() for found in re.finditer(r"^\[\[weights\]\]", text, re.MULTILINE)]
    for begin in begins:
        end = text.find("\n[", begin) + 1 or len(text)
        row = text[begin:end]
        if tomllib.loads(row)["weights"][0].get("name") == tag:
            return text[:begin] + _row(row, pin) + text[end:]
    raise ValueError(f"{manifest} has no row of {tag}; that of a checkout is weights/manifest.toml")


def _row(row: str, pin: Pin) -> str:
    """One table; the keys of the pin stand behind its name."""
    kept = [line for line in row.splitlines(keepends=True) if line.partition("=")[0].strip() not in pin]
    at = next(i for i, line in enumerate(kept) if re.match(r"name\s*=", line)) + 1
    return "".join([*kept[:at], *(f"{line}\n" for line in lines(pin)), *kept[at:]])


def _text(manifest: Path) -> str:
    if not manifest.is_file():
        raise ValueError(f"{manifest} does not exist; that of a checkout is weights/manifest.toml")
    text = manifest.read_text(encoding="utf-8")
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{manifest} is no TOML: {error}") from error
    return text
