"""Linear models on features, by scikit-learn: what they say of other features, and how strong they were held back.

The strength of the regularisation is chosen on a random tenth of the bank, of whole groups if there are any; then all
of the bank is fitted.

Letters: N images of the bank, M queries, D features, T outputs: classes, tags or values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.splits import whole_groups
from ..progress import Progress

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the logistic regression, the inverse of its regularisation
MAX_ITERATIONS = 1000
USUAL = 1.0  # the strength where there is nothing to choose it by
NEVER = -100.0  # log-probability of a class, or log-odds of a tag, that no image of the bank has

Found = tuple[Tensor, dict[str, Any]]  # float32 [M, T], and what was chosen


class Bank(NamedTuple):
    """Images to fit to.

    Args:
        features: [N, D].
        truth: int64 [N] of classes, or float [N, T]; NaN where it is unknown.
        outputs: T.
        groups: int64 [N], of what belongs together; None: nothing does.
        weights: of the classes, or of a yes of each tag beside a no, [T]; None: all are 1.
        seed: of the choice of the tenth.
    """

    features: Tensor
    truth: Tensor
    outputs: int
    groups: Tensor | None = None
    weights: Tensor | None = None
    seed: int = 0

    def held(self) -> np.ndarray[Any, Any]:
        """Images to choose the strength by: bool [N]."""
        count, numbers = len(self.features), torch.Generator().manual_seed(self.seed)
        if self.groups is not None:
            return whole_groups(self.groups, 0.1, numbers).numpy()
        chosen = np.zeros(count, dtype=bool)
        chosen[torch.randperm(count, generator=numbers)[: max(1, count // 10)].numpy()] = True
        return chosen


def needed(what: str = "a linear probe") -> Any:
    """scikit-learn's linear models.

    Args:
        what: they are needed for, or scikit-learn is.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import sklearn.linear_model
    except ImportError as error:
        raise ValueError(f'{what} needs scikit-learn: pip install "hiermim-zoo[probe]"') from error
    return sklearn.linear_model


def _fitted(model: Any, x: Any, y: Any, weights: Any) -> Any:
    """A model of standardised features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    step = type(model).__name__.lower()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is said in the settings
        return make_pipeline(StandardScaler(), model).fit(x, y, **{f"{step}__sample_weight": weights})


def _best(score: Callable[[float], float]) -> tuple[float, float]:
    """The strength with the highest score, the weakest of equals, and the score."""
    with Progress(len(STRENGTHS), "strength", what="linear probe") as bar:
        scores = {strength: score(strength) for strength in bar.over(STRENGTHS)}
    best = max(STRENGTHS, key=lambda strength: scores[strength])
    return best, scores[best]


# ---- one class an image


def class_probe(bank: Bank, queries: Tensor) -> Found:
    """Log-probabilities of classes [M, T] by logistic regression.

    Raises:
        ValueError: scikit-learn is not installed, or the bank has one class only.
    """
    models = needed()
    x, y, held = bank.features.numpy(), bank.truth.numpy(), bank.held()
    weights = None if bank.weights is None else bank.weights.numpy()[y]

    def fit(strength: float, rows: Any) -> Any:
        model = models.LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
        return _fitted(model, x[rows], y[rows], None if weights is None else weights[rows])

    choice: dict[str, Any] = {"C": USUAL, "held_out_top1": None}
    if held.any() and len(np.unique(y[~held])) > 1:
        weight = None if weights is None else weights[held]
        best, score = _best(lambda c: float(fit(c, ~held).score(x[held], y[held], sample_weight=weight)))
        choice = {"C": best, "held_out_top1": round(100 * score, 3)}
    probe = fit(choice["C"], slice(None))
    found = torch.full((len(queries), bank.outputs), NEVER)
    said = torch.from_numpy(probe.predict_log_proba(queries.numpy())).float().clamp(min=NEVER)
    found[:, torch.from_numpy(probe.classes_)] = said
    return found, {**choice, "converged": bool((probe[-1].n_iter_ < MAX_ITERATIONS).all())}


# ---- several tags an image


def tag_probe(bank: Bank, queries: Tensor) -> Found:
    """Log-odds of tags [M, T] by a logistic regression for each, all of one strength.

    A tag that all images of the bank have, or none, is said of all queries alike.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    models = needed()
    x, truth, held = bank.features.numpy(), bank.truth.numpy(), bank.held()
    known = ~np.isnan(truth)
    even = np.ones(truth.shape[1], dtype=np.float32)
    weights = even if bank.weights is None else bank.weights.numpy()
    steps: list[int] = []

    def odds(strength: float, rows: Any, asked: Any, tag: int) -> Any:
        rows = rows & known[:, tag]
        y = truth[rows, tag]
        if not len(y) or y.min() == y.max():
            return np.full(len(asked), -NEVER if len(y) and y[0] else NEVER)
        model = models.LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
        probe = _fitted(model, x[rows], y, np.where(y > 0, weights[tag], 1.0))
        steps.append(int(probe[-1].n_iter_.max()))
        return probe.decision_function(asked)

    def score(strength: float) -> float:
        losses = []
        for tag in range(bank.outputs):
            asked = held & known[:, tag]
            yes = truth[asked, tag] > 0
            said = odds(strength, ~held, x[asked], tag)
            losses += np.logaddexp(0, np.where(yes, -said, said)).tolist()
        return -float(np.mean(losses)) if losses else 0.0

    best = _best(score)[0] if held.any() and not held.all() else USUAL
    steps.clear()
    everything = np.ones(len(x), dtype=bool)
    columns = [odds(best, everything, queries.numpy(), tag) for tag in range(bank.outputs)]
    said = torch.from_numpy(np.stack(columns, 1)).float().clamp(NEVER, -NEVER)
    return said, {"C": best, "fitted": len(steps), "converged": all(step < MAX_ITERATIONS for step in steps)}


# ---- numbers


def value_probe(bank: Bank, queries: Tensor) -> Found:
    """Values [M, T] by ridge regression on standardised values, all of one strength (its ``alpha`` is 1 / C).

    Raises:
        ValueError: scikit-learn is not installed.
    """
    models = needed()
    x, held = bank.features.numpy(), bank.held()
    mean, deviation = standard(bank.truth)
    truth = ((bank.truth - mean) / deviation).numpy()
    known = ~np.isnan(truth)

    def said(strength: float, rows: Any, asked: Any, column: int) -> Any:
        rows = rows & known[:, column]
        if not rows.any():
            return np.zeros(len(asked))
        return _fitted(models.Ridge(alpha=1 / strength), x[rows], truth[rows, column], None).predict(asked)

    def score(strength: float) -> float:
        errors = []
        for column in range(bank.outputs):
            asked = held & known[:, column]
            if asked.any():
                errors += ((said(strength, ~held, x[asked], column) - truth[asked, column]) ** 2).tolist()
        return -float(np.mean(errors)) if errors else 0.0

    best = _best(score)[0] if held.any() and not held.all() else USUAL
    everything = np.ones(len(x), dtype=bool)
    columns = [said(best, everything, queries.numpy(), column) for column in range(bank.outputs)]
    return torch.from_numpy(np.stack(columns, 1)).float() * deviation + mean, {"C": best}


def standard(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the known values [N, T]: two [T]; 1 where a column never changes."""
    mean = truth.double().nanmean(0).nan_to_num(0.0)
    deviation = (truth.double() - mean).square().nanmean(0).nan_to_num(0.0).sqrt()
    return mean.float(), torch.where(deviation > 0, deviation, 1.0).float()
