"""Files that people really have: every command names the bad one in one line, and writes nothing by halves."""

from __future__ import annotations

import builtins
import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image

from hiermim_zoo import evaluate, extract, pretrain, reconstruct, stats
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.data.kinds import open_images

NOISE = np.random.default_rng(0).integers(0, 256, (3, 70, 80), dtype=np.uint8)
DEEP = NOISE.astype(np.uint16) * 200


class Fault(NamedTuple):
    """A file with something wrong."""

    suffix: str
    write: Callable[[Path], Any]
    why: str  # the reason that is given, a pattern
    options: dict[str, Any] = {}  # noqa: RUF012
    scaled: bool = False  # it can be read, but not in the form that is asked for


def cut(content: bytes, at: float) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content[: int(len(content) * at)])


def tiff(values: np.ndarray[Any, Any], **how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **{"photometric": "minisblack", **how})
    return file.getvalue()


def header(*shape: int) -> bytes:
    """Of an .npy of bytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def bomb(path: Path) -> None:
    """A few kilobytes that say that they hold ten gigabytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w") as file:
        file.write(header(100000, 100000))
        for _ in range(16):
            file.write(bytes(2**20))


def tagged(path: Path, tags: dict[str, int]) -> None:
    """A TIFF whose tags do not say what it holds."""
    path.write_bytes(tiff(NOISE if "ImageWidth" in tags else DEEP))
    with tifffile.TiffFile(path, mode="r+") as file:
        for name, value in tags.items():
            file.pages.first.tags[name].overwrite(value)


def wide(path: Path) -> None:
    tagged(path, {"ImageWidth": 60000, "ImageLength": 50000})


def lying(path: Path) -> None:
    tagged(path, {"StripByteCounts": 2**31 - 1})


FAULTS = {
    "other channels": Fault(".npy", lambda p: np.save(p, np.zeros((5, 70, 80), np.uint8)), "it has 5 bands", {}, True),
    "no such band": Fault(".tif", lambda p: p.write_bytes(tiff(NOISE[:2])), "asks for number 3", {"bands": (3, 2, 1)},
                          True),
    "no data": Fault(".tif", cut(tiff(np.full_like(DEEP, 7), extratags=[(42113, "s", 0, "7", False)]), 1),
                     "none of its pixels has a value", {}, True),
    "one value": Fault(".png", lambda p: Image.new("RGB", (70, 80), (9, 9, 9)).save(p), "all of its values are 9",
                       {"scale": "minmax"}, True),
    "NaN": Fault(".npy", lambda p: np.save(p, np.full((3, 70, 80), np.nan, np.float32)), "NaN or infinity",
                 {"scale": "0,1"}, True),
    "no known range": Fault(".npy", lambda p: np.save(p, DEEP.astype(np.float32)), "say --scale LOW,HIGH", {}, True),
    "cut TIFF": Fault(".tif", cut(tiff(DEEP), 0.6), "cut off"),
    "cut TIFF of pages": Fault(".tif", cut(tiff(DEEP, compression="zlib", metadata=None), 0.6), "cut off"),
    "cut PNG": Fault(".png", cut(b"\x89PNG\r\n\x1a\n" + bytes(40), 1), "no image, or damaged"),
    "3 GB in a header": Fault(".npy", lambda p: p.write_bytes(header(60000, 50000)), "are more than"),
    "3 GB in a TIFF": Fault(".tif", wide, "take all memory|shorter than its tags"),
    "bomb": Fault(".npz", bomb, "are more than"),
    "lies": Fault(".tif", lying, "behind the end of the file"),
    "a link to itself": Fault(".png", lambda p: p.symlink_to(p.name), "symbolic links"),
    "no rights": Fault(".png", lambda p: Image.fromarray(NOISE[0]).save(p), "Permission denied"),
    "no bytes": Fault(".jpg", lambda p: p.touch(), "0 bytes"),
    "text": Fault(".png", lambda p: p.write_text("<html>404</html>"), "no image, or damaged"),
}  # fmt: skip


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Fault, Path]:
    """A folder of good images with a bad one among them, whose name is no UTF-8."""
    fault = FAULTS[request.param]
    for name in ("data/a/1.png", "data/b/2.png", "data/b/3.png", "train/a/1.png", "train/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(NOISE, 0, -1)).save(tmp_path / name)
    bad = tmp_path / "data" / "a" / os.fsdecode(b"bad\xff" + fault.suffix.encode())
    fault.write(bad)
    if request.param == "no rights":  # which root has anyway

        def opened(path: Any, *how: Any, **more: Any) -> Any:
            if path in (str(bad), bad):
                raise PermissionError(13, "Permission denied", str(bad))
            return true_open(path, *how, **more)

        true_open = builtins.open
        monkeypatch.setattr(builtins, "open", opened)
    return fault, bad


def command(verb: str, data: str, bad: str, out: Path, options: dict[str, Any]) -> Callable[[], Any]:
    model: dict[str, Any] = {"model": "hivit_atto", **options}
    return {
        "pretrain": lambda: pretrain.run(
            data=data, output=out, steps=1, batch_size=4, workers=0, warmup=0, max_bad=0, **model
        ),
        "evaluate": lambda: evaluate.run(
            data=data,
            train=f"{data}/../train",
            method="knn",
            pretrained=False,
            workers=0,
            img_size=32,
            k=1,
            json=out,
            **model,
        ),
        "extract": lambda: extract.run(
            images=[data], output=out, pretrained=False, workers=0, batch_size=1, img_size=32, **model
        ),
        "tiles": lambda: extract.run(
            images=[bad], output=out, pretrained=False, workers=0, tile=32, overlap=0, **model
        ),
        "reconstruct": lambda: reconstruct.run(images=[bad], output=out.with_suffix(".png"), **model),
    }[verb]


@pytest.mark.parametrize("verb", ["pretrain", "evaluate", "extract", "tiles", "reconstruct"])
def test_a_bad_file_is_named_in_one_line(
    verb: str, fault: tuple[Fault, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, bad = fault
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        run_command(command(verb, str(tmp_path / "data"), str(bad), out, kind.options))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in error
    wrong_everywhere = kind.options.get("bands")  # then any file may be named
    assert wrong_everywhere or f"{bad.parent}/bad\\udcff{kind.suffix}" in last, error
    assert re.search(kind.why, last) or wrong_everywhere, error
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    left = [path for path in left if path.relative_to(tmp_path).parts[0] not in ("data", "train")]
    assert all(path.suffix in (".jsonl", ".json", ".txt", ".lock") for path in left), left
    assert not out.is_file()


def test_stats_names_it_and_goes_on(
    fault: tuple[Fault, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, bad = fault
    form = {**kind.options, "scale": kind.options.get("scale")}
    found = stats.run(data=str(tmp_path / "data"), workers=0, json=tmp_path / "out.json", **form)
    told = found["not scaled" if kind.scaled else "unreadable"]
    if kind.why == "it has 5 bands":
        assert (found["channels"], told) == ({"3": 3, "5": 1}, {})
        return
    assert re.search(kind.why, told[str(bad)])
    words = [str(tmp_path / "data"), "--workers", "0"]
    words += ["--scale", form["scale"]] if form["scale"] else []
    stats.main(words + (["--bands", *map(str, form["bands"])] if form.get("bands") else []))
    lines = [line for line in capsys.readouterr().out.splitlines() if "bad\\udcff" in line]
    assert len(lines) >= 1


def test_folders_that_go_round_in_circles_are_named(tmp_path: Path) -> None:
    Image.fromarray(NOISE[0]).save(tmp_path / "a.png")
    (tmp_path / "deep").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "deep")
    assert len(open_images(str(tmp_path))) == 1, "links to other folders are followed"
    (tmp_path / "deep" / "loop").symlink_to("..")
    with pytest.raises(ValueError, match="loop is a link back to a folder around it"):
        open_images(str(tmp_path))
