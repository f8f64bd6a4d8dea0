"""Damaged and hostile files, made from one sound file: every one from a seed, so that a failure can be repeated."""

from __future__ import annotations

import functools
import io
import json
import pickletools
import random
import re
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

EVERYTHING = frozenset({"*"})  # a file that may be read as anything


@dataclass(frozen=True)
class Mutant:
    """One file: its content, the end of its name, and the tensors that may be others than in the sound file."""

    content: bytes
    suffix: str
    touched: frozenset[str] = EVERYTHING


@dataclass(frozen=True)
class Sound:
    """A sound file, and which of its bytes belong to which tensor."""

    content: bytes
    suffix: str
    spans: Mapping[str, tuple[tuple[int, int], ...]]  # tensor -> its bytes; what is in no span belongs to all

    def touched(self, start: int, end: int) -> frozenset[str]:
        """The tensors that the bytes from start to end belong to."""
        found = {name for name, spans in self.spans.items() for a, b in spans if a < end and start < b}
        covered = any(a <= start and end <= b for spans in self.spans.values() for a, b in spans)
        return frozenset(found) if covered else EVERYTHING


# ---- sound files


def sound_files(state: Mapping[str, Tensor]) -> list[Sound]:
    """The same weights as the formats that there are."""
    return [as_zip(state), as_legacy(state), as_safetensors(state)]


def as_zip(state: Mapping[str, Tensor]) -> Sound:
    """torch's format of today, in which every part has a checksum: what is damaged is refused, or does no harm."""
    content = saved({"model": dict(state)})
    return Sound(content, ".pth", {"": ((0, len(content)),)})


def described(
    content: bytes, start: int, state: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[tuple[int, int], ...]], dict[str, str]]:
    """Bytes of a pickle from the name of a tensor to the next name, and the key of its storage."""
    spans: dict[str, tuple[tuple[int, int], ...]] = {}
    keys: dict[str, str] = {}
    last, since = "", 0
    for opcode, argument, at in pickletools.genops(content[start:]):
        if isinstance(argument, str) and argument in state:
            if last:
                spans[last] = ((start + since, start + (at or 0)),)
            last, since = argument, at or 0
        elif isinstance(argument, str) and argument.isdigit():
            keys[last] = argument
        elif opcode.name == "SETITEMS" and last:
            spans[last] = ((start + since, start + (at or 0)),)
            break
    return spans, keys


def as_legacy(state: Mapping[str, Tensor]) -> Sound:
    """torch's format before 2020: five pickles, then each storage behind its size, in the order of the fifth."""
    content = saved({"model": dict(state)}, legacy=True)
    file, starts = io.BytesIO(content), []
    for _ in range(5):
        starts.append(file.tell())
        operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(file)]
    at, order = file.tell(), [argument for _, argument in operations if isinstance(argument, str)]
    spans, keys = described(content, starts[3], state)
    sizes = {keys[name]: 8 + tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    for key in order:
        name = next(name for name in keys if keys[name] == key)
        spans[name] = (*spans[name], (at, at + sizes[key]))
        at += sizes[key]
    assert at == len(content)
    return Sound(content, ".pth", spans)


def as_safetensors(state: Mapping[str, Tensor]) -> Sound:
    content = save(dict(state))
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    spans = {
        name: ((8 + length + about["data_offsets"][0], 8 + length + about["data_offsets"][1]),)
        for name, about in header.items()
    }
    return Sound(content, ".safetensors", spans)


def saved(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


# ---- bytes

NUMBERS = [struct.pack("<Q", n) for n in (0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)]


def bytes_changed(rng: random.Random, sounds: list[Sound], state: Mapping[str, Tensor]) -> Mutant:
    """Bytes flipped, cut off, put in, left out, doubled or replaced by large numbers."""
    sound = rng.choice(sounds)
    content, touched = bytearray(sound.content), frozenset[str]()
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = somewhere(rng, len(content))
        kind = rng.choice(("flip", "byte", "number", "cut", "put in", "leave out", "double"))
        size = rng.choice((1, 2, 8, 100))
        if kind in ("flip", "byte", "number"):
            new = rng.choice(NUMBERS)[: rng.choice((2, 4, 8))] if kind == "number" else b""
            new = new or bytes([content[at] ^ 1 << rng.randrange(8) if kind == "flip" else rng.randrange(256)])
            new = new[: len(content) - at]
            content[at : at + len(new)] = new
            touched |= sound.touched(at, at + len(new))
            continue
        touched = EVERYTHING
        if kind == "cut":
            del content[max(at, 1) :]
        elif kind == "put in":
            content[at:at] = rng.randbytes(size)
        elif kind == "leave out" and len(content) > size:
            del content[at : at + size]
        else:
            content[at:at] = content[at : at + size]
    return Mutant(bytes(content), sound.suffix, touched)


def somewhere(rng: random.Random, size: int) -> int:
    """A place in a file, most likely near its beginning or end, where the tables are."""
    near = min(size, 4096)
    return rng.choice((rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)))


# ---- pickles, operation by operation

_GLOBALS = (
    "torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter", "collections\nOrderedDict",
    "torch\nFloatStorage", "torch\nTensor", "torch\nSize", "torch._utils\n_rebuild_sparse_tensor", "torch\nfloat32",
    "torch._utils\n_rebuild_qtensor", "torch._utils\n_rebuild_meta_tensor_no_storage", "torch\ndevice", "os\nsystem",
    "collections\nCounter", "builtins\nbytearray", "torch.storage\nUntypedStorage", "argparse\nNamespace",
    "torch._tensor\n_rebuild_from_type_v2", "torch._utils\n_rebuild_wrapper_subclass", "torch.nn.parameter\nParameter",
    "torch._utils\n_rebuild_device_tensor_from_numpy", "_codecs\nencode", "torch\nFloatTensor", "torch\nLongStorage",
)  # fmt: skip


def random_operation(rng: random.Random) -> bytes:
    """One operation of the pickle machine, with an argument that may be sensible."""
    kind = rng.randrange(12)
    if kind < 5:
        return rng.choice((b"(", b")", b"]", b"}", b"t", b"e", b"u", b"s", b"a", b"R", b"b", b"Q", b"\x81", b"\x85",
                           b"\x86", b"\x87", b"N", b"\x88", b"\x89", b".", b"0", b"2", b"l", b"d"))  # fmt: skip
    if kind == 5:
        return b"c" + rng.choice(_GLOBALS).encode() + b"\n"
    if kind == 6:
        return rng.choice((b"q", b"h")) + bytes([rng.randrange(4)])
    if kind == 7:
        return b"K" + bytes([rng.randrange(256)])
    if kind == 8:
        return b"J" + struct.pack("<i", rng.choice((-1, 0, 1, 2**31 - 1, -(2**31))))
    if kind == 9:
        n = rng.choice((1, 4, 8, 255))
        return b"\x8a" + bytes([n]) + rng.randbytes(n)
    text = rng.choice(("model", "storage", "cpu", "0", "1", "head.weight", "", "\x1b[2J", "cuda:0", "é"))
    raw = text.encode()
    return b"X" + struct.pack("<I", rng.choice((len(raw),) * 5 + (2**32 - 1,))) + raw


def pickle_built(rng: random.Random, sounds: list[Sound], state: Mapping[str, Tensor]) -> Mutant:
    """A pickle of random operations, alone, in torch's archive, or in the place of one in a sound file."""
    operations = b"".join(random_operation(rng) for _ in range(rng.choice((3, 20, 200))))
    program = b"\x80\x02" + operations + rng.choice((b".", b""))
    if spliced := rng.random() < 0.5:  # in the middle of a sound one
        whole = data_pickle(sounds[0].content)
        at = rng.choice([place or 0 for _, _, place in pickletools.genops(whole)])
        program = whole[:at] + operations[: rng.choice((1, 10, 1000))] + whole[at + rng.choice((0, 1, 10)) :]
    alone = rng.random() < 0.2
    return Mutant(program if alone else in_archive(sounds[0].content, program, 99 if spliced else 2), ".pth")


def data_pickle(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def in_archive(content: bytes, program: bytes, storages: int) -> bytes:
    """torch's archive with another pickle, and the first of its storages."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            key = name.rpartition("/data/")[2]
            if key.isdigit() and int(key) >= storages:
                continue
            new.writestr(name, program if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


# ---- things that a program saves, or somebody who pretends to be one

NAMES: tuple[Any, ...] = (
    0, -1, 1.5, True, None, b"head.weight", ("head", "weight"), "", " ", "\x1b[31m", "a\nb", "a" * 1000, "\u202egnp",
    "head.weight.", "model.head.weight", "blocks.99999999999.norm1.weight", "blocks.-1.norm1.weight", "\ud800",
)  # fmt: skip


def renamed(rng: random.Random, state: dict[Any, Any], name: str) -> None:
    """Under another name, also under another name, or not there."""
    kind, other = rng.randrange(3), rng.choice((*NAMES, rng.choice(list(state))))
    if kind < 2:
        state[other] = state[name]
    if kind > 0 and other != name:
        del state[name]


def of_another_number(rng: random.Random, state: dict[Any, Any], name: str) -> None:
    """Of a block that is far away, as its name says."""
    state[re.sub(r"\d+", rng.choice(("99999999999", "0", "007")), name, count=1)] = state.pop(name)


def of_another_type(rng: random.Random, state: dict[Any, Any], name: str) -> None:
    tensor = state[name]
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: tensor.double(), lambda: tensor.half(), lambda: tensor.bfloat16(), lambda: tensor.long(),
        lambda: tensor.bool(), lambda: tensor.to(torch.uint8), lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.float8_e4m3fn), lambda: tensor.to_sparse(),
        lambda: tensor.to("meta"),
        lambda: torch.complex(tensor, tensor).conj().imag, lambda: torch.nn.Parameter(tensor),
        lambda: tensor.tolist(), lambda: 3, lambda: 1.5, lambda: "text", lambda: None, lambda: b"bytes",
        lambda: tensor.shape, lambda: tensor.dtype, lambda: {"w": tensor}, lambda: [tensor], lambda: set(),
    )  # fmt: skip
    state[name] = made(rng, kinds, tensor)


def made(rng: random.Random, kinds: Sequence[Callable[[], Any]], tensor: Tensor) -> Any:
    """One of several things made of a tensor; the tensor itself, where its type does not allow that."""
    try:
        return rng.choice(kinds)()
    except RuntimeError:
        return tensor


def of_another_shape(rng: random.Random, state: dict[Any, Any], name: str) -> None:
    tensor = state[name]
    flat = tensor.flatten()
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: flat[0], lambda: flat, lambda: tensor[None], lambda: tensor[..., None], lambda: tensor[:0],
        lambda: tensor[:1], lambda: tensor[1:], lambda: torch.cat([tensor, tensor]), lambda: tensor.reshape(-1, 1),
        lambda: tensor.T if tensor.ndim == 2 else tensor, lambda: torch.ones(1).expand(tensor.shape),
        lambda: torch.ones(1).expand(10**6, 10**6), lambda: torch.ones(1).expand(10**9, 10**9),
        lambda: flat.as_strided(tensor.shape, (0,) * tensor.ndim),
        lambda: flat.as_strided(tensor.shape, (1,) * tensor.ndim),
        lambda: torch.ones((1,) * 60), lambda: tensor.repeat_interleave(3, -1),
    )  # fmt: skip
    state[name] = made(rng, kinds, tensor)


def of_other_values(rng: random.Random, state: dict[Any, Any], name: str) -> None:
    odd = rng.choice((float("nan"), float("inf"), -float("inf"), 1e300, 1e38))
    tensor = state[name].double() if odd == 1e300 else state[name].clone()
    tensor.view(-1)[rng.randrange(tensor.numel())] = odd
    state[name] = tensor


def wrapped(rng: random.Random, state: dict[Any, Any]) -> Any:
    """Where a program puts its weights, and where none does."""
    around: dict[Any, Any] = {"epoch": 3, "model": state}
    kind = rng.randrange(14)
    if kind == 0:
        around["me"] = around
    elif kind == 1:
        state["me"] = state
    elif kind == 2:
        around["log"] = functools.reduce(lambda inner, _: [inner], range(90), [])
    elif kind == 3:
        around["tree"] = functools.reduce(lambda inner, _: {"a": inner}, range(90), {})
    elif kind == 4:
        state[rng.choice((*NAMES, "step"))] = rng.choice((1, 0.5, "x", None, [], {}))
    wraps: dict[int, Any] = {
        5: {"state_dict": around}, 6: {"model": {"model": state}}, 7: [state], 8: (state, 3), 9: Counter(state.keys()),
        10: OrderedDict(model=OrderedDict(state)), 11: {1: state}, 12: {"model": list(state.values())}, 13: state,
    }  # fmt: skip
    return wraps.get(kind, around)


CHANGES = (renamed, of_another_type, of_another_shape, of_other_values)


def tensors_changed(rng: random.Random, sounds: list[Sound], state: Mapping[str, Tensor]) -> Mutant:
    """Tensors of other names, types, shapes and values, in other containers."""
    changed: dict[Any, Any] = {name: tensor.clone() for name, tensor in state.items()}
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice([name for name, value in changed.items() if isinstance(value, Tensor) and name in state])
        rng.choice(CHANGES)(rng, changed, name)
    touched = frozenset(name for name, tensor in state.items() if not same(changed.get(name), tensor))
    suffix = rng.choice((".pth", ".pth", ".safetensors"))
    try:
        content = save(changed) if suffix == ".safetensors" else saved(wrapped(rng, changed), rng.random() < 0.3)
    except (ValueError, TypeError, RuntimeError, AttributeError, LookupError, NotImplementedError, SafetensorError):
        content, suffix = saved(wrapped(rng, dict(state))), ".pth"  # no program can save that
    return Mutant(content, suffix, touched)


def same(value: Any, tensor: Tensor) -> bool:
    plain = isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided
    alike = plain and (value.device, value.dtype, value.shape) == (tensor.device, tensor.dtype, tensor.shape)
    return alike and torch.equal(value, tensor)


MAKERS = (bytes_changed, pickle_built, tensors_changed)


def mutant(seed: int, sounds: list[Sound], state: Mapping[str, Tensor]) -> Mutant:
    """The file of a seed."""
    return MAKERS[seed % len(MAKERS)](random.Random(seed), sounds, state)
