"""What is wrong with what a command was told: all of it at once, a line each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ...text import counted

EXAMPLES = {  # option -> a value that works for most, where that of its kind would be odd
    "batch_size": "64", "betas": "0.9 0.95", "blr": "1.5e-4", "clip": "1", "color_jitter": "0.4",
    "crop_scale": "0.2 1", "cutmix": "1", "decoder_depth": "4", "decoder_dim": "128", "decoder_heads": "4",
    "drop_path": "0.1", "ema": "0.9999", "epochs": "100", "erase": "0.25", "img_size": "64", "k": "20",
    "layer_decay": "0.65", "look_every": "20", "lr": "1e-3", "mask_ratio": "0.75", "max_bad": "0.01",
    "max_pixels": "89478485", "mean": "0.485 0.456 0.406", "min_lr": "1e-6", "mixup": "0.8", "seed": "0",
    "smoothing": "0.1", "std": "0.229 0.224 0.225", "temperature": "0.07", "warmup": "0",
    "weight_decay": "0.05", "workers": "0",
}  # fmt: skip
BOTH_RATES = "--blr beside --lr would be ignored, for lr = blr * batch / 256: give one of them"


def rate_of(blr: float, batch: int) -> float:
    """The peak learning rate that follows from one per 256 samples of a batch.

    Raises:
        ValueError: it is no number.
    """
    rate = blr * batch / 256
    if not math.isfinite(rate):
        raise ValueError(f"--blr {blr:g} is no rate for a batch of {batch}; --blr {EXAMPLES['blr']} would work")
    return rate


def warmup_line(
    epochs: float, warmup: float, given: Collection[str] = ("epochs", "warmup"), whole: bool = False
) -> str:
    """What is wrong with a warm-up, in the words of the options that were given; empty where nothing is.

    Args:
        epochs: of the run.
        warmup: epochs of the warm-up.
        given: which of both an option says; the other one is the recipe's.
        whole: options take whole numbers alone.
    """
    if warmup < epochs:
        return ""
    works = f"--warmup {epochs // 10 if whole else epochs / 10:g} would work"
    if "warmup" not in given:
        return f"--epochs {epochs:g} is no more than the recipe's warm-up of {counted(warmup, 'epochs')}; {works}"
    if "epochs" not in given:
        return f"--warmup {warmup:g} is not less than the recipe's {counted(epochs, 'epochs')}; {works}"
    return f"--epochs {epochs:g} with --warmup {warmup:g}: the warm-up must be shorter than the run; {works}"


class BadOptions(ValueError):
    """Something is wrong with options.

    Args:
        lines: what, a line each.
        sound: the options with which nothing is wrong, by name.
    """

    def __init__(self, lines: Iterable[str], sound: Mapping[str, Any] | None = None) -> None:
        self.lines, self.sound = tuple(lines), dict(sound or {})
        super().__init__("\n".join(self.lines))


def lines_of(error: BaseException) -> tuple[str, ...]:
    """What an error says: a line, or one for each of the options that are wrong."""
    texts = error.lines if isinstance(error, BadOptions) else (str(error),)
    return tuple(" ".join(text.split()) for text in texts)


def gathered(*checks: Callable[[], object]) -> list[str]:
    """What checks complain of, by a ValueError or an OSError, or by lines that they yield; empty ones say nothing."""
    lines: list[str] = []
    for check in checks:
        try:
            found = check()
            if isinstance(found, Iterable) and not isinstance(found, (str, Mapping)):
                lines.extend(line for line in found if isinstance(line, str) and line)
        except (ValueError, OSError) as error:
            lines += lines_of(error)
    return list(dict.fromkeys(lines))  # two checks may see the same


def check_all(*checks: Callable[[], object]) -> None:
    """Raise what checks complain of, all at once.

    Raises:
        BadOptions: see :func:`gathered`.
    """
    if lines := gathered(*checks):
        raise BadOptions(lines)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What some calls give; where several of them fail, all say so.

    Raises:
        ValueError: a call failed; one that fails alone raises its own error.
    """
    found: list[Any] = []
    errors: list[ValueError | OSError] = []
    for call in calls:
        try:
            found.append(call())
        except (ValueError, OSError) as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BadOptions(dict.fromkeys(line for error in errors for line in lines_of(error))) from errors[0]
    return found


def names(line: str, flags: Iterable[str]) -> bool:
    """Whether a line speaks of one of these options."""
    return any(re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", line) for flag in flags)
