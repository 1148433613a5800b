# SPDX-License-Identifier: Apache-2.0
"""The pages and folios that an address space was seen to map so far: sets and tables for compiled code.

Frames are bits of words of 64, in an open hash table. Folios that are mapped in more than one row, or not as
a whole, and pages that are mapped more than once have notes, found by a hash index. Nothing here allocates:
`one_pass` asks for room before a row is taken.
"""

from __future__ import annotations

from typing import Annotated, Final

import numpy as np
import numpy.typing as npt

from replay.jit.compiled import I64, Array, inline

WORD_BITS: Final = 6
WORD: Final = 1 << WORD_BITS
"""Frames of one word."""

# -- the words table: one row per 64 frames, valid if its stamp is that of the address space -----------------
(
    W_STAMP,
    W_NUMBER,
    W_CLAIMED,  # frames that belong to a folio seen, or to an order-0 page seen
    W_MAPPED,  # pages of large folios that are mapped
    WORD_COLUMNS,
) = range(5)

# -- the notes: folios that need more than one row, and pages that are mapped several times ------------------
(
    N_KEY,  # what the index finds: `key_of`
    N_SLOT,  # its place in the index
    N_FACTS,  # order and flags, which all its rows must say alike
    N_MAPPED,  # folio_mapped; of a page: its mapcount
    N_MAPCOUNT,  # folio_mapcount; of a page: own
    N_SEEN,  # pages of the folio seen; of a page: how often it was seen
    N_SEEN_MAPCOUNT,  # sum of the mapcounts of these pages
    N_ROW,  # its row in the folios table of `state.py`
    NOTE_COLUMNS,
) = range(9)

WordTable = Annotated[npt.NDArray[np.int64], Array("int64", 2, WORD_COLUMNS)]
NoteTable = Annotated[npt.NDArray[np.int64], Array("int64", 2, NOTE_COLUMNS)]

FREE: Final = -1
"""An unused slot of an index."""


@inline
def words_needed(frames: int) -> int:
    """Words that so many frames in a row can touch."""
    return (frames >> WORD_BITS) + 2


@inline
def claim(words: WordTable, used: I64, stamp: int, first: int, frames: int, column: int) -> bool:
    """Set the bits of some frames -> whether none of them was set. used: [words in use]."""
    frame = first
    end = first + frames
    while frame < end:
        number = frame >> WORD_BITS
        stop = min(end, (number + 1) << WORD_BITS)
        # -1 has all bits: those from the frame on, up to the end of the word, are a number with a sign
        bits = -1 if stop & (WORD - 1) == 0 else ~(-1 << (stop - frame))
        mask = bits << (frame & (WORD - 1))
        slot = word_slot(words, used, stamp, number)
        if words[slot, column] & mask:
            return False
        words[slot, column] |= mask
        frame = stop
    return True


@inline
def word_slot(words: WordTable, used: I64, stamp: int, number: int) -> int:
    """The row of a word, which is made if it is not there."""
    slot = first_slot(words, number)
    while words[slot, W_STAMP] == stamp and words[slot, W_NUMBER] != number:
        slot = (slot + 1) & (len(words) - 1)
    if words[slot, W_STAMP] != stamp:
        words[slot, W_STAMP] = stamp
        words[slot, W_NUMBER] = number
        words[slot, W_CLAIMED] = 0
        words[slot, W_MAPPED] = 0
        used[0] += 1
    return slot


@inline
def first_slot(words: WordTable, number: int) -> int:
    """Where a word is looked for first: neighbours lie beside each other."""
    return (number ^ (number >> 20)) & (len(words) - 1)


@inline
def key_of(frame: int, is_page: bool) -> int:
    """What a note is found by: the head of a folio, or a page."""
    return 2 * frame + is_page


@inline
def is_page_key(key: int) -> bool:
    """Whether a note of this key is that of a page."""
    return key & 1 != 0


@inline
def index_slot(notes: NoteTable, index: I64, key: int) -> int:
    """The slot of a note in the index, or the free slot where it belongs."""
    slot = (key ^ (key >> 10) ^ (key >> 21)) & (len(index) - 1)
    while index[slot] != FREE and notes[index[slot], N_KEY] != key:
        slot = (slot + 1) & (len(index) - 1)
    return slot


@inline
def add_note(notes: NoteTable, index: I64, slot: int, note: int, key: int) -> None:
    """Begin a note, in a free slot of the index."""
    index[slot] = note
    for column in range(NOTE_COLUMNS):
        notes[note, column] = 0
    notes[note, N_KEY] = key
    notes[note, N_SLOT] = slot


@inline
def forget(notes: NoteTable, index: I64, count: int) -> None:
    """Empty an index that has so many notes."""
    for note in range(count):
        index[notes[note, N_SLOT]] = FREE
