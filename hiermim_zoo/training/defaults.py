"""What the family of a model says of its pre-training, where the options say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..commands.options.pretrain import SCHEDULED, PretrainOptions
from ..commands.options.problems import warmup_line
from ..commands.options.shared import BY_PAPER
from ..mae import recipe_of
from ..models.family import families, family_of
from ..models.recipes import Pretraining, Recipe


def pretraining_of(model: str) -> Pretraining:
    """The recipe of a model's family.

    Args:
        model: architecture, with or without a tag.

    Raises:
        ValueError: it is unknown, or its family has no recipe.
    """
    row = family_of(model).pretraining(model)
    if row is None:
        known = ", ".join(family.name for family in families() if family.pretraining)
        raise ValueError(f"--model {model}: its family has no recipe, those that have are {known}")
    return row


@dataclass(frozen=True)
class Followed:
    """What a run follows beside its options: the rows of its family, as they were when it began."""

    recipe: Mapping[str, Any]  # values of the autoencoder's recipe in place of those that options and family say
    pretraining: Pretraining
    # Arguments of the encoder that the folder of --checkpoint said; None: there is none, or it is to be read.
    start: Mapping[str, Any] | None = None

    def described(self, recipe: Recipe) -> dict[str, Any]:
        """What a snapshot says of it, in plain values.

        Args:
            recipe: of the autoencoder.
        """
        start = {} if self.start is None else {"start": dict(self.start)}
        return {"recipe": recipe.values(), "pretraining": asdict(self.pretraining), **start}


def followed(model: str, state: Mapping[str, Any] | None) -> Followed:
    """The rows that a run follows.

    Args:
        model: architecture.
        state: of the snapshot from which it goes on; None: it begins.

    Raises:
        ValueError: there are none, or the snapshot's cannot be followed.
    """
    own = pretraining_of(model)
    if state is None:
        return Followed({}, own)
    if "rows" not in state:
        return _before(model, own, state)
    said, start = _plain(state["rows"]["pretraining"]), state["rows"].get("start")
    if unknown := said.keys() - asdict(own).keys():
        raise ValueError(f"the snapshot is of another version of this package: it says {', '.join(sorted(unknown))}")
    return Followed(state["rows"]["recipe"], replace(own, **said), None if start is None else _plain(start))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they were before they were written down, where tuples may become lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _before(model: str, own: Pretraining, state: Mapping[str, Any]) -> Followed:
    """The rows of a run that began when snapshots did not say them.

    One mask for a step where it is shared, positions and mask token trained and decayed like all others, images of
    plain ViTs normalised as timm says, no schedule ahead.
    """
    said, option = state.get("recipe") or {}, state["options"].get("masks")
    usual = option == "batch" if option else recipe_of(model, {}).masks != "sample"
    masks = "step" if said.get("shared_mask", usual) else "sample"
    recipe = {"masks": masks, "fixed_positions": False, "imagenet": False}
    return Followed(recipe, replace(own, ahead=0.0, decay_mask_token=True))


def family_values(model: str) -> Mapping[str, Any]:
    """The values of options that a family has, by the names of the options: of the recipe of its paper.

    Raises:
        ValueError: see :func:`pretraining_of`.
    """
    row = pretraining_of(model)
    return {
        "repeat": row.repeat if row.repeat > 1 else None,
        "crop_scale": row.crop_scale,
        "drop_path": row.drop_path,
        "epochs": row.epochs,
        "batch_size": row.batch,
        "accumulate": 1,
        "blr": row.blr,
        "warmup": row.warmup,
        "weight_decay": row.weight_decay,
        "betas": row.betas,
    }


def filled_by_paper(options: PretrainOptions) -> PretrainOptions:
    """The options with the values of the family where they say nothing.

    Raises:
        ValueError: together they do not go.
    """
    values = family_values(options.model)
    said = {name: value for name in ("epochs", "warmup") if (value := getattr(options, name)) is not None}
    epochs, warmup = ({**values, **said}[name] for name in ("epochs", "warmup"))
    if line := warmup_line(epochs, warmup, said):
        raise ValueError(line)
    return options.filled(values)


def family_words(model: str) -> Mapping[str, str]:
    """The same for people to read, and what the autoencoder of the model looks like.

    Raises:
        ValueError: see :func:`pretraining_of`.
    """
    recipe = recipe_of(model, {})
    values = {
        **{name: value for name, value in family_values(model).items() if name != "accumulate"},
        "mask_ratio": recipe.mask_ratio,
        "masks": recipe.masks,
        "decoder_depth": recipe.depth,
        "decoder_dim": recipe.dim,
        "decoder_heads": recipe.heads,
    }
    words = {
        name: " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value is not None
    }
    return {name: f"{value}{BY_PAPER * (name in SCHEDULED)}" for name, value in words.items()}
