"""What is published in tests, and the Hub that gets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from hiermim_zoo import publish
from hiermim_zoo.checkpoints import manifest
from hiermim_zoo.commands.options import run_command

from .hub import TOKEN, Hub, hub

ROOT = Path(__file__).parents[1]
TAG = "hivit_atto.mae_cifar10_ft_cifar10"
FILE = ROOT / "weights" / f"{TAG}.safetensors"
BYTES, TOP1 = FILE.stat().st_size, manifest.records()[TAG].top1
NAME = "ORG/it"


@contextmanager
def user_of_a_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """A Hub, and a user who may write there."""
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the small Hub has none
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-login"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command ends; the token is nowhere."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: publish.main(words))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert TOKEN not in out + err
    [line] = err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
