"""Kinds of data: a new one is one class and one row, and every one answers for itself."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from hiermim_zoo import evaluate
from hiermim_zoo.data import images, splits
from hiermim_zoo.data.batches import LABEL, WANTED, Batching, batches
from hiermim_zoo.data.kinds import KINDS, Kind, kind_of, open_images, open_source
from hiermim_zoo.data.source import Request, Source, Stream, Video, VideoSet
from hiermim_zoo.data.transforms import make_transform
from hiermim_zoo.training.probe import Inference, outputs

from .test_clips import write_frames
from .test_data import write_images

CPU = torch.device("cpu")
IMAGE, CLIP = (3, 16, 16), (3, 4, 16, 16)
MEAN = STD = (0.5, 0.5, 0.5)


# ---- kinds that the package does not know


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (20, 20), (value,) * 3)


class Greys(Source):
    """Images of one grey each; the number of grey levels between two is in the name."""

    def __init__(self, spec: str, request: Request) -> None:
        self.step = int(spec.removeprefix("greys:"))
        self.offset = 0 if request.split == "train" else 1
        self.labels = [n % 2 for n in range(12)]
        self.class_names = ["even", "odd"]
        self.identity = (spec, self.offset)

    def __len__(self) -> int:
        return 12

    def read(self, position: int, seed: int | None = None) -> tuple[Image.Image, int]:
        return grey(self.step * position + self.offset), position % 2


class GreyStream(Stream):
    """The same, one after the other."""

    def __init__(self, spec: str, request: Request) -> None:
        self.greys = Greys(f"greys:{spec.removeprefix('greys-in-turn/')}", request)
        self.identity = self.greys.identity
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return len(self.greys)

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return iter(self.greys)

    def begin_epoch(self, epoch: int, workers: int) -> None:
        self.epochs.append(epoch)


class Brightening(Video):
    def __init__(self, start: int) -> None:
        self.start = start

    def __len__(self) -> int:
        return 30

    def frames(self, wanted: Any) -> list[Image.Image]:
        return [grey(self.start + n) for n in wanted]


class GreyVideos(VideoSet):
    """Videos that become brighter."""

    def __init__(self, spec: str, request: Request) -> None:
        self.identity = (spec, request.split)
        self.labels, self.class_names = [0, 1] * 4, ["even", "odd"]

    def __len__(self) -> int:
        return 8

    def name_of(self, position: int) -> str:
        return f"grey {position}"

    @contextmanager
    def open(self, position: int) -> Iterator[Video]:
        yield Brightening(10 * position)


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "greys:", Kind(images=Greys))
    monkeypatch.setitem(KINDS, "greys-in-turn/", Kind(images=GreyStream))
    monkeypatch.setitem(KINDS, "grey-videos", Kind(videos=GreyVideos))


def training(source: Source, size: tuple[int, ...], steps: int, batch: int = 4, **more: Any) -> list[tuple[Any, ...]]:
    transform = make_transform(size, is_training=True, color_jitter=0.0, use_prefetcher=True)
    plan = Batching(len(source), batch, 1, 0, 1, 7, source.repeat)
    options = {"mean": MEAN, "std": STD, "input_size": size, "device": CPU, **more}
    return list(batches(source, transform, plan, range(steps), **options))


def levels(
    source: Source, size: tuple[int, ...], positions: Iterable[int] | None = None, **more: Any
) -> tuple[list[int], list[int]]:
    """The mean grey of each item as a model sees it in evaluation, and the labels."""
    config = {"input_size": size, "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 1.0}
    how = Inference(config, CPU, 5, progress=False, **more)
    found, labels, _ = outputs(lambda x: x.flatten(1).mean(1, keepdim=True), source, how, positions)
    return (255 * (found[:, 0] * 0.5 + 0.5)).round().int().tolist(), labels.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_new_kind_of_images_is_a_class_and_a_row(workers: int) -> None:
    source = open_source("greys:10", IMAGE)
    made = training(source, IMAGE, 3, workers=workers, classes=2)
    columns = torch.cat([columns for _, columns, _ in made])
    assert sorted(columns[:, WANTED].tolist()) == list(range(12)), "an epoch"
    assert (columns[:, LABEL] == columns[:, WANTED] % 2).all()
    shown = torch.cat([images for images, *_ in made]).mean((1, 2, 3))
    torch.testing.assert_close(shown, columns[:, WANTED] * 10 / 255 * 2 - 1.0)
    assert levels(source, IMAGE, workers=workers) == ([10 * n for n in range(12)], [0, 1] * 6)
    assert levels(source, IMAGE, positions=[7, 2]) == ([70, 20], [1, 0])


def test_a_new_kind_has_splits_and_moves() -> None:
    train, test = (splits.open_labelled("greys:10", split, IMAGE) for split in ("train", "validation"))
    splits.check_apart(train, test)
    assert (test.names, splits.classes_by_label(test)) == (["even", "odd"], 2)
    with pytest.raises(ValueError, match="--train DATA is needed: greys:10 has no two splits 'validation' and 'test'"):
        splits.check_apart(test, splits.open_labelled("greys:10", "test", IMAGE))
    moving = splits.open_labelled("moving:greys:10", "train", CLIP)
    assert moving.names == [f"{name} {way}" for name in ("even", "odd") for way in ("right", "down", "left", "up")]
    assert moving.source.identity == train.source.identity


def test_a_new_kind_of_stream_is_a_class_and_a_row() -> None:
    source = open_source("greys-in-turn/20", IMAGE)
    made = training(source, IMAGE, 5)
    assert source.epochs == [0, 1]
    assert torch.cat([columns[:, LABEL] for _, columns, _ in made]).tolist() == [0, 1] * 10
    assert levels(source, IMAGE, workers=2) == ([20 * n for n in range(12)], [0, 1] * 6)
    assert [image.getpixel((0, 0))[0] for image in source.some(3)] == [0, 20, 40]
    assert splits.open_labelled("greys-in-turn/20", "train", IMAGE).names is None
    with pytest.raises(TypeError, match="have no positions"):
        source.read(0)


def test_a_new_kind_of_videos_is_a_class_and_a_row() -> None:
    data = splits.open_labelled("grey-videos", "train", CLIP, stride=2, repeat=2, views=(3, 1))
    assert (data.names, data.source.noun, data.source.name_of(3)) == (["even", "odd"], "videos", "grey 3")
    [(clips, columns, _)] = training(data.source, CLIP, 1, batch=8)
    assert clips.shape == (8, *CLIP)
    assert columns[0::2, WANTED].tolist() == columns[1::2, WANTED].tolist()
    rise = (clips[:, 0, :, 0, 0] * 127.5).diff(dim=1)
    torch.testing.assert_close(rise, torch.full((8, 3), 2.0), atol=1e-3, rtol=0)
    assert levels(data.source, CLIP) == ([10 * n + 15 for n in range(8)], [0, 1] * 4), (
        "three clips, on average the middle"
    )


def test_the_commands_take_a_new_kind(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "hivit_atto", "--no-pretrained", "--img-size", "32", "--workers", "0"]
    evaluate.main(["greys:10", *model, "--method", "knn", "-k", "1"])
    assert '"pictures": 12' in capsys.readouterr().out


def test_what_a_model_does_not_take_is_refused() -> None:
    with pytest.raises(
        ValueError, match="greys:10 holds images, and the model takes videos: moving:greys:10 makes them"
    ):
        open_source("greys:10", CLIP)
    with pytest.raises(ValueError, match="grey-videos is for models of video, and this one takes images"):
        open_source("grey-videos", IMAGE)
    with pytest.raises(
        ValueError,
        match=r"missing: no such folder, tar or table, and none of the names digits, .*greys:DATA, ",
    ):
        open_images("missing")
    with pytest.raises(ValueError, match=r"missing: no such folder of videos, and no moving:DATA or grey-videos$"):
        open_source("missing", CLIP)


def test_a_path_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert kind_of("wds/some") is KINDS["wds/"]
    write_images(tmp_path / "wds" / "some", 3)
    assert kind_of("wds/some") is KINDS[""]
    assert len(open_images("wds/some")) == 3
    assert [kind_of(spec) for spec in ("digits", "digit", "moving:wds/x", "greys:1")] == [
        KINDS[name] for name in ("digits", "", "moving:", "greys:")
    ]


# ---- all kinds that can be had without a network


def write_tar(file: Path, folder: Path) -> str:
    with tarfile.open(file, "w") as tar:
        tar.add(folder, "images")
    return str(file)


def opened(kind: str, root: Path, split: str = "train") -> Source:
    """A source of each kind; those of files have the splits train (6 items) and val."""
    if not (root / "images").exists():
        for name, count in (("train", 6), ("val", 4)):
            write_tar(root / f"{name}.tar", write_images(root / "images" / name, count))
            for n in range(count):
                write_frames(root / "videos" / name / "ab"[n % 2] / f"frames{n}", 5)
    specs = {"folder": str(root / "images"), "tar": str(root / f"{split}.tar"), "videos": str(root / "videos")}
    specs |= {"digits": "digits", "moving": f"moving:{root / 'images'}", "torch": "torch/image_folder"}
    size = CLIP if kind in ("videos", "moving") else IMAGE
    return open_source(specs[kind], size, split=split, root=str(root / "images"))


@pytest.mark.parametrize("kind", ["folder", "tar", "torch", "digits", "videos", "moving"])
def test_a_source_answers_as_it_reads(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    assert source.labels is not None
    assert source.class_names is not None
    assert len(source.labels) == len(source) > 5
    assert max(source.labels) == len(source.class_names) - 1
    some = sorted({0, 1, 5, len(source) - 1})
    assert [source.read(n)[1] for n in some] == [source.labels[n] for n in some]
    assert len({source.name_of(n) for n in some}) == len(some)
    assert [label for _, label in source] == list(source.labels)
    shown = source.some(3)
    assert len(shown) == 3
    assert type(shown[0]) is (list if source.noun == "videos" else Image.Image)
    assert not source.streamed
    source.reopen()
    assert source.read(2)[1] == source.labels[2]
    source.reopen()  # closes files


@pytest.mark.parametrize("kind", ["folder", "tar", "torch", "digits", "videos", "moving"])
def test_splits_have_an_identity(kind: str, tmp_path: Path) -> None:
    same, again, other = (opened(kind, tmp_path, split) for split in ("train", "train", "val"))
    assert same.identity == again.identity != other.identity
    assert not same.other_splits


@pytest.mark.parametrize(("kind", "where"), [("folder", ""), ("moving", "moving:"), ("videos", "")])
def test_a_split_that_is_missing_is_named(kind: str, where: str, tmp_path: Path) -> None:
    """Else all would be measured on, what was trained on too."""
    source = opened(kind, tmp_path, "test")
    assert source.other_splits == ["train", "val"]
    spec = f"{where}{tmp_path / ('videos' if kind == 'videos' else 'images')}"
    with pytest.raises(ValueError, match=f"{spec} has no split 'test', but train, val; choose"):
        splits.open_labelled(spec, "test", IMAGE if kind == "folder" else CLIP)


def test_images_of_torchvision_have_the_channels_of_the_model(tmp_path: Path) -> None:
    opened("torch", tmp_path)
    for channels, mode in ((1, "L"), (3, "RGB")):
        source = open_images("torch/image_folder", root=str(tmp_path / "images"), channels=channels)
        assert source.read(0)[0].mode == mode
    with pytest.raises(ValueError, match="the model takes 4 channels"):
        open_images("torch/image_folder", root=str(tmp_path / "images"), channels=4).read(0)


class HubReader:
    """As timm's reader of a data set of Hugging Face, which is no dependency of the tests."""

    def __init__(self) -> None:
        self.class_to_idx = {"dog": 1, "cat": 0}

    def __len__(self) -> int:
        return 3

    def __getitem__(self, n: int) -> tuple[io.BytesIO, int | None]:
        file = io.BytesIO()
        grey(n).save(file, "PNG")
        return io.BytesIO(file.getvalue()), None if n == 2 else n

    def filename(self, n: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{n}.png"


def test_data_sets_of_hugging_face_are_read_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def create_dataset(name: str, root: str | None, **more: Any) -> Any:
        asked.update(more, name=name, root=root)

        class Dataset(SimpleNamespace):
            def __len__(self) -> int:
                return 3

        return Dataset(reader=HubReader(), input_img_mode=more["input_img_mode"])

    monkeypatch.setattr(images, "create_dataset", create_dataset)
    source = open_images("hfds/Some/Pets", root="there", split="test", channels=1)
    assert (asked["name"], asked["root"], asked["split"]) == ("hfds/Some/Pets", "there", "test")
    assert [(image.mode, image.getpixel((0, 0)), label) for image, label in source] == [
        ("L", 0, 0),
        ("L", 1, 1),
        ("L", 2, -1),
    ]
    assert (source.class_names, source.name_of(1)) == (["cat", "dog"], "1.png")
    assert source.identity == ("hfds/Some/Pets", "test")


def test_names_that_share_a_label_name_no_classes() -> None:
    """torchvision's ImageNet gives every synonym."""
    assert images.names_by_label({"b": 1, "a": 0}) == ["a", "b"]
    assert images.names_by_label({"tench": 0, "Tinca tinca": 0}) is None
    assert images.names_by_label({}) is None


# ---- what workers do


class InWorkers(Greys):
    """Remembers the process that opened it, as an open file would."""

    def __init__(self) -> None:
        super().__init__("greys:10", Request())
        self.opened_by = os.getpid()

    def reopen(self) -> None:
        self.opened_by = os.getpid()

    def read(self, position: int, seed: int | None = None) -> tuple[Image.Image, int]:
        if self.opened_by != os.getpid():
            raise OSError("opened by another process")
        return super().read(position, seed)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_process_opens_files_of_its_own(workers: int) -> None:
    assert len(training(InWorkers(), IMAGE, 3, workers=workers, max_bad=0.0)) == 3
    assert levels(InWorkers(), IMAGE, workers=workers)[0] == [10 * n for n in range(12)]


def test_options_of_batches_are_known() -> None:
    with pytest.raises(TypeError, match="max_worse"):
        training(open_source("greys:10", IMAGE), IMAGE, 1, max_worse=0.5)
