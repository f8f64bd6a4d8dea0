"""What ``convert --verify`` finds out: that what was written is what was meant, and how the source fares on images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.data import create_transform
from timm.models import create_model
from torch import Tensor

from ..checkpoints.folder import MODEL_FILE
from ..checkpoints.rules import check_fits
from ..data.decoding import MODES
from ..data.kinds import open_images
from ..data.photographs import sample_folder
from ..data.transforms import data_config
from ..mae import create_mae
from ..masking import random_keep
from ..models.build import input_shape
from ..models.conversion import Converted
from ..models.family import family_of
from ..progress import Progress
from ..text import counted

SAMPLE = 10  # images that are looked at


def verify(converted: Converted, folder: Path) -> str:
    """Reload what was written and compare it with what was meant.

    Every tensor of the file must equal the converted one bit by bit, and the model that timm makes from the folder must
    compute what the model in memory computes. Families may promise more.

    Raises:
        ValueError: naming the tensor that differs.
    """
    written, meant = load_file(folder / MODEL_FILE), converted.contents().state()
    names = meant.keys() | written.keys()
    with Progress(len(names), "tensor", what="verification") as bar:
        for name in bar.over(names):
            if name not in written or name not in meant or not torch.equal(written[name], meant[name]):
                raise ValueError(
                    f"verification failed: tensor {name!r} in {folder / MODEL_FILE} differs from the converted one"
                )
    reloaded: Any = create_model(f"local-dir:{folder}", pretrained=True).eval()
    converted.model.load_state_dict({**converted.model.state_dict(), **meant})  # in the type written
    image = torch.randn(1, *input_shape(reloaded), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = (reloaded(image) - converted.model.eval()(image)).abs().max().item()
    if difference:
        raise ValueError(f"verification failed: the reloaded model's output differs by {difference:.3g}")
    found = f"verified: {counted(len(meant), 'tensors')} equal bit by bit, "
    found += "outputs of the reloaded model and of the model in memory equal"
    more = family_of(converted.arch).verify(converted.native, converted.model)
    return f"{found}, {more}" if more else found


def compare(converted: Converted, images: str | None) -> str:
    """What images tell of a conversion: how near its features still are to the source's, or how the source is to be
    read.

    Args:
        images: data; None: those of the package.

    Returns:
        One line, empty where the family has no such question.

    Raises:
        ValueError: the images cannot be read, or were given although there is nothing to compare on them.
    """
    family, model, data = family_of(converted.arch), converted.model, images or sample_folder()
    readings = family.readings(converted.native)
    if readings:
        try:
            return better_reading(converted, readings, data)
        except ValueError as error:
            if images:
                raise ValueError(f"--images {images}: {error}") from error
            return f"how the source is to be read cannot be told: {error}"
    chans = getattr(model, "in_chans", 3)
    if not images and chans not in MODES:
        return f"features are not compared on images: those of the package have no {counted(chans, 'channels')}"
    found = family.similarity(converted.checkpoint.state, model, sample(data, model), converted.native.size)
    if images and not found:
        raise ValueError(f"--images {images}: of this source --verify compares nothing on images; leave them out")
    return found


def better_reading(converted: Converted, readings: Mapping[str, Mapping[str, Tensor]], data: str) -> str:
    """From which of several readings of an encoder its own decoder reconstructs images best, all with the same masks.

    Args:
        readings: state dicts in the family's names, by what they are called.
        data: images.

    Raises:
        ValueError: the source holds no decoder, or none that the architecture's autoencoder can take.
    """
    model: Any = converted.model
    decoder = converted.source_decoder()
    if not decoder:
        raise ValueError(f"it holds no decoder, which alone could tell {' from '.join(readings)}")
    images = sample(data, model)
    mae = create_mae(
        converted.arch, recipe=converted.recipe(), **{"in_chans": model.in_chans, **converted.model_args}
    ).eval()
    keep = random_keep(len(images), mae.units, mae.kept, generator=torch.Generator().manual_seed(0))
    losses: dict[str, Tensor] = {}  # [B] each
    for name, state in readings.items():
        encoder = family_of(converted.arch).adapt(converted.native._replace(state=dict(state)), mae.encoder)
        whole = {**{f"encoder.{part}": tensor for part, tensor in encoder.items()}, **decoder}
        check_fits(whole, mae.state_dict(), model=f"the autoencoder of {converted.arch}")
        mae.load_state_dict(whole)
        with torch.inference_mode(), Progress(len(images), "image", what=f"read as {name}") as bar:
            pairs = bar.over(zip(images, keep, strict=True))  # one by one: the models are large
            losses[name] = torch.stack([mae(image[None], row[None]).loss for image, row in pairs])
    best = min(losses, key=lambda name: losses[name].mean().item())
    ahead = int((losses[best] <= torch.stack([*losses.values()]).amin(0)).sum())
    values = ", ".join(f"{loss.mean().item():.4f} read as {name}" for name, loss in losses.items())
    return f"reconstruction loss on {counted(len(images), 'images')}: {values}; {best} is better, on {ahead} of them"


def sample(data: str, model: Any) -> Tensor:
    """SAMPLE images as the model wants them, evenly spaced in the data: [B, C, H, W]."""
    source = open_images(data, channels=model.in_chans)
    transform: Any = create_transform(**data_config(model, model.patch_embed.img_size), is_training=False)
    return torch.stack([transform(image) for image in source.some(min(SAMPLE, len(source)))])
