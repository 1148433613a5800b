"""Lines for people beside the data: what is not certain in a trace, what is wrong with an algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replay.teardown.counters import CHECKS
from replay.trace.metadata import Metadata

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
