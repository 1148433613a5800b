# SPDX-License-Identifier: Apache-2.0
"""How often pages are mapped, against counting them one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.trace.check import own_mappings


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=12)
)
def test_own_mappings(extents: list[tuple[int, int, int]]):
    counted = Counter(frame for pfn, pages, _ in extents for frame in range(pfn, pfn + pages))
    found = own_mappings(*(np.array(column, np.int64) for column in zip(*extents, strict=True)))
    for (pfn, pages, own), answer in zip(extents, found, strict=True):
        covers = {counted[frame] for frame in range(pfn, pfn + pages)}
        assert (answer == -1) == (covers == {own})
        assert answer == -1 or (answer in covers and answer != own)
