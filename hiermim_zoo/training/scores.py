"""How well the outputs of a model agree with labels, each number with its 95 % interval.

The numbers are scikit-learn's. Their intervals come from a bootstrap over images, or over groups of them: images are
drawn with replacement and the number is computed anew, many times. A draw is kept as weights, how often it has each
image, so that a tag is sorted once for many draws. The interval has the 2.5th and the 97.5th percentile of the draws,
moved so that their median is the number itself: images that come twice raise average precision, in large tables by
more than the width of the interval. Numbers of a model that makes no error get no width, but for top1 without groups,
whose interval is Wilson's.

Letters: N images, T classes, tags or values, b draws of a chunk, K different scores among the images that have a tag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..text import counted
from .probe import interval

Array = NDArray[Any]
Draws = dict[str, Array]  # of each number its values in all draws, [draws] or [draws, T]

MOST_DRAWS, FEWEST_DRAWS = 1000, 200
WORK = 2**32  # numbers that all draws look at; tables of tags that are larger get fewer draws
CHUNK = 2**24  # weights in memory, [N, b]
SEED = 0

IN_PERCENT = ("top1", "balanced", "f1")
RANGES = {"mae": (0.0, np.inf), "rmse": (0.0, np.inf), "r2": (-np.inf, 1.0)}  # of others 0 to 1


def scored(
    kind: str, outputs: Tensor, targets: Tensor, names: Sequence[str], groups: Tensor | None = None
) -> dict[str, Any]:
    """The numbers that suit a kind of labels, in the types that JSON knows.

    ======= ============================================================================= =========================
    kind    numbers                                                                       and for each tag or value
    ======= ============================================================================= =========================
    classes top1; balanced: mean recall of the classes that occur; f1: mean over the
            classes that occur or are predicted; all in percent
    tags    map: mean average precision, auc: mean area under the ROC curve; both from 0  per_tag: ap, auc, yes, no
            to 1, over the tags that some images have and some have not
    values  mae, rmse, r2: means over the values                                          per_value: mae, rmse, r2
    ======= ============================================================================= =========================

    Beside each number stands ``<name>_interval``, [low, high]. What cannot be computed is None, and a line of the list
    ``left_out`` says why. ``draws`` is the number of draws of the bootstrap. The same arguments give the same result.

    Args:
        kind: classes, tags or values.
        outputs: float [N, T], logits of classes or tags, or values. Only the order of logits matters.
        targets: int64 [N] of classes; float [N, T] of tags (1 yes, 0 no) and of values, where NaN is unknown and does
            not count.
        names: T of them.
        groups: int64 [N]; images of a group, such as those of a patient, are drawn together.

    Raises:
        ValueError: there is no image, shapes or labels do not fit, or scikit-learn is missing (top1 does without it).
    """
    n, t = outputs.shape
    wanted = (n,) if kind == "classes" else (n, t)
    if not n:
        raise ValueError("there are no images to score")
    if tuple(targets.shape) != wanted or len(names) != t or (groups is not None and len(groups) != n):
        raise ValueError(f"outputs {[n, t]} do not fit {len(names)} names and targets {list(targets.shape)}")
    out, truth = outputs.detach().cpu().double().numpy(), targets.detach().cpu().numpy()
    width = t if kind == "tags" else 1
    resampling = Resampling(n, None if groups is None else groups.cpu().numpy(), draws_for(n * width))
    left_out: list[str] = []
    result = SCORES[kind](out, truth, list(names), resampling, left_out)
    if resampling.units < 2:
        left_out.append(f"intervals: there is only one {'image' if groups is None else 'group of images'}")
    return {**result, "draws": resampling.draws, "left_out": left_out}


# ---- draws and intervals


def draws_for(size: int) -> int:
    """How many draws a table of so many numbers gets."""
    return min(MOST_DRAWS, max(FEWEST_DRAWS, WORK // size))


@dataclass
class Resampling:
    """Images, or groups of images, drawn with replacement."""

    images: int
    groups: Array | None
    draws: int

    def __post_init__(self) -> None:
        self.unit_of, self.units = None, self.images
        if self.groups is not None:
            found, self.unit_of = np.unique(self.groups, return_inverse=True)
            self.units = len(found)
        if self.units < 2:
            self.draws = 0

    def weights(self) -> Iterator[Array]:
        """How often each draw has each image: chunks float32 [N, b], the same ones each time."""
        random = np.random.default_rng(SEED)
        step = max(1, CHUNK // self.images)
        for first in range(0, self.draws, step):
            chunk = np.empty((min(step, self.draws - first), self.images), np.float32)
            for row in chunk:
                often = np.bincount(random.integers(0, self.units, self.units), minlength=self.units)
                row[:] = often if self.unit_of is None else often[self.unit_of]
            yield np.ascontiguousarray(chunk.T)

    def collect(self, numbers: Callable[[Array], Draws]) -> Draws:
        """Numbers in all draws.

        Args:
            numbers: of weights [N, b] each number's values, [b] or [b, T].
        """
        found = [numbers(chunk) for chunk in self.weights()]
        return {name: np.concatenate([part[name] for part in found]) for name in (found[0] if found else ())}


def sums_by(label: Array, labels: int, weights: Array) -> Array:
    """Sums [labels, b] of the weights [N, b] of images that have the same label [N]; a label below 0 is left out."""
    from scipy.sparse import csr_array  # scikit-learn brings it

    images = np.flatnonzero(label >= 0)
    members = csr_array((np.ones(len(images), np.float32), (label[images], images)), (labels, len(weights)))
    sums: Array = members @ weights
    return sums


def bounds(number: float, draws: Array) -> tuple[float, float] | None:
    """The 2.5th and 97.5th percentile of draws, moved so that the median is the number; None where there are no draws.

    Args:
        draws: [draws]; those in which the number is not defined are NaN.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return None
    low, middle, high = np.quantile(draws, [0.025, 0.5, 0.975])
    return float(number + low - middle), float(number + high - middle)


def entry(name: str, number: float, draws: Array | None) -> dict[str, Any]:
    """A number with its interval, as the result has them.

    Args:
        number: NaN where it is not defined.
        draws: [draws] of it; None: there are none.
    """
    if np.isnan(number):
        return {name: None, f"{name}_interval": None}
    ends = None if draws is None else bounds(number, draws)
    lowest, highest = RANGES.get(name, (0.0, 1.0))
    said = plain if name not in IN_PERCENT else percent
    return {
        name: said(number),
        f"{name}_interval": ends and [said(min(max(end, lowest), highest)) for end in ends],
    }


def plain(number: float) -> float:
    """With six digits."""
    return float(f"{number:.6g}")


def percent(share: float) -> float:
    """With four decimals."""
    return round(100 * float(share), 4)


def mean_of_known(table: Array) -> Any:
    """Means along the last axis of what is not NaN; NaN where nothing is."""
    known = np.isfinite(table)
    with np.errstate(invalid="ignore"):
        return np.where(known, table, 0).sum(-1) / known.sum(-1)


# ---- classes


def class_scores(
    out: Array, truth: Array, names: list[str], resampling: Resampling, left_out: list[str]
) -> dict[str, Any]:
    """See :func:`scored`."""
    if truth.min() < 0 or truth.max() >= len(names):
        are = "is" if len(names) == 1 else "are"
        raise ValueError(
            f"labels go from {truth.min()} to {truth.max()}, but there {are} {counted(len(names), 'classes')}"
        )
    found = out.argmax(1)
    right = found == truth
    numbers = {"top1": right.mean(), "balanced": np.nan, "f1": np.nan}
    drawn: Draws = {}
    if resampling.groups is not None:
        drawn = resampling.collect(lambda weights: {"top1": right @ weights / weights.sum(0)})
    try:
        from sklearn.metrics import f1_score, recall_score
    except ImportError:
        left_out.append('balanced, f1: they need scikit-learn: pip install "hiermim-zoo[probe]"')
    else:
        mean: dict[str, Any] = {"average": "macro", "zero_division": 0}
        numbers["balanced"] = recall_score(truth, found, labels=np.unique(truth), **mean)
        numbers["f1"] = f1_score(truth, found, **mean)
        drawn |= resampling.collect(lambda weights: class_draws(weights, found, truth, len(names)))
    result: dict[str, Any] = {}
    for name, number in numbers.items():
        result |= entry(name, number, drawn.get(name))
    if resampling.groups is None:
        result["top1_interval"] = [percent(end) for end in interval(int(right.sum()), len(truth))]
    return result


def class_draws(weights: Array, found: Array, truth: Array, classes: int) -> Draws:
    """Mean recall and mean F1 in each draw, of the classes that are in it."""
    labels = (truth, np.where(found == truth, truth, -1), found)
    there, right, said = (sums_by(label, classes, weights) for label in labels)  # [T, b]
    with np.errstate(invalid="ignore"):
        recall, f1 = right / there, 2 * right / (there + said)
    return {"balanced": mean_of_known(recall.T), "f1": mean_of_known(f1.T)}


# ---- tags


def tag_scores(
    out: Array, truth: Array, names: list[str], resampling: Resampling, left_out: list[str]
) -> dict[str, Any]:
    """See :func:`scored`."""
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError as error:
        raise ValueError('scores of tags need scikit-learn: pip install "hiermim-zoo[probe]"') from error
    yes, no = (truth == 1).sum(0), (truth == 0).sum(0)
    numbers = {"ap": np.full(len(names), np.nan), "auc": np.full(len(names), np.nan)}
    for t, name in enumerate(names):
        if not yes[t] or not no[t]:
            left_out.append(f"{name}: {'no' if no[t] or not yes[t] else 'every'} image has this tag")
            continue
        known = ~np.isnan(truth[:, t])
        numbers["ap"][t] = average_precision_score(truth[known, t], out[known, t])
        numbers["auc"][t] = roc_auc_score(truth[known, t], out[known, t])
    drawn = resampling.collect(lambda weights: tag_draws(weights, out, truth))
    result: dict[str, Any] = {}
    for name, of_tags in (("map", "ap"), ("auc", "auc")):
        means = mean_of_known(drawn[of_tags]) if drawn else None
        result |= entry(name, mean_of_known(numbers[of_tags]), means)
    result["per_tag"] = {
        name: {**entries(numbers, drawn, t), "yes": int(yes[t]), "no": int(no[t])} for t, name in enumerate(names)
    }
    return result


def entries(numbers: dict[str, Array], drawn: Draws, t: int) -> dict[str, Any]:
    """All numbers of a tag or value, with their intervals."""
    found: dict[str, Any] = {}
    for name, number in numbers.items():
        found |= entry(name, number[t], drawn[name][:, t] if drawn else None)
    return found


def tag_draws(weights: Array, out: Array, truth: Array) -> Draws:
    """Average precision and area under the ROC curve of each tag in each draw, [b, T]."""
    found = {name: np.full((weights.shape[1], truth.shape[1]), np.nan) for name in ("ap", "auc")}
    for t in range(truth.shape[1]):
        found["ap"][:, t], found["auc"][:, t] = ranking_draws(weights, out[:, t], truth[:, t])
    return found


def ranking_draws(weights: Array, score: Array, truth: Array) -> tuple[Array, Array]:
    """Average precision [b] and area under the ROC curve [b]; NaN where all or none of the images have the tag.

    Args:
        score: [N]; images of equal scores count together.
        truth: [N], 1, 0 or NaN.
    """
    levels, level_of_yes = np.unique(-score[truth == 1], return_inverse=True)  # the highest score first, [K]
    k = len(levels)
    place_of_yes, place_of_no = np.full(len(score), -1), np.full(len(score), -1)
    place_of_yes[truth == 1] = level_of_yes
    # Places of the others: 2 i + 1 at level i, 2 i between it and the level above.
    no = -score[truth == 0]
    place_of_no[truth == 0] = np.searchsorted(levels, no, "left") + np.searchsorted(levels, no, "right")
    yes = sums_by(place_of_yes, k, weights)  # [K, b]
    wrong = sums_by(place_of_no, 2 * k + 1, weights).cumsum(0)
    above, down_to, negatives = wrong[0 : 2 * k : 2], wrong[1 : 2 * k : 2], wrong[-1]
    hits = yes.cumsum(0)
    positives = yes.sum(0, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = (yes * (hits / np.maximum(hits + down_to, 1))).sum(0, dtype=float) / positives
        # Of ties, half counts as above.
        area = 1 - (yes * ((above + down_to) / 2)).sum(0, dtype=float) / (positives * negatives)
    undefined = (positives == 0) | (negatives == 0)
    return np.where(undefined, np.nan, precision), np.where(undefined, np.nan, area)


# ---- values


def value_scores(
    out: Array, truth: Array, names: list[str], resampling: Resampling, left_out: list[str]
) -> dict[str, Any]:
    """See :func:`scored`."""
    try:
        from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
    except ImportError as error:
        raise ValueError('scores of values need scikit-learn: pip install "hiermim-zoo[probe]"') from error
    truth = truth.astype(float)
    numbers = {name: np.full(len(names), np.nan) for name in ("mae", "rmse", "r2")}
    for t, name in enumerate(names):
        known = ~np.isnan(truth[:, t])
        x, y = out[known, t], truth[known, t]
        if not len(y):
            left_out.append(f"{name}: it is known of no image")
            continue
        numbers["mae"][t], numbers["rmse"][t] = mean_absolute_error(y, x), root_mean_squared_error(y, x)
        if y.min() < y.max():
            numbers["r2"][t] = r2_score(y, x)
        else:
            left_out.append(f"{name}: no r2, as all images have the same")
    drawn = resampling.collect(lambda weights: value_draws(weights, out, truth))
    result: dict[str, Any] = {}
    for name, column in numbers.items():
        result |= entry(name, mean_of_known(column), mean_of_known(drawn[name]) if drawn else None)
    result["per_value"] = {name: entries(numbers, drawn, t) for t, name in enumerate(names)}
    return result


def value_draws(weights: Array, out: Array, truth: Array) -> Draws:
    """Errors of each value in each draw, [b, T]."""
    known = ~np.isnan(truth)
    error, y = (np.where(known, x, 0.0) for x in (out - truth, truth))
    y = np.where(known, y - y.sum(0) / np.maximum(known.sum(0), 1), 0.0)  # small numbers keep their digits
    sums = weights.T.astype(float) @ np.concatenate([known, np.abs(error), error**2, y, y**2], axis=1)
    count, absolute, squared, first, second = np.split(sums, 5, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = second - first**2 / count
        r2 = np.where(spread > 1e-12 * second, 1 - squared / spread, np.nan)
        return {"mae": absolute / count, "rmse": np.sqrt(squared / count), "r2": r2}


SCORES = {"classes": class_scores, "tags": tag_scores, "values": value_scores}
