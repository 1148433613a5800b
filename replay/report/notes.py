# SPDX-License-Identifier: Apache-2.0
"""Lines for people beside the data: what is not certain in a trace, what is wrong with an algorithm."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from replay.teardown.algorithms import NEWEST_TRACED, of_release, release_numbers
from replay.teardown.counters import CHECKS
from replay.trace.kpageflags import KPF_ANON, bit
from replay.trace.metadata import FIGURES, AddressSpace, Metadata

if TYPE_CHECKING:
    import polars as pl

    from replay.trace.frame import Trace

BUGS = {"rmap_missed": "pages torn down whose rmap is never removed"} | CHECKS


def limits(meta: Metadata) -> list[str]:
    """What in a trace is not known for certain."""
    lines = []
    if meta.what_if:
        lines.append(f"note: a what-if, not memory as captured: {meta.what_if}")
    if meta.part:
        lines.append(f"note: a part of a trace: {meta.part}")
    if meta.pmd == "unknown":
        lines.append("note: which huge pages are mapped by a PMD is a guess: smaps only gives their sum")
    if meta.mapcounts == "average":
        lines.append(
            "note: mapcounts are averages for large folios that other address spaces map too "
            "(CONFIG_NO_PAGE_MAPCOUNT): their counts are approximate"
        )
    if meta.changed_entries:
        lines.append(f"note: {meta.changed_entries:,} entries changed while they were read")
    lines += [_shared(space) for space in meta.address_spaces if space.shared_with]
    return lines


def _shared(space: AddressSpace) -> str:
    """Which other processes use an address space, which is torn down once, by the last of them."""
    count = len(space.shared_with)
    named = ", ".join(map(str, space.shared_with[:MOST_NAMED]))
    more = f" and {count - MOST_NAMED:,} others" if count > MOST_NAMED else ""
    return (
        f"note: {count:,} more process{'es' if count > 1 else ''} share{'' if count > 1 else 's'} "
        f"the address space of {space.comm} ({space.pid}), which is counted once: {named}{more}"
    )


MOST_NAMED = 10
"""Processes that one note names."""


def noticed(trace: Trace, several: bool = False) -> list[str]:
    """What is missing of a trace, not certain, or was noticed by capture; several: with the trace's name."""
    meta = trace.meta
    lines = [*(f"note: {note}" for note in trace.notes), *limits(meta), *differing(meta), *markers(meta)]
    longest = max((space.held_ms for space in meta.address_spaces), default=0)
    if longest:
        lines.append(
            f"note: {'each process was' if len(meta.address_spaces) > 1 else 'the process was'} held for "
            f"{longest:,.1f} ms{' at most' if len(meta.address_spaces) > 1 else ''} while it was read"
        )
    return [f"{trace.name}: {line}" for line in lines] if several else lines


def markers(meta: Metadata) -> list[str]:
    """Entries that stand for neither memory nor swap."""
    count = sum((space.unaccounted or {}).get("marker", 0) for space in meta.address_spaces)
    if not count:
        return []
    return [
        f"note: {count:,} entries are markers, neither memory nor swap (guard regions, userfaultfd, "
        "migration, hardware poison)"
    ]


def differing(meta: Metadata) -> list[str]:
    """The figures of /proc/PID/status that capture saw differ from the rows."""
    parts = []
    for name, figure in FIGURES.items():
        found = [more for space in meta.address_spaces if (more := (space.unaccounted or {}).get(name, 0))]
        if found:
            parts.append(f"{figure} of {spaces(len(found))} by up to {max(map(abs, found)):,} pages")
    return [f"note: captured pages differ from /proc/PID/status: {', '.join(parts)}"] if parts else []


def bugs(results: pl.DataFrame) -> list[str]:
    """What algorithms do wrong, from a frame of `replayer.run_checked`: bugs of theirs, not of the replay."""
    return [
        f"bug of {row['algorithm']}: {row[name]:,} {what} ({name}), "
        f"{row['trace']} address space {row['mm']}, {row['comm']} ({row['pid']})"
        for name, what in BUGS.items()
        for row in results.filter(results[name] != 0).iter_rows(named=True)
    ]


def title(block: pl.DataFrame, traces: Sequence[str]) -> str:
    """What a block of the comparison stands for: an address space, a trace or all traces, given by name."""
    row = block.row(0, named=True)
    if "mm" in row:
        return f"{row['trace']}: address space {row['mm']}, {row['comm']} ({row['pid']})"
    names = [row["trace"]] if "trace" in row else list(traces)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    pmds = f"{row['pmd_mappings']:,} PMD mapping{'' if row['pmd_mappings'] == 1 else 's'}"
    return f"{', '.join(names[:3])}{more}: {spaces(row['address_spaces'])}, {row['ptes']:,} PTEs, {pmds}"


def spaces(count: int) -> str:
    """So many address spaces."""
    return f"{count:,} address space{'' if count == 1 else 's'}"


def running(metas: Sequence[Metadata]) -> dict[str, str]:
    """What the kernels of traces probably do: algorithm -> their releases, in words."""
    found: dict[str, set[str]] = {}
    for meta in metas:
        algorithm = of_release(meta.kernel_release)
        if algorithm is not None:
            found.setdefault(algorithm.name, set()).add(meta.kernel_release)
    return {name: ", ".join(sorted(releases)) for name, releases in found.items()}


def kernels(metas: Sequence[Metadata], shown: Collection[str]) -> list[str]:
    """Which rows are those of the traces' kernels, and which kernel is newer than any that was traced."""
    lines = [
        f"* {name}: the kernel of the trace, Linux {releases}, by its release; distributions "
        "carry changes to older releases, so it may do more"
        for name, releases in running(metas).items()
        if name in shown
    ]
    newest = ".".join(map(str, NEWEST_TRACED))
    newer = {
        meta.kernel_release
        for meta in metas
        if (numbers := release_numbers(meta.kernel_release)) is not None and numbers > NEWEST_TRACED
    }
    if newer:
        lines.append(
            f"note: Linux {', '.join(sorted(newer))} is newer than any kernel that was traced (v{newest}): "
            "'replay validate' tells whether it still does the same"
        )
    return lines


def alike(results: pl.DataFrame) -> list[str]:
    """Which algorithms count alike in everything here."""
    from replay.report.compare import equal

    return [
        f"note: {', '.join(names[:-1])} and {names[-1]} count alike in every counter"
        for names in equal(results)
    ]


def shared_anon(trace: Trace) -> list[str]:
    """That address spaces of one live trace share anonymous pages, which no exit here frees."""
    import polars as pl

    if trace.meta.mode != "live" or len(trace.meta.address_spaces) < 2:
        return []
    rows = (
        trace.frame.lazy()
        .filter(
            pl.col("kind").cast(pl.String).is_in(["page", "pmd"])
            & (pl.col("kpageflags") & bit(KPF_ANON) != 0)
            & (pl.col("mapcount") > pl.col("own"))
        )
        .select("mm", "pfn", end=pl.col("pfn") + pl.col("pages").cast(pl.Int64))
        .unique()
        .sort("pfn", "mm")
        .collect()
    )
    previous = rows.select(mm=pl.col("mm").shift(1), end=pl.col("end").shift(1).cum_max())
    if not ((rows["pfn"] < previous["end"]) & (rows["mm"] != previous["mm"])).any():
        return []
    return [
        f"note: address spaces of {trace.name} share anonymous pages: each is torn down as if the others "
        "stayed, so their sum frees none of these pages; --together tears them down one after the other"
    ]
