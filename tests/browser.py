"""A page in a real browser, for tests; where there is none they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def opened(page: Path, width: int) -> Iterator[tuple[Any, list[str]]]:
    """A page in headless Chromium.

    Args:
        width: of the window, in pixels.

    Returns:
        The tab, and a list of what the page says on the console, what fails in it, and every address that it asks for.
    """
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    heard: list[str] = []
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("request", lambda request: heard.append(request.url) if not request.url.startswith("data:") else None)
        tab.goto(page.as_uri())
        yield tab, heard
        browser.close()
