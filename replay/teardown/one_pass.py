# SPDX-License-Identifier: Apache-2.0
"""The one pass over a trace, compiled: each row is checked and laid out, each address space is torn down.

An address space that fits into the workspace is torn down when its last row was taken, by one algorithm after
the other. A larger one is torn down in parts, at the ends of page-table pages: each algorithm then keeps its
own folios, gather and counts from part to part. What the gathers still hold of extents stays in the
workspace.

In every function k is the `Tables` of `layout.py`, s their registers, and m the `States`.
"""

from __future__ import annotations

from typing import NamedTuple

from replay.jit.compiled import I64, I64s, I64Stack, compiled, inline
from replay.teardown.layout import (
    ALGORITHMS,
    ARRIVED,
    BEGIN_AGAIN,
    CHECKED,
    DEPOSITED,
    DONE,
    EMPTY,
    ENTRIES,
    EXTENTS,
    FULL,
    KEPT,
    LARGEST,
    LAST_HUGE,
    LAST_TABLE_END,
    LAST_VMA,
    MISSING,
    MM,
    NEEDS_STATES,
    NEW_KEPT,
    NEW_PASSING,
    NO_SPACE,
    NOTES,
    OPEN_TABLE,
    OWNER_COMM,
    OWNER_PID,
    OWNER_TABLES,
    PARTS,
    PASSING,
    ROW,
    ROWS,
    STAMP,
    START,
    TABLES,
    TAKEN,
    TOGETHER,
    WAITING,
    WORDS,
    WRONG,
    Figures,
    Owners,
    Tables,
    count_figures,
    is_consistent,
    room_for,
    take_row,
)
from replay.teardown.machine import begin, exit_mmap, rules_of
from replay.teardown.pages import (
    N_KEY,
    N_SLOT,
    W_NUMBER,
    W_STAMP,
    WORD_COLUMNS,
    NoteTable,
    WordTable,
    first_slot,
    forget,
    index_slot,
)
from replay.teardown.state import (
    EXTENT_COLUMNS,
    F_ANON,
    F_HUGETLB,
    F_MAPCOUNT,
    F_ORDER,
    F_PARTIALLY_MAPPED,
    F_QUEUED,
    F_REFS,
    F_SWAPCACHE,
    F_WAITS,
    FOLIO_COLUMNS,
    MLOCK_BATCH,
    MLOCKED,
    REGISTERS,
    S_EXTENT,
    SEGMENTS,
    FolioTable,
    FolioTables,
    Rules,
    SegmentTables,
)
from replay.trace.accept import Row, can_follow, is_possible, lacks_first, lacks_last, row_at
from replay.trace.columns import Columns


class States(NamedTuple):
    """What the algorithms work on; all int64, of one algorithm or of each.

    owners: of each address space its PID, the code of its name, its page tables. rules: shape (algorithms,
    fields of `Rules`). folios, gathers, counts: see `state.py`. results: shape (address spaces, algorithms,
    counts).
    """

    owners: Owners
    rules: I64s
    folios: FolioTables
    gathers: SegmentTables
    counts: I64s
    results: I64Stack


@compiled
def replay_rows(t: Columns, before: Columns, k: Tables, figures: Figures, m: States, is_last: int) -> int:
    """Take the rows of a batch -> DONE, or why it stopped at row s[ROW] (see `layout.py`).

    before: the last row of the batch before, or any row if there is none. figures: see `layout.py`. is_last:
    no batch follows.
    """
    s = k.registers
    entries = s[ENTRIES]
    i = s[ROW]
    last = row_at(t, i - 1, entries) if i > 0 else row_at(before, 0, entries)
    while True:
        is_over = i == len(t.mm)
        if is_over and not is_last:
            return DONE
        row = last if is_over else row_at(t, i, entries)
        if s[CHECKED] and not (
            is_whole(last, s) if is_over else is_owned(t, i, m.owners) and is_acceptable(row, last, s)
        ):
            return WRONG
        mm = next_without_rows(s, figures) if is_over else row.mm
        is_complete = is_over or mm != s[MM]
        status = FULL
        if not is_complete:
            status = room_for(row, k, m.counts.shape[1] - REGISTERS - 1)
        if status == TAKEN:
            count_figures(row, figures, s[LAST_VMA])
            status = take_row(row, k)
            if status == TAKEN:
                s[ARRIVED] = 1
                i += 1
                s[ROW] = i
                last = row
        elif status == FULL:
            # the address space before is complete, or what is complete of this one has to make room
            status = tear_down(k, m, is_complete)
            if status == TAKEN and is_complete:
                begin_space(k, mm)
                if mm == NO_SPACE:
                    return DONE
        if status != TAKEN:
            return status


@inline
def is_whole(last: Row, s: I64) -> bool:
    """Whether the trace can end with this row."""
    return not (s[ARRIVED] and lacks_last(last))


@inline
def is_acceptable(row: Row, last: Row, s: I64) -> bool:
    """Whether a row is possible, and can follow the last one."""
    if not is_possible(row, s[ENTRIES], s[LARGEST]):
        return False
    return can_follow(row, last) if s[ARRIVED] else not lacks_first(row)


@inline
def next_without_rows(s: I64, figures: Figures) -> int:
    """The next address space that has no row at all, or NO_SPACE. Each is given once."""
    mm = s[EMPTY]
    while mm < len(figures) and figures[mm, ROWS] > 0:
        mm += 1
    s[EMPTY] = mm + 1
    return mm if mm < len(figures) else NO_SPACE


@inline
def is_owned(t: Columns, i: int, owners: Owners) -> bool:
    """Whether a row names the process that its address space is one of."""
    mm = t.mm[i]
    return mm < len(owners) and t.pid[i] == owners[mm, OWNER_PID] and t.comm[i] == owners[mm, OWNER_COMM]


# -- address spaces ------------------------------------------------------------------------------------------


@inline
def begin_space(k: Tables, mm: int) -> None:
    """Forget the address space before; where address spaces are laid out together, only its rows."""
    s = k.registers
    s[MM] = mm
    s[LAST_VMA] = -1
    s[LAST_TABLE_END] = -1
    s[LAST_HUGE] = -1
    s[DEPOSITED] = 0
    if s[TOGETHER]:
        return
    forget(k.notes, k.note_index, s[NOTES])
    s[STAMP] += 1
    for name in (WORDS, NOTES, PARTS, EXTENTS, START, OPEN_TABLE, TABLES):
        s[name] = 0
    for name in (PASSING, NEW_PASSING, KEPT, NEW_KEPT, WAITING, MISSING):
        s[name] = 0


@inline
def tear_down(k: Tables, m: States, is_complete: bool) -> int:
    """Tear the address space down by each algorithm -> TAKEN, or why not.

    is_complete: all its rows were taken. Else only its page-table pages before the one under way are torn
    down, to make room.
    """
    s = k.registers
    if s[MM] == NO_SPACE:
        return TAKEN
    if is_complete and s[CHECKED] and not is_consistent(k):
        return WRONG
    if not is_complete and (s[TOGETHER] or s[OPEN_TABLE] == s[START]):
        return BEGIN_AGAIN
    in_parts = not is_complete or s[PARTS] > 0
    if in_parts and len(m.folios) < s[ALGORITHMS]:
        return NEEDS_STATES
    end = s[EXTENTS] if is_complete else s[OPEN_TABLE]
    held = end
    page_tables = max(m.owners[s[MM], OWNER_TABLES] - s[DEPOSITED], 0)
    for a in range(s[ALGORITHMS]):
        own = a if in_parts else 0
        r = rules_of(m.rules[a])
        f, g, c = m.folios[own], m.gathers[own], m.counts[own]
        if s[PARTS] == 0:
            begin(c)
        copy_folios(k, f, r, c)
        exit_mmap(k.extents[:end], f, g, m.rules[a], c, s[START], int(is_complete), page_tables)
        if is_complete:
            for name in range(SEGMENTS):
                m.results[s[MM], a, name] = c[name]
        elif c[SEGMENTS] > 0:
            held = min(held, g[0, S_EXTENT])
    if is_complete:
        return TAKEN
    s[NEW_PASSING] = s[PASSING]
    s[NEW_KEPT] = s[KEPT]
    s[PARTS] += 1
    s[START] = end
    if held == 0:
        return BEGIN_AGAIN
    drop_extents(k, m, held)
    return TAKEN


@inline
def drop_extents(k: Tables, m: States, first: int) -> None:
    """Drop the extents before `first`, which no gather holds any more."""
    s = k.registers
    for n in range(first, s[EXTENTS]):
        for column in range(EXTENT_COLUMNS):
            k.extents[n - first, column] = k.extents[n, column]
    for name in (EXTENTS, OPEN_TABLE, START):
        s[name] -= first
    for a in range(s[ALGORITHMS]):
        for segment in range(m.counts[a, SEGMENTS]):
            m.gathers[a, segment, S_EXTENT] -= first


@inline
def copy_folios(k: Tables, f: FolioTable, r: Rules, c: I64) -> None:
    """Give an algorithm its copies of the folios that are new to it."""
    s = k.registers
    size = len(k.extents)
    for number in range(max(s[NEW_PASSING], s[PASSING] - size), s[PASSING]):
        copy_folio(k.folios, f, r, c, number % size)
    for place in range(size + s[NEW_KEPT], size + s[KEPT]):
        copy_folio(k.folios, f, r, c, place)


@inline
def copy_folio(folios: FolioTable, f: FolioTable, r: Rules, c: I64, place: int) -> None:
    """Copy a folio at capture, and put into it what depends on the algorithm."""
    for column in range(FOLIO_COLUMNS):
        f[place, column] = folios[place, column]
    is_anon = f[place, F_ANON] and not f[place, F_HUGETLB]
    if not r.counts_pages:
        # the kernel has no other count than the sum of the mapcounts
        is_partly = is_anon and f[place, F_ORDER] >= 2 and not f[place, F_SWAPCACHE]
        is_partly = is_partly and f[place, F_MAPCOUNT] < 1 << f[place, F_ORDER]
        f[place, F_PARTIALLY_MAPPED] = is_partly
        f[place, F_QUEUED] = is_partly
    if r.queued_order >= 0 and is_anon and f[place, F_ORDER] == r.queued_order:
        f[place, F_QUEUED] = 1
    if not r.drains_lru and f[place, F_WAITS]:
        # the batch holds a reference
        f[place, F_REFS] += 1
        if f[place, F_WAITS] == MLOCK_BATCH:
            c[MLOCKED] += 1
            c[MLOCKED + c[MLOCKED]] = place


# -- larger tables -------------------------------------------------------------------------------------------


@compiled
def move_words(words: WordTable, larger: WordTable, stamp: int) -> int:
    """Enter the words of an address space into a larger, empty table -> how many."""
    moved = 0
    for old in range(len(words)):
        if words[old, W_STAMP] == stamp:
            slot = first_slot(larger, words[old, W_NUMBER])
            while larger[slot, W_STAMP] == stamp:
                slot = (slot + 1) & (len(larger) - 1)
            for column in range(WORD_COLUMNS):
                larger[slot, column] = words[old, column]
            moved += 1
    return moved


@compiled
def index_notes(notes: NoteTable, index: I64, count: int) -> int:
    """Enter the first notes into an empty index -> how many."""
    for note in range(count):
        slot = index_slot(notes, index, notes[note, N_KEY])
        index[slot] = note
        notes[note, N_SLOT] = slot
    return count
