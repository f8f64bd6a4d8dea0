"""Files are replaced as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiermim_zoo import features, reconstruct
from hiermim_zoo.checkpoints.atomic import replacing
from hiermim_zoo.commands.output_files import check_not_read

CAT = Path(__file__).parents[1] / "examples" / "pictures" / "cat" / "0001.jpg"


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


@pytest.mark.parametrize("named", ["{folder}/a.png", "{folder}", "{folder}/*.png"])
def test_no_drawing_replaces_what_it_is_drawn_of(named: str, tmp_path: Path) -> None:
    """Nor does one lie among images that the next call would read; what is no image may."""
    folder, file = tmp_path / "images", tmp_path / "images" / "a.png"
    folder.mkdir()
    file.write_bytes(CAT.read_bytes())
    name = named.format(folder=folder)
    for verb in (features, reconstruct):
        with pytest.raises(ValueError, match=r"a\.png is one of the files to read"):
            verb.run(images=(name,), model=["hivit_atto"] if verb is features else "hivit_atto", output=file)
    assert file.read_bytes() == CAT.read_bytes()
    check_not_read(folder / "new.png", "-o", [name])
    beside = folder / "a.json"
    beside.touch()
    check_not_read(beside, "--json", [name])
    link = tmp_path / "link.png"
    link.symlink_to(file)
    with pytest.raises(ValueError, match="one of the files"):
        check_not_read(link, "-o", [name])
