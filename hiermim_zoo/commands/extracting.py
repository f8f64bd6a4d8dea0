"""Features of images or videos are computed batch by batch, by one process or several, and written to one file.

The list of files is cut into batches by position, and process r of w takes the batches r, r + w, r + 2w, ... Several
processes (they must share the disk) hence write what one writes, bit by bit, given equal devices and, on CPUs, equal
OMP_NUM_THREADS.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data.readers import readings
from ..data.transforms import data_config
from ..models.build import make_model
from ..progress import Progress
from ..training.distributed import World, gather_objects, processes
from ..training.endings import about_model, warn
from ..training.image_form import form_for
from .extracting_checks import check, check_files
from .extracting_features import complain, features
from .extracting_file import Part, merge, reserve
from .extracting_rows import ImageFiles, collate, expand, find_files, rows_of
from .extracting_tiles import TiledFiles, cutting_of, merge_tiles, write_tiles
from .loading import model_errors, set_img_size
from .options import Outcome
from .options.extract import ExtractOptions
from .options.problems import check_all


def extract(options: ExtractOptions) -> Outcome:
    """Write the features; the result is the path of the file.

    Raises:
        ValueError: model, images or output do not go together, or an image cannot be read.
    """
    text = ""
    check(options)
    with processes(options.device) as world:
        check_all(*check_files(options) if world.first and world.size > 1 else ())
        paths, folder = (expand(options.images), reserve(options.output)) if world.first else ({}, "")
        try:
            folder = gather_objects(folder)[0]
            model = load_model(options).to(world.device)
            side = options.tile or options.img_size
            config = data_config(model, (side, side) if side else None)
            cutting = cutting_of(model, options, config, world.device) if options.tile else None
            files = gather_objects(find_files(paths, config["input_size"]) if world.first else [])[0]
            form = form_for(options, config["input_size"][0])
            rows: Any = TiledFiles(files, config, form, cutting) if cutting else None
            rows = rows or rows_of(files, config, form, options.frame_stride, options.frame_rate)
            write, join = (write_tiles, merge_tiles) if cutting else (write_part, merge)
            parts = gather_objects(write(model, rows, options, Path(folder), world))
            if world.first:
                text = join(parts, rows, options, Path(folder))
                warn(about_model(options.model, options.pretrained))
            gather_objects("done")
        finally:  # in every process: one that fails may be the only one that gets here
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
    return Outcome(options.output, text)


def load_model(options: ExtractOptions) -> Any:
    """The model for inference, set to the size asked for.

    Raises:
        ValueError: there is no such model, or it does not take the size.
    """
    if not options.pretrained:
        torch.manual_seed(options.seed or 0)
    model: Any = make_model(options.model, pretrained=options.pretrained).eval()
    side, flag = (options.tile, "--tile") if options.tile else (options.img_size, "--img-size")
    with model_errors(options.model, f"{flag} {side}"):
        set_img_size(model, side)
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
        bar = stack.enter_context(Progress(sum(map(len, todo)), "image", shown=world.first, leave=True))
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
