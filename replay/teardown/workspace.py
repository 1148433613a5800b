# SPDX-License-Identifier: Apache-2.0
"""The arrays that the one pass works in: how large they are at first, and how they grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.teardown import layout, machine, one_pass, state
from replay.teardown.layout import Tables
from replay.teardown.one_pass import States
from replay.teardown.pages import FREE, NOTE_COLUMNS, WORD_BITS, WORD_COLUMNS
from replay.trace.columns import Columns, blank, last_row
from replay.trace.schema import MAX_FOLIO_BYTES, ptes_per_table

I64 = npt.NDArray[np.int64]

EXTENTS: Final = 1 << 15
"""Extents that a workspace has room for. A larger address space is torn down in parts.

With their folios they fit into a processor's cache of some megabytes.
"""

WORDS: Final = 1 << 12
NOTES: Final = 1 << 8
FOLIOS: Final = 1 << 10
"""Rows of tables at first; they are doubled when they are too small."""

MLOCK_ROOM: Final = 1 << 10
"""Folios that the mlock batch has room for at first."""


class ImpossibleRowError(Exception):
    """The rows of a trace say something impossible, found at this row."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


class _TooSmallError(Exception):
    """An address space does not fit, and cannot be torn down in parts."""


class Workspace(NamedTuple):
    """All that a replay works in. figures: of each address space, see `layout.py`."""

    tables: Tables
    figures: I64
    states: States


def replay_all(
    batches: Callable[[], Iterator[Columns]],
    owners: I64,
    rules: Sequence[state.Rules],
    page_size: int,
    *,
    checked: bool,
    is_part: bool = False,
    extents: int | None = None,
) -> Workspace:
    """Replay all rows of a trace -> the workspace with its figures and results.

    batches: gives the rows in order, each time anew. owners: int64, shape (address spaces, OWNER_COLUMNS).
    rules: of each algorithm. checked: whether the rows have to be checked; is_part: whether rows may be
    missing. extents: room at first, `EXTENTS` if None. Raises `ImpossibleRowError`.
    """
    extents = extents or EXTENTS
    while True:
        k = make(owners, rules, page_size, extents, checked=checked, is_part=is_part)
        try:
            return _replay(batches(), k)
        except _TooSmallError:
            extents *= 4


def make(
    owners: I64,
    rules: Sequence[state.Rules],
    page_size: int,
    extents: int,
    *,
    checked: bool = False,
    is_part: bool = False,
    together: bool = False,
) -> Workspace:
    """An empty workspace. Arguments as of `replay_all`; together: see `layout.TOGETHER`."""
    registers = np.zeros(layout.STATE_REGISTERS, np.int64)
    registers[layout.ENTRIES] = ptes_per_table(page_size)
    registers[layout.LARGEST] = (MAX_FOLIO_BYTES // page_size).bit_length() - 1
    registers[layout.ALGORITHMS] = 0 if together else len(rules)
    registers[layout.CHECKED] = checked
    registers[layout.IS_PART] = is_part
    registers[layout.TOGETHER] = together
    registers[layout.MM] = layout.NO_SPACE
    most = max((machine.most_segments(one) for one in rules), default=0)
    folios = extents + FOLIOS
    tables = Tables(
        registers=registers,
        # stamps of 0 are those of no address space
        words=np.zeros((WORDS, WORD_COLUMNS), np.int64),
        notes=np.empty((NOTES, NOTE_COLUMNS), np.int64),
        note_index=np.full(2 * NOTES, FREE, np.int64),
        extents=np.empty((extents, state.EXTENT_COLUMNS), np.int64),
        folios=np.empty((folios, state.FOLIO_COLUMNS), np.int64),
    )
    states = States(
        owners=np.ascontiguousarray(owners, np.int64),
        rules=np.array(rules, np.int64).reshape(len(rules), len(state.Rules._fields)),
        folios=np.empty((1, folios, state.FOLIO_COLUMNS), np.int64),
        gathers=np.empty((1, extents + most, state.SEGMENT_COLUMNS), np.int64),
        counts=np.zeros((1, state.REGISTERS + 1 + MLOCK_ROOM), np.int64),
        results=np.zeros((len(owners), len(rules), state.SEGMENTS), np.int64),
    )
    return Workspace(tables, np.zeros((len(owners), layout.FIGURE_COLUMNS), np.int64), states)


def _replay(batches: Iterator[Columns], k: Workspace) -> Workspace:
    """Take all rows. Raises `ImpossibleRowError`, and `_TooSmallError`."""
    before = blank(1)
    first = 0
    for batch in batches:
        if not len(batch.mm):
            continue
        k = take_rows(batch, before, k, first)
        before = last_row(batch)
        first += len(batch.mm)
    return take_rows(blank(0), before, k, first, is_last=True)


def take_rows(
    batch: Columns, before: Columns, k: Workspace, first: int = 0, *, is_last: bool = False
) -> Workspace:
    """Take the rows of a batch -> the workspace, which may have grown.

    before: the last row of the batch before, or any; first: the number of the first row in the trace;
    is_last: no batch follows. Raises as `_replay`.
    """
    k.tables.registers[layout.ROW] = 0
    while True:
        status = one_pass.replay_rows(batch, before, k.tables, k.figures, k.states, int(is_last))
        if status == layout.DONE:
            return k
        row = int(k.tables.registers[layout.ROW])
        if status == layout.WRONG:
            # behind the last row, what is wrong is of the last address space
            raise ImpossibleRowError(max(first + row - is_last, 0))
        if status == layout.BEGIN_AGAIN:
            raise _TooSmallError
        k = _grown(k, status, int(batch.pages[row]), int(batch.order[row]))


def _grown(k: Workspace, status: int, pages: int, order: int) -> Workspace:
    """The workspace with more room of the kind that the status names. pages, order: of the row at hand."""
    tables, states = k.tables, k.states
    if status == layout.NEEDS_STATES:
        count = len(states.rules)
        states = states._replace(
            folios=np.empty((count, *states.folios.shape[1:]), np.int64),
            gathers=np.empty((count, *states.gathers.shape[1:]), np.int64),
            counts=np.zeros((count, states.counts.shape[1]), np.int64),
        )
    elif status == layout.NEEDS_WORDS:
        size = 1 << (len(tables.words) + 2 * ((pages + (1 << order)) >> WORD_BITS)).bit_length()
        words = np.zeros((size, WORD_COLUMNS), np.int64)
        one_pass.move_words(tables.words, words, int(tables.registers[layout.STAMP]))
        tables = tables._replace(words=words)
    elif status == layout.NEEDS_NOTES:
        notes = _longer(tables.notes, 0, len(tables.notes) + pages)
        index = np.full(1 << (2 * len(notes) - 1).bit_length(), FREE, np.int64)
        one_pass.index_notes(notes, index, int(tables.registers[layout.NOTES]))
        tables = tables._replace(notes=notes, note_index=index)
    elif status == layout.NEEDS_FOLIOS:
        more = len(tables.folios) - len(tables.extents) + pages + 1
        tables = tables._replace(folios=_longer(tables.folios, 0, more))
        states = states._replace(folios=_longer(states.folios, 1, more))
    elif status == layout.NEEDS_MLOCK_ROOM:
        states = states._replace(counts=_longer(states.counts, 1, states.counts.shape[1] + pages))
    return k._replace(tables=tables, states=states)


def _longer(array: I64, axis: int, more: int) -> I64:
    """The array with so many more places in an axis; they hold anything but, where they are counts, 0."""
    shape = list(array.shape)
    shape[axis] += more
    longer = np.zeros(shape, np.int64)
    longer[tuple(slice(size) for size in array.shape)] = array
    return longer
