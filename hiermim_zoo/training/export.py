"""A run leaves its encoder: in the form of the Hub, the decoder beside it, and a card that says how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoints.configs import TRAINING_KEY
from ..checkpoints.folder import Contents, own_cfg, write_folder
from ..commands.options.pretrain import OWN_ARGS, PIXELS, PretrainOptions
from ..mae import MaskedAutoencoder, decoder_state, recipe_changes
from ..models.family import check_arch
from ..text import printable
from ..version import __version__
from .run_log import read_log

ENCODER = "encoder"  # in the output folder of a run
MADE = "Pre-trained by masked autoencoding with `python -m hiermim_zoo.pretrain`."
TAUGHT = "Pre-trained by predicting a teacher's features of hidden units with `python -m hiermim_zoo.pretrain`."


class Course(NamedTuple):
    """Of a run."""

    step: int  # that was taken last
    steps: int  # of the whole run


def export(
    weights: Mapping[str, Tensor],
    options: PretrainOptions,
    mae: MaskedAutoencoder,
    config: Mapping[str, Any],
    images: Mapping[str, Any],
    course: Course,
    command: str,
    warnings: Sequence[str],
) -> Path:
    """Write the encoder of a run into its output folder.

    Args:
        weights: of the autoencoder, whole, on the CPU.
        options: of the run, with the family's values.
        mae: like the run's, which is given these weights.
        config: how its images were prepared.
        images: how files became images, see ``image_form.to_remember``.
        course: of the run, and where in it the weights were so.
        command: the command line of the run, for the card.
        warnings: what should be known of the run.

    Returns:
        The folder.

    Raises:
        ValueError: a weight is not finite.
    """
    if odd := next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None):
        raise ValueError(
            f"{odd} holds values that are not finite, so no encoder is written; start again with a lower --lr or "
            "--clip 1, or write that of an earlier snapshot with --export-only --resume FILE"
        )
    mae.load_state_dict(weights)
    arch = check_arch(options.model)
    encoder: Any = mae.encoder
    encoder.pretrained_cfg = own_cfg(arch, config, options.license, 0, (mae.in_chans, *mae.input_size))
    contents = Contents(
        arch,
        encoder,
        provenance(options, course, command, warnings),
        MADE if mae.recipe.target == PIXELS else TAUGHT,
        options.own_model_kwargs(*OWN_ARGS) | size_args(mae),
        decoder=decoder_state(mae),
        recipe=recipe_changes(options.model, mae.recipe),
        images=images,
    )
    folder = options.output / ENCODER
    write_folder(contents, folder, force=True)
    print(f"wrote {(name := printable(folder))}: timm.create_model('local-dir:{name}', pretrained=True)")
    return folder


def provenance(options: PretrainOptions, course: Course, command: str, warnings: Sequence[str]) -> dict[str, Any]:
    """Where the weights come from, for configuration and card."""
    step = course.step
    training = {"recipe": options.recipe, "steps": course.steps, "batch": options.batch_size, "lr": options.lr}
    notes = read_log(options.output)
    losses, neighbours = (
        [note[key] for note in notes if note.get(key) is not None and note["step"] <= step] for key in ("loss", "knn")
    )
    return {
        "command": printable(command),
        "data": printable(options.data),
        TRAINING_KEY: training,
        "epochs": options.epochs,
        "step": step,
        "batch": options.batch_size,
        **({"target": printable(options.target)} if options.target != PIXELS else {}),
        "final loss": round(losses[-1], 4) if losses else "unknown",
        "20 nearest neighbours, top-1 %": round(neighbours[-1], 1) if neighbours else "not measured",
        "license": options.license,
        "hiermim_zoo": __version__,
        "torch": str(torch.__version__),
        **({"warnings": list(warnings)} if warnings else {}),
    }


def size_args(mae: MaskedAutoencoder) -> dict[str, Any]:
    """What timm must be told of the size of the images (and the number of frames) to build the encoder again."""
    encoder: Any = mae.encoder
    *frames, height, width = mae.input_size
    args: dict[str, Any] = {"num_frames": frames[0]} if frames else {}
    if (height, width) != encoder.default_cfg["input_size"][1:]:
        args["img_size"] = (height, width)
    return args
