"""Reading of words in pieces, from files that end somewhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.capture import procfs

WORDS = 300


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "kpageflags"
    path.write_bytes(np.arange(WORDS, dtype=np.uint64).tobytes())
    return path


pieces = st.lists(st.tuples(st.integers(0, WORDS + 20), st.integers(1, 40)), max_size=20)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces, st.sampled_from([1, 8, 1 << 11]), st.sampled_from([16, 1 << 16]))
def test_pieces(words: Path, some: list[tuple[int, int]], small: int, group: int) -> None:
    """Whatever is read one by one or together: what the file does not have is left alone."""
    first = np.array([start for start, _ in some], np.int64)
    size = np.array([count for _, count in some], np.int64)
    out = np.full(int(size.sum()), 7777, np.uint64)
    fd = os.open(words, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procfs, "SMALL_WORDS", small)
        patch.setattr(procfs, "GROUP_WORDS", group)
        procfs.read_pieces(fd, first, size, out)
    os.close(fd)
    expected = [word if word < WORDS else 7777 for start, n in some for word in range(start, start + n)]
    assert out.tolist() == expected


def test_field() -> None:
    status = "\nName:\tState:\tx\nState:\tS (sleeping)\nVmPTE:\t      40 kB\n"
    assert procfs.field(status, "Name") == "State:\tx"
    assert procfs.field(status, "State") == "S (sleeping)"
    assert procfs.field(status, "VmPTE") == "40 kB"
    assert procfs.field(status, "VmSwap") == ""
