"""What a model makes of labelled images: its pooled features, and how well neighbours or a linear probe do on them.

Letters: B items of a batch, V views of an item, N images of the bank, M queries, D features.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..data.batches import NAMED, bad_allowed, start_worker
from ..data.readers import readings
from ..data.source import Source
from ..data.transforms import make_transform, samples_of
from ..text import printable
from .precision import autocast

CELLS = 2**26  # of a chunk of the similarities, [m, N]
Z = 1.959964  # the normal distribution has 95 % within so many standard deviations

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the logistic regression, the inverse of its regularisation
MAX_ITERATIONS = 1000

Seen = tuple[int, Tensor | str, int]  # position, views [V, C, H, W] or [V, C, T, H, W] or why there are none, label


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


def pooled_features(
    model: nn.Module, source: Source, how: Inference, positions: Iterable[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Pooled features float32 [N, D] and labels int64 [N], on the CPU; see :func:`outputs` for arguments and errors."""

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
) -> tuple[Tensor, Tensor]:
    """What a function of images makes of a data set: float32 [N, D], and their labels [N], in the order of the data.

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
    bad = 0
    total = len(source) if chosen is None else len(chosen)
    with tqdm(total=total, unit="image", disable=None if how.progress else True, leave=False) as bar:
        for batch in readings(_loader(source, chosen, how)):
            bad += _leave_out(source, batch, bad, bad_allowed(how.max_bad, total))
            good = [(views, label) for _, views, label in batch if isinstance(views, Tensor)]
            if good:
                views = torch.stack([views for views, _ in good]).to(how.device)
                with autocast(how.device, how.amp):
                    found.append(_mean_over_views(function, views).cpu())
                labels += [label for _, label in good]
            bar.update(len(batch))
    if not found:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    rows = torch.cat(found)
    if rows.ndim != 2 or not rows.isfinite().all():
        raise ValueError(
            f"the model gives rows of shape {list(rows.shape)}, which are no matrix of finite numbers; try --amp none"
        )
    return rows, torch.tensor(labels)


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


def knn(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Labels [M] by the vote of the k nearest in cosine similarity, each with weight exp(similarity / temperature).

    Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", 2018, arXiv 1805.01978,
    section 3.4.

    Args:
        bank: features [N, D]; ``bank_labels``: [N], from 0 on.
        queries: features [M, D].
        k: at most N are asked.
    """
    k, classes = min(k, len(bank)), int(bank_labels.max()) + 1
    bank = F.normalize(bank)
    found = []
    for chunk in F.normalize(queries).split(max(1, CELLS // len(bank))):
        similarity, nearest = (chunk @ bank.T).topk(k)  # [m, k]
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: nothing overflows
        votes = torch.zeros(len(chunk), classes, device=bank.device).scatter_add_(1, bank_labels[nearest], weights)
        found.append(votes.argmax(1))
    return torch.cat(found) if found else bank_labels[:0]


def linear_probe(bank: Tensor, bank_labels: Tensor, queries: Tensor, seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
    """Labels [M] by logistic regression on standardised features, and what was chosen for it.

    The strength of the regularisation is chosen on a random tenth of the bank; then all of the bank is fitted.

    Args:
        bank: features [N, D]; ``bank_labels``: [N].
        queries: features [M, D].
        seed: of the choice of the tenth.

    Raises:
        ValueError: scikit-learn is not installed, or the bank is too small.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ValueError('a linear probe needs scikit-learn: pip install "hiermim-zoo[probe]"') from error
    x, y = bank.numpy(), bank_labels.numpy()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).numpy()
    held, rest = order[: max(1, len(x) // 10)], order[max(1, len(x) // 10) :]

    def fit(strength: float, rows: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is said in the settings
            classifier = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
            return make_pipeline(StandardScaler(), classifier).fit(x[rows], y[rows])

    scores = {strength: float(fit(strength, rest).score(x[held], y[held])) for strength in STRENGTHS}
    best = max(STRENGTHS, key=lambda strength: scores[strength])
    probe = fit(best, slice(None))
    settings = {
        "C": best,
        "held_out_top1": round(100 * scores[best], 3),
        "converged": bool((probe[-1].n_iter_ < MAX_ITERATIONS).all()),
    }
    return torch.from_numpy(probe.predict(queries.numpy())), settings


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
