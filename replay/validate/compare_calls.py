# SPDX-License-Identifier: Apache-2.0
"""Predicted call counts compared with the kernel's: differences, each with its cause if there is evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from replay.support.text import counted, times
from replay.validate.compare_folios import UNEXPLAINED, Comparison, Difference
from replay.validate.predict import Prediction

FLUSHED: Final = frozenset(
    {"gather_flushes", "gather_pages_peak", "tlb_flushes", "free_calls", "release_calls"}
)
"""Counters that depend on when the gather is flushed, and so on which PTEs are dirty."""

CALLS_OF_A_FLUSH: Final = 4
"""One more flush splits at most the bundle and a batch: two more chunks, each with one more release call."""

BY_MAPCOUNT: Final = frozenset({"deferred_split_calls", "swapcache_frees"})
"""Counters that depend on what other processes map."""


class CallCount(NamedTuple):
    """One counter of one exit.

    cause: of `CAUSES`, empty if both agree. evidence: what was seen.
    """

    counter: str
    predicted: int
    observed: int
    cause: str = ""
    evidence: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the kernel made as many calls as predicted."""
        return self.predicted == self.observed

    @property
    def explained(self) -> bool:
        """Whether they agree, or differ for a known cause."""
        return self.cause != UNEXPLAINED


class Doubts(NamedTuple):
    """Other replays of the exit. They are made only if a counter differs; where they disagree, the count is
    uncertain.

    before: the counters by the capture before the last one. dirty: PTEs that can be dirty, and the counters
    if all of them are.
    """

    before: Callable[[], Mapping[str, int]]
    dirty: Callable[[], tuple[int, Mapping[str, int]]]


def compare_calls(
    prediction: Prediction, observed: Mapping[str, int], preempted: int, freed: Comparison, doubts: Doubts
) -> tuple[CallCount, ...]:
    """Compare the observed counters with the prediction.

    preempted: how often the thread lost its CPU within exit_mmap(). freed: how the freed folios compare.
    """
    found = []
    for counter, seen in observed.items():
        said = prediction.counters[counter]
        cause, evidence = "", ""
        if seen != said:
            cause, evidence = _why(counter, seen, prediction, preempted, freed, doubts)
        found.append(CallCount(counter, said, seen, cause, evidence))
    return tuple(found)


def _why(
    counter: str, seen: int, prediction: Prediction, preempted: int, freed: Comparison, doubts: Doubts
) -> tuple[str, str]:
    said = prediction.counters[counter]
    why = None
    if counter in FLUSHED:
        why = _why_flushed(counter, seen, prediction, preempted, doubts)
    elif counter in BY_MAPCOUNT:
        why = _why_by_mapcount(counter, abs(seen - said), prediction, freed)
    if why:
        return why
    changed = [each for each in freed.differences if each.cause == "changed"]
    if abs(seen - said) <= len(changed):
        return "changed", _same_cause(changed)
    earlier = doubts.before()[counter]
    if earlier != said:
        return "changed", f"from the capture before the last one the replay gives {earlier:,}"
    return UNEXPLAINED, ""


def _why_flushed(
    counter: str, seen: int, prediction: Prediction, preempted: int, doubts: Doubts
) -> tuple[str, str] | None:
    """`dirty rule` if the count lies between no dirty PTEs and all possible ones; `preemption` if beyond."""
    maybe_dirty, dirty = doubts.dirty()
    if not maybe_dirty:
        return None
    clean = prediction.clean_counters[counter]
    known = sorted((clean, dirty[counter], prediction.counters[counter]))
    evidence = (
        f"the replay gives {clean:,} if none of the {maybe_dirty:,} PTEs that may be dirty is dirty, "
        f"{dirty[counter]:,} if all are; it assumed {prediction.dirty:,}"
    )
    if known[0] <= seen <= known[-1]:
        return "dirty rule", evidence
    beyond = max(known[0] - seen, seen - known[-1])
    if preempted and beyond <= CALLS_OF_A_FLUSH * preempted:
        return "preemption", f"preempted {times(preempted)}; {evidence}"
    return None


def _why_by_mapcount(
    counter: str, by: int, prediction: Prediction, freed: Comparison
) -> tuple[str, str] | None:
    """Whether folios that other processes mapped or let go since the capture explain the difference.

    by: how far prediction and kernel are apart. These folios can explain only so much.
    """
    split = counter == "deferred_split_calls"
    for cause in ("other user left", "mapped since") if split else ("swap entry",):
        of_it = [each for each in freed.differences if each.cause == cause]
        most = sum(_own_pages(each, prediction) for each in of_it) if split else len(of_it)
        if 0 < by <= most:
            return cause, _same_cause(of_it)
    return None


def _same_cause(differences: Sequence[Difference]) -> str:
    """Evidence: folios that replay and kernel do not free alike, for the same cause."""
    kept = sum(each.what == "stayed" for each in differences)
    freed = sum(each.what == "freed" for each in differences)
    others = len(differences) - kept - freed
    parts = [f"the replay frees {counted(kept, 'folio')} that the kernel keeps"] if kept else []
    parts += [f"the kernel frees {counted(freed, 'folio')} that the replay keeps"] if freed else []
    parts += [f"{counted(others, 'folio')} are freed in another way"] if others else []
    return f"for the same cause {', '.join(parts)}"


def _own_pages(difference: Difference, prediction: Prediction) -> int:
    """Mappings of a large folio by this address space: as many calls can depend on those of others."""
    index = prediction.folios.index(difference.pfn)
    return int(prediction.folios.own[index]) if index >= 0 and difference.order else 0
