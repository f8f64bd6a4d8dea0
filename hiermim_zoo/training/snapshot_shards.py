"""A snapshot that is a folder: every process writes its share of a model that is spread over them, nobody gathers it.

``step-00000012-DIGEST/`` holds

- ``__RANK_0.distcp`` and ``.metadata``: all tensors, in the form of torch.distributed.checkpoint, which cuts them anew
  for any number of processes;
- ``run.pt``: everything that is no tensor of the model or of the optimiser, as in a snapshot that is one file;
- ``complete.json``: the SHA-256 of each of these files. It is written last, and the folder's name has the first digits
  of its own SHA-256: so damage is seen, in whatever file.

It is written as ``step-00000012.part/`` and renamed when it is complete. Tensors are copied to the host's memory before
:meth:`ShardWriter.save` returns; a thread writes them while the run goes on.

Nothing is unpickled blindly. torch.distributed.checkpoint pickles ``.metadata`` and everything that is no tensor, and
trusts both when it reads. So only tensors are given to it, which it reads with ``weights_only=True``, and ``.metadata``
is read by a :class:`TensorMetadata`, which knows the few classes that describe tensors and no other.
"""

from __future__ import annotations

import json
import os
import pickle
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.serialization import _get_layout

from ..checkpoints.files import sha256_of
from .distributed import TIMEOUT, gather_objects
from .snapshot_files import DIGITS, load_file, remove, why_not, write_file

REST, COMPLETE = "run.pt", "complete.json"
MODEL, OPTIMIZER = "model/", "optimizer/"  # begin the names of tensors


# ---- reading


class TensorMetadata(pickle.Unpickler):
    """Reads the description of a snapshot's tensors.

    Raises:
        ValueError: it asks for anything else than the description of tensors needs.
    """

    KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        (known.__module__, known.__qualname__): known
        for known in (
            metadata.Metadata,
            metadata.TensorStorageMetadata,  # not BytesStorageMetadata: those bytes would be unpickled
            metadata.ChunkStorageMetadata,
            metadata.TensorProperties,
            metadata._MEM_FORMAT_ENCODING,
            metadata.MetadataIndex,
            metadata.StorageMeta,
            filesystem._StorageInfo,
            torch.Size,
            _get_layout,
        )
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("builtins", "getattr"):  # so Python 3.11.0 to 3.11.3 writes members of enumerations
            return member_of
        if (module, name) not in self.KNOWN:
            raise ValueError(f"it asks for {module}.{name}, which no snapshot needs")
        return self.KNOWN[module, name]


def member_of(kind: Any, name: str) -> Enum:
    """A member of an enumeration, for pickles that ask for it by ``getattr``; nothing else can be had so.

    Raises:
        ValueError: it is none.
    """
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise ValueError(f"it asks for {name!r} of {kind!r}, which no snapshot needs")
    return kind[name]


class TensorReader(dcp.FileSystemReader):
    """torch's, but for the way ``.metadata`` is read."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        file = Path(self.path) / ".metadata"
        try:
            with file.open("rb") as stream:
                found = TensorMetadata(stream).load()
        except Exception as error:  # what is no pickle can fail in all ways
            raise ValueError(f"{file} is refused: {error}") from error
        if not isinstance(found, metadata.Metadata):
            raise ValueError(f"{file} is refused: it describes no tensors")
        return found


def read_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, or the shares of them that this process holds, with those of a snapshot by their names.

    Raises:
        ValueError: the snapshot does not hold such tensors.
    """
    known = TensorReader(folder).read_metadata().state_dict_metadata
    if missing := sorted(tensors.keys() - known.keys()):
        raise ValueError(f"snapshot {folder} holds no {missing[0]}: it is of another model or optimiser")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # nobody has to be asked
            dcp.load(tensors, storage_reader=TensorReader(folder), no_dist=True)
    except dcp.CheckpointException as error:
        raise ValueError(f"snapshot {folder} cannot be read: {_reason(error)}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The model's weights by the names of its parameters, whole, on the CPU."""
    found = TensorReader(folder).read_metadata().state_dict_metadata
    weights: dict[str, Tensor] = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in found.items()
        if name.startswith(MODEL) and isinstance(about, metadata.TensorStorageMetadata)
    }
    read_tensors(folder, weights)
    return {name.removeprefix(MODEL): tensor for name, tensor in weights.items()}


def restore_shards(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, rest: dict[str, Any]) -> None:
    """Fill model and optimiser, over however many processes they are spread.

    Args:
        rest: the entry "optimizer" of the snapshot's ``run.pt``.
    """
    parts: Any = get_state_dict(model, optimizer)
    weights, moments = parts
    tensors = _tensors(weights, moments)
    read_tensors(folder, tensors)
    state: Any = {name: {**values} for name, values in rest["state"].items()}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            parameter, _, key = name.removeprefix(OPTIMIZER).rpartition("/")
            state.setdefault(parameter, {})[key] = tensor
    moments = {"state": state, "param_groups": rest["param_groups"]}
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)  # strict: names must agree


def damage_of_shards(folder: Path) -> str:
    """What is wrong with a snapshot; empty if nothing is. All processes of the run call it and share the work."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return next(filter(None, gather_objects(_damage(folder, rank, size))), "")


def _damage(folder: Path, part: int, parts: int) -> str:
    complete = folder / COMPLETE
    if not complete.is_file() or not folder.name.endswith(f"-{sha256_of(complete)[:DIGITS]}"):
        return f"its {COMPLETE} is not the one that its name tells of"
    digests = json.loads(complete.read_text(encoding="utf-8"))
    if not isinstance(digests, dict) or not {REST, ".metadata"} < digests.keys():
        return f"its {COMPLETE} does not name all files"
    for name, digest in sorted(digests.items())[part::parts]:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != digest:
            return f"the SHA-256 of {name} is not the one that {COMPLETE} tells of"
    return ""


def load_rest(folder: Path) -> dict[str, Any]:
    """Everything but the tensors of model and optimiser."""
    return load_file(folder / REST)


# ---- writing


class TensorWriter(dcp.FileSystemWriter):
    """torch's, but for a description that does not name the folder, which will be renamed, and a cheaper copy."""

    def stage(self, state_dict: Any) -> Any:
        """torch's way of copying looks at every part of every tensor's description."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_dict.items()}

    def storage_meta(self) -> metadata.StorageMeta:
        return metadata.StorageMeta()


class ShardWriter:
    """Writes the snapshots of a model that is spread over the processes of a run. All of them must call it alike."""

    def __init__(self) -> None:
        # The thread that writes talks to those of other processes while the run does: it needs a line of its own.
        self.group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.rank = dist.get_rank()
        self.thread = ThreadPoolExecutor(1, "snapshots")

    def save(
        self, folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, rest: dict[str, Any]
    ) -> Future[Path]:
        """Copy the state of a run and begin to write it.

        Args:
            rest: everything that is not in model and optimiser.

        Returns:
            In the future the path of the snapshot, the same in all processes; or a ValueError that says why it cannot
            be written.
        """
        part = folder / f"step-{step:08d}.part"
        if self.rank == 0:
            remove(part)  # of a run that was killed while it wrote
            part.mkdir(parents=True)
        dist.barrier(self.group)
        parts: Any = get_state_dict(model, optimizer)
        weights, moments = parts
        tensors = _tensors(weights, moments)
        moments_rest = {
            name: {key: value for key, value in values.items() if not isinstance(value, Tensor)}
            for name, values in moments["state"].items()
        }
        rest = rest | {"optimizer": {"state": moments_rest, "param_groups": moments["param_groups"]}}
        writing: Any = dcp.async_save(tensors, storage_writer=TensorWriter(part), process_group=self.group)
        return self.thread.submit(self._complete, writing, part, step, rest)

    def _complete(self, writing: Future[Any], part: Path, step: int, rest: dict[str, Any]) -> Path:
        """Wait until the tensors of all processes are written, and make a snapshot of them."""
        digests, failure = {}, ""
        try:
            writing.result()
            digests = {file.name: sha256_of(file) for file in part.glob(f"__{self.rank}_*")}
        except (dcp.CheckpointException, OSError) as error:
            failure = _reason(error)
        told: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(told, (digests, failure), group=self.group)
        failure = next((said for _, said in told if said), "")
        outcome: list[Any] = [None, failure]
        if self.rank == 0 and not failure:
            try:
                outcome = [self._rename(part, rest, [files for files, _ in told]), ""]
            except (OSError, RuntimeError) as error:  # the second is how torch.save tells of the first
                outcome = [None, _reason(error)]
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        path, failure = outcome
        if failure:
            if self.rank == 0:
                remove(part)
            raise ValueError(f"the snapshot of step {step} cannot be written: {failure}")
        return path

    @staticmethod
    def _rename(part: Path, rest: dict[str, Any], written: list[dict[str, str]]) -> Path:
        """Add what is missing, and give the folder its name.

        Args:
            written: names of the files of each process, and their SHA-256.
        """
        write_file(rest, part / REST)
        digests = {name: sha256_of(part / name) for name in (REST, ".metadata")}
        for files in written:
            digests |= files
        with (part / COMPLETE).open("w", encoding="utf-8") as file:
            json.dump(digests, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        path = part.with_name(f"{part.stem}-{sha256_of(part / COMPLETE)[:DIGITS]}")
        part.rename(path)
        return path


def _tensors(weights: Any, moments: Any) -> dict[str, Tensor]:
    """The tensors of model and optimiser, each under a name of its own."""
    values = {
        f"{OPTIMIZER}{name}/{key}": value for name, found in moments["state"].items() for key, value in found.items()
    }
    values |= {f"{MODEL}{name}": tensor for name, tensor in weights.items()}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, whichever process it was in."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        failed, _ = next(iter(error.failures.values()))
        return _reason(failed)
    return why_not(error) if isinstance(error, Exception) else type(error).__name__
