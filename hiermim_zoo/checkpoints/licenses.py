"""Which licences of weights allow commercial use."""

from __future__ import annotations

UNSTATED = "unstated"  # the authors name none

# By the names of the Hub. What is not in here is not known to allow anything.
COMMERCIAL: dict[str, bool | None] = {
    UNSTATED: None,
    "apache-2.0": True,
    "bsd-2-clause": True,
    "bsd-3-clause": True,
    "cc-by-4.0": True,
    "cc-by-sa-4.0": True,
    "cc0-1.0": True,
    "mit": True,
    "cc-by-nc-4.0": False,
    "cc-by-nc-nd-4.0": False,
    "cc-by-nc-sa-4.0": False,
}
WORDS = {True: "yes", False: "no", None: "ask"}


def commercial_use(*licenses: str) -> bool | None:
    """Whether commercial use is allowed; None where the authors name no licence, it is not in the table, or of several
    that may hold one does not allow it.

    Args:
        licenses: that may hold; empty ones are none.
    """
    found = {COMMERCIAL.get(license.lower()) for license in licenses if license}
    return found.pop() if len(found) == 1 else None
