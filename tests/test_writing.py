"""Files are replaced as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiermim_zoo.checkpoints.atomic import replacing


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with replacing(file) as part:
        part.write_text("new")
        assert (part.parent, file.read_text()) == (tmp_path, "old")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_block_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("ne")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), replacing(file) as part:
        fail(part)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
