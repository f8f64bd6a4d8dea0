"""What models find in images or clips is computed, and drawn on a sheet or written into a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..checkpoints.atomic import replacing
from ..data.clips import clips_of, refuse_videos
from ..data.decoding import Form, Image_, size_of
from ..data.stacks import read_stack, stacked
from ..data.transforms import data_config, make_transform
from ..data.videos import Videos
from ..models.build import input_shape, make_model
from ..progress import Progress
from ..text import counted
from ..training.distributed import pick_device
from ..training.drawing import Shown, in_colours, shown_of
from ..training.endings import about_model, warn
from ..training.image_form import form_for
from ..training.precision import autocast
from .extracting_rows import expand, find_files
from .featuring_checks import PAGES, check, flexible
from .featuring_page import page
from .featuring_sheet import sheet
from .featuring_views import Level, Seen, View
from .loading import model_errors, set_img_size
from .options import Outcome
from .options.features import FeaturesOptions
from .output_files import image_kind
from .reconstructing import load_clip, load_image

MOST = 60  # images, or times of clips, of a drawing
LARGEST = 640  # pixels of the longer side that models see, unless --img-size says more
PHOTOGRAPH = 640  # pixels of the longer side of an image as it is drawn


def draw(options: FeaturesOptions) -> Outcome:
    """Draw; the result is the path of the drawing.

    Raises:
        ValueError: models, images or output do not go together, or an image cannot be read.
    """
    check(options)
    seen = looked(options)
    point = (options.point[0], options.point[1]) if options.point else None
    with replacing(options.output) as part:
        if options.output.suffix.lower() in PAGES:
            part.write_text(page(seen, point), encoding="utf-8")
        else:
            sheet(seen, point).save(part, format=image_kind(options.output))
    lines = [line for name in options.model for line in about_model(name, options.pretrained)]
    warn(lines)
    return Outcome(options.output, f"wrote {options.output}: {described(seen)}")


def described(seen: Seen) -> str:
    """What was drawn, in words."""
    said = []
    for name, random in seen.random.items():
        maps = (list(level.maps[0].shape) for level in seen.levels if level.model == name)
        said.append(f"{name}{' (RANDOM WEIGHTS)' if random else ''} {', '.join(map(str, maps))}")
    things = counted(len(seen.views), "times of clips" if seen.views[0].of_clip else "images")
    return f"{things}; maps of the first: {'; '.join(said)}"


def looked(options: FeaturesOptions) -> Seen:
    """All images through all models.

    Raises:
        ValueError: see :func:`draw`.
    """
    device = pick_device(options.device)
    views: list[View] = []
    levels: list[Level] = []
    random = {name: bool(about_model(name, options.pretrained)) for name in options.model}
    for name in options.model:
        kwargs = flexible(name)
        if not options.pretrained:
            torch.manual_seed(options.seed or 0)
        model: Any = make_model(name, pretrained=options.pretrained, **(kwargs or {})).eval()
        if kwargs is None:
            with model_errors(name, f"--img-size {options.img_size}"):
                set_img_size(model, options.img_size)
        config = data_config(model)
        form = form_for(options.having(model=name), config["input_size"][0])
        items = read(options, form, input_shape(model))
        maps = maps_of(name, model.to(device), items, options, kwargs is not None)  # [item][level]
        if not views:
            shown = shown_of(form, options.show_bands)
            views = [view for item, own in zip(items, maps, strict=True) for view in views_of(item, own, config, shown)]
        for n in range(len(maps[0])):
            times = [x for own in maps for x in in_time(own, n)]
            if len(times) != len(views):
                raise ValueError(
                    f"--model {name} sees {len(times)} times, {options.model[0]} {len(views)}: draw them apart"
                )
            number = sorted(set(options.levels))[n] if options.levels else n
            levels.append(Level(name, number, int(model.feature_info[number]["reduction"]), times))
    return Seen(views, levels, random)


@torch.inference_mode()
def maps_of(
    name: str, model: Any, items: Sequence[Item], options: FeaturesOptions, any_size: bool
) -> list[list[Tensor]]:
    """Maps [C, h, w], or [C, t, h, w] of clips, float32 on the CPU: for each item those of the levels.

    Args:
        any_size: the model takes images of any size, which then keep their proportions.

    Raises:
        ValueError: the model refuses an image, or what it gives is not finite.
    """
    config, device = data_config(model), next(model.parameters()).device
    own = config["input_size"][-2:]
    step = stride_of(model)
    levels = sorted(set(options.levels)) if options.levels else None
    made = []
    with Progress(len(items), "image", what=name) as bar:
        for item in bar.over(items):
            size = size_of(item.frames[0])
            longer = options.img_size or min(max(max(size), max(own)), max(LARGEST, max(own)))
            seen = fitted_size(size, longer, step) if any_size else own if not options.img_size else (longer, longer)
            frames = [resizing(config, seen)(frame) for frame in item.frames]
            x = torch.stack(frames, dim=1) if item.numbers else frames[0]
            with model_errors(name, f"an image of {seen[1]} x {seen[0]} pixels"), autocast(device, options.amp):
                maps = model.forward_intermediates(
                    x[None].to(device), indices=levels, intermediates_only=True, output_fmt="NCHW"
                )
            made.append([level[0].float().cpu() for level in maps])
            if not all(level.isfinite().all() for level in made[-1]):
                raise ValueError(f"--model {name}: its features of {item.name} are not finite; try --amp none")
    return made


def stride_of(model: Any) -> int:
    """Pixels that sides of images are made a multiple of, so that the maps cover them."""
    return max(int(info["reduction"]) for info in model.feature_info)


def in_time(maps: Sequence[Tensor], level: int) -> list[Tensor]:
    """The maps [C, h, w] of one level at all times of its clip; an image has one time."""
    x = maps[level]
    if x.ndim == 3:
        return [x]
    times = max(one.shape[1] for one in maps)
    return [x[:, n * x.shape[1] // times] for n in range(times)]


# ---- images


class Item(NamedTuple):
    """An image, or the frames of a clip."""

    name: str
    frames: list[Image_]
    numbers: list[int]  # of the frames; empty of an image


def read(options: FeaturesOptions, form: Form, shape: tuple[int, ...]) -> list[Item]:
    """Images, or clips from the middle of videos.

    Args:
        shape: of the model's input.

    Raises:
        ValueError: one cannot be read, or there are too many.
    """
    _, *frames, _, _ = shape
    files = find_files(expand(options.images), shape)
    if frames:
        clips = clips_of(Videos(files, form), frames[0], options.frame_stride, options.frame_rate)
        check_count(len(clips) * frames[0], "frames of clips")
        return [Item(clips.name_of(i), load_clip(clips, i), list(range(frames[0]))) for i in range(len(clips))]
    refuse_videos({"--frame-stride": options.frame_stride, "--frame-rate": options.frame_rate})
    groups = stacked(files, form.stack) if form.stack else [[file] for file in files]
    check_count(len(groups), "images")
    read_one = read_stack if form.stack else (lambda group, form: load_image(Path(group[0]), form))
    return [Item(group[0], [read_one(group, form)], []) for group in groups]


def check_count(count: int, things: str) -> None:
    """Refuse more than a drawing has room for.

    Raises:
        ValueError: there are more.
    """
    if count > MOST:
        raise ValueError(f"{count} {things} are too many for one drawing; name at most {MOST}")


def fitted_size(size: tuple[int, int], longer: int, step: int = 1) -> tuple[int, int]:
    """(height, width) of an image whose longer side has ``longer`` pixels, each a multiple of ``step``."""
    width, height = (max(step, round(side * longer / max(size) / step) * step) for side in size)
    return height, width


def resizing(config: dict[str, Any], size: tuple[int, int]) -> Any:
    """The preprocessing of a model, of whole images made into one of this height and width."""
    channels = config["input_size"][0]
    whole = {"input_size": (channels, *size), "crop_pct": 1.0, "crop_mode": "squash"}
    return make_transform(**{**config, **whole}, is_training=False)


def views_of(item: Item, maps: Sequence[Tensor], config: dict[str, Any], shown: Shown) -> list[View]:
    """How an image, or the times of a clip, are drawn beside the features: the first frame of those of each time.

    Args:
        maps: of the item, by level.
    """
    size = size_of(item.frames[0])
    transform = resizing(config, fitted_size(size, PHOTOGRAPH))
    times = len(in_time(maps, 0))
    views = []
    for n in range(times):
        frame = n * len(item.frames) // times
        name = f"{item.name}, frame {item.numbers[frame]}" if item.numbers else item.name
        views.append(View(name, size, photograph(transform(item.frames[frame]), config, shown), item.numbers != []))
    return views


def photograph(x: Tensor, config: dict[str, Any], shown: Shown) -> Image.Image:
    """A normalised image [C, H, W] as people see it."""
    colours = in_colours(x[None], config, shown)[0]
    return Image.fromarray((colours * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
