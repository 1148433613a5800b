# SPDX-License-Identifier: Apache-2.0
"""Whether machine and reference count alike on a trace: the reference beside the machine, on a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

from replay.teardown import reference, replayer
from replay.teardown.algorithms import Algorithm
from replay.teardown.counters import CHECKS
from replay.teardown.extents import Extents
from replay.teardown.spaces import AddressSpaceInput, address_spaces
from replay.trace.frame import Trace

PAGES: Final = 400_000
"""Pages that the slow reference replays for one trace, all algorithms together: some seconds."""


@dataclasses.dataclass
class Agreement:
    """What was compared; `cut`: address spaces of which only the first page tables were."""

    compared: int = 0
    replays: int = 0
    total: int = 0
    cut: int = 0
    differing: list[str] = dataclasses.field(default_factory=list)


def compare(trace: Trace, algorithms: Sequence[Algorithm], pages: int = PAGES) -> Agreement:
    """Replay address spaces of a trace by reference and machine; pages: how many, over all algorithms.

    Address spaces are taken from all over the trace; of one that is too large, the page tables at its start.
    """
    spaces = list(address_spaces(trace))
    found = Agreement(total=len(spaces))
    left = pages // max(len(algorithms), 1)
    for number in _spread(len(spaces)):
        space = spaces[number]
        size = int(space.extents.pages.sum())
        if found.compared and size > left:
            continue
        part = space if size <= left else _beginning(space, left)
        found.cut += part is not space
        found.compared += 1
        left -= int(part.extents.pages.sum())
        for algorithm in algorithms:
            found.replays += 1
            found.differing += _difference(trace.name, part, algorithm)
        if left <= 0:
            break
    return found


def _spread(count: int) -> list[int]:
    """The numbers below `count`, those far from each other first."""
    bits = max(count - 1, 1).bit_length()
    order = sorted(range(1 << bits), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))
    return [number for number in order if number < count]


def _beginning(space: AddressSpaceInput, pages: int) -> AddressSpaceInput:
    """The first whole page-table pages and huge mappings of an address space, at least one of them."""
    e = space.extents
    new = np.ones(len(e.vpn), np.bool_)
    new[1:] = (e.vma[1:] != e.vma[:-1]) | (e.table_end[1:] != e.table_end[:-1])
    starts = np.append(np.flatnonzero(new), len(e.vpn))
    before = np.append(0, np.cumsum(e.pages))[starts]
    end = int(starts[max(int(np.searchsorted(before, pages, side="right")) - 1, 1)])
    return dataclasses.replace(space, extents=Extents._make(column[:end] for column in e))


def _difference(trace: str, space: AddressSpaceInput, algorithm: Algorithm) -> list[str]:
    machine = replayer.replay(space, algorithm)
    outcome = reference.replay(space, algorithm)
    literal = outcome.counters | {name: getattr(outcome, name) for name in CHECKS}
    wrong = [
        f"{name} {machine[name]:,} instead of {value:,}"
        for name, value in literal.items()
        if machine[name] != value
    ]
    if not wrong:
        return []
    return [f"{trace}: address space {space.mm}, {algorithm.name}: the machine counts {', '.join(wrong)}"]
