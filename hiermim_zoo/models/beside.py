"""What config.json beside a checkpoint says of the function: tensors tell widths and depths, but not attention heads,
activations or pooling. A model that computes something else with the same tensors is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from torch import nn

from ..checkpoints.layouts import Native
from .hiera_parts import KERNEL, POOL, POOLINGS, STRIDE

GELU = ("gelu", "gelu_python")
FAR = 1e-4  # of the epsilon of norms: nearer ones change outputs by rounding
# How transformers calls what a decoder is like, and what recipes do.
_DECODER: dict[str, tuple[type, tuple[str, ...]]] = {
    "depth": (int, ("decoder_num_hidden_layers", "decoder_depth")),
    "dim": (int, ("decoder_hidden_size",)),
    "heads": (int, ("decoder_num_attention_heads", "decoder_num_heads")),
    "norm_pix": (bool, ("norm_pix_loss", "normalize_pixel_loss")),
}
_HEADS = ("num_attention_heads_per_stage", "num_attention_heads", "num_heads")
# What transformers says of windows, and what models here call it.
_WINDOWS = {"window_size_per_stage": "window_spec", "global_attention_blocks": "global_att_blocks"}
# What else it says of the encoder with such windows, and how all those of this package are.
_FIXED: dict[str, Any] = {
    "num_query_pool_stages": POOLINGS,
    "query_stride": list(POOL[1:]),
    "patch_kernel_size": list(KERNEL[1:]),
    "patch_stride": list(STRIDE[1:]),
    "patch_padding": [side // 2 for side in KERNEL[1:]],
}
UNTOLD = ("num_heads", *_WINDOWS.values())  # arguments of models that change no tensor, but what is computed


def decoder_beside(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values of an autoencoder's recipe that transformers' configuration says."""
    found = {}
    for to, (kind, names) in _DECODER.items():
        value = next((config[name] for name in names if name in config), None)
        if type(value) is kind:
            found[to] = value
    return found


def pool_beside(config: Mapping[str, Any]) -> Any:
    """What the classifier of timm's own model reads, as its folder says; None where it says nothing."""
    return (config.get("model_args") or {}).get("global_pool", config.get("global_pool"))


def check_beside(config: Mapping[str, Any], native: Native, model: nn.Module, arch: str) -> dict[str, str]:
    """Refuse what a configuration in the form of transformers or of timm says otherwise than the model computes.

    Args:
        config: beside the checkpoint; empty where there is none.
        native: the checkpoint.
        model: that was built for it.
        arch: its architecture.

    Returns:
        What differs without changing much, for the report.

    Raises:
        ValueError: heads, windows, activation, epsilon or pooling differ; names both values.
    """
    config = _of_encoder(config)
    args = config.get("model_args") or {}
    places = (*(config.get(key) for key in _HEADS), args.get("num_heads"))
    heads = next((value for value in places if value), None)
    said, own = _stages(heads if isinstance(heads, list) else [heads]), _stages(_heads_of(model))
    if heads and own and said != own and (len(said) > 1 or config.get("architecture") != arch):
        raise ValueError(_differs("attention heads", said, own, arch))
    for key, name in _WINDOWS.items():
        windows, ours = config.get(key), getattr(model, name, None)
        windows = args.get(name) if windows is None else windows
        if windows is not None and ours is not None and list(windows) != list(ours):
            raise ValueError(_differs(key, windows, list(ours), arch))
    for key, value in _FIXED.items() if hasattr(model, "window_spec") else ():
        if config.get(key, value) != value:
            raise ValueError(_differs(key, config[key], value, arch))
    activation = config.get("hidden_act")
    if activation is not None and activation not in GELU:
        raise ValueError(_differs("hidden_act", activation, "gelu", arch))
    _check_pool(config, native, model, arch)
    return _epsilon(config, model, arch)


def check_told(model: nn.Module, args: Mapping[str, Any], usual: Mapping[str, Any], arch: str) -> None:
    """Refuse to write tensors that whoever reads them would compute something else with.

    Args:
        model: that they are of.
        args: that it was built with.
        usual: those of its architecture.
        arch: its name.

    Raises:
        ValueError: an argument that no tensor tells is not the architecture's.
    """
    for name in (name for name in UNTOLD if name in args):
        own = usual.get(name, _default(type(model), name))
        own, said = (list(value) if isinstance(value, (list, tuple)) else value for value in (own, args[name]))
        if said != own:
            raise ValueError(
                f"the model has {name} {_words(said)} and {arch} {_words(own)}, which no tensor tells: whoever reads "
                "the file would compute something else; use the folder as it is, or a model as it is published"
            )


def _default(model: type[nn.Module], name: str) -> Any:
    """Of an argument of a class of models, or of those that it is made of."""
    found = (
        inspect.signature(vars(part)["__init__"]).parameters.get(name)
        for part in model.__mro__
        if "__init__" in vars(part)
    )
    return next((parameter.default for parameter in found if parameter), None)


def _of_encoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is about the encoder, where it is the one of a whole SAM 2."""
    for part in ("vision_config", "backbone_config"):
        inner = config.get(part)
        config = inner if isinstance(inner, Mapping) else config
    return config


def _heads_of(model: nn.Module) -> list[int]:
    """Of all modules with attention, in their order."""
    found = (getattr(module, "num_heads", None) for module in model.modules())
    return [heads for heads in found if type(heads) is int]


def _stages(heads: list[Any]) -> list[Any]:
    """Without repetition."""
    return [count for count, _ in groupby(heads)]


def _check_pool(config: Mapping[str, Any], native: Native, model: Any, arch: str) -> None:
    """A classifier of timm's plain ViT reads what ``global_pool`` says."""
    if config.get("architecture") == arch or "head.weight" not in native.state:
        return  # its own arguments build the model
    pool = pool_beside(config)
    if pool in ("token", "max", "avgmax", "map"):
        raise ValueError(f"{_differs('global_pool', pool, 'avg', arch)}; --num-classes 0 leaves the classifier out")


def _epsilon(config: Mapping[str, Any], model: nn.Module, arch: str) -> dict[str, str]:
    said = config.get("layer_norm_eps")
    own = next((module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)), None)
    if not isinstance(said, float) or own is None or said == own:
        return {}
    if abs(said - own) > FAR:
        raise ValueError(_differs("layer_norm_eps", said, own, arch))
    return {"epsilon of norms": f"{said:g} in the source, {own:g} here: outputs differ by little"}


def _differs(what: str, said: Any, own: Any, arch: str) -> str:
    return f"config.json beside the file says {what} {_words(said)}, {arch} has {_words(own)}: outputs would differ"


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
