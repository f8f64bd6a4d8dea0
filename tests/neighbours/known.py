"""What does not work, and why: (consumer, family) as patterns -> what the page says."""

from __future__ import annotations

KNOWN: dict[tuple[str, str], str] = {
    (r"torch\.compile", "green_twins_.*"): "timm's Twins: not done within minutes, its code branches on sizes.",
    (
        r"torch\.export, any batch, height",
        "green_.*",
    ): "Not done in time, or sides are fixed in the file: see leaving Python below.",
    (r"torch\.fx", "green_twins_.*"): "timm's Twins branches on sizes.",
    (
        "anomalib: layers as numbers",
        "hivit_.*",
    ): "The maps are right; `out_dims` is the width of the last level, which PaDiM reads: see anomalib below.",
    ("open_clip: attention pools", ".*"): "An AssertionError: see open_clip below.",
}
