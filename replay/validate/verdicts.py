# SPDX-License-Identifier: Apache-2.0
"""What `replay validate` found, as tables, as a line and as a document."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable
from typing import Any

import polars as pl

from replay.validate.compare_calls import CallCount
from replay.validate.compare_folios import CAUSES
from replay.validate.exits import Result
from replay.validate.watch import Verdict

VERDICTS = {
    "workload": pl.String,
    "pid": pl.UInt32,
    "comm": pl.String,
    "mapped": pl.UInt64,
    "predicted": pl.UInt64,
    "observed": pl.UInt64,
    "prefix": pl.UInt64,
    "exact": pl.Boolean,
    "stayed": pl.UInt64,
    "freed": pl.UInt64,
    "moved": pl.UInt64,
    "batch": pl.UInt64,
    "causes": pl.String,
    "calls": pl.String,
    "batches": pl.UInt64,
    "largest_order": pl.UInt8,
    "not_on_lru": pl.UInt64,
    "changed": pl.UInt64,
    "preempted": pl.UInt64,
    "page_tables": pl.String,
    "duration_us": pl.Float64,
}
"""Columns of `frame`: folios mapped, predicted to be freed, observed; differences by kind; what went on."""

SUMMARY = {
    "workload": pl.String,
    "spaces": pl.UInt64,
    "exact": pl.UInt64,
    "mapped": pl.UInt64,
    "predicted": pl.UInt64,
    "observed": pl.UInt64,
    "prefix": pl.UInt64,
    "differences": pl.UInt64,
    "unexplained": pl.UInt64,
    "causes": pl.String,
    "calls": pl.String,
}
"""Columns of `summary`: address spaces, those with the exact sequence, folios, differences, call counts."""

KINDS = ("stayed", "freed", "moved", "batch")


def frame(result: Result) -> pl.DataFrame:
    """One row for each address space."""
    rows = [_row(verdict) for verdict in result.verdicts]
    return pl.DataFrame(rows, schema=VERDICTS, orient="row")


def summary(result: Result) -> pl.DataFrame:
    """One row for each workload, in their order."""
    rows = []
    for name in dict.fromkeys(verdict.workload for verdict in result.verdicts):
        of_it = [verdict for verdict in result.verdicts if verdict.workload == name]
        found = [verdict.comparison for verdict in of_it]
        causes = Counter(difference.cause for each in found for difference in each.differences)
        rows.append(
            (
                name,
                len(of_it),
                sum(each.exact for each in found),
                sum(verdict.mapped for verdict in of_it),
                sum(each.predicted for each in found),
                sum(each.observed for each in found),
                sum(each.prefix for each in found),
                causes.total(),
                causes["unexplained"],
                _causes(causes),
                calls_column([count for verdict in of_it for count in verdict.calls]),
            )
        )
    return pl.DataFrame(rows, schema=SUMMARY, orient="row")


def conclusion(result: Result) -> str:
    """One line: how many exits went as predicted."""
    found = [verdict.comparison for verdict in result.verdicts]
    exact = sum(each.exact for each in found)
    explained = sum(each.explained for each in found)
    line = (
        f"{exact:,} of {len(found):,} exits freed the predicted folios in the predicted order; "
        f"{max(explained - exact, 0):,} differ for a known cause, {len(found) - explained:,} without one"
    )
    calls = [count for verdict in result.verdicts for count in verdict.calls]
    if not calls:
        return line
    agree = sum(count.agrees for count in calls)
    unexplained = sum(not count.explained for count in calls)
    return (
        f"{line}; {agree:,} of {len(calls):,} call counts are as predicted, "
        f"{len(calls) - agree - unexplained:,} differ for a known cause, {unexplained:,} without one"
    )


def as_json(result: Result) -> str:
    """Everything, with each difference and its evidence."""
    return json.dumps(document(result), indent=1)


def document(result: Result) -> dict[str, Any]:
    """As `as_json`, as a dictionary."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "agrees": result.agrees,
        "status": result.status,
        "address_spaces": len(result.verdicts),
        "exact": sum(verdict.comparison.exact for verdict in result.verdicts),
        "missed": {str(cause): count for cause, count in result.missed.items()},
        "notes": result.notes,
        "causes": CAUSES,
        "calls_not_compared": result.no_calls,
        "verdicts": [
            row
            | {
                "differences": [difference._asdict() for difference in verdict.comparison.differences],
                "counters": [count._asdict() | {"agrees": count.agrees} for count in verdict.calls],
            }
            for row, verdict in zip(frame(result).to_dicts(), result.verdicts, strict=True)
        ],
    }


def _row(verdict: Verdict) -> tuple[object, ...]:
    found = verdict.comparison
    kinds = Counter(difference.what for difference in found.differences)
    return (
        verdict.workload,
        verdict.pid,
        verdict.comm,
        verdict.mapped,
        found.predicted,
        found.observed,
        found.prefix,
        found.exact,
        *(kinds[kind] for kind in KINDS),
        _causes(Counter(difference.cause for difference in found.differences)),
        calls_column(verdict.calls),
        verdict.batches,
        max(verdict.orders, default=0),
        verdict.not_on_lru,
        verdict.changed,
        verdict.preempted,
        verdict.page_tables,
        verdict.duration_us,
    )


def calls_column(counts: Iterable[CallCount]) -> str:
    """How many counters agree in all of some exits, and which differ for what cause."""
    by_name: dict[str, set[str]] = {}
    for count in counts:
        by_name.setdefault(count.counter, set()).update({count.cause} - {""})
    if not by_name:
        return ""
    differ = [f"{name} ({', '.join(sorted(causes))})" for name, causes in by_name.items() if causes]
    agree = f"{len(by_name) - len(differ)} of {len(by_name)} agree"
    return f"{agree}, not {', '.join(differ)}" if differ else agree


def _causes(causes: Counter[str]) -> str:
    return ", ".join(f"{cause}: {count}" for cause, count in causes.most_common())
