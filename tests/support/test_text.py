# SPDX-License-Identifier: Apache-2.0
"""Text for terminals."""

from __future__ import annotations

import pytest

from replay.support.text import byte_size, printable, times


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (300 << 20, "300 MiB"), (5 << 50, "5,120 TiB")],
)
def test_sizes_have_three_digits_and_a_unit(count: int, text: str) -> None:
    assert byte_size(count) == text
    assert byte_size(-count, sign=True) == (f"-{text}" if count else "+0 B")


def test_control_characters_become_escapes() -> None:
    assert printable("naïve 日本") == "naïve 日本"
    assert printable("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"


def test_once_is_a_word() -> None:
    assert [times(count) for count in (1, 2, 1000)] == ["once", "2 times", "1,000 times"]
