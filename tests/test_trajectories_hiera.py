"""Hiera at the settings of its paper, from the first step to the last.

Learning rate, weight decay and layer scale of named parameters, visible units, what is shown. Models are the published
ones: narrower for pre-training, on the meta device for fine-tuning. Steps are taken by the code of the commands, with
gradients left out. What is expected is written from arXiv 2306.00989, appendix A. SAM 2's encoder starts from a Hiera
(arXiv 2408.00714), so it has the columns of the Hiera of its size, at its own size of images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hiermim_zoo.commands.options.pretrain import PretrainOptions
from hiermim_zoo.data.batches import Batching
from hiermim_zoo.data.clips import Clips
from hiermim_zoo.data.source import Source, VideoSet
from hiermim_zoo.data.transforms import data_config
from hiermim_zoo.training import finetuning
from hiermim_zoo.training.autoencoder import build_autoencoder
from hiermim_zoo.training.beginning import Beginning
from hiermim_zoo.training.defaults import family_values, followed
from hiermim_zoo.training.distributed import World
from hiermim_zoo.training.finetuning import FineTune, TuningSettings, new_classifier, recipe_for
from hiermim_zoo.training.optimizer import make_optimizer
from hiermim_zoo.training.pretraining import Run
from hiermim_zoo.training.small import with_intervals
from hiermim_zoo.training.tasks import Goal

META, CPU = torch.device("meta"), torch.device("cpu")
IMAGENET, KINETICS = 1_281_167, 240_436  # images, videos
DEPTHS = {"tiny": 12, "small": 16, "base": 24, "base_plus": 24, "large": 48, "huge": 48}
SAM2 = {"sam2_small": (28, 313), "sam2_base_plus": (28, 313), "sam2_large": (32, 409)}  # units
SIZES = [*DEPTHS, "base_video", "large_video", *SAM2]


@dataclass(frozen=True)
class Pre:
    """A column of the table of pre-training."""

    drop_path: float
    n: int = IMAGENET
    batch: int = 4096
    openings: int = 1600  # of every image or video
    warmup: int = 40  # of these
    clips: int = 1  # of an opening
    peak: float = 8e-4  # of the whole batch
    units: int = 49  # 7 x 7
    visible: int = 19  # of them: 40 % are 19.6, and the authors' code cuts off


CLIPS = {"n": KINETICS, "batch": 512, "openings": 800, "warmup": 30, "clips": 4, "units": 8 * 49, "visible": 39}
PRE = {
    "tiny": Pre(0.0),
    "small": Pre(0.0),
    "base": Pre(0.2),
    "base_plus": Pre(0.2),
    "large": Pre(0.2),
    "huge": Pre(0.3),
    "base_video": Pre(0.1, **CLIPS),
    "large_video": Pre(0.2, **CLIPS),
}
PRE |= {
    name: replace(PRE[name.removeprefix("sam2_")], units=side**2, visible=visible)
    for name, (side, visible) in SAM2.items()
}


@dataclass(frozen=True)
class Tune:
    """A column of the table of fine-tuning."""

    openings: int
    peak: float
    layer_decay: float
    drop_path: float = 0.1
    n: int = IMAGENET
    batch: int = 1024
    warmup: int = 5  # openings
    clips: int = 1
    dropout: float = 0.0
    clip: float | None = None


MORE: dict[str, Any] = {"drop_path": 0.2, "n": KINETICS, "batch": 256, "clips": 2, "clip": 5.0}
TUNE = {
    "tiny": Tune(300, 2e-3, 0.65),
    "small": Tune(200, 2e-3, 0.65),
    "base": Tune(100, 2e-3, 0.7),
    "base_plus": Tune(100, 1e-3, 0.7),
    "large": Tune(50, 1e-3, 0.85),
    "huge": Tune(50, 1e-3, 0.85, 0.3),
    "base_video": Tune(75, 8e-4, 0.8, dropout=0.3, **MORE),
    "large_video": Tune(50, 8e-4, 0.875, dropout=0.5, **MORE),
}
TUNE |= {name: TUNE[name.removeprefix("sam2_")] for name in SAM2}


class Named(Source):
    """So many images, none of which is read."""

    def __init__(self, count: int) -> None:
        self.count, self.identity = count, count

    def __len__(self) -> int:
        return self.count

    def read(self, position: int, seed: int | None = None) -> tuple[Any, int]:
        raise AssertionError("no image is read")


class NamedVideos(VideoSet):
    def __init__(self, count: int) -> None:
        self.count, self.identity, self.labels = count, count, [0, 1]

    def __len__(self) -> int:
        return self.count

    def name_of(self, position: int) -> str:
        return str(position)

    def open(self, position: int) -> Any:
        raise AssertionError("no video is opened")


def source_of(n: int, clips: int) -> Source:
    return Clips(NamedVideos(n), 16, repeat=clips) if clips > 1 else Named(n)


def expected_rate(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    """Rises from 0 in a line, falls in half a cosine."""
    if step < warmup:
        return peak * step / warmup
    return floor + (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def moments(total: int, warmup: int) -> list[int]:
    """Steps, counted from 0, that are looked at."""
    return [0, 1, warmup // 2, warmup - 1, warmup, (warmup + total) // 2, total - 1]


def by_name(model: torch.nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    """What the optimiser says of each parameter."""
    values = {id(p): group.get(key, 1.0) for group in optimizer.param_groups for p in group["params"]}
    return {name: values[id(p)] for name, p in model.named_parameters() if id(p) in values}


def no_backward(*_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return torch.zeros(()), torch.zeros(1, dtype=torch.int64)


def drop_paths(blocks: Iterable[Any]) -> list[float]:
    return [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]


# ---- pre-training


def pretraining_run(size: str) -> Run:
    """Of the published length, as the command makes it."""
    narrow: dict[str, Any] = {"decoder_dim": 16, "decoder_heads": 2, "model_kwargs": {"embed_dim": 8}}
    options = PretrainOptions(data="any", model=f"hiera_{size}", output=Path("none"), amp="none", **narrow)
    options = options.filled(family_values(options.model))
    rows = followed(options.model, None)
    mae = build_autoencoder(options, rows.recipe)
    source = source_of(PRE[size].n, options.repeat or 1)
    data: Any = type("Data", (), {"source": source})
    batching = Batching(len(source), options.batch_size, 1, 0, 1, 0, source.repeat)
    options = with_intervals(replace(options, recipe="paper"), batching.per_pass, batching.per_epoch)
    run = Run(Beginning(options, None, rows, mae, data, batching), World(0, 1, CPU))
    run.holds_gradients = False
    run.backward = no_backward  # type: ignore[method-assign]
    return run


@pytest.mark.parametrize("size", SIZES)
def test_pretraining_is_that_of_the_paper(size: str) -> None:
    row, run = PRE[size], pretraining_run(size)
    pass_steps = row.n * row.clips // row.batch
    total, warmup = row.openings * pass_steps, row.warmup * pass_steps
    assert run.total == total
    shown = total * row.batch
    assert 0.997 < shown / (row.openings * row.clips * row.n) <= 1, "all, but for what does not fill a batch"
    for step in moments(total, warmup):
        run.step(step + 1, [])
        [rate] = {group["lr"] for group in run.optimizer.param_groups}
        assert rate == pytest.approx(expected_rate(step, total, warmup, row.peak, 0.0), rel=1e-9)
    assert rate < 1e-6 * row.peak, "the rate ends at 0"
    decays = by_name(run.mae, run.optimizer, "weight_decay")
    check_decays(decays, "encoder.", "decoder.pos_embed")
    assert (decays["decoder.mask_token"], decays["decoder.embed.weight"]) == (0.05, 0.05)
    assert {tuple(group["betas"]) for group in run.optimizer.param_groups} == {(0.9, 0.95)}
    assert (run.mae.units, run.mae.kept) == (row.units, row.visible)
    encoder: Any = run.mae.encoder
    ramp = torch.linspace(0, row.drop_path, len(encoder.blocks)).tolist()
    assert drop_paths(encoder.blocks) == pytest.approx(ramp)
    assert run.options.clip is None, "unverified for clips: MAE on clips has 0.02"


def check_decays(decays: dict[str, float], encoder: str, *tables: str) -> None:
    """0.05 for weights; nothing for biases, norms and positions."""
    positions = [name for name in decays if "pos_embed" in name]
    assert positions
    assert set(tables) <= set(positions)
    assert {decays[name] for name in positions} == {0.0}
    plain = {name: decay for name, decay in decays.items() if name not in positions}
    for kind, decay in (("qkv.weight", 0.05), ("fc1.weight", 0.05), ("qkv.bias", 0.0), ("norm1.weight", 0.0)):
        assert {value for name, value in plain.items() if name.endswith(kind)} == {decay}
    assert decays[f"{encoder}patch_embed.proj.weight"] == 0.05
    assert decays[f"{encoder}patch_embed.proj.bias"] == 0.0


def test_what_was_wrong_in_pretraining_would_be_seen() -> None:
    """Epochs that open every video, units that are rounded, positions that decay."""
    row, run = PRE["base_video"], pretraining_run("base_video")
    assert run.options.epochs == row.openings * row.clips, "the number of the paper is the option"
    faulty = run.options.epochs * run.batching.per_pass
    assert faulty == 4 * run.total
    before = expected_rate(run.total - 1, round(faulty), round(120 * run.batching.per_pass), row.peak, 0.0)
    assert before > 0.8 * row.peak, "when all is shown that the paper shows, the rate was near its peak"
    assert round(49 * 0.4) != PRE["base"].visible
    decays = by_name(run.mae, make_optimizer(run.mae, "adamw", 0.05, (0.9, 0.95)), "weight_decay")
    with pytest.raises(AssertionError):
        check_decays(decays, "encoder.", "decoder.pos_embed")


def test_openings_and_clips_are_counted_one_by_one() -> None:
    """Eight epochs of four clips are two openings of each video, and eight clips; of images, eight of each."""
    for repeat, openings in ((4, 2), (1, 8)):
        batching = Batching(12, 12, 1, 0, 1, 0, repeat)
        read = [one.position for part in batching.micro_batches(0, batching.steps_of_run(8)) for one in part]
        assert [read.count(position) for position in range(12)] == [openings] * 12
        assert batching.steps_of_run(8) * batching.batch == 8 * 12


# ---- fine-tuning


def tuning_of(size: str, monkeypatch: pytest.MonkeyPatch) -> tuple[FineTune, list[float | None]]:
    """A run of the published length; the norms that gradients are clipped at, or None, come into the list."""
    arch, row = f"hiera_{size}", TUNE[size]
    recipe = recipe_for(arch)
    with META:
        model = new_classifier(arch, arch, 1000, recipe, pretrained=False, seed=0)
    norms: list[float | None] = []

    def noted(parameters: Any, most: float | None) -> torch.Tensor:
        norms.append(most)
        return torch.zeros(())

    monkeypatch.setattr(finetuning, "gradient_norm", noted)
    source = source_of(row.n, recipe.repeat)
    tuning = FineTune(
        model, source, Goal("classes", 1000), data_config(model), recipe, TuningSettings(), World(0, 1, CPU)
    )
    tuning._backward = lambda more: torch.zeros(())  # type: ignore[method-assign]
    return tuning, norms


def expected_scale(name: str, depth: int, decay: float) -> float:
    """The stem is layer 0, the blocks are 1 to their number, norm and classifier come last, with the whole rate."""
    first = name.split(".")[0]
    if first == "blocks":
        return decay ** (depth - int(name.split(".")[1]))
    return 1.0 if first in ("fc_norm", "head") else decay ** (depth + 1)


@pytest.mark.parametrize("size", SIZES)
def test_fine_tuning_is_that_of_the_paper(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, (tuning, norms) = TUNE[size], tuning_of(size, monkeypatch)
    pass_steps = row.n * row.clips // row.batch
    total, warmup = row.openings * pass_steps, row.warmup * pass_steps
    assert tuning.total == total
    assert 0.995 < total * row.batch / (row.openings * row.clips * row.n) <= 1
    depth = DEPTHS[size.removesuffix("_video").removeprefix("sam2_")]
    names = [name for name, _ in tuning.model.named_parameters()]
    scales = {name: expected_scale(name, depth, row.layer_decay) for name in names}
    assert by_name(tuning.model, tuning.optimizer, "lr_scale") == pytest.approx(scales)
    for step in moments(total, warmup):
        tuning._step(step)
        rate = expected_rate(step, total, warmup, row.peak, 1e-6)
        expected = {name: rate * scale for name, scale in scales.items()}
        assert by_name(tuning.model, tuning.optimizer, "lr") == pytest.approx(expected, rel=1e-9)
    check_decays(by_name(tuning.model, tuning.optimizer, "weight_decay"), "")
    assert {tuple(group["betas"]) for group in tuning.optimizer.param_groups} == {(0.9, 0.999)}
    assert norms == [row.clip or None] * len(moments(total, warmup))
    model: Any = tuning.model
    assert model.head_drop.p == row.dropout
    assert drop_paths(model.blocks) == pytest.approx(torch.linspace(0, row.drop_path, depth).tolist())


def test_what_was_wrong_in_fine_tuning_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many openings, no dropout, no clipping."""
    for size, published in (("base_video", 150), ("large_video", 100)):
        row, (tuning, _) = TUNE[size], tuning_of(size, monkeypatch)
        assert tuning.recipe.epochs == published == 2 * row.openings
        assert tuning.recipe.warmup == 2 * row.warmup
        assert tuning.recipe.epochs * tuning.batching.per_pass == 2 * tuning.total
    plain = recipe_for("hiera_base")
    assert (plain.dropout, plain.clip) == (0.0, None)
    assert (tuning.recipe.dropout, tuning.recipe.clip) != (plain.dropout, plain.clip)
