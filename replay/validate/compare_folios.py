# SPDX-License-Identifier: Apache-2.0
"""A prediction compared with an observation: differences, each with its cause if there is evidence of one."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from replay.support.text import times
from replay.trace.kpageflags import KPF_ANON, KPF_SWAPCACHE, bit
from replay.validate.later_frees import Fate
from replay.validate.observe import Observation
from replay.validate.predict import Prediction

UNEXPLAINED: Final = "unexplained"

CAUSES: Final = {
    "lru batch": "a reference of another CPU's LRU batch: the folio was freed when that batch was emptied",
    "batch emptied": "at the capture it waited in an LRU batch, whose reference would have kept it; the "
    "batch was emptied before the exit freed the folio, as mm_lru_insertion shows",
    "mlock batch": "a reference of the mlock batch, into which the exit put the folio: it was locked, and "
    "was freed by whoever emptied that batch",
    "reference": "a reference that procfs does not show (a pin, a pipe): the folio is freed later, or it is "
    "still there though nobody maps it",
    "swap entry": "another user of the swap entry: after the exit the folio is still in the swap cache",
    "mapped since": "another process maps it now: the mapping appeared after the capture",
    "other user left": "at the capture mapped by another process, or in the page cache; freed here, so that "
    "other user had dropped its references before",
    "changed": "the page tables or folios of the stopped process changed between capture and release "
    "(khugepaged), as two captures or an early free of what was mapped show",
    "dirty rule": "PTEs are taken for dirty by a rule; without them the batches end where the kernel's did, "
    "or there are as many calls as with fewer or more dirty PTEs",
    "preemption": "the exiting thread lost its CPU in the middle of page tables with dirty PTEs",
    "last user": "another task used the address space longer (a reader of /proc): exit_mmap() ran there",
    UNEXPLAINED: "no evidence of a cause",
}
"""Cause of a difference -> the evidence for it."""


class Frame(NamedTuple):
    """A frame after the exit: its kpageflags word, its kpagecount, and how it was freed since, if that was
    seen.

    stays: whether it was still the same after the LRU batches of all CPUs had been emptied.
    """

    flags: int
    mapcount: int
    stays: bool
    fate: Fate | None = None


class Difference(NamedTuple):
    """One thing that the kernel did otherwise.

    what: `stayed` (predicted, not freed), `freed` (not predicted), `size` (freed with another order), `moved`
    (freed at another place in the sequence), `batch` (a batch of frees ended elsewhere), `end` (exit_mmap()
    did not end in the exiting thread). position: in the predicted sequence for `stayed`, else in the observed
    one. cause: of `CAUSES`. evidence: what was seen.
    """

    what: str
    pfn: int
    order: int
    position: int
    cause: str = UNEXPLAINED
    evidence: str = ""


@dataclass(frozen=True)
class Comparison:
    """predicted, observed: folios freed. prefix: folios before the first difference in the sequence."""

    predicted: int
    observed: int
    prefix: int
    differences: tuple[Difference, ...]

    @property
    def exact(self) -> bool:
        """Whether the kernel freed the predicted folios in the predicted order, and no others."""
        return self.prefix == self.predicted == self.observed

    @property
    def explained(self) -> bool:
        """Whether every difference has a cause."""
        return all(difference.cause != UNEXPLAINED for difference in self.differences)


def stayed(predicted: Sequence[tuple[int, int]], observed: Sequence[tuple[int, int]]) -> list[int]:
    """Frames of the folios that were predicted to be freed and were not."""
    freed = {pfn for pfn, _ in observed}
    return [pfn for pfn, _ in predicted if pfn not in freed]


def unpredicted(predicted: Sequence[tuple[int, int]], observed: Sequence[tuple[int, int]]) -> list[int]:
    """Frames of the folios that were freed and were not predicted to be."""
    expected = {pfn for pfn, _ in predicted}
    return [pfn for pfn, _ in observed if pfn not in expected]


def compare(
    prediction: Prediction,
    observation: Observation,
    *,
    after: Mapping[int, Frame],
    changed: frozenset[int] = frozenset(),
    left: Mapping[int, str] = MappingProxyType({}),
) -> Comparison:
    """Compare what was predicted with what was observed.

    after: the frames of `stayed` after the exit. changed: heads of folios that differed when they were read
    again, right before the process went on. left: frames of `unpredicted` that left an LRU batch after the
    capture, and how.
    """
    if observation.has_end and not observation.finished and not observation.freed:
        end = Difference("end", 0, 0, 0, "last user", "no exit_mmap() in this thread, and nothing freed")
        return Comparison(len(prediction.freed), 0, 0, (end,))
    differences = _sequence_differences(prediction.freed, observation.freed)
    explained = [
        _explain(difference, observation.thread, prediction, after, changed, left)
        for difference in differences
    ]
    if not differences:
        explained += _batch_differences(prediction, observation)
    prefix = 0
    for ours, theirs in zip(prediction.freed, observation.freed, strict=False):
        if ours != theirs:
            break
        prefix += 1
    return Comparison(len(prediction.freed), len(observation.freed), prefix, tuple(explained))


def _sequence_differences(
    predicted: Sequence[tuple[int, int]], observed: Sequence[tuple[int, int]]
) -> list[Difference]:
    if tuple(predicted) == tuple(observed):
        return []
    place = {pfn: position for position, (pfn, _) in enumerate(predicted)}
    order_of = dict(predicted)
    differences = [
        Difference("stayed", pfn, order_of[pfn], place[pfn]) for pfn in stayed(predicted, observed)
    ]
    for position, (pfn, order) in enumerate(observed):
        if pfn not in place:
            differences.append(Difference("freed", pfn, order, position))
        elif order != order_of[pfn]:
            differences.append(Difference("size", pfn, order, position))
    common = [(position, place[pfn]) for position, (pfn, _) in enumerate(observed) if pfn in place]
    kept = _longest_increasing([predicted_place for _, predicted_place in common])
    differences += [
        Difference("moved", observed[position][0], observed[position][1], position)
        for index, (position, _) in enumerate(common)
        if index not in kept
    ]
    return differences


def _longest_increasing(values: Sequence[int]) -> set[int]:
    """Indices of a longest increasing subsequence (patience sorting)."""
    tails: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for index, value in enumerate(values):
        length = bisect.bisect_left(tails, value)
        before.append(last[length - 1] if length else -1)
        if length == len(tails):
            tails.append(value)
            last.append(index)
        else:
            tails[length] = value
            last[length] = index
    kept = set()
    index = last[-1] if last else -1
    while index >= 0:
        kept.add(index)
        index = before[index]
    return kept


def _explain(
    difference: Difference,
    thread: int | None,
    prediction: Prediction,
    after: Mapping[int, Frame],
    changed: frozenset[int],
    left: Mapping[int, str],
) -> Difference:
    """Give a difference its cause, if there is evidence."""
    cause, evidence = UNEXPLAINED, ""
    if difference.what == "stayed":
        cause, evidence = _why_stayed(difference.pfn, thread, prediction, after)
    elif difference.what == "freed":
        cause, evidence = _why_freed(difference.pfn, prediction, left)
    if cause == UNEXPLAINED and difference.pfn in changed:
        cause, evidence = "changed", "two captures of the stopped process differ about this folio"
    return Difference(difference.what, difference.pfn, difference.order, difference.position, cause, evidence)


def _why_stayed(
    pfn: int, thread: int | None, prediction: Prediction, after: Mapping[int, Frame]
) -> tuple[str, str]:
    folios = prediction.folios
    index = folios.index(pfn)
    frame = after.get(pfn)
    if frame is None:
        return UNEXPLAINED, ""
    seen = f"after the exit: flags {frame.flags:#x}, mapcount {frame.mapcount}"
    if frame.fate and frame.fate.early:
        return "changed", frame.fate.evidence
    if frame.fate:
        seen = f"{frame.fate.evidence}; {seen}"
        if folios.mlocked[index] and frame.fate.thread != thread:
            return "mlock batch", f"KPF MLOCKED at the exit stop; {seen}"
        return "lru batch" if frame.fate.lru_batch else "reference", seen
    held = bool(frame.flags & bit(KPF_ANON)) and not frame.mapcount
    if not frame.stays:
        gone = f"{seen}; gone when the LRU batches of all CPUs had been emptied"
        return ("lru batch", gone) if held else (UNEXPLAINED, seen)
    if frame.mapcount:
        return "mapped since", seen
    if frame.flags & bit(KPF_SWAPCACHE) and folios.swapcache[index]:
        return "swap entry", seen
    return ("reference", seen) if held else (UNEXPLAINED, seen)


def _why_freed(pfn: int, prediction: Prediction, left: Mapping[int, str]) -> tuple[str, str]:
    folios = prediction.folios
    index = folios.index(pfn)
    if index < 0:
        return UNEXPLAINED, ""
    own, mapcount = int(folios.own[index]), int(folios.mapcount[index])
    kind = "anonymous" if folios.anon[index] else "page cache"
    seen = f"{kind}, {own} of {mapcount} mappings were its own at capture"
    if not folios.lru[index] and pfn in left:
        return "batch emptied", f"{left[pfn]}; {seen}"
    if mapcount > own or not folios.anon[index]:
        return "other user left", seen
    return UNEXPLAINED, seen


def _batch_differences(prediction: Prediction, observation: Observation) -> list[Difference]:
    """Ends of batches that the replay does not have, in a sequence that agrees.

    A batch shows no end if it frees only folios of an order without a per-CPU list.
    """
    wrong = sorted(observation.batch_ends - prediction.batch_ends)
    if not wrong:
        return []
    cause, evidence = UNEXPLAINED, ""
    if prediction.dirty and observation.batch_ends <= prediction.clean_batch_ends:
        cause, evidence = "dirty rule", f"{prediction.dirty:,} PTEs are inferred to be dirty"
    elif prediction.dirty and observation.preempted:
        cause, evidence = "preemption", f"preempted {times(observation.preempted)}"
    return [Difference("batch", *observation.freed[end - 1], end, cause, evidence) for end in wrong]
