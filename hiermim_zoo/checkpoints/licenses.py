"""What licences of weights allow: commercial use, and passing the weights on."""

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


def stricter(*licenses: str) -> str:
    """Of licences that may hold the one that allows less: passing the weights on counts before commercial use.

    Args:
        licenses: as their authors name them; empty ones are none.
    """
    ranks = {False: 0, None: 1, True: 2}
    named = [license for license in licenses if license]
    return min(named, key=lambda one: (ranks[redistribution(one)], ranks[commercial_use(one)]), default=UNSTATED)


def redistribution(license: str) -> bool | None:
    """Whether a licence allows to pass weights on that were changed, and a conversion is a change; None where the
    authors name none, or it is not in the table.
    """
    name = license.lower()
    if name == UNSTATED or name not in COMMERCIAL:
        return None
    return "-nd-" not in name  # "no derivatives"


def why_not_passed_on(license: str) -> str:
    """Why weights of a licence must not be passed on, in words; empty where they may be."""
    allowed = redistribution(license)
    if allowed:
        return ""
    if allowed is False:
        return f"the licence {license} forbids to pass on weights that were changed"
    if license.lower() == UNSTATED:
        return "no licence is stated for these weights, so nobody may pass them on"
    return f"{license} is no licence that is known to allow passing weights on"
