"""Images or clips go through a masked autoencoder, and what it makes of them is drawn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.atomic import replacing
from ..checkpoints.configs import IMAGES_KEY
from ..data.clips import Clips, clips_of, refuse_videos
from ..data.decoding import Form, Image_, read_file
from ..data.stacks import read_stack, stacked
from ..data.tables import is_table, located, read_table
from ..data.transforms import make_transform
from ..data.videos import Videos, files_in, is_video
from ..mae import MaskedAutoencoder, create_mae
from ..masking import random_keep
from ..models.shapes import without_memory
from ..text import counted
from ..training.checks import check_form
from ..training.distributed import restored
from ..training.drawing import preprocessing, sheet, shown_of
from ..training.endings import about_no_checkpoint, about_steps, warn
from ..training.image_form import form_of, said_in
from .extracting_rows import find_files
from .input_files import missing
from .options import Outcome
from .options.pretrain import PIXELS
from .options.problems import BadOptions, gathered
from .options.reconstruct import ReconstructOptions
from .output_files import check_not_read, check_writable, image_kind

RANDOM = "RANDOM WEIGHTS"
MOST = 200  # images of a drawing, each of which is a row of it


def reconstruct(options: ReconstructOptions) -> Outcome:
    """Draw; the result is the path of the drawing.

    Raises:
        ValueError: model, images or output do not go together.
    """
    if gathered(*quick_checks(options)):
        raise BadOptions(problems(vars(options)))
    kind, mae = image_kind(options.output), autoencoder_of(options).eval()
    said = said_in(options.checkpoint) if options.checkpoint else {}
    beside = said.get(IMAGES_KEY, {})
    form = form_of(options, mae.in_chans, beside)
    shown = shown_of(form, options.show_bands)
    videos = len(mae.input_size) > 2
    paths = [Path(file) for path in options.images for file in files_named(str(path), videos)]
    images = load_images(paths, preprocessing(mae), form, options.frame_stride, options.frame_rate)
    keep = random_keep(len(images), mae.units, mae.kept, generator=torch.Generator().manual_seed(options.seed))
    with torch.inference_mode():
        out = mae(images, keep)
    title = f"{options.model}, {options.checkpoint or RANDOM}"
    drawn = sheet(mae, images, out, title, shown, options.statistics)
    with replacing(options.output) as part:
        drawn.save(part, format=kind)
    start = options.checkpoint
    warn(about_steps(start, said) if start else about_no_checkpoint(options.model))
    things = "images" if images.ndim == 4 else "clips"
    loss = f"loss {out.loss.item():.4f} on what is hidden of {counted(len(images), things)}"
    note = "" if start else f"; {RANDOM}, so the prediction means nothing"
    return Outcome(options.output, f"wrote {options.output}: {loss}{note}")


def autoencoder_of(options: ReconstructOptions) -> MaskedAutoencoder:
    """The masked autoencoder, with the weights of its folder or random ones.

    Raises:
        ValueError: there is none of that name, it does not go with the folder or the options, or predicts no pixels.
    """
    mae = create_mae(
        options.model,
        checkpoint=options.checkpoint,
        mask_ratio=options.mask_ratio,
        norm_pix=False if options.raw_pixels else None,
    )
    if (target := mae.recipe.target) != PIXELS:
        raise ValueError(f"--checkpoint {options.checkpoint} predicts {target}, no pixels, so there is nothing to draw")
    return mae


# ---- what can be wrong


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    options = ReconstructOptions.unchecked(said)
    return gathered(*quick_checks(options), partial(check_autoencoder, options))


def quick_checks(options: ReconstructOptions) -> list[Callable[[], object]]:
    """Checks for which no weights are read."""
    found: list[Callable[[], object]] = [partial(check_form, vars(options), 0)]
    found.append(partial(missing, [str(path) for path in options.images or ()], "IMAGES"))
    if options.output:
        called = f"-o {options.output}"
        found += [partial(image_kind, options.output), partial(check_writable, options.output, called)]
        found.append(partial(check_not_read, options.output, called, options.images or ()))
    if options.checkpoint and not options.checkpoint.is_dir():
        found.append(partial(missing, [str(options.checkpoint)], "--checkpoint"))
    return found if options.checkpoint else [*found, partial(check_autoencoder, options)]


def check_autoencoder(options: ReconstructOptions) -> None:
    """Refuse an autoencoder that cannot be had, and what it does not take. Weights are read only of a folder.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    if not options.model:
        return
    there = options.checkpoint is not None and options.checkpoint.is_dir()
    options = options if there else options.having(checkpoint=None)  # of a folder that is lacking something is said
    made: list[MaskedAutoencoder] = []

    def make(shown: ReconstructOptions) -> None:
        with restored(), nullcontext() if there else without_memory():
            made.append(autoencoder_of(shown))

    lines = gathered(partial(make, options))
    if lines and options.mask_ratio is not None:  # the others are looked at without it
        gathered(partial(make, options.having(mask_ratio=None)))
    for mae in made:
        lines += gathered(partial(check_form, vars(options), mae.in_chans))
        if len(mae.input_size) == 2:
            given = {"--frame-stride": options.frame_stride, "--frame-rate": options.frame_rate}
            lines += gathered(*(partial(refuse_videos, {name: value}) for name, value in given.items()))
    if lines:
        raise BadOptions(lines)


def files_named(path: str, videos: bool) -> list[str]:
    """The files of a table, or the images below a folder; else what is named itself.

    Args:
        videos: are wanted; frames may lie in a folder, which is then one of them.

    Raises:
        ValueError: it cannot be read, holds no images, or names a file that is not there.
    """
    if is_table(path):
        return located(path, read_table(path))
    return find_files({path: [path]}, (0, 0, 0)) if os.path.isdir(path) and not videos else [path]


def load_images(
    paths: Sequence[Path], config: dict[str, Any], form: Form, stride: int | None, rate: float | str | None = None
) -> Tensor:
    """Images [B, C, H, W], or the clips in the middle of videos [B, C, T, H, W].

    Args:
        config: the preprocessing of the model.
        form: that images and frames are read in.
        stride: of clips, frames from one that is shown to the next.
        rate: of clips, frames a second that the stride counts, or "native".

    Raises:
        ValueError: one cannot be read, or is not what the model takes, or there are too many images.
    """
    transform = make_transform(**config, is_training=False)
    _, *frames, _, _ = config["input_size"]
    if not frames:
        refuse_videos({"--frame-stride": stride, "--frame-rate": rate})
        groups = stacked([str(path) for path in paths], form.stack) if form.stack else []
        if (count := len(groups or paths)) > MOST:
            raise ValueError(f"{count} images are too many for one drawing; name at most {MOST}")
        if groups:
            return torch.stack([transform(read_stack(group, form)) for group in groups])
        return torch.stack([transform(load_image(path, form)) for path in paths])
    videos = Videos((file for path in paths for file in files_in(str(path))), form)
    clips = clips_of(videos, frames[0], stride, rate)
    return torch.stack([transform([load_clip(clips, i)])[0] for i in range(len(clips))])


def load_image(path: Path, form: Form) -> Image_:
    """An image.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return read_file(path, form)
    except Exception as error:  # decoders of damaged files raise whatever comes up
        refuse_videos({str(path): path.exists() and is_video(str(path))})
        raise ValueError(f"{path} cannot be read as an image ({error})") from error


def load_clip(clips: Clips, index: int) -> list[Image_]:
    """The frames of the clip in the middle of a video.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return clips.read(index)[0][0]
    except Exception as error:  # decoders of damaged files raise whatever comes up
        raise ValueError(f"{clips.name_of(index)} cannot be read as a video ({error})") from error
