"""What happens to each tensor of a checkpoint: kept, renamed, reshaped, joined, split, or (for a stated reason) dropped
or refused.

Patterns are regular expressions that must match the whole name. The first rule that matches decides; a name that no
rule matches is an error, so nothing is ever lost by accident.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class NotOfLayout(ValueError):
    """A file has a tensor that its layout does not know."""


@dataclass(frozen=True)
class Copy:
    """The tensor goes over under its own name."""

    pattern: str


@dataclass(frozen=True)
class Rename:
    """The tensor goes over under another name (groups of the pattern as \\1, \\2, ...)."""

    pattern: str
    to: str


@dataclass(frozen=True)
class Number:
    """Like Rename, of blocks that are numbered stage by stage: {} in the new name counts them through.

    The first two groups of the pattern are the stage and the place in it; blocks are counted over all rules of this
    kind.
    """

    pattern: str
    to: str


@dataclass(frozen=True)
class Unnumber:
    """Number's way back: blocks that are counted through get stage and place, {0} and {1} in the new name.

    The first group of the pattern is the number. A new stage begins with each block that has a tensor called
    ``begins``, a pattern whose first group is its number.
    """

    pattern: str
    to: str
    begins: str


@dataclass(frozen=True)
class Reshape:
    """The values are rearranged on the way."""

    pattern: str
    to: str
    change: Callable[[Tensor], Tensor]
    why: str


@dataclass(frozen=True)
class Drop:
    """The tensor is left behind."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Join:
    """Several tensors of one shape become one: the rows of the first, then those of the second, and so on."""

    pattern: str  # with a group called "part"
    to: str
    parts: tuple[str, ...]  # what "part" matches, in the order of the rows
    why: str


@dataclass(frozen=True)
class Split:
    """Join's way back: one tensor becomes several of one shape, its first rows under the first name, and so on."""

    pattern: str
    to: str  # {} in it is the part
    parts: tuple[str, ...]  # in the order of the rows
    why: str


@dataclass(frozen=True)
class Refuse:
    """No model of this package can hold the tensor, and leaving it behind would change what is computed."""

    pattern: str
    reason: str


Carrying = Copy | Rename | Number | Unnumber | Reshape | Join | Split | Drop
Rule = Carrying | Refuse


class Step(NamedTuple):
    """What became of one tensor."""

    source: str
    action: str  # kept, renamed, reshaped, joined, split, dropped
    target: str  # empty where dropped
    why: str


def apply_rules(
    state: Mapping[str, Tensor], rules: Sequence[Rule], layout: str, prefix: str = ""
) -> tuple[dict[str, Tensor], list[Step]]:
    """Carry a state dict over.

    Args:
        state: source names and tensors.
        rules: in order of precedence.
        layout: its name, for messages.
        prefix: names that begin with it lose it before the rules look at them.

    Returns:
        The new state dict, and one step for every source tensor (for every part of one that is split).

    Raises:
        ValueError: a tensor that no rule covers or that one refuses, two that end under one name, a part of a join that
            is missing or of another shape than the rest, rows that cannot be split.
    """
    out: dict[str, Tensor] = {}
    steps: list[Step] = []
    joins: dict[str, _Parts] = {}
    short = {name: name.removeprefix(prefix) for name in state}
    count = _counted(short.values(), rules)

    def put(name: str, target: str, tensor: Tensor, action: str, why: str = "") -> None:
        if target in out:
            raise ValueError(f"tensor {name!r}: another tensor of the layout {layout!r} already became {target!r}")
        out[target] = tensor
        steps.append(Step(name, action, target, why))

    for name, rule, match in _matched(state, short, rules, layout):
        tensor = state[name]
        if isinstance(rule, Drop):
            steps.append(Step(name, "dropped", "", rule.reason))
            continue
        target = short[name] if isinstance(rule, Copy) else match.expand(rule.to)
        if isinstance(rule, Number):
            target = target.format(count[_place(match)])
        if isinstance(rule, Unnumber):
            target = target.format(*_stage_and_place(int(match[1]), short.values(), rule.begins))
        if isinstance(rule, Join):
            joins.setdefault(target, _Parts(rule, {}, {})).add(match, tensor, name)
            steps.append(Step(name, "joined", target, rule.why))
        elif isinstance(rule, Split):
            for part, rows in zip(rule.parts, _rows(name, tensor, len(rule.parts)), strict=True):
                put(name, target.format(part), rows, "split", rule.why)
        elif isinstance(rule, Reshape):
            put(name, target, rule.change(tensor), "reshaped", rule.why)
        else:
            put(name, target, tensor, "kept" if target == name else "renamed")
    for target, parts in joins.items():
        if target in out:
            raise ValueError(
                f"tensor {next(iter(parts.names.values()))!r}: another tensor of {layout!r} already became {target!r}"
            )
        out[target] = parts.joined()
    return out, steps


def _matched(
    state: Mapping[str, Tensor], short: Mapping[str, str], rules: Sequence[Rule], layout: str
) -> list[tuple[str, Carrying, re.Match[str]]]:
    """Every tensor's name with its rule. A reason to refuse the file is said rather than a name that is unknown."""
    found, unknown = [], ""
    for name in state:
        rule, match = _first(rules, short[name])
        if rule is None or match is None:
            unknown = unknown or name
        elif isinstance(rule, Refuse):
            raise ValueError(f"tensor {name!r} {list(state[name].shape)}: {rule.reason}")
        else:
            found.append((name, rule, match))
    if unknown:
        raise NotOfLayout(f"tensor {unknown!r} {list(state[unknown].shape)} is not part of the layout {layout!r}")
    return found


def _rows(name: str, tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    """So many tensors of one shape."""
    if not tensor.ndim or len(tensor) % parts:
        raise ValueError(f"tensor {name!r} {list(tensor.shape)} cannot be split into {parts}")
    return tensor.chunk(parts)


def _counted(state: Iterable[str], rules: Sequence[Rule]) -> dict[tuple[int, int], int]:
    """Running numbers of the blocks that the Number rules find."""
    numbering = [rule for rule in rules if isinstance(rule, Number)]
    found = {_place(match) for name in state for rule in numbering if (match := re.fullmatch(rule.pattern, name))}
    return {place: i for i, place in enumerate(sorted(found))}


def _place(match: re.Match[str]) -> tuple[int, int]:
    return int(match[1]), int(match[2])


def _stage_and_place(number: int, state: Iterable[str], begins: str) -> tuple[int, int]:
    """Of a block that is counted through."""
    starts = sorted({0, *(int(match[1]) for name in state if (match := re.fullmatch(begins, name)))})
    stage = bisect(starts, number) - 1
    return stage, number - starts[stage]


class _Parts(NamedTuple):
    """What has been found of a join."""

    rule: Join
    tensors: dict[str, Tensor]  # by part
    names: dict[str, str]  # likewise, in the source

    def add(self, match: re.Match[str], tensor: Tensor, name: str) -> None:
        """A part that was found, under its name in the source, which may be longer than what was matched."""
        start, end = (place + len(name) - len(match.string) for place in match.span("part"))
        self.tensors[match["part"]] = tensor
        for part in self.rule.parts:
            self.names[part] = name[:start] + part + name[end:]

    def joined(self) -> Tensor:
        rows = []
        for part in self.rule.parts:
            if part not in self.tensors:
                raise ValueError(f"tensor {self.names[part]!r} is missing from the checkpoint")
            rows.append(self.tensors[part])
            if rows[-1].shape != rows[0].shape:
                raise ValueError(
                    f"tensor {self.names[part]!r} is {list(rows[-1].shape)} in the checkpoint, "
                    f"but {self.names[self.rule.parts[0]]!r} is {list(rows[0].shape)}"
                )
        return torch.cat(rows)


def then(steps: Sequence[Step], more: Sequence[Step]) -> list[Step]:
    """The steps of two applications of rules as one: ``more`` starts from the targets of ``steps``."""
    later = {step.source: step for step in more}
    out = []
    for step in steps:
        second = later.get(step.target)
        if second is None or second.action == "kept":
            out.append(step)
        else:
            out.append(Step(step.source, second.action, second.target, "; ".join(filter(None, (step.why, second.why)))))
    return out


def _first(rules: Iterable[Rule], name: str) -> tuple[Rule | None, re.Match[str] | None]:
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return rule, match
    return None, None


def check_fits(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], adaptable: Sequence[str] = (), *, model: str
) -> None:
    """Refuse a state dict that a model cannot take, naming the first tensor that stands in the way.

    Args:
        state: to be loaded.
        own: the model's state dict.
        adaptable: names that the loader adapts itself (stem, classifier): neither their presence nor their shape is
            checked.
        model: its name, for messages.

    Raises:
        ValueError: missing, unexpected or wrongly shaped tensor.
    """
    for name in own:
        if name not in state and name not in adaptable:
            raise ValueError(f"tensor {name!r} {list(own[name].shape)} of {model} is missing from the checkpoint")
    for name, tensor in state.items():
        if name in adaptable:
            continue
        if name not in own:
            raise ValueError(f"tensor {name!r} {list(tensor.shape)} of the checkpoint has no place in {model}")
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"tensor {name!r} is {list(tensor.shape)} in the checkpoint, but {model} has {list(own[name].shape)}"
            )
