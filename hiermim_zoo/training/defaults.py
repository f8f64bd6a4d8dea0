"""What the family of a model says of its pre-training, where the options say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..mae import recipe_of
from ..models.family import families, family_of
from ..models.recipes import Pretraining


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


def family_values(model: str) -> Mapping[str, Any]:
    """The values of options that a family has, by the names of the options.

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
        "blr": row.blr,
        "warmup": row.warmup,
        "weight_decay": row.weight_decay,
        "betas": row.betas,
    }


def family_words(model: str) -> Mapping[str, str]:
    """The same for people to read, and what the autoencoder of the model looks like.

    Raises:
        ValueError: see :func:`pretraining_of`.
    """
    recipe = recipe_of(model, {})
    values = {
        **family_values(model),
        "mask_ratio": recipe.mask_ratio,
        "masks": "batch" if recipe.shared_mask else "sample",
        "decoder_depth": recipe.depth,
        "decoder_dim": recipe.dim,
        "decoder_heads": recipe.heads,
    }
    return {
        name: " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value is not None
    }
