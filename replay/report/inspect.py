# SPDX-License-Identifier: Apache-2.0
"""What a trace maps: kinds, folio orders, sharing, VMAs; all figures in pages of the trace's page size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Final

import polars as pl

from replay.report import notes
from replay.support.text import byte_size, counted
from replay.trace.frame import Trace
from replay.trace.kpageflags import KPF_ANON, KPF_SWAPBACKED, bit
from replay.trace.metadata import Metadata

MAPPED = ("page", "pmd", "hugetlb")


def classified(trace: Trace) -> pl.DataFrame:
    """The trace's rows with `type`: anon, shmem, file (RssAnon, RssShmem, RssFile), hugetlb, or the kind."""
    flags, kind = pl.col("kpageflags"), pl.col("kind").cast(pl.String)
    return trace.frame.with_columns(
        kind.alias("kind"),
        pl.when(~kind.is_in(["page", "pmd"]))
        .then(kind)
        .when(flags & bit(KPF_ANON) != 0)
        .then(pl.lit("anon"))
        .when(flags & bit(KPF_SWAPBACKED) != 0)
        .then(pl.lit("shmem"))
        .otherwise(pl.lit("file"))
        .alias("type"),
    )


def kinds(rows: pl.DataFrame) -> pl.DataFrame:
    """Pages, those in folios above order 0, and extents of each type and kind of mapping."""
    return (
        rows.group_by("type", "kind")
        .agg(
            pl.col("pages").cast(pl.UInt64).sum(),
            pl.col("pages").filter(pl.col("order") > 0).cast(pl.UInt64).sum().alias("large"),
            pl.len().alias("extents"),
        )
        .sort("pages", descending=True)
    )


def orders(rows: pl.DataFrame) -> pl.DataFrame:
    """Mapped pages by folio order, type and kind.

    `folios`: the folios that the pages belong to; `whole`: those that are mapped in full. A folio that
    several address spaces map counts in each.
    """
    mapped = rows.filter(pl.col("kind").is_in(MAPPED))
    small = (
        mapped.filter(pl.col("order") == 0)
        .group_by("order", "type", "kind")
        .agg(
            pl.col("pages").cast(pl.UInt64).sum().alias("folios"),
            pl.col("pages").cast(pl.UInt64).sum().alias("whole"),
            pl.col("pages").cast(pl.UInt64).sum(),
        )
    )
    large = (
        mapped.filter(pl.col("order") > 0)
        .group_by("mm", "folio", "order", "type", "kind")
        .agg((pl.col("pages") / pl.col("own")).sum().alias("distinct"), pl.col("pages").cast(pl.UInt64).sum())
        .group_by("order", "type", "kind")
        .agg(
            pl.len().cast(pl.UInt64).alias("folios"),
            (pl.col("distinct") + 0.5 > 2 ** pl.col("order").cast(pl.Int64))
            .sum()
            .cast(pl.UInt64)
            .alias("whole"),
            pl.col("pages").sum(),
        )
    )
    return pl.concat([small, large]).sort("type", "order", "kind")


def in_large_folios(rows: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Mapped pages, and how many of them are in folios above order 0: columns `by pages large share_pct`."""
    count = pl.col("pages").cast(pl.UInt64)
    keys = [pl.col(name) for name in by] or [pl.lit(0).alias("all")]
    return (
        rows.filter(pl.col("kind").is_in(MAPPED))
        .group_by(*keys, maintain_order=True)
        .agg(count.sum().alias("pages"), count.filter(pl.col("order") > 0).sum().alias("large"))
        .with_columns(share_pct=pl.col("large") / pl.col("pages") * 100)
        .select(*by, "pages", "large", "share_pct")
    )


TYPES: Final = {"anon": "anonymous", "file": "file", "shmem": "shmem", "hugetlb": "hugetlb"}
"""Types of mapped memory, as a sentence names them, in the order in which it does."""


def answer(trace: Trace, rows: pl.DataFrame) -> str:
    """How much of the mapped memory is in large folios: the question that is asked first."""
    page = trace.meta.page_size
    everything = in_large_folios(rows)
    if everything.is_empty():
        return "in large folios: nothing is mapped"
    pages, _, share = everything.row(0)
    shares = {name: part for name, _, _, part in in_large_folios(rows, ["type"]).iter_rows()}
    parts = [f"{word} {shares[name]:.1f} %" for name, word in TYPES.items() if name in shares]
    said = f" ({', '.join(parts)})" if parts else ""
    return f"in large folios: {share:.1f} % of {byte_size(pages * page)}{said}"


def processes(trace: Trace, rows: pl.DataFrame) -> pl.DataFrame:
    """One row per address space, the largest first.

    Columns `mm pid comm pages large`, `<type>_pages` and `<type>_large` of anon and file, `cmdline`.
    """
    count = pl.col("pages").cast(pl.UInt64)
    large = pl.col("order") > 0
    parts = {name: pl.col("type") == name for name in ("anon", "file")}
    found = (
        rows.filter(pl.col("kind").is_in(MAPPED))
        .group_by("mm", "pid", "comm")
        .agg(
            count.sum().alias("pages"),
            count.filter(large).sum().alias("large"),
            *(count.filter(which).sum().alias(f"{name}_pages") for name, which in parts.items()),
            *(count.filter(which & large).sum().alias(f"{name}_large") for name, which in parts.items()),
        )
        .with_columns(pl.col("comm").cast(pl.String))
        .sort(["pages", "mm"], descending=[True, False])
    )
    cmdlines = [trace.meta.address_spaces[mm].cmdline for mm in found["mm"]]
    return found.with_columns(pl.Series("cmdline", cmdlines, pl.String))


def sharing(rows: pl.DataFrame) -> pl.DataFrame:
    """Mapped pages by who maps them, per type."""
    others = pl.col("mapcount") > pl.col("own")
    twice = pl.col("own") > 1
    who = (
        pl.when(others & twice)
        .then(pl.lit("this several times, and others"))
        .when(others)
        .then(pl.lit("this and others"))
        .when(twice)
        .then(pl.lit("this several times"))
        .otherwise(pl.lit("this alone"))
    )
    return (
        rows.filter(pl.col("kind").is_in(MAPPED))
        .group_by("type", who.alias("mapped_by"))
        .agg(pl.col("pages").cast(pl.UInt64).sum())
        .sort("type", "pages", descending=[False, True])
    )


def vmas(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per VMA with pages: its size, mapped pages, extents and largest folio order."""
    return (
        rows.group_by("mm", "pid", "comm", "vma", maintain_order=True)
        .agg(
            pl.col("vma_start").first(),
            pl.col("vma_pages").first(),
            pl.col("vma_perms").first().cast(pl.String),
            pl.col("vma_name").first().cast(pl.String),
            pl.col("pages").filter(pl.col("kind").is_in(MAPPED)).cast(pl.UInt64).sum().alias("mapped"),
            pl.col("pages")
            .filter(pl.col("kind").is_in(MAPPED) & (pl.col("order") > 0))
            .cast(pl.UInt64)
            .sum()
            .alias("large"),
            pl.col("pages").filter(pl.col("kind") == "swap").cast(pl.UInt64).sum().alias("swapped"),
            pl.len().alias("extents"),
            pl.col("order").max().alias("largest_order"),
        )
        .with_columns(pl.col("comm").cast(pl.String))
    )


def header(trace: Trace, rows: pl.DataFrame) -> list[str]:
    """The answer first, then a few lines on where a trace comes from."""
    meta = trace.meta
    spaces = meta.address_spaces
    who = ", ".join(f"{space.comm} ({space.pid})" for space in spaces[:5])
    more = f" and {len(spaces) - 5} more" if len(spaces) > 5 else ""
    absent = f"{len(trace.left_out):,} of them without rows: " if trace.left_out else ""
    thp = meta.thp.get("enabled", "")
    return [
        answer(trace, rows),
        f"{trace.name}: {notes.spaces(len(spaces))}: {absent}{who}{more}",
        f"{len(trace.frame):,} extents, {trace.frame['pages'].cast(pl.UInt64).sum():,} pages of "
        f"{meta.page_size} bytes",
        f"Linux {meta.kernel_release or 'unknown'} {meta.architecture}, {meta.captured_at}, "
        f"mode {meta.mode} ({_mode(meta)}), "
        + ("not held" if meta.held == "none" else f"held by {meta.held}")
        + (f", THP {thp}" if thp else ""),
        f"PMD mappings {meta.pmd}, mapcounts {meta.mapcounts}, dirty PTEs {meta.dirty}, "
        f"{meta.changed_entries:,} entries changed while read",
    ]


def _mode(meta: Metadata) -> str:
    """What the mode of a capture means: when its address spaces were captured."""
    if meta.mode == "live":
        return "captured while running"
    execs = sum(space.ended_by == "exec" for space in meta.address_spaces)
    exits = counted(len(meta.address_spaces) - execs, "exit")
    return f"captured at {exits}" + (f" and {counted(execs, 'exec')}" if execs else "")


def as_json(trace: Trace, rows: pl.DataFrame) -> str:
    """Everything that `replay inspect` shows, as JSON. The metadata are as in the file."""
    document = {
        "trace": trace.name,
        "units": "pages of metadata.page_size bytes; vma_start is a page number",
        "metadata": dataclasses.asdict(trace.meta),
        "in_large_folios": {
            "all": in_large_folios(rows).to_dicts(),
            "by_type": in_large_folios(rows, ["type"]).to_dicts(),
        },
        "processes": processes(trace, rows).to_dicts(),
        "missing": list(trace.notes),
        "kinds": kinds(rows).to_dicts(),
        "orders": orders(rows).to_dicts(),
        "sharing": sharing(rows).to_dicts(),
        "vmas": vmas(rows).to_dicts(),
    }
    return json.dumps(document, indent=1)
