"""What ``extract`` makes a row of: which files are meant, and how an image or the middle of a video is read."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data.clips import NATIVE, Clips, clips_of, refuse_videos
from ..data.decoding import SUFFIXES, Form, read_file, size_of
from ..data.images import is_shown
from ..data.parts import by_parts
from ..data.stacks import read_stack, stacked
from ..data.tables import is_table, located, read_table
from ..data.transforms import make_transform
from ..data.videos import Videos, holds_videos, suffixes

MAX_NAMES = 90_000_000  # bytes; safetensors reads no header beyond 100 MB


# ---- which files


def expand(names: Sequence[str]) -> dict[str, list[str]]:
    """The files and folders that names stand for, those of a pattern sorted, those of a table in its order.

    Raises:
        ValueError: a table cannot be read, or names a file that is not there.
    """
    # a file may have a [ in its name
    paths = {name: [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True)) for name in names}
    return {name: located(name, read_table(name)) if is_table(name) else found for name, found in paths.items()}


def find_files(paths: dict[str, list[str]], input_size: tuple[int, ...]) -> list[str]:
    """Files in the order named (those of a folder sorted), each once; files named one by one need no known suffix.

    Args:
        paths: files and folders, by the name that they were given.
        input_size: of the model, which says whether images are wanted or what videos are made of.

    Raises:
        ValueError: a name leads to nothing that the model takes.
    """
    clips = len(input_size) > 3
    endings = SUFFIXES.union(suffixes()) if clips else SUFFIXES
    found: dict[str, str] = {}  # absolute path -> path as named
    for name, known in paths.items():
        files = [file for path in known for file in (files_below(path, endings) if os.path.isdir(path) else [path])]
        if not clips:
            others = [path for path in files or known if Path(path).suffix.lower() not in SUFFIXES]
            refuse_videos({path: holds_videos(path) for path in others})
        if not files:
            raise ValueError(f"{name}: no {'videos or frames' if clips else 'images'} in there")
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def files_below(folder: str, endings: Set[str]) -> list[str]:
    def refuse(error: OSError) -> None:  # os.walk would pass over folders that it may not list
        raise error

    found = (os.path.join(at, name) for at, _, names in os.walk(folder, onerror=refuse) for name in names)
    wanted = (path for path in found if Path(path).suffix.lower() in endings)
    return sorted(path for path in wanted if is_shown(os.path.relpath(path, folder)))


# ---- rows


def rows_of(
    files: list[str], config: dict[str, Any], form: Form, stride: int | None, rate: float | str | None = None
) -> ImageFiles:
    """What the model is shown: images, or the clips in the middle of videos.

    Args:
        form: that images and frames are read in.
        stride: of clips, frames from one that is shown to the next.
        rate: of clips, frames a second that the stride counts, or "native".

    Raises:
        ValueError: images where videos are wanted, a stride or rate of images, or names that are too long.
    """
    _, *frames, _, _ = config["input_size"]
    if not frames:
        refuse_videos({"--frame-stride": stride, "--frame-rate": rate})
        return ImageFiles(files, config, form)
    return MiddleClips(clips_of(Videos(files, form), frames[0], stride, rate), config, form)


class ImageFiles(Dataset[tuple[int, Any]]):
    """Files as (position, [C, H, W]), or (position, reason) where one cannot be read.

    Raises:
        ValueError: their names are too long.
    """

    things = "files"

    def __init__(self, files: list[str], config: dict[str, Any], form: Form) -> None:
        if len(json.dumps(json.dumps(files))) > MAX_NAMES:
            raise ValueError(
                f"the names of {len(files)} files do not fit the header of one safetensors file; write several"
            )
        self.groups = stacked(files, form.stack) if form.stack else []
        self.files, self.form = [group[0] for group in self.groups] or files, form
        self.size: tuple[int, ...] = config["input_size"]
        self.transform = make_transform(**config, is_training=False)

    def __getitem__(self, i: int) -> tuple[int, Any]:
        try:
            return i, self.read(i)
        except Exception as error:  # decoders of damaged files raise whatever comes up
            return i, f"{type(error).__name__}: {error}"

    def read(self, i: int) -> Any:
        image = read_stack(self.groups[i], self.form) if self.groups else read_file(self.files[i], self.form)
        self.check_proportions(*size_of(image))
        return self.transform(image)

    def can_be_tiled(self, i: int) -> bool:
        """Whether an image that is too large to be decoded as a whole is read part by part with ``--tile``."""
        held = by_parts(self.files[i], self.form, lossy=True) if self.form.scale.by_pixel else None
        if held:
            held.close()
        return held is not None

    def about(self) -> dict[str, str]:
        """What the output says of its rows."""
        return {"img_size": f"{self.size[-2]}x{self.size[-1]}"}

    def check_proportions(self, width: int, height: int) -> None:
        """A strip one pixel high becomes a bomb when its short side is resized to the model's."""
        pixels = max(self.size[-2:]) ** 2 * max(width, height) // max(1, min(width, height))
        most = Image.MAX_IMAGE_PIXELS
        if most and pixels > most:
            raise ValueError(f"{width} x {height} pixels are too long a strip; --max-pixels allows it")


class MiddleClips(ImageFiles):
    """Videos as (position, [C, T, H, W]), the clip in the middle of each."""

    things = "videos"

    def can_be_tiled(self, i: int) -> bool:
        return False

    def __init__(self, clips: Clips, config: dict[str, Any], form: Form) -> None:
        super().__init__([clips.name_of(i) for i in range(len(clips))], config, form)
        self.clips = clips

    def read(self, i: int) -> Any:
        [clip], _ = self.clips.read(i)
        self.check_proportions(*size_of(clip[0]))
        return self.transform([clip])[0]

    def about(self) -> dict[str, str]:
        clips = self.clips
        which = {"frames": clips.frames, "frame_stride": clips.stride, "frame_rate": clips.rate}
        return super().about() | {name: f"{value:g}" if value != NATIVE else NATIVE for name, value in which.items()}


def collate(samples: list[tuple[int, Any]]) -> tuple[Tensor | None, list[int], list[tuple[int, str]]]:
    """Images or clips [B, C, (T,) H, W] (None if there are none) and their positions.

    Of those that cannot be read, positions and reasons.
    """
    good = [(i, x) for i, x in samples if isinstance(x, Tensor)]
    images = torch.stack([x for _, x in good]) if good else None
    return images, [i for i, _ in good], [(i, x) for i, x in samples if isinstance(x, str)]
