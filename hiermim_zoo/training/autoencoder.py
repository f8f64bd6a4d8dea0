"""The masked autoencoder that a run trains: as its options say, and what of it is trained how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..commands.options.pretrain import DECODER, OWN_ARGS, PIXELS, PretrainOptions
from ..mae import MaskedAutoencoder, OtherTarget, UnfitSize, create_mae
from ..models.recipes import Pretraining
from ..models.shapes import without_memory
from ..teacher import BadTeacher, predicting
from .defaults import Followed, pretraining_of
from .graphs import check_compilable
from .small import recipe_of_size, small_decoder


def build_autoencoder(
    options: PretrainOptions, recipe: Mapping[str, Any] | None = None, start: Mapping[str, Any] | None = None
) -> MaskedAutoencoder:
    """The autoencoder at the size asked for, on the CPU.

    Args:
        recipe: values in place of those that the options say.
        start: what the folder of ``--checkpoint`` says of the encoder, where its weights are not needed, because those
            of a snapshot follow; None: the folder is read.

    Raises:
        ValueError: it cannot be built so, or cannot be compiled as asked for.
    """
    kwargs: dict[str, Any] = {**(start or {}), "drop_path_rate": options.drop_path or 0.0}
    kwargs |= options.own_model_kwargs(*OWN_ARGS)
    sizes = {"img_size": options.img_size, "in_chans": options.in_chans}
    kwargs |= {name: value for name, value in sizes.items() if value}
    try:
        if options.target and "target_dim" not in (recipe or {}):
            recipe = {**predicting(options.target), **(recipe or {})}
        mae = create_mae(
            options.model,
            options.pretrained,
            options.checkpoint if start is None else None,
            options.mask_ratio,
            False if options.raw_pixels and options.target in (None, PIXELS) else None,  # else as the checkpoint says
            "fresh" if options.fresh_decoder else options.decoder,
            recipe={**_changes(options), **(recipe or {})},
            **kwargs,
        )
    except UnfitSize as error:
        named = f"--img-size {' '.join(map(str, options.img_size))}: " if options.img_size else ""
        raise ValueError(f"{named}{error}") from error
    except BadTeacher as error:
        raise ValueError(f"--target {error}") from error
    except OtherTarget as error:
        raise ValueError(f"--target {options.target}: {error}") from error
    except (RuntimeError, AssertionError, TypeError) as error:  # timm's, of sizes that a model cannot take
        raise ValueError(f"--model {options.model} cannot be built with {kwargs}: {error}") from error
    if options.compile:
        check_compilable(mae.encoder)
    if options.grad_checkpointing:
        mae.set_grad_checkpointing()
    return mae


def undecided(options: PretrainOptions) -> PretrainOptions:
    """The options without what they say of a decoder, where the recipe may have to say the rest."""
    if options.recipe == "paper" or options.checkpoint:
        return options
    unsaid: PretrainOptions = options.having(**dict.fromkeys(DECODER))
    return unsaid


def sketched(options: PretrainOptions, rows: Followed) -> MaskedAutoencoder:
    """The autoencoder without values, as long as its size may depend on the data; the autoencoder itself, if a folder
    is to be read.

    Raises:
        ValueError: it cannot be built so.
    """
    if options.checkpoint and rows.start is None:
        return build_autoencoder(options, rows.recipe)
    with without_memory():
        return build_autoencoder(options.having(pretrained=False), rows.recipe, rows.start)


def sketched_before_data(options: PretrainOptions, device: str) -> MaskedAutoencoder:
    """Likewise, of a new run, with its decoder where that does not depend on how many images there are.

    Args:
        device: its type.

    Raises:
        ValueError: it cannot be built so.
    """
    # Without values where no file of weights is to be looked into.
    rows = Followed({"imagenet": False} if options.pretrained else {}, pretraining_of(options.model))
    sketch = sketched(undecided(options), rows)
    recipe = recipe_of_size(options.recipe, None, device)
    if recipe == "auto" or not any(getattr(options, name) for name in DECODER):
        return sketch
    return sketched(small_decoder(options, sketch) if recipe == "small" else options, rows)


def _changes(options: PretrainOptions) -> dict[str, Any]:
    """The values of the autoencoder's recipe that options say."""
    sizes = {"depth": options.decoder_depth, "dim": options.decoder_dim, "heads": options.decoder_heads}
    changes: dict[str, Any] = {name: value for name, value in sizes.items() if value}
    return changes | ({"masks": options.masks} if options.masks else {})


def blocks_of(mae: MaskedAutoencoder) -> tuple[nn.Module, ...]:
    """The parts whose weights can be gathered and let go one after the other."""
    encoder: Any = mae.encoder
    own = encoder.called_blocks if hasattr(encoder, "called_blocks") else encoder.blocks
    return (*own, *mae.decoder.blocks)


def undecayed(mae: MaskedAutoencoder, recipe: Pretraining) -> set[str]:
    """Names of position tables and mask token, where the recipe gives them no weight decay."""
    names = set() if recipe.decay_mask_token else {"decoder.mask_token"}
    if recipe.decay_positions:
        return names
    encoder: Any = mae.encoder
    return {*names, "decoder.pos_embed", *(f"encoder.{table}" for table in encoder.no_weight_decay())}


def freeze_unreached(mae: MaskedAutoencoder) -> None:
    """Exclude what the loss does not depend on (the norm before a classifier) from training: DDP would wait for it."""
    mae.eval()  # draws no random numbers
    parameters = list(mae.parameters())
    trained = [p for p in parameters if p.requires_grad]
    device = parameters[0].device
    images = torch.zeros(1, mae.in_chans, *mae.input_size, device=device)
    keep = torch.arange(mae.kept, device=device)[None]
    loss = mae(images, keep, features=mae.blank_features(1)).loss
    for p, gradient in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
        p.requires_grad_(gradient is not None)
    mae.train()
