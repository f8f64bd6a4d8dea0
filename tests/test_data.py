"""Images for training: what is read in a step depends on the seed and the step, and unreadable files are counted."""

from __future__ import annotations

import math
import os
import random
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor

from hiermim_zoo.data import transforms
from hiermim_zoo.data.batches import EXTRA, LABEL, READ, WANTED, Batching, CheckedBatches, Companions, Reading, batches
from hiermim_zoo.data.kinds import open_images
from hiermim_zoo.data.seeds import seed_of, seeded
from hiermim_zoo.data.transforms import ENOUGH, RandomPart, make_transform, random_part

MEAN = STD = (0.5, 0.5, 0.5)
SIZE = (3, 16, 16)


def write_images(folder: Path, count: int, *, classes: tuple[str, ...] = ("a", "b")) -> Path:
    for i in range(count):
        path = folder / classes[i % len(classes)] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    return folder


def plan(length: int = 12, batch: int = 4, **kwargs: int) -> Batching:
    return Batching(**{"length": length, "batch": batch, "accumulate": 1, "rank": 0, "world": 1, "seed": 7, **kwargs})


def stream(
    source: object, cut: Batching, steps: range, workers: int = 0, **kwargs: object
) -> list[tuple[Tensor, Tensor]]:
    transform = random_part(SIZE, (0.2, 1.0), "bicubic")
    device = torch.device("cpu")
    options: Any = {"mean": MEAN, "std": STD, "input_size": SIZE, "device": device, "workers": workers, **kwargs}
    return [(images, columns) for images, columns, _ in batches(source, transform, cut, steps, **options)]


# ---- who sees what


def test_an_epoch_shows_every_image_once_and_another_epoch_in_another_order() -> None:
    order = [i for batch in plan().micro_batches(0, 6) for i, *_ in batch]
    assert sorted(order[:12]) == sorted(order[12:]) == list(range(12))
    assert order[:12] != order[12:]


def of_no_part(reading: Reading) -> tuple[int, int, int]:
    """What does not depend on the parts of a step."""
    return reading.position, reading.seeds.own, reading.seeds.step


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_processes_and_accumulation_share_the_batch_of_one(world: int, accumulate: int) -> None:
    joint = list(plan().micro_batches(0, 5))
    parts = [list(plan(world=world, accumulate=accumulate, rank=rank).micro_batches(0, 5)) for rank in range(world)]
    for step, whole in enumerate(joint):
        pieces = [part for rank in range(world) for part in parts[rank][step * accumulate : (step + 1) * accumulate]]
        together = [reading for piece in pieces for reading in piece]
        assert sorted(map(of_no_part, together)) == sorted(map(of_no_part, whole))
        assert len({reading.seeds.batch for reading in together}) == world * accumulate
        assert all(len({reading.seeds.batch for reading in piece}) == 1 for piece in pieces)
        assert all(len(piece) == 4 // world // accumulate for piece in pieces)


def test_a_plan_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = list(plan(length=14).micro_batches(0, 9))
    assert list(plan(length=14).micro_batches(4, 9)) == whole[4:]


def test_another_seed_is_another_order() -> None:
    assert list(plan().micro_batches(0, 3)) != list(plan(seed=8).micro_batches(0, 3))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"world": 3}, "multiple of 3"),
        ({"accumulate": 8}, "multiple of 8"),
        ({"batch": 16}, "more than the 12 images"),
    ],
)
def test_batches_that_cannot_be_cut_are_refused(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(**wrong)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_a_step_do_not_depend_on_workers_or_on_where_the_run_began(tmp_path: Path, workers: int) -> None:
    source = open_images(str(write_images(tmp_path, 12)))
    whole = stream(source, plan(), range(6))
    torch.rand(5)
    random.random()
    later = stream(source, plan(), range(2, 6), workers=workers, extra=lambda seeds: ())
    assert len(later) == 4
    for (images, columns), (again, columns_again) in zip(whole[2:], later, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(columns, columns_again)
        assert images.is_contiguous() == again.is_contiguous() is True  # kernels differ in bits with the layout
    assert not torch.equal(whole[0][0], whole[3][0])  # another epoch, other crops


def test_reading_leaves_the_random_numbers_of_the_model_alone(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path, 12)))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    stream(source, plan(), range(3))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index]


def test_numbers_that_travel_with_a_image_follow_from_its_seed(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path, 12)))
    seeds = [seeds.own for batch in plan().micro_batches(0, 3) for _, seeds in batch]
    found = [columns[:, 3] for _, columns in stream(source, plan(), range(3), extra=lambda seeds: [seeds.own % 1000])]
    assert torch.cat(found).tolist() == [seed % 1000 for seed in seeds]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_made_of_a_batch_goes_with_it(tmp_path: Path, workers: int) -> None:
    source = open_images(str(write_images(tmp_path, 12)))
    transform = make_transform(SIZE, is_training=True, color_jitter=0.0, use_prefetcher=True)
    options: Any = {"mean": MEAN, "std": STD, "input_size": SIZE, "device": torch.device("cpu"), "workers": workers}
    options |= {
        "extra": list,
        "prepare": lambda columns: {"sum": columns.sum(0), "process": os.getpid()},
    }
    found = list(batches(source, transform, plan(accumulate=2), range(3), **options))
    assert all(torch.equal(made["sum"], columns.sum(0)) for _, columns, made in found)
    assert all((made["process"] == os.getpid()) == (workers == 0) for *_, made in found)
    parts, steps = ([set(columns[:, EXTRA + n].tolist()) for _, columns, _ in found] for n in (1, 2))
    assert all(len(seeds) == 1 for seeds in (*parts, *steps))
    assert steps[0] == steps[1] != steps[2] == steps[3]  # two parts a step
    assert len(set.union(*parts)) == 6
    assert len({seed for _, columns, _ in found for seed in columns[:, EXTRA].tolist()}) == 12


# ---- kinds of data


def test_folders_nested_flat_and_tarred(tmp_path: Path) -> None:
    nested = write_images(tmp_path / "nested" / "train", 6).parent
    flat = write_images(tmp_path / "flat", 4, classes=("",))
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(nested / "train", "pictures")
    assert open_images(str(nested)).labels == [0, 0, 0, 1, 1, 1]
    assert len(open_images(str(flat))) == 4
    assert open_images(str(flat)).labels is None
    assert open_images(str(tmp_path / "some.tar")).labels == [0, 0, 0, 1, 1, 1]


def test_workers_read_a_tar_that_their_parent_has_open(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(write_images(tmp_path / "pictures", 60), "pictures")
    source = open_images(str(tmp_path / "some.tar"))
    alone = stream(source, plan(length=60), range(30))  # opens the tar in this process
    together = stream(source, plan(length=60), range(30), workers=2, max_bad=0.0)
    source.reopen()  # closes it
    for (images, columns), (again, columns_again) in zip(alone, together, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(columns, columns_again)


def test_only_the_split_asked_for_is_read(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 5)
    write_images(tmp_path / "val", 3)
    assert len(open_images(str(tmp_path), split="train")) == 5
    assert len(open_images(str(tmp_path), split="validation")) == 3


def test_channels_are_those_of_the_model(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path, 2)), channels=1)
    assert source.read(0)[0].mode == "L"
    with pytest.raises(ValueError, match="it has 3 bands, and the model takes 5 channels: choose with --bands"):
        open_images(str(tmp_path), channels=5).read(0)


def test_digits_are_built_in_and_their_splits_do_not_overlap() -> None:
    train, rest = (open_images("digits", split=split) for split in ("train", "validation"))
    assert len(train) + len(rest) == 1797
    assert {image.tobytes() for image in train.images}.isdisjoint(image.tobytes() for image in rest.images)
    assert train.read(0)[0].mode == "RGB"


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, str]:
    """Two webdataset shards of ten images each."""
    folder = write_images(tmp_path / "pictures", 20)
    files = sorted(folder.rglob("*.png"))
    for shard in range(2):
        with tarfile.open(tmp_path / f"part-{shard}.tar", "w") as tar:
            for i, file in enumerate(files[shard * 10 : (shard + 1) * 10]):
                tar.add(file, f"{shard}{i:03d}.png")
                label = tmp_path / "label.cls"
                label.write_text(str(i % 2))
                tar.add(label, f"{shard}{i:03d}.cls")
    return {"spec": "wds/any", "root": str(tmp_path), "split": "part-{0..1}.tar|20"}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_stream_is_read_again_up_to_where_the_run_goes_on(shards: dict[str, str], workers: int) -> None:
    pytest.importorskip("webdataset", reason="webdataset comes with the extra data")
    whole, later = (
        stream(
            open_images(shards["spec"], root=shards["root"], split=shards["split"], seed=3),
            plan(length=20),
            steps,
            workers,
        )
        for steps in (range(8), range(3, 8))
    )
    assert [len(columns) for _, columns in whole] == [4] * 8
    for (images, columns), (again, columns_again) in zip(whole[3:], later, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(columns, columns_again)
    assert set(torch.cat([columns[:, LABEL] for _, columns in whole]).tolist()) == {0, 1}


# ---- parts of images


SCALE = (0.2, 1.0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of 640 x 427 pixels as JPEGs of several kinds."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn comes with the extra probe")
    folder = tmp_path_factory.mktemp("photographs")
    photograph = Image.fromarray(datasets.load_sample_image("china.jpg"))
    photograph.save(folder / "china.jpg", quality=90)
    photograph.save(folder / "china-progressive.jpg", quality=90, progressive=True)
    photograph.convert("L").save(folder / "china-grey.jpg", quality=90)
    photograph.convert("CMYK").save(folder / "china-cmyk.jpg", quality=90)
    return folder


def timms(size: tuple[int, int, int], interpolation: str) -> Any:
    return make_transform(
        size, is_training=True, scale=SCALE, color_jitter=0.0, interpolation=interpolation, use_prefetcher=True
    )


def differences(ours: Any, theirs: Any, image: Any) -> Tensor:
    """Levels between what two transforms make of an image, with the same random numbers, for some seeds."""
    found = []
    for seed in range(8):
        made = []
        for transform in (ours, theirs):
            with seeded(seed):
                made.append(torch.as_tensor(transform(image())).int())
        found.append(made[0] - made[1])
    return torch.stack(found).abs()


def psnr(levels: Tensor) -> float:
    """Of 8-bit values that are so many levels apart, in dB."""
    return 20 * math.log10(255 / levels.double().pow(2).mean().sqrt().item())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_part_is_that_of_timm_but_for_rounding(photographs: Path, mode: str, interpolation: str) -> None:
    whole = Image.open(photographs / "china.jpg").convert(mode)
    size = (len(whole.getbands()), 160, 192)
    ours, theirs = random_part(size, SCALE, interpolation), timms(size, interpolation)
    apart = differences(ours, theirs, lambda: whole)
    assert (apart <= 1).float().mean() > 0.9995  # others are beside hard edges of parts that are enlarged
    assert psnr(apart) > 58
    aside = ImageChops.offset(whole, 1, 0)
    assert psnr(differences(ours, lambda _: theirs(aside), lambda: whole)) < 35


@pytest.mark.parametrize(("mode", "interpolation"), [("RGBA", "bicubic"), ("RGB", "lanczos"), ("L", "nearest")])
def test_what_torch_cannot_resize_is_exactly_that_of_timm(photographs: Path, mode: str, interpolation: str) -> None:
    whole = Image.open(photographs / "china.jpg").convert(mode)
    if mode == "RGBA":
        whole.putalpha(whole.getchannel("G"))
    size = (len(whole.getbands()), 64, 48)
    assert not differences(random_part(size, SCALE, interpolation), timms(size, interpolation), lambda: whole).any()


@pytest.mark.parametrize("kind", ["", "-progressive", "-grey", "-cmyk"])
def test_parts_of_jpegs_for_training_look_like_those_of_whole_images(photographs: Path, kind: str) -> None:
    source = open_images(str(photographs))
    (position,) = (n for n in range(len(source)) if source.name_of(n).endswith(f"china{kind}.jpg"))
    widths = set()

    def for_training(_: Any) -> Tensor:
        image = source.read(position, seed=0)[0]
        made: Tensor = random_part((3, 32, 32), SCALE, "bicubic")(image)
        widths.add(image.width)
        return made

    apart = differences(for_training, timms((3, 32, 32), "bicubic"), lambda: source.read(position)[0])
    assert psnr(apart) > 33  # their edges are up to a quarter of a pixel aside
    assert widths == ({640} if kind in ("-grey", "-cmyk") else {320, 160})  # no mode but that of the model


@pytest.mark.parametrize(("factor", "mode"), [(2, "RGB"), (4, "RGB"), (8, "RGB"), (2, "L"), (8, "L")])
def test_decoding_less_changes_values_by_less_than_two_levels(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: int, mode: str
) -> None:
    whole = Image.open(photographs / "china.jpg").convert(mode).crop((0, 0, 512, 384))
    whole.save(tmp_path / "whole.jpg", quality=90)
    part = RandomPart((192 // factor, 256 // factor), (1.0, 1.0), "bicubic")  # all of it: no other fits

    def apart() -> float:
        image, complete = (Image.open(tmp_path / "whole.jpg") for _ in range(2))
        complete.load()
        with seeded(0):  # one draw in ninety leaves out a column, and then more is decoded
            levels = part(image).int() - part(complete).int()
        assert complete.width == 512 > image.width
        return psnr(levels)

    assert apart() > 43  # two levels are 42 dB
    monkeypatch.setattr(transforms, "ENOUGH", 1)
    assert factor == 8 or apart() < 39  # there is no way to decode less than an eighth


def test_no_more_is_decoded_than_enough(photographs: Path) -> None:
    parts: list[tuple[int, int]] = []

    class Noted(RandomPart):
        def resized(self, image: Image.Image) -> Tensor:
            parts.append(image.size)
            return super().resized(image)

    factors = set()
    for seed in range(30):
        with seeded(seed):
            image = Image.open(photographs / "china.jpg")
            Noted((24, 40), SCALE, "bicubic")(image)
            factors.add(factor := round(640 / image.width))
        (width, height) = parts[-1]
        assert factor == 1 or (width >= ENOUGH * 40 - 1 and height >= ENOUGH * 24 - 1)
        assert factor == 8 or width < 2 * ENOUGH * 40 + 2 or height < 2 * ENOUGH * 24 + 2
    assert factors == {2, 4}


def test_images_for_evaluation_are_decoded_as_a_whole(photographs: Path) -> None:
    source = open_images(str(photographs))
    for image in (source.read(0)[0], source.some(1)[0], next(iter(source))[0]):
        assert image.draft(None, (80, 53)) is None
        assert image.size == (640, 427)
    assert source.read(1)[0].tobytes() == Image.open(source.name_of(1)).convert("RGB").tobytes()


# ---- what cannot be read


def spoil(folder: Path, count: int) -> list[Path]:
    files = sorted(folder.rglob("*.png"))[:count]
    for file in files:
        file.write_bytes(b"no image")
    return files


def test_an_unreadable_image_is_named_once_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_images(str(write_images(tmp_path, 12)))
    (broken,) = spoil(tmp_path, 1)
    found = stream(source, plan(), range(9), max_bad=0.1)  # three epochs
    columns = torch.cat([columns for _, columns in found])
    replaced = columns[columns[:, WANTED] == 0]
    assert len(replaced) == 3
    assert (replaced[:, READ] != 0).all()
    assert (columns[:, READ] != 0).all()
    assert capsys.readouterr().err.count(str(broken)) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_jpeg_that_ends_too_early_is_replaced(
    tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(4):
        noise = np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{n}.jpg")
    broken = tmp_path / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:-500])  # its header is whole
    source = open_images(str(tmp_path))
    with pytest.raises(OSError, match="truncated"):
        source.read(2)
    columns = torch.cat([columns for _, columns in stream(source, plan(length=4), range(2), workers, max_bad=0.25)])
    assert sorted(columns[:, WANTED].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert 2 not in columns[:, READ]
    assert str(broken) in capsys.readouterr().err


def test_too_many_unreadable_images_stop_the_run(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path, 12)))
    spoil(tmp_path, 2)
    with pytest.raises(ValueError, match=r"2 of 12 images cannot be read.*--max-bad 0.1"):
        stream(source, plan(), range(3), max_bad=0.1)


def test_watching_counts_images_not_occasions(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path, 4)))
    columns = torch.tensor([[0, 2, 3], [0, 1, 1]])
    watched = CheckedBatches([(torch.zeros(2), Companions(columns))] * 5, source, max_bad=0.25)
    assert len(list(watched)) == 5
    assert watched.bad == {2}


def test_data_without_any_readable_image_says_so(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path, 12)))
    spoil(tmp_path, 12)
    with pytest.raises(
        ValueError, match=r"one after the other cannot be read, .*; the last one: ValueError: it is no image"
    ):
        stream(source, plan(), range(1), max_bad=1.0)


@pytest.mark.parametrize("spec", ["missing", "empty", "text.txt", "hfds", "nothing/of/timm"])
def test_data_that_is_none_is_refused(tmp_path: Path, spec: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no tar")
    with pytest.raises(ValueError, match=spec):
        open_images(str(tmp_path / spec))


def test_a_decompression_bomb_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_images(str(write_images(tmp_path, 4)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # ours have 120
    with pytest.raises(ValueError, match="pixels are more than 100, and may take all memory; --max-pixels allows them"):
        source.read(0)


def test_seeds_of_combinations_differ() -> None:
    seeds = {seed_of(a, b, c) for a in range(3) for b in range(5) for c in islice(range(1000), 0, None, 7)}
    assert len(seeds) == 3 * 5 * 143
