"""A clip to look at: a photograph of examples/pictures on its way over a canvas, as the commands' moving:DATA is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hiermim_zoo.data.kinds import open_images
from hiermim_zoo.data.synthetic import MovingImages

IMAGES = Path(__file__).parent / "pictures"
RATE = 30  # frames a second, which strides of clips count at


def write_clip(folder: Path, what: str, size: tuple[int, int]) -> Path:
    """Write four seconds of video, or, without PyAV, a folder with their frames.

    Args:
        folder: to write into.
        what: class and way, "airplane right".
        size: (height, width) of the canvas.

    Raises:
        ValueError: there is no such class.
    """
    moving = MovingImages(open_images(str(IMAGES)), size)
    if what not in moving.class_names:
        raise ValueError(f"nothing moves like {what!r}; choose among {', '.join(moving.class_names)}")
    with moving.open(moving.labels.index(moving.class_names.index(what))) as video:
        frames = video.frames(range(len(video)))
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
