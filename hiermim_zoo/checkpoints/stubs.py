"""Names that files of training code hold beside the weights, and what is read in their place: nothing that runs.

A pickle asks for classes and functions by name and has them called. What stands here is never looked up, imported or
called: the name means one of the classes below, which take any arguments and any state and keep none of them. Every
other name is refused. ``tests/test_stubs.py`` calls each of them with what an attacker would send.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any


class Inert:
    """Stands in for an object; holds nothing."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class InertArray(Inert):
    """Stands in for an array of numpy: not to be taken for a number where weights are expected."""

    __slots__ = ()


class InertMapping:
    """Stands in for kinds of dictionaries: torch fills no other than this one. A state dict may be one of them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class InertList:
    """Stands in for kinds of lists: torch appends to no other."""

    def __new__(cls, *args: Any, **kwargs: Any) -> list[Any]:  # type: ignore[misc]
        return []


_NODES = "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode InterpolationResultNode PathNode StringNode"
_STATES = "RunningStage TrainerFn TrainerState TrainerStatus"
_LAYERS = {  # arguments of functools.partial, mostly
    "activation": "ELU GELU Hardsigmoid Hardswish Hardtanh LeakyReLU Mish PReLU ReLU ReLU6 SiLU Sigmoid Softplus Tanh",
    "batchnorm": "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm",
    "conv": "Conv1d Conv2d Conv3d ConvTranspose2d",
    "dropout": "Dropout Dropout2d",
    "instancenorm": "InstanceNorm2d",
    "linear": "Identity Linear",
    "normalization": "GroupNorm LayerNorm LocalResponseNorm RMSNorm",
    "pooling": "AdaptiveAvgPool1d AdaptiveAvgPool2d AvgPool2d MaxPool2d",
}
_NUMBERS = (
    "bool bool_ int8 int16 int32 int64 intc longlong uint8 uint16 uint32 uint64 uintc ulonglong float16 float32 "
    "float64 longdouble complex64 complex128 clongdouble str_ bytes_ void object_ datetime64 timedelta64"
)
_DTYPES = (
    "BoolDType Int8DType Int16DType Int32DType Int64DType LongLongDType UInt8DType UInt16DType UInt32DType "
    "UInt64DType ULongLongDType Float16DType Float32DType Float64DType LongDoubleDType Complex64DType "
    "Complex128DType CLongDoubleDType StrDType BytesDType VoidDType ObjectDType DateTime64DType TimeDelta64DType"
)

# stub -> module -> its names
_STANDS_IN: dict[type, dict[str, str]] = {
    Inert: {
        # Python. getattr is how pickles name a method of a class: here it looks nothing up.
        "builtins": "bool bytes dict float frozenset getattr int list object range slice str tuple type",
        "_operator": "getitem",
        "argparse": "Namespace",
        "collections": "ChainMap UserDict UserList",
        "copyreg": "_reconstructor",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "functools": "partial",
        "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "types": "GenericAlias SimpleNamespace",
        "typing": "Any Dict List Literal Optional Sequence Tuple Union",
        "uuid": "UUID SafeUUID",
        # numpy: scalars, types, random numbers
        "numpy": f"dtype ndarray record {_NUMBERS}",
        "numpy.core.multiarray": "scalar",
        "numpy._core.multiarray": "scalar",
        "numpy.dtypes": _DTYPES,
        "numpy.ma": "MaskedArray",
        "numpy.ma.core": "MaskedArray",
        "numpy.rec": "recarray",
        "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
        "numpy.random._mt19937": "MT19937",
        "numpy.random._pcg64": "PCG64",
        "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
        # torch
        **{f"torch.nn.modules.{module}": names for module, names in _LAYERS.items()},
        "torch.nn.functional": "gelu relu silu",
        "torch._C._nn": "gelu silu",
        "torch.optim.lr_scheduler": "OneCycleLR",
        "timm.layers.norm": "LayerNorm LayerNorm2d RmsNorm",
        "timm.models.layers.norm": "LayerNorm LayerNorm2d",
        # configurations and records of other libraries
        "omegaconf.base": "ContainerMetadata Metadata",
        "omegaconf.dictconfig": "DictConfig",
        "omegaconf.listconfig": "ListConfig",
        "omegaconf.nodes": _NODES,
        "ml_collections.config_dict.config_dict": "ConfigDict FieldReference FrozenConfigDict",
        "mmengine.config.config": "Config",
        "mmengine.logging.history_buffer": "HistoryBuffer",
        "mmcv.utils.config": "Config",
        "fvcore.common.history_buffer": "HistoryBuffer",
        "deepspeed.runtime.fp16.loss_scaler": "DynamicLossScaler LossScaler",
        "pytorch_lightning.trainer.states": _STATES,
        "lightning.pytorch.trainer.states": _STATES,
        "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",
    },
    InertArray: {
        "numpy.core.multiarray": "_reconstruct",
        "numpy._core.multiarray": "_reconstruct",
        "numpy.ma.core": "_mareconstruct",
    },
    InertMapping: {
        "addict": "Dict",
        "addict.addict": "Dict",
        "collections": "defaultdict",
        "detectron2.config.config": "CfgNode",
        "easydict": "EasyDict",
        "fvcore.common.config": "CfgNode",
        "lightning.fabric.utilities.data": "AttributeDict",
        "lightning.pytorch.utilities.parsing": "AttributeDict",
        "lightning_fabric.utilities.data": "AttributeDict",
        "mmcv.utils.config": "ConfigDict",
        "mmengine.config.config": "ConfigDict",
        "munch": "DefaultMunch Munch",
        "pytorch_lightning.utilities.parsing": "AttributeDict",
        "yacs.config": "CfgNode",
    },
    InertList: {"collections": "deque"},
}


def _spelt_out(stands_in: Mapping[type, Mapping[str, str]]) -> Iterator[tuple[type, str]]:
    for stub, modules in stands_in.items():
        for module, names in modules.items():
            yield from ((stub, f"{module}.{name}") for name in names.split())


STUBS = tuple(_spelt_out(_STANDS_IN))  # as torch.serialization.safe_globals takes them: (stub, "module.name")
