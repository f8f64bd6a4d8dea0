"""A checkpoint of any known layout becomes a model of this package, ready to be written in the form of the Hub."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from timm.models import create_model, get_pretrained_cfg, model_entrypoint
from torch import Tensor, nn

from ..manifest import Weights
from ..registry import family_of
from ..version import __version__
from .files import Checkpoint, read_checkpoint
from .folder import DECODER_FILE, Contents, own_cfg
from .layouts import Native, to_native
from .rules import Drop, apply_rules, check_fits

CONVERTED = (
    "Converted by `python -m hiermim_zoo.convert`; every tensor of the source was carried over or dropped for a stated reason."
)


@dataclass
class Converted:
    """A model that holds the converted weights, and how they came about."""

    arch: str
    model: nn.Module
    native: Native
    checkpoint: Checkpoint
    source: str  # as named by the user
    license: str
    row: Weights | None = None
    dtype: torch.dtype = torch.float32
    model_args: dict[str, Any] = field(default_factory=dict)  # what timm must be told to build the model again
    resampled: list[str] = field(default_factory=list)  # "name [old] -> [new]"
    initial: list[str] = field(default_factory=list)  # names that keep their initial value
    notes: dict[str, str] = field(default_factory=dict)  # what else the family has to say of the weights

    def provenance(self) -> dict[str, str]:
        return {
            "source": self.source,
            "file": self.checkpoint.path.name,
            "sha256": self.checkpoint.sha256,
            "layout": self.native.layout.name,
            "license": self.license,
            **self.notes,
            "hiermim_zoo": __version__,
        }

    def source_decoder(self) -> dict[str, Tensor]:
        """Fusion and decoder that the source holds or that stand beside it, whether they are kept or not; empty without."""
        beside, table = self.checkpoint.path.with_name(DECODER_FILE), self.native.layout
        if beside.is_file():
            return read_checkpoint(beside).state
        return apply_rules(self.checkpoint.state, (*table.decoder, Drop(".*", "of the encoder")), table.name)[0]

    def contents(self) -> Contents:
        """What is written."""
        return Contents(
            self.arch, self.model, self.provenance(), CONVERTED, self.model_args, self.dtype, decoder=self.native.decoder
        )


def family_module(arch: str) -> ModuleType:
    """The module of this package that defines an architecture (or, for plain ViTs, adapts timm's).

    Raises:
        ValueError: the architecture is neither.
    """
    name = model_entrypoint(arch).__module__
    if name == "timm.models.vision_transformer":
        return importlib.import_module("hiermim_zoo.models.vit")
    if not name.startswith(__package__.partition(".")[0] + "."):
        raise ValueError(f"--model {arch} is a model of {name}, not of this package; hiermim_zoo.list_models() names ours")
    return sys.modules[name]


def convert(
    checkpoint: Checkpoint,
    arch: str,
    *,
    source: str = "",
    layout: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    dtype: torch.dtype = torch.float32,
    license: str = "",
    row: Weights | None = None,
    decoder: bool = False,
    model_args: Mapping[str, Any] | None = None,
    inflate: str | None = None,
) -> Converted:
    """Carry a checkpoint over into a model of this package.

    Args:
        checkpoint: as read.
        arch: architecture to build.
        source: what the user called it, for the record.
        layout: forces a layout.
        img_size: resample positions to this size; default: the size that the checkpoint was made for.
        num_classes: 0 leaves the classifier out; any other number must be what the file has.
        dtype: of the tensors written.
        license: of the weights, where the manifest or a configuration beside the file does not say.
        row: the manifest's record, if the file belongs to one.
        decoder: keep the decoder of a masked autoencoder (``Converted.native.decoder``).
        model_args: what the family lets a conversion choose (``CONVERT_ARGS`` of its module).
        inflate: how a checkpoint of images becomes one of clips, in families that have ``inflate(native, arch, how)``.

    Raises:
        ValueError: the file does not fit the architecture; names the first tensor in the way.
    """
    family = family_module(arch)
    for name in model_args or ():
        if name not in getattr(family, "CONVERT_ARGS", ()):
            raise ValueError(f"--{name.replace('_', '-')} is nothing that a conversion to {arch} can choose")
    class_token = bool((model_args or {}).get("class_token"))
    native = to_native(checkpoint.state, family_of(arch), layout, decoder=decoder, class_token=class_token)
    if inflate:
        if not hasattr(family, "inflate"):
            raise ValueError(f"--inflate {inflate}: {arch} is no model of clips")
        native = family.inflate(native, arch, inflate)
    base: Any = get_pretrained_cfg(arch)
    known = {**native.layout.preprocessing, **(row.pretrained_cfg() if row else {})}
    config = {**known, **checkpoint.config.get("pretrained_cfg", {})}
    ours = checkpoint.config.get("architecture") == arch  # beside a plain ViT, the file speaks of another model
    saved = checkpoint.config.get("model_args", {}) if ours else {}
    sizes = (saved.get("img_size"), config.get("input_size", (None,))[1:] or None, base.input_size[1:])
    size = img_size or family.checkpoint_img_size(native, sizes, saved)
    classes = _classes(native.state, base.classifier, num_classes)
    stem = native.state.get(f"{base.first_conv or 'patch_embed.proj'}.weight")  # none that timm could adapt: clips
    chans = stem.shape[1] if stem is not None and stem.ndim > 1 else 3
    license = license or config.get("license") or "unstated"
    args = {name: value for name, value in saved.items() if name not in ("img_size", "num_classes", "in_chans", "global_pool")}
    args.update(family.checkpoint_args(native, arch) if hasattr(family, "checkpoint_args") else {})
    args.update(model_args or {})
    if _pair(size) != base.input_size[1:]:
        args["img_size"] = _pair(size)
    cfg = own_cfg(arch, config, license, classes, (chans, *_pair(size)))
    if row:
        cfg.update(tag=row.tag, origin_url=row.url or None, paper_ids=config["paper_ids"])
    model = create_model(arch, pretrained_cfg=cfg, num_classes=classes, in_chans=chans, **args)
    state = family.adapt(native, model)
    check_fits(state, model.state_dict(), model=arch)
    model.load_state_dict(state)
    resampled = [
        f"{name} {list(native.state[name].shape)} -> {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in native.state and native.state[name].shape != tensor.shape
    ]
    initial = [name for name in state if name not in native.state]
    source = source or (row.url if row else str(checkpoint.path))
    if checkpoint.path.with_name(DECODER_FILE).is_file():
        config.setdefault("tag", "mae")  # an encoder of our own pre-training, or converted with its decoder
    notes: dict[str, str] = family.notes(native, config, model) if hasattr(family, "notes") else {}
    return Converted(arch, model, native, checkpoint, source, license, row, dtype, args, resampled, initial, notes)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _classes(state: dict[str, Tensor], classifier: str, wanted: int | None) -> int:
    """Classes of the model to build; removes the classifier from ``state`` where none is wanted."""
    names = [f"{classifier}.weight", f"{classifier}.bias"]
    found = state[names[0]].shape[0] if names[0] in state else 0
    if wanted not in (None, 0, found):
        raise ValueError(
            f"--num-classes {wanted}: the file has {found or 'no'} classes; only 0 (leave the classifier out) is possible"
        )
    if wanted == 0:
        for name in names:
            state.pop(name, None)
        return 0
    return found
