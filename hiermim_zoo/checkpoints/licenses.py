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
WORDS = {True: "yes", False: "no", None: "not stated"}


def commercial_use(license: str) -> bool | None:
    """Whether a licence allows commercial use; None where the authors name none, or it is not in the table."""
    return COMMERCIAL.get(license.lower())
