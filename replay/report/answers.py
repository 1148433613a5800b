# SPDX-License-Identifier: Apache-2.0
"""The answer in a few sentences: what the algorithms save, and what larger folios would save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from replay.report import folio_orders, inspect, notes
from replay.report.compare import percent
from replay.teardown.algorithms import BASELINE
from replay.trace.frame import Trace

NEWEST: Final = "mainline"
"""The algorithm that sentences about what-ifs are about."""
SUBJECTS: Final = {NEWEST: "Mainline", "v2": "The series (v2)"}
"""Algorithms that the sentences compare with the baseline, and how they name them."""


def sentences(traces: Sequence[Trace], frame: pl.DataFrame) -> list[str]:
    """The sentences that stand at the top of a report.

    frame: totals of `folio_orders.compared`, with or without what-ifs.
    """
    captured = {str(row["algorithm"]): row for row in _rows(frame, folio_orders.CAPTURED)}
    base = captured[BASELINE]
    count = sum(len(trace.meta.address_spaces) for trace in traces)
    rss = sum(folio_orders.resident(trace) * trace.meta.page_size for trace in traces)
    rows = pl.concat([inspect.classified(trace).select("kind", "pages", "order") for trace in traces])
    share = inspect.in_large_folios(rows)["share_pct"].to_list() or [0.0]
    what = "this address space" if count == 1 else f"these {notes.spaces(count)}"
    said = [
        f"Tearing down {what} ({folio_orders.size(rss)} resident, {share[0]:.1f} % in large folios) takes "
        f"the baseline {base['rmap_calls']:,} rmap removals, {base['atomics']:,} atomic operations and "
        f"{base['locks']:,} lock acquisitions."
    ]
    said += [
        f"{subject} {_changes(captured[name], base)}."
        for name, subject in SUBJECTS.items()
        if name in captured
    ]
    best = _best(frame)
    if best is not None:
        said.append(best)
    return said


def _rows(frame: pl.DataFrame, what: str) -> list[dict[str, int]]:
    return frame.filter(pl.col("what_if") == what).to_dicts()


def _changes(row: dict[str, int], base: dict[str, int]) -> str:
    words = {"rmap_calls": "rmap removals", "atomics": "atomics", "locks": "locks"}
    return "makes " + ", ".join(f"{_change(row[name], base[name])} {word}" for name, word in words.items())


def _change(count: int, base: int) -> str:
    if count == base:
        return "as many"
    if not base:
        return f"{count:,}"
    return f"{percent(count, base)[1:]} % {'more' if count > base else 'fewer'}"


def _best(frame: pl.DataFrame) -> str | None:
    """What larger folios save under the newest algorithm, and how much memory they take."""
    name = NEWEST if NEWEST in frame["algorithm"].to_list() else BASELINE
    rows = frame.filter((pl.col("algorithm") == name) & (pl.col("order").fill_null(0) > 0))
    if rows.is_empty():
        return None
    captured = next(row for row in _rows(frame, folio_orders.CAPTURED) if row["algorithm"] == name)
    said = []
    for row in rows.sort("order").iter_rows(named=True):
        if row["order"] in (4, rows["order"].max()):
            change = _change(row["rmap_calls"], captured["rmap_calls"])
            memory = _memory(row["pages_added"], captured["resident_pages"])
            said.append(f"order {row['order']} makes {change} rmap removals and takes {memory}.")
    sentences = " ".join([said[0], *(text.capitalize() for text in said[1:])])
    return f"What-if, compared with {name} on the memory as captured: {sentences}"


def _memory(added: int, resident: int) -> str:
    """How much memory a what-if takes, in pages of the memory as captured."""
    if not added or not resident:
        return "no more memory"
    return f"{percent(resident + added, resident)[1:]} % {'more' if added > 0 else 'less'} memory"
