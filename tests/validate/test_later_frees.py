# SPDX-License-Identifier: Apache-2.0
"""Who took a folio out of an LRU batch, and who freed it."""

from __future__ import annotations

from replay.validate.later_frees import fates, left_batches
from tests.validate.test_observe import event


def test_fates_need_evidence_of_a_batch():
    events = [
        event(2, "mm_page_free", pfn=1, order=0, pid=9),
        event(5, "mm_page_free", pfn=5, order=0, pid=9),
        event(20, "mm_lru_insertion", pfn=1, pid=9),
        event(21, "mm_lru_insertion", pfn=2, pid=8),
        event(22, "mm_page_free", pfn=1, order=0, pid=9),
        event(23, "mm_page_free", pfn=2, order=0, pid=9),
        event(24, "mm_page_free", pfn=3, order=0, pid=77),
        event(31, "mm_page_free", pfn=4, order=0, pid=9),
    ]
    found = fates(events, frozenset({1, 2, 3, 4, 5, 6}), 4, 10, drained_ns=30, watching=frozenset({77}))
    batch = {pfn: fate.lru_batch for pfn, fate in found.items()}
    assert batch == {1: True, 2: False, 3: True, 4: True, 5: False}
    assert [pfn for pfn, fate in found.items() if fate.early] == [5]


def test_a_batch_was_emptied_only_between_capture_and_end():
    events = [
        event(3, "mm_lru_insertion", pfn=1, pid=9),  # before the capture
        event(5, "mm_lru_insertion", pfn=2, pid=9),
        event(6, "mm_page_free", pfn=3, order=0, pid=9),
        event(7, "mm_lru_activate", pfn=4, pid=9),
        event(8, "mm_lru_insertion", pfn=5, pid=9),  # nobody asks for it
        event(21, "mm_lru_insertion", pfn=6, pid=9),  # after the exit
    ]
    assert list(left_batches(events, frozenset({1, 2, 3, 4, 6}), 4, 20)) == [2, 4]
