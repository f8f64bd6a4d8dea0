"""Text of strangers, fit to be shown."""

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
