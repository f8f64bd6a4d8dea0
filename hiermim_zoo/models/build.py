"""How an architecture becomes a model: timm's pretrained configs, construction, weights on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import build_model_with_cfg, create_model, generate_default_cfgs, get_pretrained_cfg
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ..checkpoints import manifest
from ..checkpoints.inspection import BROKEN
from .family import check_arch, family_of
from .saved import check_folder
from .weights import folder_of, locate

LOCAL = "local-dir:"  # before the folder of a model


def default_cfgs_for(archs: Mapping[str, Mapping[str, Any]]) -> Any:
    """timm's pretrained configs of a family: for each architecture its tags in the manifest, or a config without
    weights.

    Args:
        archs: for every architecture what all its tags share (input size, names of stem and classifier).
    """
    cfgs: dict[str, Any] = {}
    for arch, common in archs.items():
        rows = [row for row in manifest.records().values() if row.arch == arch]
        cfgs.update({row.name: {**common, **row.pretrained_cfg()} for row in rows} or {arch: dict(common)})
    return generate_default_cfgs(cfgs)


class FeatureGetter(FeatureGetterNet):
    """timm's feature wrapper, which hands on to the model inside what optimisers and memory savers ask."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        model: Any = self.model
        model.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay, by names of the wrapper's parameters."""
        model: Any = self.model

        def inside(rule: Any) -> Any:
            if isinstance(rule, str):
                return rule.replace("^", r"^model\.")
            return [(inside(pattern), group) for pattern, group in rule]

        return {name: inside(rule) for name, rule in model.group_matcher(coarse).items()}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay."""
        model: Any = self.model
        return {f"model.{name}" for name in model.no_weight_decay()}


def timm_model(
    cls: type[nn.Module], variant: str, load_filter: Callable[..., dict[str, Tensor]], *, levels: int = 4, **kwargs: Any
) -> nn.Module:
    """A model by timm's builder; what a family's ``construct`` is made of.

    Args:
        cls: of the model.
        variant: architecture.
        load_filter: brings checkpoints into the form of the model.
        levels: all that the model gives with ``features_only``, unless the caller says otherwise.
        **kwargs: of timm's builder and of the model.

    Raises:
        ValueError: a way to take feature maps that would take tokens for maps.
    """
    way = kwargs.pop("feature_cls", "getter")
    if way != "getter" and not (isinstance(way, type) and issubclass(way, FeatureGetterNet)):
        raise ValueError(
            f"feature_cls={way!r} is not available: blocks hand on tokens, not maps; leave it out, or say 'getter'"
        )
    features = {"out_indices": tuple(range(levels)), "feature_cls": FeatureGetter if way == "getter" else way}
    return build_model_with_cfg(
        cls, variant, kwargs.pop("pretrained", False), pretrained_filter_fn=load_filter, feature_cfg=features, **kwargs
    )


def build_model(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """What an entry point does: timm's way of building, with this package's way of finding weights in front of it.

    A source that the caller names (local-dir:, hf-hub:, an overlay with a file, state dict, URL or repository) is left
    to timm; weights of the manifest are looked for by :func:`hiermim_zoo.models.weights.locate`, which completes
    whatever has to be converted before this model is built.

    Raises:
        ValueError: a tag that the manifest does not have.
        hiermim_zoo.checkpoints.store.WeightsNotFound: no place had the weights.
    """
    tag, overlay = kwargs.get("pretrained_cfg"), dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    rows = manifest.records()
    if isinstance(tag, str) and f"{variant}.{tag}" not in rows:
        tags = [row.name for row in rows.values() if row.arch == variant]
        known = f"there are {', '.join(tags)}" if tags else "there are none"
        raise ValueError(f"{variant}.{tag} is not a known tag; {known}")
    if pretrained:
        cfg = resolve_pretrained_cfg(variant, tag, overlay)
        # By the repository, whatever else a caller has changed: timm must never ask for it by itself.
        row = next((row for row in rows.values() if (row.arch, row.hub) == (variant, cfg.hf_hub_id)), None)
        named_by_caller = cfg.source or cfg.file or cfg.state_dict or cfg.url
        if row is not None and not named_by_caller:
            overlay["file"] = str(locate(row, cache_dir=kwargs.get("cache_dir")))
        elif row is None and not named_by_caller and not cfg.hf_hub_id:
            raise ValueError(
                f"no pretrained weights of {variant} were ever published; leave pretrained=True (--pretrained) out, or "
                f"convert a checkpoint of your own with: python -m hiermim_zoo.convert FILE --model {variant} -o DIR"
            )
    return family_of(variant).construct(variant, pretrained=pretrained, pretrained_cfg_overlay=overlay, **kwargs)


def make_model(name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` whose complaints about names and files are ValueErrors of one line.

    Args:
        name: "arch", "arch.tag", "local-dir:DIR" or "hf-hub:org/name".
        **kwargs: of ``timm.create_model``.

    Raises:
        ValueError: the model cannot be made; says why.
    """
    if ":" not in name:
        check_arch(name)
        if kwargs.get("pretrained") and (folder := folder_of(name)):
            name = f"{LOCAL}{folder}"
    if name.startswith(LOCAL):
        check_folder(Path(name.removeprefix(LOCAL)))
    try:
        return create_model(name, **kwargs)
    except ValueError:
        raise
    except (SafetensorError, *BROKEN) as error:  # for bad names and files
        raise ValueError(f"model {name!r} cannot be made: {error}") from error


def has_weights(name: str) -> bool | None:
    """Whether pretrained weights of an architecture, or of a tag of it, are known; None: nobody can tell of this name
    (a folder, a repository, a model that says nothing).
    """
    cfg: Any = None if ":" in name else get_pretrained_cfg(name)
    return None if cfg is None else bool(cfg.has_weights)


def input_shape(model: Any) -> tuple[int, ...]:
    """What a model is configured for: (C, H, W), or (C, T, H, W) of clips. (timm's configs have no place for
    frames.)
    """
    chans, height, width = model.pretrained_cfg["input_size"]
    frames = getattr(model, "num_frames", None)
    return (chans, height, width) if frames is None else (chans, frames, height, width)
