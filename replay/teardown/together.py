# SPDX-License-Identifier: Apache-2.0
"""Address spaces that are torn down one after the other, each from what the one before left, compiled."""

from __future__ import annotations

from replay.jit.compiled import compiled
from replay.teardown.layout import Tables
from replay.teardown.machine import begin, exit_mmap, rules_of
from replay.teardown.one_pass import States, copy_folios
from replay.teardown.state import MLOCKED, RANGE_NEXT


@compiled
def exit_next(k: Tables, m: States, first: int, last: int, page_tables: int, is_first: int) -> int:
    """Tear down extents `first` to `last` - 1 by the only algorithm of some states -> how many there were.

    is_first: nobody has exited yet. Else folios and the mlock batch are as the exit before left them, as if
    one CPU made them all.
    """
    f, c = m.folios[0], m.counts[0]
    if is_first:
        begin(c)
        copy_folios(k, f, rules_of(m.rules[0]), c)
    else:
        for name in range(MLOCKED):
            c[name] = 0
        c[RANGE_NEXT] = -1
    return exit_mmap(k.extents[first:last], f, m.gathers[0], m.rules[0], c, 0, 1, page_tables)
