# SPDX-License-Identifier: Apache-2.0
"""PMD mappings that a scan saw and that are split when pagemap is read."""

from __future__ import annotations

import numpy as np
import pytest

from replay.capture import runs
from replay.capture.extents import Ranges
from replay.capture.pmd_mappings import still_whole
from replay.procfs.files import PM_EXCLUSIVE, PM_PRESENT, PM_SWAP


def ranges(*pairs: tuple[int, int]) -> Ranges:
    start, end = np.array(pairs, np.int64).reshape(-1, 2).T
    return Ranges(start, end, np.ones(len(pairs), np.int64))


@pytest.mark.parametrize(
    ("place", "word", "left"),
    [
        (0, None, [(512, 2048)]),
        (1212, PM_SWAP | 32, [(512, 1024), (1536, 2048)]),
        (1100, PM_PRESENT | 77, [(512, 1024), (1536, 2048)]),
        (1100, 0, [(512, 1024), (1536, 2048)]),
        (1100, PM_PRESENT | PM_EXCLUSIVE | 4096 + 1100, [(512, 2048)]),
        (512 + 511, 0, [(1024, 2048)]),
    ],
)
def test_what_was_split_is_not_mapped_by_a_pmd(place: int, word: int | None, left: list):
    first = 512
    words = np.arange(4096 + first, 4096 + 2048, dtype=np.uint64) | np.uint64(PM_PRESENT)
    if word is not None:
        words[place - first] = word
    found = runs.runs_of(np.array([first]), np.array([len(words)]), words, np.array([first]))
    huge = still_whole(ranges((512, 2048)), [found], 512)
    assert list(zip(huge.start.tolist(), huge.end.tolist(), strict=True)) == left


def test_what_the_scan_did_not_see_is_not_mapped_by_a_pmd():
    words = np.arange(4096, 4096 + 1024, dtype=np.uint64) | np.uint64(PM_PRESENT)
    found = runs.runs_of(np.array([0]), np.array([len(words)]), words, np.array([0]))
    huge = still_whole(ranges((512, 1024)), [found], 512)
    assert (huge.start.tolist(), huge.end.tolist()) == ([512], [1024])
    assert len(still_whole(ranges(), [found], 512).start) == 0
