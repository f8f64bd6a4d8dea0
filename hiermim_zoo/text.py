"""Text for people: that of strangers, fit to be shown, and numbers of things."""

from __future__ import annotations


def printable(text: object, limit: int = 0) -> str:
    """One line that cannot move the cursor, colour a terminal or turn the direction of writing.

    Whatever Unicode counts as not printable (control characters, line ends, marks of direction, halves of pairs) is
    shown as its escape.

    Args:
        text: anything; it is written out by ``str``.
        limit: longer lines are cut to so many characters; 0: never.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return f"{line[: limit - 3]}..." if 0 < limit < len(line) else line


def counted(number: float, things: str) -> str:
    """A number of things: "1 image", "2 images".

    Args:
        things: their name in the plural, as code has it; words may stand before it.
    """
    words = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{words} {plural(things, number)}"


def plural(things: str, number: float) -> str:
    """The name of so many things, in the plural unless there is one: "batch" or "batches"."""
    if number != 1:
        return things
    if things.endswith("ies"):
        return f"{things[:-3]}y"
    return things[: -2 if things.endswith(("ches", "shes", "sses", "xes")) else -1]
