# SPDX-License-Identifier: Apache-2.0
"""Call counts that differ: which cause has evidence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from replay.validate.compare_calls import CallCount, Doubts, compare_calls
from replay.validate.compare_folios import UNEXPLAINED, Comparison, Difference
from replay.validate.predict import Folios, Prediction


def prediction(counters: Mapping[str, int], clean: Mapping[str, int] | None = None) -> Prediction:
    """Of a folio of 16 pages at frame 16 and one of a page at frame 7."""
    pfn = np.array([7, 16])
    no = np.zeros(2, bool)
    folios = Folios(pfn, np.array([0, 4]), np.array([1, 3]), np.array([1, 5]), ~no, no, ~no, no)
    return Prediction(folios, (), frozenset(), frozenset(), 0, counters, counters if clean is None else clean)


def compared(counter, said, seen, *, clean=None, dirty=(0, None), before=None, preempted=0, differences=()):
    predicted = prediction({counter: said}, {counter: said if clean is None else clean})
    doubts = Doubts(
        before=lambda: {counter: said if before is None else before},
        dirty=lambda: (dirty[0], {counter: said if dirty[1] is None else dirty[1]}),
    )
    freed = Comparison(0, 0, 0, tuple(differences))
    [found] = compare_calls(predicted, {counter: seen}, preempted, freed, doubts)
    return found


def stayed(pfn: int, order: int, cause: str) -> Difference:
    return Difference("stayed", pfn, order, 0, cause)


def test_other_replays_are_made_only_if_a_counter_differs():
    def never():
        raise AssertionError

    freed = Comparison(0, 0, 0, ())
    found = compare_calls(prediction({"rmap_calls": 5}), {"rmap_calls": 5}, 9, freed, Doubts(never, never))
    assert found == (CallCount("rmap_calls", 5, 5),)
    assert found[0].agrees and found[0].explained


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ({}, UNEXPLAINED),
        ({"preempted": 3}, UNEXPLAINED),
        ({"clean": 5, "dirty": (9, 12)}, "dirty rule"),
        ({"clean": 5, "dirty": (9, 9)}, UNEXPLAINED),
        ({"clean": 5, "dirty": (9, 9), "preempted": 1}, "preemption"),
        ({"clean": 5, "dirty": (9, 5), "before": 11}, "changed"),
    ],
)
def test_why_there_are_more_release_calls(how, cause):
    found = compared("release_calls", 8, 12, **how)
    assert (found.cause, found.agrees, found.explained) == (cause, False, cause != UNEXPLAINED)


def test_flushes_explain_no_rmap_calls():
    assert compared("rmap_calls", 8, 9, clean=5, dirty=(9, 12), preempted=5).cause == UNEXPLAINED
    assert compared("rmap_calls", 8, 9, before=9).cause == "changed"


def test_preemption_makes_only_so_many_calls():
    assert compared("free_calls", 8, 12, dirty=(9, 8), preempted=1).cause == "preemption"
    assert compared("free_calls", 8, 13, dirty=(9, 8), preempted=1).cause == UNEXPLAINED


def test_as_many_calls_differ_as_folios_changed():
    gone = [stayed(7, 0, "changed"), stayed(16, 4, "changed")]
    assert compared("rmap_calls", 9, 7, differences=gone).cause == "changed"
    assert compared("rmap_calls", 9, 6, differences=gone).cause == UNEXPLAINED


def test_swap_entries_of_others_keep_as_many_folios_in_the_swap_cache():
    kept = [stayed(7, 0, "swap entry"), stayed(16, 4, "swap entry")]
    assert compared("swapcache_frees", 9, 7, differences=kept).cause == "swap entry"
    assert compared("swapcache_frees", 9, 6, differences=kept).cause == UNEXPLAINED
    assert compared("swapcache_checks", 9, 7, differences=kept).cause == UNEXPLAINED


def test_large_folios_of_others_decide_deferred_splits():
    left = [stayed(16, 4, "other user left")]
    assert compared("deferred_split_calls", 9, 6, differences=left).cause == "other user left"
    assert compared("deferred_split_calls", 9, 5, differences=left).cause == UNEXPLAINED
    small = [stayed(7, 0, "other user left")]
    assert compared("deferred_split_calls", 9, 8, differences=small).cause == UNEXPLAINED
