# SPDX-License-Identifier: Apache-2.0
"""What the rows of each address space add up to, compared with the figures of /proc/PID/status.

Rows that were lost, or that are not of this trace, show here and nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.errors import TraceError
from replay.trace.kpageflags import KPF_ANON, KPF_SWAPBACKED, bit
from replay.trace.metadata import FIGURES, UNCOUNTED, AddressSpace, Metadata

if TYPE_CHECKING:
    from replay.trace.frame import Trace

I64 = npt.NDArray[np.int64]

TYPES: Final = (*FIGURES, *UNCOUNTED)
"""What pages are summed up by: as the figures, then what no figure counts."""

APPROXIMATE_PAGES: Final = 8192
APPROXIMATE_SHARE: Final = 0.25
"""By how much rows and a figure may differ where capture did not write it down (format version 1).

The kernel's figures are approximate there: since v6.2 each CPU holds back up to max(32, 2 * CPUs) pages of
each, so that 64 CPUs hold back 8,192; before, each thread 64 of all.
"""

NAMED: Final = 3
"""Address spaces that a message names."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Pages of one type in the rows of an address space, and how many there should be.

    exact: whether capture wrote down what the rows add up to.
    """

    mm: int
    type: str
    rows: int
    expected: int
    exact: bool


def sums(frame: pl.DataFrame, spaces: int) -> I64:
    """Pages of each address space: int64, shape (spaces, len(TYPES))."""
    kind, flags = pl.col("kind").cast(pl.String), pl.col("kpageflags")
    number = {name: pl.lit(place, pl.Int64) for place, name in enumerate(TYPES)}
    resident = (
        pl.when(flags & bit(KPF_ANON) != 0)
        .then(number["rss_anon"])
        .when(flags & bit(KPF_SWAPBACKED) != 0)
        .then(number["rss_shmem"])
        .otherwise(number["rss_file"])
    )
    place: Any = pl.when(kind.is_in(["page", "pmd"])).then(resident)
    for name in ("swap", "hugetlb", *UNCOUNTED):
        place = place.when(kind == name).then(number[name])
    added = (
        frame.lazy()
        .select("mm", type=place, pages=pl.col("pages").cast(pl.Int64))
        .group_by("mm", "type")
        .agg(pl.col("pages").sum())
        .collect()
    )
    found = np.zeros((spaces, len(TYPES)), np.int64)
    known = added.filter(pl.col("mm") < spaces)
    found[known["mm"].to_numpy(), known["type"].to_numpy()] = known["pages"].to_numpy()
    return found


def differences(rows: I64, meta: Metadata) -> tuple[list[Difference], frozenset[int]]:
    """Where rows and figures differ, and the address spaces that have no row though they should.

    rows: as of `sums`.
    """
    wanted = np.array([_expected(space) for space in meta.address_spaces], np.int64).reshape(rows.shape)
    empty = (rows.sum(axis=1) == 0) & (wanted.sum(axis=1) > 0)
    found = []
    for mm, place in np.argwhere((rows != wanted) & ~empty[:, None]).tolist():
        space, name = meta.address_spaces[mm], TYPES[place]
        if _is_known(space, name):
            exact = space.unaccounted is not None
            found.append(Difference(mm, name, int(rows[mm, place]), int(wanted[mm, place]), exact))
    return found, frozenset(np.flatnonzero(empty).tolist())


def _expected(space: AddressSpace) -> list[int]:
    more = space.unaccounted or {}
    return [getattr(space, name, 0) + more.get(name, 0) for name in TYPES]


def _is_known(space: AddressSpace, name: str) -> bool:
    """Whether it is known how many pages there should be: not where nobody gave any figure."""
    if space.unaccounted is not None:
        return True
    return name in FIGURES and any(getattr(space, figure) for figure in FIGURES)


def checked(trace: Trace, where: str, *, partial: bool = False) -> Trace:
    """The trace with what is missing of it. Arguments and errors as of `held`."""
    added = sums(trace.frame, len(trace.meta.address_spaces))
    return dataclasses.replace(held(added, trace, where, partial=partial), checked=trace.frame)


def held(rows: I64, trace: Trace, where: str, *, partial: bool = False) -> Trace:
    """What the rows add up to, compared with the metadata -> the trace with its `left_out` and `notes`.

    rows: as of `sums`. where: how a message names the trace. partial: rows that are missing are noted, not
    refused. Raises `TraceError` where rows are missing, or where there are more than the figures account for.
    """
    meta = trace.meta
    found, absent = differences(rows, meta)
    notes = []
    if meta.part:
        found = []
    wrong = [one for one in found if _is_wrong(one)]
    if wrong and not partial:
        raise TraceError(f"{where}: {_refusal(wrong, meta)}")
    if absent and len(absent) == len(meta.address_spaces):
        raise TraceError(f"{where}: {_without_rows(absent, meta)}: all rows were lost, capture it again")
    if absent and not meta.part:
        notes.append(f"{_without_rows(absent, meta)}: left out")
    if wrong:
        notes.append(
            f"{_told(wrong, meta)}: page tables are those of whole address spaces, the rest of these rows"
        )
    if rest := [one for one in found if not _is_wrong(one)]:
        notes.append(_told_version_1(rest, meta))
    return dataclasses.replace(trace, left_out=absent, notes=tuple(notes))


def _is_wrong(one: Difference) -> bool:
    if one.exact:
        return True
    if one.rows > one.expected and one.type in ("swap", "hugetlb"):
        # markers among the swap entries; page tables of hugetlb that processes share are counted once
        return False
    allowed = max(APPROXIMATE_PAGES, APPROXIMATE_SHARE * one.expected)
    return abs(one.rows - one.expected) > allowed


def _refusal(wrong: list[Difference], meta: Metadata) -> str:
    if all(one.rows >= one.expected for one in wrong):
        return f"{_told(wrong, meta)}: rows and metadata are not of one trace, capture it again"
    return (
        f"{_told(wrong, meta)}: capture it again, or count what is there with 'replay run --partial' "
        "(Trace.as_part() marks a part on purpose)"
    )


def _told(wrong: list[Difference], meta: Metadata) -> str:
    """What rows hold and should hold, summed up by type."""
    by_type = {}
    for name in TYPES:
        ours = [one for one in wrong if one.type == name]
        if ours:
            by_type[name] = (sum(one.rows for one in ours), sum(one.expected for one in ours))
    parts = [
        f"{rows:,} of {expected:,} pages of {FIGURES.get(name, name)}"
        for name, (rows, expected) in by_type.items()
    ]
    return f"the rows of {_spaces({one.mm for one in wrong}, meta)} hold {', '.join(parts)}"


def _told_version_1(rest: list[Difference], meta: Metadata) -> str:
    said = _told(rest, meta)
    if all(one.type == "swap" and one.rows > one.expected for one in rest):
        return f"{said}: the others are markers, which format version 1 does not tell from swap"
    return f"{said}: the kernel's figures are approximate, or rows are missing; format version 1 does not say"


def _without_rows(absent: frozenset[int], meta: Metadata) -> str:
    return (
        f"{_spaces(absent, meta)} {'has' if len(absent) == 1 else 'have'} no rows though status counted pages"
    )


def _spaces(numbers: Iterable[int], meta: Metadata) -> str:
    """Address spaces by number and name, the first few of many."""
    some = sorted(numbers)
    names = [f"{mm}, {meta.address_spaces[mm].comm} ({meta.address_spaces[mm].pid})" for mm in some[:NAMED]]
    if len(some) == 1:
        return f"address space {names[0]}"
    more = f" and {len(some) - NAMED:,} more" if len(some) > NAMED else ""
    return f"{len(some):,} of {len(meta.address_spaces):,} address spaces ({'; '.join(names)}{more})"
