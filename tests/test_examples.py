"""The examples do what their first lines say, with the embedded weights."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from timm.data import create_dataset, create_transform, resolve_model_data_config

from hiermim_zoo.checkpoints.folder import Contents, own_cfg, write_folder
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.data.decoding import Form
from hiermim_zoo.data.videos import Videos

EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGES = EXAMPLES / "pictures"

# timm's dataset leaves it to the garbage collector to close the files that it reads.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_and_images(files: list[Path]) -> tuple[torch.nn.Module, torch.Tensor]:
    """The embedded model and what timm's own transform makes of the files: [N, 3, 64, 64]."""
    model = timm.create_model("hivit_atto", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(transform(image.convert("RGB")))
    return model, torch.stack(images)


# ---- the images


def test_there_are_twenty_images_of_each_class_of_the_embedded_model():
    names = timm.create_model("hivit_atto", pretrained=True).pretrained_cfg["label_names"]
    assert sorted(path.name for path in IMAGES.iterdir() if path.is_dir()) == sorted(names)
    contents = set()
    for name in names:
        files = sorted((IMAGES / name).iterdir())
        assert [file.name for file in files] == [f"{i:04d}.jpg" for i in range(20)]
        contents.update(file.read_bytes() for file in files)
    assert len(contents) == 200


# ---- distillation


def test_a_student_is_distilled(tmp_path, capsys):
    """The loss falls; a teacher that takes no size of its own is taken as it is."""
    for name in ("cat", "dog"):
        shutil.copytree(IMAGES / name, tmp_path / name)
    distil = load("distil")
    distil.main([str(tmp_path), "--steps", "20", "--batch-size", "8", "--student", "hivit_atto"])
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert losses[-1] < losses[0]

    teacher = timm.create_model("test_resnet", num_classes=0).eval()
    layout = timm.create_model("hiera_atto", img_size=64).mask_layout
    target = distil.wanted(teacher, torch.randn(2, 3, 64, 64), layout)
    assert target.shape == (2, layout.units[0] * layout.units[1], *layout.stages[-1].tokens[:1], 96)


# ---- demo


@pytest.mark.slow
def test_demo_prints_accuracies_and_draws_every_level(tmp_path, capsys):
    demo = load("demo")
    demo.main(["-o", str(tmp_path / "new" / "folder")])
    printed = capsys.readouterr().out

    line = re.search(
        r"classifier, top-1 accuracy: ([\d.]+)% \(n=200, 95% Wilson interval ([\d.]+)% to ([\d.]+)%\)", printed
    )
    assert line, printed
    share, low, high = map(float, line.groups())
    assert 20 < low < share < high < 100  # chance is 10
    line = re.search(r"20 nearest neighbours in pooled features, accuracy: ([\d.]+)%", printed)
    assert line, printed
    assert 20 < float(line[1]) < 100
    # of 427 x 640 pixels, made a multiple of 32
    assert "hivit_atto [24, 104, 160], [48, 52, 80], [96, 26, 40], [96, 13, 20]" in printed
    for name, least in (("features.png", 100_000), ("features.html", 500_000)):
        path = tmp_path / "new" / "folder" / name
        assert f"wrote {path}: {2 + len(demo.DRAWN)} images" in printed
        assert path.stat().st_size > least


@pytest.mark.slow
def test_demo_counts_as_timm_does(tmp_path, capsys):
    """The printed share is that of the embedded classifier on the images, counted another way."""
    load("demo").main(["-o", str(tmp_path)])
    printed = capsys.readouterr().out
    files = sorted(IMAGES.glob("*/*.jpg"))
    model, images = model_and_images(files)
    names = model.pretrained_cfg["label_names"]
    with torch.inference_mode():
        said = [names[i] for i in model(images).argmax(1).tolist()]
    right = sum(name == file.parent.name for name, file in zip(said, files, strict=True))
    assert f"top-1 accuracy: {right / 200:.1%} (n=200" in printed


def test_demo_says_what_it_lacks(tmp_path, capsys, monkeypatch):
    demo = load("demo")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: demo.main(["-o", str(tmp_path / "out")]))
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == 'error: the demo needs scikit-learn: pip install "hiermim-zoo[demo]"\n'
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


# ---- extract_features


def test_extract_features_prints_shapes_and_writes_the_pooled_features(tmp_path, capsys):
    files = [IMAGES / "cat" / "0000.jpg", IMAGES / "ship" / "0001.jpg", IMAGES / "frog" / "0002.jpg"]
    output = tmp_path / "f.safetensors"
    load("extract_features").main([*map(str, files), "-o", str(output)])
    assert capsys.readouterr().out.splitlines() == [
        "pooled: [3, 96]",
        "tokens: [3, 16, 96]",
        "map 0: [3, 24, 16, 16]",
        "map 1: [3, 48, 8, 8]",
        "map 2: [3, 96, 4, 4]",
        "map 3: [3, 96, 2, 2]",
        f"wrote {output}",
    ]
    model, images = model_and_images(files)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    with safe_open(output, "pt") as file:
        torch.testing.assert_close(file.get_tensor("pooled"), expected)
        assert file.metadata() == {"model": "hivit_atto", "files": json.dumps([str(name) for name in files])}


def test_extract_features_takes_other_models(tmp_path, monkeypatch, capsys):
    example = load("extract_features")
    make = example.make_model
    monkeypatch.setattr(example, "make_model", lambda name, **kwargs: make(name, **{**kwargs, "pretrained": False}))
    image = str(IMAGES / "cat" / "0000.jpg")
    example.main([image, "--model", "test_vit", "-o", str(tmp_path / "f.safetensors")])
    assert "pooled: [1, 64]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "argv", "message"),
    [
        ("extract_features", ["x.jpg", "--model", "nosuch"], "model 'nosuch' is unknown"),
        ("cam", [str(IMAGES / "cat" / "0000.jpg"), "--model", "nosuch"], "model 'nosuch' is unknown"),
        ("distil", ["--student", "test_vit"], "--student test_vit cannot be masked; hiera_atto would work"),
        ("distil", ["--student", "test_resnet"], "model 'test_resnet' cannot be made: .* argument 'img_size'"),
    ],
)
def test_models_that_an_example_cannot_use_are_refused(name, argv, message):
    with pytest.raises(ValueError, match=message):
        load(name).main(argv)


# ---- finetune_head


def test_finetuned_head_beats_chance_and_its_checkpoint_gives_the_same(tmp_path, capsys, monkeypatch):
    example = load("finetune_head")
    saved = []
    save = example.save_for_hf
    monkeypatch.setattr(
        example, "save_for_hf", lambda model, *args, **kwargs: (saved.append(model), save(model, *args, **kwargs))
    )
    example.main(["-o", str(tmp_path / "head")])
    printed = capsys.readouterr().out
    before, after = (
        float(re.search(rf"held-out accuracy {when}: ([\d.]+)% of 50", printed)[1])  # type: ignore[index]
        for when in ("before", "after")
    )
    assert after > max(before, 10) + 10, printed  # chance is 10
    assert "equal outputs" in printed

    pretrained, images = model_and_images(sorted(IMAGES.glob("*/0007.jpg")))
    reloaded = timm.create_model(f"local-dir:{tmp_path / 'head'}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(reloaded(images), saved[0].eval()(images))
        assert torch.equal(
            reloaded.forward_features(images), pretrained.forward_features(images)
        )  # the backbone was frozen
        assert not torch.equal(reloaded(images), pretrained(images))


def test_finetuned_head_has_the_classes_of_the_folder(tmp_path, capsys):
    for name in ("ship", "frog", "truck"):
        shutil.copytree(IMAGES / name, tmp_path / "in" / f"my_{name}")
    arguments = [str(tmp_path / "in"), "--epochs", "30", "--batch-size", "8", "--lr", "0.005", "--seed", "3"]
    load("finetune_head").main([*arguments, "-o", str(tmp_path / "head")])
    printed = capsys.readouterr().out
    assert "3 classes, 45 images to train with" in printed
    assert re.search(r"held-out accuracy after: [\d.]+% of 15 \(training images: [\d.]+% of 45\)", printed)

    model = timm.create_model(f"local-dir:{tmp_path / 'head'}", pretrained=True).eval()
    assert model.num_classes == 3
    assert list(model.pretrained_cfg["label_names"]) == ["my_frog", "my_ship", "my_truck"]
    dataset = create_dataset("", str(tmp_path / "in"), transform=create_transform(**resolve_model_data_config(model)))
    images, labels = zip(*dataset, strict=True)
    with torch.inference_mode():
        right = model(torch.stack(images)).argmax(1) == torch.tensor(labels)
    assert right.float().mean() > 0.5  # chance is a third


def test_finetuning_the_head_repeats_itself(tmp_path, capsys):
    example = load("finetune_head")
    heads = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        example.main(["-o", str(tmp_path / name), "--epochs", "1", "--seed", str(seed)])
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            heads.append(file.get_tensor("head.weight"))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


# ---- other people's heads


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"), [("detect", "hpvit_atto"), ("segment", "hpvit_atto"), ("detect", "hivit_atto")]
)
def test_a_step_of_somebody_elses_head_and_a_image(
    name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sys.path.insert(0, str(EXAMPLES))
    try:
        example = load(name)
        example.MEASURED = 2  # type: ignore[attr-defined]
        example.main(["-o", str(tmp_path / "out.png"), "--model", model, "--steps", "1"])
    finally:
        sys.path.remove(str(EXAMPLES))
        sys.modules.pop("scenes", None)
    first, last = capsys.readouterr().out.splitlines()
    assert np.isfinite(float(re.match(r"step 1: loss ([\d.]+)", first)[1]))
    assert last.startswith(f"wrote {tmp_path / 'out.png'}: o")
    assert " scenes of other photographs " in last
    with Image.open(tmp_path / "out.png") as image:
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 1000  # photographs are in it


# ---- clips


@pytest.fixture
def clip_examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("moving_clip", "classify_clip"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def named_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of clips that calls its classes by name."""
    torch.manual_seed(1)
    model = timm.create_model("hiera_atto_video", num_classes=7)
    with torch.no_grad():
        model.head.weight.mul_(5e3)
    model.pretrained_cfg = own_cfg("hiera_atto_video", {"label_names": list("abcdefg")}, "mit", 7, (3, 8, 64, 64))
    folder = tmp_path_factory.mktemp("named") / "model"
    write_folder(Contents("hiera_atto_video", model, {"license": "mit"}, "Made by a test."), folder)
    return folder


def test_a_clip_is_classified(
    clip_examples: None, named_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The clip that the example makes, as a file; the same frames from a folder; probabilities by hand."""
    example = load("classify_clip")
    name = f"local-dir:{named_classes}"
    example.main(
        ["--model", name, "-o", str(tmp_path / "new"), "--moves", "ship left", "--views", "1", "--frame-stride", "2"]
    )
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"wrote {tmp_path / 'new' / 'clip.png'}"
    with Image.open(tmp_path / "new" / "clip.png") as image:
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 500
    assert first == str(tmp_path / "new" / "ship_left.mp4")
    with Videos([first], Form()).open(0) as video:
        assert len(video) == 96
        frames = video.frames(range(96))
    model = timm.create_model(name, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    start = round((96 - 7 * 2 - 1) / 2)
    with torch.inference_mode():
        clip = torch.stack([transform(frames[start + 2 * n]) for n in range(8)], dim=1)
        shares, classes = model(clip[None])[0].softmax(0).topk(5)
    assert shares[0] - shares[-1] > 0.01
    expected = [f"{share:7.1%}  {'abcdefg'[n]}" for share, n in zip(shares, classes, strict=True)]
    assert lines == expected
    (tmp_path / "frames").mkdir()
    for n, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{n}.png")
    rest = ["--model", name, "--views", "1", "--frame-stride", "2", "-o", str(tmp_path)]
    example.main([str(tmp_path / "frames"), *rest])
    assert capsys.readouterr().out.splitlines()[:-1] == [str(tmp_path / "frames"), *expected]


def test_without_pyav_the_clip_is_a_folder(clip_examples: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "av" else find(name, *args))
    path = load("moving_clip").write_clip(tmp_path, "airplane right", (64, 64))
    assert path == tmp_path / "airplane_right"
    assert len(list(path.glob("frame_*.png"))) == 96


@pytest.mark.parametrize(
    ("example", "argv", "words"),
    [
        ("classify_clip", ["--model", "hivit_atto"], "hivit_atto is no classifier of clips"),
        (
            "classify_clip",
            ["--model", "hiera_atto_video", "--moves", "ship sideways"],
            "nothing moves like 'ship sideways'",
        ),
        ("classify_clip", ["{cat}", "--model", "hiera_atto_video"], "little in common: the model takes videos"),
        ("feature_video", ["--model", "hivit_atto"], "hivit_atto takes images"),
        ("feature_video", ["--model", "hiera_atto_video", "--levels", "4"], "--levels 4: hiera_atto_video has 0 to 3"),
        (
            "feature_video",
            ["--model", "hiera_atto_video", "-o", "{out}.jpg"],
            "name an animated image, .gif or .png or .webp",
        ),
    ],
)
def test_examples_of_clips_refuse_the_rest(
    clip_examples: None, tmp_path: Path, example: str, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    filled = [arg.format(cat=IMAGES / "cat", out=tmp_path / "out") for arg in argv]
    output = [] if "-o" in filled else ["-o", str(tmp_path / "out.gif")]
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: load(example).main([*filled, *output, "--no-pretrained"]))
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_the_default_model_of_clips_names_what_moves(
    clip_examples: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    load("classify_clip").main(["-o", str(tmp_path)])
    _, *lines, _ = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].endswith("%  ship left"), "the default clip is told right"
    assert all(re.fullmatch(r" *[\d.]+%  [a-z]+ (right|down|left|up)", line) for line in lines)


@pytest.mark.parametrize(("ending", "levels"), [("png", ["0", "3"]), ("gif", []), ("webp", ["1"])])
def test_feature_videos_show_frames_and_maps(
    clip_examples: None, tmp_path: Path, ending: str, levels: list[str], capsys
):
    out = tmp_path / f"features.{ending}"
    chosen = ["--levels", *levels] if levels else []
    arguments = ["--model", "hiera_atto_video", "--no-pretrained", "--clips", "1", *chosen]
    load("feature_video").main([*arguments, "-o", str(out)])
    assert f"wrote {out}: 8 frames of {tmp_path / 'airplane_right.mp4'}" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.n_frames == 8  # type: ignore[attr-defined]
        sheets = []
        for n in range(8):
            image.seek(n)
            sheets.append(np.asarray(image.convert("RGB"))[28:252])
    columns = [[sheet[:, 8 + 232 * i : 232 * (i + 1)] for sheet in sheets] for i in range(1 + (len(levels) or 4))]
    assert sheets[0].shape[1] == 8 + 232 * len(columns)
    if ending == "png":  # which loses nothing
        frames, fine, coarse = columns
        assert all((a != b).any() for a, b in itertools.pairwise(frames))
        for level, cell in ((fine, 14), (coarse, 112)):
            changes = [bool((a != b).any()) for a, b in itertools.pairwise(level)]
            assert changes == [False, True] * 3 + [False], "a map is of two frames"
            blocks = level[0].reshape(224 // cell, cell, 224 // cell, cell, 3)
            assert (blocks == blocks[:, :1, :, :1]).all()
            assert len(np.unique(blocks[:, 0, :, 0].reshape(-1, 3), axis=0)) > 2


def test_like_features_of_a_clip_have_like_colours(clip_examples: None):
    example = load("feature_video")
    kinds = torch.randn(3, 8)
    maps = kinds[torch.arange(3).repeat(40)].reshape(4, 5, 6, 8).movedim(-1, 1)
    found = np.stack([np.asarray(image) for image in example.colours(maps)])
    assert found.shape == (4, 5, 6, 3)
    assert all(len(np.unique(found.reshape(-1, 3)[kind::3], axis=0)) == 1 for kind in range(3))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 3


def test_scenes_are_what_they_say(monkeypatch: pytest.MonkeyPatch):
    """Boxes, classes and pixels agree."""
    scenes = load("scenes")
    for seed in range(5):
        image, boxes, labels, classes = scenes.scene(seed)
        covered = torch.zeros_like(classes)
        for (left, top, right, bottom), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            assert (classes[top:bottom, left:right] == label).all()
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        assert (classes[covered == 0] == 0).all()
        grey = (torch.from_numpy(np.array(image)) == 128).all(-1)
        assert grey[covered == 0].all()
        assert scenes.scene(seed).image.tobytes() == image.tobytes()
        assert scenes.scene(seed, photographs=scenes.UNSEEN).image.tobytes() != image.tobytes()
    assert not set(scenes.LEARNED) & set(scenes.UNSEEN)


def test_heat_maps_are_drawn_where_a_class_was_seen(tmp_path: Path) -> None:
    cam, file = load("cam"), tmp_path / "cam.png"
    names = [str(IMAGES / "horse" / "0001.jpg"), str(IMAGES / "ship" / "0001.jpg")]
    cam.main([*names, "--model", "hivit_atto", "-o", str(file)])
    with Image.open(file) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    side, step = cam.SIDE, cam.SIDE + cam.LINE + cam.GAP
    at = 2 * cam.GAP + side  # the second column: grey where it is cold
    drawn = [pixels[cam.LINE + cam.GAP + row * step :][:side, at : at + side] for row in range(2)]
    for tile in drawn:
        coloured = np.ptp(tile, axis=2) > 30
        assert 0.01 < coloured.mean() < 0.99
    assert (drawn[0] != drawn[1]).any()
    (tmp_path / "bad.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"bad\.png cannot be read as an image"):
        cam.main([str(tmp_path / "bad.png"), "-o", str(file)])
