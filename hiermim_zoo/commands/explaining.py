"""What ``--explain`` prints: the recipe that a run would follow, where each value comes from, what options changed.

Nothing is trained and no image is read: data are opened to be counted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ..data.batches import Batching
from ..data.clips import RATE, STRIDE
from ..data.source import Source
from ..data.transforms import data_config
from ..mae import MaskedAutoencoder, recipe_of
from ..models.build import input_shape
from ..models.recipes import FineTuning, Pretraining, Recipe
from ..text import counted
from ..training.autoencoder import sketched, undecayed, undecided
from ..training.beginning import rows_of, with_recipe
from ..training.checks import check
from ..training.defaults import Followed, family_values, filled_by_paper, pretraining_of
from ..training.distributed import World, pick_device
from ..training.finetuning import TuningSettings, recipe_for
from ..training.run_data import open_data
from ..training.schedule import Schedule, pretraining_schedule, tuning_schedule
from ..training.small import FEW, PRETRAINING, REFERENCE, TUNING, Rule, Size, recipe_of_size, small_decoder
from .evaluating_checks import check as check_evaluation
from .evaluating_shared import open_data as open_splits
from .evaluating_shared import own_model_kwargs
from .loading import without_weights
from .options import Outcome
from .options.evaluate import EvaluateOptions
from .options.fields import long_flag
from .options.pretrain import AUTO, PIXELS, SCHEDULED, PretrainOptions
from .options.shared import RECIPES
from .tuning_recipe import RECIPE_OPTIONS, architecture_of, chosen_settings, recipe_of_kind

RECIPE, OPTION, RULE, DATA = "recipe", "option", "rule", "data"  # where a value comes from
SMALL = "recipe small"
UNKNOWN = ("epochs", "batch_size", "batch", "blr", "warmup")  # values of the small recipe, without data
WIDEST = 30  # letters of a column
POSITIONS = {True: "sine-cosine, not trained", False: "trained"}


class Line(NamedTuple):
    """A value of a run."""

    name: str
    value: str
    origin: str  # one of the four, and what it is in more words
    instead: str = ""  # of the recipe's value, where an option changed it


class Counted(NamedTuple):
    """Data of which nothing but their number is known."""

    number: int
    noun: str  # images or videos


class Tuned(NamedTuple):
    """A fine-tuning, as far as its recipe goes."""

    row: FineTuning  # of the paper
    recipe: FineTuning  # that is followed
    settings: TuningSettings
    followed: str  # the name of the recipe
    kind: str  # of the labels


def explain_pretraining(options: PretrainOptions) -> Outcome:
    """What ``pretrain`` would do with these options; without data as far as that does not depend on them.

    Raises:
        ValueError: it would be refused, for other reasons than the number of images.
    """
    said = check(options)
    # Without values where no file of weights is to be looked into.
    rows = Followed({"imagenet": False} if options.pretrained else {}, pretraining_of(options.model))
    sketch = sketched(undecided(said), rows)
    device = pick_device(options.device).type
    source = _source(said, sketch) if options.data else None
    size = Size(len(source), source.repeat, 1) if source else None
    chosen = with_recipe(said, size, device, sketch) if size else _without_data(said, device, sketch)
    row, mae = rows_of(chosen, rows).pretraining, sketched(chosen, rows)
    data = Counted(len(source), source.noun) if source else None
    lines = pretraining_lines(options, chosen, row, mae, device, data)
    return _outcome(options.model, lines, {"pre-training": row.source, "autoencoder": mae.recipe.source})


def pretraining_lines(
    options: PretrainOptions,
    chosen: PretrainOptions,
    row: Pretraining,
    mae: MaskedAutoencoder,
    device: str,
    data: Counted | None,
) -> list[Line]:
    """The values of a run of pre-training, and where each comes from.

    Args:
        options: as they were said.
        chosen: with what recipe, data and memory say.
        row: of the recipe, as the run follows it.
        device: its type.
        data: None: unknown.
    """
    size = Size(data.number, 1, 1) if data else None
    lines = [_recipe(options.recipe, chosen.recipe, size, device), *_schedule(options, chosen, row)]
    lines += [
        _line("opt", chosen.opt, "adamw", chosen.opt != "adamw"),
        _line("clip", chosen.clip or None, None, bool(chosen.clip)),
    ]
    if chosen.recipe != "paper" and options.accumulate is None:
        fits = "what fits into memory"
        known = None if chosen.accumulate is None else f"{SMALL}: {fits}"
        lines.append(Line("accumulate", str(chosen.accumulate or fits), known or SMALL, "1"))
    else:
        lines.append(_line("accumulate", chosen.accumulate, 1, options.accumulate is not None))
    lines += _autoencoder(options, chosen, mae)
    lines.append(Line("no weight decay", _no_decay(mae, undecayed(mae, row)), RECIPE))
    lines += _statistics(options, mae)
    clips = len(mae.input_size) > 2
    if clips:
        for name, default in (("frame_stride", STRIDE), ("frame_rate", RATE)):
            told = getattr(options, name)
            lines.append(_line(name, told or default, default, told is not None))
    if data:
        return lines + _course(data, chosen, row, pretraining_of(options.model).ahead)
    return [*lines, *_course_without_data("videos" if clips else "images", options.steps, chosen.recipe, PRETRAINING)]


def _statistics(options: PretrainOptions, mae: MaskedAutoencoder) -> Iterable[Line]:
    """Mean and standard deviation of the channels."""
    loaded = options.pretrained or options.checkpoint
    usual = "the weights that it starts from" if loaded else RECIPE if mae.recipe.imagenet else "the architecture's"
    own_config = data_config(mae.encoder, mae.input_size)
    for name in ("mean", "std"):
        given, own = getattr(options, name), _words(own_config[name])
        if given is None:
            yield Line(name, own, usual)
        else:
            value = f"{AUTO}: measured on images" if given == (AUTO,) else _words(given)
            yield Line(name, value, f"{OPTION} --{name}", own if value != own else "")


def _source(said: PretrainOptions, sketch: MaskedAutoencoder) -> Source:
    """The data, to be counted: nothing of them is measured."""
    measured: dict[str, Any] = {name: None for name in ("mean", "std") if getattr(said, name) == (AUTO,)}
    source: Source = open_data(dataclasses.replace(said, **measured), sketch, None).source
    return source


def _without_data(said: PretrainOptions, device: str, sketch: MaskedAutoencoder) -> PretrainOptions:
    """The options with what the recipe says, whatever the data; the rest is None."""
    followed = said.having(recipe=recipe_of_size(said.recipe, None, device))
    if followed.recipe == "paper":
        return filled_by_paper(followed)
    chosen: PretrainOptions = small_decoder(followed, sketch) if followed.recipe == "small" else followed
    return chosen


def explain_finetuning(options: EvaluateOptions) -> Outcome:
    """What ``evaluate --method finetune`` would do with these options.

    Raises:
        ValueError: it would be refused, for other reasons than the number of images.
    """
    check_evaluation(options)
    sketch = without_weights(options.model, own_model_kwargs(options))
    arch = architecture_of(options.model, sketch)
    row, alone = recipe_for(arch), World(0, 1, torch.device("cpu"))
    repeat, device, train = options.repeat or row.repeat, pick_device(options.device).type, None
    if options.data or options.train:
        options = options.having(data=options.data or options.train)
        _, train = open_splits(options, data_config(sketch)["input_size"], alone, repeat)
        assert train is not None
    size = Size(len(train.source), repeat, 1) if train else None
    kind = train.kind if train else "classes"
    followed = recipe_of_size(options.recipe or RECIPES[0], size.images if size else None, device)
    small = followed != "paper"
    unsized = options if size or not small else options.having(warmup=None)  # whose epochs depend on the data
    recipe, settings = chosen_settings(unsized, arch, (size or Size(FEW, repeat, 1)) if small else None)
    recipe = recipe_of_kind(options, recipe, kind)
    tuned = Tuned(row, recipe, settings, followed, kind)
    data = Counted(len(train.source), train.source.noun) if train else None
    noun = "videos" if len(input_shape(sketch)) > 3 else "images"
    return _outcome(options.model, tuning_lines(options, tuned, device, data, noun), {"fine-tuning": row.source})


def tuning_lines(
    options: EvaluateOptions, tuned: Tuned, device: str, data: Counted | None, noun: str = "images"
) -> list[Line]:
    """The values of a fine-tuning, and where each comes from.

    Args:
        device: its type.
        data: None: unknown.
        noun: of data that are unknown.
    """
    row, recipe, settings, followed, kind = tuned
    size, small = Size(data.number, recipe.repeat, 1) if data else None, followed != "paper"
    option_of = {field: option for option, field in RECIPE_OPTIONS.items()}
    lines = [_recipe(options.recipe or RECIPES[0], followed, size, device)]
    for field in dataclasses.fields(FineTuning):
        option, value, own = option_of.get(field.name), getattr(recipe, field.name), getattr(row, field.name)
        if field.name in ("source", "ahead"):
            continue
        given = option is not None and getattr(options, option) is not None
        floor = field.name in ("min_lr", "start_lr")  # which follow from the batch
        if not (size or given) and small and field.name in UNKNOWN:
            lines.append(_of_number(option or field.name, own, TUNING))
        elif field.name in ("mixup", "cutmix", "smoothing") and kind == "values":
            lines.append(Line(field.name, _words(value), "rule: values cannot be blended", _words(own)))
        elif not given and small and (value != own or field.name == "warmup") and not floor:
            lines.append(Line(option or field.name, _words(value), SMALL, _words(own) if value != own else ""))
        elif not given and value != own:
            formula = "rule: lr * 256 / batch" if field.name == "blr" else f"rule: {_words(own)} * batch / {row.batch}"
            lines.append(Line(field.name, _words(value), formula))
        else:
            lines.append(_line(option or field.name, value, own, given))
    rate, rule = recipe.blr * recipe.batch / 256, row.blr * recipe.batch / 256
    if size or not small or options.lr is not None:
        lines.append(_ruled("lr", rate, rule, "blr * batch / 256", options.lr is not None))
    elif options.blr is None:
        lines.append(_of_number("lr", rule, TUNING))
    lines += _settings(options, settings)
    if data:
        parts = (recipe.batch, settings.accumulate, recipe.repeat, recipe.epochs, row.ahead)
        return lines + _steps(data.number, data.noun, *parts, lambda batching: tuning_schedule(recipe, batching))
    return [*lines, *_course_without_data(noun, None, followed, TUNING)]


# ---- parts


def _settings(options: EvaluateOptions, settings: TuningSettings) -> Iterable[Line]:
    """What recipes leave open, where it is not as usual."""
    usual = TuningSettings()
    for name in (field.name for field in dataclasses.fields(TuningSettings)):
        value, own = getattr(settings, name), getattr(usual, name)
        if value != own and name not in ("workers", "amp", "seed"):
            given = getattr(options, name) is not None
            yield _line(name, value, value, True) if given else Line(name, _words(value), SMALL, _words(own))


def _recipe(said: str, followed: str, size: Size | None, device: str) -> Line:
    """Which one of the two, and why."""
    if said != RECIPES[0]:
        return Line("recipe", followed, f"{OPTION} --recipe")
    if followed == RECIPES[0]:
        return Line("recipe", f"small, or paper from {FEW:,} images on", f"{RULE}: DATA would tell")
    why = f"{FEW:,} images or more, and no CPU" if followed == "paper" else f"fewer than {FEW:,} images, or a CPU"
    return Line("recipe", followed, f"{RULE}: {why} ({f'{size.images} on ' if size else ''}{device})")


def _of_number(name: str, own: Any, rule: Rule) -> Line:
    """A value that the small recipe chooses by the number of images, which nobody knows.

    Args:
        own: the value of the recipe of the paper.
    """
    least, most = rule.batches
    values = {
        "batch_size": f"{least} to {most}",
        "epochs": f"those of {rule.steps} steps or more",
        "warmup": f"{rule.warmup:g} of the run",
        "lr": f"{rule.rate:g} * root of (batch / {REFERENCE})",
        "blr": f"{rule.rate:g} / root of (batch / {REFERENCE})",
    }
    return Line(name, values[name], f"{SMALL}: by the number of images, which DATA would tell", _words(own))


def _course_without_data(noun: str, steps: int | None, followed: str, rule: Rule) -> Iterable[Line]:
    """What is left to say of the length of a run.

    Args:
        steps: that an option says.
    """
    yield Line(noun, "unknown", f"{DATA}: none are named")
    if followed == "paper":
        yield Line("steps", "unknown", f"{RULE}: epochs * {noun} / batch size, which DATA would tell")
    elif steps:
        yield Line("steps", str(steps), f"{OPTION} --steps")
    else:
        yield Line("steps", f"{rule.steps} or more", f"{SMALL}: {rule.pace:g} * root of the number of {noun}")


def _schedule(options: PretrainOptions, chosen: PretrainOptions, row: Pretraining) -> Iterable[Line]:
    """The values of the family, and those that are in place of them."""
    values = family_values(options.model)
    small = chosen.recipe != "paper"
    for name, value in values.items():
        now, given = getattr(chosen, name), getattr(options, name) is not None
        if now is None and name in UNKNOWN and name != "blr":
            yield _of_number(name, value, PRETRAINING)
        elif name == "accumulate" or now is None:
            continue
        elif name == "epochs" and small and options.steps and not given:
            yield Line(name, _words(now), f"{OPTION} --steps", _words(value))
        elif small and name in SCHEDULED and not given:
            yield Line(name, _words(now), SMALL, _words(value) if now != value else "")
        else:
            yield _line(name, now, value, given)
    if chosen.lr is None and chosen.blr is None:
        yield _of_number("lr", row.blr * row.batch / 256, PRETRAINING)
    elif chosen.lr is None:
        yield Line("lr", "unknown", f"{RULE}: blr * batch size / 256")
    elif chosen.blr is None and options.lr is None:
        yield Line("lr", _words(chosen.lr), SMALL, _words(row.blr * row.batch / 256))
    else:
        batch = row.batch if chosen.blr is None else chosen.batch_size
        rule = (chosen.blr or row.blr) * batch / 256
        yield _ruled("lr", chosen.lr, rule, "blr * batch size / 256", options.lr is not None)


def _autoencoder(options: PretrainOptions, chosen: PretrainOptions, mae: MaskedAutoencoder) -> Iterable[Line]:
    """What is hidden, and what predicts it.

    Args:
        options: as they were said.
        chosen: with what the small recipe chose.
    """
    own: Recipe = recipe_of(options.model, {})
    said = {
        "mask_ratio": options.mask_ratio,
        "masks": options.masks,
        "depth": options.decoder_depth,
        "dim": options.decoder_dim,
        "heads": options.decoder_heads,
    }
    shown = {"depth": "decoder_depth", "dim": "decoder_dim", "heads": "decoder_heads"}
    for name, option in said.items():
        value, usual = getattr(mae.recipe, name), getattr(own, name)
        if option is None and value != usual:
            origin = SMALL if getattr(chosen, shown.get(name, name)) is not None else "checkpoint"
            yield Line(shown.get(name, name), _words(value), origin, _words(usual))
        else:
            yield _line(shown.get(name, name), value, usual, option is not None)
    yield Line("visible units", f"{mae.kept} of {mae.units}", "rule: int(units * (1 - mask_ratio))")
    encoder: Any = mae.encoder
    usual_size = tuple(own.encoder.get("img_size") or encoder.pretrained_cfg["input_size"][-2:])
    size = _line("img_size", mae.input_size[-2:], usual_size, options.img_size is not None)
    same = options.img_size or mae.input_size[-2:] == usual_size
    yield size if same else size._replace(origin="checkpoint")
    if mae.recipe.target != PIXELS:
        origin = f"{OPTION} --target" if options.target else "checkpoint"
        yield Line("target", mae.recipe.target, origin, PIXELS)
        yield Line("target_dim", str(mae.values), "rule: width of the teacher's last level")
    elif mae.norm_pix:
        yield Line("pixels", "normalised", RECIPE)
    else:
        yield Line("pixels", "raw", f"{OPTION} --raw-pixels" if options.raw_pixels else "checkpoint", "normalised")
    if own.fixed_positions or mae.recipe.fixed_positions:
        value, usual = (POSITIONS[recipe.fixed_positions] for recipe in (mae.recipe, own))
        yield Line("positions", value, RECIPE) if value == usual else Line("positions", value, "checkpoint", usual)


def _course(data: Counted, chosen: PretrainOptions, row: Pretraining, ahead: float) -> list[Line]:
    return _steps(
        data.number,
        data.noun,
        chosen.batch_size,
        chosen.accumulate or 1,
        chosen.repeat or 1,
        chosen.epochs,
        ahead,
        lambda batching: pretraining_schedule(chosen, row, batching),
    )


def _steps(
    count: int, noun: str, batch: int, accumulate: int, repeat: int, epochs: float, ahead: float, schedule: Any
) -> list[Line]:
    """How long the run is, and its rates.

    Args:
        repeat: clips of a video each time it is opened.
        ahead: epochs that the rate is ahead, as the recipe has it.

    Raises:
        ValueError: the batch cannot be divided, however many images there are.
    """
    Batching(sys.maxsize, batch, accumulate, 0, 1, 0, repeat)
    lines = [Line(noun, str(count), DATA)]
    try:
        batching = Batching(count, batch, accumulate, 0, 1, 0, repeat)
    except ValueError as error:
        return [*lines, Line("steps", f"none: {error}", RULE)]
    course: Schedule = schedule(batching)
    everything = batching.steps_of_run(epochs)
    samples = "clips" if repeat > 1 else noun
    # Epochs are effective ones.
    pass_of = f"({noun} * {repeat} // batch size) / {repeat}" if repeat > 1 else f"{noun} // batch size"
    return [
        *lines,
        Line("steps of an epoch", f"{batching.per_epoch:g}", f"rule: {pass_of}"),
        Line("steps", str(course.total), f"{OPTION} --steps", str(everything))
        if course.total < everything
        else Line("steps", str(course.total), f"{RULE}: epochs * steps of an epoch"),
        _ahead(course, batching, ahead),
        Line(f"{samples} seen", str(course.total * batch), "rule: steps * batch size"),
        Line("rates", _rates(course), RULE),
    ]


def _ahead(course: Schedule, batching: Batching, ahead: float) -> Line:
    """What a short run cannot be ahead it is not."""
    if ahead and not course.ahead:
        return Line("ahead", "0 epochs", SMALL, counted(ahead, "epochs"))
    if course.shift == course.ahead:
        return Line("ahead", counted(ahead, "epochs"), RECIPE)
    rule = f"{RULE}: a fifth of the warm-up or of the rest at most (recipe: {counted(ahead, 'epochs')})"
    return Line("ahead", counted(course.shift / batching.per_epoch, "epochs"), rule)


def _rates(course: Schedule) -> str:
    """Of the learning rate."""
    first, last = (_words(course.at(step)) for step in (0, course.total - 1))
    if course.warmup >= course.total:
        return f"{first} at first, {last} at last: the run ends within the warm-up of {counted(course.warmup, 'steps')}"
    return f"{first} at first, {_words(course.at(course.warmup))} after the warm-up, {last} at last"


def _line(name: str, value: Any, own: Any, given: bool) -> Line:
    """A value that an option may have changed."""
    origin = f"{OPTION} {long_flag(name)}" if given else RECIPE
    return Line(name, _words(value), origin, _words(own) if value != own else "")


def _ruled(name: str, value: Any, rule: Any, formula: str, given: bool) -> Line:
    """A value that follows from others, unless an option says it."""
    return _line(name, value, rule, True) if given else Line(name, _words(value), f"{RULE}: {formula}")


def _no_decay(mae: MaskedAutoencoder, names: Iterable[str]) -> str:
    """Trained tensors without weight decay, in a few words."""
    trained = {name for name, parameter in mae.named_parameters() if parameter.requires_grad}
    named = sorted(trained & set(names))
    more = f", {', '.join(named[:2])}" + (f" and {len(named) - 2} more" if len(named) > 2 else "") if named else ""
    return f"biases, tensors of one dimension{more}"


def _words(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value in (None, "") else str(value)


def _outcome(model: str, lines: list[Line], sources: Mapping[str, str]) -> Outcome:
    """The lines as text, in columns, and as they are."""
    shown = [
        (line.name, line.value, f"{line.origin} (recipe: {line.instead})" if line.instead else line.origin)
        for line in lines
    ]
    # A long value moves its own origin to the right, not those of all lines.
    widths = [max(min(len(row[column]), WIDEST) for row in shown) for column in (0, 1)]
    text = [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in shown]
    said = [f"recipe of {what}: {source}" for what, source in sources.items()]
    changed = [line.name for line in lines if line.instead]
    end = f"changed: {', '.join(changed)}" if changed else "changed: nothing"
    return Outcome([line._asdict() for line in lines], "\n".join([model, *text, *said, end]))
