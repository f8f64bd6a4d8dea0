"""hiermim_zoo.extract: what is written equals what the model computes, and nothing is written that does not."""

from __future__ import annotations

import functools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

import hiermim_zoo
from hiermim_zoo import extract
from hiermim_zoo.commands import extracting, extracting_rows
from hiermim_zoo.commands.options import run_command

RANDOM = ("--no-pretrained", "--workers", "0", "--device", "cpu", "--batch-size", "2")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, not written in the order of their names, two of them deeper down, and a file that is none."""
    for seed, name in enumerate(("e.png", "a.jpg", "c.PNG", "deep/b.bmp", "deep/deeper/d.png")):
        image(tmp_path / "in" / name, (72 + 4 * seed, 70), seed)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def image(path: Path, size: tuple[int, int], seed: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed).randbytes(8 * 8 * len(mode))
    Image.frombytes(mode, (8, 8), noise).resize(size).save(path)
    return path


def features_of(
    *argv: object, model: str = "hivit_atto", output: Path
) -> tuple[dict[str, Tensor], list[str], dict[str, str]]:
    """Run the command in this process; the tensors, the names and the metadata that it wrote."""
    extract.main([*RANDOM, *map(str, argv), "--model", model, "-o", str(output)])
    return read(output)


def read(output: Path) -> tuple[dict[str, Tensor], list[str], dict[str, str]]:
    with safe_open(output, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors, json.loads(metadata["files"]), metadata


def model_and_images(
    names: list[str], model: str = "hivit_atto", size: int | None = None, **kwargs: int
) -> tuple[nn.Module, Tensor]:
    """The model of seed 0 and what timm's own transform makes of the files: [N, 3, size, size]."""
    torch.manual_seed(0)
    net = timm.create_model(model).eval()
    config = resolve_model_data_config(net)
    if size:
        config["input_size"] = (3, size, size)
    transform = create_transform(**config, is_training=False)
    return net, torch.stack([transform(Image.open(name).convert("RGB")) for name in names])


def in_twos(images: Tensor, forward) -> Tensor:
    """Apply batch by batch as the command does: sums may differ in the last bit between batch sizes."""
    with torch.inference_mode():
        return torch.cat([forward(part) for part in images.split(2)])


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run as from a shell; the one line on stderr of a command that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: extract.main([*RANDOM, *map(str, argv)]))
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "Traceback" not in error
    assert error.count("\n") == 1, error
    return error


def nothing_written(folder: Path, *known: str) -> bool:
    return sorted(p.name for p in folder.iterdir()) == sorted(known)


# ---- which images


def test_a_folder_is_searched_in_depth_and_sorted(folder, tmp_path):
    _, names, _ = features_of(folder, output=tmp_path / "out")
    assert names == [str(folder / name) for name in ("a.jpg", "c.PNG", "deep/b.bmp", "deep/deeper/d.png", "e.png")]


def test_order_of_arguments_is_kept_and_duplicates_are_dropped(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    _, names, _ = features_of("e.png", "a.jpg", "./e.png", folder / "a.jpg", "deep", ".", output=tmp_path / "out")
    assert names == ["e.png", "a.jpg", "deep/b.bmp", "deep/deeper/d.png", "./c.PNG"]


def test_patterns_are_expanded_unless_a_file_has_that_name(folder, tmp_path):
    odd = image(folder / "[ae].png", (64, 64), 9)
    _, names, _ = features_of(odd, folder / "**" / "*.bmp", output=tmp_path / "out")
    assert names == [str(odd), str(folder / "deep" / "b.bmp")]


def test_a_named_file_needs_no_known_suffix(folder, tmp_path):
    (folder / "e.png").rename(folder / "no_suffix")
    _, names, _ = features_of(folder / "no_suffix", output=tmp_path / "out")
    assert names == [str(folder / "no_suffix")]


def test_names_that_are_no_unicode_survive(tmp_path):
    name = os.fsdecode(b"\xff\xe4.png")
    try:
        image(tmp_path / "in" / name, (64, 64), 0)
    except OSError:
        pytest.skip("the file system takes Unicode alone")
    _, names, _ = features_of(tmp_path / "in", output=tmp_path / "out")
    assert names == [str(tmp_path / "in" / name)]


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.png", "no such file"), ("*.webp", "no such file"), ("empty", "no images")]
)
def test_a_name_that_leads_to_nothing_is_an_error(folder, tmp_path, capsys, name, reason):
    (folder / "empty").mkdir()
    error = refused(capsys, folder / "e.png", folder / name, "--model", "hivit_atto", "-o", tmp_path / "out")
    assert name in error
    assert reason in error


def test_names_too_long_for_one_file_are_refused_at_once(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extracting_rows, "MAX_NAMES", 100)
    assert "header" in refused(capsys, folder, "--model", "hivit_atto", "-o", tmp_path / "out")


# ---- which features


def test_rows_are_what_the_model_gives_for_the_files_named(folder, tmp_path):
    """Pooled, tokens and maps equal forward_head, forward_features and forward_intermediates after timm's transform."""
    tensors, names, metadata = features_of(
        folder, "--what", "pooled", "maps", "--what", "tokens", output=tmp_path / "out"
    )
    model, images = model_and_images(names)
    assert set(tensors) == {"pooled", "tokens", "map0", "map1", "map2", "map3"}
    assert torch.equal(tensors["tokens"], in_twos(images, model.forward_features))
    pooled = in_twos(images, lambda x: model.forward_head(model.forward_features(x), pre_logits=True))
    assert torch.equal(tensors["pooled"], pooled)
    for level in range(4):
        maps = in_twos(images, lambda x, level=level: model.forward_intermediates(x, intermediates_only=True)[level])
        assert torch.equal(tensors[f"map{level}"], maps)
    version = {"hiermim_zoo": hiermim_zoo.__version__, "weights": "random, seed 0"}
    assert metadata == {
        "files": json.dumps(names),
        "model": "hivit_atto",
        "img_size": "64x64",
        "images": "{}",
        **version,
    }


def test_pooled_is_the_default(folder, tmp_path):
    tensors, _, _ = features_of(folder, output=tmp_path / "out")
    assert {key: list(x.shape) for key, x in tensors.items()} == {"pooled": [5, 96]}


def test_only_the_levels_asked_for_are_stored_under_their_own_names(folder, tmp_path):
    tensors, names, _ = features_of(folder, "--what", "maps", "--levels", 2, 0, "--levels", 2, output=tmp_path / "out")
    model, images = model_and_images(names)
    assert set(tensors) == {"map0", "map2"}
    for level in (0, 2):
        maps = in_twos(images, lambda x, level=level: model.forward_intermediates(x, intermediates_only=True)[level])
        assert torch.equal(tensors[f"map{level}"], maps)


def test_another_size_is_fed_as_asked(folder, tmp_path):
    tensors, names, metadata = features_of(folder, "--what", "maps", "--img-size", 96, output=tmp_path / "out")
    model, images = model_and_images(names, size=96)
    assert metadata["img_size"] == "96x96"
    assert tensors["map0"].shape[2:] == (24, 24)
    final = in_twos(images, lambda x: model.forward_intermediates(x, intermediates_only=True)[3])
    torch.testing.assert_close(tensors["map3"], final)


def test_models_of_timm_itself_work_at_their_own_and_other_sizes(folder, tmp_path):
    tensors, names, _ = features_of(
        folder,
        "--what",
        "pooled",
        "tokens",
        "maps",
        "--levels",
        1,
        "--img-size",
        64,
        model="vit_tiny_patch16_224",
        output=tmp_path / "vit",
    )
    model, images = model_and_images(names, "vit_tiny_patch16_224", 64)
    model.set_input_size((64, 64))
    assert torch.equal(tensors["tokens"], in_twos(images, model.forward_features))
    maps = in_twos(images, lambda x: model.forward_intermediates(x, indices=[1], intermediates_only=True)[0])
    assert torch.equal(tensors["map1"], maps)

    tensors, names, _ = features_of(folder, model="test_resnet", output=tmp_path / "resnet")
    model, images = model_and_images(names, "test_resnet")
    pooled = in_twos(images, lambda x: model.forward_head(model.forward_features(x), pre_logits=True))
    assert torch.equal(tensors["pooled"], pooled)


def test_a_grey_model_gets_grey_images(folder, tmp_path, monkeypatch):
    """The channels of the images and of the normalisation are those of the model, whatever its configuration says."""
    monkeypatch.setattr(extracting, "make_model", lambda name, pretrained: timm.create_model(name, in_chans=1))
    tensors, names, _ = features_of(folder, "--batch-size", 5, output=tmp_path / "out")
    torch.manual_seed(0)
    model = timm.create_model("hivit_atto", in_chans=1).eval()
    cfg = model.pretrained_cfg
    mean, std = ((sum(cfg[key]) / 3,) for key in ("mean", "std"))
    transform = create_transform((1, 64, 64), mean=mean, std=std, interpolation="bicubic", crop_pct=cfg["crop_pct"])
    images = torch.stack([transform(Image.open(name).convert("L")) for name in names])
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(tensors["pooled"], expected)


def test_pretrained_weights_are_the_default(folder, tmp_path):
    """A folder that timm wrote is loaded with its weights, by name "local-dir:"."""
    torch.manual_seed(5)
    model = timm.create_model("hivit_atto").eval()
    timm.models.save_for_hf(model, str(tmp_path / "saved"))
    argv = [
        folder,
        "--model",
        f"local-dir:{tmp_path / 'saved'}",
        "-o",
        tmp_path / "out",
        "--workers",
        0,
        "--device",
        "cpu",
    ]
    extract.main([*map(str, argv)])
    tensors, names, metadata = read(tmp_path / "out")
    _, images = model_and_images(names)
    with torch.inference_mode():
        assert torch.equal(tensors["pooled"], model.forward_head(model.forward_features(images), pre_logits=True))
    assert (metadata["weights"], metadata["model"]) == ("pretrained", f"local-dir:{tmp_path / 'saved'}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensors_are_stored_in_the_type_asked_for(folder, tmp_path, dtype):
    full, _, _ = features_of(folder, output=tmp_path / "full")
    half, _, _ = features_of(folder, "--dtype", dtype, output=tmp_path / "half")
    assert torch.equal(half["pooled"], full["pooled"].to(getattr(torch, dtype)))


def test_mixed_precision_changes_the_computation_not_the_type(folder, tmp_path):
    full, _, _ = features_of(folder, output=tmp_path / "full")
    mixed, _, _ = features_of(folder, "--amp", "bf16", output=tmp_path / "mixed")
    assert mixed["pooled"].dtype == torch.float32
    assert not torch.equal(mixed["pooled"], full["pooled"])
    torch.testing.assert_close(mixed["pooled"], full["pooled"], atol=0.1, rtol=0.1)


def test_the_seed_decides_the_random_weights(folder, tmp_path):
    first, again, other = (
        features_of(folder, *seed, output=tmp_path / str(i))[0]["pooled"]
        for i, seed in enumerate(([], ["--seed", 0], ["--seed", 1]))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_values_that_overflow_the_type_are_refused(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        hiermim_zoo.models.hivit.HiViT, "forward_features", lambda self, x: torch.full((len(x), 4, 96), 1e6)
    )
    argv = [folder, "--what", "tokens", "--model", "hivit_atto", "-o", tmp_path / "out"]
    assert "float16" in refused(capsys, *argv, "--dtype", "float16")
    extract.main([*map(str, argv), *RANDOM])


# ---- images that cannot be read


def bad_files(folder: Path) -> list[Path]:
    """A JPEG cut short and a text with an image's suffix."""
    whole = image(folder / "b_cut.jpg", (80, 80), 7)
    whole.write_bytes(whole.read_bytes()[:-200])
    (folder / "d_text.png").write_text("no image")
    return [whole, folder / "d_text.png"]


def test_stop_ends_with_the_name_of_the_first_bad_file_and_writes_nothing(folder, tmp_path, capsys):
    cut, text = bad_files(folder)
    error = refused(capsys, folder, "--model", "hivit_atto", "-o", tmp_path / "out")
    assert str(cut) in error
    assert "truncated" in error
    assert str(text) in refused(capsys, text, "--model", "hivit_atto", "-o", tmp_path / "out")
    assert nothing_written(tmp_path, "in")


def test_skip_leaves_out_bad_files_and_changes_no_other_row(folder, tmp_path, capsys):
    good, names, _ = features_of(folder, "--batch-size", 1, output=tmp_path / "good")
    bad = bad_files(folder)
    tensors, kept, _ = features_of(folder, "--on-error", "skip", output=tmp_path / "out")
    assert kept == names
    torch.testing.assert_close(tensors["pooled"], good["pooled"])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 2
    assert all(line.startswith(f"skipped: {file}") for line, file in zip(lines, bad, strict=True))


@pytest.mark.filterwarnings(
    "ignore:.*multi-threaded:DeprecationWarning"
)  # Python 3.12 on forking: the readers use no torch threads
def test_readers_in_other_processes_change_nothing(folder, tmp_path):
    bad_files(folder)
    inline, _, _ = features_of(folder, "--on-error", "skip", output=tmp_path / "inline")
    tensors, _, _ = features_of(folder, "--on-error", "skip", "--workers", 2, output=tmp_path / "out")
    assert torch.equal(tensors["pooled"], inline["pooled"])


def test_nothing_left_after_skipping_is_an_error(folder, tmp_path, capsys):
    capsys.readouterr()
    with pytest.raises(ValueError, match="none of the 2 files"):
        features_of(*bad_files(folder), "--on-error", "skip", output=tmp_path / "out")
    assert nothing_written(tmp_path, "in")


@pytest.mark.parametrize("size", [(120, 120), (200, 200)])
def test_decompression_bombs_count_as_unreadable(folder, tmp_path, capsys, monkeypatch, size):
    """Beyond PIL's limit, where PIL itself only warns, and beyond twice the limit."""
    bomb = image(folder / "bomb.png", size, 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert str(bomb) in refused(capsys, folder, "--model", "hivit_atto", "-o", tmp_path / "out")
    _, names, _ = features_of(folder, "--on-error", "skip", output=tmp_path / "out")
    assert len(names) == 5
    assert str(bomb) not in names


def test_a_strip_that_resizing_would_blow_up_is_refused(tmp_path, capsys):
    strip = image(tmp_path / "in" / "strip.png", (60_000, 1), 0)
    assert "strip" in refused(capsys, strip, "--model", "hivit_atto", "-o", tmp_path / "out")


# ---- the output


def test_an_existing_output_is_kept_unless_forced(folder, tmp_path, capsys):
    output = tmp_path / "out"
    output.write_text("precious")
    assert "--force" in refused(capsys, folder, "--model", "hivit_atto", "-o", output)
    assert output.read_text() == "precious"
    tensors, _, _ = features_of(folder, "--force", output=output)
    assert len(tensors["pooled"]) == 5
    assert nothing_written(tmp_path, "in", "out")


def test_a_failing_run_keeps_the_old_output(folder, tmp_path, capsys):
    output = tmp_path / "out"
    output.write_text("precious")
    bad_files(folder)
    refused(capsys, folder, "--force", "--model", "hivit_atto", "-o", output)
    assert output.read_text() == "precious"
    assert nothing_written(tmp_path, "in", "out")


@pytest.mark.parametrize("ending", [".h5", ".PNG", ".csv", ".pt"])
def test_an_output_called_like_another_form_is_refused(folder, tmp_path, capsys, ending):
    error = refused(capsys, folder, "--model", "hivit_atto", "-o", tmp_path / f"out{ending}")
    assert f"out{ending}: features are written as .safetensors, .npz, .npy or .parquet; out.safetensors would" in error


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_made(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extracting, "make_model", lambda *args, **kwargs: pytest.fail("too late"))
    for output in (tmp_path / "missing" / "out", folder, folder / "e.png" / "out"):
        assert str(output) in refused(capsys, folder, "--model", "hivit_atto", "-o", output)
    assert "cannot be written: a folder" in refused(capsys, folder, "--force", "--model", "hivit_atto", "-o", folder)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):  # root may write anywhere
        assert "Permission" in refused(capsys, folder, "--model", "hivit_atto", "-o", locked / "out")


# ---- what is refused in one line


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--model", "hivit_ato"], "hivit_atto"),
        (["--model", "local-dir:nowhere"], "nowhere"),
        (["--model", "hivit_atto", "--img-size", "31"], "at least 32"),
        (["--model", "hivit_atto", "--what", "maps", "--levels", "4"], "level"),
        (["--model", "test_vit", "--what", "maps", "--levels", "99"], "--levels 99: test_vit has the levels 0 to 5"),
        (["--model", "hivit_atto", "--levels", "1"], "--what maps"),
        (["--model", "hivit_atto", "--device", "abacus"], "abacus"),
        (["--model", "hivit_atto", "--device", "meta"], "meta"),
        (["--model", "hiera_tiny_224", "--img-size", "48"], "hiera_tiny_224' fails"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, tmp_path, capsys, argv, reason):
    assert reason in refused(capsys, folder, "-o", tmp_path / "out", *argv)
    assert nothing_written(tmp_path, "in")


def test_a_seed_without_random_weights_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"--seed 1 is of .* leave it out"):
        extract.main([str(folder), "--model", "hivit_atto", "-o", str(tmp_path / "out"), "--seed", "1"])


def test_a_model_without_the_method_needed_is_named(folder, tmp_path, capsys, monkeypatch):
    [owner] = [cls for cls in hiermim_zoo.models.hivit.HiViT.__mro__ if "forward_intermediates" in vars(cls)]
    monkeypatch.delattr(owner, "forward_intermediates")
    error = refused(capsys, folder, "--what", "maps", "--model", "hivit_atto", "-o", tmp_path / "out")
    assert "forward_intermediates" in error


def test_a_model_that_does_not_pool_is_refused(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hiermim_zoo.models.hivit.HiViT, "forward_head", lambda self, x, pre_logits: x)
    assert "pooled" in refused(capsys, folder, "--model", "hivit_atto", "-o", tmp_path / "out")


def test_a_model_of_odd_channels_is_refused(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extracting, "make_model", lambda name, pretrained: timm.create_model(name, in_chans=5))
    assert "5 channels" in refused(capsys, folder, "--model", "hivit_atto", "-o", tmp_path / "out")


# ---- several processes


@pytest.fixture
def two_processes(forked):
    """As torchrun starts them, which tests/test_twins.py does."""
    return functools.partial(forked.command, "hiermim_zoo.extract", "--model", "hivit_atto", *RANDOM, processes=2)


@pytest.mark.slow
def test_two_processes_write_the_bytes_that_one_writes(two_processes, folder, tmp_path):
    """Also where images are skipped, and a whole batch of them: the second, all that process 1 has of the first 4."""
    for name in ("c.PNG", "deep/b.bmp"):
        (folder / name).write_text("no image")
    argv = [folder, "--on-error", "skip", "--what", "pooled", "tokens", "maps", "--seed", 3]
    features_of(*argv, output=tmp_path / "one")
    done = two_processes(*argv, "-o", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    assert nothing_written(tmp_path, "in", "one", "two")


@pytest.mark.slow
def test_one_failing_process_ends_all_and_leaves_nothing(two_processes, folder, tmp_path):
    """The bad file lies in the second batch, which process 1 has to itself."""
    (folder / "deep" / "deeper" / "d.png").write_text("no image")
    done = two_processes(folder, "-o", tmp_path / "out")
    assert done.returncode != 0
    assert "d.png cannot be read" in done.stderr
    assert nothing_written(tmp_path, "in")


def test_an_image_that_is_too_large_could_be_cut_where_its_format_allows(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    image(tmp_path / "b.png", (90, 70), 0)
    before = Image.MAX_IMAGE_PIXELS
    options = {"model": "hivit_atto", "output": tmp_path / "out", "pretrained": False, "workers": 0, "max_pixels": 1000}
    try:
        with pytest.raises(ValueError, match=r"--max-pixels allows them; so does --tile N, which cuts images"):
            extract.run(images=[str(tmp_path / "a.npy")], **options)
        with pytest.raises(ValueError, match=r"--max-pixels allows them\); --on-error"):  # negative control
            extract.run(images=[str(tmp_path / "b.png")], **options)
    finally:
        Image.MAX_IMAGE_PIXELS = before
