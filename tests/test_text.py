"""Numbers of things in words."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

import hiermim_zoo
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


NOUNS = set(
    """
    bands channels checkpoints classes clips columns comparisons epochs files frames groups images levels maps
    minutes numbers parameters parts passes processes rows samples steps tags tensors tokens units values videos
    """.split()  # noqa: SIM905
)
NEVER_ONE = {  # value and noun -> why there is never one
    ("repeat", "clips"): "said where it is more than one",
    ("self.repeat", "clips"): "said where it is more than one",
    ("passes", "passes"): "said where it is more than one",
    ("size.world", "processes"): "said where it is more than one",
    ("source.repeat", "epochs"): "said where it is more than one",
    ("most", "clips"): "256",
    ("most", "samples"): "256",
    ("rule.steps", "steps"): "500",
    ("steps", "steps"): "200",
    ("rows", "rows"): "a row of the class token is beside them",
    ("rows // grid", "frames"): "said where there are several",
    ("count + prefix", "rows"): "a row of the class token is beside them",
    ("planned", "tokens"): "windows have several",
    ("size", "processes"): "one has nobody to wait for",
    ("warmup", "epochs"): "an option as it was given",
    ("number", "parameters"): "a model has millions",
    ("numbers", "numbers"): "more than a bound",
    ("count", "images"): "more than a bound",
    ("fastest", "images"): "images/s",
    ("batching.batch // batching.micro", "parts"): "said where they are more than one",
    ("len(images)", "images"): "photographs of the package",
}


def uncounted(code: str) -> list[tuple[str, str]]:
    """Numbers in f-strings that stand before a noun in the plural, whatever they are: value and noun."""
    found = []
    for node in ast.walk(ast.parse(code)):
        values = node.values if isinstance(node, ast.JoinedStr) else []
        before = ""
        for part, after in itertools.pairwise(values):
            text = after.value if isinstance(after, ast.Constant) else ""
            noun = re.match(r" (\w+)", str(text))
            if isinstance(part, ast.FormattedValue) and noun and noun[1] in NOUNS:
                value = ast.unparse(part.value)
                # 2 x 1 pixels, 1 of 1 units, constants, and texts that are no numbers
                if not before.endswith((" x ", "of ")) and not value.isupper() and not value.endswith("name"):
                    found.append((value, noun[1]))
            before = str(part.value) if isinstance(part, ast.Constant) else ""
    return found


def test_no_message_says_1_bands() -> None:
    assert uncounted('f"it has {count} bands"') == [("count", "bands")]
    assert uncounted("f\"it has {counted(count, 'bands')}, {a} x {b} units, {MOST} steps\"") == []
    files = sorted(Path(hiermim_zoo.__file__).parent.rglob("*.py"))
    found = {(file.name, *one) for file in files for one in uncounted(file.read_text(encoding="utf-8"))}
    assert {one for one in found if one[1:] not in NEVER_ONE} == set()
