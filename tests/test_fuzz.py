"""No file and no configuration does anything but convert or be refused in one line.

Files and configurations are made from seeds (fuzz.py). A failure names its seed; ``write(seed, folder)`` makes the file
again.
"""

from __future__ import annotations

import faulthandler
import json
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from hiermim_zoo import convert as command
from hiermim_zoo.checkpoints.files import Checkpoint, read_checkpoint
from hiermim_zoo.checkpoints.layout import Layout
from hiermim_zoo.checkpoints.unconvert import to_published
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.mae import create_mae, decoder_state
from hiermim_zoo.models.conversion import convert
from hiermim_zoo.models.family import families
from hiermim_zoo.models.shapes import without_memory

from . import fuzz

ARCH = "hivit_atto"
ARGS = {"img_size": 32, "embed_dim": 16, "depths": [1, 1, 1], "num_heads": 1, "mlp_ratio": 1.0, "stem_mlp_ratio": 1.0}
CONFIG = {
    "architecture": ARCH,
    "num_classes": 2,
    "model_args": ARGS,
    "pretrained_cfg": {
        "num_classes": 2, "input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "tag": "toy",
        "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "license": "mit", "first_conv": None,
        "classifier": "head", "label_names": ["cat", "dog"], "pool_size": None,
    },
    "hiermim_zoo": {"source": "a test", "recipe": {"depth": 1, "dim": 32, "heads": 2}},
}  # fmt: skip
BATCH = 100
MEMORY = 400 << 10  # KB that the process may grow by
LONGEST = 500  # characters of a message, but for a command that helps


class Hung(BaseException):
    """Not an Exception: nobody on the way takes it for a damaged file."""


def hung(*args: object) -> None:
    raise Hung


@contextmanager
def watched(what: str) -> Iterator[None]:
    """Ends what does not end by itself, in Python or below it."""
    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, 60)
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
    try:
        yield
    except Hung:
        pytest.fail(f"{what} does not end")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@cache
def state() -> dict[str, Tensor]:
    """Weights of a few kilobytes."""
    torch.manual_seed(11)
    model = timm.create_model(ARCH, num_classes=2, **ARGS)
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


@cache
def sounds() -> list[fuzz.Sound]:
    return fuzz.sound_files(state())


def write(seed: int, folder: Path) -> tuple[Path, fuzz.Mutant]:
    """The file of a seed, and the configuration beside it that says of which model it is."""
    mutant = fuzz.mutant(seed, sounds(), state())
    (folder / "config.json").write_text(json.dumps({"architecture": ARCH, "model_args": ARGS}))
    file = folder / f"{seed}{mutant.suffix}"
    file.write_bytes(mutant.content)
    return file, mutant


def refusal(convert_it: Callable[[], Any], what: str, named: str) -> tuple[Any, str]:
    """What comes out, or the one line that says why nothing does; anything else is a failure."""
    try:
        return convert_it(), ""
    except Exception as raised:
        error = raised
    ours = type(error) is ValueError or (isinstance(error, ValueError) and "hiermim_zoo" in type(error).__module__)
    assert ours, f"{what}: {error!r}"
    said = str(error)
    assert said.isprintable(), f"{what}: {said!r}"
    assert len(said.partition(" python -c ")[0]) < LONGEST, f"{what}: {said}"
    assert named in said or "tensor '" in said or "tensors (" in said, f"{what}: nothing is named in {said!r}"
    return None, said


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_sound_files_convert(kind: str, tmp_path: Path) -> None:
    """Else the refusals below would say nothing."""
    sound = sounds()[("zip", "legacy", "safetensors").index(kind)]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / f"w{sound.suffix}").write_bytes(sound.content)
    converted = convert(read_checkpoint(tmp_path / f"w{sound.suffix}"), ARCH)
    assert all(torch.equal(tensor, state()[name]) for name, tensor in converted.model.state_dict().items())
    assert create_mae(ARCH, checkpoint=tmp_path, decoder="fresh", num_classes=2).recipe.dim == 32


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 3000, BATCH))
def test_a_damaged_file_converts_to_what_is_sound_in_it_or_is_refused(first: int, tmp_path: Path) -> None:
    before, outcomes = peak(), set()
    for seed in range(first, first + BATCH):
        file, mutant = write(seed, tmp_path)
        what = f"seed {seed} ({fuzz.MAKERS[seed % len(fuzz.MAKERS)].__name__}, {file.name})"
        with watched(what):
            found, said = refusal(lambda file=file: convert(read_checkpoint(file), ARCH), what, str(file))
        outcomes.add(bool(said))
        if found and "*" not in mutant.touched:
            for name, tensor in found.model.state_dict().items():
                changed = name not in mutant.touched and not torch.equal(tensor, state()[name])
                assert not changed, f"{what}: {name} is another"
        file.unlink()
    assert outcomes == {True, False}, "neither are all refused nor none"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert peak() - before < MEMORY


@pytest.mark.slow
def test_the_command_line_ends_with_code_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, refused = tmp_path / "out", 0
    for seed in range(5000, 5040):
        file, _ = write(seed, tmp_path)
        code: Any = 0
        try:
            with watched(f"seed {seed}"):
                run_command(lambda file=file: command.main([str(file), "--model", ARCH, "-o", str(out), "--force"]))
        except SystemExit as stop:
            code = stop.code
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith("error: ") and line.isprintable() for line in lines), f"seed {seed}: {lines}"
        assert (code, len(lines)) in ((0, 0), (2, 1)), f"seed {seed}: {code} {lines}"
        refused += code == 2
        file.unlink()
        assert {path.name for path in tmp_path.iterdir()} <= {"config.json", "out"}, f"seed {seed}"
    assert refused > 20


# ---- other layouts


def toy_layouts() -> list[tuple[str, Layout]]:
    """A small architecture of each family, and the layouts that can be written from it."""
    pairs = []
    for family in families():
        arch = next((arch for arch in family.variants if arch.endswith("_atto") or arch == "test_vit"), None)
        pairs += [(arch, layout) for layout in family.layouts if arch and layout.back and family.mae]
    return pairs


def published(arch: str, layout: Layout) -> dict[str, Tensor]:
    mae = create_mae(arch, recipe={"depth": 1, "dim": 32, "heads": 2})
    with without_memory():
        classes = timm.create_model(arch, num_classes=2)
    head = {name: torch.zeros(t.shape) for name, t in classes.state_dict().items() if name.startswith("head.")}
    encoder = dict(mae.encoder.state_dict())
    for model in (encoder, encoder | head):
        try:
            return to_published(model, decoder_state(mae), layout, timm.create_model(arch, num_classes=0))
        except ValueError as error:
            said = error
    pytest.skip(f"{layout.name} cannot be made of {arch}: {said}")


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "layout"), toy_layouts(), ids=lambda value: getattr(value, "name", value))
def test_every_layout_refuses_other_shapes_types_and_numbers_in_one_line(arch: str, layout: Layout) -> None:
    whole = published(arch, layout)
    for seed in range(25):
        rng, changed = random.Random(f"{layout.name} {seed}"), dict(whole)
        name = rng.choice(list(whole))
        rng.choice((fuzz.of_another_shape, fuzz.of_another_type, fuzz.of_another_number))(rng, changed, name)
        changed = {key: value for key, value in changed.items() if isinstance(value, Tensor)}
        what = f"{layout.name} seed {seed}: {name}"
        with watched(what):
            refusal(lambda state=changed: in_memory(state, arch, layout), what, name)


def in_memory(content: dict[str, Tensor], arch: str, layout: Layout) -> Any:
    from hiermim_zoo.checkpoints.soundness import check_sound
    from hiermim_zoo.models.conversion import Wanted

    check_sound(content, "memory")
    return convert(Checkpoint(Path("memory.pth"), content, "", ""), arch, Wanted(layout=layout.name))


# ---- configurations

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 10**9, 10**30, 1.5, -1e308, "", "word", "x" * 2000, "\x1b[2J", "\u202egnp", "two\nlines",
    "../../etc/passwd", [], [1, 2], [1, 2, 3], [10**9] * 3, [None], ["a"], [[1]], [0.5, "x", {}], {}, {"a": 1},
    {"depth": 10**9},
)  # fmt: skip
STRANGE = ("checkpoint_path", "pretrained_cfg", "cache_dir", "device", "norm_layer", "nothing", "\x1b[2J", "")


def places(content: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths to all values of a configuration."""
    for key, value in content.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from places(value, (*at, key))


def config_of(seed: int) -> tuple[str, dict[str, Any]]:
    rng = random.Random(seed)
    config = json.loads(json.dumps(CONFIG))
    at = rng.choice(
        [*places(CONFIG), *(("model_args", name) for name in STRANGE), ("hiermim_zoo", "recipe", "encoder")]
    )
    inner = config
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value = rng.choice(VALUES)
    return f"seed {seed}: {'.'.join(at)} = {value!r:.60}", config


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, BATCH))
def test_a_strangers_configuration_is_taken_or_refused(first: int, tmp_path: Path) -> None:
    file, outcomes, before = tmp_path / "config.json", set(), peak()
    (tmp_path / "model.safetensors").write_bytes(sounds()[2].content)
    for seed in range(first, first + BATCH):
        what, config = config_of(seed)
        file.write_text(json.dumps(config))
        with watched(what):
            found, said = refusal(lambda: convert(read_checkpoint(tmp_path), ARCH), what, str(file))
            _, also = refusal(
                lambda: create_mae(ARCH, checkpoint=tmp_path, decoder="fresh", num_classes=2), what, str(file)
            )
        outcomes |= {bool(said), bool(also)}
        if found:
            ours = found.model.state_dict()
            same = (
                torch.equal(ours[name], tensor) for name, tensor in state().items() if ours[name].shape == tensor.shape
            )
            assert all(same), what
    assert outcomes == {True, False}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert peak() - before < MEMORY


TEXTS: dict[str, bytes] = {
    "nested": b"[" * 100_000,
    "nested mappings": b'{"a":' * 100_000,
    "no number": b'{"model_args": {"mlp_ratio": NaN}}',
    "twice": b'{"model_args": {}, "model_args": {"depths": [9, 9, 9]}}',
    "no UTF-8": b'{"architecture": "\xff\xfe"}',
    "UTF-16": '{"architecture": "hivit_atto"}'.encode("utf-16"),
    "cut off": b'{"architecture": "hivit',
    "empty": b"",
    "text": b"hello",
    "list": b"[1, 2]",
    "many digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "zero bytes": bytes(100),
    "large": b" " * (17 << 20),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_no_json_of_a_configuration_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(sounds()[2].content)
    (tmp_path / "config.json").write_bytes(TEXTS[kind])
    _, said = refusal(lambda: convert(read_checkpoint(tmp_path), ARCH), kind, "config.json")
    assert "config.json" in said
    _, said = refusal(lambda: create_mae(ARCH, checkpoint=tmp_path, decoder="fresh"), kind, "config.json")
    assert "config.json" in said


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(sounds()[2].content)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8-sig")
    assert convert(read_checkpoint(tmp_path), ARCH).license == "mit"
