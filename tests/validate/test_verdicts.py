# SPDX-License-Identifier: Apache-2.0
"""What is said of the call counts."""

from __future__ import annotations

from replay.validate import verdicts
from replay.validate.compare_calls import CallCount
from replay.validate.compare_folios import UNEXPLAINED


def test_the_column_names_the_counters_that_differ():
    agreeing = CallCount("rmap_calls", 5, 5)
    differing = CallCount("free_calls", 5, 6, "dirty rule", "")
    unexplained = CallCount("free_calls", 5, 6, UNEXPLAINED, "")
    assert verdicts.calls_column([]) == ""
    assert verdicts.calls_column([agreeing, agreeing]) == "1 of 1 agree"
    assert verdicts.calls_column([agreeing, differing]) == "1 of 2 agree, not free_calls (dirty rule)"
    assert (
        verdicts.calls_column([unexplained, agreeing, differing])
        == "1 of 2 agree, not free_calls (dirty rule, unexplained)"
    )
