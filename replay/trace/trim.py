# SPDX-License-Identifier: Apache-2.0
"""A part of a trace, as a trace: some processes, VMAs or addresses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from replay.errors import TraceError, UsageError
from replay.trace import totals
from replay.trace.frame import SCHEMA, Trace
from replay.trace.metadata import FIGURES, UNCOUNTED, AddressSpace
from replay.trace.schema import ptes_per_table

HUGE_KINDS = ("pmd", "hugetlb")


def trim(
    trace: Trace,
    *,
    pids: Sequence[int] = (),
    mms: Sequence[int] = (),
    vmas: Sequence[str] = (),
    addresses: Sequence[tuple[int, int]] = (),
) -> Trace:
    """The rows that all the conditions given choose; each condition by any of its values.

    pids, mms: of address spaces. vmas: names, or what follows the last slash; `anon` for memory without a
    name. addresses: [start, end) in bytes; a huge mapping that one cuts is left in whole.

    Of a part of an address space, `own` counts the mappings in the part, the RSS figures are those of its
    rows, and `page_tables` is the number of last-level tables that its pages need: the other tables belong to
    the whole. `part` of the metadata says what was chosen. Raises `TraceError` if nothing is left.
    """
    page_size = trace.meta.page_size
    chosen = pl.lit(True)
    if pids:
        chosen &= pl.col("pid").is_in(list(pids))
    if mms:
        chosen &= pl.col("mm").is_in(list(mms))
    rows = trace.frame.filter(chosen)
    if vmas:
        name = pl.col("vma_name").cast(pl.String)
        names = ["" if wanted == "anon" else wanted for wanted in vmas]
        rows = rows.filter(name.is_in(names) | (name.str.replace("^.*/", "").is_in(names) & (name != "")))
    if addresses:
        rows = _within(rows, addresses, page_size)
    said = _said(pids, mms, vmas, addresses)
    if rows.is_empty():
        raise TraceError(
            f"nothing of '{trace.name}' is in the part asked for ({said}): 'replay inspect --json' lists all "
            "processes and VMAs"
        )
    whole = not vmas and not addresses
    if not whole:
        rows = _own_recounted(rows)
    numbers = rows["mm"].unique().sort()
    spaces = [trace.meta.address_spaces[mm] for mm in numbers]
    if whole:
        # those without a page are whole as well
        empty = set(range(len(trace.meta.address_spaces))) - set(trace.frame["mm"].unique())
        kept = {
            mm
            for mm in empty
            if (not pids or trace.meta.address_spaces[mm].pid in pids) and (not mms or mm in mms)
        }
        numbers = pl.Series("mm", sorted({*numbers, *kept}), pl.UInt32)
        spaces = [trace.meta.address_spaces[mm] for mm in numbers]
    else:
        spaces = [
            _part_of(space, rows.filter(pl.col("mm") == mm), page_size)
            for mm, space in zip(numbers, spaces, strict=True)
        ]
    places = pl.DataFrame({"mm": numbers, "new": range(len(numbers))}, schema_overrides={"mm": pl.UInt32})
    frame = (
        rows.join(places, on="mm", how="left", maintain_order="left")
        .with_columns(mm=pl.col("new"))
        .select(list(SCHEMA))
        .cast(SCHEMA)  # type: ignore[arg-type]
    )
    part = f"{said}, {trace.meta.part}" if trace.meta.part else said
    meta = dataclasses.replace(trace.meta, address_spaces=tuple(spaces), part=part)
    return dataclasses.replace(trace, frame=frame, meta=meta)


def parse_range(text: str) -> tuple[int, int]:
    """`START-END` in hexadecimal, as in /proc/PID/maps, in bytes. Raises `UsageError`."""
    match = re.fullmatch(r"(?:0x)?([0-9a-f]+)-(?:0x)?([0-9a-f]+)", text.strip().lower())
    if not match or int(match[1], 16) >= int(match[2], 16):
        raise UsageError(f"'{text}' is no range of addresses: give START-END as in /proc/PID/maps")
    return int(match[1], 16), int(match[2], 16)


def _said(
    pids: Sequence[int], mms: Sequence[int], vmas: Sequence[str], addresses: Sequence[tuple[int, int]]
) -> str:
    parts = [f"pid {', '.join(map(str, pids))}"] if pids else []
    parts += [f"mm {', '.join(map(str, mms))}"] if mms else []
    parts += [f"VMA {', '.join(vmas)}"] if vmas else []
    parts += [f"addresses {', '.join(f'{start:x}-{end:x}' for start, end in addresses)}"] if addresses else []
    return ", ".join(parts)


def _within(rows: pl.DataFrame, addresses: Sequence[tuple[int, int]], page_size: int) -> pl.DataFrame:
    """Rows in any of some address ranges, cut at their ends."""
    spans = _joined([(start // page_size, -(-end // page_size)) for start, end in addresses])
    kind = pl.col("kind").cast(pl.String)
    huge = kind.is_in(HUGE_KINDS)
    entries = np.where(
        rows["kind"].cast(pl.String) == "hugetlb",
        np.int64(1) << rows["order"].cast(pl.Int64).to_numpy(),
        ptes_per_table(page_size),
    )
    # of a huge mapping in several rows the whole mapping, by virtual address
    rows = rows.with_columns(pl.Series("begin", rows["vpn"].to_numpy() // entries * entries)).with_columns(
        begin=pl.when(huge).then(pl.col("begin")).otherwise(pl.col("vpn")),
        end=pl.when(huge)
        .then(pl.col("begin") + pl.Series(entries))
        .otherwise(pl.col("vpn") + pl.col("pages").cast(pl.Int64)),
    )
    parts = []
    for start, end in spans:
        met = rows.filter((pl.col("begin") < end) & (pl.col("end") > start))
        first = pl.when(huge).then(pl.col("vpn")).otherwise(pl.max_horizontal("vpn", pl.lit(start)))
        last = (
            pl.when(huge)
            .then(pl.col("vpn") + pl.col("pages").cast(pl.Int64))
            .otherwise(pl.min_horizontal("end", pl.lit(end)))
        )
        # a marker is no page: it has the same word wherever it is
        moved = pl.when(kind == "marker").then(0).otherwise(pl.col("first") - pl.col("vpn"))
        parts.append(
            met.with_columns(first=first, last=last).with_columns(
                pages=pl.col("last") - pl.col("first"),
                pfn=pl.col("pfn") + moved,
                folio=pl.when(pl.col("order") > 0).then(pl.col("folio")).otherwise(pl.col("folio") + moved),
                vpn=pl.col("first"),
            )
        )
    together = pl.concat(parts).select(list(SCHEMA)).cast(SCHEMA)  # type: ignore[arg-type]
    return together.unique(["mm", "vpn"], keep="first").sort("mm", "vpn")


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _own_recounted(rows: pl.DataFrame) -> pl.DataFrame:
    """`own` of pages that were mapped several times: how often the part maps them."""
    repeated = rows.filter(pl.col("own") > 1)
    if repeated.is_empty():
        return rows
    offsets = pl.int_ranges(pl.lit(0), pl.col("pages").cast(pl.Int64))
    pages = repeated.with_columns(at=offsets).explode("at")
    moved = pages.with_columns(
        vpn=pl.col("vpn") + pl.col("at"),
        pfn=pl.col("pfn") + pl.col("at"),
        folio=pl.when(pl.col("order") > 0).then(pl.col("folio")).otherwise(pl.col("folio") + pl.col("at")),
        pages=pl.lit(1),
    ).with_columns(own=pl.len().over("mm", "pfn"))
    single = moved.select(list(SCHEMA)).cast(SCHEMA)  # type: ignore[arg-type]
    return pl.concat([rows.filter(pl.col("own") <= 1), single]).sort("mm", "vpn")


def _part_of(space: AddressSpace, rows: pl.DataFrame, page_size: int) -> AddressSpace:
    """What is known of a part of an address space: figures of its rows."""
    found = dict(zip(totals.TYPES, totals.sums(rows.with_columns(mm=pl.lit(0)), 1)[0].tolist(), strict=True))
    small = rows.filter(pl.col("kind").cast(pl.String) != "hugetlb")
    tables = small.select((pl.col("vpn") // ptes_per_table(page_size)).n_unique()).item()
    uncounted = {name: found[name] for name in UNCOUNTED if found[name]}
    return dataclasses.replace(
        space,
        page_tables=min(int(tables), space.page_tables),
        unaccounted=None if space.unaccounted is None else uncounted,
        **{name: found[name] for name in FIGURES},
    )
