"""Measure how well a model tells the pictures of a labelled data set apart.

    python -m hiermim_zoo.evaluate DATA --model hivit_base.mae_in1k_ft_in1k --method classify
    python -m hiermim_zoo.evaluate DATA --train DATA --model hivit_base --method knn        (or linear, finetune)
    torchrun --nproc-per-node 8 -m hiermim_zoo.evaluate DATA --model hivit_base --method finetune -o DIR

The last line on stdout is a JSON object. Pictures of DATA never take part in a choice: not of weights, not of settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models._input import get_model_args
from torch import Tensor, nn

from .checkpoints.folder import Contents, check_target, own_cfg, write_folder
from .cli import AMP, add_model_kwargs, at_least, make_model, model_kwargs, run, share_of_one
from .data import data_config, is_stream
from .distributed import World, share, start, stop, summed
from .extract import asking
from .finetune import FineTune, Run, new_classifier, recipe_for
from .labelled import Labelled, check_apart, check_labels, classes_by_label, open_labelled
from .optim import FineTuning
from .probe import interval, knn, linear_probe, outputs, pooled_features
from .registry import check_arch
from .version import __version__
from .writing import replacing

RECIPE = {field.name for field in dataclasses.fields(FineTuning)}
RUN = {field.name for field in dataclasses.fields(Run)}
TRAINED = ("knn", "linear", "finetune")  # methods that need labelled training pictures
ONLY = {  # options -> the methods they belong to
    **dict.fromkeys(("train", "train_split"), TRAINED),
    **dict.fromkeys(("k", "temperature"), ("knn",)),
    "cache": ("linear",),
    **dict.fromkeys(RECIPE | RUN - {"amp", "workers", "max_bad", "seed"}, ("finetune",)),
    "batch": ("classify", *TRAINED),
    **dict.fromkeys(("num_classes", "eval_every", "output", "force", "lr"), ("finetune",)),
}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    began = time.perf_counter()
    world = start(args.device)
    check_outputs(args, world)
    right, total, settings = METHODS[args.method](args, world)
    if world.first:
        result = summary(args, right, total, settings, time.perf_counter() - began)
        if args.json:
            with replacing(args.json) as part:
                part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(result))
    share("done")
    stop()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hiermim_zoo.evaluate", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add(
        "data",
        help="to measure on: folder of class folders or of splits, tar, digits, moving:DATA, or a name of timm's (hfds/...)",
    )
    add("--model", required=True, metavar="NAME", help="ARCH, ARCH.TAG, local-dir:DIR or hf-hub:ORG/NAME")
    add("--method", required=True, choices=METHODS, help="its own classifier, neighbours, linear probe, or fine-tuning")
    add("--split", default="validation", help="of the data (default: validation)")
    add("--train", metavar="DATA", help="labelled training pictures (default: another split of the data)")
    add("--train-split", help="of the training pictures (default: train)")
    add("--data-dir", metavar="DIR", help="root folder of data that is named")
    add("--frame-stride", type=at_least(1), metavar="N", help="frames of a video from one that is shown to the next (default: 4)")
    add("--views", type=at_least(1), nargs=2, metavar=("N", "CROPS"), help="of a video, averaged: clips, crops of each (1 1)")
    add("--img-size", type=at_least(1), metavar="N", help="feed N x N pixels (default: what the model's configuration says)")
    add_model_kwargs(add)
    add("--no-pretrained", dest="pretrained", action="store_false", help="random weights")
    add("--batch-size", dest="batch", type=at_least(1), metavar="N", help="pictures of a step, or fed at once (default: 64)")
    add("--workers", type=at_least(0), default=min(4, os.cpu_count() or 1), metavar="N", help="processes that read pictures")
    add("--max-bad", type=share_of_one, default=0.0, metavar="SHARE", help="of pictures that may be unreadable (default: none)")
    add("--amp", choices=AMP, default="none", help="compute in mixed precision")
    add("--device", help="cuda, cuda:1, cpu, ... (default: cuda where there is one; with torchrun, one each)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of everything random (default: 0)")
    add("--json", type=Path, metavar="FILE", help="write the result here too")
    add("-k", type=at_least(1), metavar="N", help="knn: neighbours (default: 20)")
    add("--temperature", type=positive, metavar="T", help="knn: of the votes (default: 0.07)")
    add("--cache", type=Path, metavar="DIR", help="linear: keep features here, and use those that are")
    finetune_options(parser.add_argument_group("fine-tuning (default: the recipe of the architecture's paper)").add_argument)
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", "-m", "hiermim_zoo.evaluate", *(sys.argv[1:] if argv is None else argv)])
    for option, methods in ONLY.items():
        if getattr(args, option, None) is not None and args.method not in methods:
            flag = {"output": "-o", "k": "-k"}.get(option, "--" + option.replace("_", "-"))
            raise ValueError(f"{flag} belongs to --method {' or '.join(methods)}, not to --method {args.method}")
    if args.force and not args.output:
        raise ValueError("--force replaces the folder of -o DIR, which is missing")
    return args


def finetune_options(add: Any) -> None:
    add("-o", "--output", type=Path, metavar="DIR", help="write the fine-tuned model and log.jsonl here")
    add("--force", action="store_true", default=None, help="replace a folder that is not empty")
    add("--num-classes", type=at_least(2), metavar="N", help="where the data do not tell")
    add("--eval-every", type=at_least(1), metavar="N", help="measure after every N epochs too, for the log alone")
    add("--epochs", type=at_least(1), metavar="N")
    add("--blr", type=positive, metavar="LR", help="peak learning rate per 256 pictures of a batch")
    add("--lr", type=positive, help="peak learning rate (default: blr * batch / 256)")
    add("--min-lr", type=float, help="at the end")
    add("--warmup", type=at_least(0), metavar="N", help="epochs")
    add("--layer-decay", type=positive, help="factor of the learning rate from a layer to the one below")
    add("--weight-decay", type=float)
    add("--drop-path", type=share_of_one)
    add("--smoothing", type=share_of_one, help="of labels")
    add("--mixup", type=float, metavar="ALPHA")
    add("--cutmix", type=float, metavar="ALPHA")
    add("--mix-prob", type=share_of_one, help="share of the batches with either (default: 1)")
    add("--auto-augment", metavar="POLICY", help="of timm; none turns it off")
    add("--color-jitter", type=float, help="(default: 0)")
    add("--hflip", type=share_of_one, help="probability of mirroring (default: 0.5); 0 where left and right are classes")
    add("--repeat", type=at_least(1), metavar="N", help="clips of a video each time it is opened")
    add("--erase", type=share_of_one, help="probability of random erasing")
    add("--crop-scale", type=share_of_one, nargs=2, metavar=("LO", "HI"), help="share of a picture (default: 0.08 1)")
    add("--opt", metavar="NAME", help="optimiser of timm (default: adamw)")
    add("--clip", type=positive, metavar="NORM", help="clip gradients (default: no)")
    add("--ema", type=share_of_one, metavar="DECAY", help="average the weights, and measure the average")
    add("--accumulate", type=at_least(1), metavar="N", help="batches of an optimiser step (default: 1)")
    add("--compile", action="store_true", default=None, help="torch.compile")


def positive(text: str) -> float:
    """A type of options: numbers above 0."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def check_outputs(args: argparse.Namespace, world: World) -> None:
    """Refuse what cannot be written before any work is done.

    Raises:
        ValueError: naming it.
    """
    if world.size > 1 and args.method != "finetune":
        raise ValueError(f"--method {args.method} runs in one process; torchrun is for finetune")
    if world.first and args.output:
        check_target(args.output, bool(args.force))
    if args.json and (args.json.is_dir() or not os.access(args.json.absolute().parent, os.W_OK | os.X_OK)):
        raise ValueError(f"--json {args.json} cannot be written: " + ("a folder" if args.json.is_dir() else "no such folder"))


# ---- the data


def open_data(
    args: argparse.Namespace, input_size: tuple[int, ...], repeat: int | None = None
) -> tuple[Labelled, Labelled | None]:
    """The pictures (or videos) to measure on, and those to train on if the method needs any.

    Args:
        input_size: of the model.
        repeat: clips of a video each time it is opened for training.

    Raises:
        ValueError: data are missing or without labels, or those of both differ in their classes.
    """
    how: dict[str, Any] = {"root": args.data_dir, "seed": args.seed, "stride": args.frame_stride, "views": args.views}
    test = open_labelled(args.data, args.split, input_size, training=False, **how)
    if args.method not in TRAINED:
        return test, None
    how |= {"training": args.method == "finetune", "repeat": repeat}
    train = open_labelled(args.train or args.data, args.train_split or "train", input_size, **how)
    check_apart(train, test)
    return test, train


# ---- the methods: each gives the number of pictures it gets right, their number, and its settings

Outcome = tuple[int, int, dict[str, Any]]


def frozen(args: argparse.Namespace, world: World) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The model for inference, its preprocessing, and the arguments common to all readings of pictures."""
    torch.manual_seed(args.seed)
    model: Any = make_model(args.model, pretrained=args.pretrained, **given_args(args)).eval()
    config = sized(model, args, world)
    return model, config, reading(args, config, world, args.batch or 64)


def given_args(args: argparse.Namespace) -> dict[str, Any]:
    return model_kwargs(args, "drop_path_rate", "img_size", "num_classes")


def sized(model: Any, args: argparse.Namespace, world: World) -> dict[str, Any]:
    """Set a model to its input size and device, try it out, and give its preprocessing.

    Raises:
        ValueError: it does not take the size.
    """
    config = data_config(model, args.img_size and (args.img_size, args.img_size))
    what = f"--img-size {args.img_size}" if args.img_size else f"{config['input_size'][-1]} pixels"
    with asking(args.model, what):
        if args.img_size and hasattr(model, "set_input_size"):  # most plain ViTs take no other size without
            model.set_input_size((args.img_size, args.img_size))
        model.to(world.device).eval()
        with torch.no_grad():
            model(torch.zeros(1, *config["input_size"], device=world.device))
    return config


def reading(args: argparse.Namespace, config: dict[str, Any], world: World, batch: int) -> dict[str, Any]:
    common = {"workers": args.workers, "amp": args.amp, "max_bad": args.max_bad}
    return {"config": config, "device": world.device, "batch_size": batch, **common}


def classify(args: argparse.Namespace, world: World) -> Outcome:
    model, config, how = frozen(args, world)
    if not model.num_classes:
        raise ValueError(f"{args.model} has no classifier; --method knn, linear or finetune measures encoders")
    test, _ = open_data(args, config["input_size"])
    own = (model.pretrained_cfg or {}).get("label_names")
    classes = len(test.names) if test.names else classes_by_label(test)
    if classes is not None and classes != model.num_classes:
        raise ValueError(f"{args.model} tells {model.num_classes} classes apart, but {args.data} has {classes}")
    order = torch.arange(model.num_classes)
    if own and test.names:
        if set(own) != set(test.names):
            odd = sorted(set(test.names) - set(own))[:3]
            raise ValueError(f"{args.model} does not know the classes of {args.data}: {', '.join(odd)}")
        order = torch.tensor([list(own).index(name) for name in test.names])  # label of the data -> output of the model
    found, labels = outputs(shares(model), test.source, **how)
    labels = order[check_labels(test, labels)]
    return int((found.argmax(1) == labels).sum()), len(labels), {}


def neighbours(args: argparse.Namespace, world: World) -> Outcome:
    model, config, how = frozen(args, world)
    test, train = open_data(args, config["input_size"])
    assert train is not None
    bank, bank_labels = pooled_features(model, train.source, **how)
    queries, labels = pooled_features(model, test.source, **how)
    check_labels(train, bank_labels)
    k, temperature = min(args.k or 20, len(bank)), args.temperature or 0.07
    found = knn(bank.to(world.device), bank_labels.to(world.device), queries.to(world.device), k, temperature).cpu()
    return int((found == check_labels(test, labels)).sum()), len(labels), {"k": k, "temperature": temperature}


def linear(args: argparse.Namespace, world: World) -> Outcome:
    model, config, how = frozen(args, world)
    test, train = open_data(args, config["input_size"])
    assert train is not None
    (bank, bank_labels), (queries, labels) = (cached(args, data, model, how) for data in (train, test))
    check_labels(train, bank_labels)
    found, settings = linear_probe(bank, bank_labels, queries, args.seed)
    return int((found == check_labels(test, labels)).sum()), len(labels), settings


def cached(args: argparse.Namespace, data: Labelled, model: nn.Module, how: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Pooled features and labels, from the folder of ``--cache`` if they are there."""
    if not args.cache:
        return pooled_features(model, data.source, **how)
    where = os.path.abspath(data.spec) if Path(data.spec).exists() else data.spec
    key: list[Any] = [args.model, weights_hash(model), where, args.data_dir, data.split, len(data.source)]
    key += [args.frame_stride, args.views]
    key += [{name: str(value) for name, value in how["config"].items()}, args.amp]
    path = args.cache / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            return file.get_tensor("features"), file.get_tensor("labels")
    features, labels = pooled_features(model, data.source, **how)
    args.cache.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        save_file({"features": features, "labels": labels}, part, metadata={"key": json.dumps(key)})
    return features, labels


def weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def finetune(args: argparse.Namespace, world: World) -> Outcome:
    with torch.device("meta"):  # to learn what it is, without weights
        sketch: Any = make_model(args.model, pretrained=False, **given_args(args))
    arch = sketch.pretrained_cfg["architecture"] if ":" in args.model else check_arch(args.model)
    recipe, how_run = settings_of(args, arch)
    test, train = open_data(args, data_config(sketch)["input_size"], recipe.repeat)
    assert train is not None
    classes = classes_of(args, train)
    given = given_args(args)
    model = new_classifier(args.model, arch, classes, recipe, pretrained=args.pretrained, seed=args.seed, **given)
    config = sized(model, args, world)
    tuning = FineTune(model, train.source, classes, config, recipe, how_run, world)
    how = reading(args, config, world, tuning.plan.micro)

    def report(epoch: int) -> dict[str, Any]:
        if not args.eval_every or (epoch + 1) % args.eval_every:
            return {}
        right, total = count(tuning.result, test, world, how)
        return {"top1": 100 * right / total}

    tuning.train(args.output and args.output / "log.jsonl", report)
    right, total = count(tuning.result, test, world, how)
    settings = {**dataclasses.asdict(recipe), **dataclasses.asdict(how_run), "processes": world.size}
    if args.output and world.first:
        export(args, tuning.result, arch, config, train, settings, right, total)
    return right, total, settings


def settings_of(args: argparse.Namespace, arch: str) -> tuple[FineTuning, Run]:
    """The recipe of the architecture, with what the options say instead."""
    if args.auto_augment == "none":
        args.auto_augment = ""
    if args.crop_scale:
        args.crop_scale = tuple(args.crop_scale)
        if not args.crop_scale[0] <= args.crop_scale[1] or not args.crop_scale[1]:
            raise ValueError(f"--crop-scale {args.crop_scale[0]} {args.crop_scale[1]}: the lower bound comes first")
    given = {name: value for name, value in vars(args).items() if value is not None}
    recipe = dataclasses.replace(recipe_for(arch), **{name: given[name] for name in RECIPE & given.keys()})
    if args.lr:
        recipe = dataclasses.replace(recipe, blr=args.lr * 256 / recipe.batch)
    return recipe, Run(**{name: given[name] for name in RUN & given.keys()})


def classes_of(args: argparse.Namespace, train: Labelled) -> int:
    """The number of classes.

    Raises:
        ValueError: nobody knows it, or two disagree.
    """
    known = len(train.names) if train.names else classes_by_label(train)
    if known is None and args.num_classes is None:
        raise ValueError(f"{train.spec} does not tell the number of its classes; give --num-classes N")
    if known is not None and args.num_classes not in (None, known):
        raise ValueError(f"--num-classes {args.num_classes}, but {train.spec} has {known}")
    return known or args.num_classes


def count(model: nn.Module, test: Labelled, world: World, how: dict[str, Any]) -> tuple[int, int]:
    """How many pictures the model gets right, and their number; the processes share the work (a stream is read by the first)."""
    model.eval()
    source, positions = test.source, None if is_stream(test.source) else range(world.rank, len(test.source), world.size)
    if positions is None and not world.first:
        right, total = 0, 0
    else:
        found, labels = outputs(shares(model), source, positions=positions, progress=world.first, **how)
        right, total = int((found.argmax(1) == labels).sum()) if len(labels) else 0, len(labels)
    both = summed(torch.tensor([right, total], device=world.device)).tolist()
    if not both[1]:
        raise ValueError(f"none of the pictures of {test.spec} could be read")
    return both[0], both[1]


def shares(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a classifier holds probable [B, classes], which can be averaged over the views of a video."""
    return lambda images: model(images).float().softmax(1)


# ---- what is written


def export(
    args: argparse.Namespace,
    model: Any,
    arch: str,
    config: dict[str, Any],
    train: Labelled,
    settings: dict[str, Any],
    right: int,
    total: int,
) -> None:
    """The fine-tuned model in the form of the Hub, with the log of its training."""
    license = (model.pretrained_cfg.get("license") if args.pretrained else None) or "unstated"
    described = {**config, "label_names": train.names}
    model.pretrained_cfg = own_cfg(arch, described, license, model.num_classes, config["input_size"])
    with torch.device("meta"):
        plain = get_model_args(make_model(arch, pretrained=False))
    model_args = {key: value for key, value in get_model_args(model).items() if key != "num_classes" and plain.get(key) != value}
    low, high = (100 * bound for bound in interval(right, total))
    provenance = {
        "start": args.model if args.pretrained else f"{args.model}, random weights",
        "trained on": f"{train.spec} ({train.split}, {len(train.source)} pictures)",
        "epochs": settings["epochs"],
        "batch": settings["batch"],
        "seed": args.seed,
        "top-1": f"{100 * right / total:.2f} % of {total} pictures of {args.data} (95 % interval {low:.2f} to {high:.2f})",
        "command": args.command,
        "license": license,
        "hiermim_zoo": __version__,
    }
    log = (args.output / "log.jsonl").read_text(encoding="utf-8")
    write_folder(
        Contents(arch, model, provenance, "Fine-tuned by `python -m hiermim_zoo.evaluate`.", model_args), args.output, True
    )
    with replacing(args.output / "log.jsonl") as part:
        part.write_text(log, encoding="utf-8")


def summary(args: argparse.Namespace, right: int, total: int, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The result, with all that is needed to get it again."""
    trained = args.method in TRAINED
    return {
        "model": args.model,
        "pretrained": args.pretrained,
        "method": args.method,
        "data": args.data,
        "split": args.split,
        "train": (args.train or args.data) if trained else None,
        "train_split": (args.train_split or "train") if trained else None,
        "img_size": args.img_size,
        "model_kwargs": given_args(args),
        "frame_stride": args.frame_stride,
        "views": args.views,
        "pictures": total,
        "top1": round(100 * right / total, 4),
        "interval": [round(100 * bound, 4) for bound in interval(right, total)],
        "seed": args.seed,
        "settings": {"amp": args.amp, "max_bad": args.max_bad, **settings},
        "command": args.command,
        "versions": {
            "hiermim_zoo": __version__,
            "torch": str(torch.__version__),
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "seconds": round(seconds, 1),
    }


METHODS = {"classify": classify, "knn": neighbours, "linear": linear, "finetune": finetune}

if __name__ == "__main__":
    run(main)
