# SPDX-License-Identifier: Apache-2.0
"""The comparison as a function of data: what differs, by what cause; nothing here needs rights."""

from __future__ import annotations

import numpy as np
import pytest

from replay.trace.kpageflags import KPF_ANON, KPF_SWAPCACHE, bit
from replay.validate.compare_folios import UNEXPLAINED, Frame, compare, stayed, unpredicted
from replay.validate.later_frees import Fate
from replay.validate.observe import Observation
from replay.validate.predict import Folios, Prediction

FREED = ((100, 0), (7, 0), (512, 9), (64, 4), (9, 0), (8, 0))
THREAD = 4711


def prediction(freed=FREED, ends=(3, 6), dirty=0, clean_ends=None, **columns) -> Prediction:
    """Of the folios of FREED, and of frame 50, which stays."""
    pfn, order = np.array(sorted({*freed, *FREED, (50, 0)})).T
    folios = {
        "own": np.ones(len(pfn), np.int64),
        "mapcount": np.where(pfn == 50, 2, 1),
        "anon": np.ones(len(pfn), bool),
        "swapcache": np.zeros(len(pfn), bool),
        "lru": np.ones(len(pfn), bool),
        "mlocked": np.zeros(len(pfn), bool),
    }
    for name, pfns in columns.items():
        folios[name] = folios[name] ^ np.isin(pfn, pfns)
    return Prediction(
        folios=Folios(pfn=pfn, order=order, **folios),
        freed=tuple(freed),
        batch_ends=frozenset(ends),
        clean_batch_ends=frozenset(ends if clean_ends is None else clean_ends),
        dirty=dirty,
        counters={},
        clean_counters={},
    )


def observation(freed=FREED, ends=(3, 6), preempted=0, finished=True) -> Observation:
    return Observation(
        thread=THREAD,
        freed=tuple(freed),
        batch_ends=frozenset(ends),
        other_frees=0,
        again=0,
        tlb_flushes=1,
        preempted=preempted,
        slept=0,
        finished=finished,
        has_end=True,
        began_ns=1000,
        ended_ns=2000,
    )


def differences(predicted: Prediction, observed: Observation, after=None, changed=frozenset()):
    found = compare(predicted, observed, after=after or {}, changed=changed)
    return found, [(each.what, each.pfn, each.cause) for each in found.differences]


def test_the_same_sequence_is_exact():
    found, none = differences(prediction(), observation())
    assert found.exact and found.explained and not none
    assert (found.predicted, found.observed, found.prefix) == (6, 6, 6)


@pytest.mark.parametrize(
    ("altered", "expected"),
    [
        (FREED[:2] + FREED[3:], [("freed", 512)]),
        ((*FREED, (50, 0)), [("stayed", 50)]),
        (((7, 0), (100, 0), *FREED[2:]), [("moved", 100)]),
        ((*FREED[:3], (64, 3), *FREED[4:]), [("size", 64)]),
        (FREED[::-1], [("moved", pfn) for pfn, _ in FREED[:-1]]),
    ],
    ids=["one less", "one more", "two swapped", "another order", "reversed"],
)
def test_an_altered_prediction_disagrees(altered, expected):
    """The kernel does what it does; the replay is made to say something else."""
    found, seen = differences(prediction(altered), observation(ends=()))
    assert not found.exact and not found.explained
    assert sorted((what, pfn) for what, pfn, _ in seen) == sorted(expected)
    assert {cause for *_, cause in seen} == {UNEXPLAINED}
    assert found.prefix == next(
        (i for i, (a, b) in enumerate(zip(altered, FREED, strict=False)) if a != b), min(len(altered), 6)
    )


ANON = bit(KPF_ANON)


@pytest.mark.parametrize(
    ("columns", "frame", "cause"),
    [
        ({}, None, UNEXPLAINED),
        ({}, Frame(0, 0, True), UNEXPLAINED),
        ({}, Frame(0, 0, False), UNEXPLAINED),
        ({}, Frame(ANON, 0, True), "reference"),
        ({}, Frame(ANON, 0, False), "lru batch"),
        ({}, Frame(ANON, 1, True), "mapped since"),
        ({}, Frame(ANON, 1, False), UNEXPLAINED),
        ({}, Frame(0, 0, False, Fate("", 5, lru_batch=True)), "lru batch"),
        ({}, Frame(0, 0, False, Fate("", 5, lru_batch=False)), "reference"),
        ({"mlocked": [9]}, Frame(0, 0, False, Fate("", 5, lru_batch=False)), "mlock batch"),
        ({"mlocked": [9]}, Frame(0, 0, False, Fate("", THREAD, lru_batch=False)), "reference"),
        ({"mlocked": [9]}, Frame(0, 0, False, Fate("", 5, lru_batch=False, early=True)), "changed"),
        ({"swapcache": [9]}, Frame(ANON | bit(KPF_SWAPCACHE), 0, True), "swap entry"),
    ],
)
def test_why_a_folio_stayed(columns, frame, cause):
    observed = observation([folio for folio in FREED if folio != (9, 0)], ends=())
    after = {} if frame is None else {9: frame}
    found, seen = differences(prediction(**columns), observed, after)
    assert seen == [("stayed", 9, cause)]
    assert not found.exact
    assert found.explained == (cause != UNEXPLAINED)


def test_a_cause_names_one_folio_and_excuses_no_other():
    observed = observation([FREED[1], FREED[0], *FREED[2:4], FREED[5]], ends=())
    found, seen = differences(prediction(), observed, {9: Frame(ANON, 0, True)})
    assert ("stayed", 9, "reference") in seen
    assert ("moved", 7, UNEXPLAINED) in seen
    assert not found.explained


def test_what_changed_in_a_stopped_process_is_a_cause_for_that_folio_only():
    observed = observation(FREED[1:], ends=())
    assert differences(prediction(), observed, changed=frozenset({100}))[1] == [("stayed", 100, "changed")]
    assert differences(prediction(), observed, changed=frozenset({101}))[1] == [("stayed", 100, UNEXPLAINED)]


def test_a_folio_that_others_mapped_was_let_go_by_them():
    _, seen = differences(prediction(), observation((*FREED, (50, 0)), ends=()))
    assert seen == [("freed", 50, "other user left")]
    _, seen = differences(prediction(FREED[1:], mapcount=[]), observation(ends=()))
    assert seen == [("freed", 100, UNEXPLAINED)]


def test_batches_must_end_where_release_calls_end():
    # a batch of folios without per-CPU lists shows no end
    assert not differences(prediction(), observation(ends=(6,)))[1]
    assert differences(prediction(), observation(ends=(2, 6)))[1] == [("batch", 7, UNEXPLAINED)]
    clean = prediction(dirty=5, clean_ends=(2, 6))
    assert differences(clean, observation(ends=(2, 6)))[1] == [("batch", 7, "dirty rule")]
    assert differences(prediction(dirty=5), observation(ends=(2, 6)))[1] == [("batch", 7, UNEXPLAINED)]
    assert differences(prediction(dirty=5), observation(ends=(2, 6), preempted=1))[1] == [
        ("batch", 7, "preemption")
    ]


def test_an_exit_mmap_that_did_not_end_here_is_a_difference():
    found, seen = differences(prediction(), observation((), ends=(), finished=False))
    assert seen == [("end", 0, "last user")]
    assert found.explained


def test_stayed_and_unpredicted_ask_for_frames_only():
    assert stayed(FREED, FREED[2:]) == [100, 7]
    assert unpredicted(FREED[2:], FREED) == [100, 7]


@pytest.mark.parametrize(
    ("columns", "left", "cause"),
    [
        ({"lru": [7]}, {7: "it was emptied"}, "batch emptied"),
        ({"lru": [7]}, {}, UNEXPLAINED),
        ({}, {7: "it was emptied"}, UNEXPLAINED),  # it was on the LRU: no batch kept it
    ],
)
def test_a_folio_that_left_its_batch_is_freed_after_all(columns, left, cause):
    altered = prediction((FREED[0], *FREED[2:]), **columns)
    found = compare(altered, observation(ends=()), after={}, left=left)
    assert [(each.what, each.pfn, each.cause) for each in found.differences] == [("freed", 7, cause)]
