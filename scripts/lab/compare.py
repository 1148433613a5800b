# SPDX-License-Identifier: Apache-2.0
"""A case folder against its replay: every counter that the trace shows, and the calls in their order."""

import hashlib
import tempfile
from collections.abc import Container, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab.case import Evidence, lay_out
from lab.errors import LabError
from replay.capture.live import capture_process
from replay.teardown import reference
from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.contiguous import BLOCK
from replay.teardown.replayer import run_checked
from replay.teardown.spaces import address_spaces

# What a folio that stays, because something else holds a reference, takes with it.
_OF_FREED = {"folios_freed", "pages_freed", "freed_in_order", "deferred_split_dequeued", "lruvec_locks"}


UNEXPLAINED = "unexplained"
AVERAGES = "kpagecount gives only averages for folios that other processes map too"


class Row(NamedTuple):
    """One line of the report. `cause` says why kernel and replay differ, where that is known."""

    kernel: str
    release: str
    case: str
    counter: str
    kernel_value: str
    replay_value: str
    agrees: bool
    cause: str


def _lengths(values: Iterable[int]) -> str:
    """Run-length form of a list of sizes: `8 510*3 17`."""
    parts = ((value, sum(1 for _ in same)) for value, same in groupby(values))
    return " ".join(str(value) if times == 1 else f"{value}*{times}" for value, times in parts)


def _digest(freed: Iterable[Iterable[int]]) -> str:
    """A short name of a sequence of (pfn, order): too long for a table, and to be compared exactly."""
    text = ";".join(f"{pfn},{order}" for pfn, order in freed)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _shown(facts: Mapping[str, Any]) -> dict[str, str]:
    """The comparable facts of one side as text: counters, then the calls."""
    sizes = sorted((int(size), calls) for size, calls in facts["rmap_sizes"].items())
    shown = {name: str(value) for name, value in facts["counters"].items()}
    calls = {
        "rmap_calls": ("rmap_sizes", " ".join(f"{size}:{calls}" for size, calls in sizes)),
        "release_calls": ("release_sizes", _lengths(facts["release_sizes"])),
        "free_calls": ("flush_groups", " | ".join(_lengths(group) for group in facts["flush_groups"])),
        "folios_freed": ("freed_in_order", _digest(facts["freed"])),
    }
    return shown | dict(calls[name] for name in calls if name in shown)


def replayed(case: Path, expected: Mapping[str, Any], mapcounts: np.ndarray | None = None) -> dict[str, Any]:
    """The case through capture and replay, in the form of expected.json.

    What procfs cannot show is fed in: dirty PTEs, PMD mappings, contiguous PTEs. Of the last there is also
    how many the replay would infer, and which counters differ by that. Counters come from the machine, which
    must equal the reference, from which come the calls behind them. mapcounts: as in `lay_out`.
    """
    algorithm = ALGORITHMS[expected["algorithm"]]
    with tempfile.TemporaryDirectory(prefix="replay-lab-tree-") as root:
        pid = lay_out(case, Path(root), expected, mapcounts)
        trace = capture_process(
            pid, procfs_root=root, known_pmd=expected["pmd_mapped"], known_dirty=expected["dirty_ptes"]
        ).trace
    assert trace is not None
    known = _blocks(expected["contiguous_ptes"] or [], trace.meta.page_size)
    [space] = address_spaces(trace, known)
    [inferred] = address_spaces(trace)
    outcome = reference.replay(space, algorithm)
    row = run_checked(trace, [algorithm.name], contiguous=known).row(0, named=True)
    unequal = [name for name, value in outcome.counters.items() if row[name] != value]
    if unequal:
        raise LabError(f"{case.name}: machine and reference differ in {', '.join(unequal)}")
    by_inferred = run_checked(trace, [algorithm.name]).row(0, named=True)
    return {
        "counters": outcome.counters,
        "rmap_sizes": outcome.rmap_sizes,
        "release_sizes": outcome.release_sizes,
        "flush_groups": outcome.flush_groups,
        "freed": [list(folio) for folio in outcome.freed],
        "contiguous": [int(each.pages[each.contiguous].sum()) for each in (space.extents, inferred.extents)],
        "differ_by_inference": [name for name in outcome.counters if row[name] != by_inferred[name]],
    }


def _blocks(contiguous: Iterable[Iterable[int]], page_size: int) -> np.ndarray:
    """The first pages of blocks of contiguous PTEs, from runs of their pages."""
    parts = [np.arange(first, first + pages, BLOCK[page_size]) for first, pages in contiguous]
    return np.concatenate([np.empty(0, np.int64), *parts])


def held_by_others(kernel_freed: list[list[int]], replay_freed: list[list[int]], evidence: Evidence) -> int:
    """Folios that stayed because of references that no mapping shows; 0 unless that explains the difference.

    The kernel must have freed exactly the others, in the replay's order, and at the dump each folio that
    stayed must have had more references than the process has entries for it.
    """
    freed = {pfn for pfn, _ in kernel_freed}
    kept = [pfn for pfn, _ in replay_freed if pfn not in freed]
    if [folio for folio in replay_freed if folio[0] in freed] != kernel_freed:
        return 0
    return len(kept) if all(evidence.references[pfn] > evidence.own[pfn] for pfn in kept) else 0


def _cause(
    fact: str, expected: Mapping[str, Any], evidence: Evidence, held: int, by_averages: Container[str]
) -> str:
    """Why kernel and replay differ. by_averages: the facts that agree where the replay has true mapcounts."""
    if expected["preempted"]:
        return "preempted: another task ran during exit_mmap()"
    if evidence.moved:
        moved = ", ".join(f"{name} {by:+}" for name, by in evidence.moved.items())
        return f"background work between dump and exit: {moved}"
    if fact in by_averages:
        return AVERAGES
    if held and fact in _OF_FREED:
        folios = "1 folio has" if held == 1 else f"{held} folios have"
        return f"{folios} references that procfs does not show"
    return UNEXPLAINED


def _contiguous(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The PTEs with the contiguous bit: of the kernel, inferred, and the cause of a difference."""
    if expected["contiguous_ptes"] is None:
        return None
    kernel, replay = found["contiguous"]
    by_it = found["differ_by_inference"]
    differing = f"these counters would differ: {', '.join(by_it)}" if by_it else "no counter would differ"
    why = "procfs does not show the bit; with the inferred bits instead of the real ones, "
    return str(kernel), str(replay), why + differing


def compare(kernel: str, name: str, case: Path, expected: Mapping[str, Any], evidence: Evidence) -> list[Row]:
    """Every comparable fact of one case, in the order of expected.json."""
    found = replayed(case, expected)
    held = held_by_others(expected["freed"], found["freed"], evidence)
    here, there = _shown(expected), _shown(found)
    by_averages = set()
    if evidence.mapcounts is not None and here != there:
        without = _shown(replayed(case, expected, evidence.mapcounts))
        by_averages = {fact for fact in here if here[fact] == without[fact] != there[fact]}
    rows = [
        Row(
            kernel,
            expected["kernel"],
            name,
            fact,
            value,
            there[fact],
            value == there[fact],
            _cause(fact, expected, evidence, held, by_averages) if value != there[fact] else "",
        )
        for fact, value in here.items()
    ]
    contiguous = _contiguous(expected, found)
    if contiguous:
        by_kernel, inferred, cause = contiguous
        agrees = by_kernel == inferred
        values = by_kernel, inferred, agrees, "" if agrees else cause
        rows.append(Row(kernel, expected["kernel"], name, "contiguous_ptes", *values))
    return rows
