# SPDX-License-Identifier: Apache-2.0
"""Reading of words in pieces, from files that end somewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.procfs import files
from replay.procfs.pagemap_words import read_pieces

WORDS = 300


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "kpageflags"
    path.write_bytes(np.arange(WORDS, dtype=np.uint64).tobytes())
    return path


pieces = st.lists(st.tuples(st.integers(0, WORDS + 20), st.integers(1, 40)), max_size=20)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces, st.booleans())
def test_pieces(words: Path, some: list[tuple[int, int]], interpreted: bool) -> None:
    """By machine code or without: what the file does not have is left alone, and counted."""
    first = np.array([start for start, _ in some], np.int64)
    size = np.array([count for _, count in some], np.int64)
    out = np.full(int(size.sum()), 7777)
    fd = os.open(words, os.O_RDONLY)
    missing = (read_pieces.python if interpreted else read_pieces)(fd, first, size, out)
    os.close(fd)
    expected = [word if word < WORDS else 7777 for start, n in some for word in range(start, start + n)]
    assert out.tolist() == expected
    assert missing == expected.count(7777)


@pytest.mark.parametrize("read", [read_pieces, read_pieces.python], ids=["machine code", "python"])
def test_pieces_that_cannot_be_read(read: Callable[..., int], tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    one = np.ones(1, np.int64)
    assert read(fd, one, one, one) == -1
    with pytest.raises(IsADirectoryError):
        files.check_read(False, fd)
    os.close(fd)
