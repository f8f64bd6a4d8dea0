"""Clips through the whole path: pre-training by masking, an encoder that timm loads, fine-tuning, measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from hiermim_zoo import evaluate, pretrain
from hiermim_zoo.mae import create_mae

TINY = ("--model-kwargs", "num_frames=4", "embed_dim=8", "depths=(1,1,1,1)")
CLIPS = ("--mask-ratio", "0.5", "--repeat", "2")
ONE = ("--batch-size", "8", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps on moving digits, two clips of each reading."""
    out = tmp_path_factory.mktemp("video") / "run"
    short = ("--steps", "6", "--epochs", "1", "--warmup", "0", "--lr", "2e-3", "--look-every", "0", "--log-steps", "3")
    small = ("--decoder-depth", "1", "--decoder-dim", "32", "--decoder-heads", "2")
    threads = torch.get_num_threads()
    pretrain.main(["moving:digits", "--model", "hiera_atto_video", *TINY, *small, *short, *ONE, *CLIPS, "-o", str(out)])
    torch.set_num_threads(threads)
    return out / "encoder"


def test_the_loss_of_clips_falls(encoder: Path) -> None:
    losses = [
        json.loads(line)["loss"] for line in (encoder.parent / "log.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert losses[-1] < losses[0]


@torch.inference_mode()
def test_the_encoder_of_clips_loads_in_timm_and_with_its_decoder(encoder: Path) -> None:
    model: Any = timm.create_model(f"local-dir:{encoder}", pretrained=True)
    assert (model.num_frames, model.widths, model.pretrained_cfg["input_size"]) == (4, [8, 16, 32, 64], [3, 64, 64])
    mae = create_mae("hiera_atto_video", checkpoint=encoder, mask_ratio=0.5)
    written = load_file(encoder / "model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in mae.encoder.state_dict().items())
    assert mae.input_size == (4, 64, 64)
    assert mae(torch.randn(1, 3, 4, 64, 64)).pred.shape == (1, 2 * 4 * 4, 16 * 16 * 3)  # the first of two frames


def test_it_is_fine_tuned_and_measured(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = ("--method", "finetune", "--epochs", "1", "--warmup", "0", "--hflip", "0", "--lr", "1e-3")
    folder, out = clips(tmp_path / "clips"), tmp_path / "tuned"
    plain = ("--mix-prob", "0", "--auto-augment", "none", "-o", str(out))
    evaluate.main([str(folder), "--model", f"local-dir:{encoder}", *tune, *ONE, *plain])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    model: Any = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert (model.num_frames, model.num_classes) == (4, 2)
    assert found["settings"]["dropout"] == 0.3, "in training alone:"
    assert model.head_drop.p == 0
    assert "drop" not in (out / "config.json").read_text()
    settings = found["settings"]
    assert (settings["epochs"], settings["repeat"], settings["clip"]) == (1, 2, 5.0)
    assert (settings["steps"], settings["samples"]) == (2, 16), "an epoch of 16 videos: 16 clips, whatever --repeat"
    again = [str(folder), "--model", f"local-dir:{out}", "--method", "classify", "--workers", "0"]
    evaluate.main(again)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["top1"] == found["top1"]


def clips(root: Path) -> Path:
    """Folders of frames of two classes: dark ones and bright ones."""
    for split in ("train", "validation"):
        for value, name in ((40, "dark"), (200, "bright")):
            for i in range(8):
                folder = root / split / name / f"{i}"
                folder.mkdir(parents=True)
                for frame in range(3):
                    Image.new("RGB", (64, 64), (value, value, 10 * i)).save(folder / f"{frame}.png")
    return root
