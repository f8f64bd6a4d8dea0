"""Features of images or videos are computed batch by batch, by one process or several, and written to one file.

The list of files is cut into batches by position, and process r of w takes the batches r, r + w, r + 2w, ... Several
processes (they must share the disk) hence write what one writes, bit by bit, given equal devices and, on CPUs, equal
OMP_NUM_THREADS.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.readers import readings
from ..data.transforms import data_config
from ..models.build import make_model
from ..training.distributed import World, gather_objects, processes
from ..training.endings import about_model, warn
from ..training.image_form import form_for
from ..training.precision import autocast
from .extracting_file import DTYPES, Part, merge, reserve
from .extracting_rows import ImageFiles, collate, expand, find_files, rows_of
from .loading import model_errors, set_img_size
from .options import Outcome
from .options.extract import ExtractOptions

NEEDED = {  # what is asked for -> the methods of timm's models that give it
    "pooled": ("forward_features", "forward_head"),
    "tokens": ("forward_features",),
    "maps": ("forward_intermediates",),
}


def extract(options: ExtractOptions) -> Outcome:
    """Write the features; the result is the path of the file.

    Raises:
        ValueError: model, images or output do not go together, or an image cannot be read.
    """
    text = ""
    with processes(options.device) as world:
        paths, folder = (expand(options.images), reserve(options.output, options.force)) if world.first else ({}, "")
        try:
            folder = gather_objects(folder)[0]
            model = load_model(options).to(world.device)
            side = options.img_size
            config = data_config(model, (side, side) if side else None)
            files = gather_objects(find_files(paths, config["input_size"]) if world.first else [])[0]
            form = form_for(options, config["input_size"][0])
            rows = rows_of(files, config, form, options.frame_stride, options.frame_rate)
            parts = gather_objects(write_part(model, rows, options, Path(folder), world))
            if world.first:
                text = merge(parts, rows, options, Path(folder))
                warn(about_model(options.model, options.pretrained))
            gather_objects("done")
        finally:  # in every process: one that fails may be the only one that gets here
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
    return Outcome(options.output, text)


def load_model(options: ExtractOptions) -> Any:
    """The model for inference, set to the size asked for.

    Raises:
        ValueError: there is no such model, or it cannot give what is asked for.
    """
    if not options.pretrained:
        torch.manual_seed(options.seed or 0)
    model: Any = make_model(options.model, pretrained=options.pretrained).eval()
    for what in options.what:
        for method in NEEDED[what]:
            if not hasattr(model, method):
                raise ValueError(f"model {options.model!r} has no {method}(), which --what {what} needs")
    with model_errors(options.model, f"--img-size {options.img_size}"):
        set_img_size(model, options.img_size)
    return model


def write_part(model: Any, rows: ImageFiles, options: ExtractOptions, folder: Path, world: World) -> Part:
    """Append the rows of this process's batches to files "RANK.KEY" in ``folder``.

    Raises:
        ValueError: an unreadable image with ``--on-error stop``, the model refuses the images, or a process that reads
            was killed.
    """
    count, step = len(rows.files), options.batch_size
    todo = [
        list(range(start, min(start + step, count))) for start in range(world.rank * step, count, world.size * step)
    ]
    pin = world.device.type == "cuda"
    loader = DataLoader(rows, batch_sampler=todo, num_workers=options.workers, collate_fn=collate, pin_memory=pin)
    part = Part([], {})
    with ExitStack() as stack:
        hidden = None if world.first else True  # None: unless stderr is a terminal
        bar = stack.enter_context(tqdm(total=sum(map(len, todo)), unit="image", disable=hidden))
        written: dict[str, Any] = {}
        for images, readable, unreadable in readings(loader):
            complain(rows, unreadable, options.on_error)
            part.batches.append(readable)
            found = {} if images is None else features(model, images.to(world.device), options)
            for key, tensor in found.items():
                if key not in written:
                    written[key] = stack.enter_context(open(folder / f"{world.rank}.{key}", "wb"))
                    part.shapes[key] = list(tensor.shape[1:])
                written[key].write(tensor.contiguous().view(torch.uint8).numpy().data)  # numpy has no bfloat16
            bar.update(len(readable) + len(unreadable))
    return part


def complain(rows: ImageFiles, unreadable: list[tuple[int, str]], on_error: str) -> None:
    """Name the images that cannot be read.

    Raises:
        ValueError: naming the first, where ``on_error`` is "stop".
    """
    for i, reason in unreadable:
        message = f"{rows.files[i]} cannot be read ({' '.join(reason.split())})"
        if on_error == "stop":
            raise ValueError(f"{message}; --on-error skip leaves such files out")
        tqdm.write(f"skipped: {message}", file=sys.stderr)


@torch.inference_mode()
def features(model: Any, images: Tensor, options: ExtractOptions) -> dict[str, Tensor]:
    """Features of a batch, on the CPU.

    Args:
        images: [B, C, H, W], or clips [B, C, T, H, W].

    Returns:
        "pooled" [B, D], "tokens" [B, N, D] (or as the model has them), "map0" [B, D, h, w], "map1", ...; maps of clips
        are [B, D, t, h, w].

    Raises:
        ValueError: the model refuses the images, or returns what cannot be stored.
    """
    found: dict[str, Tensor] = {}
    task = f"a batch of shape {list(images.shape)}"
    with model_errors(options.model, task), autocast(images.device, options.amp):
        if "pooled" in options.what or "tokens" in options.what:
            tokens = model.forward_features(images)
            if "pooled" in options.what:
                found["pooled"] = model.forward_head(tokens, pre_logits=True)
            if "tokens" in options.what:
                found["tokens"] = tokens
        if "maps" in options.what:
            levels = sorted(set(options.levels)) if options.levels else None
            maps = model.forward_intermediates(images, indices=levels, intermediates_only=True, output_fmt="NCHW")
            found.update((f"map{level}", x) for level, x in zip(levels or range(len(maps)), maps, strict=True))
    return {key: storable(key, x, options.dtype) for key, x in found.items()}


def storable(key: str, x: Any, dtype: str) -> Tensor:
    """A feature as it is stored.

    Raises:
        ValueError: it is no tensor, or does not fit the type.
    """
    if not isinstance(x, Tensor) or (key == "pooled" and x.ndim != 2):
        raise ValueError(
            f"the model gives {key} features of shape {list(getattr(x, 'shape', []))}, which cannot be stored as such"
        )
    x = x.to(DTYPES[dtype])
    if not x.isfinite().all():
        raise ValueError(
            f"{key} features are not finite in {dtype}; try --dtype bfloat16 or float32, and --amp bf16 or none"
        )
    return x.cpu()
