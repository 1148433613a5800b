# SPDX-License-Identifier: Apache-2.0
"""Rows of a trace -> the extents and folios that the machine takes apart (see `state.py`), compiled.

Rows are taken one by one, in address order. What later rows say of a page is not known yet: the tables of
`pages.py` remember what was seen of folios and pages that come back. In a trace whose rows have to be
checked, they also show what is impossible.

In every function k is the `Tables`, and s its registers.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.jit.compiled import I64, Array, inline
from replay.teardown.algorithms import PAGEVEC_SIZE
from replay.teardown.pages import (
    FREE,
    N_FACTS,
    N_KEY,
    N_MAPCOUNT,
    N_MAPPED,
    N_ROW,
    N_SEEN,
    N_SEEN_MAPCOUNT,
    W_CLAIMED,
    W_MAPPED,
    NoteTable,
    WordTable,
    add_note,
    claim,
    index_slot,
    is_page_key,
    key_of,
    words_needed,
)
from replay.teardown.state import (
    ANON,
    BEGINS,
    CONTIGUOUS,
    DIRTY,
    F_ANON,
    F_HUGETLB,
    F_MAPCOUNT,
    F_MAPPED,
    F_MEMCG,
    F_ORDER,
    F_PARTIALLY_MAPPED,
    F_PMDS,
    F_QUEUED,
    F_REFS,
    F_SWAPCACHE,
    F_WAITS,
    FLAGS,
    FOLIO,
    FOLIO_COLUMNS,
    FOLIO_END,
    HUGE_ZERO,
    KIND,
    LOCKED,
    LRU_ADD_BATCH,
    MAPCOUNT,
    MEMCG,
    MLOCK_BATCH,
    NO_FOLIO,
    OFF_LRU,
    ORDER,
    PAGE_ROW,
    PAGES,
    PFN,
    SWAPCACHE,
    TABLE,
    TABLE_END,
    UFFD_WP,
    VPN,
    ExtentTable,
    FolioTable,
)
from replay.trace.accept import Row
from replay.trace.kpageflags import (
    FOLIO_FLAGS,
    KPF_ANON,
    KPF_HUGE,
    KPF_LRU,
    KPF_MLOCKED,
    KPF_SWAPBACKED,
    KPF_SWAPCACHE,
    bit,
)
from replay.trace.schema import HUGETLB, PAGE, PMD, SPECIAL, SWAP

FLAG_ANON: Final = bit(KPF_ANON)
FLAG_HUGE: Final = bit(KPF_HUGE)
FLAG_LRU: Final = bit(KPF_LRU)
FLAG_MLOCKED: Final = bit(KPF_MLOCKED)
FLAG_SWAPBACKED: Final = bit(KPF_SWAPBACKED)
FLAG_SWAPCACHE: Final = bit(KPF_SWAPCACHE)
ORDER_BITS: Final = 6

(
    TAKEN,
    DONE,
    WRONG,  # what the rows say is impossible
    NEEDS_WORDS,
    NEEDS_NOTES,
    NEEDS_FOLIOS,
    NEEDS_MLOCK_ROOM,
    NEEDS_STATES,  # a state for each algorithm: the address space is taken in parts
    FULL,  # the extents table has no room: what is whole of it has to be torn down first
    BEGIN_AGAIN,  # only the whole address space at once can be replayed, in a larger workspace
) = range(10)
"""What a function that takes rows says. After a NEEDS_ it has changed nothing, and can be called again."""

NO_SPACE: Final = -1

NO_NOTE: Final = -1

REFUSED, TOO_LATE = -1, -2
"""Instead of a note or a place: what is said of it is impossible, or would change what was torn down."""

(
    WORDS,  # in use; `pages.claim` counts them
    NOTES,  # in use
    ROW,  # the next row of the batch
    ARRIVED,  # whether any row of the trace was taken
    # what was asked for
    ENTRIES,  # PTEs of a page-table page
    LARGEST,  # the largest order of a folio
    ALGORITHMS,
    CHECKED,  # whether rows have to be checked
    IS_PART,  # whether other rows of the address spaces may be missing
    TOGETHER,  # whether address spaces share the state of their folios
    # the address space
    MM,  # NO_SPACE before the first
    EMPTY,  # where to look for address spaces without rows
    STAMP,
    PARTS,  # of it that were torn down already
    EXTENTS,  # rows of the extents table in use
    START,  # the first of them that was not torn down yet
    OPEN_TABLE,  # the first of the page-table page under way
    TABLES,  # page-table pages and huge mappings so far
    PASSING,  # folios so far that are mapped as a whole by one row
    NEW_PASSING,  # of those, what the algorithms have seen
    KEPT,  # rows of other folios, and of pages
    NEW_KEPT,
    WAITING,  # folios in the mlock batch at capture
    MISSING,  # further mappings of pages that are mapped several times
    DEPOSITED,  # page tables deposited under PMDs
    LAST_VMA,
    LAST_TABLE_END,
    LAST_HUGE,
    STATE_REGISTERS,
) = range(29)

(
    # pages by type, in the order of `totals.TYPES`
    ANON_PAGES,
    FILE_PAGES,
    SHMEM_PAGES,
    SWAP_PAGES,
    HUGETLB_PAGES,
    SPECIAL_PAGES,
    MARKER_PAGES,
    TYPES,
) = range(8)
VMAS, DIRTY_PTES, ROWS, LARGE_ROWS, SHARED_ANON, FIGURE_COLUMNS = range(TYPES, TYPES + 6)
"""Columns of `figures`, which has a row for each address space. LARGE_ROWS: extents of folios above
order 0. SHARED_ANON: whether others map any of its anonymous pages."""

Figures = Annotated[npt.NDArray[np.int64], Array("int64", 2, FIGURE_COLUMNS)]

OWNER_PID, OWNER_COMM, OWNER_TABLES, OWNER_COLUMNS = range(4)

Owners = Annotated[npt.NDArray[np.int64], Array("int64", 2, OWNER_COLUMNS)]


class Tables(NamedTuple):
    """What rows are laid out into; all int64.

    registers: the names above. words, notes, note_index: see `pages.py`. extents, folios: see `state.py`.
    folios has one row per extent for folios that pass, then those that are kept.
    """

    registers: I64
    words: WordTable
    notes: NoteTable
    note_index: I64
    extents: ExtentTable
    folios: FolioTable


@inline
def take_row(row: Row, k: Tables) -> int:
    """Lay one row out, for which there is room -> TAKEN, WRONG, or BEGIN_AGAIN."""
    s = k.registers
    end = min((row.vpn | (s[ENTRIES] - 1)) + 1, row.vma_end)
    begins = row.begins or row.is_huge_zero
    is_huge = begins or row.kind == PMD or row.kind == HUGETLB
    if begins or row.vma != s[LAST_VMA] or end != s[LAST_TABLE_END] or is_huge != s[LAST_HUGE]:
        s[TABLES] += 1
        s[OPEN_TABLE] = s[EXTENTS]
    s[LAST_VMA] = row.vma
    s[LAST_TABLE_END] = end
    s[LAST_HUGE] = is_huge
    if row.vpn & (s[ENTRIES] - 1) == 0:
        s[DEPOSITED] += row.is_huge_zero or (row.kind == PMD and row.kpageflags & FLAG_ANON != 0)
    if row.kind > HUGETLB:
        put(row, k, 0, row.pages, NO_FOLIO, NO_FOLIO)
        return TAKEN
    if row.order == 0:
        return take_small(row, k)
    return take_large(row, k)


@inline
def room_for(row: Row, k: Tables, mlock_room: int) -> int:
    """Whether there is room for all that a row can add -> TAKEN, or what it needs.

    mlock_room: folios that the mlock batch has room for.
    """
    s = k.registers
    repeats = own_of(row, s) > 1
    if s[EXTENTS] + (row.pages if repeats else 1) > len(k.extents):
        return FULL
    if row.kind > HUGETLB:
        return TAKEN
    if 2 * (s[WORDS] + words_needed(row.pages) + words_needed(row.size)) > len(k.words):
        return NEEDS_WORDS
    if s[NOTES] + 1 + (row.pages if repeats else 0) > len(k.notes):
        return NEEDS_NOTES
    kept = row.pages if repeats or gets_locked(row) else 0
    if len(k.extents) + s[KEPT] + kept + 1 > len(k.folios):
        return NEEDS_FOLIOS
    if s[WAITING] + row.pages + PAGEVEC_SIZE > mlock_room:
        return NEEDS_MLOCK_ROOM
    return TAKEN


@inline
def own_of(row: Row, s: I64) -> int:
    """By how many rows a page is mapped, as far as its state is concerned."""
    if s[TOGETHER] and row.own == 1 and row.mapcount > 1:
        return 2  # another address space may map it
    return row.own


@inline
def is_hugetlb(row: Row) -> bool:
    """Whether the folio is one of hugetlb."""
    return row.kind == HUGETLB or row.kpageflags & FLAG_HUGE != 0


@inline
def is_off_lru(row: Row) -> bool:
    """Whether the folio is on no LRU list: some CPU's LRU-add or mlock batch holds a reference to it."""
    return row.kind <= PMD and not is_hugetlb(row) and row.kpageflags & FLAG_LRU == 0


@inline
def gets_locked(row: Row) -> bool:
    """Whether an mlock batch has the page, or gets it: it may be freed later, so it needs a state."""
    return row.vma_flags & 1 != 0 or (is_off_lru(row) and row.kpageflags & FLAG_MLOCKED != 0)


# -- figures -------------------------------------------------------------------------------------------------


@inline
def count_figures(row: Row, figures: Figures, last_vma: int) -> None:
    """Add a row to the figures of its address space. last_vma: of the row before in it."""
    figures[row.mm, place_of(row)] += row.pages
    figures[row.mm, VMAS] += row.vma != last_vma
    figures[row.mm, DIRTY_PTES] += row.pages if row.dirty else 0
    figures[row.mm, ROWS] += 1
    figures[row.mm, LARGE_ROWS] += row.order > 0
    if row.kind <= PMD and row.kpageflags & FLAG_ANON and row.mapcount > row.own:
        figures[row.mm, SHARED_ANON] = 1


@inline
def place_of(row: Row) -> int:
    """The column of `figures` that a row's pages are counted in."""
    if row.kind <= PMD:
        if row.kpageflags & FLAG_ANON:
            return ANON_PAGES
        return SHMEM_PAGES if row.kpageflags & FLAG_SWAPBACKED else FILE_PAGES
    if row.kind == SWAP:
        return SWAP_PAGES
    if row.kind == HUGETLB:
        return HUGETLB_PAGES
    return SPECIAL_PAGES if row.kind == SPECIAL else MARKER_PAGES


# -- folios and pages ----------------------------------------------------------------------------------------


@inline
def take_small(row: Row, k: Tables) -> int:
    """A row of order-0 pages."""
    s = k.registers
    if own_of(row, s) > 1:
        return take_repeated(row, k, NO_FOLIO, NO_NOTE)
    if s[CHECKED] and not claim(k.words, s, s[STAMP], row.pfn, row.pages, W_CLAIMED):
        return WRONG
    first = NO_FOLIO
    if gets_locked(row):
        first = len(k.extents) + s[KEPT]
        for _ in range(row.pages):
            if keep(row, k) == TOO_LATE:
                return BEGIN_AGAIN
    put(row, k, 0, row.pages, first, NO_FOLIO)
    return TAKEN


@inline
def take_large(row: Row, k: Tables) -> int:
    """A row of pages of a large folio."""
    s = k.registers
    own = own_of(row, s)
    note = NO_NOTE
    if own == 1 and is_whole_folio(row):
        if s[CHECKED] and not claim(k.words, s, s[STAMP], row.folio, row.size, W_CLAIMED):
            return WRONG
        put(row, k, 0, row.pages, NO_FOLIO, NO_FOLIO)
        return TAKEN
    if own == 1 and row.pages == row.size:
        # the row alone maps the folio: its place serves again when the extent is gone
        folio = s[PASSING] % len(k.extents)
        s[PASSING] += 1
        fill_folio(row, k.folios, folio)
        if s[CHECKED] and not (
            fits(row.folio_mapped - row.size, row.folio_mapcount - row.size * row.mapcount)
            and claim(k.words, s, s[STAMP], row.folio, row.size, W_CLAIMED)
        ):
            return WRONG
    else:
        note = note_of(row, k, row.folio, NO_NOTE, False)
        if note < 0:
            return WRONG if note == REFUSED else BEGIN_AGAIN
        folio = k.notes[note, N_ROW]
    if row.begins:
        if is_old(folio, k):
            return BEGIN_AGAIN
        # a huge mapping holds one reference, not one for each page
        k.folios[folio, F_REFS] -= row.size - 1
    if own > 1:
        return take_repeated(row, k, folio, note)
    if note != NO_NOTE:
        if s[CHECKED] and not claim(k.words, s, s[STAMP], row.pfn, row.pages, W_MAPPED):
            return WRONG
        k.notes[note, N_SEEN] += row.pages
        k.notes[note, N_SEEN_MAPCOUNT] += row.pages * row.mapcount
    put(row, k, 0, row.pages, folio, NO_FOLIO)
    return TAKEN


@inline
def is_whole_folio(row: Row) -> bool:
    """Whether the row maps each page of a large folio alike, and nothing else tells of its state."""
    return (
        row.kind == PAGE
        and row.pages == row.size
        and row.folio_mapped == row.size
        and row.folio_mapcount == row.size * row.mapcount
        and row.kpageflags & (FLAG_SWAPCACHE | FLAG_HUGE) == 0
        and not gets_locked(row)
    )


@inline
def take_repeated(row: Row, k: Tables, folio: int, folio_note: int) -> int:
    """A row of pages that are mapped several times. folio, folio_note: NO_FOLIO and NO_NOTE for order 0.

    The pages have places of their own among the folios. Where those are not neighbours, the extent is cut.
    """
    is_small = folio_note == NO_NOTE
    begins = 0
    first = 0
    before = 0
    for page in range(row.pages + 1):
        place = NO_FOLIO
        if page < row.pages:
            note = note_of(row, k, row.pfn + page, folio_note, True)
            if note < 0:
                return WRONG if note == REFUSED else BEGIN_AGAIN
            place = k.notes[note, N_ROW]
            k.notes[note, N_SEEN] += 1
            k.registers[MISSING] -= 1
            if row.kind == PMD:
                if is_old(place, k):
                    return BEGIN_AGAIN
                k.folios[place, F_PMDS] += 1
        if page > 0 and place != before + 1:
            put(row, k, begins, page - begins, first if is_small else folio, NO_FOLIO if is_small else first)
            begins = page
        if begins == page:
            first = place
        before = place
    return TAKEN


@inline
def note_of(row: Row, k: Tables, frame: int, folio_note: int, is_page: bool) -> int:
    """The note of a large folio, or of a page of a row that is mapped several times; REFUSED, or TOO_LATE.

    frame: the head of the folio, or the page. folio_note: of the page's folio, NO_NOTE if it is of order 0.
    """
    s = k.registers
    notes = k.notes
    key = key_of(frame, is_page)
    facts = (row.kpageflags & FOLIO_FLAGS) << ORDER_BITS | row.order
    mapped = row.mapcount if is_page else row.folio_mapped
    mapcount = row.own if is_page else row.folio_mapcount
    slot = index_slot(notes, k.note_index, key)
    note = k.note_index[slot]
    if note == FREE:
        is_part = is_page and row.order > 0
        column = W_MAPPED if is_part else W_CLAIMED
        if s[CHECKED] and not claim(k.words, s, s[STAMP], frame, 1 if is_page else row.size, column):
            return REFUSED
        place = keep_page(k, row.mapcount) if is_part else keep(row, k)
        if place == TOO_LATE:
            return TOO_LATE
        note = s[NOTES]
        add_note(notes, k.note_index, slot, note, key)
        s[NOTES] += 1
        notes[note, N_FACTS] = facts
        notes[note, N_MAPPED] = mapped
        notes[note, N_MAPCOUNT] = mapcount
        notes[note, N_ROW] = place
        if is_page:
            s[MISSING] += row.own
        if is_part:
            notes[folio_note, N_SEEN] += 1
            notes[folio_note, N_SEEN_MAPCOUNT] += row.mapcount
        return note
    is_alike = (
        notes[note, N_FACTS] == facts
        and notes[note, N_MAPPED] == mapped
        and notes[note, N_MAPCOUNT] == mapcount
        and not (is_page and notes[note, N_SEEN] >= row.own)
    )
    return note if is_alike or not s[CHECKED] else REFUSED


@inline
def is_consistent(k: Tables) -> bool:
    """Whether the rows of an address space that is complete fit each other."""
    s = k.registers
    if s[MISSING] > 0 and not s[IS_PART]:
        return False
    for note in range(s[NOTES]):
        pages = k.notes[note, N_MAPPED] - k.notes[note, N_SEEN]
        mapcounts = k.notes[note, N_MAPCOUNT] - k.notes[note, N_SEEN_MAPCOUNT]
        if not is_page_key(k.notes[note, N_KEY]) and not fits(pages, mapcounts):
            return False
    return True


@inline
def fits(pages: int, mapcounts: int) -> bool:
    """Whether so many further pages of a folio, mapped by others, can have so many mapcounts in sum."""
    return pages >= 0 and mapcounts >= pages and (pages > 0 or mapcounts == 0)


# -- the tables of the machine -------------------------------------------------------------------------------


@inline
def keep(row: Row, k: Tables) -> int:
    """A place for a folio until the address space ends; TOO_LATE if the teardown would have begun with it."""
    s = k.registers
    place = len(k.extents) + s[KEPT]
    fill_folio(row, k.folios, place)
    if k.folios[place, F_WAITS] == MLOCK_BATCH:
        if s[PARTS] > 0:
            return TOO_LATE
        s[WAITING] += 1
    s[KEPT] += 1
    return place


@inline
def keep_page(k: Tables, mapcount: int) -> int:
    """A place for a page of a large folio."""
    s = k.registers
    place = len(k.extents) + s[KEPT]
    for column in range(FOLIO_COLUMNS):
        k.folios[place, column] = 0
    k.folios[place, F_MAPCOUNT] = mapcount
    s[KEPT] += 1
    return place


@inline
def is_old(place: int, k: Tables) -> bool:
    """Whether the algorithms have copied a folio already."""
    return len(k.extents) <= place < len(k.extents) + k.registers[NEW_KEPT]


@inline
def fill_folio(row: Row, f: FolioTable, place: int) -> None:
    """The state of a folio at capture.

    References: one per PTE mapping by anyone, one per page in the page cache or swap cache. Anonymous folios
    that are partly mapped are on the deferred split queue already, but for those in the swap cache, which
    deferred_split_folio() refuses.
    """
    is_anon = row.kpageflags & FLAG_ANON != 0
    in_swapcache = is_anon and row.kpageflags & FLAG_SWAPCACHE != 0
    is_partly = is_anon and not is_hugetlb(row) and row.order >= 2 and row.folio_mapped < row.size
    is_partly = is_partly and not in_swapcache
    f[place, F_ORDER] = row.order
    f[place, F_ANON] = is_anon
    f[place, F_HUGETLB] = is_hugetlb(row)
    f[place, F_MAPPED] = row.folio_mapped
    f[place, F_MAPCOUNT] = row.folio_mapcount
    f[place, F_REFS] = row.folio_mapcount + (row.size if in_swapcache or not is_anon else 0)
    f[place, F_SWAPCACHE] = in_swapcache
    f[place, F_PARTIALLY_MAPPED] = is_partly
    f[place, F_QUEUED] = is_partly
    f[place, F_PMDS] = 0
    f[place, F_MEMCG] = row.memcg
    f[place, F_WAITS] = 0
    if is_off_lru(row):
        f[place, F_WAITS] = MLOCK_BATCH if row.kpageflags & FLAG_MLOCKED else LRU_ADD_BATCH


@inline
def put(row: Row, k: Tables, offset: int, pages: int, folio: int, page_place: int) -> None:
    """An extent: pages from `offset` on of a row. It is joined with the one before if no algorithm tells."""
    s = k.registers
    e = k.extents
    n = s[EXTENTS]
    e[n, KIND] = HUGE_ZERO if row.is_huge_zero else row.kind
    e[n, TABLE] = s[TABLES]
    e[n, TABLE_END] = s[LAST_TABLE_END]
    e[n, VPN] = row.vpn + offset
    e[n, PAGES] = pages
    e[n, PFN] = row.pfn + offset
    e[n, FOLIO_END] = row.folio + row.size
    e[n, ORDER] = row.order
    e[n, MAPCOUNT] = row.mapcount
    e[n, FLAGS] = flags_of(row, offset)
    e[n, MEMCG] = row.memcg
    e[n, FOLIO] = folio
    e[n, PAGE_ROW] = page_place
    if n > s[OPEN_TABLE] and joins(e, n):
        e[n - 1, PAGES] += pages
    else:
        s[EXTENTS] = n + 1


@inline
def flags_of(row: Row, offset: int) -> int:
    """The bits of FLAGS of the pages from `offset` on."""
    flags = 0
    if row.kpageflags & FLAG_ANON:
        flags |= ANON | (SWAPCACHE if row.kpageflags & FLAG_SWAPCACHE else 0)
    elif row.dirty:
        flags |= DIRTY
    flags |= UFFD_WP if row.uffd_wp else 0
    flags |= CONTIGUOUS if row.contiguous else 0
    flags |= BEGINS if offset == 0 and row.begins else 0
    flags |= OFF_LRU if is_off_lru(row) else 0
    return flags | (LOCKED if row.vma_flags & 1 else 0)


@inline
def joins(e: ExtentTable, n: int) -> bool:
    """Whether no algorithm tells extent n from the one before: folios without a state, swap entries.

    An order-0 page, or a whole large folio, is gathered by itself wherever its frames lie: what counts is
    that the next one is its neighbour in the address space, is dirty or clean like it, and is freed like it
    or not. This makes scattered pages as quick as contiguous ones.
    """
    return (
        e[n, FOLIO] == NO_FOLIO
        and e[n - 1, FOLIO] == NO_FOLIO
        and e[n, KIND] == e[n - 1, KIND]
        and e[n, KIND] != HUGE_ZERO
        and e[n, ORDER] == e[n - 1, ORDER]
        and e[n, VPN] == e[n - 1, VPN] + e[n - 1, PAGES]
        and e[n, FLAGS] == e[n - 1, FLAGS]
        and e[n, MEMCG] == e[n - 1, MEMCG]
        and (e[n, MAPCOUNT] == 1) == (e[n - 1, MAPCOUNT] == 1)
    )
