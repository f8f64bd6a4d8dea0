"""Images whose bands lie in files of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from hiermim_zoo import extract, pretrain, reconstruct
from hiermim_zoo.data.decoding import Form
from hiermim_zoo.data.kinds import open_images, open_source
from hiermim_zoo.data.stacks import stacked

BANDS = ("red", "nir")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Four scenes of two bands in 16 bits, a mask beside each."""
    drawn = np.random.default_rng(0)
    for n in range(4):
        for band in ("mask", *BANDS):
            pixels = drawn.integers(0, 65536, (64, 64)).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / f"scene{n}_{band}.png")
    return tmp_path


def pixels(scenes: Path, n: int, *bands: str) -> torch.Tensor:
    found = np.stack([np.asarray(Image.open(scenes / f"scene{n}_{band}.png")) for band in bands])
    return torch.from_numpy((found / 65535).astype(np.float32))


@pytest.mark.parametrize("order", [BANDS, BANDS[::-1]])
def test_files_of_one_image_become_its_channels(scenes: Path, order: tuple[str, ...]) -> None:
    source = open_images(str(scenes), form=Form(2, stack=order))
    assert len(source) == 4
    assert source.name_of(1) == str(scenes / f"scene1_{order[0]}.png")
    for n in range(4):
        assert torch.equal(source.read(n)[0], pixels(scenes, n, *order))
    assert not torch.equal(source.read(0)[0], pixels(scenes, 0, *order[::-1]))


def test_bands_may_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    for n in range(3):
        for level, band in enumerate(BANDS):
            (tmp_path / band).mkdir(exist_ok=True)
            Image.new("L", (5, 4), 10 * n + level).save(tmp_path / band / f"{n}.png")
    source = open_images(str(tmp_path), form=Form(2, stack=BANDS))
    assert [(image[:, 0, 0] * 255).round().tolist() for image, _ in source] == [[0, 1], [10, 11], [20, 21]]


def test_tables_of_files_are_stacked_and_keep_their_labels(scenes: Path) -> None:
    rows = [f"scene{n}_{band}.png,{'ab'[n % 2]}" for n in range(4) for band in BANDS]
    (scenes / "t.csv").write_text("\n".join(["file,label", *rows]))
    source = open_images(str(scenes / "t.csv"), form=Form(2, stack=BANDS))
    assert (len(source), source.labels, source.class_names) == (4, [0, 1, 0, 1], ["a", "b"])


def test_what_is_no_stack_is_named(scenes: Path) -> None:
    with pytest.raises(ValueError, match="no name of a file has one of --stack blue,green as a word"):
        open_images(str(scenes), form=Form(2, stack=("blue", "green")))
    (scenes / "scene2_nir.png").unlink()
    with pytest.raises(ValueError, match=r"scene2_\*\.png has no nir of --stack red,nir"):
        open_images(str(scenes), form=Form(2, stack=BANDS))
    Image.new("L", (3, 3)).save(scenes / "scene2_nir.png")
    with pytest.raises(ValueError, match=r"scene2_nir\.png and .*scene2_red\.png differ in size, range or nodata"):
        open_images(str(scenes), form=Form(2, stack=BANDS)).read(2)
    Image.new("RGB", (64, 64)).save(scenes / "scene2_nir.png")
    with pytest.raises(ValueError, match=r"scene2_nir\.png has 3 bands, and each file of --stack is one"):
        open_images(str(scenes), form=Form(2, stack=BANDS)).read(2)
    with pytest.raises(ValueError, match="it has 2 bands, and the model takes 5 channels"):
        open_images(str(scenes), form=Form(5, stack=BANDS)).read(0)
    for wrong in ({"stack": ("red", "red")}, {"stack": BANDS, "bands": (1, 2)}):
        with pytest.raises(ValueError, match="different words, and no --bands beside them"):
            Form(2, **wrong)
    with pytest.raises(ValueError, match="joins files into images, and the model takes videos"):
        open_source(str(scenes), (2, 4, 16, 16), form=Form(2, stack=BANDS))


@pytest.mark.slow
def test_commands_read_stacks_and_folders_remember_them(scenes: Path, tmp_path: Path) -> None:
    run = tmp_path.with_name("run of stacks")
    pretrain.run(
        data=str(scenes), model="hivit_atto", output=run, in_chans=2, stack="red,nir", steps=1, batch_size=2, warmup=0,
        workers=0, look_every=0,
    )  # fmt: skip
    config = json.loads((run / "encoder" / "config.json").read_text())
    assert config["hiermim_zoo"]["images"] == {"stack": "red,nir"}
    model, out = f"local-dir:{run / 'encoder'}", tmp_path / "features.safetensors"
    extract.run(images=[str(scenes)], model=model, output=out, workers=0)
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["files"]) == [str(scenes / f"scene{n}_red.png") for n in range(4)]
        assert json.loads(file.metadata()["images"]) == {"stack": "red,nir"}  # remembered, not said
        assert file.get_tensor("pooled").shape == (4, 96)
    images = [scenes / f"scene0_{band}.png" for band in BANDS]
    reconstruct.run(images=images, model="hivit_atto", checkpoint=run / "encoder", output=tmp_path / "out.png")
    assert (tmp_path / "out.png").is_file()


@pytest.mark.parametrize("root", ["/data/red", "red", "/red nir", "/a/nir/red", "../red"])
def test_folders_around_the_files_may_be_called_like_a_band(root: str) -> None:
    own = [f"{root}/s1_nir.tif", f"{root}/s1_red.tif", f"{root}/mask.tif"]
    assert stacked(own, ("red", "nir")) == [[own[1], own[0]]]
    folders = [f"{root}/red/s1.tif", f"{root}/nir/s1.tif"]
    assert stacked(folders, ("red", "nir")) == [folders]
    below = [f"{root}/{folder}/s1_{band}.tif" for folder in ("red", "train") for band in ("red", "nir")]
    assert stacked(below, ("red", "nir")) == [below[:2], below[2:]]
    both = [f"{root}/red/s1_red.tif", f"{root}/nir/s1_nir.tif"]
    assert stacked(both, ("red", "nir")) == [both]


def test_a_file_that_names_two_bands_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"a_red_nir\.tif names several of --stack red,nir; leave one of them in its"):
        stacked(["x/a_red_nir.tif", "x/b_red.tif"], ("red", "nir"))
    assert stacked(["red/a.tif", "red/b.tif"], ("red",)) == [["red/a.tif"], ["red/b.tif"]]
