"""Which sets of weights a file holds, and which of them is read: a model beside its average, a teacher and a student.

A set is a mapping of names to tensors, at least one of them with two axes. It can be all there is in the file, or stand
under a key or two ("ema.module"). The state of an optimiser is none, though it looks like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from .content import remedy
from .soundness import check_names
from .stubs import InertArray
from .wrappers import bare, bare_names

_DEPTH = 2  # keys above a set
_MOST = 100  # sets that are looked for: one mapping can stand in a file under thousands of keys
_NO_WEIGHTS = re.compile(r"opt|.*(optim|sched|scaler).*", re.IGNORECASE)  # keys of what else a run remembers
# What optimisers keep of one parameter.
_MOMENTS = frozenset(
    {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "sum", "exp_inf"}
)


class SeveralSets(ValueError):
    """A file holds several sets of weights, of which none comes first.

    Args:
        message: in one line.
        names: of the tensors, by set.
    """

    def __init__(self, message: str, names: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message)
        self.names = names


def find_sets(content: Any) -> dict[str, Mapping[str, Any]]:
    """All sets of weights in the content of a file, by dotted name; "" is the file itself."""
    return dict(islice(_sets(content, "", _DEPTH, set()), _MOST))


def _sets(value: Any, name: str, depth: int, barren: set[tuple[int, int]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Those in a value that stands under a name. ``barren`` remembers what holds none: it may stand elsewhere, too."""
    if not isinstance(value, dict) or "param_groups" in value or (id(value), depth) in barren:
        return
    found = is_set(value)
    if found:
        yield name, plain(value)
    elif depth:
        for key, inner in dict.items(value):
            if isinstance(key, str) and not _NO_WEIGHTS.fullmatch(key):
                for one in _sets(inner, f"{name}.{key}" if name else key, depth - 1, barren):
                    found = True
                    yield one
    if not found:
        barren.add((id(value), depth))


def plain(value: dict[Any, Any]) -> dict[Any, Any]:
    """A mapping without the attributes that a file can give it, which may be called as its methods are."""
    return dict(dict.items(value))


def is_set(value: Any) -> bool:
    """Whether it is a set of weights."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return False
    tensors = {key: v for key, v in dict.items(value) if isinstance(v, Tensor)}
    if not any(tensor.ndim > 1 for tensor in tensors.values()) or tensors.keys() <= _MOMENTS:
        return False
    return not _hold_tensors([v for v in dict.values(value) if isinstance(v, (dict, list, tuple))])


def _hold_tensors(containers: list[Any]) -> bool:
    """Whether there are tensors in containers, however deep; each is looked at once, as they may hold each other."""
    seen: set[int] = set()
    while containers:
        container = containers.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        for value in dict.values(container) if isinstance(container, dict) else container:
            if isinstance(value, Tensor):
                return True
            if isinstance(value, (dict, list, tuple)):
                containers.append(value)
    return False


def choose(content: Any, sets: Mapping[str, Mapping[str, Any]], file: Path, key: str = "") -> str:
    """The dotted name of the set that is read.

    Args:
        content: of the file.
        sets: those in it.
        file: for messages.
        key: names one. Without it, it is the one that timm's loader takes; if that is none, the only one.

    Raises:
        ValueError: there is none, or no such one; SeveralSets: there are several, and timm takes none of them.
    """
    if key and (key in sets or is_set(at(content, key))):
        return key
    if not sets:
        check_keys(content, file)
        raise ValueError(f"{file} holds no set of weights: {_found(content, file)}")
    if key:
        raise ValueError(f"--key {key}: {file} has no such set of weights; {_listed(sets)}")
    name = timms_choice(content)
    if name in sets:
        return name
    if len(sets) == 1:
        return next(iter(sets))
    names = {name: bare_names(found) for name, found in sets.items()}
    raise SeveralSets(f"{file}: --key NAME must say which set of weights is meant; {_listed(sets)}", names)


def check_keys(content: Any, file: Path) -> None:
    """Refuse weights of which one has a name that is no text, which hides all of them.

    Raises:
        ValueError: naming it.
    """
    for place in [content, *dict.values(content)] if isinstance(content, dict) else []:
        tensors = {k: v for k, v in dict.items(place) if isinstance(v, Tensor)} if isinstance(place, dict) else {}
        if any(isinstance(name, str) and tensor.ndim > 1 for name, tensor in tensors.items()):
            check_names(tensors, file)


def timms_choice(content: Any) -> str:
    """The key whose value timm's loader takes; "" where it takes all."""
    if not isinstance(content, dict):
        return ""
    averages = (key for key in ("state_dict_ema", "model_ema") if dict.get(content, key) is not None)
    return next(averages, next((key for key in ("state_dict", "model") if key in content), ""))


def at(content: Any, key: str) -> Any:
    """What stands under a dotted key, None where nothing does; keys may have dots themselves."""
    if not isinstance(content, dict) or key in content:
        return content[key] if isinstance(content, dict) else None
    below = (name for name in content if isinstance(name, str) and name and key.startswith(f"{name}."))
    found = (at(content[name], key.removeprefix(f"{name}.")) for name in below)
    return next((value for value in found if value is not None), None)


def weights_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The set of weights in what timm's loader hands over, which knows fewer keys: the content, where it is no file's.

    Raises:
        SeveralSets: it has several.
    """
    sets = find_sets(content)
    return sets[choose(content, sets, Path("the checkpoint"))] if sets else content


def check_no_arrays(weights: Mapping[str, Any], file: Path, prefix: str) -> None:
    """Refuse arrays of numpy among the weights that begin with a prefix: read as nothing, they would be missing.

    Raises:
        ValueError: naming the first one.
    """
    for name, value in weights.items():
        if isinstance(value, InertArray) and bare(name).startswith(prefix):
            raise ValueError(f"{file}: {name!r} is an array of numpy, and only tensors are read; {remedy(file)}")


def _listed(sets: Mapping[str, Any]) -> str:
    return "there is " + " and ".join(name or "one without a key" for name in sets)


def _found(content: Any, file: Path) -> str:
    """What there is instead."""
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}"
    places = [content, *(value for value in dict.values(content) if isinstance(value, dict))]
    if any(isinstance(value, InertArray) for place in places for value in dict.values(place)):
        return f"there are arrays of numpy, and only tensors are read; {remedy(file)}"
    keys = f"its keys are {', '.join(map(str, list(content)[:6]))}" if content else "it is empty"
    return f"{keys}; a set maps names to tensors, by itself or under one key or two"
