"""What `replay validate` found, as tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from replay.validate.run import Result
from replay.validate.watch import Verdict


def rows(verdicts: Sequence[Verdict]) -> pl.DataFrame:
    """One row per address space: folios predicted and observed, the matching prefix, differences by cause."""
    return pl.DataFrame(
        [
            {
                "workload": verdict.workload,
                "pid": verdict.pid,
                "comm": verdict.comm,
                "predicted": verdict.comparison.predicted,
                "observed": verdict.comparison.observed,
                "prefix": verdict.comparison.prefix,
                "exact": verdict.comparison.exact,
                "differences": causes(verdict),
            }
            for verdict in verdicts
        ],
        schema={
            "workload": pl.String,
            "pid": pl.UInt32,
            "comm": pl.String,
            "predicted": pl.UInt64,
            "observed": pl.UInt64,
            "prefix": pl.UInt64,
            "exact": pl.Boolean,
            "differences": pl.String,
        },
    )


def causes(verdict: Verdict) -> str:
    """Differences of one address space: how many of what, and why."""
    counted = Counter((one.what, one.cause) for one in verdict.comparison.differences)
    return ", ".join(f"{count:,} {what}: {cause}" for (what, cause), count in counted.items())


def by_workload(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of each workload, summed up; `exact` are address spaces with the very sequence predicted."""
    return table.group_by("workload", maintain_order=True).agg(
        pl.len().alias("exits"),
        pl.col("exact").sum(),
        pl.col("predicted", "observed", "prefix").sum(),
        pl.col("differences").filter(pl.col("differences") != "").unique(maintain_order=True).str.join("; "),
    )


def conclusion(result: Result) -> str:
    """One line: how many exits went as predicted."""
    exact = sum(verdict.comparison.exact for verdict in result.verdicts)
    explained = sum(
        verdict.comparison.explained and not verdict.comparison.exact for verdict in result.verdicts
    )
    unexplained = len(result.verdicts) - exact - explained
    return (
        f"{exact:,} of {len(result.verdicts):,} exits freed the predicted folios in the predicted order, "
        f"{explained:,} differ for a known cause, {unexplained:,} without one"
    )


def as_json(result: Result) -> str:
    """Every verdict with every difference."""
    return json.dumps(
        {
            "agrees": result.agrees,
            "status": result.status,
            "missed": {cause.value: count for cause, count in result.missed.items()},
            "notes": result.notes,
            "exits": [_verdict(verdict) for verdict in result.verdicts],
        },
        indent=1,
    )


def _verdict(verdict: Verdict) -> dict[str, Any]:
    comparison = verdict.comparison
    return {
        "workload": verdict.workload,
        "pid": verdict.pid,
        "comm": verdict.comm,
        "folios_by_order": verdict.orders,
        "page_tables": verdict.page_tables,
        "predicted": comparison.predicted,
        "observed": comparison.observed,
        "prefix": comparison.prefix,
        "exact": comparison.exact,
        "explained": comparison.explained,
        "not_on_lru": verdict.not_on_lru,
        "changed_folios": verdict.changed,
        "free_batches": verdict.batches,
        "preempted": verdict.preempted,
        "duration_us": verdict.duration_us,
        "differences": [
            {
                "what": one.what,
                "pfn": one.pfn,
                "order": one.order,
                "position": one.position,
                "cause": one.cause,
                "evidence": one.evidence,
            }
            for one in comparison.differences
        ],
    }
