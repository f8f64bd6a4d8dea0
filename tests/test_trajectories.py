"""What plain ViTs, HPViT, HiViT and GreenMIM do at published settings, against closed forms of the authors' sources.

Hiera's rows are in test_trajectories_hiera.py. Letters: e epochs since the start, W warm-up, E epochs of the run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from hiermim_zoo.data.batches import Batching
from hiermim_zoo.geometry import sincos_table
from hiermim_zoo.mae import create_mae
from hiermim_zoo.models.family import families
from hiermim_zoo.training.masks import visible_units

from .trajectories import FineTuning, Pretraining, check_finetuning, check_pretraining

# ---- closed forms


def cosine(peak: float, floor: float, progress: float) -> float:
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def mae_rate(e: float, peak: float, warmup: float, epochs: float, floor: float = 0.0) -> float:
    """MAE, util/lr_sched.py."""
    return peak * e / warmup if e < warmup else cosine(peak, floor, (e - warmup) / (epochs - warmup))


def simmim_rate(e: float, peak: float, warmup: float, epochs: float, floor: float, start: float) -> float:
    """SimMIM, lr_scheduler.py: timm's cosine whose warm-up lies over its beginning."""
    return start + (peak - start) * e / warmup if e < warmup else cosine(peak, floor, e / epochs)


def more_than_one_axis(name: str, axes: int) -> bool:
    """timm's add_weight_decay, as MAE and HiViT call it."""
    return axes > 1 and not name.endswith(".bias")


def no_tokens_no_bias_tables(name: str, axes: int) -> bool:
    """GreenMIM, main_pretrain.py."""
    return more_than_one_axis(name, axes) and "position_bias" not in name and "token" not in name


GREEN: dict[str, Any] = {"decays": no_tokens_no_bias_tables, "visible": (12, 49), "masks": "batch"}
PLAIN: dict[str, Any] = {
    "epochs": 1600, "batch": 4096, "decays": more_than_one_axis, "frozen": ("encoder.pos_embed", "decoder.pos_embed"),
    "rate": lambda e: mae_rate(e, 1.5e-4 * 4096 / 256, 40, 1600),
}  # fmt: skip
PRETRAINING = [
    Pretraining("vit_base_patch16_224", visible=(49, 196), **PLAIN),
    Pretraining("vit_huge_patch14_224", visible=(64, 256), **PLAIN),
    Pretraining(  # its loop counts epochs from 1; positions are trained and decay
        "hivit_base", 1600, 4096, lambda e: mae_rate(e + 1, 1e-4 * 4096 / 256, 40, 1600), more_than_one_axis, (49, 196)
    ),
    Pretraining("green_swin_base", 800, 2048, lambda e: mae_rate(e, 1e-4 * 2048 / 256, 40, 800), **GREEN),
    Pretraining("green_swin_base_win14", 800, 2048, lambda e: mae_rate(e, 1.5e-4 * 2048 / 256, 40, 800), **GREEN),
    Pretraining("green_swin_large_win14", 800, 2048, lambda e: mae_rate(e, 1e-4 * 2048 / 256, 40, 800), **GREEN),
    Pretraining("green_twins_large", 100, 4096, lambda e: mae_rate(e, 1.5e-4 * 4096 / 256, 40, 100), **GREEN),
]


def vit_layer(name: str, depth: int) -> int:
    """MAE, util/lr_decay.py."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


def hivit_layer(name: str) -> int:
    """HiViT-B, util/lr_decay.py: of 30 slots, 4 and 9 are mergings, which count with the block before them."""
    if name == "absolute_pos_embed" or name.startswith("patch_embed"):
        return 0
    if not name.startswith("blocks"):
        return 29
    slot = int(name.split(".")[1])
    return slot + 1 - (slot >= 4) - (slot >= 9)


def hpvit_layer(name: str) -> int:
    """HPViT-B as a plain ViT: the twelve blocks one after the other, whatever stands between them."""
    return vit_layer(name, 12)


def swin_layer(name: str) -> int:
    """SimMIM, optimizer.py, with depths of 2, 2, 18, 2. In timm a merging stands before the stage that it leads to."""
    depths = (2, 2, 18, 2)
    if name.startswith("patch_embed"):
        return 0
    if not name.startswith("layers"):
        return sum(depths) + 1
    _, stage, part, *rest = name.split(".")
    before = sum(depths[: int(stage)])
    return before if part == "downsample" else before + int(rest[0]) + 1


def but(*tables: str) -> Any:
    return lambda name, axes: more_than_one_axis(name, axes) and not name.endswith(tables)


def tuned(arch: str, blr: float, epochs: int, decay: float, layer: Any, layers: int) -> FineTuning:
    """By MAE's recipe: the rate, and its floor, times the scale of the layer."""
    peak, without = blr * 1024 / 256, but("pos_embed", "cls_token", "relative_position_bias_table")
    return FineTuning(
        arch, epochs, 1024, lambda e, scale: scale * mae_rate(e, peak, 5, epochs, 1e-6), without, layer, layers, decay
    )


def simmim(arch: str, base: float, floor: float, start: float, decay: float, batch: int = 768) -> FineTuning:
    """By SimMIM's: all rates are those of 512 images; floor and start are the same in all layers."""
    peak, low, first = (rate * batch / 512 for rate in (base, floor, start))
    return FineTuning(
        arch, 100, batch, lambda e, scale: simmim_rate(e, scale * peak, 20, 100, low, first),
        but("relative_position_bias_table"), swin_layer, 25, decay, clip=5.0,
        options={} if batch == 768 else {"batch_size": batch},
    )  # fmt: skip


HIVIT = tuned("hivit_base", 5e-4, 100, 0.85, hivit_layer, 29)
FINE_TUNING = [
    tuned("vit_base_patch16_224", 5e-4, 100, 0.65, lambda name: vit_layer(name, 12), 13),
    tuned("vit_large_patch16_224", 1e-3, 50, 0.75, lambda name: vit_layer(name, 24), 25),
    tuned("vit_huge_patch14_224", 1e-3, 50, 0.75, lambda name: vit_layer(name, 32), 33),
    tuned("hpvit_base", 5e-4, 100, 0.65, hpvit_layer, 13),
    replace(HIVIT, rate=lambda e, scale: scale * mae_rate(e + 1, 5e-4 * 4, 5, 100, 1e-6)),
    simmim("green_swin_base", 1.25e-3, 2.5e-7, 2.5e-7, 0.9),
    simmim("green_swin_base", 1.25e-3, 2.5e-7, 2.5e-7, 0.9, batch=1024),  # the README of 2022
    simmim("green_swin_large_win14", 1e-3, 3.5e-7, 2e-7, 0.8),
]


@pytest.mark.parametrize("case", PRETRAINING, ids=lambda case: case.arch)
def test_pretraining_is_the_authors(case: Pretraining) -> None:
    check_pretraining(case)


@pytest.mark.parametrize("case", FINE_TUNING, ids=lambda case: f"{case.arch}-{case.batch}")
def test_fine_tuning_is_the_authors(case: FineTuning) -> None:
    check_finetuning(case)


def test_another_course_is_noticed() -> None:
    """Negative control: the schedules and decays that were here before."""
    hivit, swin = PRETRAINING[2], PRETRAINING[3]
    for wrong in (
        replace(hivit, rate=lambda e: mae_rate(e, 1.6e-3, 40, 1600)),
        replace(swin, decays=lambda name, axes: no_tokens_no_bias_tables(name, axes) or name == "decoder.mask_token"),
        replace(swin, masks="step"),
        replace(PRETRAINING[0], frozen=("decoder.pos_embed",)),
    ):
        with pytest.raises(AssertionError):
            check_pretraining(wrong)
    base = FINE_TUNING[5]
    for other in (
        HIVIT,
        replace(base, rate=lambda e, scale: scale * mae_rate(e, 1.875e-3, 20, 100, 2.5e-7)),
        replace(base, layer=lambda name: swin_layer(name) + ("downsample" in name)),
        replace(base, layer=lambda name: 24 if name.startswith("norm") else swin_layer(name)),
        replace(base, clip=None),
    ):
        with pytest.raises(AssertionError):
            check_finetuning(other)


def test_figures_of_the_sources() -> None:
    """What can be read in them without a formula."""
    assert HIVIT.rate(1, 1) == pytest.approx(2e-3 / 5)  # the rate of the second epoch, with which fine-tuning begins
    after = simmim_rate(20, 1, 20, 100, 0, 0)
    assert after == pytest.approx(0.9045, abs=1e-4)
    assert sum(simmim_rate(e / 10, 1, 20, 100, 0, 0) for e in range(200, 1000)) / 800 == pytest.approx(0.384, abs=1e-3)


# ---- masks


def masks_of(kind: str, world: int, accumulate: int) -> list[list[list[int]]]:
    """The masks of two steps of 16 images, image after image, as the processes see them together."""
    parts = {}
    for rank in range(world):
        batching = Batching(64, 16, accumulate, rank, world, seed=3)
        for n, readings in enumerate(batching.micro_batches(0, 2)):
            step, turn = divmod(n, accumulate)
            parts[step, turn * world + rank] = [visible_units(49, 12, kind, reading.seeds) for reading in readings]
    return [[mask for part in sorted(p for p in parts if p[0] == step) for mask in parts[part]] for step in (0, 1)]


@pytest.mark.parametrize(("kind", "masks"), [("sample", 16), ("batch", 8), ("step", 1)])
def test_masks_of_a_step(kind: str, masks: int) -> None:
    """With 8 micro-batches in a step, whoever computes them."""
    seen = masks_of(kind, 8, 1)
    assert [len({tuple(mask) for mask in step}) for step in seen] == [masks, masks]
    assert all(len(mask) == 12 for step in seen for mask in step)
    assert seen == masks_of(kind, 1, 8) == masks_of(kind, 4, 2)
    assert (seen == masks_of(kind, 1, 1)) == (kind != "batch")  # one micro-batch, hence one mask
    assert masks_of("batch", 1, 1) == masks_of("step", 1, 1)


# ---- the start


def test_a_plain_vit_starts_as_maes() -> None:
    torch.manual_seed(0)
    mae = create_mae("vit_small_patch16_224", recipe={"depth": 1, "dim": 32, "heads": 2}, img_size=(224, 160), depth=1)
    encoder: Any = mae.encoder
    table = encoder.pos_embed.detach()
    assert not table[:, 0].any()
    assert torch.equal(table[:, 1:], sincos_table((14, 10), 384))
    column, row = table[0, 1 + 3 * 10 + 7, :96], table[0, 1 + 3 * 10 + 7, 192:288]  # the patch of row 3, column 7
    frequency = 10000.0 ** -(torch.arange(96, dtype=torch.float64) / 96)
    torch.testing.assert_close(column, (7 * frequency).sin().float())  # w goes first
    torch.testing.assert_close(row, (3 * frequency).sin().float())
    assert encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert encoder.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    assert encoder.pretrained_cfg["std"] == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(("arch", "spread"), [("hivit_atto", 0.02), ("hiera_atto", None), ("green_swin_atto", None)])
def test_decoders_start_as_their_authors(arch: str, spread: float | None) -> None:
    torch.manual_seed(0)
    decoder = create_mae(arch).decoder
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            fan = sum(module.weight.shape)
            wanted = spread or math.sqrt(2 / fan)  # truncated normal, or Xavier-uniform
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.05), name
            assert not module.bias.any()


def test_every_row_names_its_source() -> None:
    for family in families():
        for rows in (family.mae, family.pretraining, family.fine_tuning):
            assert all(row.source for row in (rows.usual, *rows.others.values()) if row is not None), family.name
