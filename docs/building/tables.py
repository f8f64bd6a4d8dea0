"""Tables of a family, from the manifest: its weights, its sizes, and what was measured."""

from __future__ import annotations

from hiermim_zoo.checkpoints import manifest
from hiermim_zoo.checkpoints.catalogue import license_of, size_of, use_of
from hiermim_zoo.checkpoints.manifest import Weights, parameters
from hiermim_zoo.commands import cataloguing
from hiermim_zoo.models.listing import architectures
from hiermim_zoo.models.measure import measure

CARDS = "/reference/weights.md"


def weights(*families: str) -> str:
    """Published and embedded weights, a line each."""
    head = ("weights", "size", "top-1 (crop)", "licence", "commercial use", "trained by")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    lines += [f"| {' | '.join(of_weights(row))} |" for row in manifest.records().values() if row.family in families]
    return "\n".join(lines)


def of_weights(row: Weights) -> tuple[str, ...]:
    first = row.accuracies[0] if row.accuracies else None
    crop = "not stated" if first is None or first.crop is None else f"{first.crop:g}"
    return (
        f"[{row.name}]({CARDS}#{row.name.replace('.', '')})" + (" (embedded)" if row.file else ""),
        size_of(row, parameters().get(row.name)),
        f"{first.top1:g} ({crop})" if first else "-",
        license_of(row),
        use_of(row),
        row.source.partition(" (")[0],
    )


def numbers(family: str) -> str:
    """Sizes of the architectures, counted."""
    lines = ["| model | parameters | GMACs | input |", "| --- | --- | --- | --- |"]
    for arch in architectures(family):
        size = measure(arch)
        sides = " x ".join(map(str, size.input_size[1:]))
        lines.append(f"| `{arch}` | {size.parameters / 1e6:.2f} M | {size.macs / 1e9:.2f} | {sides} |")
    return "\n".join(lines)


def measured(*titles: str) -> str:
    """Tables of what this project measured whose titles begin so."""
    return "\n".join(
        cataloguing.measured(table) for table in manifest.tables() if table.title.startswith(" ".join(titles))
    )
