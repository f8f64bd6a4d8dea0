"""Publishing: whatever a Hub answers, there is a whole commit or none, and one line says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from hiermim_zoo import publish
from hiermim_zoo.checkpoints import upload

from .hub import Answer, Hub, Repo, digest, refuse, say
from .publishing import FILE, NAME, ROOT, TAG, failed, user_of_a_hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>'")  # the Hub's client warns of itself


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with user_of_a_hub(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    found: list[float] = []
    monkeypatch.setattr(upload.time, "sleep", found.append)
    return found


def on(request: str, *answers: Answer) -> Callable[[str, int], Answer | None]:
    """The first answers to a request."""
    return lambda asked, number: answers[number - 1] if asked == request and number <= len(answers) else None


CREATE, COMMIT = "POST /api/repos/create", f"POST /api/models/{NAME}/commit/main"


@pytest.mark.parametrize(
    ("request_", "answer", "said"),
    [
        ("GET /api/whoami-v2", refuse(401), "the Hub answered 401: the token is not accepted"),
        (f"GET /api/models/{NAME}", refuse(403), "the Hub answered 403: the token does not allow this"),
        (f"GET /api/models/{NAME}", say([]), "what the Hub answers is not understood"),
        (CREATE, refuse(403), "the Hub answered 403: the token does not allow this"),
        (CREATE, refuse(404), "the Hub answered 404: there is nothing of this name"),
        (CREATE, refuse(409), "the Hub answered 409: there is something of this name already"),
        (CREATE, refuse(429, {"Retry-After": "1000"}), "answered 429: it asks for 1000 s of patience: run the same"),
        (COMMIT, refuse(403), "the Hub answered 403"),
        (COMMIT, refuse(412), "the Hub answered 412: the repository has changed meanwhile"),
        (COMMIT, refuse(500), "the Hub answered 500: run the same again later"),
        (COMMIT, say({"commitOid": "x"}), "what the Hub answers is not understood (KeyError: 'commitUrl')"),
        (
            COMMIT,
            say({"commitUrl": f"https://huggingface.co/{NAME}/commit/x", "commitOid": "x"}),
            "calls the commit x, which is no commit",
        ),
        (f"PUT /lfs/{digest(FILE.read_bytes())}/2", refuse(403), "the Hub answered 403"),
        (f"POST /{NAME}.git/info/lfs/objects/batch", refuse(401), "the Hub answered 401"),
    ],
)
def test_what_a_hub_refuses_is_one_line_and_nothing_is_published(
    request_: str,
    answer: Answer,
    said: str,
    here: Hub,
    waits: list[float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here.instead = on(request_, *[answer] * 9)
    rows = (ROOT / "weights" / "manifest.toml").read_text(encoding="utf-8")
    (tmp_path / "m.toml").write_text(rows, encoding="utf-8")
    line = failed(capsys, TAG, "--to", NAME, "--manifest", str(tmp_path / "m.toml"))
    assert line.startswith(f"{NAME}: ")
    assert said in line
    assert here.repos.get(NAME, Repo()).commits == []
    made = f"; the repository was made and may be empty: run the same again, or delete it at {here.url}/{NAME}/settings"
    assert line.endswith(made) == (NAME in here.repos)
    assert waits == []
    assert (tmp_path / "m.toml").read_text(encoding="utf-8") == rows


@pytest.mark.parametrize("request_", [CREATE, COMMIT])
def test_a_hub_that_asks_for_patience_gets_some(request_: str, here: Hub, waits: list[float]) -> None:
    here.instead = on(request_, refuse(429, {"Retry-After": "7"}), refuse(503, {"Retry-After": "5"}))
    publish.run(source=TAG, to=NAME)
    assert waits == [7, 5]
    assert len(here.repos[NAME].commits) == 1


def test_patience_ends(here: Hub, waits: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    here.instead = on(COMMIT, *[refuse(429, {"Retry-After": "50"})] * 99)
    assert "answered 429: it asks for 50 s of patience" in failed(capsys, TAG, "--to", NAME)
    assert waits == [50, 50], "two minutes in all"
    here.instead = on(COMMIT, *[refuse(429, {"Retry-After": "0"})] * 99)
    here.asked.clear()
    failed(capsys, TAG, "--to", NAME)
    assert here.asked[COMMIT] == 5
    assert here.repos[NAME].commits == []


def test_a_commit_that_is_cut_off_is_not_there(here: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    def cut(request: str, number: int) -> None:
        if request == COMMIT:
            raise ConnectionError

    here.instead = cut
    line = failed(capsys, TAG, "--to", NAME)
    assert line.startswith(f"{NAME}: the connection was cut off (")
    assert "; nothing was published: run the same again; the repository was made and may be empty: " in line
    assert here.repos[NAME].commits == []
    here.instead = lambda request, number: None
    assert publish.run(source=TAG, to=NAME)["commit"] == here.repos[NAME].head


def test_a_commit_whose_answer_is_cut_off_is_found_again(here: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    own = here.RequestHandlerClass.commit

    def lost(self: Any, *args: Any) -> Answer:
        own(self, *args)
        raise ConnectionError

    monkeypatch.setattr(here.RequestHandlerClass, "commit", lost)
    found = publish.run(source=TAG, to=NAME)
    assert [commit for commit, _ in here.repos[NAME].commits] == [found["commit"]]


def test_a_commit_whose_answer_is_not_understood_is_found_again(here: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes no address of a commit at another host than the one it asks."""
    own = here.RequestHandlerClass.commit

    def elsewhere(self: Any, *args: Any) -> Answer:
        made = json.loads(own(self, *args)[1])
        return say({**made, "commitUrl": f"https://elsewhere.invalid/{NAME}"})

    monkeypatch.setattr(here.RequestHandlerClass, "commit", elsewhere)
    found = publish.run(source=TAG, to=NAME)
    assert [commit for commit, _ in here.repos[NAME].commits] == [found["commit"]]


@pytest.mark.parametrize(
    ("error", "xet", "said"),
    [
        (ConnectionError("Network error: no-url"), True, "if it has no Xet storage"),
        (ConnectionError("Network error: no-url"), False, "(ConnectionError: Network error: no-url); nothing was"),
        (OSError(28, "No space left on device"), True, f"{NAME}: [Errno 28] No space left on device"),
    ],
)
def test_errors_of_this_machine_are_told_from_those_of_a_storage(
    error: OSError,
    xet: bool,
    said: str,
    here: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    monkeypatch.setattr(HfApi, "create_commit", broken)
    assert said in failed(capsys, TAG, "--to", NAME)


def test_a_commit_of_somebody_else_meanwhile_is_not_ours(here: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """What the new head has is compared with what was sent."""

    def other(request: str, number: int) -> None:
        if request == COMMIT:
            here.repos[NAME].add({"theirs.txt": b"1"})
            raise ConnectionError

    here.instead = other
    assert "the Hub answered 404" in failed(capsys, TAG, "--to", NAME)
