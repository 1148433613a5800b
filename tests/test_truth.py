# SPDX-License-Identifier: Apache-2.0
"""Every truth case: the reference makes the calls that the kernel made, the machine counts the same."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import replay
from replay.capture.live import capture_process
from replay.teardown import reference
from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.contiguous import BLOCK
from replay.teardown.replayer import run_checked
from replay.teardown.spaces import address_spaces
from replay.trace.frame import Trace
from tests.capture.trees import TRUTH, lay_out, truth_cases

CASES = truth_cases()

ALGORITHM_OF = {
    "6.1": "v6.1",
    "6.12": "v6.12",
    "6.18": "mainline",
    "7.3": "mainline",
    "7.3-nomapcount": "mainline-nomapcount",
    "arm64-6.1": "v6.1",
    "arm64-6.12": "v6.12",
    "arm64-6.12-16k": "v6.12",
    "v2-on-6.12": "v2",
}
"""Folder of cases -> what its kernel does."""


@cache
def captured(case: str) -> tuple[Trace, dict]:
    """The case through capture, with what procfs cannot show fed in."""
    with TemporaryDirectory() as folder:
        pid, expected = lay_out(TRUTH / case, Path(folder))
        done = capture_process(
            pid, procfs_root=folder, known_pmd=expected["pmd_mapped"], known_dirty=expected["dirty_ptes"]
        )
    assert done.trace is not None
    return done.trace, expected


def blocks(case: str) -> np.ndarray | None:
    """The first pages of blocks with arm64's contiguous bit; None where there is none."""
    trace, expected = captured(case)
    runs = expected.get("contiguous_ptes")
    if runs is None:
        return None
    entries = BLOCK[trace.meta.page_size]
    parts = [np.arange(first, first + pages, entries) for first, pages in runs]
    return np.concatenate([np.zeros(0, np.int64), *parts])


@cache
def outcome(case: str, algorithm: str) -> reference.Outcome:
    trace, _ = captured(case)
    [space] = address_spaces(trace, blocks(case))
    return reference.replay(space, ALGORITHMS[algorithm])


def allowed(expected: dict) -> set[str]:
    return set((expected.get("cannot_match") or {}).get("counters", []))


NUMBER_OF_CASES = {
    "6.1": 24,
    "6.12": 29,
    "6.18": 8,
    "7.3": 29,
    "7.3-nomapcount": 8,
    "arm64-6.1": 8,
    "arm64-6.12": 19,
    "arm64-6.12-16k": 17,
    "v2-on-6.12": 31,
}


def test_all_cases_are_here():
    assert Counter(case.split("/")[0] for case in CASES) == NUMBER_OF_CASES


def test_the_readme_says_how_many_there_are():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert f"`tests/truth/` holds {len(CASES)} traced exits" in readme


@pytest.mark.parametrize("case", CASES)
def test_reference_makes_the_kernels_calls(case: str):
    _, expected = captured(case)
    found = outcome(case, ALGORITHM_OF[case.split("/")[0]])
    facts: dict[str, Any] = {
        name: (value, found.counters[name]) for name, value in expected["counters"].items()
    }
    # some cases count calls of tlb_flush_mmu_free(), also those that found nothing to release
    facts["gather_flushes"] = (len(expected["flush_groups"]), found.counters["gather_flushes"])
    facts["rmap_sizes"] = (expected["rmap_sizes"], {str(k): v for k, v in found.rmap_sizes.items()})
    facts["release_sizes"] = (expected["release_sizes"], found.release_sizes)
    facts["flush_groups"] = (expected["flush_groups"], found.flush_groups)
    freed = [tuple(folio) for folio in expected["freed"]]
    if "folios_freed" not in allowed(expected):
        # the very order, but for what a preempted exit put into other release calls
        same = sorted if "release_sizes" in allowed(expected) else list
        facts["freed"] = (same(freed), same(found.freed))
    else:
        assert set(freed) <= set(found.freed)
    wrong = {name: pair for name, pair in facts.items() if pair[0] != pair[1]}
    assert set(wrong) <= allowed(expected), wrong


@pytest.mark.parametrize("case", CASES)
def test_machine_counts_what_the_reference_counts(case: str):
    trace, _ = captured(case)
    for row in run_checked(trace, contiguous=blocks(case)).iter_rows(named=True):
        found = outcome(case, row["algorithm"])
        assert {name: row[name] for name in found.counters} == found.counters, row["algorithm"]
        for check in ("freed_while_mapped", "references_left", "references_dropped_twice"):
            assert row[check] == getattr(found, check), (row["algorithm"], check)


def test_rmap_missed_is_found_in_v1_and_v2_only():
    trace, _ = captured("v2-on-6.12/v2_pmd_then_pte")
    missed = dict(replay.run(trace).select("algorithm", "rmap_missed").iter_rows())
    assert missed == dict.fromkeys(ALGORITHMS, 0) | {"v1": 300, "v2": 300}
