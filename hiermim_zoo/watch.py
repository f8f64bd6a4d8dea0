"""How a pre-training run fares: what the autoencoder makes of some pictures, how well its features tell classes apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from .data import is_stream, labels_of, make_transform, read
from .mae import MaskedAutoencoder
from .masking import random_keep
from .probe import knn, pooled_features
from .reconstruct import sheet
from .writing import replacing

SHOWN = 4  # pictures or videos, evenly spaced in the data
PROBED = 6000  # pictures at most, drawn once and for all; a sixth asks, the others answer


@contextmanager
def at_rest(mae: MaskedAutoencoder) -> Iterator[None]:
    """Evaluation mode, no gradients; weights that no block of its own gathers are gathered."""
    mae.eval()
    if isinstance(mae, FSDPModule):
        mae.unshard()
    with torch.no_grad():
        yield
    if isinstance(mae, FSDPModule):
        mae.reshard()
    mae.train()


def look(
    mae: MaskedAutoencoder, source: Any, config: Mapping[str, Any], title: str, device: torch.device, file: Path | None
) -> None:
    """Draw what the autoencoder makes of some pictures or clips of the data; the same ones and the same masks each time.

    Args:
        file: to be written; None: compute only, as all processes must when the model is spread over them.
    """
    if mae.in_chans != 3:
        return
    if is_stream(source):
        pictures = [picture for picture, _ in islice(iter(source), SHOWN)]
    else:
        pictures = [read(source, i * len(source) // SHOWN)[0] for i in range(SHOWN)]
    transform = make_transform(**config, is_training=False)
    made = [transform(picture) for picture in pictures]  # of a video, a list of its clips
    images = torch.stack([x[0] if isinstance(x, list) else x for x in made]).to(device)
    keep = random_keep(len(images), mae.units, mae.kept, generator=torch.Generator().manual_seed(0)).to(device)
    with at_rest(mae):
        out = mae(images, keep)
    if file is not None:
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as part:
            sheet(mae, images, out, title).save(part, format="PNG")


def probe(mae: MaskedAutoencoder, source: Any, config: Mapping[str, Any], device: torch.device, workers: int) -> float | None:
    """Top-1 accuracy in percent of 20 nearest neighbours in the encoder's pooled features; None where the data has no labels."""
    labels = None if is_stream(source) else labels_of(source)
    if labels is None:
        return None
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:PROBED].tolist()
    with at_rest(mae):
        features, targets = pooled_features(
            mae.encoder, source, config, device, workers=workers, positions=chosen, max_bad=1.0, progress=False
        )
    asking = len(features) // 6
    answers = knn(features[asking:], targets[asking:], features[:asking])
    return 100 * (answers == targets[:asking]).float().mean().item()
