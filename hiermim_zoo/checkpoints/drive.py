"""Google Drive: addresses of its files, and the page it sends before a large one."""

from __future__ import annotations

import html
import re
from urllib.parse import urlencode, urljoin, urlsplit

DRIVE_URL = "https://drive.usercontent.google.com/download"  # what serves the files of drive.google.com

# No pattern crosses a "<" or repeats without a limit what it may have to give back: the time that a page takes grows
# with its length and not with the square of it.
_TAG = re.compile(r"<(form|input)\b([^<>]*)>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([\w-]{1,40})=(?:"([^"]*)"|'([^']*)')""")
_TITLE = 10_000  # characters that are looked at


def direct(url: str) -> str:
    """The address that serves the bytes of a Google Drive link, "" if it names none; any other address as it is."""
    if urlsplit(url).hostname != "drive.google.com":
        return url
    match = re.search(r"/file/d/([\w-]+)|[?&]id=([\w-]+)", url)
    return f"{DRIVE_URL}?{urlencode({'id': match[1] or match[2], 'export': 'download'})}" if match else ""


def confirmed(page: str, url: str) -> str:
    """The address behind "too large to scan for viruses, download anyway?", "" if the page asks nothing like it.

    Args:
        page: as HTML.
        url: where it came from; only Drive is asked again, once, and its form leads nowhere but to the same site.
    """
    if _site(url) != _site(DRIVE_URL) or "confirm=" in url:
        return ""
    action, fields = "", {}
    for kind, text in _TAG.findall(page):
        found = {name.lower(): html.unescape(a or b) for name, a, b in _ATTRIBUTE.findall(text)}
        if kind.lower() == "form" and found.get("id") == "download-form":
            action = found.get("action", "")
        elif kind.lower() == "input" and found.get("type") == "hidden" and "name" in found:
            fields[found["name"]] = found.get("value", "")
    if not action or "confirm" not in fields:
        return ""
    try:
        address = urljoin(url, action)
        same = urlsplit(address).hostname is not None and _site(address) == _site(url)
    except ValueError:
        return ""
    return f"{address}?{urlencode(fields)}" if same else ""


def title(page: str) -> str:
    """What a page is called."""
    start = page.lower().find("<title")
    inside = page[start : start + _TITLE].partition(">")[2] if start >= 0 else ""
    return html.unescape(inside.partition("<")[0]).strip()


def _site(url: str) -> str:
    """The last two labels of the name of the host; of a number or a short name all of it."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    labels = host.split(".")
    return host if labels[-1].isdigit() or ":" in host else ".".join(labels[-2:])
