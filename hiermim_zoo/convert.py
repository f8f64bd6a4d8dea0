"""Turn a published checkpoint into a folder that timm loads.

python -m hiermim_zoo.convert SOURCE --model ARCH -o DIR
timm.create_model("local-dir:DIR", pretrained=True)
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from timm.models import create_model

from . import manifest
from .checkpoints import store
from .checkpoints.download import download
from .checkpoints.export import Converted, convert
from .checkpoints.files import Checkpoint, read_checkpoint
from .checkpoints.folder import check_target, write_folder
from .checkpoints.layouts import LAYOUTS, find_layout
from .checkpoints.published import check_file, to_published, write_published
from .checkpoints.rules import check_fits
from .cli import add_img_size, run
from .mae import create_mae, decoder_state
from .registry import check_arch
from .verify import compare, verify

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    row = known_row(args.install or args.source)
    if row is None and args.install:
        raise ValueError(f"--install {args.install}: no such tag; known are {', '.join(manifest.records())}")
    arch = args.model or (row.arch if row else None)
    if arch is None:
        raise ValueError("--model ARCH is needed: which architecture is the checkpoint of?")
    if row and arch != row.arch:
        raise ValueError(f"--model {arch} does not fit {row.name}")
    if row and row.file and args.install:
        raise ValueError(f"--install {row.name}: these weights ship with the package")
    check_arch(arch)
    target = target_folder(args, row)
    if args.to:
        check_file(args.output, args.force)
    elif target is not None:
        check_target(target, args.force)

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = fetch(args.source, Path(scratch))
        converted = convert(
            checkpoint,
            arch,
            source=args.source,
            layout=args.layout,
            img_size=args.img_size,
            num_classes=args.num_classes,
            dtype=DTYPES[args.dtype],
            license=args.license,
            row=row,
            decoder=args.mae,
            model_args=chosen(args),
            inflate=args.inflate,
        )
        if args.mae:
            check_decoder(converted)
        found = compare(converted, args.pictures) if args.verify else ""
    print(report(converted, every=args.dry_run))
    if target is None:
        return
    if args.to:
        write_back(converted, args.to, target, args.force)
        return
    write_folder(converted.contents(), target, args.force)
    print(f"wrote {target}: timm.create_model({f'local-dir:{target}'!r}, pretrained=True)")
    if args.verify:
        print("\n".join(filter(None, (verify(converted, target), found))))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hiermim_zoo.convert", description=__doc__.splitlines()[0])
    parser.add_argument(
        "source", help="file, folder, hf-hub:ORG/NAME[@REVISION], http(s) URL, or a tag of the manifest (hivit_base.mae_in1k)"
    )
    parser.add_argument("--model", metavar="ARCH", help="architecture; a tag knows its own")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--install", nargs="?", const="", metavar="TAG", help="put it into the local store, where pretrained=True finds it"
    )
    parser.add_argument("--layout", help=f"force a layout instead of recognising it: {', '.join(x.name for x in LAYOUTS)}")
    add_img_size(parser.add_argument, ", that positions are resampled to")
    parser.add_argument("--pool", help="HPViT: what stands between the stages, avg or conv")
    parser.add_argument("--depths", type=int, nargs="+", metavar="N", help="HPViT: blocks of each stage")
    window = "HPViT, Swin: tokens along a side of a window (HPViT: 0 for none; Swin: bias tables are resampled)"
    parser.add_argument("--window-size", type=int, metavar="N", help=window)
    parser.add_argument(
        "--class-token", action="store_true", default=None, help="HPViT: keep it as one more token of every window"
    )
    parser.add_argument("--inflate", metavar="HOW", help="Hiera: weights of images for a model of clips, center or mean")
    parser.add_argument("--num-classes", type=int, metavar="N", help="0 leaves the classifier out")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the tensors written")
    parser.add_argument(
        "--mae", action="store_true", help="keep the decoder: hiermim_zoo.create_mae(ARCH, checkpoint=DIR) continues"
    )
    parser.add_argument(
        "--to",
        metavar="LAYOUT",
        help=f"the other way round: -o FILE gets SOURCE under published names ({', '.join(x.name for x in LAYOUTS if x.back)})",
    )
    parser.add_argument("--license", default="", help="of the weights, written into configuration and card")
    parser.add_argument("--force", action="store_true", help="replace a folder that is not empty")
    parser.add_argument("--dry-run", action="store_true", help="report on every tensor, write nothing")
    parser.add_argument("--verify", action="store_true", help="load what was written and compare it")
    parser.add_argument("--pictures", metavar="DATA", help="on which --verify compares (default: those of the package)")
    args = parser.parse_args(argv)
    if args.install == "":
        args.install = args.source
    if args.install and chosen(args):
        flags = " and ".join("--" + name.replace("_", "-") for name in chosen(args))
        raise ValueError(f"--install puts weights into the store as their tag describes them: leave out {flags}")
    if args.install and args.output:
        raise ValueError("--install and -o exclude each other")
    if not (args.output or args.install or args.dry_run):
        raise ValueError("-o DIR is needed (or --install, or --dry-run)")
    if args.to and (args.mae or args.install or args.dry_run or args.verify or args.img_size or chosen(args)):
        raise ValueError("--to goes with SOURCE, --model, --layout, --num-classes, --dtype, --force and -o FILE alone")
    if args.inflate and (args.mae or args.install or args.to):
        raise ValueError("--inflate makes an encoder of clips: leave out --mae, --install and --to")
    if args.mae and (args.img_size or args.install):
        raise ValueError("--mae keeps the decoder, whose positions belong to one size: leave out --img-size and --install")
    if args.verify and args.dry_run:
        raise ValueError("--verify compares what was written, --dry-run writes nothing: choose one")
    if args.pictures and not args.verify:
        raise ValueError(f"--pictures {args.pictures} belongs to --verify")
    return args


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the model that were chosen (``CONVERT_ARGS`` of its family)."""
    names = ("pool", "depths", "window_size", "class_token")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def write_back(converted: Converted, layout: str, file: Path, force: bool) -> None:
    """Write a model, or encoder and decoder, as their authors would."""
    decoder = converted.source_decoder()
    contents = replace(converted.contents(), decoder=decoder)
    with torch.random.fork_rng(devices=[]):
        fresh = create_model(converted.arch, num_classes=0, **converted.model_args)
    table = find_layout(layout)
    write_published(to_published(contents.state(), contents.decoder_state(), table, fresh), file, force, table.top_key)
    print(f"wrote {file}: {'encoder and decoder' if table.decoder else 'the model'} under the names of {layout}")
    if decoder and not table.decoder:
        print(f"  the source's decoder is left out: {layout} has none of its kind")
    if table.added_why:
        print(f"  {table.added_why}")


def check_decoder(converted: Converted) -> None:
    """Refuse a decoder that the architecture's autoencoder cannot take."""
    model: Any = converted.model
    size = {name: value for name, value in converted.model_args.items() if name in ("img_size", "num_frames")}
    mae = create_mae(converted.arch, in_chans=model.in_chans, **size)
    check_fits(converted.native.decoder, decoder_state(mae), model=f"the autoencoder of {converted.arch}")


def known_row(name: str) -> manifest.Weights | None:
    return manifest.records().get(name)


def target_folder(args: argparse.Namespace, row: manifest.Weights | None) -> Path | None:
    if args.dry_run:
        return None
    return store.user_store() / row.name if args.install and row else args.output


def fetch(source: str, scratch: Path) -> Checkpoint:
    """Bring a source of any kind onto the disk and read it.

    Raises:
        ValueError, OSError: it cannot be had or read.
    """
    row = known_row(source)
    if row is not None:
        local = store.find_local(row) if row.file else None
        return read_checkpoint(local or store.fetch_origin(row, scratch))
    if source.startswith("hf-hub:"):
        name, _, revision = source.removeprefix("hf-hub:").partition("@")
        return read_checkpoint(store.fetch_repository(name, revision or None))
    if source.partition(".")[0] in manifest.archs() and not Path(source).exists():
        raise ValueError(f"{source}: no such tag; known are {', '.join(manifest.records())}")
    if urlsplit(source).scheme in ("http", "https"):
        target = scratch / (Path(urlsplit(source).path).name or "checkpoint.pth")
        download(source, target)
        return read_checkpoint(target)
    return read_checkpoint(source)


def report(converted: Converted, every: bool) -> str:
    """What became of the tensors: in numbers, or (``every``) one line each."""
    native = converted.native
    lines = [
        f"source  {converted.source} ({len(converted.checkpoint.state)} tensors"
        + (f" under {converted.checkpoint.top_key!r})" if converted.checkpoint.top_key else ")"),
        f"layout  {native.layout.name}: {native.layout.about}",
        f"licence {converted.license}",
    ]
    steps = [step for step in native.steps if every or step.action == "reshaped"]
    lines += [
        f"  {s.action:8} {s.source}"
        + (f" -> {s.target}" if s.target != s.source and s.target else "")
        + (f" ({s.why})" if s.why else "")
        for s in steps
    ]
    counts = Counter(step.action for step in native.steps)
    lines.append("tensors " + ", ".join(f"{counts[a]} {a}" for a in ("kept", "renamed", "reshaped", "joined", "dropped")))
    reasons = Counter(step.why for step in native.steps if step.action == "dropped")
    lines += [f"  dropped {count}: {why}" for why, count in reasons.items()]
    lines += [f"  resampled {line}" for line in converted.resampled]
    lines += [f"  {key}: {value}" for key, value in converted.notes.items()]
    if converted.initial:
        lines.append(f"  missing in the source, initial values kept: {', '.join(converted.initial)}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
