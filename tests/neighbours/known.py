"""What does not work, and why: (consumer, family) as patterns -> what the page says."""

from __future__ import annotations

KNOWN: dict[tuple[str, str], str] = {
    (r"jit\.script", ".*"): "TorchScript is no longer developed; `torch.jit.trace` and `torch.export` work.",
    (
        "anomalib",
        "hivit_.*",
    ): "The maps are right; `out_dims` is the width of the last level, which PaDiM reads: see anomalib below.",
}
