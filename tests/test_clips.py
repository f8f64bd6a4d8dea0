"""Clips for training and evaluation: which frames are shown, and that all are treated alike."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hiermim_zoo import evaluate
from hiermim_zoo.commands import evaluating_frozen
from hiermim_zoo.data import splits, transforms
from hiermim_zoo.data.batches import LABEL, READ, WANTED, Batching, batches
from hiermim_zoo.data.clips import Clips
from hiermim_zoo.data.decoding import Form
from hiermim_zoo.data.kinds import open_images, open_source
from hiermim_zoo.data.seeds import seeded
from hiermim_zoo.data.synthetic import WAYS, MovingImages
from hiermim_zoo.data.transforms import EveryFrame, make_transform
from hiermim_zoo.data.videos import VideoFolder
from hiermim_zoo.models.recipes import FineTuning
from hiermim_zoo.training import probe
from hiermim_zoo.training.distributed import World
from hiermim_zoo.training.finetuning import FineTune, TuningSettings
from hiermim_zoo.training.tasks import Goal, objective

CPU = torch.device("cpu")
SIZE = (3, 4, 16, 16)  # channels, frames, height, width
MEAN = STD = (0.5, 0.5, 0.5)
IMAGES = Path(__file__).parents[1] / "examples" / "pictures"


def frame(n: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """The n-th frame of a video: brighter than the one before."""
    return Image.new("RGB", size, (4 * n,) * 3)


def write_frames(folder: Path, count: int, **kwargs: Any) -> Path:
    folder.mkdir(parents=True)
    for n in range(count):
        frame(n, **kwargs).save(folder / f"{n}.png")  # 10 comes behind 9
    return folder


def write_video(file: Path, count: int, codec: str = "libx264", rate: Any = 30) -> Path:
    """With a key frame every twelve, and some that are coded after later ones."""
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.bit_rate, stream.codec_context.gop_size, stream.codec_context.max_b_frames = 4_000_000, 12, 2
        for n in range(count):
            container.mux(stream.encode(av.VideoFrame.from_image(frame(n))))
        container.mux(stream.encode())
    return file


def numbers(clip: list[Image.Image]) -> list[int]:
    """Which frames these are, up to what codecs lose."""
    return [round(float(np.asarray(image).mean()) / 4) for image in clip]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six videos each, 40 frames long, as folders of frames."""
    root = tmp_path_factory.mktemp("videos")
    for n in range(12):
        write_frames(root / "ab"[n % 2] / f"clip{n}", 40)
    return root


def plan(repeat: int = 1, **kwargs: int) -> Batching:
    return Batching(
        **{"length": 12, "batch": 4, "accumulate": 1, "rank": 0, "world": 1, "seed": 7, "repeat": repeat, **kwargs}
    )


def training(source: Any, cut: Batching, steps: range, **kwargs: Any) -> list[tuple[Tensor, Tensor]]:
    transform = make_transform(SIZE, is_training=True, color_jitter=0.0, use_prefetcher=True)
    made = batches(source, transform, cut, steps, mean=MEAN, std=STD, input_size=SIZE, device=CPU, **kwargs)
    return [(images, columns) for images, columns, _ in made]


# ---- which frames


def test_a_clip_has_its_frames_and_stride(videos: Path) -> None:
    source = Clips(VideoFolder(str(videos), "train", Form()), frames=5, stride=3, repeat=4)
    found, label = source.read(0, seed=1)
    assert label == 0
    for clip in found:
        start, *rest = numbers(clip)
        assert [start, *rest] == [start + 3 * n for n in range(5)]
        assert rest[-1] < 40


def test_random_starts_cover_the_video_and_follow_from_the_seed(videos: Path) -> None:
    source = Clips(VideoFolder(str(videos), "train", Form()), frames=2, stride=4, repeat=6)
    starts = [numbers(clip)[0] for seed in range(30) for clip in source.read(0, seed)[0]]
    assert (min(starts), max(starts)) == (0, 35)
    assert len(set(starts[:6])) > 3, "clips of one visit start at different frames"
    assert starts[:6] == [numbers(clip)[0] for clip in source.read(0, 0)[0]]
    assert starts[:6] != [numbers(clip)[0] for clip in source.read(2, 0)[0]], "videos of one seed differ"


def test_evaluation_spreads_views_evenly(videos: Path) -> None:
    reader = VideoFolder(str(videos), "train", Form())
    assert numbers(Clips(reader, 4, 3).read(0)[0][0]) == [15, 18, 21, 24], "one is from the middle"
    assert [numbers(clip)[0] for clip in Clips(reader, 4, 3, views=3).read(0)[0]] == [0, 15, 30]
    assert [numbers(clip)[0] for clip in Clips(reader, 2, 3, views=2, crops=3).read(0)[0]] == [0, 36]


def ramp(width: int, height: int) -> Image.Image:
    """Its pixels are 0, 1, 2, ... along its longer side."""
    line = np.arange(max(width, height), dtype=np.uint8)
    return Image.fromarray(np.broadcast_to(line if width > height else line[:, None], (height, width)).copy())


@pytest.mark.parametrize(("size", "starts"), [((40, 16), (0, 12, 24)), ((16, 41), (0, 13, 25)), ((16, 16), (0, 0, 0))])
def test_crops_lie_along_the_longer_side(size: tuple[int, int], starts: tuple[int, ...]) -> None:
    """The shorter side is the model's: nothing is scaled here, so positions can be read from the pixels."""
    config = {"input_size": (1, 2, 16, 16), "mean": (0.0,), "std": (1.0,), "crop_pct": 0.875}
    transform = make_transform(**config, is_training=False, crops=3, interpolation="bicubic", crop_mode="squash")
    image = ramp(*size)
    found = transform([[image, image]])
    assert [tuple(clip.shape) for clip in found] == [(1, 2, 16, 16)] * 3
    across = size[0] > size[1]
    lines = [(255 * clip[0, 1, 0] if across else 255 * clip[0, 1, :, 0]).round().tolist() for clip in found]
    assert lines == [list(range(start, start + 16)) for start in starts]


def test_three_crops_lose_nothing_of_a_wide_video() -> None:
    """320 x 240: the whole length is seen. One crop, of the preprocessing's, leaves out an eighth of each side."""
    config = {"input_size": (3, 1, 24, 24), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 0.875}
    image = ramp(320 - 65, 191).convert("RGB")  # of this shape, with as many columns as there are values
    three, one = (make_transform(**config, is_training=False, crops=crops)([[image]]) for crops in (3, 1))
    ends = [(float(255 * clips.min()), float(255 * clips.max())) for clips in (torch.stack(three), torch.stack(one))]
    assert ends[0][0] < 10
    assert ends[0][1] > 244
    assert ends[1][0] > 40
    assert ends[1][1] < 215
    tensors = [[torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0) / 255]]
    again = make_transform(**config, is_training=False, crops=3)(tensors)
    assert max((a - b).abs().max() for a, b in zip(three, again, strict=True)) < 0.02, "tensors are cut alike"


def test_a_video_that_is_too_short_stands_still_at_its_end(tmp_path: Path) -> None:
    write_frames(tmp_path / "data" / "short", 6)
    source = Clips(VideoFolder(str(tmp_path / "data"), "train", Form()), frames=4, stride=4)
    assert numbers(source.read(0)[0][0]) == numbers(source.read(0, seed=3)[0][0]) == [0, 4, 5, 5]


# ---- files of video


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_a_file_shows_what_its_frames_show(tmp_path: Path, name: str, codec: str) -> None:
    write_video(tmp_path / "files" / name, 40, codec)
    write_frames(tmp_path / "frames" / "a", 40)
    readers = [VideoFolder(str(tmp_path / kind), "train", Form()) for kind in ("files", "frames")]
    with readers[0].open(0) as video:
        assert numbers(video.frames([38, 39, 39])) == [38, 39, 39], "the last can be asked for"
    for seed in (*range(6), None):
        one, other = (Clips(reader, frames=4, stride=5, repeat=2, views=3).read(0, seed)[0] for reader in readers)
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert (
                max(np.abs(np.asarray(x, float) - np.asarray(y, float)).mean() for x, y in zip(a, b, strict=True)) < 3
            )


def test_decoding_begins_at_the_key_frame_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = VideoFolder(str(write_video(tmp_path / "data" / "a.mp4", 60).parent), "train", Form())
    with reader.open(0) as video:
        decode, decoded = video.container.decode, []  # type: ignore[attr-defined]

        class Counted:
            def __getattr__(self, name: str) -> Any:
                return getattr(container, name)

            def decode(self, stream: Any) -> Any:
                for image in decode(stream):
                    decoded.append(image.pts)
                    yield image

        container = video.container  # type: ignore[attr-defined]
        monkeypatch.setattr(video, "container", Counted())
        assert numbers(video.frames([39, 42])) == [39, 42]
        keys, times = video.keys, video.times  # type: ignore[attr-defined]
    assert len(keys) > 4
    assert (decoded[0], decoded[-1]) == (max(key for key, _ in keys if key <= times[39]), times[42])


def test_files_are_labelled_by_their_folders_and_split(tmp_path: Path) -> None:
    for path in ("train/b/1.mp4", "train/a/2.mp4", "val/b/3.mp4"):
        write_video(tmp_path / path, 3)
    write_frames(tmp_path / "train" / "c" / "4", 3)
    source = open_source(str(tmp_path), SIZE)
    assert (len(source), source.labels, source.class_names) == (3, [0, 1, 2], ["a", "b", "c"])
    assert len(open_source(str(tmp_path), SIZE, split="validation")) == 1
    assert source.name_of(1) == str(tmp_path / "train" / "b" / "1.mp4")


def test_pyav_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(tmp_path / "clip", 3)
    (tmp_path / "a.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'pip install "hiermim-zoo\[video\]"'):
        open_source(str(tmp_path), SIZE)
    (tmp_path / "a.mp4").unlink()
    assert len(open_source(str(tmp_path), SIZE)) == 1, "frames are read without"


# ---- what is done to them


def test_all_frames_are_cut_mirrored_and_coloured_alike() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    clip = [Image.fromarray(noise)] * 4
    transform = make_transform(
        SIZE, is_training=True, color_jitter=None, auto_augment="rand-m7-mstd0.5-inc1", use_prefetcher=True
    )
    with seeded(3):
        one, other = transform([clip, clip])
    assert one.shape == SIZE
    assert one.dtype == torch.uint8
    assert all(torch.equal(one[:, 0], one[:, t]) for t in range(4))
    assert not torch.equal(one, other), "another clip is cut in another way"
    with seeded(3):
        assert np.array_equal(transform.transform(clip[0]), one[:, 0]), "as an image would be"


def test_erasing_and_mixing_treat_all_frames_alike(videos: Path) -> None:
    source = Clips(VideoFolder(str(videos), "train", Form()), 4, 1)
    plain, erased = (training(source, plan(), range(1), erase=p)[0][0] for p in (0.0, 1.0))
    assert plain.shape == (4, *SIZE)
    changed = plain != erased
    assert changed.any()
    assert (changed == changed[:, :, :1]).float().mean() > 0.999  # noise may hit the old value
    recipe = FineTuning(1, 1e-3, layer_decay=1.0, drop_path=0.0, mixup=0.0, batch=4)
    mix, _ = objective(recipe, 1.0, Goal("classes", 2), 4)
    noise = torch.randn(4, 3, 1, 16, 16).repeat(1, 1, 4, 1, 1)
    with seeded(3):  # now and then a part is drawn that has no pixel
        mixed, _ = mix(noise.clone(), torch.tensor([0, 1, 0, 1]))
    assert mixed.shape == noise.shape
    assert not torch.equal(mixed, noise)
    assert torch.equal(mixed, mixed[:, :, :1].expand_as(mixed))


def test_clips_are_normalised_as_images_are(videos: Path) -> None:
    source = Clips(VideoFolder(str(videos), "train", Form()), 4, 3)
    [(images, columns)] = training(source, plan(), range(1))
    assert images.shape == (4, *SIZE)
    shown = ((images * 0.5 + 0.5) * 255 / 4).mean((1, 3, 4))  # the numbers of the frames
    torch.testing.assert_close(shown - shown[:, :1], torch.tensor([0.0, 3, 6, 9]).expand(4, 4))
    assert set(columns[:, LABEL].tolist()) <= {0, 1}


# ---- who sees what


@pytest.mark.parametrize("workers", [0, 1])
def test_clips_of_a_step_do_not_depend_on_workers_or_on_where_the_run_began(videos: Path, workers: int) -> None:
    source = Clips(VideoFolder(str(videos), "train", Form()), 4, 3, repeat=2)
    masks = {"extra": lambda seeds: [seeds.own % 1000]}
    whole = training(source, plan(repeat=2), range(7), **masks)  # six steps an epoch
    torch.rand(3)
    later = training(source, plan(repeat=2), range(5, 7), workers=workers, **masks)
    for (images, columns), (again, columns_again) in zip(whole[5:], later, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(columns, columns_again)
    images, columns = whole[0]
    assert columns[0::2, WANTED].tolist() == columns[1::2, WANTED].tolist(), "two clips of each video"
    assert (images[0::2] != images[1::2]).any((1, 2, 3, 4)).all()
    assert (columns[0::2, 3] != columns[1::2, 3]).all(), "each has a mask of its own"
    seen = torch.cat([columns[::2, WANTED] for _, columns in whole[:6]])
    assert sorted(seen.tolist()) == list(range(12)), "an epoch opens every video once"


def test_processes_share_the_videos_of_one() -> None:
    joint = list(plan(repeat=2, batch=8).micro_batches(0, 5))
    parts = [list(plan(repeat=2, batch=8, world=2, rank=rank).micro_batches(0, 5)) for rank in range(2)]
    # All but the seed of the micro-batch, which is another where a batch is cut otherwise.
    drawn = [
        [sorted((r.position, r.seeds.own, r.seeds.step) for r in step) for step in steps]
        for steps in (joint, [a + b for a, b in zip(*parts, strict=True)])
    ]
    assert drawn[0] == drawn[1]
    assert (plan(repeat=2, batch=8).per_pass, plan(repeat=2, batch=8).per_epoch) == (3, 1.5)
    with pytest.raises(ValueError, match="2 clips of each video: it must be a multiple of 4"):
        plan(repeat=2, batch=6, world=2)
    with pytest.raises(ValueError, match="more than the 2 clips of each of the 12 videos"):
        plan(repeat=2, batch=26)


def test_a_damaged_video_is_named_once_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(12):
        write_frames(tmp_path / "ab"[n % 2] / f"{n:02}", 3)
    write_video(tmp_path / "a" / "whole.mp4", 30)
    broken = tmp_path / "a" / "broken.mp4"
    broken.write_bytes((tmp_path / "a" / "whole.mp4").read_bytes()[:200])
    source = open_source(str(tmp_path), SIZE)
    columns = torch.cat([columns for _, columns in training(source, plan(length=14, batch=7), range(4), max_bad=0.1)])
    index = source.videos.paths.index(str(broken))
    assert (columns[:, WANTED] == index).sum() == 2
    assert (columns[:, READ] != index).all()
    said = capsys.readouterr().err
    assert said.startswith(f"cannot be read, replaced by another: {broken} (")
    assert said.count("\n") == 1
    with pytest.raises(ValueError, match=r"1 of 14 videos cannot be read.*--max-bad 0;"):
        training(source, plan(length=14, batch=7), range(2), max_bad=0.0)


def test_a_file_cannot_send_its_reader_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(Exception, match=r"(?i)invalid|denied|permitted|no video"):
        Clips(VideoFolder(str(tmp_path), "train", Form()), 2).read(0)


# ---- images on the move


def centre(image: Image.Image) -> Tensor:
    """The angles of the centre of mass on a canvas without borders, (x, y) as shares of the way around."""
    mass = torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float64))
    angles = [2 * torch.pi * torch.arange(length) / length for length in mass.shape]
    found = [torch.angle((mass.sum(1 - axis) * torch.exp(1j * angles[axis])).sum()) for axis in (1, 0)]
    return torch.stack(found) / (2 * torch.pi)


def test_images_move_the_way_their_class_says() -> None:
    source = open_source("moving:digits", (3, 6, 32, 40), stride=4)
    names = source.class_names
    assert names is not None
    assert len(names) == 40
    assert len(source) == 4 * 1497
    for index in range(0, 40, 3):
        found, label = source.read(index, seed=index)
        digit, way = names[label].split()
        assert digit == str(source.videos.images.labels[index // 4])
        steps = torch.stack([centre(b) - centre(a) for a, b in zip(found[0], found[0][1:], strict=False)])
        steps = (steps - steps.round()) * torch.tensor([40, 32])  # pixels, around the canvas
        assert all(image.size == (40, 32) for image in found[0])
        torch.testing.assert_close(
            steps.mean(0) / steps.mean(0).norm(), torch.tensor(WAYS[way], dtype=steps.dtype), atol=0.15, rtol=0
        )


def test_moving_images_follow_from_seed_and_position() -> None:
    digits = open_images("digits")
    one, same, other = (Clips(MovingImages(digits, (32, 32), seed), 3) for seed in (0, 0, 1))
    shown = [b"".join(image.tobytes() for image in source.read(17)[0][0]) for source in (one, same, other)]
    assert shown[0] == shown[1] != shown[2]


def test_workers_move_images_of_a_tar_that_their_parent_has_open(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(write_frames(tmp_path / "pictures", 12), "pictures")
    source = open_source(f"moving:{tmp_path / 'some.tar'}", SIZE)
    alone, together = (training(source, plan(length=48), range(12), workers=workers, max_bad=0.0) for workers in (0, 2))
    source.reopen()  # closes it
    assert all(torch.equal(one[0], other[0]) for one, other in zip(alone, together, strict=True))


def test_images_without_classes_have_ways(tmp_path: Path) -> None:
    write_frames(tmp_path / "pictures", 3)
    source = open_source(f"moving:{tmp_path}", SIZE)
    assert source.class_names == list(WAYS)
    assert source.videos.labels == [0, 1, 2, 3] * 3


def test_moving_images_to_train_on_are_not_those_to_measure_on() -> None:
    train, test = (splits.open_labelled("moving:digits", split, SIZE) for split in ("train", "validation"))
    splits.check_apart(train, test)
    with pytest.raises(ValueError, match="--train DATA is needed"):
        splits.check_apart(test, splits.open_labelled("moving:digits", "test", SIZE))


# ---- models of clips


class Stripes(nn.Module):
    """A small model of clips, with what the commands ask of every model."""

    def __init__(self, classes: int = 40) -> None:
        super().__init__()
        image = (SIZE[0], *SIZE[2:])  # timm's configs have no place for frames
        self.pretrained_cfg = self.default_cfg = {
            "input_size": image,
            "mean": (0.45,) * 3,
            "std": (0.225,) * 3,
            "crop_pct": 1.0,
        }
        self.num_classes, self.in_chans, self.num_frames = classes, 3, SIZE[1]
        self.patches = nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4))
        self.head = nn.Linear(8, classes)

    def forward_features(self, clips: Tensor) -> Tensor:
        return self.patches(clips)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = maps.relu().mean((2, 3, 4))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, clips: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(clips))


def test_preprocessing_keeps_the_number_of_frames() -> None:
    model = Stripes()
    assert transforms.data_config(model)["input_size"] == SIZE
    assert transforms.data_config(model, (8, 8))["input_size"] == (3, 4, 8, 8)
    assert transforms.data_config(model, (4, 8, 8))["input_size"] == (3, 4, 8, 8)  # as autoencoders say it


@torch.no_grad()
def test_features_are_the_mean_over_views(videos: Path) -> None:
    model, source = Stripes().eval(), Clips(VideoFolder(str(videos), "train", Form()), 4, 3, views=2, crops=2)
    config = transforms.data_config(model)
    features, labels, _ = probe.pooled_features(model, source, probe.Inference(config, CPU, 5, progress=False))
    assert labels.tolist() == source.labels
    transform = make_transform(**config, is_training=False, crops=2)
    assert isinstance(transform, EveryFrame)
    views = torch.stack(transform(source.read(3)[0]))
    assert views.shape == (4, *SIZE)
    torch.testing.assert_close(features[3], model.forward_head(model.forward_features(views), pre_logits=True).mean(0))


def test_a_model_of_clips_is_fine_tuned(videos: Path) -> None:
    source = Clips(VideoFolder(str(videos), "train", Form()), 4, 3, repeat=2)
    recipe = FineTuning(epochs=2, blr=1e-3, layer_decay=1.0, drop_path=0.0, batch=8, warmup=0, repeat=2)
    model = Stripes(2)
    before = model.head.weight.detach().clone()
    tuning = FineTune(
        model,
        source,
        Goal("classes", 2),
        transforms.data_config(model),
        recipe,
        TuningSettings(hflip=0.0),
        World(0, 1, CPU),
    )
    assert (tuning.batching.per_pass, tuning.batching.micro, tuning.total) == (3, 8, 3)
    tuning.train()
    assert not torch.equal(model.head.weight, before)


def test_the_command_measures_models_of_clips(
    videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluating_frozen, "make_model", lambda name, **kwargs: Stripes(2))
    argv = [
        str(videos),
        "--model",
        "hiera_atto_video",
        "--method",
        "classify",
        "--workers",
        "0",
        "--views",
        "2",
        "1",
        "--frame-stride",
        "2",
    ]
    evaluate.main(argv)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["pictures"], found["views"], found["frame_stride"]) == (12, [2, 1], 2)
    assert found["frame_rate"] is None
    assert found["top1"] == 50  # videos of both classes are the same
