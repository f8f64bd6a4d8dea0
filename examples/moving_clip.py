"""A clip to look at: a photograph of examples/pictures on its way over a canvas, as moving:DATA draws it for the commands."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hiermim_zoo.data import open_pictures
from hiermim_zoo.moving import Moving

PICTURES = Path(__file__).parent / "pictures"
RATE = 25  # frames a second


def write_clip(folder: Path, what: str, size: tuple[int, int]) -> Path:
    """Write four seconds of video, or, without PyAV, a folder with their frames.

    Args:
        folder: to write into.
        what: class and way, "airplane right".
        size: (height, width) of the canvas.

    Raises:
        ValueError: there is no such class.
    """
    moving = Moving(open_pictures(str(PICTURES)), size)
    if what not in moving.class_to_idx:
        raise ValueError(f"nothing moves like {what!r}; choose among {', '.join(moving.class_to_idx)}")
    with moving.open(moving.targets.index(moving.class_to_idx[what])) as video:
        frames = video.pictures(range(len(video)))
    path = folder / what.replace(" ", "_")
    if importlib.util.find_spec("av") is None:
        path.mkdir(parents=True, exist_ok=True)
        for n, frame in enumerate(frames):
            frame.save(path / f"frame_{n:04d}.png")
        return path

    import av

    folder.mkdir(parents=True, exist_ok=True)
    path = path.with_suffix(".mp4")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path
