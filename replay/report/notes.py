# SPDX-License-Identifier: Apache-2.0
"""Notes beside the figures: what a trace does not know for certain, and what is wrong with an algorithm."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from replay.support.text import counted
from replay.teardown.algorithms import NEWEST_TRACED, UNTRACED, of_release, release_numbers
from replay.teardown.counters import CHECKS
from replay.trace.kpageflags import KPF_ANON, bit
from replay.trace.metadata import FIGURES, AddressSpace, Metadata

if TYPE_CHECKING:
    import polars as pl

    from replay.trace.frame import Trace

BUGS = {"rmap_missed": "pages torn down whose rmap is never removed"} | CHECKS


def limits(meta: Metadata) -> list[str]:
    """What a trace does not know for certain."""
    lines = []
    if meta.what_if:
        lines.append(f"note: a what-if, not memory as captured: {meta.what_if}")
    if meta.part:
        lines.append(f"note: a part of a trace: {_shortened(meta.part)}")
    if meta.pmd == "unknown":
        lines.append("note: it is a guess which huge pages a PMD maps, because smaps gives only their sum")
    if meta.mapcounts == "average":
        lines.append(
            "note: mapcounts are averages for large folios that other address spaces map too "
            "(CONFIG_NO_PAGE_MAPCOUNT): their counts are approximate"
        )
    if meta.changed_entries:
        lines.append(f"note: {meta.changed_entries:,} entries changed while they were read")
    lines += [_shared(space) for space in meta.address_spaces if space.shared_with]
    return lines


def _shortened(part: str) -> str:
    """What a trace is a part of, with a count in place of a long list of numbers."""

    def told(match: re.Match[str]) -> str:
        count = match[2].count(",") + 1
        what = {"mm": "address spaces", "pid": "processes"}[match[1]]
        return match[0] if count <= MOST_NAMED else f"{count:,} of its {what}"

    return re.sub(r"\b(mm|pid) (\d+(?:, \d+)*)", told, part)


def _shared(space: AddressSpace) -> str:
    """A note on processes that share an address space. It is torn down once, by the last of them."""
    count = len(space.shared_with)
    named = ", ".join(map(str, space.shared_with[:MOST_NAMED]))
    more = f" and {count - MOST_NAMED:,} others" if count > MOST_NAMED else ""
    return (
        f"note: {count:,} more process{'es' if count > 1 else ''} share{'' if count > 1 else 's'} "
        f"the address space of {space.comm} ({space.pid}), which is counted once: {named}{more}"
    )


MOST_NAMED = 10
"""How many processes or address spaces one note names."""


def noticed(trace: Trace, several: bool = False) -> list[str]:
    """All notes on a trace: what it lacks, what it does not know, and what capture noticed.

    several: put the trace's name before each line.
    """
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
    """A note on entries that are neither memory nor swap."""
    count = sum((space.unaccounted or {}).get("marker", 0) for space in meta.address_spaces)
    if not count:
        return []
    return [
        f"note: {count:,} entries are markers, which are neither memory nor swap (guard regions, "
        "userfaultfd, migration, hardware poison)"
    ]


def differing(meta: Metadata) -> list[str]:
    """A note on figures of /proc/PID/status that differ from the captured rows."""
    parts = []
    for name, figure in FIGURES.items():
        found = [more for space in meta.address_spaces if (more := (space.unaccounted or {}).get(name, 0))]
        if found:
            parts.append(f"{figure} of {spaces(len(found))} by up to {counted(max(map(abs, found)), 'page')}")
    if not parts:
        return []
    return [
        f"note: captured pages differ from /proc/PID/status: {', '.join(parts)}. The replay counts the "
        "captured pages; proc(5) calls the figures of /proc/PID/status inaccurate"
    ]


def bugs(results: pl.DataFrame) -> list[str]:
    """What algorithms do wrong. These are bugs of the algorithms, not of the replay.

    results: a frame of `replayer.run_checked`.
    """
    return [
        f"bug of {row['algorithm']}: {row[name]:,} {what} ({name}), "
        f"{row['trace']} address space {row['mm']}, {row['comm']} ({row['pid']})"
        for name, what in BUGS.items()
        for row in results.filter(results[name] != 0).iter_rows(named=True)
    ]


def title(block: pl.DataFrame, traces: Sequence[str]) -> str:
    """The title of one comparison: an address space, a trace, or all traces."""
    row = block.row(0, named=True)
    if "mm" in row:
        return f"{row['trace']}: address space {row['mm']}, {row['comm']} ({row['pid']})"
    names = [row["trace"]] if "trace" in row else list(traces)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    pmds = counted(row["pmd_mappings"], "PMD mapping")
    return f"{', '.join(names[:3])}{more}: {spaces(row['address_spaces'])}, {row['ptes']:,} PTEs, {pmds}"


def spaces(count: int) -> str:
    """`1 address space`, `7 address spaces`."""
    return counted(count, "address space")


def running(metas: Sequence[Metadata]) -> dict[str, str]:
    """The algorithms that the traces' kernels probably run -> the releases of these kernels."""
    found: dict[str, set[str]] = {}
    for meta in metas:
        algorithm = of_release(meta.kernel_release)
        if algorithm is not None:
            found.setdefault(algorithm.name, set()).add(meta.kernel_release)
    return {name: ", ".join(sorted(releases)) for name, releases in found.items()}


def kernels(metas: Sequence[Metadata], shown: Collection[str]) -> list[str]:
    """Notes on which rows belong to the traces' kernels, and on kernels that were not traced."""
    lines = [
        f"* The trace was taken on Linux {releases}, which by its release number runs {name}; a distribution "
        "may have changed that"
        for name, releases in running(metas).items()
        if name in shown
    ]
    untraced = {meta.kernel_release for meta in metas if release_numbers(meta.kernel_release) in UNTRACED}
    if untraced:
        lines.append(
            f"note: nobody traced Linux {', '.join(sorted(untraced))}: the note of mainline in "
            "'replay algorithms' says what is known of it"
        )
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
    """Notes on algorithms that count alike in every counter."""
    from replay.report.compare import equal

    return [
        f"note: {', '.join(names[:-1])} and {names[-1]} count alike in every counter"
        for names in equal(results)
    ]


SHARED_COLUMNS = ("mm", "pfn", "pages", "kind", "kpageflags", "mapcount", "own")


def shared_anon(trace: Trace, frames: Iterable[pl.DataFrame] | None = None) -> list[str]:
    """A note if address spaces of one live trace share anonymous pages, which none of their exits frees.

    frames: the rows of the trace in parts, with at least the columns `SHARED_COLUMNS`; its frame if None.
    """
    import polars as pl

    if trace.meta.mode != "live" or len(trace.meta.address_spaces) < 2:
        return []
    shared = (
        frame.filter(
            pl.col("kind").cast(pl.String).is_in(["page", "pmd"])
            & (pl.col("kpageflags") & bit(KPF_ANON) != 0)
            & (pl.col("mapcount") > pl.col("own"))
        ).select("mm", "pfn", end=pl.col("pfn") + pl.col("pages").cast(pl.Int64))
        for frame in (frames or [trace.frame])
    )
    rows = pl.concat(shared).unique().sort("pfn", "mm")
    previous = rows.select(mm=pl.col("mm").shift(1), end=pl.col("end").shift(1).cum_max())
    if not ((rows["pfn"] < previous["end"]) & (rows["mm"] != previous["mm"])).any():
        return []
    return [
        f"note: address spaces of '{trace.name}' share anonymous pages. Each is torn down as if the others "
        "stayed, so none of them frees these pages. --together tears them down one after the other"
    ]
