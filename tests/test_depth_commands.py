"""Images of 16 bits and of many channels, from a folder of files through every command that reads images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from hiermim_zoo import convert, evaluate, extract, pretrain, reconstruct
from hiermim_zoo.training.image_form import remembered_in

STEPS = {"steps": 2, "batch_size": 4, "workers": 0, "warmup": 0, "look_every": 1, "log_steps": 1}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 16-bit grey PNGs that use 12 bits: bright or dark, which clipping to 8 bits would make white."""
    folder, drawn = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    for split in ("train", "validation"):
        for name, level in (("bright", 3000), ("dark", 600)):
            (folder / split / name).mkdir(parents=True)
            for n in range(6):
                pixels = (level + drawn.integers(0, 500, (64, 64))).astype(np.uint16)
                Image.fromarray(pixels).save(folder / split / name / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def run(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-trained on them in grey."""
    output = tmp_path_factory.mktemp("run") / "out"
    pretrain.run(data=str(scans), model="hivit_atto", output=output, in_chans=1, scale="0,4095", **STEPS)
    return output


@pytest.mark.slow
def test_the_folder_remembers_how_images_were_read_and_commands_do_so(scans: Path, run: Path, tmp_path: Path) -> None:
    encoder = run / "encoder"
    assert json.loads((encoder / "config.json").read_text())["hiermim_zoo"]["images"] == {"scale": "0,4095"}
    assert "--scale 0,4095" in (encoder / "README.md").read_text()
    for source in (encoder, max((run / "checkpoints").glob("*.pt"))):
        convert.run(source=str(source), model="hivit_atto", output=tmp_path / "again", force=True)
        assert remembered_in(tmp_path / "again") == {"scale": "0,4095"}, "conversions do not forget it"
    assert (run / "looks").is_dir(), "grey images are looked at, too"
    model: Any = timm.create_model(f"local-dir:{encoder}", pretrained=True).eval()
    files = sorted(map(str, (scans / "validation" / "dark").iterdir()))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).astype(np.float32)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def features(high: float) -> torch.Tensor:
        """With timm alone, as the card says."""
        with torch.inference_mode():
            found: torch.Tensor = model(torch.stack([transform(x) for x in torch.from_numpy(pixels)[:, None] / high]))
        return found

    def extracted(**options: Any) -> torch.Tensor:
        out = tmp_path / "features.safetensors"
        extract.run(images=files, model=f"local-dir:{encoder}", output=out, workers=0, force=True, **options)
        with safe_open(out, "pt") as file:
            return file.get_tensor("pooled")

    assert torch.allclose(extracted(), features(4095), atol=1e-4), "as the folder says"
    assert torch.allclose(extracted(scale="dtype"), features(65535), atol=1e-4), "as the command says"
    assert not torch.allclose(features(4095), features(65535), atol=1e-2)  # negative control


@pytest.mark.slow
def test_grey_scans_are_evaluated_and_reconstructed(scans: Path, run: Path, tmp_path: Path) -> None:
    encoder = run / "encoder"
    result = evaluate.run(data=str(scans), model=f"local-dir:{encoder}", method="knn", workers=0)
    assert result["top1"] == 100
    reconstruct.run(
        images=[next((scans / "train" / "dark").iterdir())], model="hivit_atto", checkpoint=encoder,
        output=tmp_path / "out.png",
    )  # fmt: skip
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.size[0] > 224


def test_features_that_were_kept_are_those_of_the_rule(scans: Path, tmp_path: Path) -> None:
    """A cache of --method linear knows with which rule its images were read."""
    how = {"data": str(scans), "model": "hivit_atto", "method": "linear", "workers": 0, "pretrained": False}
    for rule in ("dtype", "minmax", "dtype"):
        evaluate.run(**how, cache=tmp_path, scale=rule)
    assert len(list(tmp_path.iterdir())) == 4, "training and validation images by two rules"


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 6, 13])
def test_arrays_of_many_bands_are_pre_trained_on_and_fine_tuned(channels: int, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name, level in (("field", 0.2), ("water", 0.7)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for n in range(4):
                values = level + 0.1 * drawn.random((channels, 66, 70), dtype=np.float32)
                np.save(tmp_path / "data" / split / name / f"{n}.npy", values)
    data, form = str(tmp_path / "data"), {"scale": "0,1", "bands": tuple(range(channels, 0, -1))}
    output = tmp_path / "run"
    pretrain.run(data=data, model="hivit_atto", output=output, in_chans=channels, **form, **STEPS)
    assert remembered_in(output / "encoder") == {"scale": "0,1", "bands": list(range(channels, 0, -1))}
    tuned = tmp_path / "tuned"
    evaluate.run(
        data=data, model=f"local-dir:{output / 'encoder'}", method="finetune", output=tuned, epochs=1, batch_size=4,
        workers=0, auto_augment="none", warmup=0,
    )  # fmt: skip
    assert remembered_in(tuned) == remembered_in(output / "encoder")
    assert timm.create_model(f"local-dir:{tuned}", pretrained=True).in_chans == channels


def test_a_stranger_cannot_say_what_is_no_form_of_images(tmp_path: Path) -> None:
    for images in (
        5,
        {"scale": 3},
        {"bands": [0]},
        {"bands": "1"},
        {"axes": "whc"},
        {"path": "/etc"},
        {"scale": "dtype\n# Hi"},
        {"stack": "a,[x](http://y)"},
    ):
        (tmp_path / "config.json").write_text(json.dumps({"hiermim_zoo": {"images": images}}))
        with pytest.raises(
            ValueError, match=r"config\.json: images is .*; a form of images \(scale, bands, axes, stack\) would work"
        ):
            remembered_in(tmp_path)
