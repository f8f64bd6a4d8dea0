"""The benchmark command reports what it ran; how long that took is nobody's business here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hiermim_zoo import benchmark
from hiermim_zoo.commands.baselines import make_peer, through_twins
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.models.measure import measure


def test_models_and_modes_are_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["hivit_atto", "hivit_atto:train", "hivit_atto:pretrain"]
    options = ["--versus", "hivit_atto:dense", "--batch-size", "2", "--rounds", "3", "--warmup", "1", "--device", "cpu"]
    benchmark.main([*names, *options, "-o", str(tmp_path / "out.json")])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| `hivit_atto` |")]) == 4
    assert "3 rounds" in lines[-1]
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == ["inference", "train", "pretrain", "dense"]
    assert all(len(row["seconds"]) == 3 and min(row["seconds"]) > 0 for row in rows)
    assert [row["parameters"] for row in rows[:2]] == [510_910, 510_910]
    assert rows[2]["parameters"] == rows[3]["parameters"] > 19e6, "a decoder of six wide blocks"
    assert all(row["gmacs"] == pytest.approx(0.0117, rel=0.01) for row in rows)


def test_arguments_and_sizes_are_those_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attention over more tokens has more multiply-adds, and so have more pixels."""
    names = ["hpvit_atto,window_size=0", "hpvit_atto,depths=(1,1,3,1),window_size=4,pool='conv'"]
    options = ["--img-size", "64", "128", "--batch-size", "1", "--rounds", "1", "--warmup", "0", "--device", "cpu"]
    benchmark.main([*names, "--versus", "hpvit_atto", *options, "-o", str(tmp_path / "out.json")])
    rows = {row["model"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == [*names, "hpvit_atto"]
    assert rows[names[0]]["gmacs"] > rows["hpvit_atto"]["gmacs"] > 2 * measure("hpvit_atto").macs / 1e9 * 0.99
    assert rows[names[1]]["parameters"] == rows["hpvit_atto"]["parameters"] + 3 * 5 * 96


def test_other_packages_run_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--batch-size",
        "1",
        "--rounds",
        "1",
        "--warmup",
        "0",
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "out.json"),
    ]
    peer = "hiera-transformer/mae_hiera_tiny_224:pretrain"
    benchmark.main(["hiera_tiny:pretrain", "hiera-transformer/hiera_tiny_224", "--versus", peer, *options])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == ["pretrain", "inference", "pretrain"]
    assert rows[0]["parameters"] == rows[2]["parameters"] + 2 * 768, "ours keeps the norm that fine-tuning needs"
    assert rows[2]["parameters"] == 55_020_896
    assert rows[1]["parameters"] == 27_910_216


def test_simmim_hides_three_quarters_and_learns_from_these() -> None:
    model = make_peer("simmim/swin_tiny_patch4_window7_224")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    loss = model(images).loss
    assert loss.item() == pytest.approx(images.abs().mean().item(), rel=0.01)  # of hidden pixels: like all of them
    loss.backward()
    assert model.head.weight.grad.abs().sum() > 0


def test_simmim_runs_through_twins_as_timm_does() -> None:
    """All of it: only what is done to the embedded patches differs."""
    encoder = make_peer("simmim/twins_svt_small", depths=(1, 2, 1, 1)).encoder.eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = encoder.forward_features(images)
        torch.testing.assert_close(
            through_twins(encoder, images, lambda x: x).flatten(1, 2), expected, rtol=1e-4, atol=1e-4
        )
        assert not torch.allclose(through_twins(encoder, images, torch.zeros_like).flatten(1, 2), expected, atol=1e-2)
    loss = make_peer("simmim/twins_svt_small")(images).loss
    assert loss.isfinite()


def test_hiera_optim_computes_what_it_optimises() -> None:
    """The same weights and masks, the same loss."""
    pytest.importorskip("hiera_optim")
    ours, theirs = (make_peer(f"{package}/mae_hiera_tiny_224") for package in ("hiera-optim", "hiera-transformer"))
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 224, 224)
    mask, kept = ours.draw(2, 0.6, images.device)
    assert mask.sum(1).tolist() == [19, 19] == [kept.shape[1]] * 2
    with torch.no_grad():
        loss = ours.encoder(images, mask_ratio=0.6, mask=mask, keep_idx=kept)[0]
        assert loss.item() == pytest.approx(theirs.encoder(images, mask_ratio=0.6, mask=mask)[0].item(), rel=1e-5)
        other = theirs.encoder(images, mask_ratio=0.6, mask=mask.roll(1, 1))[0].item()
    assert loss.item() != pytest.approx(other, rel=1e-5)
    assert ours(images).loss.isfinite()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["hivit_atto:dream"], "mode 'dream'"),
        (["hpvit_atto,window"], "'hpvit_atto,window': window is not of the form NAME=VALUE"),
        (["hpvit_atto,colour=1"], "unexpected keyword argument 'colour'"),
        (["hpvit_atto", "--img-size", "64", "64", "64"], "--img-size 64 64 64: one number, or height and width"),
        (["simmim/resnet18:pretrain"], "only Swins and Twins of timm are masked this way"),
        (["hiera-transformer/hiera_nano"], "hiera-transformer has no 'hiera_nano', it has"),
        (["hiera-transformer/hiera_tiny_224:pretrain"], "its mode is inference or train"),
        (["hiera-transformer/hiera_tiny_224,depth=3"], "unexpected keyword argument 'depth'"),
        (
            ["green_swin_atto,plan_method='pack':pretrain", "--compile"],
            "plan_method='pack' looks at the mask",
        ),
        (["green_swin_atto,plan_method=heap:pretrain"], "plan_method='heap' is unknown, use 'pack', 'sort'"),
        (["hivit_nano"], "'hivit_nano' is unknown"),
        (["hivit_atto", "--device", "abacus"], "device 'abacus'"),
        (["hivit_atto", "--rounds", "0"], "0 is not a whole number from 1 on"),
        (["resnet10t:pretrain"], "resnet10t is a model of timm.models.resnet, not of this package"),
        (["hivit_atto", "-o", "/nowhere/x.json"], "no such folder"),
    ],
)
def test_bad_input_is_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: benchmark.main(args))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("size", ["64", "(64,96)"])
def test_a_size_can_be_an_argument_of_the_model(size: str) -> None:
    alone, common = (
        benchmark.run(models=[name], img_size=both, rounds=1, warmup=0, batch_size=1, device="cpu")
        for name, both in ((f"hivit_atto,img_size={size}", None), ("hivit_atto", (64, 96) if "," in size else (64, 64)))
    )
    assert alone[0]["gmacs"] == common[0]["gmacs"] != 0
