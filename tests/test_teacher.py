"""A frozen teacher: what is predicted is what it says of the whole image, and nothing else of a run changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hiermim_zoo import pretrain, reconstruct
from hiermim_zoo.mae import MaskedAutoencoder, OtherTarget, create_mae
from hiermim_zoo.masking import random_keep
from hiermim_zoo.teacher import BadTeacher, Teacher, check_teacher, last_map, on_grid, predicting
from hiermim_zoo.training import snapshots
from hiermim_zoo.training.run_log import read_log

from .runs import largest_difference, weights

pytestmark = pytest.mark.usefixtures("one_thread")
TEACHER = "features:hivit_atto.mae_cifar10"
RANDOM = "random-features:hivit_atto"
DECODER = {"depth": 1, "dim": 32, "heads": 2}
TOLD: dict[str, Any] = {"data": "digits", "model": "hivit_atto", "workers": 0, "img_size": 32, "batch_size": 8}
TOLD |= {"steps": 4, "decoder_depth": 1, "decoder_dim": 32, "decoder_heads": 2, "look_every": 0, "log_steps": 1}


def student(target: str, arch: str = "hivit_atto", **kwargs: Any) -> MaskedAutoencoder:
    return create_mae(arch, recipe=DECODER | predicting(target), **kwargs)


def normalised(x: Tensor) -> Tensor:
    """The last axis with mean 0 and variance 1, as a formula."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


# ---- what is predicted


def test_the_loss_is_that_of_the_formula() -> None:
    """Pixels as the teacher has them -> tokens of its last stage -> each normalised -> squared error where hidden.

    Negative controls: another teacher, another level and another normalisation of the images give another loss.
    """
    mae = student(RANDOM, img_size=64)
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    teacher = Teacher(mae, mean, std)
    pixels = torch.rand(2, 3, 64, 64)

    def seen(mean: Any, std: Any) -> Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    images, keep = seen(mean, std), random_keep(2, 16, 4)
    out = mae(images, keep, features=teacher(images))
    assert out.pred.shape == (2, 16, 96)

    own: Any = teacher.model
    own_cfg = own.pretrained_cfg
    stages = own.forward_visible(seen(own_cfg["mean"], own_cfg["std"]), torch.arange(16).expand(2, -1)).stages
    error = (out.pred - normalised(stages[-1].flatten(1, -2))).square().mean(-1)
    expected = error[out.hidden].mean()
    torch.testing.assert_close(out.loss, expected)

    others = {
        "teacher": Teacher(mae, mean, std)(images),
        "level": normalised(stages[-2].mean((2, 3)).repeat(1, 1, 2)),
        "images": Teacher.forward(teacher, pixels),
    }
    for name, features in others.items():
        assert (mae(images, keep, features=features).loss - expected).abs() > 1e-3, name


@pytest.mark.parametrize(
    ("target", "size", "seen", "width"),
    [
        (RANDOM, 64, (64, 64), 96),
        ("random-features:hpvit_atto", 64, (64, 64), 96),  # not of the protocol
        ("random-features:green_swin_atto", 64, (64, 64), 192),
        ("random-features:green_twins_small", 256, (256, 256), 512),  # built for 224, and cannot be told
        ("random-features:hiera_atto", 64, (64, 64), 192),
        ("random-features:test_resnet", 96, (96, 96), 96),
        ("random-features:test_vit", 64, (160, 160), 64),  # whose size is fixed
        ("random-features:test_convnext3", 64, (64, 64), 128),
    ],
)
def test_every_kind_of_teacher_has_a_value_for_each_token(target: str, size: int, seen: Any, width: int) -> None:
    mae = student(target, img_size=size)
    check_teacher(mae)
    teacher = Teacher(mae)
    images = torch.randn(2, 3, size, size)
    features = teacher(images)
    images[:, :, -8:, -8:] = 1
    assert not torch.equal(teacher(images)[:, -1], features[:, -1]), "the last corner is seen, too"
    assert (teacher.size, teacher.dim) == (seen, width)
    assert features.shape == (2, (size // 16) ** 2, width)
    torch.testing.assert_close(features.mean(-1), torch.zeros(features.shape[:2]), atol=1e-4, rtol=0)
    assert mae(torch.randn(2, 3, size, size), features=features).loss.isfinite()


def test_clips_have_teachers_of_clips() -> None:
    mae = student("random-features:hiera_atto_video", "hiera_atto_video")
    clips = torch.randn(1, 3, *mae.input_size)
    features = Teacher(mae)(clips)
    assert mae(clips, features=features).loss.isfinite()
    with pytest.raises(BadTeacher, match="the teacher takes images, and the student clips"):
        check_teacher(student(RANDOM, "hiera_atto_video"))


def test_a_map_is_resampled_where_its_grid_is_another_one() -> None:
    rows = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 2, 8, 8)
    assert on_grid(rows, (8, 8)) is rows
    torch.testing.assert_close(on_grid(rows, (4, 4))[0, 0, 1:3, 0], torch.tensor([2.5, 4.5]))
    torch.testing.assert_close(on_grid(torch.ones(1, 2, 2, 2), (4, 6)), torch.ones(1, 2, 4, 6))


def test_the_map_of_the_protocol_is_that_of_timm() -> None:
    model: Any = timm.create_model("hiera_atto", num_classes=0, img_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    theirs = model.forward_intermediates(x, indices=1, intermediates_only=True)[-1]
    torch.testing.assert_close(last_map(model, x), theirs)


def test_an_encoder_is_not_asked_for_a_part_of_a_larger_image() -> None:
    model = timm.create_model("hivit_atto", num_classes=0, img_size=64).eval()
    last_map(model, torch.zeros(1, 3, 64, 50))  # padded to the same units
    with pytest.raises(ValueError, match=r"HiViT was set to \(64, 64\), but was given \(96, 64\)"):
        last_map(model, torch.zeros(1, 3, 96, 64))


# ---- the teacher is frozen


def test_no_gradient_reaches_the_teacher_and_training_leaves_it_as_it_is() -> None:
    mae = student(RANDOM, img_size=32, drop_path_rate=0.5)
    teacher = Teacher(mae)
    before, digest = {name: t.clone() for name, t in teacher.state_dict().items()}, teacher.digest
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    images = torch.randn(4, 3, 32, 32)
    features = teacher(images)
    assert not features.requires_grad
    mae(images, features=features).loss.backward()
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in mae.encoder.parameters()), "control"
    assert all(tensor.equal(before[name]) for name, tensor in teacher.state_dict().items())
    with torch.no_grad():
        next(teacher.model.parameters()).add_(1e-3)
    del teacher.__dict__["digest"]
    assert teacher.digest != digest, "control: the digest sees a changed weight"


def test_features_are_given_exactly_where_they_are_predicted() -> None:
    pixels, mae = create_mae("hivit_atto", recipe=DECODER, img_size=32), student(RANDOM, img_size=32)
    images, features = torch.randn(1, 3, 32, 32), torch.zeros(1, 4, 96)
    with pytest.raises(ValueError, match="predicts pixels, but features are given"):
        pixels(images, features=features)
    with pytest.raises(ValueError, match="predicts random-features:hivit_atto, but no features are given"):
        mae(images)
    with pytest.raises(ValueError, match=r"features are \[1, 4, 95\], those that are predicted \[1, 4, 96\]"):
        mae(images, features=features[..., :95])
    with pytest.raises(ValueError, match="there is nothing to draw: random-features:hivit_atto are predicted"):
        mae.reconstruct(images, mae(images, features=features))
    with pytest.raises(ValueError, match="norm_pix=False is about pixels"):
        MaskedAutoencoder(mae.encoder, mae.recipe, norm_pix=False)


# ---- runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with looks."""
    output = tmp_path_factory.mktemp("runs") / "out"
    torch.set_num_threads(1)
    pretrain.run(output=output, target=TEACHER, **TOLD | {"look_every": 1})
    return output


def test_pixels_are_what_is_predicted_unless_told(tmp_path: Path) -> None:
    pretrain.run(output=tmp_path / "a", **TOLD)
    pretrain.run(output=tmp_path / "b", target="pixels", **TOLD)
    assert largest_difference(weights(tmp_path / "a"), weights(tmp_path / "b")) == 0
    recipe = json.loads((tmp_path / "a" / "encoder" / "config.json").read_text())["hiermim_zoo"]["recipe"]
    assert "target" not in recipe


def test_a_run_says_what_it_predicted_and_its_encoder_is_as_ever(finished: Path) -> None:
    config = json.loads((finished / "encoder" / "config.json").read_text())["hiermim_zoo"]
    assert config["target"] == config["recipe"]["target"] == TEACHER
    assert config["recipe"]["target_dim"] == 96
    assert f"| target | `{TEACHER}` |" in (finished / "encoder" / "README.md").read_text()
    record = json.loads((finished / "run.json").read_text())
    assert record["options"]["target"]["value"] == TEACHER
    encoder = timm.create_model(f"local-dir:{finished / 'encoder'}", pretrained=True)
    assert encoder(torch.randn(1, 3, 32, 32)).shape == (1, 96)
    assert not (finished / "looks").exists(), "there are no pixels to draw"
    assert any("knn" in note for note in read_log(finished))
    kept = snapshots.weights_of(snapshots.found(finished / "checkpoints")[-1])
    assert {name.partition(".")[0] for name in kept} == {"encoder", "fusion", "decoder"}
    assert kept["decoder.pred.weight"].shape == (96, 32)


def test_the_loss_of_a_run_is_that_of_its_teacher(finished: Path, tmp_path: Path) -> None:
    """Control: with the same seed another teacher gives another loss from the first step on."""
    pretrain.run(output=tmp_path / "other", target=RANDOM, **TOLD)
    first, other = (next(n["loss"] for n in read_log(run) if "loss" in n) for run in (finished, tmp_path / "other"))
    assert 0.5 < first < 2
    assert abs(first - other) > 1e-3


def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path: Path) -> None:
    """With the teacher, too, whose weights are drawn anew."""
    told = TOLD | {"target": RANDOM, "drop_path": 0.2}
    pretrain.run(output=tmp_path / "whole", **told)
    pretrain.run(output=tmp_path / "halves", stop_after=2, **told)
    pretrain.run(output=tmp_path / "halves", data="digits", model="hivit_atto", workers=0, resume="auto", look_every=0)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "halves")) == 0


def test_passes_of_a_step_see_their_own_features(finished: Path, tmp_path: Path) -> None:
    pretrain.run(output=tmp_path / "two", target=TEACHER, accumulate=2, **TOLD)
    assert largest_difference(weights(finished), weights(tmp_path / "two")) < 1e-4


def test_a_run_refuses_another_target(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    again: dict[str, Any] = {"data": "digits", "model": "hivit_atto", "resume": "auto", "workers": 0}
    for other in ("pixels", RANDOM):
        with pytest.raises(ValueError, match=f"--target is {other}, but the run of .* was started with {TEACHER}"):
            pretrain.run(output=tmp_path / "out", target=other, **again)


def test_a_run_refuses_a_teacher_whose_weights_have_changed(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "encoder", tmp_path / "teacher")
    told = TOLD | {"target": f"features:local-dir:{tmp_path / 'teacher'}"}
    pretrain.run(output=tmp_path / "out", stop_after=2, **told)
    model = timm.create_model(f"local-dir:{tmp_path / 'teacher'}", pretrained=True)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    timm.models.save_for_hf(model, tmp_path / "teacher", safe_serialization=True)
    with pytest.raises(ValueError, match=r"--target features:local-dir:.*: its weights are others than those"):
        pretrain.run(output=tmp_path / "out", resume="auto", **told)


def test_what_a_folder_predicts_goes_on(finished: Path, tmp_path: Path) -> None:
    """Without a target that of the folder; with another one its decoder is of no use."""
    told = {name: value for name, value in TOLD.items() if not name.startswith("decoder_")}
    told |= {"checkpoint": str(finished / "encoder"), "steps": 1}
    encoder = pretrain.run(output=tmp_path / "on", **told)
    assert json.loads((encoder / "config.json").read_text())["hiermim_zoo"]["target"] == TEACHER
    with pytest.raises(ValueError, match=f"--target pixels: the decoder of .* predicts {TEACHER}, not pixels") as error:
        pretrain.run(output=tmp_path / "no", target="pixels", **told)
    assert "\n" not in str(error.value)
    encoder = pretrain.run(output=tmp_path / "new", target="pixels", decoder="fresh", **told)
    assert "target" not in json.loads((encoder / "config.json").read_text())["hiermim_zoo"]
    with pytest.raises(OtherTarget, match="a new one works"):
        create_mae("hivit_atto", checkpoint=encoder, recipe=predicting(TEACHER))


def test_there_is_nothing_to_draw(finished: Path, tmp_path: Path) -> None:
    drawing = tmp_path / "a.png"
    image = Path(__file__).parents[1] / "examples" / "pictures" / "cat" / "0000.jpg"
    with pytest.raises(ValueError, match=r"--checkpoint .* predicts features:.*, no pixels, so there is nothing to"):
        reconstruct.run(images=(image,), model="hivit_atto", checkpoint=finished / "encoder", output=drawing)
    assert not drawing.exists()


# ---- what is refused


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"target": "features:"}, "--target features: is not pixels or features:MODEL; pixels would work"),
        ({"target": "colours"}, "--target colours is not pixels or"),
        (
            {"target": "features:hivit_atoo"},
            "--target features:hivit_atoo: model 'hivit_atoo' is unknown; did you mean",
        ),
        ({"target": "features:hivit_atto.no"}, "--target features:hivit_atto.no: hivit_atto.no is not a known tag"),
        ({"target": "features:local-dir:/none"}, "--target features:local-dir:/none: /none does not exist; a"),
        (
            {"target": "features:green_swin_small"},
            "--target features:green_swin_small: green_swin_small has no pretrained weights; "
            "random-features:green_swin_small takes random ones",
        ),
        ({"target": "random-features:hiera_atto_video"}, "the teacher takes clips, and the student images"),
        ({"target": TEACHER, "in_chans": 1}, "the teacher takes images of 3 channels, and the student of 1"),
        ({"target": TEACHER, "raw_pixels": True}, "--raw-pixels is about pixels, but --target features"),
    ],
)
def test_what_cannot_teach_is_refused_in_a_line(told: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        pretrain.run(output=tmp_path / "out", **TOLD | told)
    assert why in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


class Mapless(nn.Module):
    """A model that says nothing of places."""


def test_a_model_without_maps_is_no_teacher() -> None:
    with pytest.raises(ValueError, match="Mapless gives no feature maps: it has no forward_intermediates"):
        last_map(Mapless(), torch.zeros(1, 3, 32, 32))
