"""The kinds of data: what DATA of a command may be, and which class opens it.

A new kind is one class (see :mod:`hiermim_zoo.data.source`) and one row of :data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .clips import clips_of, refuse_videos
from .decoding import Form
from .images import Digits, FolderImages, HubImages, TimmStream, TorchvisionImages, images_at
from .source import Request, Source, VideoSet
from .stacks import Stacks
from .synthetic import MOVING, MovingImages
from .tables import TableImages, is_table
from .videos import VideoFolder, holds_videos, is_video

# The last character of a name in KINDS that is only the beginning of DATA, and what comes behind it.
BEHIND = {":": "DATA", "/": "NAME"}


class Kind(NamedTuple):
    """What opens data of one kind: images for models of images, videos for models of video, or either."""

    images: Callable[[str, Request], Source] | None = None
    videos: Callable[[str, Request], VideoSet] | None = None
    rooted: bool = False  # it is looked for in a root folder


def open_images(spec: str, *, channels: int = 3, form: Form | None = None, **request: Any) -> Source:
    """Images with labels.

    Args:
        spec: a folder (of class folders, or of anything with images in it), a tar of such a folder, or a name that
            ``KINDS`` has: "digits", or one that timm's create_dataset knows ("hfds/...", "wds/...", "torch/...").
        channels: of the images, where no form is given.
        form: that they are wanted in.
        **request: ``root``, ``split``, ``seed``, ``training``; see :class:`hiermim_zoo.data.source.Request`.

    Raises:
        ValueError: there is no such data, or no image in it.
    """
    return _images(spec, Request(form or Form(channels), **request))


def open_source(
    spec: str,
    input_size: tuple[int, ...],
    *,
    form: Form | None = None,
    stride: int | None = None,
    rate: float | str | None = None,
    repeat: int | None = None,
    views: Sequence[int] | None = None,
    **request: Any,
) -> Source:
    """Images or clips, whatever the model takes.

    Args:
        spec: DATA of a command: what ``open_images`` takes, or for clips a folder of videos or "moving:DATA".
        input_size: of the model: (channels, height, width) or (channels, frames, height, width).
        form: that images and frames are wanted in; its channels are the model's.
        stride: of clips alone, like the next three: frames from one shown to the next.
        rate: frames a second that the stride counts, or "native": those of the video.
        repeat: clips of a video each time it is opened for training.
        views: in evaluation, clips of a video, and crops of each.
        **request: ``root``, ``split``, ``seed``, ``training``; see :class:`hiermim_zoo.data.source.Request`.

    Raises:
        ValueError: there is no such data, or it is not what the model takes.
    """
    channels, *frames, height, width = input_size
    wanted = Request(replace(form or Form(channels), channels=channels), (height, width), **request)
    if frames:
        return clips_of(_videos(spec, wanted), frames[0], stride, rate, repeat, views)
    refuse_videos({spec: kind_of(spec).images is None})
    given = {"--frame-stride": stride, "--frame-rate": rate, "--repeat": repeat not in (None, 1), "--views": views}
    refuse_videos(given)
    return _images(spec, wanted)


def kind_of(spec: str) -> Kind:
    """The row that opens DATA: that of its name or beginning, else that of paths.

    "wds/x" may be a name or a path; what lies there goes before names.
    """
    names = [name for name in KINDS if (spec.startswith(name) if name[-1:] in BEHIND else spec == name)]
    name = max(names, key=len, default="")
    return KINDS["" if name.endswith("/") and Path(spec).exists() else name]


def _images(spec: str, request: Request) -> Source:
    kind = kind_of(spec)
    refuse_videos({spec: kind.images is None})
    assert kind.images
    return kind.images(spec, request)


def _videos(spec: str, request: Request) -> VideoSet:
    kind = kind_of(spec)
    if kind.videos is None:
        raise _of_images(spec)
    return kind.videos(spec, request)


def _of_images(spec: str) -> ValueError:
    return ValueError(f"{spec} holds images, and the model takes videos: {MOVING}{spec} makes them move")


def _listed(names: Iterable[str]) -> list[str]:
    """Names of KINDS as users type them."""
    return [name + BEHIND.get(name[-1], "") for name in names if name]


# ---- rows that are more than a class


def _moving(spec: str, request: Request) -> VideoSet:
    assert request.size
    return MovingImages(_images(spec.removeprefix(MOVING), request), request.size)


def check_there(spec: str) -> None:
    """Refuse images of which there is nothing to open.

    Raises:
        ValueError: naming what there could be.
    """
    kind = kind_of(spec)
    refuse_videos({spec: kind.images is None})
    if kind is KINDS[""] and not Path(spec).exists():
        names = ", ".join(_listed(name for name, kind in KINDS.items() if kind.images))
        raise ValueError(f"{spec}: no such folder, tar or table, and none of the names {names}")


def check_root(root: str | None, *specs: str | None) -> None:
    """Refuse a root folder that none of some data is looked for in.

    Raises:
        ValueError: naming it.
    """
    said = [spec for spec in specs if spec]
    read = [spec.removeprefix(MOVING) for spec in said]
    if root is None or not said or any(kind_of(spec).rooted or is_table(spec) for spec in read):
        return
    names = ", ".join(_listed(name for name, kind in KINDS.items() if kind.rooted))
    raise ValueError(
        f"--data-dir {root}: {' and '.join(said)} is not looked for there; {names} and tables of files are"
    )


def _images_at(path: str, request: Request) -> Source:
    check_there(path)
    try:
        source: Source = TableImages(path, request) if is_table(path) else images_at(path, request)
    except ValueError:
        refuse_videos({path: holds_videos(path)})
        raise
    if not request.form.stack:
        return source
    if not isinstance(source, (FolderImages, TableImages)):
        raise ValueError(f"{path}: --stack joins files of a folder or table")
    return Stacks(source)


def _videos_at(path: str, request: Request) -> VideoSet:
    if Path(path).is_dir():
        return VideoFolder(path, request.split, request.form)
    if not Path(path).exists():
        names = " or ".join(_listed(name for name, kind in KINDS.items() if kind.videos))
        raise ValueError(f"{path}: no such folder of videos, and no {names}")
    if is_video(path):
        raise ValueError(f"{path} is a single video: name the folder around it")
    raise _of_images(path)


KINDS: dict[str, Kind] = {  # what DATA is, or begins with
    "digits": Kind(images=lambda spec, request: Digits(request.split, request.form)),
    MOVING: Kind(videos=_moving),
    "torch/": Kind(images=TorchvisionImages, rooted=True),
    "hfds/": Kind(images=HubImages, rooted=True),
    "hfids/": Kind(images=TimmStream, rooted=True),
    "tfds/": Kind(images=TimmStream, rooted=True),
    "wds/": Kind(images=TimmStream, rooted=True),
    "": Kind(images=_images_at, videos=_videos_at),  # a path
}
