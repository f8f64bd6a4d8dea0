"""Files into a repository of the Hugging Face Hub, by its own client: one commit, then compared with what the Hub has.

What goes wrong is one line, and nothing is published by halves: a commit is there as a whole, or not at all.
"""

from __future__ import annotations

import copy
import hashlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..text import printable
from . import hub
from .download import DownloadError
from .files import sha256_of
from .network import unreachable

T = TypeVar("T")

_TRIES = 5  # of a request that is told to wait
_PATIENCE = 120.0  # seconds that a Hub may make us wait in all
_BUSY = (429, 503)
# What to do about an answer.
_HELP = {
    401: "the token is not accepted: HF_TOKEN or --token must be one of somebody who may write there",
    403: "the token does not allow this: it needs the right to write to this user or organisation",
    404: "there is nothing of this name, or the token does not show it",
    409: "there is something of this name already: run the same again",
    412: "the repository has changed meanwhile: run the same again",
    413: "this is more than the server takes",
}
# What a client may raise of an answer that no Hub gives, beside errors of its own.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RuntimeError)


class NotPublished(OSError):
    """Nothing, or not the right thing, was published; the message is one line that begins with the repository."""


class _Unsure(NotPublished):
    """The connection broke, or the answer is not understood: it is not known what became of the request."""


@dataclass(frozen=True)
class There:
    """What a repository has."""

    head: str  # the last commit
    private: bool
    files: Mapping[str, str] = field(default_factory=dict)  # name -> sha256 of large files, else git's own digest


class Repository:
    """A repository of models, as somebody who may write to it.

    Args:
        name: "ORG/NAME".
        token: of the user; the Hub's own way of finding one (HF_TOKEN, a login) if there is none.

    Raises:
        ValueError: this can be no name, or no token.
        NotPublished: no token, or the Hub cannot be reached or does not accept it.
    """

    def __init__(self, name: str, token: str | None = None) -> None:
        from huggingface_hub import HfApi, get_token

        check_name(name)
        if hub.offline():
            raise NotPublished(f"{name}: HF_HUB_OFFLINE is set, and publishing needs the Hub: unset it")
        if silent := unreachable([hub.endpoint()]).get(hub.endpoint()):
            raise NotPublished(f"{name}: {silent}")
        self.name = name
        self.token = (token or get_token() or "").strip()
        if not self.token:
            raise NotPublished(f"{name}: no token; set HF_TOKEN to one that may write there, or name it by --token")
        if not re.fullmatch("[!-~]+", self.token):
            raise ValueError("the token has characters that no token has; it is not shown here")
        self._api = HfApi(token=self.token)
        self.user = printable(self._ask(self._api.whoami).get("name"), 60)

    def at(self, name: str) -> Repository:
        """Another repository of the same user, who is not asked for again.

        Raises:
            ValueError: this can be no name.
        """
        check_name(name)
        other = copy.copy(self)
        other.name = name
        return other

    @property
    def url(self) -> str:
        return f"{hub.endpoint()}/{self.name}"

    def there(self) -> There | None:
        """What it has now; None: there is no such repository.

        Raises:
            NotPublished: the Hub does not say.
        """
        from huggingface_hub.errors import HfHubHTTPError

        def ask() -> There | None:
            try:
                info = self._api.model_info(self.name, files_metadata=True)
            except HfHubHTTPError as error:
                if _status(error) == 404:
                    return None
                raise
            files = {one.rfilename: one.lfs.sha256 if one.lfs else one.blob_id or "" for one in info.siblings or ()}
            return There(info.sha or "", bool(info.private), files)

        return self._ask(ask)

    def create(self, private: bool) -> There:
        """Make it, empty."""
        self._ask(lambda: self._api.create_repo(self.name, private=private))
        return self.there() or There("", private)

    def commit(self, files: Mapping[str, Path], gone: Collection[str], message: str, onto: There) -> str:
        """Add and replace files, and remove some, in one commit.

        Args:
            files: of this machine, by their names in the repository.
            gone: names of those that are removed.
            message: of the commit.
            onto: what the repository has; if it has something else by now, nothing is done.

        Returns:
            The commit, 40 hexadecimal digits; the last one, if nothing differs.

        Raises:
            NotPublished: it did not come about.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        def send() -> str:
            operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in gone),
            ]
            parent = onto.head or None
            return str(self._api.create_commit(self.name, operations, commit_message=message, parent_commit=parent).oid)

        try:
            made = self._ask(send)
        except _Unsure as error:  # the answer may be what was lost, and not the commit
            now = self.there()
            if now is None or now.head == onto.head:
                raise NotPublished(f"{error}; nothing was published: run the same again") from error
            made = now.head
        if not re.fullmatch("[0-9a-f]{40}", made):
            raise NotPublished(f"{self.name}: the Hub calls the commit {printable(made, 60)}, which is no commit")
        return made

    def compare(self, files: Mapping[str, Path], commit: str) -> dict[str, str]:
        """Download files at a commit and compare them bit by bit.

        Args:
            files: as they should be, by their names in the repository.
            commit: that has them.

        Returns:
            Their SHA-256.

        Raises:
            NotPublished: one cannot be had, or is another.
        """
        digests = {name: sha256_of(path) for name, path in files.items()}
        with tempfile.TemporaryDirectory() as scratch:
            for name, digest in digests.items():
                try:
                    path = self.fetch(name, commit, Path(scratch))
                except NotPublished as error:
                    said = f"commit {commit} was published, but {name} of it could not be compared"
                    raise NotPublished(f"{error}; {said}") from error
                if (found := sha256_of(path)) != digest:
                    said = f"{self.name}: {name} was published at commit {commit}, but came back as another file"
                    raise NotPublished(f"{said}: sha256 {found} instead of {digest}")
                path.resolve().unlink()  # room for the next
        return digests

    def fetch(self, name: str, revision: str, folder: Path) -> Path:
        """A file of the repository, below a folder."""
        from huggingface_hub import hf_hub_download

        def get() -> Path:
            return Path(hf_hub_download(self.name, name, revision=revision, cache_dir=folder, token=self.token))

        return self._ask(get)

    def _ask(self, call: Callable[[], T]) -> T:
        """What a call of the client gives; it waits where the Hub says how long (Retry-After).

        Raises:
            NotPublished: one line.
        """
        patience = _PATIENCE
        for number in range(_TRIES):
            with self._one_line(), hub.hub_errors(), _bars_for_people():
                try:
                    return call()
                except OSError as error:
                    told = _told_to_wait(error)
                    if told is None or told > patience or number == _TRIES - 1:
                        raise
            time.sleep(told)
            patience -= told
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except NotPublished:
            raise
        except DownloadError as error:  # made by hub_errors of what the client raised
            raise self._said(error) from error
        except _MALFORMED as error:
            raise self._said(error) from error

    def _said(self, error: BaseException) -> NotPublished:
        from huggingface_hub import constants

        answered = _answered(error)
        status = _status(answered)
        if status is None and _request(answered) is not None:
            return _Unsure(f"{self.name}: the connection was cut off ({_line(answered)})")
        if status is None and getattr(answered, "errno", None) is not None:  # of this machine: a full disk
            return NotPublished(f"{self.name}: {printable(answered, 200)}")
        if status is None:
            xet = "" if constants.HF_HUB_DISABLE_XET else "; if it has no Xet storage, set HF_HUB_DISABLE_XET=1"
            return _Unsure(f"{self.name}: what the Hub answers is not understood ({_line(answered)}){xet}")
        wait = _retry_after(answered)
        help = _HELP.get(status, "run the same again later")
        if status in _BUSY and wait is not None:
            help = f"it asks for {wait:.0f} s of patience: run the same again then"
        said = printable(getattr(answered, "server_message", None) or "", 200)
        return NotPublished(f"{self.name}: the Hub answered {status}{f' ({said})' if said else ''}: {help}")


def check_name(name: str) -> None:
    """Refuse what can be no repository.

    Raises:
        ValueError: it is not ORG/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        sound = name.count("/") == 1
    except HFValidationError:
        sound = False
    if not sound:
        raise ValueError(f"{printable(name, 200)} is no name of a repository; ORG/NAME would work")


@contextmanager
def _bars_for_people() -> Iterator[None]:
    """Bars of progress on a terminal alone, unless the environment says otherwise."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not (
        sys.stderr.isatty() or are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    )
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()


def git_digest(path: Path) -> str:
    """What git calls a file's content: its digest of files that are not large."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_same(path: Path, there: str) -> bool:
    """Whether a repository has a file of this content, see :attr:`There.files`."""
    return there == (sha256_of(path) if len(there) == 64 else git_digest(path))


def _answered(error: BaseException) -> BaseException:
    """The error with the answer, or with the request that had none: the client and we wrap it. Else the innermost."""
    found: BaseException = error
    while _status(found) is None and _request(found) is None and found.__cause__ is not None:
        found = found.__cause__
    return found


def _request(error: BaseException) -> Any:
    try:
        return getattr(error, "request", None)
    except RuntimeError:  # an error of the HTTP client that belongs to none
        return None


def _line(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return printable(f"{type(error).__name__}: {first}" if first else type(error).__name__, 200)


def _status(error: BaseException) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _told_to_wait(error: BaseException) -> float | None:
    """Seconds after which to try again; None: it would not help, or nobody says."""
    return _retry_after(error) if _status(error) in _BUSY else None


def _retry_after(error: BaseException) -> float | None:
    response: Any = getattr(error, "response", None)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    return float(value) if re.fullmatch(r"\d{1,9}", value.strip()) else None
