# SPDX-License-Identifier: Apache-2.0
"""Processes that use one address space: clones with CLONE_VM but without CLONE_THREAD, a vfork parent and its
child.

kcmp(2) tells. It orders the address spaces of the kernel, so that processes can be sorted by theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from replay.process import ptrace


def sharing(pids: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """For each process that shares its address space: the other ones of `pids` that use it, in order.

    Processes that are gone share nothing. Empty where the kernel does not tell (no CONFIG_KCMP, no right to
    trace).
    """
    left = [pid for pid in dict.fromkeys(pids) if ptrace.same_memory(pid, pid)]
    while len(left) > 1:
        try:
            return _groups(sorted(left, key=functools.cmp_to_key(_order)))
        except ProcessLookupError:
            # one ended while they were sorted
            left = [pid for pid in left if ptrace.same_memory(pid, pid)]
        except OSError:
            break
    return {}


def _order(one: int, other: int) -> int:
    """How the address spaces of two processes are ordered: below 0, 0 for one and the same, above 0."""
    return ptrace.compare_memory(one, other)


def _groups(in_order: Sequence[int]) -> dict[int, tuple[int, ...]]:
    groups: list[list[int]] = []
    for pid in in_order:
        if groups and _order(groups[-1][0], pid) == 0:
            groups[-1].append(pid)
        else:
            groups.append([pid])
    return {
        pid: tuple(sorted(other for other in group if other != pid))
        for group in groups
        if len(group) > 1
        for pid in group
    }
