"""Configurations of strangers: JSON beside weights, checked key by key before anything is built from it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from reprlib import Repr
from typing import Any

from ..text import printable

LARGEST = 16 << 20  # bytes of a file: 20 thousand classes with their descriptions take two
MOST = 1 << 16  # of a whole number, of an argument of a model
LONGEST = 64  # a list among the arguments of a model
CLASSES = 1 << 17  # ImageNet-21k has 21843
CONFIG_KEY = "hiermim_zoo"  # in config.json: what this package says of the weights
IMAGES_KEY = "images"  # there: how files become the images of the model, where that is not the default
TRAINING_KEY = "training"  # there: by which recipe the weights were trained, and its length, batch and peak rate
LABELS_KEY = "labels"  # there: what the outputs of the model are, where they are not one class an image

_short = Repr()
_short.maxstring = _short.maxother = 40
_short.maxdict = _short.maxlist = _short.maxlevel = 2


def read_json(file: Path, what: str = "configuration in timm's form") -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
        file: of a stranger.
        what: it should be, for messages.

    Raises:
        ValueError: it is too large, no UTF-8, no JSON, nested too deep, says one thing twice, or holds something else.
        OSError: it cannot be read.
    """
    if (size := file.stat().st_size) > LARGEST:
        raise ValueError(f"{file} has {size} bytes, too many for a configuration (at most {LARGEST})")
    try:
        content = json.loads(file.read_text("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else printable(error, 200)
        raise ValueError(f"{file} is no valid JSON: {why}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no {what}: it holds a {type(content).__name__}")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice[:40]!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def read_config(file: Path) -> dict[str, Any]:
    """config.json beside weights, in timm's form; what it says of preprocessing and classes is typed.

    Raises:
        ValueError: naming the key and its value.
        OSError: it cannot be read.
    """
    return checked_config(read_json(file), file)


def checked_config(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A configuration in timm's form; what it says of preprocessing and classes is typed.

    Args:
        config: from a file; what is missing is added empty.
        file: for messages.

    Raises:
        ValueError: naming the key and its value.
    """
    for key, (kind, wanted) in _PARTS.items():
        if config.get(key) is None:
            config[key] = kind()
        elif not isinstance(config[key], kind):
            raise _refused(file, key, config[key], wanted)
    for key in ("architecture", "num_classes", "label_names"):
        _takes(file, key, config.get(key), "")
    check_images(config[CONFIG_KEY].get(IMAGES_KEY, {}), file)
    check_told(config[CONFIG_KEY].get(LABELS_KEY, {}), file)
    check_training(config[CONFIG_KEY].get(TRAINING_KEY, {}), file)
    cfg = {key: value for key, value in config["pretrained_cfg"].items() if _takes(file, key, value, "pretrained_cfg.")}
    config["pretrained_cfg"] = cfg
    if len(cfg.get("mean", ())) != len(cfg.get("std", ())) and {"mean", "std"} <= cfg.keys():
        raise _refused(file, "pretrained_cfg.mean", cfg["mean"], f"as many numbers as std has ({len(cfg['std'])})")
    labels, classes = cfg.get("label_names"), cfg.get("num_classes")
    if labels and classes and len(labels) != classes:
        raise ValueError(f"{file}: label_names has {len(labels)} names, num_classes says {classes}")
    return config


def _refused(file: Path, key: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{file}: {key} is {printable(_short.repr(value), 80)}; {wanted} would work")


_PARTS: Mapping[str, tuple[type, str]] = {
    "architecture": (str, "the name of a model"),
    "model_args": (dict, "a mapping"),
    "pretrained_cfg": (dict, "a mapping"),
    CONFIG_KEY: (dict, "a mapping"),
}


# ---- how files become images

_NUMBER = r"[-+\d.e]{1,24}"
IMAGE_KINDS: Mapping[str, Any] = {  # what is remembered, and whether a value can be meant
    "scale": lambda value: _matches(rf"dtype|minmax|(percentile:)?{_NUMBER},{_NUMBER}", value),
    "bands": lambda value: _list(value, LONGEST) and all(_whole(band, 1) for band in value),
    "axes": lambda value: _matches("chw|hwc", value),
    "stack": lambda value: _matches(r"[\w.-]{1,64}(,[\w.-]{1,64}){0,63}", value),
}


def _matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _fits(said: Any, kinds: Mapping[str, Any]) -> bool:
    """Whether it is a dictionary with these keys, or some of them, and with values that can be meant."""
    return isinstance(said, dict) and all(key in kinds and kinds[key](value) for key, value in said.items())


def check_images(images: Any, file: Path) -> None:
    """Refuse what is no form of images: it is read by commands, and shown in a card.

    Raises:
        ValueError: naming it.
    """
    if not _fits(images, IMAGE_KINDS):
        raise _refused(file, IMAGES_KEY, images, f"a form of images ({', '.join(IMAGE_KINDS)})")


# ---- what the outputs are

LABEL_KINDS: Mapping[str, Any] = {  # what is remembered of labels, and whether a value can be meant
    "kind": lambda value: value in ("tags", "values"),
    "names": lambda value: _labels(value),
    "mean": lambda value: _list(value, CLASSES) and all(_number(part, -_HUGE, _HUGE) for part in value),
    "std": lambda value: _list(value, CLASSES) and all(_number(part, 0, _HUGE) for part in value),
}
_HUGE = 1e38  # what float32 holds


def check_told(labels: Any, file: Path) -> None:
    """Refuse what says nothing of outputs.

    Raises:
        ValueError: naming it.
    """
    if not _fits(labels, LABEL_KINDS) or (labels and not {"kind", "names"} <= set(labels)):
        raise _refused(file, LABELS_KEY, labels, "a kind (tags, values) and the names of the outputs")
    if lengths := {len(value) for key, value in labels.items() if key != "kind"} - {len(labels.get("names", ()))}:
        raise _refused(file, LABELS_KEY, labels, f"as many numbers as names, not {lengths.pop()},")


# ---- how weights were trained

TRAINING_KINDS: Mapping[str, Any] = {  # what is remembered, and whether a value can be meant
    "recipe": lambda value: value in ("paper", "small"),
    "steps": lambda value: _whole(value, 0, 10**15),
    "batch": lambda value: _whole(value, 1, 10**9),
    "lr": lambda value: _number(value, 0, _HUGE),
}


def check_training(training: Any, file: Path) -> None:
    """Refuse what says nothing of a training: it is shown in cards.

    Raises:
        ValueError: naming it.
    """
    if not _fits(training, TRAINING_KINDS):
        raise _refused(file, TRAINING_KEY, training, f"what is known of a training ({', '.join(TRAINING_KINDS)})")


# ---- pretrained_cfg


def _whole(value: Any, least: int = 0, most: int = MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any, least: float = -1e4, most: float = 1e4) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _text(value: Any, most: int = 200) -> bool:
    return isinstance(value, str) and len(value) <= most and value.isprintable()


def _list(value: Any, most: int) -> bool:
    return isinstance(value, (list, tuple)) and 0 < len(value) <= most


def _input_size(value: Any) -> bool:
    return _list(value, 3) and len(value) == 3 and all(_whole(side, 1, 1 << 14) for side in value)


def _colours(value: Any) -> bool:
    return _list(value, 1024) and all(_number(part) for part in value)


def _positive_colours(value: Any) -> bool:
    return _colours(value) and all(part > 0 for part in value)


def _labels(value: Any) -> bool:
    return _list(value, CLASSES) and all(_text(label, 500) for label in value)


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
CROP_MODES = ("center", "squash", "border", "random")
_SIZE = (_input_size, "[channels, height, width]")
_SHARE = (lambda value: _number(value, 0.01, 10), "a number near 1")
_NAME = (_text, "a short text")
# Whatever stands there beside these is not taken: names of layers are the architecture's own.
_CFG: Mapping[str, Any] = {
    "architecture": _NAME,
    "tag": _NAME,
    "license": _NAME,
    "num_classes": (lambda value: _whole(value, 0, CLASSES), f"a number from 0 to {CLASSES}"),
    "label_names": (_labels, "a list of texts"),
    "input_size": _SIZE,
    "mean": (_colours, "a list of numbers"),
    "std": (_positive_colours, "a list of positive numbers"),
    "crop_pct": _SHARE,
    "interpolation": (lambda value: value in INTERPOLATIONS, " or ".join(INTERPOLATIONS)),
    "crop_mode": (lambda value: value in CROP_MODES, " or ".join(CROP_MODES)),
}


def _takes(file: Path, key: str, value: Any, where: str) -> bool:
    """Whether a key of pretrained_cfg is one that is read; None says nothing.

    Args:
        file: for messages.
        key: in the configuration.
        value: that stands there.
        where: in the file, for messages.

    Raises:
        ValueError: it is, and its value is of another kind.
    """
    if key not in _CFG or value is None:
        return False
    fits, wanted = _CFG[key]
    if not fits(value):
        raise _refused(file, f"{where}{key}", value, wanted)
    return True


# ---- arguments of a model


def arguments_of(cls: type) -> dict[str, Parameter]:
    """The arguments of a class, with those of its bases where it hands others on."""
    found: dict[str, Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(signature(vars(base)["__init__"]).parameters.values())[1:]
        kinds = {parameter.kind for parameter in parameters}
        found = {p.name: p for p in parameters if p.kind not in _VARIADIC} | found
        if Parameter.VAR_KEYWORD not in kinds:
            break
    return found


_VARIADIC = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)


def check_model_args(args: Mapping[str, Any], file: Path, cls: type, also: Mapping[str, str]) -> None:
    """Refuse what is no argument of a model, or no value for it.

    Args:
        args: ``model_args`` of a configuration.
        file: for messages.
        cls: the model's class.
        also: further arguments that its family takes, and their types.

    Raises:
        ValueError: naming the first that is not taken.
    """
    takes = dict(also) | {n: str(p.annotation) for n, p in arguments_of(cls).items() if _kinds(str(p.annotation))}
    for name, value in args.items():
        if name not in takes:
            raise ValueError(
                f"{file}: model_args has {printable(name, 40)!r}, which is no argument of a model; "
                f"{cls.__name__} takes {printable(', '.join(takes), 300)}"
            )
        if wanted := not_fitting(name, value, takes[name]):
            raise _refused(file, f"model_args.{name}", value, wanted)


_WORDS = {
    "bool": "true or false",
    "int": f"a whole number up to {MOST}",
    "float": "a number",
    "str": "one word",
    "list": "a list of them",
    "none": "null",
}
_LIMITS = {"img_size": (1, 1 << 14), "depth": (1, 512), "depths": (0, 512)}  # of numbers that decide on much


def not_fitting(name: str, value: Any, annotation: str) -> str:
    """What would fit an argument, if a value of JSON does not; empty if it does.

    Args:
        name: of the argument.
        value: for it.
        annotation: its type, as Python writes it.
    """
    kinds = _kinds(annotation)
    if not _is_of(value, kinds):
        return " or ".join(words for kind, words in _WORDS.items() if kind in kinds) or "nothing"
    if isinstance(value, (list, tuple)) and re.search(r"uple\[int, int\]", annotation) and len(value) != 2:
        return "a whole number or two"
    if name in _LIMITS and value is not None:
        least, most = _LIMITS[name]
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if not all(least <= number <= most for number in numbers) or (name == "depths" and sum(numbers) > most):
            return f"from {least} to {most}"
    return ""


def _kinds(annotation: str) -> set[str]:
    """What an argument may be, of the things that JSON knows."""
    found = {word for word in ("bool", "int", "float", "str") if re.search(rf"\b{word}\b", annotation)}
    if "Literal" in annotation:
        found.add("str")
    if re.search(r"\b([Tt]uple|Sequence|[Ll]ist)\b", annotation):
        found.add("list")
    if found and re.search(r"\b(None|NoneType|Optional)\b", annotation):
        found.add("none")
    return found


def _is_of(value: Any, kinds: set[str]) -> bool:
    if isinstance(value, (list, tuple)):
        return "list" in kinds and 0 < len(value) <= LONGEST and all(_is_of(v, kinds - {"list"}) for v in value)
    if isinstance(value, bool):
        return "bool" in kinds
    if isinstance(value, int):
        return bool({"int", "float"} & kinds) and _whole(value)
    if isinstance(value, float):
        return "float" in kinds and math.isfinite(value) and abs(value) <= MOST
    if isinstance(value, str):
        return "str" in kinds and re.fullmatch(r"[\w.-]{0,64}", value) is not None
    return value is None and "none" in kinds
