"""How a pre-training run fares: what the autoencoder makes of some images, how well its features tell classes apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from ..checkpoints.atomic import replacing
from ..commands.options.pretrain import PIXELS
from ..data.source import Source
from ..data.transforms import make_transform, samples_of
from ..mae import MaskedAutoencoder
from ..masking import random_keep
from .drawing import Shown, sheet
from .probe import Inference, knn, pooled_features

SHOWN = 4  # images or videos, evenly spaced in the data
PROBED = 6000  # images at most, drawn once and for all; a sixth asks, the others answer


@contextmanager
def at_rest(mae: MaskedAutoencoder) -> Iterator[None]:
    """Evaluation mode, no gradients, no graphs; weights that no block of its own gathers are gathered."""
    mae.eval()
    if isinstance(mae, FSDPModule):
        mae.unshard()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # graphs are for the batches of the training
        yield
    if isinstance(mae, FSDPModule):
        mae.reshard()
    mae.train()


def look(
    mae: MaskedAutoencoder,
    source: Source,
    config: Mapping[str, Any],
    shown: Shown,
    title: str,
    device: torch.device,
    file: Path | None,
) -> None:
    """Draw what the autoencoder makes of some images or clips of the data; the same ones and the same masks each time.

    Of an autoencoder that predicts no pixels nothing is drawn.

    Args:
        shown: which channels are drawn.
        file: to be written; None: compute only, as all processes must when the model is spread over them.
    """
    if mae.recipe.target != PIXELS:
        return
    transform = make_transform(**config, is_training=False)
    samples = [samples_of(transform(item))[0] for item in source.some(SHOWN)]
    if not samples:  # none can be read: the training says so
        return
    images = torch.stack(samples).to(device)
    keep = random_keep(len(images), mae.units, mae.kept, generator=torch.Generator().manual_seed(0)).to(device)
    with at_rest(mae):
        out = mae(images, keep)
    if file is not None:
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as part:
            sheet(mae, images, out, title, shown).save(part, format="PNG")


def probe(
    mae: MaskedAutoencoder, source: Source, config: Mapping[str, Any], device: torch.device, workers: int
) -> float | None:
    """Top-1 accuracy in percent of 20 nearest neighbours in the encoder's pooled features.

    None where the data does not tell its labels without being read, or too few images can be read.
    """
    if source.labels is None:
        return None
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:PROBED].tolist()
    with at_rest(mae):
        reading = Inference(config, device, workers=workers, max_bad=math.inf, progress=False)
        features, targets, _ = pooled_features(mae.encoder, source, reading, chosen)
    asking = asking_of(len(features))
    if not asking:
        return None
    answers = knn(features[asking:], targets[asking:], features[:asking])
    return 100 * (answers == targets[:asking]).float().mean().item()


def asking_of(images: int) -> int:
    """How many of so many images ask for their neighbours in a preview."""
    return min(images, PROBED) // 6
