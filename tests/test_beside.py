"""What stands beside weights, and around them: nothing of it may make a model that computes something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import SafetensorError
from timm.models._hub import save_for_hf
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import hiermim_zoo  # noqa: F401
from hiermim_zoo import convert
from hiermim_zoo.checkpoints import atomic
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.mae import create_mae

from .names import transformers
from .test_hpvit_convert import plain
from .test_targets import toy

State = dict[str, Tensor]
BESIDE = {"model_type": "vit", "num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-6}


def folder_of(path: Path, state: State, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    torch.save(state, path / "w.pth")
    (path / "config.json").write_text(json.dumps(config))
    return path


def converted(source: Path, tmp_path: Path, *more: object, arch: str = "test_vit") -> Any:
    convert.main([str(arg) for arg in (source, "--model", arch, "-o", tmp_path / "out", "--force", *more)])
    return timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()


# ---- the function


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_attention_heads": 4}, "attention heads 4, test_vit has 2: outputs would differ"),
        ({"hidden_act": "relu"}, "hidden_act relu, test_vit has gelu"),
        ({"hidden_act": "quick_gelu"}, "hidden_act quick_gelu"),
        ({"layer_norm_eps": 1e-2}, "layer_norm_eps 0.01, test_vit has 1e-06"),
    ],
)
def test_a_configuration_of_another_function_is_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = transformers(toy())
    with pytest.raises(ValueError, match=f"config.json beside the file says {message}"):
        converted(folder_of(tmp_path / "in", state, **{**BESIDE, **said}), tmp_path)
    converted(folder_of(tmp_path / "in", state, **BESIDE), tmp_path)  # control
    wide = transformers(plain())
    with pytest.raises(ValueError, match="hpvit_atto has"):
        converted(folder_of(tmp_path / "in", wide, **{**BESIDE, **said}), tmp_path, arch="hpvit_atto")


def test_norms_of_nearly_the_same_epsilon_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(folder_of(tmp_path / "in", transformers(toy()), **{**BESIDE, "layer_norm_eps": 1e-12}), tmp_path)
    assert "epsilon of norms: 1e-12 in the source, 1e-06 here" in capsys.readouterr().out


@pytest.mark.parametrize(
    "pooling",
    [{"global_pool": "avg", "fc_norm": False}, {"global_pool": "token", "fc_norm": True}, {"global_pool": "max"}],
)
def test_timms_own_pooling_is_kept(pooling: dict[str, Any], tmp_path: Path) -> None:
    source: Any = timm.create_model("test_vit", num_classes=7, **pooling).eval()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_for_hf(source, tmp_path / "in", model_args=pooling)
    model, image = converted(tmp_path / "in", tmp_path), torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(model(image), source(image))
        model.global_pool = "avg" if model.global_pool != "avg" else "token"  # negative control
        assert not torch.allclose(model(image), source(image), atol=1e-3)
    if "fc_norm" in pooling:
        with pytest.raises(ValueError, match="leave out --global-pool"):
            converted(tmp_path / "in", tmp_path, "--global-pool", "avg")


def test_a_classifier_of_the_class_token_behind_fc_norm_is_none_of_mean_pooling(tmp_path: Path) -> None:
    state = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: x for name, x in plain().items()}
    said = {"architecture": "vit_x", "global_pool": "token", "model_args": {"fc_norm": True}}
    source = folder_of(tmp_path / "in", {**state, "head.weight": torch.ones(5, 96), "head.bias": torch.ones(5)}, **said)
    with pytest.raises(ValueError, match=r"global_pool token, hpvit_atto has avg.*--num-classes 0 leaves"):
        converted(source, tmp_path, arch="hpvit_atto")


# ---- around the weights


def hivit() -> State:
    torch.manual_seed(0)
    return timm.create_model("hivit_atto", num_classes=0).state_dict()


def test_averages_of_torch_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source: Any = timm.create_model("hivit_atto", num_classes=0)
    average = AveragedModel(source)
    average.update_parameters(source)
    torch.save(average.state_dict(), tmp_path / "average.pth")
    model = converted(tmp_path / "average.pth", tmp_path, arch="hivit_atto")
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert "left out 1: a counter of averages, no weight" in capsys.readouterr().out


def test_two_layouts_in_one_file_are_one_line(tmp_path: Path) -> None:
    torch.save({**toy(), "mask_token": torch.ones(1), **transformers(toy())}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"are those of the layouts 'vit_\w+' and 'vit_\w+' at once") as refused:
        converted(tmp_path / "two.pth", tmp_path)
    assert "\n" not in str(refused.value)


def test_feature_pyramids_of_detectors_make_no_itpn(tmp_path: Path) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in hivit().items() if not name.startswith("fc_norm")}
    more = {"neck.lateral_convs.0.conv.weight": torch.ones(2, 2), "neck.fpn_convs.0.conv.weight": torch.ones(2, 2),
            "rpn_head.rpn_conv.weight": torch.ones(2, 2)}  # fmt: skip
    torch.save(state | more, tmp_path / "det.pth")
    model = converted(tmp_path / "det.pth", tmp_path, arch="hivit_atto")
    assert torch.equal(model.blocks[3].mlp.fc1.weight, state["backbone.blocks.3.mlp.fc1.weight"])
    torch.save({**hivit(), "fpn_modules.0.weight": torch.ones(2, 2)}, tmp_path / "itpn.pth")
    with pytest.raises(ValueError, match="the file is of an iTPN"):
        converted(tmp_path / "itpn.pth", tmp_path, arch="hivit_atto")


def test_a_teacher_of_another_kind_hides_no_student(tmp_path: Path) -> None:
    student, teacher = ({f"{who}.{n}": x for n, x in state.items()} for who, state in
                        (("student", hivit()), ("teacher", toy())))  # fmt: skip
    torch.save({"state_dict": {**student, **teacher}}, tmp_path / "distil.ckpt")
    with pytest.raises(ValueError, match=r"layout 'hivit_timm' fits with: .* --prefix student\. ") as refused:
        converted(tmp_path / "distil.ckpt", tmp_path, arch="hivit_atto")
    assert "BEiT" not in str(refused.value)


def test_no_way_is_named_that_leads_nowhere(tmp_path: Path) -> None:
    """A tensor that no layout knows is in the way under any key and prefix."""
    torch.save({"model": {**hivit(), "queue": torch.zeros(3)}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="'queue'") as refused:
        converted(tmp_path / "w.pth", tmp_path, arch="hivit_atto")
    assert "fits with" not in str(refused.value)


def test_the_command_that_is_printed_for_an_autoencoder_keeps_its_decoder(tmp_path: Path) -> None:
    torch.save({f"mae.{n}": x for n, x in create_mae("hivit_atto").state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"fits with: .* --prefix mae\. ") as refused:
        converted(tmp_path / "w.pth", tmp_path, "--mae", arch="hivit_atto")
    assert "--prefix mae.encoder" not in str(refused.value)


@pytest.mark.parametrize("name", ["norm.bias", "norm.weight"])
def test_half_of_a_norm_is_none(name: str, tmp_path: Path) -> None:
    state = toy()
    del state[name]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"'{name}' .* is missing|fit no layout"):
        converted(tmp_path / "w.pth", tmp_path)


def test_one_table_of_many_is_not_made_up(tmp_path: Path) -> None:
    state = hivit()
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    torch.save({name: x for name, x in state.items() if name != tables[1]}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"'{tables[1]}' .* is missing"):
        converted(tmp_path / "w.pth", tmp_path, arch="hivit_atto")
    torch.save({name: x for name, x in state.items() if name not in tables}, tmp_path / "w.pth")
    converted(tmp_path / "w.pth", tmp_path, arch="hivit_atto")  # none at all: trained without


def test_verification_needs_no_images_of_six_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = toy()
    state["patch_embed.proj.weight"] = torch.randn(64, 6, 16, 16)
    torch.save(state, tmp_path / "w.pth")
    assert converted(tmp_path / "w.pth", tmp_path, "--verify").in_chans == 6
    assert "verified" in capsys.readouterr().out


# ---- sizes and targets


@pytest.mark.parametrize(
    ("size", "message"),
    [((10,), "no patch of 16 x 16|is too small|smaller"), ((100000,), "sides of 8192 pixels are the largest")],
)
def test_sizes_that_cannot_be_are_one_line(size: tuple[int, ...], message: str, tmp_path: Path) -> None:
    torch.save(toy(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        converted(tmp_path / "w.pth", tmp_path, "--img-size", *size)
    assert not (tmp_path / "out").exists()


def test_sizes_that_are_no_multiple_of_a_patch_are_read_again(tmp_path: Path) -> None:
    torch.save(toy(), tmp_path / "w.pth")
    first = converted(tmp_path / "w.pth", tmp_path, "--img-size", 100, 150)
    (tmp_path / "out").rename(tmp_path / "first")
    again = converted(tmp_path / "first", tmp_path)
    assert again.patch_embed.grid_size == first.patch_embed.grid_size == (6, 9)
    assert torch.equal(again.pos_embed, first.pos_embed)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    torch.save(hivit(), tmp_path / "w.pth")
    monkeypatch.setattr(atomic, "save_file", full)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: converted(tmp_path / "w.pth", tmp_path, arch="hivit_atto"))
    assert stop.value.code == 2
    assert "model.safetensors cannot be written: I/O error: No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth"]


def test_targets_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    torch.save(hivit(), tmp_path / "w.pth")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target, message in ((tmp_path / "link", "is a link that leads nowhere"),
                            (tmp_path / "w.pth" / "sub", r"cannot be written: .*w\.pth is a file")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            convert.run(source=str(tmp_path / "missing.pth"), model="hivit_atto", output=target)
    converted(tmp_path / "w.pth", tmp_path, arch="hivit_atto")
    card = tmp_path / "out" / "README.md"
    card.unlink()
    card.mkdir()
    with pytest.raises(ValueError, match=r"README\.md is no file, so it cannot be replaced"):
        converted(tmp_path / "w.pth", tmp_path, arch="hivit_atto")
    assert (tmp_path / "out" / "config.json").is_file()
    with pytest.raises(ValueError, match="SOURCE is empty"):
        convert.run(source="", model="hivit_atto", output=tmp_path / "x")


def test_a_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    torch.save({**hivit(), 5: torch.ones(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"a tensor whose name is 5 \(int\); names are strings"):
        converted(tmp_path / "w.pth", tmp_path, arch="hivit_atto")
