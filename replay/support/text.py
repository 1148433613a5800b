# SPDX-License-Identifier: Apache-2.0
"""Names, sizes and counts as a terminal may show them."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters, which could do anything to a terminal, written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def byte_size(count: int, *, sign: bool = False) -> str:
    """Bytes for people: `726 MiB`, with a sign if asked."""
    value = float(count)
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    digits = 0 if abs(value) >= 100 or unit == "B" else 1
    return f"{value:{'+' if sign else ''},.{digits}f} {unit}"


def counted(count: int, thing: str) -> str:
    """`1 page`, `7,000 pages`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def times(count: int) -> str:
    """`once`, `2 times`."""
    return "once" if count == 1 else f"{count:,} times"
