"""A checkpoint of any known layout becomes a model of this package, ready to be written in the form of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ..checkpoints.card import LICENSE_NOTE
from ..checkpoints.configs import CONFIG_KEY, IMAGES_KEY, LABELS_KEY, TRAINING_KEY
from ..checkpoints.files import Checkpoint, read_checkpoint
from ..checkpoints.folder import CONFIG_FILE, DECODER_FILE, Contents, own_cfg
from ..checkpoints.layouts import Native, find_layout
from ..checkpoints.licenses import UNSTATED
from ..checkpoints.manifest import Weights
from ..checkpoints.rules import Drop, apply_rules, check_fits
from ..checkpoints.soundness import check_kinds, in_type
from ..checkpoints.wrappers import unwrapped
from ..text import counted, printable
from ..version import __version__
from .beside import check_beside, decoder_beside, pool_beside
from .family import Family, family_of
from .grids import Sizes, sizes_beside
from .imagenet import IMAGENET_CLASSES, imagenet_names
from .saved import blank, check_buildable, saved_args

UNSAID = (224, 224)  # pixels of timm's ViTs where neither arguments nor a fixed size say others
LARGEST_SIDE = 1 << 13  # pixels: tables of positions grow with the square of a side
CONVERTED = (
    "Converted by `python -m hiermim_zoo.convert`; "
    "every tensor of the source was carried over or dropped for a stated reason."
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

    def provenance(self) -> dict[str, Any]:
        said = self.checkpoint.config.get(CONFIG_KEY, {})
        training = said.get(TRAINING_KEY)
        read = {
            "file": self.checkpoint.path.name,
            "sha256": self.checkpoint.sha256,
            **({"key": self.checkpoint.top_key} if len(self.checkpoint.sets) > 1 else {}),
            **({"prefix": self.checkpoint.prefix} if self.checkpoint.prefix else {}),
            "layout": self.native.layout.name,
        }
        if self.row and "sha256" in said:  # of a store or a bundle, whose folder says which file it was converted from
            read = {key: said[key] for key in ("file", "sha256", "key", "prefix", "layout") if key in said}
        ran = {key: said[key] for key, kind in (("step", int), ("warnings", list)) if type(said.get(key)) is kind}
        return {
            "source": self.source,
            **read,
            "license": self.license,
            **({LICENSE_NOTE: self.license_note} if self.license_note else {}),
            **self.notes,
            **({TRAINING_KEY: training} if training else {}),
            **ran,  # what has to be known of the run that made the source
            "hiermim_zoo": __version__,
        }

    @property
    def license_note(self) -> str:
        """What has to be said of the licence; empty where nothing has."""
        if not self.row:
            return self.native.layout.license_note
        both = f"{self.row.licenses} may hold, the stricter one is taken." if self.row.license_also else ""
        return " ".join(filter(None, (both, self.row.license_note)))

    @property
    def decoder_beside(self) -> Path:
        """Where the decoder of the source would be if it is a folder that was written with one."""
        return self.checkpoint.path.with_name(DECODER_FILE)

    def source_decoder(self) -> dict[str, Tensor]:
        """Fusion and decoder that the source holds or that stand beside it, whether they are kept or not; empty
        without.
        """
        table = self.native.layout
        if self.decoder_beside.is_file():
            return read_checkpoint(self.decoder_beside).state
        rules = (*table.decoder, Drop(".*", "of the encoder"))
        return apply_rules(self.checkpoint.state, rules, table.name, table.prefix)[0]

    def contents(self) -> Contents:
        """What is written."""
        said = self.checkpoint.config.get(CONFIG_KEY, {})
        return Contents(
            self.arch,
            self.model,
            self.provenance(),
            CONVERTED,
            self.model_args,
            self.dtype,
            decoder=self.native.decoder,
            images=said.get(IMAGES_KEY, {}),
            labels=said.get(LABELS_KEY, {}) if getattr(self.model, "num_classes", 0) else {},
            recipe=(self.recipe() or {}) if self.native.decoder else {},
            omitted=self.initial if self.native.layout.own and self.native.decoder else (),
        )

    def recipe(self) -> Mapping[str, Any] | None:
        """Values of the autoencoder's recipe that are not the family's, as the source says; None: it cannot be told."""
        config = self.checkpoint.config
        recipe: Mapping[str, Any] | None = config.get(CONFIG_KEY, {}).get("recipe", {})
        return recipe if recipe is None else {**self.native.layout.recipe, **decoder_beside(config), **recipe}


@dataclass(frozen=True)
class Wanted:
    """What a conversion is asked for.

    Args:
        layout: forces a layout.
        img_size: height and width that positions are resampled to; default: those that the checkpoint was made for.
        num_classes: 0 leaves the classifier out; any other number must be what the file has.
        dtype: of the tensors written.
        license: of the weights, where the manifest or a configuration beside the file does not say.
        decoder: keep the decoder of a masked autoencoder (``Converted.native.decoder``).
        model_args: what the family lets a conversion choose (``Family.choices``).
        inflate: how a checkpoint of images becomes one of clips, in families that can do so.
    """

    layout: str | None = None
    img_size: int | tuple[int, int] | None = None
    num_classes: int | None = None
    dtype: torch.dtype = torch.float32
    license: str = ""
    decoder: bool = False
    model_args: Mapping[str, Any] = field(default_factory=dict)
    inflate: str | None = None


def convert(
    checkpoint: Checkpoint, arch: str, wanted: Wanted | None = None, *, source: str = "", row: Weights | None = None
) -> Converted:
    """Carry a checkpoint over into a model of this package.

    Args:
        checkpoint: as read.
        arch: architecture to build.
        wanted: what else is asked for.
        source: what the user called it, for the record.
        row: the manifest's record, if the file belongs to one.

    Raises:
        ValueError: the file does not fit the architecture; names the first tensor in the way.
    """
    wanted = wanted or Wanted()
    family = family_of(arch)
    wanted = replace(wanted, layout=wanted.layout or _layout_of(row, checkpoint))
    native = _read(checkpoint, arch, family, wanted)
    check_kinds({**native.state, **native.decoder}, blank(arch)[1], model=arch)
    known = {**native.layout.preprocessing, **(_cfg_of(row) if row else {})}
    config = {**known, **checkpoint.config.get("pretrained_cfg", {})}
    license = wanted.license or config.get("license") or UNSTATED
    native, shape, args = _shape(checkpoint, arch, family, native, wanted, config)
    cfg = own_cfg(arch, config, license, shape["num_classes"], (shape["in_chans"], *shape["img_size"]))
    if row:
        cfg.update(tag=row.tag, origin_url=row.url or None, paper_ids=config["paper_ids"])
    chosen = {"num_classes": shape["num_classes"], "in_chans": shape["in_chans"], **args}
    model = _built(checkpoint, partial(family.construct, arch, pretrained_cfg=cfg, **chosen))
    state = family.adapt(native, model)
    check_fits(state, own := model.state_dict(), model=arch)
    model.load_state_dict({name: in_type(name, tensor, own[name].dtype) for name, tensor in state.items()})
    initial = [name for name in state if name not in native.state]
    source = source or (row.url if row else str(checkpoint.path))
    if checkpoint.path.with_name(DECODER_FILE).is_file():
        config.setdefault("tag", "mae")  # an encoder of our own pre-training, or converted with its decoder
    notes = {**family.notes(native, config, model), **check_beside(checkpoint.config, native, model, arch)}
    return Converted(
        arch,
        model,
        native,
        checkpoint,
        source,
        license,
        row,
        wanted.dtype,
        args,
        _resampled(native, state, shape["img_size"]),
        initial,
        notes,
    )


def _cfg_of(row: Weights) -> dict[str, Any]:
    """What the manifest says of weights; all of its rows with as many classes as ImageNet-1K have these."""
    cfg = row.pretrained_cfg()
    if row.classes == IMAGENET_CLASSES and not row.labels:
        cfg["label_names"] = imagenet_names()
    return cfg


def _layout_of(row: Weights | None, checkpoint: Checkpoint) -> str | None:
    """The layout that the manifest says, where names alone do not tell and a file has them; else None."""
    table = find_layout(row.layout) if row else None
    return table.name if table and table.by_name and table.fits(unwrapped(checkpoint.state)) else None


def _built(checkpoint: Checkpoint, build: Callable[[], nn.Module]) -> nn.Module:
    """The model; arguments that a stranger's configuration says must not make it much larger than the file."""
    if checkpoint.config.get("model_args"):
        values = sum(tensor.numel() for tensor in checkpoint.state.values())
        check_buildable(build, values, checkpoint.path.with_name(CONFIG_FILE))
    try:
        return build()
    except (RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"no model can be built so: {printable(error, 200)}") from error


def _resampled(native: Native, state: Mapping[str, Tensor], size: tuple[int, int]) -> list[str]:
    """Which tables were resampled; one that keeps its shape may have changed its grid."""
    changed = {
        name: tensor
        for name, tensor in state.items()
        if name in native.state and tensor is not native.state[name] and not torch.equal(tensor, native.state[name])
    }
    before, after = (" x ".join(map(str, _pair(pixels))) for pixels in (native.size, size))
    sizes = f", images of {before} -> {after} pixels" if before != after else ""
    return [
        f"{name} {list(native.state[name].shape)} -> {list(tensor.shape)}{sizes}" for name, tensor in changed.items()
    ]


def _read(checkpoint: Checkpoint, arch: str, family: Family, wanted: Wanted) -> Native:
    """The checkpoint in the family's own names.

    Raises:
        ValueError: something is wanted that the family does not offer.
    """
    offered = {choice.name for choice in family.choices}
    for name in wanted.model_args:
        if name not in offered:
            raise ValueError(f"--{name.replace('_', '-')} is nothing that a conversion to {arch} can choose")
    beside = checkpoint.path.with_name(DECODER_FILE)
    apart = wanted.decoder and beside.is_file()  # as in a folder that was written with its decoder
    kept = wanted.decoder and not apart
    native = family.native(checkpoint.state, wanted.layout, decoder=kept, args=wanted.model_args)
    if apart:
        native = native._replace(decoder=read_checkpoint(beside).state)
    if not wanted.inflate:
        return native
    if family.inflate is None:
        raise ValueError(f"--inflate {wanted.inflate}: {arch} is no model of clips")
    return family.inflate(native, arch, wanted.inflate)


def _shape(
    checkpoint: Checkpoint, arch: str, family: Family, native: Native, wanted: Wanted, config: Mapping[str, Any]
) -> tuple[Native, dict[str, Any], dict[str, Any]]:
    """The checkpoint with the size of images that it was made for, and what the model is to be built like: classes,
    channels and image size, and the arguments that differ from the architecture's.

    Raises:
        ValueError: nothing tells that size, or the decoder is to be kept for another one.
    """
    base: Any = get_pretrained_cfg(arch)
    ours = checkpoint.config.get("architecture") == arch  # beside a plain ViT, the file speaks of another model
    saved = saved_args(arch, checkpoint.config, checkpoint.path.with_name(CONFIG_FILE)) if ours else {}
    said = (*sizes_beside({**checkpoint.config, "pretrained_cfg": config}), base.input_size[1:])
    native = native._replace(size=_pair(family.img_size(native, Sizes(said, wanted.img_size), saved)))
    size = _pair(wanted.img_size or native.size)
    if max(size) > LARGEST_SIDE:
        raise ValueError(f"--img-size {size[0]} {size[1]} is more than {LARGEST_SIDE} pixels along a side")
    if native.decoder and size != native.size:
        raise ValueError("--mae keeps the decoder, whose positions belong to one size: leave out --img-size")
    stem = native.state.get(f"{base.first_conv or 'patch_embed.proj'}.weight")  # none that timm could adapt: clips
    shape = {
        "num_classes": _classes(native.state, base.classifier, wanted.num_classes),
        "in_chans": stem.shape[1] if stem is not None and stem.ndim > 1 else 3,
        "img_size": size,
    }
    if "fc_norm" in saved and "global_pool" in wanted.model_args:
        raise ValueError("config.json says fc_norm and pooling of the model: leave out --global-pool")
    said_pool = None if family.own or not ours else pool_beside(checkpoint.config)
    pool = {"global_pool": said_pool} if isinstance(said_pool, str) else {}
    args = {name: value for name, value in saved.items() if name not in (*shape, "global_pool")} | pool
    args = {**family.checkpoint_args(native, arch), **args, **wanted.model_args}
    if size != base.input_size[1:] or (base.fixed_input_size and size != UNSAID):
        args["img_size"] = size
    return native, shape, args


def _pair(size: Any) -> tuple[int, int]:
    height, width = to_2tuple(size)
    return int(height), int(width)


def _classes(state: dict[str, Tensor], classifier: str, wanted: int | None) -> int:
    """Classes of the model to build; removes the classifier from ``state`` where none is wanted."""
    names = [f"{classifier}.weight", f"{classifier}.bias"]
    found = state[names[0]].shape[0] if names[0] in state else 0
    if wanted not in (None, 0, found):
        raise ValueError(
            f"--num-classes {wanted}: the file has {counted(found, 'classes') if found else 'no classes'}; "
            "only 0 (leave the classifier out) is possible"
        )
    if wanted == 0:
        for name in names:
            state.pop(name, None)
        return 0
    return found
