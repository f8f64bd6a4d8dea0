"""What does not work, and why: (consumer, family) as patterns -> what the page says."""

from __future__ import annotations

KNOWN: dict[tuple[str, str], str] = {
    (
        "anomalib: layers as numbers",
        "hivit_.*",
    ): "The maps are right; `out_dims` is the width of the last level, which PaDiM reads: see anomalib below.",
    ("open_clip: attention pools", ".*"): "An AssertionError: see open_clip below.",
}
