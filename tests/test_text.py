"""Numbers of things in words."""

from __future__ import annotations

import pytest

from hiermim_zoo.text import counted, plural


@pytest.mark.parametrize(
    ("things", "one"),
    [
        ("images", "image"),
        ("videos", "video"),
        ("classes", "class"),
        ("batches", "batch"),
        ("passes", "pass"),
        ("boxes", "box"),
        ("copies", "copy"),
        ("samples", "sample"),
        ("files", "file"),
        ("accumulation steps", "accumulation step"),
    ],
)
def test_one_thing_is_in_the_singular(things: str, one: str) -> None:
    assert counted(1, things) == counted(1.0, things) == f"1 {one}"
    assert [counted(number, things) for number in (0, 2, 0.5)] == [f"{n} {things}" for n in ("0", "2", "0.5")]
    assert (plural(things, 1), plural(things, 7)) == (one, things)
