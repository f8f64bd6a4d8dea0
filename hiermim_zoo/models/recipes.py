"""What a recipe is: how a family is pre-trained by masking, with which autoencoder, and how it is fine-tuned.

Here are the records; the values stand in each family's own file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from reprlib import repr as short
from typing import Any, Generic, TypeVar

from ..checkpoints.configs import not_fitting
from ..commands.options.pretrain import MASKS, PIXELS, TARGET, is_target
from ..text import counted

Row = TypeVar("Row")
SCHEDULES = ("mae", "simmim")  # of fine-tuning


@dataclass(frozen=True)
class Rows(Generic[Row]):
    """A row for each architecture of a family.

    Args:
        usual: for architectures that have none of their own; None: these have none.
        others: by architecture.
    """

    usual: Row | None = None
    others: Mapping[str, Row] = field(default_factory=dict)

    def __call__(self, name: str) -> Row | None:
        """The row of "arch" or "arch.tag"; None where there is none."""
        return self.others.get(name.partition(".")[0], self.usual)

    def __iter__(self) -> Iterator[str]:
        return iter(self.others)

    def __bool__(self) -> bool:
        return self.usual is not None or bool(self.others)


@dataclass(frozen=True)
class Recipe:
    """What distinguishes the masked autoencoders of the families: rows of data, no branches."""

    fusion: str  # a key of decoder.FUSIONS
    depth: int  # blocks of the decoder
    dim: int = 512
    heads: int = 16
    learned_positions: bool = False  # of the decoder; else fixed sine-cosine
    pixel_order: str = "hwc"  # of the values of a patch: row, column, colour; "chw": colour, row, column
    first_frame: bool = False  # of the frames under a token, predict the first alone
    norm_pix: bool = True  # predict the pixels of a patch normalised by its own mean and (unbiased) variance
    mask_ratio: float = 0.75
    encoder: dict[str, Any] = field(default_factory=dict)  # arguments of the encoder in pre-training
    masks: str = "sample"  # each image has a mask of its own; "batch": one of a micro-batch, "step": of a step
    xavier: bool = False  # linear layers start Xavier-uniform, as in MAE; else those of the decoder truncated normal
    # The encoder's positions (``pos_embed``) are sine-cosine, zero for a class token, and never trained; its class
    # token starts normal 0.02.
    fixed_positions: bool = False
    imagenet: bool = False  # images are normalised as ImageNet's, whatever timm's tag says; not beside loaded weights
    target: str = PIXELS  # what is predicted of hidden units; "features:MODEL": what a frozen teacher makes of them
    target_dim: int = 0  # channels of the teacher; 0 of pixels
    source: str = ""  # file of the authors' code that the values are from

    def values(self) -> dict[str, Any]:
        """All that can be changed, by name: plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "source"}

    def changed(self, changes: Mapping[str, Any], fusions: Collection[str]) -> Recipe:
        """The recipe with other values.

        Args:
            changes: by name; a stranger's configuration may say them.
            fusions: that there are.

        Raises:
            ValueError: a name or a value that there is none of; says what would work.
        """
        if not isinstance(changes, Mapping):
            raise ValueError(f"recipe is {short(changes)}; a mapping would work")
        known = {f.name: str(f.type) for f in fields(self) if f.name != "source"}
        changes = _renamed(changes)
        for key, value in changes.items():
            if key not in known:
                raise ValueError(f"recipe has no {short(key)}, it has {', '.join(known)}")
            if key == "encoder":
                wanted = "" if isinstance(value, Mapping) else "a mapping"
            elif key == "target":
                wanted = "" if is_target(value) else TARGET.wanted
            else:
                wanted = not_fitting(key, value, known[key])
            if wanted:
                raise ValueError(f"recipe: {key} is {short(value)}; {wanted} would work")
        recipe = replace(self, **changes)
        among = ((recipe.fusion, fusions), (recipe.pixel_order, ("hwc", "chw")), (recipe.masks, MASKS))
        for value, there_are in among:
            if value not in there_are:
                raise ValueError(f"recipe: {value!r} is unknown, there are {', '.join(there_are)}")
        if recipe.target_dim < 0 or (recipe.target == PIXELS) != (recipe.target_dim == 0):
            raise ValueError(
                f"recipe: target_dim is {recipe.target_dim} of {recipe.target!r}; the teacher's width would "
                f"work, and 0 of {PIXELS}"
            )
        if recipe.heads < 1 or recipe.dim % recipe.heads or recipe.dim % 4 or recipe.dim < 4 or recipe.depth < 1:
            raise ValueError(
                f"a decoder of depth {recipe.depth}, width {recipe.dim} and {counted(recipe.heads, 'heads')} cannot be "
                "built: depth (--decoder-depth) must be at least 1, width (--decoder-dim) a multiple of 4 and of the "
                "heads (--decoder-heads)"
            )
        return recipe


def _renamed(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Values of a recipe, in place of those that folders had before there were masks of micro-batches."""
    if not isinstance(shared := changes.get("shared_mask"), bool):
        return changes
    rest = {key: value for key, value in changes.items() if key != "shared_mask"}
    return {"masks": "step" if shared else "sample", **rest}


@dataclass(frozen=True)
class Pretraining:
    """How a family is pre-trained by masking; tensors of one dimension and biases have no weight decay."""

    blr: float  # peak learning rate per 256 images of a batch
    epochs: int = 1600  # "effective" ones: each shows as many images or clips as there are images or videos
    batch: int = 4096  # images or clips
    warmup: int = 40  # epochs
    repeat: int = 1  # clips of a video each time it is opened
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the area
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    drop_path: float = 0.0
    decay_positions: bool = True
    decay_mask_token: bool = True
    ahead: float = 0.0  # epochs that the learning rate is ahead, see Schedule
    source: str = ""  # file of the authors' code, or part of the paper, that the values are from


@dataclass(frozen=True)
class FineTuning:
    """How a pre-trained encoder becomes a classifier."""

    epochs: int  # as in Pretraining
    blr: float  # peak learning rate per 256 images of a batch
    layer_decay: float
    drop_path: float
    batch: int = 1024
    repeat: int = 1  # clips of a video each time it is opened
    warmup: float = 5  # epochs
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    # "mae": the cosine begins where the warm-up ends, and layer decay scales all of it. "simmim": it began with the
    # first step, and min_lr and start_lr scale with the batch, but not from layer to layer.
    schedule: str = "mae"
    min_lr: float = 1e-6  # at the end
    start_lr: float = 0.0  # of the first step of the warm-up
    ahead: float = 0.0  # epochs that the learning rate is ahead, see Schedule
    clip: float | None = None  # norm of the gradient
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    erase: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    dropout: float = 0.0  # share of the pooled features that the classifier does not see
    head_std: float = 2e-5  # of the new classifier
    source: str = ""  # file of the authors' code, or part of the paper, that the values are from
