"""What stands in for objects beside the weights: nothing runs, nothing large is made, no library is imported."""

from __future__ import annotations

import argparse
import datetime
import decimal
import fractions
import functools
import pathlib
import pickle
import shlex
import shutil
import sys
import tracemalloc
import types
import uuid
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiermim_zoo.checkpoints.content import read_content
from hiermim_zoo.checkpoints.files import read_checkpoint
from hiermim_zoo.checkpoints.stubs import STUBS, Inert

STATE = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
NAMES = {name: stub for stub, name in STUBS}


def text(word: str) -> bytes:
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def whole(number: int) -> bytes:
    digits = number.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def legacy(body: bytes, path: Path) -> Path:
    """A file as torch wrote them before zip: {"x": what ``body`` leaves, "w": a number}, without tensors."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(head + b"\x80\x02}(" + text("x") + body + text("w") + b"K\x01u." + pickle.dumps([], 2))
    return path


HUGE = 10**15
EVIL = b"cbuiltins\ngetattr\n(" + text("touch") + text("__class__") + b"tR"  # what getattr makes of a text
HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    # ways to have it called: the last object is what comes back
    "called with a size": lambda name: name + b"(" + whole(HUGE) + b"tR",
    "called with sizes": lambda name: name + b"((" + whole(HUGE) * 3 + b"t" + whole(HUGE) + b"tR",
    "called with nothing": lambda name: name + b")R",
    "called with itself": lambda name: name + b"(" + name + text("__subclasses__") + b"tR",
    "called with a call": lambda name: name + b"(" + EVIL + name + b"(" + whole(HUGE) + b"tRtR",
    "made with a size": lambda name: name + b"(" + whole(HUGE) + b"t\x81",
    "made with a text": lambda name: name + b"(" + text("__import__('os').system('touch trace')") + b"t\x81",
}


def all_of(bodies: Iterable[bytes]) -> bytes:
    """A list of objects."""
    return b"](" + b"".join(bodies) + b"e"


def modules() -> set[str]:
    """Those that are named and loaded."""
    return sys.modules.keys() & {name.rpartition(".")[0] for name in NAMES}


@pytest.mark.parametrize("attack", HOSTILE)
def test_all_names_of_the_list_are_inert(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = legacy(all_of(HOSTILE[attack](named(name)) for name in NAMES), tmp_path / "hostile.pth")
    read_content(file)  # torch's own tables
    before = modules()
    tracemalloc.start()
    found = read_content(file)["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    for (name, stub), thing in zip(NAMES.items(), found, strict=True):
        if issubclass(stub, Inert):
            assert type(thing) is stub, name
            assert not hasattr(thing, "__dict__"), name
        else:
            assert type(thing) in (OrderedDict, list), name
            assert not thing, name
    assert modules() == before
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pth"]


@pytest.mark.parametrize(
    "state",
    [
        b"}("
        + text("__class__")
        + named("functools.partial")
        + text("__setstate__")
        + named("builtins.getattr")
        + b"u",
        b"(N}" + text("__dict__") + named("builtins.object") + b"st",
        b"(" + EVIL + b"t",
        whole(HUGE),
    ],
    ids=["methods", "slots", "calls", "size"],
)
def test_a_state_changes_nothing(state: bytes, tmp_path: Path) -> None:
    """What BUILD gives an object, be it what would replace its methods."""
    names = [name for name, stub in NAMES.items() if issubclass(stub, Inert)]
    file = legacy(all_of(named(name) + b")\x81" + state + b"b" for name in names), tmp_path / "hostile.pth")
    for name, thing in zip(names, read_content(file)["x"], strict=True):
        assert type(thing) is NAMES[name]
        assert not hasattr(thing, "__dict__")
        assert type(thing).__setstate__ is Inert.__setstate__


def test_the_stubs_are_what_they_were(tmp_path: Path) -> None:
    """Negative control: an object of another class would have taken the state."""
    body = named("argparse.Namespace") + b")\x81}" + text("a") + b"K\x05sb"
    module, _, name = "argparse.Namespace".rpartition(".")
    found = pickle.loads(
        b"\x80\x02" + f"c{module}\n{name}\n".encode() + body[len(named("argparse.Namespace")) :] + b"."
    )
    assert found.a == 5
    assert not hasattr(read_content(legacy(body, tmp_path / "file.pth"))["x"], "a")


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.__import__"),
        *("builtins.open", "builtins.setattr", "builtins.memoryview", "importlib.import_module", "pickle.loads"),
        *("numpy.load", "numpy.fromfile", "numpy.zeros", "torch.load", "torch.zeros", "torch.hub.load"),
        *("operator.methodcaller", "_operator.attrgetter", "types.FunctionType", "pathlib.os.system", "yacs.config.os"),
        *("torch.nn.modules.container.Sequential", "collections.namedtuple", "functools.reduce", "toy.Own"),
    ],
)
def test_every_other_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"asks for .*, which could run code"):
        read_content(legacy(named(name), tmp_path / "hostile.pth"))


def test_what_a_stub_makes_cannot_be_called(tmp_path: Path) -> None:
    """getattr gives an object of which torch calls nothing."""
    with pytest.raises(ValueError, match="is damaged or no PyTorch checkpoint"):
        read_content(legacy(EVIL + b"(" + text("id") + b"tR", tmp_path / "hostile.pth"))


# ---- what people have


def bookkeeping() -> dict[str, Any]:
    state = np.random.RandomState(0)
    return {
        "numpy": [np.float64(82.1), np.float32(1), np.int64(3), np.bool_(True), np.ones((2, 2)), np.array(["a"])],
        "numpy types": [np.dtype("f4"), np.float32, state, np.random.get_state(), np.random.default_rng(0)],
        "masked": np.ma.masked_array([1.0, 2.0], [False, True]),
        "numbers": [1, 0.5, None, 1j, {1, 2}, frozenset([1]), slice(1), range(3), b"bytes", bytearray(b"bytes")],
        "dates": [datetime.datetime.now(datetime.timezone.utc), datetime.date(2024, 1, 1), datetime.timedelta(1)],
        "paths": [Path("a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")],
        "namespaces": [types.SimpleNamespace(a=1), argparse.Namespace(out=Path("runs"), best=np.float64(1))],
        "collections": [defaultdict(list, a=[1]), Counter("aab"), deque([1, 2], 3), OrderedDict(a=1), ChainMap({})],
        "partials": functools.partial(torch.nn.LayerNorm, eps=1e-6),
        "layers": [torch.nn.GELU, torch.nn.SyncBatchNorm, torch.nn.functional.gelu],
        "torch": [torch.device("cpu"), torch.bfloat16, torch.Size([1, 2])],
        "numbers of libraries": [uuid.uuid4(), decimal.Decimal("0.1"), fractions.Fraction(1, 3)],
    }


@pytest.mark.parametrize("name", bookkeeping())
def test_bookkeeping_of_python_numpy_and_torch_is_read(name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, name: bookkeeping()[name]}, tmp_path / "run.ckpt")
    found = read_checkpoint(tmp_path / "run.ckpt")
    assert found.sets == ("state_dict",)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in STATE.items())


def library(monkeypatch: pytest.MonkeyPatch, name: str, base: type = object, **body: Any) -> type:
    """A class as it is in another library, for writing a file; the library is gone when the file is read."""
    module, _, short = name.rpartition(".")
    made = type(short, (base,), {"__module__": module, **body})
    parts = module.split(".")
    for i in range(len(parts)):
        above = ".".join(parts[: i + 1])
        if above not in sys.modules:
            monkeypatch.setitem(sys.modules, above, types.ModuleType(above))
    monkeypatch.setattr(sys.modules[module], short, made, raising=False)
    return made


def node(made: type, **state: Any) -> Any:
    thing = made.__new__(made)
    thing.__dict__.update(state)
    return thing


def omegaconf(patch: pytest.MonkeyPatch) -> Any:
    """{"a": 1, "b": [2]} as omegaconf 2.3 and 2.4 pickle it: by __dict__."""
    meta = {"ref_type": Any, "object_type": dict, "optional": True, "key": None, "flags": {}, "flags_root": False}
    about = node(library(patch, "omegaconf.base.ContainerMetadata"), **meta, resolver_cache=defaultdict(dict))
    leaf = node(library(patch, "omegaconf.nodes.AnyNode"), _val=1, _parent=None)
    leaf._metadata = node(library(patch, "omegaconf.base.Metadata"), **meta)
    items = node(library(patch, "omegaconf.listconfig.ListConfig"), _metadata=about, _content=[leaf])
    return node(library(patch, "omegaconf.dictconfig.DictConfig"), _metadata=about, _content={"a": leaf, "b": items})


def history(patch: pytest.MonkeyPatch) -> Any:
    """mmengine's HistoryBuffer: arrays, and methods by name, which pickles ask getattr for."""
    made: Any = library(patch, "mmengine.logging.history_buffer.HistoryBuffer", min=lambda self: 0)
    made.min.__qualname__, made.min.__module__ = "HistoryBuffer.min", made.__module__
    return node(made, _log_history=np.ones(3), _count_history=np.ones(3), _statistics_methods={"min": made.min})


def dictionary(name: str, **state: Any) -> Callable[[pytest.MonkeyPatch], Any]:
    """A kind of dict, with and without attributes of its own."""

    def make(patch: pytest.MonkeyPatch) -> Any:
        made = library(patch, name, dict)
        outer, inner = made(a=1), made(b=made())
        outer["inner"] = inner
        inner.__dict__.update(state)
        return outer

    return make


def reduced(name: str) -> Callable[[pytest.MonkeyPatch], Any]:
    """A kind of dict that is pickled by calling its class with a dict, as mmengine's."""

    def make(patch: pytest.MonkeyPatch) -> Any:
        return library(patch, name, dict, __reduce_ex__=lambda self, _: (type(self), (dict(self),)))(a={"b": 1})

    return make


def itself(name: str) -> Callable[[pytest.MonkeyPatch], Any]:
    """A kind of dict whose state is itself, as addict's."""

    def make(patch: pytest.MonkeyPatch) -> Any:
        return library(patch, name, dict, __getstate__=lambda self: self)(a={"b": 1})

    return make


def plain(name: str, **state: Any) -> Callable[[pytest.MonkeyPatch], Any]:
    return lambda patch: node(library(patch, name), **state)


LIBRARIES: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    "omegaconf": omegaconf,
    "easydict": dictionary("easydict.EasyDict", b=1),
    "addict": itself("addict.addict.Dict"),
    "munch": dictionary("munch.Munch"),
    "yacs": dictionary("yacs.config.CfgNode", __immutable__=False),
    "fvcore": dictionary("fvcore.common.config.CfgNode", __immutable__=False, __new_allowed__=set()),
    "detectron2": dictionary("detectron2.config.config.CfgNode"),
    "ml_collections": plain("ml_collections.config_dict.config_dict.ConfigDict", _fields={"a": 1}, _locked=True),
    "lightning": dictionary("lightning.pytorch.utilities.parsing.AttributeDict"),
    "pytorch_lightning": dictionary("pytorch_lightning.utilities.parsing.AttributeDict"),
    "lightning_fabric": dictionary("lightning_fabric.utilities.data.AttributeDict"),
    "mmengine history": history,
    "mmengine options": reduced("mmengine.config.config.ConfigDict"),
    "mmengine configuration": plain("mmengine.config.config.Config", _cfg_dict={"a": 1}, _filename=None),
    "mmcv options": itself("mmcv.utils.config.ConfigDict"),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_bookkeeping_of_libraries_is_read_without_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pickles as those libraries make them, by classes of the same name and form."""
    with monkeypatch.context() as patch:
        torch.save({"state_dict": STATE, "meta": LIBRARIES[name](patch)}, tmp_path / "run.pth")
    assert name.split()[0] not in sys.modules
    found = read_checkpoint(tmp_path / "run.pth")
    assert all(torch.equal(found.state[name], tensor) for name, tensor in STATE.items())
    assert name.split()[0] not in sys.modules


def test_a_class_of_the_same_library_that_is_not_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    with monkeypatch.context() as patch:
        torch.save({"state_dict": STATE, "x": node(library(patch, "omegaconf.other.Config"))}, tmp_path / "run.pth")
    with pytest.raises(ValueError, match=r"asks for omegaconf\.other\.Config, which could run code"):
        read_checkpoint(tmp_path / "run.pth")


# ---- what is refused, and what helps


def test_old_files_that_hold_the_source_of_a_layer_are_refused(tmp_path: Path) -> None:
    """Before version 1.6, torch saved it beside every class of a layer."""
    content = {"state_dict": STATE, "act": torch.nn.GELU}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old\.pth asks for a class with its source, which could run code"):
        read_checkpoint(tmp_path / "old.pth")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(said: str) -> None:
    """Run the command in a message."""
    assert "this runs the code in the file" in said
    exec(shlex.split(said[said.index("python -c ") :])[2], {})


def test_the_remedy_saves_the_weights_alone(here: Path) -> None:
    """All names that stand in the way are told, and the command that is printed works."""
    import ipaddress
    import logging

    own = {"state_dict": {**STATE, "n": 3}, "args": ipaddress.ip_address("::1"), "log": logging.getLogger("toy")}
    own |= {"ema": {"module": STATE, "decay": 0.9}, "layer": torch.nn.Linear(2, 2), "epoch": 3, "more": [1, "a"]}
    torch.save(own, here / "their run.ckpt")
    with pytest.raises(ValueError, match=r"asks for ipaddress.IPv6Address, logging.getLogger, which") as error:
        read_checkpoint(here / "their run.ckpt")
    follow(str(error.value))
    found = read_checkpoint(here / "their run-weights.pth")
    assert (found.top_key, found.sets) == ("state_dict", ("state_dict", "ema.module", "layer"))
    assert list(found.left_out) == ["n"]
    assert all(torch.equal(found.state[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_later_protocol_is_told_from_damage(here: Path, protocol: int) -> None:
    torch.save({"model": STATE}, here / "new.pth", pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"new\.pth is pickled by protocol 4 or later") as error:
        read_checkpoint(here / "new.pth")
    follow(str(error.value))
    assert torch.equal(read_checkpoint(here / "new-weights.pth").state["w"], STATE["w"])


def test_a_message_has_an_end(tmp_path: Path) -> None:
    """However many names a file asks for."""
    names = ("copy", "copy2", "copyfile", "copymode", "copystat", "copytree", "move", "rmtree", "which", "chown")
    many = [getattr(shutil, name) for name in names]
    content = {"state_dict": STATE, "more": many}
    torch.save(content, tmp_path / "many.pth")
    with pytest.raises(ValueError, match=r"asks for (shutil\.\w+, ){8}2 more, which could run code"):
        read_checkpoint(tmp_path / "many.pth")


@pytest.mark.parametrize("key", ["", "model"])
def test_arrays_of_numpy_are_no_weights(here: Path, key: str) -> None:
    """All of them: refused with the command that makes them tensors. One of them: refused by name."""
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    torch.save({key: arrays} if key else arrays, here / "arrays.pth")
    with pytest.raises(ValueError, match="holds no set of weights: there are arrays of numpy") as error:
        read_checkpoint(here / "arrays.pth")
    follow(str(error.value))
    found = read_checkpoint(here / "arrays-weights.pth")
    assert all(torch.equal(found.state[name], tensor) for name, tensor in STATE.items())
    mixed = {**STATE, "b": arrays["b"]}
    torch.save({key: mixed} if key else mixed, here / "mixed.pth")
    with pytest.raises(ValueError, match="'b' is an array of numpy, and only tensors are read"):
        read_checkpoint(here / "mixed.pth")
    apart = {"net.w": STATE["w"], "b": arrays["b"]}
    torch.save({key: apart} if key else apart, here / "apart.pth")
    assert read_checkpoint(here / "apart.pth", prefix="net").left_out == {"b": "an array of numpy, no tensor"}


def test_parts_of_tensors_are_told_from_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of them depends on whether its modules are imported."""

    def load(*args: Any, **kwargs: Any) -> Any:
        raise pickle.UnpicklingError("``torch.distributed.tensor`` must be imported to load DTensors")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(ValueError, match=r"holds tensors in parts, .*; save them whole: full_state_dict of"):
        read_content(legacy(named("torch.distributed.tensor.DTensor"), tmp_path / "run.pth"))


def test_a_program_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(3, 2)).save(str(tmp_path / "program.pt"))
    with pytest.raises(ValueError, match=r"program\.pt is a program .TorchScript., of which the weights can be saved"):
        read_checkpoint(tmp_path / "program.pt")
