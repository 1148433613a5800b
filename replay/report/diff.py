# SPDX-License-Identifier: Apache-2.0
"""What changed from one trace or result to another: by counter, by kind of page, in memory."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replay.errors import ReplayError, UsageError
from replay.report import compare
from replay.report.inspect import classified
from replay.teardown import replayer
from replay.teardown.counters import CHECKS, COUNTERS
from replay.trace.file import read
from replay.trace.frame import Trace
from replay.trace.metadata import Metadata

MEMORY: Final = ("rss", "rss_anon", "rss_file", "rss_shmem", "swap")
"""Figures of memory that a threshold can name beside the counters. Only traces have them."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison: totals per algorithm, and the trace if it is one."""

    name: str
    totals: pl.DataFrame
    trace: Trace | None

    @property
    def spaces(self) -> int:
        """Address spaces that were summed up."""
        return int(self.totals.select(pl.col(compare.SPACES).max()).item() or 0)


def load(path: Path, algorithms: Sequence[str] | None = None, page_tables: str | None = None) -> Side:
    """Read one side: a trace, which is replayed, or a result of `replay run` (.csv, .json, .parquet).

    Raises `ReplayError` if the file is neither, and whatever reading a trace raises.
    """
    is_text = path.suffix.lower() in (".csv", ".json")
    if not is_text and path.is_file() and os.access(path, os.R_OK) and not _is_parquet(path):
        raise ReplayError(
            f"'{path}' is not a Parquet file: give a trace made by 'replay capture', or a file of 'replay "
            "run -o'"
        )
    if not is_text and (_is_trace(path) or not _is_parquet(path)):
        trace = read(path)
        names = None if algorithms is None else list(algorithms)
        results = replayer.run_checked(trace, names, page_tables=page_tables).drop(list(CHECKS))
        return Side(trace.name, compare.total(results), trace)
    frame = _result(path)
    if algorithms is not None:
        frame = frame.filter(pl.col("algorithm").is_in(list(algorithms)))
    return Side(path.stem, compare.total(frame), None)


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def _is_trace(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"format_version" in (pq.read_metadata(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _result(path: Path) -> pl.DataFrame:
    wrong, again = f"'{path}' is no result of 'replay run'", "make one with 'replay run -o'"
    try:
        readers: dict[str, Callable[[Path], pl.DataFrame]] = {".csv": pl.read_csv, ".json": pl.read_json}
        frame = readers.get(path.suffix.lower(), pl.read_parquet)(path)
    except FileNotFoundError:
        raise ReplayError(f"no such file: {path}") from None
    except (pl.exceptions.PolarsError, OSError, ValueError):
        raise ReplayError(f"{wrong}: it cannot be read as {path.suffix[1:] or 'parquet'}: {again}") from None
    missing = [name for name in ("algorithm", *COUNTERS) if name not in frame.columns]
    if missing:
        raise ReplayError(f"{wrong}: it has no column '{missing[0]}': {again}")
    if "what_if" in frame.columns:
        raise ReplayError(f"'{path}' compares folio orders ('run --what-if'): compare results of one order")
    return frame.with_columns(pl.col(list(COUNTERS)).cast(pl.Int64))


def counters(before: Side, after: Side) -> pl.DataFrame:
    """Columns `algorithm counter before after change change_pct`, the largest relative change first.

    Algorithms of both sides; `change_pct` is empty where `before` is 0. Raises `ReplayError` if they have no
    algorithm in common.
    """

    def long(side: Side) -> pl.DataFrame:
        return side.totals.unpivot(
            list(COUNTERS), index="algorithm", variable_name="counter", value_name="count"
        )

    joined = long(before).join(
        long(after), on=["algorithm", "counter"], suffix="_after", maintain_order="left"
    )
    if joined.is_empty():
        raise ReplayError(
            f"'{before.name}' and '{after.name}' have no algorithm in common: make the results again, with "
            "the same -a"
        )
    old, new = pl.col("count"), pl.col("count_after")
    return joined.select(
        "algorithm",
        "counter",
        old.alias("before"),
        new.alias("after"),
        (new - old).alias("change"),
        pl.when(old == new).then(0.0).when(old > 0).then((new - old) / old * 100).alias("change_pct"),
    ).sort(
        pl.col("change_pct").abs().fill_null(float("inf")),
        pl.col("change").abs(),
        descending=True,
        maintain_order=True,
    )


def grouped(changes: pl.DataFrame) -> pl.DataFrame:
    """`counters` without those that did not change. Algorithms that changed alike share a row."""
    alike = ["counter", "before", "after", "change", "change_pct"]
    return (
        changes.filter(pl.col("change") != 0)
        .group_by(alike, maintain_order=True)
        .agg(pl.col("algorithm").str.join(", ").alias("algorithms"))
        .select("counter", "algorithms", "before", "after", "change", "change_pct")
    )


KIND: Final = "kind_of_page"


def _by_kind(trace: Trace) -> pl.DataFrame:
    """Columns `kind_of_page pages large extents`; large: in folios of order > 0."""
    rows = classified(trace)
    name = pl.col("vma_name").cast(pl.String)
    count = pl.col("pages").cast(pl.Int64)
    kind = (
        pl.when(pl.col("type").is_in(["special", "swap", "hugetlb"]))
        .then(pl.col("type"))
        .when(pl.col("type") == "file")
        .then(pl.lit("file"))
        .when(pl.col("type") == "shmem")
        .then(pl.lit("shared memory"))
        .when(name == "[heap]")
        .then(pl.lit("heap"))
        .when(name.str.starts_with("[stack"))
        .then(pl.lit("stack"))
        .when((name == "") | name.str.starts_with("["))
        .then(pl.lit("anonymous"))
        .otherwise(pl.lit("copies of file pages"))
    )
    return rows.group_by(kind.alias(KIND)).agg(
        count.sum().alias("pages"),
        count.filter(pl.col("order") > 0).sum().alias("large"),
        pl.len().cast(pl.Int64).alias("extents"),
    )


def kinds(before: Trace, after: Trace) -> pl.DataFrame:
    """Columns `kind_of_page before after change large_before large_after`, pages; largest change first."""
    joined = _by_kind(before).join(_by_kind(after), on=KIND, how="full", coalesce=True, suffix="_after")
    filled = joined.with_columns(pl.exclude(KIND).fill_null(0))
    return filled.select(
        KIND,
        pl.col("pages").alias("before"),
        pl.col("pages_after").alias("after"),
        (pl.col("pages_after") - pl.col("pages")).alias("change"),
        pl.col("large").alias("large_before"),
        pl.col("large_after"),
    ).sort(pl.col("change").abs(), "before", KIND, descending=[True, True, False])


def memory(meta: Metadata) -> dict[str, int]:
    """The figures of `MEMORY` in bytes, summed over all address spaces."""

    def total(name: str) -> int:
        return sum(getattr(space, name) for space in meta.address_spaces) * meta.page_size

    parts = {name: total(name) for name in MEMORY[1:]}
    return {"rss": parts["rss_anon"] + parts["rss_file"] + parts["rss_shmem"]} | parts


def same_memory(before: Side, after: Side) -> bool:
    """Whether two sides have the same memory; results say nothing about it, so that theirs is the same."""
    if before.trace is None or after.trace is None:
        return True
    pages = kinds(before.trace, after.trace)
    return (
        before.trace.meta.page_size == after.trace.meta.page_size
        and memory(before.trace.meta) == memory(after.trace.meta)
        and pages["before"].equals(pages["after"])
        and pages["large_before"].equals(pages["large_after"])
    )


# ------------------------------------------------------------------ thresholds


@dataclasses.dataclass(frozen=True)
class Threshold:
    """How much a figure may grow: in percent of the first side, in counts, or in bytes of memory."""

    name: str
    limit: float
    percent: bool

    def __str__(self) -> str:
        return f"{self.limit:,.15g}{' %' if self.percent else ''}"


def parse_threshold(text: str) -> Threshold:
    """`rmap_calls=5%` or `locks=1000`. Raises `UsageError`."""
    match = re.fullmatch(r"([a-z_]+)=(\d+(?:\.\d+)?)(%?)", text.strip())
    if not match:
        raise UsageError(
            f"'{text}' is no threshold: give COUNTER=PERCENT% or COUNTER=COUNT, as in 'rmap_calls=5%' or "
            "'locks=1000'; figures of memory are in bytes, as in 'rss=4194304'"
        )
    if match[1] not in (*COUNTERS, *MEMORY):
        raise UsageError(
            f"no counter '{match[1]}': choose one of 'replay algorithms', or of {', '.join(MEMORY)}"
        )
    return Threshold(match[1], float(match[2]), bool(match[3]))


def exceeded(thresholds: Sequence[Threshold], changes: pl.DataFrame, before: Side, after: Side) -> list[str]:
    """One line for each threshold that is exceeded; a figure that shrinks exceeds none.

    changes: of `counters`. Raises `UsageError` if a threshold names a figure of memory and one side is not a
    trace.
    """
    lines = []
    for threshold in thresholds:
        unit = ""
        if threshold.name in MEMORY:
            unit = " bytes"
            if before.trace is None or after.trace is None:
                raise UsageError(f"a result has no {threshold.name}: compare the traces instead")
            old, new = (memory(side.trace.meta)[threshold.name] for side in (before, after) if side.trace)
            figures = [("", old, new)]
        else:
            rows = changes.filter(pl.col("counter") == threshold.name)
            figures = [
                (f" of {algorithm}", old, new)
                for algorithm, old, new in rows.select("algorithm", "before", "after").iter_rows()
            ]
        lines += [
            f"{threshold.name}{of} grew by {_growth(threshold, old, new, unit)}; the limit is {threshold}"
            for of, old, new in figures
            if _grew(threshold, old, new)
        ]
    return lines


def _growth(threshold: Threshold, old: int, new: int, unit: str) -> str:
    """By how much a figure grew, also in percent where the limit is in percent."""
    share = f" ({compare.percent(new, old)} %)" if threshold.percent and old else ""
    return f"{new - old:,}{unit}{share}"


def _grew(threshold: Threshold, old: int, new: int) -> bool:
    growth = new - old
    return growth > (threshold.limit / 100 * old if threshold.percent else threshold.limit)
