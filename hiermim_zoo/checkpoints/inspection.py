"""A look at a file before torch reads it: what kind it is, and whether its pickles ask for more than they hold.

torch's restricted reader runs no code, but a few bytes can still make it allocate any amount of memory, or never end:
tuples of tuples that share their parts are hashed and printed one part at a time. So the operations of a pickle are
followed here first, with sizes in the place of values.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import SEEK_CUR, BytesIO
from pathlib import Path
from pickle import UnpicklingError
from struct import error as StructError
from struct import unpack
from typing import IO, Any

from ..text import counted

DAMAGED = "is damaged or no PyTorch checkpoint"
# What readers raise of damaged files.
BROKEN = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, MemoryError,
    NotImplementedError, RecursionError, RuntimeError, StructError, TypeError, UnpicklingError, ValueError,
    zipfile.BadZipFile,
)  # fmt: skip

_ZIP = b"PK\x03\x04"
_BEGINNINGS = (
    (rb"version https://git-lfs", "is a Git LFS pointer, not the file itself: fetch it with git lfs pull"),
    (rb"\s*<(!doctype|html|head|\?xml)", "is a web page: the download failed, get the file again"),
    (rb"\x1f\x8b", "is a gzip archive: unpack it"),
    (rb"BZh\d", "is a bzip2 archive: unpack it"),
    (rb"\xfd7zXZ\x00", "is an xz archive: unpack it"),
    (rb"\x28\xb5\x2f\xfd", "is a zstd archive: unpack it"),
    (rb"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it"),
    (rb"\x89HDF", "is an HDF5 file (of Keras, perhaps), which is not read here"),
    (rb"\x93NUMPY", "is a NumPy array, which is not read here"),
    (rb"GGUF", "is a GGUF file, which is not read here"),
    (rb"(?s).{257}ustar", "is a tar archive, no PyTorch checkpoint; unpack it"),
)


def refuse_other_kinds(file: Path) -> None:
    """Refuse a file that is no checkpoint by its first bytes, or one of another kind than its name says.

    Raises:
        ValueError: says what the file is and what to do.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        begin = opened.read(512)
    for pattern, what in _BEGINNINGS:
        if re.match(pattern, begin, re.IGNORECASE):
            raise ValueError(f"{file} {what}")
    if file.suffix == ".safetensors":
        if begin.startswith(_ZIP):
            raise ValueError(f"{file} is a file of torch or another ZIP archive: rename it to {file.stem}.pth")
        return
    if begin[8:9] == b"{" and begin[5:8] == bytes(3):
        return  # safetensors, whatever the suffix says: its reader checks what it reads
    with damage_named(file):
        _check_archive(file) if begin.startswith(_ZIP) else _check_legacy(file)


@contextmanager
def damage_named(file: Path, why: str = DAMAGED) -> Iterator[None]:
    """Whatever a reader raises of a damaged file, as one line; what already names the file goes through."""
    try:
        yield
    except BROKEN as error:
        if type(error) is ValueError and str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file} {why}") from error


def _check_archive(file: Path) -> None:
    """Of today's files: a ZIP archive, whose entries torch never compresses."""
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        root, names = entries[0].filename.partition("/")[0], {entry.filename for entry in entries}
        if f"{root}/constants.pkl" in names:
            return  # TorchScript, which torch refuses
        if f"{root}/data.pkl" not in names:
            kind = "a NumPy archive" if any(e.filename.endswith(".npy") for e in entries) else "a ZIP archive"
            raise ValueError(f"{file} is {kind} without data.pkl, no PyTorch checkpoint: unpack it")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{file}: its part {entry.filename[:80]!r} is compressed, which torch never does")
            if not 0 <= entry.header_offset < size:
                raise zipfile.BadZipFile
        if (declared := sum(entry.file_size for entry in entries)) > size:
            raise ValueError(f"{file} has {size} bytes, but its parts are said to have {declared}")
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                _Machine(file, size).follow(_content(file, entry))
        _check_sums(file, archive)


def _content(file: Path, entry: zipfile.ZipInfo) -> BytesIO:
    """A part of an archive that is not compressed, whatever its checksum."""
    with file.open("rb") as opened:
        opened.seek(entry.header_offset)
        name, extra = unpack("<26x2H", opened.read(30))
        opened.seek(name + extra, SEEK_CUR)
        return BytesIO(opened.read(entry.file_size))


def _check_sums(file: Path, archive: zipfile.ZipFile) -> None:
    """torch itself does not compare checksums. It writes 0 where it was told to make none."""
    for entry in archive.infolist():
        if not entry.CRC:
            continue
        try:
            with archive.open(entry) as part:
                while part.read(1 << 20):
                    pass
        except (zipfile.BadZipFile, EOFError) as error:
            name = entry.filename[:80]
            raise ValueError(f"{file} is damaged: its part {name!r} has another checksum; get it again") from error


def _check_legacy(file: Path) -> None:
    """Of files before 2020: pickles one after the other (a number, a version, the system, the content, the keys)."""
    with file.open("rb") as opened:
        machine = _Machine(file, file.stat().st_size)
        for _ in range(5):
            if not machine.follow(opened):
                return


# ---- pickles, followed without their values

HEAVIEST, DEEPEST = 100_000, 200  # parts of a tuple, in all; levels of one in another


@dataclass
class _Thing:
    """What stands on the stack of the machine, as far as it matters."""

    value: Any = None  # of a whole number, a string or the name of a global
    called: bool = False  # it is the name of a global
    parts: list[_Thing] = field(default_factory=list)  # of a tuple
    weight: int = 1
    depth: int = 0


_CONSTANTS = {"NONE", "NEWFALSE", "NEWTRUE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BINFLOAT", "SHORT_BINSTRING"}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ITEMS = {"APPENDS", "SETITEMS"}
_TAKEN_OFF = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
# What makes memory out of numbers. Programs save such things in other ways.
_ALLOCATES = re.compile(r"torch\.(\w+\.)*\w*(Tensor|Storage)")


class _Machine:
    """Follows the operations that torch's restricted reader knows. It stops at any other, as torch does."""

    def __init__(self, file: Path, size: int) -> None:
        self.file, self.size = file, size
        self.memo: dict[int, _Thing] = {}
        self.stack: list[_Thing] = []
        self.marks: list[list[_Thing]] = []

    def follow(self, opened: IO[bytes]) -> bool:
        """One pickle; whether it came to its end.

        Raises:
            ValueError: it asks for more than the file holds, or is built as none is that a program saved.
        """
        self.memo, self.stack, self.marks = {}, [], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about strings that torch does not read
            for operation, argument, _ in pickletools.genops(opened):
                if operation.name == "STOP":
                    return True
                if not self._step(operation.name, argument):
                    return False
        return False

    def _step(self, name: str, argument: Any) -> bool:
        stack = self.stack
        if name in _VALUES:
            stack.append(_Thing(argument))
        elif name in _CONSTANTS:
            stack.append(_Thing())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            count = _TUPLES[name]
            parts = [stack.pop() for _ in range(count)][::-1]
            stack.append(self._tuple(parts))
        elif name == "MARK":
            self.marks.append(stack)
            self.stack = []
            if len(self.marks) > DEEPEST:
                raise ValueError(f"{self.file} is nested more than {DEEPEST} levels deep; refused")
        elif name in ("TUPLE", *_ITEMS):
            self.stack = self.marks.pop()
            if name == "TUPLE":
                self.stack.append(self._tuple(stack))
        elif name in _TAKEN_OFF:
            del stack[-_TAKEN_OFF[name] :]
        elif name == "GLOBAL":
            stack.append(_Thing(argument.replace(" ", "."), called=True))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            self._check_call(stack.pop(), arguments)
            stack.append(_Thing())
        elif name == "BINPERSID":
            self._check_storage(stack.pop())
            stack.append(_Thing())
        else:
            return name == "PROTO"
        return True

    def _tuple(self, parts: list[_Thing]) -> _Thing:
        weight = 1 + sum(part.weight for part in parts)
        depth = 1 + max((part.depth for part in parts), default=0)
        if weight > HEAVIEST or depth > DEEPEST:
            raise ValueError(f"{self.file} holds a tuple of more than {HEAVIEST} parts or {DEEPEST} levels; refused")
        return _Thing(None, False, parts, weight, depth)

    def _check_call(self, function: _Thing, arguments: _Thing) -> None:
        if not function.called:
            raise ValueError(f"{self.file} {DAMAGED}")
        name, parts = function.value, arguments.parts
        if name == "torch._tensor._rebuild_from_type_v2" and len(parts) > 2:  # which calls the first with the third
            self._check_call(parts[0], parts[2])
        counted = name.endswith(".bytearray") and parts and isinstance(parts[0].value, int)
        if counted or (parts and _ALLOCATES.fullmatch(name)):
            raise ValueError(f"{self.file} asks for memory by calling {name[:80]!r}; refused")

    def _check_storage(self, place: _Thing) -> None:
        if place.depth > 2:
            raise ValueError(f"{self.file} {DAMAGED}")
        for part in place.parts:
            if isinstance(part.value, int) and part.value > self.size:
                raise ValueError(f"{self.file} has {self.size} bytes, but declares {counted(part.value, 'values')}")
