"""Lines for people beside the data: what is not certain in a trace, what is wrong with an algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replay.teardown.counters import CHECKS
from replay.trace.metadata import FIGURES, Metadata

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
            "note: mapcounts are averages (CONFIG_NO_PAGE_MAPCOUNT): large folios' counts are approximate"
        )
    if meta.changed_entries:
        lines.append(f"note: {meta.changed_entries:,} entries changed while they were read")
    return lines


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


def title(block: pl.DataFrame, traces: Sequence[Trace]) -> str:
    """What a block of the comparison stands for: an address space, a trace or all traces."""
    row = block.row(0, named=True)
    if "mm" in row:
        return f"{row['trace']}: address space {row['mm']}, {row['comm']} ({row['pid']})"
    names = [row["trace"]] if "trace" in row else [trace.name for trace in traces]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}: {spaces(row['address_spaces'])}, {row['ptes']:,} PTEs"


def spaces(count: int) -> str:
    """So many address spaces."""
    return f"{count:,} address space{'' if count == 1 else 's'}"
