"""What a model makes of labelled images: its pooled features, and what nearest neighbours in them say.

Letters: B items of a batch, V views of an item, N images of the bank, M queries, D features, T tags or values.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..data.batches import NAMED, bad_allowed, start_worker
from ..data.readers import readings
from ..data.source import Source
from ..data.transforms import make_transform, samples_of
from ..progress import Progress
from ..text import printable
from .precision import autocast

CELLS = 2**26  # of a chunk of the similarities, [m, N]
Z = 1.959964  # the normal distribution has 95 % within so many standard deviations

Seen = tuple[int, Tensor | str, int]  # position, views [V, C, H, W] or [V, C, T, H, W] or why there are none, label


class Shown(NamedTuple):
    """What a function made of a data set, item by item, on the CPU."""

    rows: Tensor  # float32 [N, D]
    labels: Tensor  # int64 [N], classes that were read with the items; -1 where there is none
    positions: Tensor  # int64 [N], of the items that could be read; of a stream, their numbers


@dataclass(frozen=True)
class Inference:
    """How a data set is shown to a model.

    Args:
        config: of timm's preprocessing; images are resized and cropped as for evaluation.
        batch_size: items that are shown at once.
        workers: processes that read; 0: this one does. A stream is read by one at most, which keeps its order.
        amp: see :func:`hiermim_zoo.training.precision.autocast`.
        max_bad: items that may be left out because they cannot be read, see ``data.batches.bad_allowed``; the first are
            named on stderr, none where any number may.
        progress: show a bar, if stderr is a terminal.
    """

    config: Mapping[str, Any]
    device: torch.device
    batch_size: int = 64
    workers: int = 0
    amp: str = "none"
    max_bad: float = 0.0
    progress: bool = True


class ViewsByPosition(Dataset[Seen]):
    """Views of items with their labels; an item that cannot be read has a reason in their place."""

    def __init__(self, source: Source, transform: Callable[[Any], Any]) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, position: int) -> Seen:
        try:
            item, label = self.source.read(position)
            return position, torch.stack(samples_of(self.transform(item))), label
        except Exception as error:  # decoders of damaged files raise whatever comes up
            return position, f"{type(error).__name__}: {error}", -1


class ViewsOfStream(IterableDataset[Seen]):
    """Views of the items of a stream, as they come."""

    def __init__(self, source: Source, transform: Callable[[Any], Any]) -> None:
        self.source, self.transform = source, transform

    def __iter__(self) -> Iterator[Seen]:
        for n, (image, label) in enumerate(self.source):
            yield n, torch.stack(samples_of(self.transform(image))), label


def pooled_features(model: nn.Module, source: Source, how: Inference, positions: Iterable[int] | None = None) -> Shown:
    """Pooled features float32 [N, D] of a data set; see :func:`outputs` for arguments and errors."""

    def pooled(images: Tensor) -> Tensor:
        forward: Any = model
        return forward.forward_head(forward.forward_features(images), pre_logits=True)

    was_training = model.training
    model.eval()
    try:
        return outputs(pooled, source, how, positions)
    finally:
        model.train(was_training)


@torch.inference_mode()
def outputs(
    function: Callable[[Tensor], Tensor], source: Source, how: Inference, positions: Iterable[int] | None = None
) -> Shown:
    """What a function of images makes of a data set, in the order of the data.

    Of a video it is the mean over the views.

    Args:
        function: images [B, C, H, W] or [B, C, T, H, W] -> [B, D].
        how: it is shown to the function.
        positions: take only the items at these; a stream, which has none, is read as a whole.

    Raises:
        ValueError: too many images cannot be read, what the function gives is no finite matrix, or a process that
            reads was killed.
    """
    chosen = None if source.streamed else list(range(len(source)) if positions is None else positions)
    found: list[Tensor] = []
    labels: list[int] = []
    read: list[int] = []
    bad = 0
    total = len(source) if chosen is None else len(chosen)
    with Progress(total, "image", shown=how.progress) as bar:
        for batch in readings(_loader(source, chosen, how)):
            bad += _leave_out(source, batch, bad, bad_allowed(how.max_bad, total))
            good = [(n, views, label) for n, views, label in batch if isinstance(views, Tensor)]
            if good:
                views = torch.stack([views for _, views, _ in good]).to(how.device)
                with autocast(how.device, how.amp):
                    found.append(_mean_over_views(function, views).cpu())
                labels += [label for _, _, label in good]
                read += [n for n, _, _ in good]
            bar.update(len(batch))
    if not found:
        return Shown(torch.empty(0, 0), *torch.empty(2, 0, dtype=torch.int64))
    rows = torch.cat(found)
    if rows.ndim != 2 or not rows.isfinite().all():
        raise ValueError(
            f"the model gives rows of shape {list(rows.shape)}, which are no matrix of finite numbers; try --amp none"
        )
    return Shown(rows, torch.tensor(labels), torch.tensor(read))


def _mean_over_views(function: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
    """[B, D] of views [B, V, C, H, W] or [B, V, C, T, H, W]."""
    return function(views.flatten(0, 1)).float().unflatten(0, views.shape[:2]).mean(1)


def _loader(source: Source, chosen: list[int] | None, how: Inference) -> Any:
    """Lists of views; of a stream, where nothing is chosen."""
    transform = make_transform(**how.config, is_training=False, crops=source.crops)
    options: dict[str, Any] = {
        "batch_size": how.batch_size,
        "collate_fn": list,
        "generator": torch.Generator(),  # or making a loader would move the random numbers of the model
        "worker_init_fn": start_worker,
    }
    if chosen is not None:
        return DataLoader(ViewsByPosition(source, transform), sampler=chosen, num_workers=how.workers, **options)
    workers = min(how.workers, 1)
    source.begin_epoch(0, workers)
    return DataLoader(ViewsOfStream(source, transform), num_workers=workers, **options)


def _leave_out(source: Source, batch: list[Seen], before: int, allowed: float) -> int:
    """How many of a batch cannot be read, beside those ``before``; names the first."""
    bad = [(i, reason) for i, reason, _ in batch if isinstance(reason, str)]
    for n, (i, reason) in enumerate(bad, start=before + 1):
        message = f"{printable(source.name_of(i))} cannot be read ({' '.join(reason.split())})"
        if n > allowed:
            raise ValueError(f"{message}; --max-bad N allows for some")
        if n <= NAMED and allowed < math.inf:
            more = "; more are counted, not named" if n == NAMED else ""
            tqdm.write(f"left out: {message}{more}", file=sys.stderr)
    return len(bad)


# ---- neighbours


def nearest(
    bank: Tensor, queries: Tensor, k: int, temperature: float, width: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k nearest in cosine similarity, each with weight exp(similarity / temperature): chunks of [m, k] and [m, k].

    Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", 2018, arXiv 1805.01978,
    section 3.4.

    Args:
        bank: features [N, D].
        queries: features [M, D].
        k: at most N are asked.
        width: numbers that each neighbour says.

    Yields:
        Weights, relative to the nearest (nothing overflows), and positions in the bank.
    """
    k, bank = min(k, len(bank)), F.normalize(bank)
    for chunk in F.normalize(queries).split(max(1, CELLS // max(len(bank), k * width))):
        similarity, found = (chunk @ bank.T).topk(k)
        yield ((similarity - similarity[:, :1]) / temperature).exp(), found


def class_votes(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Shares of the votes that each class gets: [M, classes]; see :func:`nearest`.

    Args:
        labels: of the bank, int64 [N], from 0 on.
    """
    found = [torch.empty(0, classes, device=bank.device)]
    for weights, near in nearest(bank, queries, k, temperature):
        votes = torch.zeros(len(near), classes, device=bank.device).scatter_add_(1, labels[near], weights)
        found.append(votes / weights.sum(1, keepdim=True))
    return torch.cat(found)


def mean_votes(bank: Tensor, truth: Tensor, queries: Tensor, k: int, temperature: float) -> Tensor:
    """Weighted means of what the neighbours say: [M, T]; see :func:`nearest`.

    Args:
        truth: of the bank, float [N, T]; NaN says nothing. Where no neighbour says anything, the mean of the bank
            stands, or 0 if it says nothing either.
    """
    usual = truth.nanmean(0).nan_to_num(0.0)
    found = [torch.empty(0, truth.shape[1], device=bank.device)]
    for weights, near in nearest(bank, queries, k, temperature, truth.shape[1]):
        said = truth[near]  # [m, k, T]
        known = weights[..., None] * ~said.isnan()
        total = known.sum(1)
        mean = (known * said.nan_to_num(0.0)).sum(1) / total
        found.append(torch.where(total > 0, mean, usual))
    return torch.cat(found)


def knn(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Labels [M] by the vote of the k nearest; see :func:`class_votes`."""
    return class_votes(bank, bank_labels, queries, k, temperature, int(bank_labels.max()) + 1).argmax(1)


# ---- intervals


def interval(right: int, total: int) -> tuple[float, float]:
    """Bounds of a share with 95 % confidence (Wilson, 1927), between 0 and 1.

    Raises:
        ValueError: there is nothing to count.
    """
    if total < 1 or not 0 <= right <= total:
        raise ValueError(f"{right} of {total} is no share")
    p, z2 = right / total, Z * Z
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
