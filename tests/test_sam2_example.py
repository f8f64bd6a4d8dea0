"""transformers' SAM 2 with an encoder of this package; the only file of tests that imports transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from .test_examples import load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize(("steps", "words"), [(0, "the same to the last bit"), (1, "others")])
def test_masks_of_sam2_with_its_encoder_exchanged(
    steps: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a trunk that was trained gives other masks; what is beside the trunk is never touched."""
    pytest.importorskip("transformers")
    example = load("sam2_masks")
    make = example.small_sam
    monkeypatch.setattr(example, "small_sam", lambda folder: make(tmp_path / "sam"))
    example.main(["--steps", str(steps), "-o", str(tmp_path / "out")])
    shape = "[1, 2, 3, 32, 32]"
    assert capsys.readouterr().out.splitlines()[-1] == f"masks before {shape}, after {shape}: {words}"
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("sam", "out"))
    assert {name: tensor.shape for name, tensor in old.items()} == {name: tensor.shape for name, tensor in new.items()}
    changed = {name for name in old if not old[name].equal(new[name])}
    trunk = {name for name in old if name.startswith("vision_encoder.backbone.")}
    assert changed == (trunk if steps else set())
    assert len(old) > len(trunk)
