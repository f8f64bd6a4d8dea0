"""The way back into a whole checkpoint of others: its encoder is exchanged, every other tensor stays as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .atomic import replacing, save_tensors
from .content import read_whole
from .files import find_file
from .layout import HEAD, Layout
from .layouts import all_layouts
from .rules import apply_rules
from .sets import at, find_sets
from .shards import is_index
from .soundness import check_sound, in_type
from .wrappers import bare, bare_names, unwrapped


class Whole(NamedTuple):
    """A file that holds an encoder beside other things."""

    file: Path
    content: Any  # all of it, as it is written again
    weights: dict[str, Any]  # the set of weights in ``content`` that has the encoder; a part of it, no copy
    names: Mapping[str, str]  # of the encoder's tensors: in this package's names -> in the file
    metadata: Mapping[str, str] | None  # of a file of safetensors that has any
    safetensors: bool

    @property
    def others(self) -> int:
        """Tensors in the set that are not the encoder's."""
        return sum(isinstance(value, Tensor) for value in self.weights.values()) - len(self.names)


def read_into(path: Path, layout: Layout) -> Whole:
    """Read a checkpoint whose encoder is to be exchanged.

    Args:
        path: a file, or a folder with one.
        layout: that the file has.

    Raises:
        ValueError: it is in several files, cannot be written again as it is, or holds no encoder of the layout, or
            several.
    """
    try:
        file = find_file(path)
    except ValueError as error:
        raise ValueError(f"--into: {error}") from error
    if is_index(file):
        raise ValueError(f"--into {file}: a checkpoint in several files cannot be written again; save it as one")
    try:
        content, metadata, safetensors = read_whole(file)
    except ValueError as error:
        raise ValueError(f"--into {error}") from error
    key = _set_with(content, file, layout)
    weights = at(content, key) if key else content
    original = {bare(name): name for name in weights}
    try:
        _, steps = apply_rules(unwrapped(weights), layout.rules, layout.name, layout.prefix)
    except ValueError as error:
        raise ValueError(f"--into {file}: {error}") from error
    names = {step.target: original[step.source] for step in steps if step.target and not _of_head(step.target)}
    return Whole(file, content, weights, names, metadata, safetensors)


def exchange(whole: Whole, state: Mapping[str, Tensor], source: str) -> list[str]:
    """Put an encoder in the place of the one that is there, in the types that are there.

    A classifier is no part of an encoder: that of the model is not written, and one in the file stays.

    Args:
        whole: is changed.
        state: of a model, in this package's names.
        source: what the model is called, for messages.

    Returns:
        The names of the model's tensors that are not written.

    Raises:
        ValueError: it does not fit; names the first tensor in the way. Nothing is changed then.
    """
    encoder = {name: tensor for name, tensor in state.items() if not _of_head(name)}
    old = {name: whole.weights[there] for name, there in whole.names.items()}
    check_sound({whole.names[name]: tensor for name, tensor in old.items()}, whole.file, nonfinite=True)
    for name, tensor in old.items():
        found = list(encoder[name].shape) if name in encoder else "missing"
        if found != list(tensor.shape) or not tensor.is_floating_point():
            kind = "" if tensor.is_floating_point() else f" of {tensor.dtype}".replace("torch.", "")
            raise ValueError(
                f"tensor {whole.names[name]!r} is {list(tensor.shape)}{kind} in {whole.file}, but {found} in {source}"
            )
    for name in (name for name in encoder if name not in old):
        raise ValueError(f"tensor {name!r} {list(encoder[name].shape)} of {source} has no place in {whole.file}")
    new = {name: in_type(name, encoder[name].detach(), tensor.dtype).clone() for name, tensor in old.items()}
    for name, tensor in new.items():
        before = old[name]
        kept = nn.Parameter(tensor, before.requires_grad) if isinstance(before, nn.Parameter) else tensor
        whole.weights[whole.names[name]] = kept
    return [name for name in state if _of_head(name)]


def write_whole(whole: Whole, file: Path) -> None:
    """Write it again, in the same form, beside the name and renamed."""
    with replacing(file) as part:
        if whole.safetensors:
            save_tensors(whole.content, part, whole.metadata)
        else:
            torch.save(whole.content, part)


def check_name(whole: Whole, output: Path) -> None:
    """Refuse a name under which the file would take the place of the one it is made from, or pass for another form.

    Raises:
        ValueError: it is the same file, or does not end as its form does.
    """
    if output.exists() and output.samefile(whole.file):
        raise ValueError(f"-o {output} is the file of --into, which stays as it is; name another")
    if (output.suffix == ".safetensors") != whole.safetensors:
        form = "safetensors" if whole.safetensors else "torch"
        other = output.with_suffix(".safetensors" if whole.safetensors else ".pt").name
        raise ValueError(f"-o {output}: --into {whole.file} is a file of {form}, and so is what is written: {other}")


def _of_head(name: str) -> bool:
    """Whether a tensor, in this package's names, is of what reads the encoder and not of the encoder."""
    return any(re.fullmatch(rule.pattern, name) for rule in HEAD)


def _set_with(content: Any, file: Path, layout: Layout) -> str:
    """The dotted name of the set of weights that has the encoder.

    Raises:
        ValueError: none has, or several have.
    """
    names = {key: bare_names(weights) for key, weights in find_sets(content).items()}
    found = [key for key, those in names.items() if layout.fits(those)]
    if len(found) == 1:
        return found[0]
    if found:
        keys = " and ".join(key or "no key" for key in found)
        raise ValueError(f"--into {file} has tensors of {layout.name} under {keys}: keep one of them in the file")
    others = [table.name for table in all_layouts() if any(table.fits(those) for those in names.values())]
    told = f"its names are those of {others[0]}" if others else "its names are of no layout that is known"
    raise ValueError(f"--into {file} holds no encoder of {layout.name} ({layout.about}): {told}")
