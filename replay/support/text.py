"""Names as a terminal may show them."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters, which could do anything to a terminal, written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )
