# SPDX-License-Identifier: Apache-2.0
"""kpageflags and kpagecount of whole folios: also of their pages that the process does not map.

The order of a folio is known only from the run of pages COMPOUND_HEAD..last COMPOUND_TAIL, so reading goes
on to both ends of every folio touched (fs/proc/page.c, stable_page_flags()).
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.jit.compiled import I32, I64, I64s, compiled, inline
from replay.jit.pread import pread
from replay.procfs.files import U64, check_read
from replay.procfs.pagemap_words import MOST_WORDS, read_pieces
from replay.trace.kpageflags import KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL, KPF_IDLE, KPF_NOPAGE, bit

Bools = npt.NDArray[np.bool_]

HEAD: Final = bit(KPF_COMPOUND_HEAD)
TAIL: Final = bit(KPF_COMPOUND_TAIL)
NOPAGE: Final = bit(KPF_NOPAGE)
IDLE: Final = bit(KPF_IDLE)
"""Comes and goes by itself (page_idle), and is left out."""

BRIDGE_FRAMES: Final = 7
"""Gaps between frames up to this size are read through: a word costs 0.04 µs, a system call 0.3 µs."""

SHARED_WORDS: Final = 1 << 15
"""Words from which on two threads share the reading."""

SPARE_WORDS: Final = 1 << 14
"""Room, beside a quarter, for what is read of folios that are wanted in part."""

NO_ROOM: Final = -1
UNREADABLE: Final = -2


class Pages(NamedTuple):
    """Words of the frames read: sorted pieces [start, end), laid out one after the other.

    start, end, offset: int64, shape (pieces,): offset is the index of frame `start`.
    flags: uint64, counts: int64, shape (frames,). memcg: int64, inode numbers of memory cgroups, which say
    nothing of tails; shape (frames,), or (0,) where nobody says.
    """

    start: I64
    end: I64
    offset: I64
    flags: U64
    counts: I64
    memcg: I64


class Folios(NamedTuple):
    """Folios of `Pages`.

    number: int32, shape (frames,): the folio that each frame belongs to; -1: none, the frame is of order 0.
    facts: int64, shape (4, at least the number of folios), rows `PLACE` to `MAPCOUNT`.
    """

    number: I32
    facts: I64s


PLACE, ORDER, MAPPED, MAPCOUNT = range(4)
"""Of a folio: index of its head in `Pages`, order, pages mapped by anyone, the sum of their mapcounts.

The order is 0 if head and tails do not fit together, because the folio changed, or was read in part: its
frames speak for themselves.
"""


class _Files(NamedTuple):
    """Descriptors of kpageflags, kpagecount and kpagecgroup (-1: none)."""

    flags: int
    counts: int
    memcg: int


def read(
    flags_fd: int, counts_fd: int, memcg_fd: int, frames: I64, counts: I32, pool: Executor | None
) -> Pages:
    """Flags and counts of all frames of all folios that hold a frame of the ranges [frame, frame + count).

    memcg_fd: of kpagecgroup; -1: none. frames: int64, sorted. pool: may help. Frames past the end of memory
    read as NOPAGE, not mapped.
    """
    files = _Files(flags_fd, counts_fd, memcg_fd)
    if not len(frames):
        frames, counts = np.zeros(1, np.int64), np.ones(1, np.int32)  # rows of swap entries point to it
    start, end = pieces_of(frames, counts, BRIDGE_FRAMES)
    words = int((end - start).sum())
    if pool is None or words < SHARED_WORDS:
        return _read_share(files, start, end)
    half, other_half = _halves(start, end, words)
    other = pool.submit(_read_share, files, *other_half)
    try:
        one = _read_share(files, *half, spare=words)
    finally:
        other.exception()
    return _joined(one, other.result())


def pieces_of(frames: I64, sizes: I32, bridge: int) -> tuple[I64, I64]:
    """Sorted ranges [frame, frame + size) -> disjoint pieces, joined over gaps of up to `bridge` frames."""
    start, end = np.empty(len(frames), np.int64), np.empty(len(frames), np.int64)
    pieces = _join(frames, sizes, bridge, start, end)
    return start[:pieces], end[:pieces]


@compiled
def _join(frames: I64, sizes: I32, bridge: int, start: I64, end: I64) -> int:
    """Fill in the pieces; returns how many there are."""
    pieces = 0
    for number in range(len(frames)):
        first, last = frames[number], frames[number] + sizes[number]
        if pieces > 0 and first - end[pieces - 1] <= bridge:
            end[pieces - 1] = max(end[pieces - 1], last)
        else:
            start[pieces], end[pieces] = first, last
            pieces += 1
    return pieces


def _halves(start: I64, end: I64, words: int) -> tuple[tuple[I64, I64], tuple[I64, I64]]:
    """The pieces as two lists of about as many words."""
    before = np.cumsum(end - start) - (end - start)
    last = int(np.searchsorted(before, words // 2, side="right")) - 1
    cut = start[last] + words // 2 - before[last]
    return (
        (start[: last + 1], np.append(end[:last], cut)),
        (np.append(cut, start[last + 1 :]), end[last:]),
    )


def _read_share(files: _Files, wanted_start: I64, wanted_end: I64, spare: int = 0) -> Pages:
    """Words of the folios of some pieces, in arrays that are longer by `spare` words."""
    start, end = np.empty_like(wanted_start), np.empty_like(wanted_end)
    room = int((wanted_end - wanted_start).sum())
    while True:
        room += room // 4 + SPARE_WORDS
        flags = np.empty(room + spare, np.int64)  # nothing is used of memory that is not written to
        pieces = read_flags(files.flags, wanted_start, wanted_end, start, end, flags)
        if pieces != NO_ROOM:
            break
        room *= 2
    check_read(pieces >= 0, files.flags)
    start, end = start[:pieces], end[:pieces]
    size = end - start
    words = int(size.sum())
    counts = _read_words(files.counts, start, size, words, spare)
    memcg = np.zeros(0, np.int64)
    if files.memcg >= 0:
        memcg = np.empty(words + spare, np.int64)
        check_read(read_heads(files.memcg, start, size, flags, memcg) >= 0, files.memcg)
    flags[:words] &= ~IDLE
    return Pages(start, end, np.cumsum(size) - size, flags[: words + spare].view(np.uint64), counts, memcg)


def _read_words(fd: int, start: I64, size: I64, words: int, spare: int) -> I64:
    """The words of pieces; 0 for what the file does not have, and nothing in the `spare` words behind."""
    found = np.empty(words + spare, np.int64)
    found[:words] = 0
    check_read(read_pieces(fd, start, size, found) >= 0, fd)
    return found


@compiled
def read_heads(fd: int, start: I64, size: I64, flags: I64, out: I64) -> int:
    """Read the words of pieces into `out`, but for long runs of tails, which get the word of their head.

    flags: of the same frames. A word that the file does not have is 0. Returns 0; -1 - i if piece i could
    not be read.
    """
    at = 0
    for piece in range(len(start)):
        end, shift = at + size[piece], start[piece] - at
        while at < end:
            stop, behind = at, at
            # what is read goes on to the first head whose tails are worth a system call to skip
            while behind < end and behind - stop <= BRIDGE_FRAMES:
                stop = behind + 1
                behind = stop
                if flags[stop - 1] & HEAD != 0:
                    while behind < end and flags[behind] & TAIL != 0:
                        behind += 1
                    if behind - stop <= BRIDGE_FRAMES:
                        stop = behind
            while at < stop:
                count = pread(fd, out, at, min(stop - at, MOST_WORDS), shift + at)
                if count < 0:
                    return -1 - piece
                if count == 0:
                    out[at:stop] = 0
                    count = stop - at
                at += count
            out[at:behind] = out[at - 1]
            at = behind
    return 0


@compiled
def read_flags(fd: int, wanted_start: I64, wanted_end: I64, start: I64, end: I64, flags: I64) -> int:
    """Read wanted pieces, and on to both ends of the folios that they touch, as pieces [start, end).

    Returns the number of pieces, `NO_ROOM` or `UNREADABLE`.
    """
    pieces = used = 0
    for wanted in range(len(wanted_start)):
        before = end[pieces - 1] if pieces > 0 else 0
        first, last = max(wanted_start[wanted], before), wanted_end[wanted]
        # of what was read with a folio before, only the last frame can be of a folio that goes on
        if last < first or last == wanted_start[wanted]:
            continue
        # one frame more shows whether a folio ends here; not worth it for a lone page
        reach = last + (last - first > 1)
        if used + reach - first > len(flags):
            return NO_ROOM
        if not _fill(fd, flags, used, reach - first, first):
            return UNREADABLE
        while first > before and flags[used] & TAIL != 0:
            # an aligned folio begins at the latest where the lowest set bit is cleared
            back = max(first & (first - 1), before)
            if used + reach - back > len(flags):
                return NO_ROOM
            _move(flags, used, used + first - back, reach - first)
            if not _fill(fd, flags, used, first - back, back):
                return UNREADABLE
            first = back
        if pieces > 0 and first == before:
            used -= before - start[pieces - 1]
        else:
            start[pieces] = first
            pieces += 1
        first = start[pieces - 1]
        while True:
            more = _frames_missing(flags, used, first, reach, last)
            if more == 0:
                break
            if used + reach - first + more > len(flags):
                return NO_ROOM
            if not _fill(fd, flags, used + reach - first, more, reach):
                return UNREADABLE
            reach += more
        end[pieces - 1] = reach
        used += reach - first
    return pieces


@inline
def _fill(fd: int, flags: I64, at: int, count: int, first: int) -> bool:
    """Read words first.. to flags[at:]; what the file does not have is NOPAGE. False if that fails."""
    while count > 0:
        words = pread(fd, flags, at, min(count, MOST_WORDS), first)
        if words < 0:
            return False
        if words == 0:
            break
        at, count, first = at + words, count - words, first + words
    for place in range(at, at + count):
        flags[place] = NOPAGE
    return True


@inline
def _move(flags: I64, source: int, target: int, count: int) -> None:
    """Move words up."""
    for place in range(count - 1, -1, -1):
        flags[target + place] = flags[source + place]


@inline
def _frames_missing(flags: I64, at: int, first: int, reach: int, last: int) -> int:
    """How many frames to read behind a piece [first, reach), wanted up to `last`; 0: no folio goes on."""
    place = at + reach - first - 1
    if flags[place] & (HEAD | TAIL) == 0:
        return 0
    while place > at and flags[place] & TAIL != 0:
        place -= 1
    head = first + place - at
    if flags[place] & TAIL != 0 or head >= last:
        return 0  # no head, or that of a folio of which no frame is wanted
    size = reach - head
    power = 1
    while power < size:
        power *= 2
    if power > size:
        return power + 1 - size
    # complete, unless it could be larger and aligned
    return int(head & (2 * size - 1) == 0)


def _joined(one: Pages, two: Pages) -> Pages:
    """Two halves as one; a folio that reaches from one to the other is in both."""
    used, limit = int((one.end - one.start).sum()), int(one.end[-1]) if len(one.end) else 0
    kept = two.end > limit
    start, end = np.maximum(two.start[kept], limit), two.end[kept]
    words = int((end - start).sum())
    one_end = one.end
    if len(one_end) and len(start) and start[0] == limit:
        one_end = np.append(one_end[:-1], end[0])
        start, end = start[1:], end[1:]
    start, end = np.append(one.start, start), np.append(one_end, end)
    flags = _behind(one.flags, used, two.flags[len(two.flags) - words :])
    counts = _behind(one.counts, used, two.counts[len(two.counts) - words :])
    memcg = one.memcg
    if len(memcg):
        memcg = _behind(memcg, used, two.memcg[len(two.memcg) - words :])
    return Pages(start, end, np.cumsum(end - start) - (end - start), flags, counts, memcg)


def _behind(one: npt.NDArray[Any], used: int, two: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The first `used` values of `one`, then `two`; in the same memory if there is room."""
    if used + len(two) > len(one):
        return np.concatenate([one[:used], two])
    one[used : used + len(two)] = two
    return one[: used + len(two)]


def places_of(pages: Pages, frames: I64, order: I64, count: int) -> I64:
    """Of `count` things the index in `pages` of their frames; -1: of none.

    frames: int64, sorted, all of which were read. order: which thing each of them is of.
    """
    index = np.full(count, -1)
    located = _locate(pages.start, pages.end, pages.offset, frames, order, index)
    if located < len(frames):
        raise RuntimeError(f"frame {frames[located]} was not read")
    return index


@compiled
def _locate(start: I64, end: I64, offset: I64, frames: I64, order: I64, index: I64) -> int:
    """Fill in the indices; returns how many of the frames were read before the first that was not."""
    piece = 0
    for number in range(len(frames)):
        while piece < len(start) and end[piece] <= frames[number]:
            piece += 1
        if piece == len(start) or frames[number] < start[piece]:
            return number
        index[order[number]] = offset[piece] + frames[number] - start[piece]
    return len(frames)


def folios_of(pages: Pages) -> Folios:
    """Find the folios and add up their counts (which must be those of the mappings already)."""
    number = np.empty(len(pages.flags), np.int32)
    facts = np.empty((4, len(number)), np.int64)
    flags = pages.flags.view(np.int64)
    _find_folios(pages.start, pages.end, pages.offset, flags, pages.counts, number, facts)
    return Folios(number, facts)


@compiled
def _find_folios(start: I64, end: I64, offset: I64, flags: I64, counts: I64, number: I32, facts: I64s) -> int:
    """Number the folios, and fill in their facts; returns how many there are."""
    folios = 0
    for piece in range(len(start)):
        place, stop = offset[piece], offset[piece] + end[piece] - start[piece]
        while place < stop:
            if flags[place] & (HEAD | TAIL) == 0:
                number[place] = -1
                place += 1
                continue
            first, mapped, mapcount = place, 0, 0
            # up to another head, a frame of order 0, or the end of the piece
            while place == first or (place < stop and flags[place] & TAIL != 0):
                number[place] = folios
                mapped += counts[place] > 0
                mapcount += counts[place]
                place += 1
            frame = start[piece] + first - offset[piece]
            facts[PLACE, folios] = first
            facts[ORDER, folios] = _order_of(flags[first], frame, place - first)
            facts[MAPPED, folios], facts[MAPCOUNT, folios] = mapped, mapcount
            folios += 1
    return folios


@inline
def _order_of(flags: int, frame: int, size: int) -> int:
    """The order of a folio of `size` frames whose first has these flags; 0 if it cannot be one."""
    if flags & HEAD == 0 or size & (size - 1) != 0 or frame & (size - 1) != 0:
        return 0
    order = 0
    while 1 << order < size:
        order += 1
    return order
