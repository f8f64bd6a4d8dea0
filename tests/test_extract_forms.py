"""The forms that hiermim_zoo.extract writes hold the same numbers, names and facts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from safetensors import safe_open

from hiermim_zoo import extract
from hiermim_zoo.commands import extracting_forms
from hiermim_zoo.commands.extracting_forms import Piece, blocks

IMAGES = [str(path) for path in sorted((Path(__file__).parents[1] / "examples" / "pictures" / "cat").iterdir())[:5]]
COMMON: dict[str, Any] = {"model": "hivit_atto", "workers": 0, "pretrained": False, "batch_size": 2}


def written(output: Path, **options: Any) -> Path:
    return extract.run(**{"images": IMAGES, **COMMON, "output": output, **options})


def reference(output: Path, **options: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata of the file of safetensors."""
    with safe_open(written(output, **options), "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_all_forms_hold_the_same(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extracting_forms, "BLOCK", 2048 * np.dtype(dtype).itemsize)  # several groups of rows
    what = {"what": ["pooled", "tokens", "maps"], "levels": [3], "dtype": dtype}
    tensors, about = reference(tmp_path / "a.safetensors", **what)
    files = json.loads(about.pop("files"))
    assert files == IMAGES

    with np.load(written(tmp_path / "a.npz", **what)) as archive:
        assert set(archive.files) == {*tensors, "files", "about"}
        for name, expected in tensors.items():
            assert archive[name].dtype == dtype
            assert np.array_equal(archive[name], expected)
        assert archive["files"].tolist() == files
        assert json.loads(str(archive["about"])) == about

    table = parquet.ParquetFile(written(tmp_path / "a.parquet", **what))
    assert table.num_row_groups > 1
    rows = table.read()
    assert rows["file"].to_pylist() == files
    for name, expected in tensors.items():
        shape = json.loads(rows.schema.field(name).metadata[b"shape"])
        assert np.array_equal(np.array(rows[name].to_pylist(), dtype).reshape(-1, *shape), expected)
    assert {key.decode(): text.decode() for key, text in rows.schema.metadata.items()} == about


def test_an_array_has_its_names_beside(tmp_path: Path) -> None:
    tensors, about = reference(tmp_path / "a.safetensors")
    array = np.load(written(tmp_path / "a.npy"))
    assert np.array_equal(array, tensors["pooled"])
    beside = json.loads((tmp_path / "a.npy.json").read_text())
    assert beside == {"files": IMAGES, **{key: text for key, text in about.items() if key != "files"}}
    (tmp_path / "a.npy").unlink()
    with pytest.raises(ValueError, match=r"a\.npy\.json exists; --force replaces it"):
        written(tmp_path / "a.npy")
    written(tmp_path / "a.npy", force=True)


def test_maps_of_tiles_are_written_with_their_sizes(tmp_path: Path) -> None:
    options = {"images": IMAGES[:2], "what": ["pooled", "maps"], "levels": [1], "tile": 32, "overlap": 0}
    tensors, _ = reference(tmp_path / "a.safetensors", **options)
    rows = parquet.read_table(written(tmp_path / "a.parquet", **options))
    assert rows.column_names == ["file", "pooled", "map1", "map1_shape"]
    with np.load(written(tmp_path / "a.npz", **options)) as archive:
        for i in range(2):
            assert np.array_equal(archive[f"map1.{i}"], tensors[f"map1.{i}"])
            found = np.array(rows["map1"][i].as_py(), "float32").reshape(rows["map1_shape"][i].as_py())
            assert np.array_equal(found, tensors[f"map1.{i}"])
    assert np.array_equal(np.array(rows["pooled"].to_pylist(), "float32"), tensors["pooled"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"what": ["pooled", "tokens"]}, "one array: ask for one kind of features"),
        ({"what": ["maps"]}, "one array: ask for one kind of features, of maps for one of --levels"),
        ({"what": ["maps"], "levels": [0, 1]}, "of maps for one of --levels"),
        ({"what": ["maps"], "levels": [0], "tile": 64}, "one array, but tiles make one of each image"),
        ({"dtype": "bfloat16"}, r"--dtype bfloat16: \.npy has no such numbers"),
    ],
)
def test_what_a_form_cannot_hold_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        written(tmp_path / "a.npy", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_form_that_needs_what_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pyarrow" else found(name, *a))
    with pytest.raises(ValueError, match=r'written by pyarrow: pip install "hiermim-zoo\[parquet\]"'):
        written(tmp_path / "a.parquet")


def test_blocks_are_of_one_size_whatever_the_pieces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    pieces = [Piece(tmp_path / "a", 3, 7), Piece(tmp_path / "a", 50, 1), Piece(tmp_path / "a", 20, 30)]
    expected = bytes([*range(3, 10), 50, *range(20, 50)])
    for size in (1, 4, 7, 38, 100):
        found = list(blocks(pieces, size))
        assert b"".join(found) == expected
        assert {len(block) for block in found[:-1]} <= {size}
