"""The convert command, from published file to timm.create_model, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hiermim_zoo  # noqa: F401
from hiermim_zoo import convert
from hiermim_zoo.checkpoints import folder as folders
from hiermim_zoo.checkpoints.folder import Contents, own_cfg, write_folder
from hiermim_zoo.commands import converting
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.mae import create_mae, decoder_state
from hiermim_zoo.models.build import make_model

from .forks import Forks


@pytest.fixture
def atto(tmp_path: Path) -> Path:
    """A toy checkpoint in this package's own layout, 5 classes, at 64 x 64."""
    torch.manual_seed(3)
    model = timm.create_model("hivit_atto", num_classes=5)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    torch.save({"model": model.state_dict()}, tmp_path / "atto.pth")
    return tmp_path / "atto.pth"


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def command(*args: object) -> None:
    convert.main([str(arg) for arg in args])


def test_the_folder_loads_with_timm_and_says_where_it_comes_from(
    atto: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command(atto, "--model", "hivit_atto", "-o", out, "--verify", "--license", "mit")
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert all(torch.equal(t, state_of(atto)[n]) for n, t in model.state_dict().items())
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == "hivit_atto"
    assert config["num_classes"] == 5
    assert config["pretrained_cfg"]["license"] == config["hiermim_zoo"]["license"] == "mit"
    assert config["hiermim_zoo"]["layout"] == "hivit_timm"
    assert len(config["hiermim_zoo"]["sha256"]) == 64
    card = (out / "README.md").read_text()
    assert config["hiermim_zoo"]["sha256"] in card
    assert "license: mit" in card
    assert "import hiermim_zoo" in card
    said = capsys.readouterr().out
    assert "under 'model'" in said
    assert "verified" in said


def test_a_folder_gets_a_licence_and_keeps_its_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names its architecture itself; what is known of its run is still said. Without --mae the decoder is missed."""
    mae = create_mae("hivit_atto", recipe=(small := {"depth": 1, "dim": 32, "heads": 2}))
    encoder: Any = mae.encoder
    encoder.pretrained_cfg = own_cfg("hivit_atto", {}, "unstated", 0, (3, 64, 64))
    about = {"source": "a run", "license": "unstated", "step": 0, "warnings": ["it was never trained"]}
    contents = Contents("hivit_atto", encoder, about, "Made.", decoder=decoder_state(mae), recipe=small)
    write_folder(contents, tmp_path / "run")
    command(tmp_path / "run", "--license", "mit", "--mae", "-o", tmp_path / "whole")
    assert "left out" not in capsys.readouterr().out
    command(tmp_path / "run", "--license", "mit", "-o", tmp_path / "half")
    assert "left out decoder.safetensors beside it: --mae keeps it" in capsys.readouterr().out
    again = create_mae("hivit_atto", checkpoint=tmp_path / "whole")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in mae.state_dict().items())
    said = json.loads((tmp_path / "whole" / "config.json").read_text())["hiermim_zoo"]
    assert (said["license"], said["step"], said["warnings"]) == ("mit", 0, ["it was never trained"])
    assert "it was never trained" in (tmp_path / "whole" / "README.md").read_text()
    torch.save(encoder.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="--model ARCH is needed"):
        command(tmp_path / "bare.pth", "-o", tmp_path / "x")


def test_a_converted_folder_converts_again_to_the_same_bits(atto: Path, tmp_path: Path) -> None:
    command(atto, "--model", "hivit_atto", "-o", tmp_path / "a", "--img-size", 96, 64)
    command(tmp_path / "a", "--model", "hivit_atto", "-o", tmp_path / "b")
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert timm.create_model(f"local-dir:{tmp_path / 'b'}").patch_embed.img_size == (96, 64)


def test_resampling_is_what_the_model_does_itself(
    atto: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(atto, "--model", "hivit_atto", "-o", tmp_path / "out", "--img-size", 96)
    assert "resampled absolute_pos_embed [1, 16, 96] -> [1, 36, 96]" in capsys.readouterr().out
    model = timm.create_model("hivit_atto", num_classes=5)
    model.load_state_dict(state_of(atto))
    model.set_input_size(96)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(t, written[n]) for n, t in model.state_dict().items())
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert tuple(loaded.pretrained_cfg["input_size"]) == (3, 96, 96)


def test_a_checkpoint_of_another_size_keeps_its_size(tmp_path: Path) -> None:
    torch.save(timm.create_model("hivit_atto", num_classes=5, img_size=96).state_dict(), tmp_path / "96.pth")
    command(tmp_path / "96.pth", "--model", "hivit_atto", "-o", tmp_path / "out")
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).patch_embed.img_size == (96, 96)


def test_the_classifier_can_be_left_out(atto: Path, tmp_path: Path) -> None:
    command(atto, "--model", "hivit_atto", "-o", tmp_path / "out", "--num-classes", 0)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.num_classes == 0
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 96)
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=3).num_classes == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_written_and_read(atto: Path, tmp_path: Path, dtype: str) -> None:
    command(atto, "--model", "hivit_atto", "-o", tmp_path / "out", "--dtype", dtype, "--verify")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in written.values()} == {getattr(torch, dtype)}
    command(tmp_path / "out", "--model", "hivit_atto", "-o", tmp_path / "again", "--dtype", dtype)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(t, again[n]) for n, t in written.items())


def test_gray_stems_are_kept(tmp_path: Path) -> None:
    torch.save(timm.create_model("hivit_atto", num_classes=0, in_chans=1).state_dict(), tmp_path / "gray.pth")
    command(tmp_path / "gray.pth", "--model", "hivit_atto", "-o", tmp_path / "out")
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).in_chans == 1


def test_a_dry_run_reports_on_every_tensor_and_writes_nothing(
    atto: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    command(atto, "--model", "hivit_atto", "--dry-run")
    said = capsys.readouterr().out
    assert all(f"kept     {name}\n" in said for name in state_of(atto))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_wrong_file_on_disk_fails_verification(atto: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of --verify: the file is changed between writing and checking."""
    write = converting.write_folder

    def write_and_spoil(converted, folder, force):  # type: ignore[no-untyped-def]
        write(converted, folder, force)
        state = load_file(folder / "model.safetensors")
        state["blocks.0.mlp.fc1.weight"][0, 0] += 1e-3
        save_file(state, folder / "model.safetensors")

    monkeypatch.setattr(converting, "write_folder", write_and_spoil)
    with pytest.raises(ValueError, match=r"verification failed: tensor 'blocks\.0\.mlp\.fc1\.weight'"):
        command(atto, "--model", "hivit_atto", "-o", tmp_path / "out", "--verify")


def test_force_replaces_what_was_written_there_and_nothing_else(atto: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out is not empty; use --force"):
        command(atto, "--model", "hivit_atto", "-o", out)
    assert [path.name for path in out.iterdir()] == ["precious.txt"]
    for _ in range(2):  # the second time there is a model already
        command(atto, "--model", "hivit_atto", "-o", out, "--force")
        assert sorted(path.name for path in out.iterdir()) == [
            "README.md", "config.json", "model.safetensors", "precious.txt",
        ]  # fmt: skip
    assert (out / "precious.txt").read_text() == "mine"


def test_the_source_survives_in_its_own_folder(atto: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    content = atto.read_bytes()
    (folder / "w.pth").write_bytes(content)
    monkeypatch.chdir(folder)
    command("w.pth", "--model", "hivit_atto", "-o", ".", "--force")
    assert (folder / "w.pth").read_bytes() == content
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_file_of_somebody_else_is_not_replaced(atto: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"architecture": "theirs"}')
    with pytest.raises(ValueError, match=f"out holds a {name} that this package did not write; name another folder"):
        command(atto, "--model", "hivit_atto", "-o", out, "--force")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, '{"architecture": "theirs"}')]


def test_a_folder_that_is_there_stays_the_same_folder(atto: Path, tmp_path: Path) -> None:
    """The root of a volume cannot be renamed, nor can anything be renamed to it."""
    out = tmp_path / "out"
    out.mkdir()
    inode = out.stat().st_ino
    command(atto, "--model", "hivit_atto", "-o", out)
    command(atto, "--model", "hivit_atto", "-o", out, "--force")
    assert out.stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir() if path != atto] == ["out"], "nothing is written beside it"


def test_what_a_killed_process_left_is_no_obstacle(atto: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    command(atto, "--model", "hivit_atto", "-o", out)
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == "README.md":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(folders.shutil, "rmtree", lambda *args, **kwargs: None)  # which a killed process does not call
        with pytest.raises(KeyboardInterrupt):
            command(atto, "--model", "hivit_atto", "-o", out, "--force")
    assert not (out / "config.json").exists(), "half of a model is none"
    command(atto, "--model", "hivit_atto", "-o", out, "--force")
    assert timm.create_model(f"local-dir:{out}", pretrained=True)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_arguments_of_a_stranger_make_nobody_read_other_files(atto: Path, tmp_path: Path, name: str) -> None:
    out, other = tmp_path / "out", tmp_path / "other.pth"
    command(atto, "--model", "hivit_atto", "-o", out)
    config = json.loads((out / "config.json").read_text())
    config["model_args"][name] = str(other)
    (out / "config.json").write_text(json.dumps(config))
    words = rf"config\.json: model_args has '{name}', which is no argument of a model"
    with pytest.raises(ValueError, match=words):
        create_mae("hivit_atto", checkpoint=out, decoder="fresh")
    with pytest.raises(ValueError, match=words):
        command(out, "--model", "hivit_atto", "-o", tmp_path / "again")
    for content, words in (
        ('{"model_args": 5}', r"config\.json: model_args is 5; a mapping would work"),
        ("[]", "is no configuration in timm's form"),
    ):
        (out / "config.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            create_mae("hivit_atto", checkpoint=out, decoder="fresh")


def spoil(atto: Path, change) -> Path:  # type: ignore[no-untyped-def]
    state = state_of(atto)
    change(state)
    torch.save({"model": state}, atto.with_name("spoiled.pth"))
    return atto.with_name("spoiled.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.3.mlp.fc2.bias"), r"'blocks\.3\.mlp\.fc2\.bias' \[48\] of .* is missing"),
        (
            lambda s: s.update({"blocks.3.mlp.fc2.bias": torch.ones(9)}),
            r"'blocks\.3\.mlp\.fc2\.bias' is \[9\] in the checkpoint",
        ),
        (
            lambda s: s.update({"blocks.30.norm2.bias": torch.ones(9)}),
            r"'blocks\.30\.norm2\.bias' \[9\] of the checkpoint has no place",
        ),
        (lambda s: s.update({"absolute_pos_embed": torch.ones(1, 17, 96)}), "17 rows: no square"),
        (lambda s: s.update({"absolute_pos_embed": torch.ones(1, 16, 32)}), "'absolute_pos_embed' is"),
        (lambda s: s.update({"extra": torch.ones(1)}), "'extra'"),
    ],
    ids=["missing", "shape", "unexpected", "positions", "width", "unknown"],
)
def test_the_tensor_in_the_way_is_named(atto: Path, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(spoil(atto, change), "--model", "hivit_atto", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{atto}", "-o", "{out}"], "--model ARCH is needed"),
        (["{atto}", "--model", "hivit_bace", "-o", "{out}"], "'hivit_bace' is unknown; did you mean hivit_base"),
        (["{atto}", "--model", "resnet50", "-o", "{out}"], "resnet50 is a model of timm"),
        (
            ["{atto}", "--model", "hivit_tiny", "-o", "{out}"],
            r"is \[24, 3, 4, 4\] in the checkpoint|is \[24\] in|is missing|has no place",
        ),
        (["{atto}", "--model", "hivit_atto", "-o", "{out}", "--layout", "hivit_mae"], "'fc_norm.weight'"),
        (["{atto}", "--model", "hivit_atto", "-o", "{out}", "--layout", "x"], "layout 'x' is unknown"),
        (["{atto}", "--model", "hivit_atto", "-o", "{out}", "--num-classes", "7"], "--num-classes 7: the file has 5"),
        (["{atto}", "--model", "hivit_atto", "-o", "{out}", "--img-size", "16"], "16. is too small"),
        (["{atto}", "--model", "hivit_atto", "-o", "{out}", "--img-size", "1", "2", "3"], "--img-size 1 2 3"),
        (["{atto}", "--model", "hivit_atto"], "-o DIR is needed"),
        (["{atto}", "--model", "hivit_atto", "--dry-run", "--verify"], "--verify compares"),
        (["{atto}", "--model", "hivit_atto", "-o", "{atto}"], "atto.pth is a file; name a folder"),
        (["{atto}", "--model", "hivit_atto", "-o", "/proc/nowhere/out"], "nowhere"),
        (["{atto}", "--model", "hivit_atto", "--install", "hivit_atto.nope"], "--install hivit_atto.nope: no such tag"),
        (
            ["{atto}", "--model", "hivit_atto", "--install", "hivit_base.mae_in1k"],
            "--model hivit_atto does not fit hivit_base.mae_in1k",
        ),
        (["nothing.pth", "--model", "hivit_atto", "-o", "{out}"], "nothing.pth does not exist"),
        (["hivit_base.nope", "--model", "hivit_base", "-o", "{out}"], "hivit_base.nope: no such tag"),
        (["http://127.0.0.1:9/x.pth", "--model", "hivit_base", "-o", "{out}"], "no connection"),
        (["hf-hub:not a name", "--model", "hivit_base", "-o", "{out}"], "not a name"),
    ],
    ids=lambda v: None if isinstance(v, list) else v[:30],
)
def test_bad_input_is_one_line_and_exit_code_2(
    atto: Path,
    tmp_path: Path,
    args: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.setattr("hiermim_zoo.checkpoints.download._PAUSE", 0)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command(*(arg.format(atto=atto, out=out) for arg in args)))
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert not out.exists()


@pytest.mark.parametrize("spoil_it", ["truncated", "not json", "no architecture"])
def test_a_folder_that_is_damaged_later_is_one_line_too(atto: Path, tmp_path: Path, spoil_it: str) -> None:
    out = tmp_path / "out"
    command(atto, "--model", "hivit_atto", "-o", out)
    if spoil_it == "truncated":
        (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:1000])
    else:
        (out / "config.json").write_text("{}" if spoil_it == "no architecture" else "{")
    with pytest.raises((ValueError, OSError)) as error:
        make_model(f"local-dir:{out}", pretrained=True)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_line_itself(forked: Forks, atto: Path, tmp_path: Path) -> None:
    done = forked.command("hiermim_zoo.convert", atto, "--model", "hivit_tiny", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: tensor ")
    assert "Traceback" not in done.stderr


# ---- and back


def test_only_what_a_layout_can_hold_goes_back(tmp_path: Path) -> None:
    mae = create_mae("hivit_atto", recipe={"depth": 1, "dim": 32, "heads": 2})
    folder, file = tmp_path / "encoder", str(tmp_path / "back.pth")
    make: Any = ["--model", "hivit_atto", "--to"]

    def write(encoder: Any, decoder: dict[str, Tensor]) -> None:
        encoder.pretrained_cfg = own_cfg("hivit_atto", {}, "mit", 0, (3, 64, 64))
        write_folder(
            Contents("hivit_atto", encoder, {"license": "mit"}, "Made by a test.", decoder=decoder), folder, force=True
        )

    write(mae.encoder, {})
    with pytest.raises(ValueError, match="needs a decoder"):
        convert.main([str(folder), *make, "hivit_mae", "-o", file])
    write(mae.encoder, decoder_state(mae))
    with pytest.raises(ValueError, match=r"--to hivit_timm: only hivit_supervised, .*vit_mae, .* can be written"):
        convert.main([str(folder), *make, "hivit_timm", "-o", file])
    biased = timm.create_model("hivit_atto", num_classes=0)
    with torch.no_grad():
        biased.blocks[-1].attn.relative_position_bias_table.add_(1)
    write(biased, decoder_state(mae))
    with pytest.raises(ValueError, match=r"'blocks.*bias_table' is trained, but the layout 'hivit_mae' has no place"):
        convert.main([str(folder), *make, "hivit_mae", "-o", file])
    assert not Path(file).exists()
    with pytest.raises(ValueError, match="is a folder; name a file"):
        convert.main([str(folder), *make, "hivit_mae", "-o", str(tmp_path)])
    with pytest.raises(ValueError, match="--to goes with"):
        convert.main([str(folder), *make, "hivit_mae", "-o", file, "--verify"])
