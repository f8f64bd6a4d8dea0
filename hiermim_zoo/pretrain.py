"""Pre-train an encoder by masked autoencoding.

    python -m hiermim_zoo.pretrain PICTURES --model hivit_base -o DIR
    torchrun --nproc-per-node 8 -m hiermim_zoo.pretrain PICTURES --model hivit_base -o DIR --amp bf16 --compile

DIR gets log.jsonl, checkpoints/, looks/ (what the autoencoder makes of some pictures) and, at the end, encoder/: the encoder as
timm loads it, and the decoder beside it. What is seen in a step, and what is hidden, follows from the seed and the step alone: a
run that was interrupted and resumed ends like one that was not.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import resume
from .checkpoints.folder import Contents, own_cfg, write_folder
from .cli import AMP, add_img_size, add_model_kwargs, at_least, check_compiled, model_kwargs, run, share_of_one
from .clips import open_source
from .data import EXTRA, WANTED, Plan, batches, data_config, file_name, make_transform, repeat_of, things
from .distributed import World, agree, catch_signals, share, spread, start, stop, unsynchronised
from .journal import Journal, peak_memory, read_log
from .mae import MaskedAutoencoder, create_mae, decoder_state, recipe_changes
from .masking import random_keep
from .optim import PRETRAINING, lr_at, make_optimizer, set_lr
from .registry import check_arch, row_of
from .version import __version__
from .watch import look, probe

FREE = {  # options that may change when a run is resumed: they do not change what it computes
    "data", "data_dir", "output", "resume", "workers", "device", "compile", "fsdp", "accumulate", "max_bad", "max_nonfinite",
    "save_steps", "keep", "log_steps", "look_every", "stop_after", "export_only", "license",
}  # fmt: skip
LOOKS = "looks"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    complete(args)

    # the processes of the run
    world = start(args.device)
    torch.manual_seed(args.seed)
    caught = catch_signals()

    # the data
    changes: dict[str, Any] = {key: value for key in ("depth", "dim", "heads") if (value := getattr(args, f"decoder_{key}"))}
    if args.masks:
        changes["shared_mask"] = args.masks == "batch"
    mae = build(args, changes)
    if args.compile:
        check_compiled(mae.encoder)
    config = data_config(mae.encoder, mae.input_size) | overrides(args, "mean", "std")
    source = open_source(
        args.data,
        config["input_size"],
        root=args.data_dir,
        split=args.split,
        seed=args.seed,
        stride=args.frame_stride,
        repeat=args.repeat,
    )
    plan = Plan(len(source), args.batch_size, args.accumulate, world.rank, world.size, args.seed, repeat_of(source))
    total = min(args.steps or math.inf, round(args.epochs * plan.per_epoch))

    # the model and its optimiser
    freeze_unreached(mae)
    if not args.fsdp:
        mae.to(world.device)
    encoder: Any = mae.encoder
    blocks: Any = (*(encoder.called_blocks if hasattr(encoder, "called_blocks") else encoder.blocks), *mae.decoder.blocks)
    model = spread(mae, blocks, world, args.fsdp, args.compile)
    optimizer = make_optimizer(mae, args.opt, args.weight_decay, args.betas, no_decay=undecayed(mae, args.model))
    scaler = torch.amp.GradScaler(world.device.type, enabled=args.amp == "fp16")

    # where the run stands
    first, skipped = 0, 0
    options = {key: value for key, value in vars(args).items() if key not in FREE} | {"pictures": len(source)}
    checkpoint = share(resume.where(args.output, args.resume) if world.first else None)[0]
    if checkpoint is not None:
        state = resume.load(checkpoint)
        resume.check_options(state["options"], options, checkpoint)
        resume.restore(mae, optimizer, state)
        scaler.load_state_dict(state["scaler"])
        first, skipped = state["step"], state["skipped"]
        if len(state["random"]) == world.size:  # else they start from the seed; batches and masks do not depend on them
            resume.set_random_state(state["random"][world.rank], world.device)
        del state
    if args.export_only:
        if checkpoint is None:
            raise ValueError(f"--export-only: {args.output} holds no checkpoint")
        export(mae, optimizer, args, config, changes, first, world)
        stop()
        return
    if world.first:
        args.output.mkdir(parents=True, exist_ok=True)
        resume.set_aside(args.output / resume.FOLDER, first)
    last = min(total, first + (args.stop_after or total))
    journal = Journal(args.output, first, total, world.first)
    journal.say(f"{args.model}: {len(source)} {things(source)}, steps {first} to {last} of {total}, {plan.per_epoch} an epoch")

    def save(step: int) -> None:
        state = resume.learned(mae, optimizer) | {"scaler": scaler.state_dict(), "step": step, "skipped": skipped}
        state["epoch"] = list(divmod(step, plan.per_epoch))
        state["options"] = options
        state["versions"] = {"hiermim_zoo": __version__, "torch": str(torch.__version__)}
        state["random"] = share(resume.random_state(world.device))
        if world.first:
            resume.save(args.output / resume.FOLDER, step, state, args.keep)

    # the loop
    stream = batches(
        source,
        training_transform(config, args),
        plan,
        range(first, last),
        mean=config["mean"],
        std=config["std"],
        input_size=config["input_size"],
        device=world.device,
        workers=args.workers,
        max_bad=args.max_bad,
        extra=partial(visible_units, mae.units, mae.kept, mae.recipe.shared_mask),
        prepare=planned_ahead(mae, world.device, args.compile),
    )
    autocast = torch.autocast(world.device.type, dtype=AMP[args.amp], enabled=args.amp != "none")
    window: list[float] = []  # losses since the last line of the log
    noted, waited, since = first, 0.0, time.perf_counter()
    model.train()
    for step in range(first + 1, last + 1):
        began = time.perf_counter()
        lr = lr_at(step - 1, total, round(args.warmup * plan.per_epoch), args.lr)
        set_lr(optimizer, lr)
        losses: list[Tensor] = []
        positions: list[Tensor] = []
        for micro in range(args.accumulate):
            asked = time.perf_counter()
            images, columns, plans = next(stream)
            waited += time.perf_counter() - asked
            with unsynchronised(model, micro < args.accumulate - 1), autocast:
                keep = columns[:, EXTRA:]
                if mae.recipe.shared_mask:
                    keep = keep[:1].expand(len(keep), -1)  # says so to whoever must not compare rows
                loss = model(images, keep, plans).loss / args.accumulate
                scaler.scale(loss).backward()
            losses.append(loss.detach())
            positions.append(columns[:, WANTED])
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_([p for p in mae.parameters() if p.requires_grad], args.clip or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        # the one place in a step where the host waits for the device; the next batch is on its way already
        loss_sum, bad, left = agree(torch.stack(losses).sum(), norm, caught, scaler.is_enabled())
        if not bad or scaler.is_enabled():  # the scaler itself skips steps whose gradients are not finite
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        skipped = skipped + 1 if bad else 0
        if bad:
            names = dump(args.output, step, world, source, positions)
            journal.say(f"step {step}: loss or gradients are not finite, step skipped; its pictures are listed in {names}")
            if skipped > args.max_nonfinite:
                raise ValueError(f"step {step}: {skipped} steps in a row were not finite (--max-nonfinite {args.max_nonfinite})")
        else:
            window.append(loss_sum / world.size)
        if step % args.log_steps == 0 or step == last:
            seconds = time.perf_counter() - since
            journal.note(
                step,
                epoch=step / plan.per_epoch,
                loss=sum(window) / len(window) if window else None,
                lr=lr,
                norm=norm.item(),
                images_s=(step - noted) * plan.batch / seconds,
                waiting=waited / seconds,  # share of the time, for data
                gib=peak_memory(world.device),
            )
            window, noted, waited, since = [], step, 0.0, time.perf_counter()
        speed = plan.batch / (time.perf_counter() - began)
        journal.progress(loss=f"{loss_sum / world.size:.4f}", images_s=f"{speed:.0f}", gib=f"{peak_memory(world.device):.1f}")
        if step % (args.save_steps or plan.per_epoch) == 0 or step == last or left:
            save(step)
        if args.look_every and (step % max(1, round(args.look_every * plan.per_epoch)) == 0 or step == last):
            paused = time.perf_counter()
            title = f"{args.model}, step {step} of {total}"
            look(mae, source, config, title, world.device, args.output / LOOKS / f"step-{step:08d}.png" if world.first else None)
            accuracy = probe(mae, source, config, world.device, args.workers)
            if accuracy is not None:
                journal.note(step, epoch=step / plan.per_epoch, knn=accuracy)
            since += time.perf_counter() - paused  # what was read and computed for a look is no step's
        if left:
            journal.close()
            print(f"stopped by {signal.Signals(left).name} after step {step}, saved: go on with --resume auto", file=sys.stderr)
            stop()
            sys.exit(128 + left)
    journal.close()
    if last == total:
        export(mae, optimizer, args, config, changes, total, world)
    stop()


# ---- options


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hiermim_zoo.pretrain", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument_group("data").add_argument
    add("data", help="folder of pictures or videos (labelled or not), tar, digits, moving:DATA, or a name of timm's (hfds/...)")
    add("--data-dir", metavar="DIR", help="root folder of data that is named")
    add("--split", default="train", help="of the data (default: train)")
    add("--frame-stride", type=at_least(1), metavar="N", help="frames of a video from one that is shown to the next (default: 4)")
    add("--repeat", type=at_least(1), metavar="N", help="clips of a video each time it is opened (default: the family's)")
    add("--crop-scale", type=share_of_one, nargs=2, metavar=("LOW", "HIGH"), help="share of the area (default: the family's)")
    add("--mean", type=float, nargs="+", help="of the channels (default: the model's)")
    add("--std", type=float, nargs="+", help="likewise")
    add("--workers", type=at_least(0), default=min(8, os.cpu_count() or 1), metavar="N", help="processes that read pictures")
    add("--max-bad", type=share_of_one, default=0.01, metavar="SHARE", help="of pictures that may be unreadable (0.01)")

    add = parser.add_argument_group("model").add_argument
    add("--model", required=True, metavar="ARCH", help="of this package, or a plain ViT of timm")
    add_img_size(add, " (default: the model's)")
    add("--in-chans", type=at_least(1), default=3, metavar="N", help="channels (default: 3)")
    add_model_kwargs(add)
    add("--checkpoint", metavar="DIR", help="go on from a folder of convert --mae or of an earlier run, with a new schedule")
    add("--pretrained", action="store_true", help="start the encoder from the architecture's pretrained weights")
    add("--mask-ratio", type=float, metavar="R", help="share that is hidden (default: the checkpoint's, else the family's)")
    add("--masks", choices=("sample", "batch"), help="one for each picture, or one for all of a step (default: the family's)")
    add("--raw-pixels", action="store_true", help="predict pixels that are not normalised patch by patch")
    add("--decoder-depth", type=at_least(1), metavar="N", help="blocks (default: the family's, likewise below)")
    add("--decoder-dim", type=at_least(1), metavar="N", help="width")
    add("--decoder-heads", type=at_least(1), metavar="N")
    add("--drop-path", type=share_of_one, metavar="P", help="of the encoder (default: the recipe's)")

    add = parser.add_argument_group("schedule and optimiser; defaults are those of the family's paper").add_argument
    add("--epochs", type=float, metavar="N")
    add("--steps", type=at_least(1), metavar="N", help="end after so many steps, if the epochs are more")
    add("--batch-size", type=at_least(1), metavar="N", help="pictures of a step, in all processes together")
    add("--accumulate", type=at_least(1), default=1, metavar="N", help="passes a step, to save memory")
    add("--blr", type=float, metavar="LR", help="peak learning rate per 256 pictures")
    add("--lr", type=float, help="peak learning rate (default: blr * batch / 256)")
    add("--warmup", type=float, metavar="EPOCHS")
    add("--weight-decay", type=float, metavar="W", help="not of biases and tensors of one dimension")
    add("--betas", type=float, nargs=2, metavar="B")
    add("--opt", default="adamw", help="any optimiser of timm (default: adamw)")
    add("--clip", type=float, metavar="NORM", help="largest norm of the gradient")
    add("--seed", type=at_least(0), default=0)

    add = parser.add_argument_group("computation").add_argument
    add("--device", help="cuda, cuda:1, cpu, ... (default: cuda where there is one; with torchrun, one each)")
    add("--amp", choices=AMP, default="none", help="compute in mixed precision")
    add("--compile", action="store_true", help="with torch.compile")
    add("--fsdp", action="store_true", help="spread weights and optimiser over the processes, for what does not fit")

    add = parser.add_argument_group("the run").add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR")
    add("--resume", metavar="auto|FILE", help="go on from the last checkpoint in DIR (auto: if there is one), or from this one")
    add("--save-steps", type=at_least(1), metavar="N", help="steps between checkpoints (default: an epoch's)")
    add("--keep", type=at_least(1), default=3, metavar="N", help="checkpoints that are kept (default: 3)")
    add("--log-steps", type=at_least(1), default=20, metavar="N", help="steps between lines of the log (default: 20)")
    add("--look-every", type=float, default=20, metavar="EPOCHS", help="pictures and nearest neighbours; 0: never (default: 20)")
    add("--max-nonfinite", type=at_least(0), default=10, metavar="N", help="steps in a row that may be skipped (default: 10)")
    add("--stop-after", type=at_least(1), metavar="N", help="save and leave after so many steps; --resume auto goes on")
    add("--export-only", action="store_true", help="write DIR/encoder from the checkpoint that --resume names, and leave")
    add("--license", default="unstated", help="of the weights, for their card")
    return parser.parse_args(argv)


def complete(args: argparse.Namespace) -> None:
    """Fill in what the family's recipe says.

    Raises:
        ValueError: unknown architecture, or one whose family has no recipe; options that exclude each other.
    """
    row = row_of(PRETRAINING, check_arch(args.model))
    if row is None:
        raise ValueError(f"--model {args.model}: its family has no recipe, those that have are {', '.join(PRETRAINING)}")
    args.batch_size = args.batch_size or row.batch
    for key in ("epochs", "warmup", "weight_decay", "blr", "drop_path"):
        if getattr(args, key) is None:
            setattr(args, key, getattr(row, key))
    args.betas = list(args.betas or row.betas)
    args.crop_scale = list(args.crop_scale or row.crop_scale)
    args.repeat = args.repeat or (row.repeat if row.repeat > 1 else None)
    if args.lr is None:
        args.lr = args.blr * args.batch_size / 256
    if args.epochs <= 0 or not 0 <= args.warmup < args.epochs:
        raise ValueError(f"--epochs {args.epochs} with --warmup {args.warmup}: the warm-up must be shorter than the run")
    if args.pretrained and args.checkpoint:
        raise ValueError("--pretrained and --checkpoint exclude each other: both say where the encoder starts")
    if args.export_only and not args.resume:
        raise ValueError("--export-only writes a run's encoder: say which with --resume auto or --resume FILE")


def undecayed(mae: MaskedAutoencoder, name: str) -> set[str]:
    """Position tables, where the recipe gives them no weight decay."""
    row = row_of(PRETRAINING, check_arch(name))
    if row is None or row.decay_positions:
        return set()
    encoder: Any = mae.encoder
    return {"decoder.pos_embed", *(f"encoder.{table}" for table in encoder.no_weight_decay())}


def overrides(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options that were given, as tuples; each needs a value for every channel."""
    given = {name: tuple(value) for name in names if (value := getattr(args, name)) is not None}
    for name, values in given.items():
        if len(values) != args.in_chans:
            raise ValueError(f"--{name} has {len(values)} values, the pictures have {args.in_chans} channels")
    return given


# ---- data and model


def visible_units(units: int, kept: int, shared: bool, own: int, step: int) -> list[int]:
    """The mask of a picture, from its own seed or from that of its step, which is the same on every process."""
    generator = torch.Generator().manual_seed(step if shared else own)
    mask: list[int] = random_keep(1, units, kept, generator=generator)[0].tolist()
    return mask


def planned_ahead(mae: MaskedAutoencoder, device: torch.device, compiled: bool) -> Callable[[Tensor], Any] | None:
    """What the workers do with the masks of a batch. On accelerators and in graphs plans are made without a look at the mask."""
    if mae.planner is None or compiled or device.type != "cpu":
        return None
    return partial(plans_of, mae.planner)


def plans_of(planner: Callable[[Tensor], Any], columns: Tensor) -> Any:
    """The plans for a batch, from the masks in its columns."""
    return planner(columns[:, EXTRA:])


def training_transform(config: dict[str, Any], args: argparse.Namespace) -> Any:
    """A random part of the picture, mirrored or not, and nothing else (arXiv 2111.06377, section 4)."""
    return make_transform(
        config["input_size"],
        is_training=True,
        scale=tuple(args.crop_scale),
        color_jitter=0.0,
        interpolation=config["interpolation"],
        use_prefetcher=True,
    )


def build(args: argparse.Namespace, changes: dict[str, Any]) -> MaskedAutoencoder:
    """The autoencoder, with the decoder's ``changes``, at the size asked for."""
    kwargs: dict[str, Any] = {"drop_path_rate": args.drop_path, "in_chans": args.in_chans, **given_args(args)}
    if args.img_size:
        kwargs["img_size"] = args.img_size
    try:
        mae = create_mae(
            args.model,
            args.pretrained,
            args.checkpoint,
            args.mask_ratio,
            not args.raw_pixels,
            recipe=changes,
            **kwargs,
        )
    except (RuntimeError, AssertionError, TypeError) as error:  # timm's, of sizes that a model cannot take
        raise ValueError(f"--model {args.model} cannot be built with {kwargs}: {error}") from error
    if args.img_size and mae.input_size[-2:] != args.img_size:
        raise ValueError(
            f"--img-size {' '.join(map(str, args.img_size))} is not a whole number of mask units; "
            f"{' x '.join(map(str, mae.input_size[-2:]))} is"
        )
    return mae


def given_args(args: argparse.Namespace) -> dict[str, Any]:
    return model_kwargs(args, "drop_path_rate", "img_size", "in_chans", "num_classes")


def freeze_unreached(mae: MaskedAutoencoder) -> None:
    """Parameters that the loss does not depend on (the norm before a classifier) are not trained: DDP would wait for them."""
    mae.eval()  # draws no random numbers
    parameters = list(mae.parameters())
    trained = [p for p in parameters if p.requires_grad]
    device = parameters[0].device
    images = torch.zeros(1, mae.in_chans, *mae.input_size, device=device)
    loss = mae(images, torch.arange(mae.kept, device=device)[None]).loss
    for p, gradient in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
        p.requires_grad_(gradient is not None)
    mae.train()


# ---- what is written


def dump(output: Path, step: int, world: World, source: Any, positions: list[Tensor]) -> Path:
    """List the pictures that this process saw in a step."""
    file = output / "nonfinite" / f"step-{step:08d}-rank-{world.rank}.txt"
    file.parent.mkdir(exist_ok=True)
    names = [file_name(source, i) for i in torch.cat(positions).tolist()]
    file.write_text("\n".join(names) + "\n", encoding="utf-8")
    return file


def export(
    mae: MaskedAutoencoder,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
    config: dict[str, Any],
    changes: dict[str, Any],
    step: int,
    world: World,
) -> None:
    """Write DIR/encoder: the encoder in the form of the Hub, the decoder beside it, a card that says how they came about."""
    weights = resume.learned(mae, optimizer)["model"]
    if not world.first:
        return
    whole = build(args, changes)  # on one device, whatever the run was spread over
    whole.load_state_dict(weights)
    notes = read_log(args.output)
    arch = check_arch(args.model)
    losses, neighbours = (
        [note[key] for note in notes if note.get(key) is not None and note["step"] <= step] for key in ("loss", "knn")
    )
    provenance = {
        "command": f"python -m hiermim_zoo.pretrain {shlex.join(sys.argv[1:])}",
        "data": args.data,
        "epochs": args.epochs,
        "step": step,
        "batch": args.batch_size,
        "final loss": round(losses[-1], 4) if losses else "unknown",
        "20 nearest neighbours, top-1 %": round(neighbours[-1], 1) if neighbours else "not measured",
        "license": args.license,
        "hiermim_zoo": __version__,
        "torch": str(torch.__version__),
    }
    encoder: Any = whole.encoder
    own = own_cfg(arch, config, args.license, 0, (whole.in_chans, *whole.input_size))
    *frames, height, width = whole.input_size
    size: dict[str, Any] = {"num_frames": frames[0]} if frames else {}
    if (height, width) != encoder.default_cfg["input_size"][1:]:
        size["img_size"] = (height, width)
    encoder.pretrained_cfg = own
    made = "Pre-trained by masked autoencoding with `python -m hiermim_zoo.pretrain`."
    model_args = given_args(args) | size
    contents = Contents(
        arch, encoder, provenance, made, model_args, decoder=decoder_state(whole), recipe=recipe_changes(args.model, whole.recipe)
    )
    write_folder(contents, args.output / "encoder", force=True)
    print(f"wrote {args.output / 'encoder'}: timm.create_model('local-dir:{args.output / 'encoder'}', pretrained=True)")


if __name__ == "__main__":
    run(main)
