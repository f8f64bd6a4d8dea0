"""Write the features that a model finds in pictures or videos to a safetensors file.

    python -m hiermim_zoo.extract PICTURES... --model hivit_base -o features.safetensors
    python -m hiermim_zoo.extract VIDEOS... --model hiera_base_video -o features.safetensors
    torchrun --nproc-per-node 8 -m hiermim_zoo.extract PICTURES... --model hivit_base -o features.safetensors

Row i of every tensor belongs to the i-th name of the JSON list that the file's metadata holds under "files". With a model of
video it is of the clip in the middle of a file of video or of a folder of frames, which is called by the folder.

The list of files is cut into batches by position, and process r of w takes the batches r, r + w, r + 2w, ... Each appends its
rows to files in a folder beside the output, so nothing grows in memory; the first process then strings the batches together in
order. Several processes (they must share the disk) hence write what one writes, bit by bit, given equal devices and, on CPUs,
equal OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import glob
import json
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .cli import AMP, at_least, make_model, run
from .clips import STRIDE, Clips, refuse_videos
from .data import MODES, data_config, make_transform
from .distributed import share, start, stop
from .version import __version__
from .videos import Videos, holds_videos, suffixes

NEEDED = {  # what is asked for -> the methods of timm's models that give it
    "pooled": ("forward_features", "forward_head"),
    "tokens": ("forward_features",),
    "maps": ("forward_intermediates",),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # in safetensors' words
Image.init()
PICTURES = frozenset(
    ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
)  # some, PIL only writes
MAX_NAMES = 90_000_000  # bytes; safetensors reads no header beyond 100 MB


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    world = start(args.device)
    args.device = world.device
    paths, parts = (expand(args.images), reserve(args.output, args.force)) if world.first else ({}, "")
    try:
        parts = share(parts)[0]
        model = load_model(args).to(args.device)
        config = data_config(model, args.img_size and (args.img_size, args.img_size))
        files = share(find_files(paths, config["input_size"]) if world.first else [])[0]
        pictures = rows_of(files, config, args.frame_stride)
        logs = share(extract(model, pictures, args, Path(parts), world.rank, world.size))
        if world.first:
            print(merge(logs, pictures, args, Path(parts)))
        share("done")
    finally:  # in every process: one that fails may be the only one that gets here
        if parts:
            shutil.rmtree(parts, ignore_errors=True)
    stop()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hiermim_zoo.extract", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        help="files, folders (with all below; links to folders are not followed), patterns (** for any depth)",
    )
    add("--model", required=True, metavar="NAME", help="ARCH, ARCH.TAG, local-dir:DIR or hf-hub:ORG/NAME; any model of timm")
    add("-o", "--output", required=True, type=Path, metavar="FILE", help="safetensors file to write")
    add("--force", action="store_true", help="replace an existing file")
    add("--what", nargs="+", action="extend", choices=NEEDED, help="pooled features (default), last tokens, feature maps")
    add("--levels", nargs="+", action="extend", type=at_least(0), metavar="L", help="of the maps, 0 the finest (default: all)")
    add("--img-size", type=at_least(1), metavar="N", help="feed N x N pixels (default: what the model's configuration says)")
    apart = f"with a model of video: frames of a video from one that is shown to the next (default: {STRIDE})"
    add("--frame-stride", type=at_least(1), metavar="N", help=apart)
    add("--batch-size", type=at_least(1), default=64, metavar="N", help="pictures fed at once (default: 64)")
    add("--workers", type=at_least(0), default=min(4, os.cpu_count() or 1), metavar="N", help="processes that read pictures")
    add("--device", help="cuda, cuda:1, cpu, ... (default: cuda where there is one; with torchrun, one each)")
    add("--amp", choices=AMP, default="none", help="compute in mixed precision")
    add("--dtype", choices=DTYPES, default="float32", help="of the tensors written")
    add("--on-error", choices=("skip", "stop"), default="stop", help="at a picture that cannot be read (skip: it gets no row)")
    add("--no-pretrained", dest="pretrained", action="store_false", help="random weights, to try things out")
    add("--seed", type=at_least(0), metavar="N", help="of the random weights with --no-pretrained (default: 0)")
    args = parser.parse_args(argv)
    args.what = args.what or ["pooled"]
    if args.levels and "maps" not in args.what:
        raise ValueError("--levels chooses among feature maps: add --what maps")
    if args.seed is not None and args.pretrained:
        raise ValueError("--seed is of the random weights: add --no-pretrained")
    args.levels = sorted(set(args.levels)) if args.levels else None
    return args


# ---- what can be refused before any work is done


def expand(names: Sequence[str]) -> dict[str, list[str]]:
    """The files and folders that names stand for, those of a pattern sorted.

    Raises:
        ValueError: a name leads to nothing.
    """
    # a file may have a [ in its name
    paths = {name: [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True)) for name in names}
    for name in (name for name, found in paths.items() if not found):
        raise ValueError(f"{name}: no such file or folder")
    return paths


def find_files(paths: dict[str, list[str]], input_size: tuple[int, ...]) -> list[str]:
    """Files in the order named (those of a folder sorted), each once; files named one by one need no known suffix.

    Args:
        paths: files and folders, by the name that they were given.
        input_size: of the model, which says whether pictures are wanted or what videos are made of.

    Raises:
        ValueError: a name leads to nothing that the model takes.
    """
    clips = len(input_size) > 3
    endings = PICTURES.union(suffixes()) if clips else PICTURES
    found: dict[str, str] = {}  # absolute path -> path as named
    for name, known in paths.items():
        files = [file for path in known for file in (files_below(path, endings) if os.path.isdir(path) else [path])]
        if not clips:
            others = [path for path in files or known if Path(path).suffix.lower() not in PICTURES]
            refuse_videos({path: holds_videos(path) for path in others})
        if not files:
            raise ValueError(f"{name}: no {'videos or frames' if clips else 'pictures'} in there")
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def files_below(folder: str, endings: Set[str]) -> list[str]:
    def refuse(error: OSError) -> None:  # os.walk would pass over folders that it may not list
        raise error

    tree = os.walk(folder, onerror=refuse)
    return sorted(os.path.join(at, name) for at, _, names in tree for name in names if Path(name).suffix.lower() in endings)


def reserve(output: Path, force: bool) -> str:
    """Make a folder beside the output, which proves that the output can be written.

    Raises:
        ValueError: it cannot, or must not.
    """
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file")
    if output.exists() and not force:
        raise ValueError(f"{output} exists; use --force to replace it")
    try:
        return tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".parts", dir=output.absolute().parent)
    except OSError as error:
        raise ValueError(f"{output} cannot be written: {error.strerror}") from error


# ---- the model and its pictures


@contextmanager
def asking(name: str, what: str) -> Iterator[None]:
    """Complaints of a model's code become one line (HIERMIM_DEBUG=1 shows where they come from)."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"model {name!r} fails on {what}: {error}") from error


def load_model(args: argparse.Namespace) -> Any:
    """The model for inference, set to the size asked for.

    Raises:
        ValueError: there is no such model, or it cannot give what is asked for.
    """
    if not args.pretrained:
        torch.manual_seed(args.seed or 0)
    model: Any = make_model(args.model, pretrained=args.pretrained).eval()
    for what in args.what:
        for method in NEEDED[what]:
            if not hasattr(model, method):
                raise ValueError(f"model {args.model!r} has no {method}(), which --what {what} needs")
    if args.img_size and hasattr(model, "set_input_size"):  # most plain ViTs take no other size without
        with asking(args.model, f"--img-size {args.img_size}"):
            model.set_input_size((args.img_size, args.img_size))
    return model


def rows_of(files: list[str], config: dict[str, Any], stride: int | None) -> Pictures:
    """What the model is shown: pictures, or the clips in the middle of videos.

    Args:
        stride: of clips, frames of a video from one that is shown to the next.

    Raises:
        ValueError: pictures where videos are wanted, a stride of pictures, or names that are too long.
    """
    channels, *frames, _, _ = config["input_size"]
    if not frames:
        refuse_videos({"--frame-stride": stride})
        return Pictures(files, config)
    return Middles(Clips(Videos(files, MODES[channels]), frames[0], stride or STRIDE), config)


class Pictures(Dataset[tuple[int, Any]]):
    """Files as (position, [C, H, W]), or (position, reason) where one cannot be read.

    Raises:
        ValueError: their names are too long.
    """

    things = "files"

    def __init__(self, files: list[str], config: dict[str, Any]) -> None:
        if len(json.dumps(json.dumps(files))) > MAX_NAMES:
            raise ValueError(f"the names of {len(files)} files do not fit the header of one safetensors file; write several")
        self.files = files
        self.size: tuple[int, ...] = config["input_size"]
        self.transform = make_transform(**config, is_training=False)

    def __getitem__(self, i: int) -> tuple[int, Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                return i, self.read(i)
        except Exception as error:  # decoders of damaged files raise whatever comes up
            return i, f"{type(error).__name__}: {error}"

    def read(self, i: int) -> Any:
        with Image.open(self.files[i]) as file:
            self.check_proportions(*file.size)
            picture = file.convert(MODES[self.size[0]])  # reads the pixels
        return self.transform(picture)

    def about(self) -> dict[str, str]:
        """What the output says of its rows."""
        return {"img_size": f"{self.size[-2]}x{self.size[-1]}"}

    def check_proportions(self, width: int, height: int) -> None:
        """A strip one pixel high becomes a bomb when its short side is resized to the model's."""
        pixels = max(self.size[-2:]) ** 2 * max(width, height) // max(1, min(width, height))
        if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{width} x {height} pixels are too long a strip")


class Middles(Pictures):
    """Videos as (position, [C, T, H, W]), the clip in the middle of each."""

    things = "videos"

    def __init__(self, clips: Clips, config: dict[str, Any]) -> None:
        super().__init__([clips.filename(i) for i in range(len(clips))], config)
        self.clips = clips

    def read(self, i: int) -> Any:
        [clip], _ = self.clips[i]
        self.check_proportions(*clip[0].size)
        return self.transform([clip])[0]

    def about(self) -> dict[str, str]:
        return {**super().about(), "frames": str(self.clips.frames), "frame_stride": str(self.clips.stride)}


def collate(samples: list[tuple[int, Any]]) -> tuple[Tensor | None, list[int], list[tuple[int, str]]]:
    """Images or clips [B, C, (T,) H, W] (None if there are none) and their positions; positions and reasons of the unreadable."""
    good = [(i, x) for i, x in samples if isinstance(x, Tensor)]
    images = torch.stack([x for _, x in good]) if good else None
    return images, [i for i, _ in good], [(i, x) for i, x in samples if isinstance(x, str)]


# ---- the work


def extract(model: Any, pictures: Pictures, args: argparse.Namespace, parts: Path, rank: int, world: int) -> dict[str, Any]:
    """Append the rows of this process's batches to files "RANK.KEY" in ``parts``.

    Returns:
        "batches", the positions kept of each, and "shapes", of a row for each key.

    Raises:
        ValueError: an unreadable picture with ``--on-error stop``, or the model refuses the images.
    """
    count, step = len(pictures.files), args.batch_size
    todo = [list(range(start, min(start + step, count))) for start in range(rank * step, count, world * step)]
    pin = args.device.type == "cuda"
    loader = DataLoader(pictures, batch_sampler=todo, num_workers=args.workers, collate_fn=collate, pin_memory=pin)
    batches: list[list[int]] = []
    shapes: dict[str, list[int]] = {}
    with ExitStack() as stack:
        hidden = rank > 0 or None  # None: unless stderr is a terminal
        bar = stack.enter_context(tqdm(total=sum(map(len, todo)), unit="picture", disable=hidden))
        written: dict[str, Any] = {}
        for images, kept, unreadable in loader:
            complain(pictures, unreadable, args.on_error)
            batches.append(kept)
            for key, tensor in ({} if images is None else features(model, images.to(args.device), args)).items():
                if key not in written:
                    written[key] = stack.enter_context(open(parts / f"{rank}.{key}", "wb"))
                    shapes[key] = list(tensor.shape[1:])
                written[key].write(tensor.contiguous().view(torch.uint8).numpy().data)  # numpy has no bfloat16
            bar.update(len(kept) + len(unreadable))
    return {"batches": batches, "shapes": shapes}


def complain(pictures: Pictures, unreadable: list[tuple[int, str]], on_error: str) -> None:
    for i, reason in unreadable:
        message = f"{pictures.files[i]} cannot be read ({' '.join(reason.split())})"
        if on_error == "stop":
            raise ValueError(f"{message}; --on-error skip leaves such files out")
        tqdm.write(f"skipped: {message}", file=sys.stderr)


@torch.inference_mode()
def features(model: Any, images: Tensor, args: argparse.Namespace) -> dict[str, Tensor]:
    """Images [B, C, H, W] -> "pooled" [B, D], "tokens" [B, N, D] (or as the model has them), "map0" [B, D, h, w], ... on the CPU.

    Maps of clips [B, C, T, H, W] are [B, D, t, h, w].

    Raises:
        ValueError: the model refuses the images, or returns what cannot be stored.
    """
    found: dict[str, Tensor] = {}
    autocast = torch.autocast(images.device.type, dtype=AMP[args.amp], enabled=args.amp != "none")
    with asking(args.model, f"a batch of shape {list(images.shape)}"), autocast:
        if "pooled" in args.what or "tokens" in args.what:
            tokens = model.forward_features(images)
            if "pooled" in args.what:
                found["pooled"] = model.forward_head(tokens, pre_logits=True)
            if "tokens" in args.what:
                found["tokens"] = tokens
        if "maps" in args.what:
            maps = model.forward_intermediates(images, indices=args.levels, intermediates_only=True, output_fmt="NCHW")
            found.update((f"map{level}", x) for level, x in zip(args.levels or range(len(maps)), maps, strict=True))
    return {key: storable(key, x, args.dtype) for key, x in found.items()}


def storable(key: str, x: Any, dtype: str) -> Tensor:
    if not isinstance(x, Tensor) or (key == "pooled" and x.ndim != 2):
        raise ValueError(
            f"the model gives {key} features of shape {list(getattr(x, 'shape', []))}, which cannot be stored as such"
        )
    x = x.to(DTYPES[dtype])
    if not x.isfinite().all():
        raise ValueError(f"{key} features are not finite in {dtype}; try --dtype bfloat16 or float32, and --amp bf16 or none")
    return x.cpu()


# ---- putting it together


def merge(logs: list[dict[str, Any]], pictures: Pictures, args: argparse.Namespace, parts: Path) -> str:
    """Write the output from the rows of all processes; returns what there is to say about it.

    The file (length, JSON header, bytes of the tensors) is written by hand: safetensors' own writer wants all of it in memory.

    Raises:
        ValueError: no picture could be read.
    """
    world = len(logs)
    batches = [logs[b % world]["batches"][b // world] for b in range(sum(len(log["batches"]) for log in logs))]
    kept = [pictures.files[i] for batch in batches for i in batch]
    if not kept:
        raise ValueError(f"none of the {len(pictures.files)} {pictures.things} could be read")
    shapes = {key: shape for log in logs for key, shape in log["shapes"].items()}
    sizes = {key: math.prod(shape) * DTYPES[args.dtype].itemsize for key, shape in shapes.items()}  # bytes of a row
    with open(parts / "merged", "wb") as out:
        out.write(header(kept, shapes, sizes, pictures, args))
        for key, size in sizes.items():
            with ExitStack() as stack:  # a process all of whose pictures were skipped has no file
                sources = [log["shapes"] and stack.enter_context(open(parts / f"{r}.{key}", "rb")) for r, log in enumerate(logs)]
                for b, batch in enumerate(batches):
                    if batch:
                        out.write(sources[b % world].read(len(batch) * size))
    os.replace(parts / "merged", args.output)
    tensors = ", ".join(f"{key} {[len(kept), *shape]}" for key, shape in shapes.items())
    return f"wrote {args.output}: {tensors} in {args.dtype}, from {len(kept)} of {len(pictures.files)} {pictures.things}"


def header(
    kept: list[str], shapes: dict[str, list[int]], sizes: dict[str, int], pictures: Pictures, args: argparse.Namespace
) -> bytes:
    """The first bytes of a safetensors file with one row for each of the files kept."""
    about = {
        "files": json.dumps(kept),
        "model": args.model,
        "weights": "pretrained" if args.pretrained else f"random, seed {args.seed or 0}",
        **pictures.about(),
        "hiermim_zoo": __version__,
    }
    content: dict[str, Any] = {"__metadata__": about}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + len(kept) * sizes[key]
        content[key] = {"dtype": STORED_AS[args.dtype], "shape": [len(kept), *shape], "data_offsets": [start, end]}
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text


if __name__ == "__main__":
    run(main)
