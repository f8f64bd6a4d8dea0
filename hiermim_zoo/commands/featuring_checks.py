"""What can be wrong with a drawing of features, as far as it can be told without images and weights: all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.clips import refuse_videos
from ..data.transforms import data_config
from ..models.build import input_shape
from ..models.shapes import without_memory
from ..training.checks import check_form
from ..training.distributed import pick_device
from .input_files import missing
from .loading import check_img_size, check_levels, check_model, check_weights, without_weights
from .options.features import FeaturesOptions
from .options.problems import check_all, gathered
from .output_files import check_not_read, check_writable, image_kind

PAGES = (".html", ".htm")
# Arguments with which models of one size take others, in the order in which they are tried.
FLEXIBLE: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})


def problems(said: Mapping[str, Any]) -> list[str]:
    """Lines about options that are right each by itself.

    Args:
        said: options by name, as many as are known.
    """
    return gathered(*checks(FeaturesOptions.unchecked(said)))


def check(options: FeaturesOptions) -> None:
    """Refuse what cannot be drawn before any work is done.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    check_all(*checks(options))


def checks(options: FeaturesOptions) -> list[Callable[[], object]]:
    found: list[Callable[[], object]] = [partial(check_form, vars(options), 0)]
    found.append(partial(missing, options.images or (), "IMAGES"))
    if options.output:
        found.append(partial(check_writable, options.output, f"-o {options.output}"))
        found.append(partial(check_kind, options.output))
        found.append(partial(check_not_read, options.output, f"-o {options.output}", options.images or ()))
    if options.device:
        found.append(partial(pick_device, options.device))
    found += [partial(check_sketch, name, options) for name in options.model or ()]
    return [*found, partial(check_alike, options)]


def check_kind(output: Path) -> None:
    """Refuse an output that is neither a page nor an image.

    Raises:
        ValueError: it is neither.
    """
    if output.suffix.lower() not in PAGES:
        image_kind(output, more=", or a page, like " + output.stem + PAGES[0])


def check_alike(options: FeaturesOptions) -> None:
    """Refuse models of images beside models of clips, which look at different things.

    Raises:
        ValueError: there are both.
    """
    clips: dict[bool, str] = {}
    for name in options.model or ():
        try:
            clips.setdefault(len(input_shape(without_weights(name, {}))) > 3, name)
        except (ValueError, RuntimeError, OSError):
            return  # of which something is said anyway
    if len(clips) > 1:
        raise ValueError(f"--model {clips[True]} sees clips and {clips[False]} sees images: draw them apart")


def check_sketch(name: str, options: FeaturesOptions) -> None:
    """Refuse a model that does not exist or does not go with the options.

    Raises:
        ValueError: with a line for each thing that is wrong.
    """
    check_model(name)
    sketch: Any = without_weights(name, {}).eval()
    channels, *frames, _, _ = input_shape(sketch)
    looks: list[Callable[[], object]] = [partial(check_form, vars(options), channels)]
    if options.pretrained:
        looks.append(partial(check_weights, name))
    if not frames:
        given = {"--frame-stride": options.frame_stride, "--frame-rate": options.frame_rate}
        looks += [partial(refuse_videos, {flag: value}) for flag, value in given.items()]
    looks.append(partial(check_maps, name, sketch, options.levels))
    if options.img_size and flexible(name) is None:
        looks.append(partial(check_img_size, name, sketch, options.img_size))
    check_all(*looks)


def check_maps(name: str, sketch: Any, levels: tuple[int, ...] | None) -> None:
    """Refuse a model without maps, and levels that it does not have.

    Raises:
        ValueError: naming those that it has.
    """
    if not hasattr(sketch, "forward_intermediates"):
        raise ValueError(f"--model {name}: it has no forward_intermediates(), which gives the maps; use another model")
    if levels:
        check_levels(name, sketch, levels)


@torch.no_grad()
def flexible(name: str) -> dict[str, Any] | None:
    """Arguments with which a model takes images of any size; None: there are none.

    It is tried on a higher and a wider image, without weights.
    """
    for kwargs in FLEXIBLE:
        try:
            sketch: Any = without_weights(name, kwargs).eval()
            *_, height, width = data_config(sketch)["input_size"]
            for more in ((64, 0), (0, 128)):
                config = data_config(sketch, (height + more[0], width + more[1]))
                with without_memory():
                    sketch.forward_intermediates(torch.zeros(1, *config["input_size"]), intermediates_only=True)
        except (RuntimeError, AssertionError, ValueError, TypeError):
            continue
        return kwargs
    return None
