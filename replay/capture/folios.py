"""kpageflags and kpagecount of whole folios: also of their pages that the process does not map.

The order of a folio is known only from the run of pages COMPOUND_HEAD..last COMPOUND_TAIL, so reading goes
on to both ends of every folio touched (fs/proc/page.c, stable_page_flags()).
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.capture.procfs import U64, read_pieces
from replay.trace.kpageflags import KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL, KPF_IDLE, KPF_NOPAGE, bit

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

HEAD: Final = np.uint64(bit(KPF_COMPOUND_HEAD))
TAIL: Final = np.uint64(bit(KPF_COMPOUND_TAIL))
NOPAGE: Final = np.uint64(bit(KPF_NOPAGE))
HEAD_MARK: Final = np.uint8(1)
TAIL_MARK: Final = np.uint8(2)
"""The two flags, which are neighbours, as a small number."""
STABLE: Final = np.uint64(~bit(KPF_IDLE) & (1 << 64) - 1)
"""Without IDLE, which comes and goes by itself (page_idle)."""

BRIDGE_FRAMES: Final = 7
"""Gaps between frames up to this size are read through: a word costs 0.04 µs, a system call 0.3 µs."""

LONG_FRAMES: Final = 1 << 5
"""Mean size of pieces from which two threads read two files faster than one.

Around each system call they take turns at the interpreter's lock.
"""


class Pages(NamedTuple):
    """Words of the frames read: sorted pieces [start, end), laid out one after the other.

    start, end, offset: int64, shape (pieces,): offset is the index of frame `start`.
    flags: uint64, counts: int64, shape (frames,).
    """

    start: I64
    end: I64
    offset: I64
    flags: U64
    counts: I64

    def places(self, frames: I64) -> I64:
        """Index of each frame, all of which were read."""
        piece = np.searchsorted(self.start, frames, side="right") - 1
        return self.offset[piece] + frames - self.start[piece]

    def frames(self, index: I64) -> I64:
        """The frame at each index."""
        piece = np.searchsorted(self.offset, index, side="right") - 1
        return self.start[piece] + index - self.offset[piece]


class Folios(NamedTuple):
    """Folios of `Pages`.

    order: uint8, torn: bool, of shape (frames,): of the folio that each frame belongs to; torn: whether head
    and tails did not fit together, because the folio changed, or was read in part. place: int64, shape (large
    folios,), index of the head in `Pages`, sorted; mapped and mapcount: of the same shape. Frames of order 0
    are not in these: they speak for themselves.
    """

    order: npt.NDArray[np.uint8]
    torn: Bools
    place: I64
    mapped: I64
    mapcount: I64


def pieces_of(frames: I64, counts: I64 | I32, bridge: int) -> tuple[I64, I64]:
    """Sorted ranges [frame, frame + count) -> disjoint pieces, joined over gaps of up to `bridge` frames."""
    if not len(frames):
        return frames, frames
    reach = np.maximum.accumulate(frames + counts)
    apart = np.flatnonzero(frames[1:] - reach[:-1] > bridge) + 1
    return frames[np.r_[0, apart]], reach[np.r_[apart - 1, len(reach) - 1]]


def read(flags_fd: int, counts_fd: int, frames: I64, counts: I64 | I32, pool: Executor) -> Pages:
    """Flags and counts of all frames of all folios that hold a frame of the ranges [frame, frame + count).

    frames: int64, sorted. Frames past the end of memory read as NOPAGE, not mapped.
    """
    if not len(frames):
        frames, counts = np.zeros(1, np.int64), np.ones(1, np.int32)  # rows of swap entries point to it
    wanted_start, wanted_end = pieces_of(frames, counts, BRIDGE_FRAMES)
    # one frame more shows whether a folio ends with the piece; not worth it after a lone page
    more = (wanted_end - wanted_start > 1).astype(np.int64)
    start, end = pieces_of(wanted_start, wanted_end - wanted_start + more, 0)
    pages = _read_pieces(flags_fd, counts_fd, start, end, pool)
    while True:
        start, end = _missing(pages, wanted_start, wanted_end)
        if not len(start):
            return pages
        pages = _joined(pages, _read_pieces(flags_fd, counts_fd, start, end, pool))


def _read_pieces(flags_fd: int, counts_fd: int, start: I64, end: I64, pool: Executor) -> Pages:
    sizes = end - start
    offset = np.cumsum(sizes) - sizes
    total = int(sizes.sum())
    flags = np.full(total, NOPAGE, np.uint64)
    counts = np.zeros(total, np.uint64)
    if total > LONG_FRAMES * len(sizes):
        other = pool.submit(read_pieces, counts_fd, start, sizes, counts)
        read_pieces(flags_fd, start, sizes, flags)
        other.result()
    else:
        read_pieces(flags_fd, start, sizes, flags)
        read_pieces(counts_fd, start, sizes, counts)
    flags &= STABLE
    return Pages(start, end, offset, flags, counts.view(np.int64))


def _missing(pages: Pages, wanted_start: I64, wanted_end: I64) -> tuple[I64, I64]:
    """Pieces to read next: towards the heads of folios cut at the front, the tails of others."""
    first, last = pages.flags[pages.offset], pages.flags[pages.offset + (pages.end - pages.start) - 1]
    # head not reached: an aligned folio begins at the latest where the lowest set bit is cleared
    back = np.flatnonzero((first & TAIL != 0) & (pages.start > 0))
    back_end = pages.start[back]
    back_start = back_end & (back_end - 1)
    ahead = np.flatnonzero(last & (HEAD | TAIL) != 0)
    head = _last_heads(pages, ahead)
    # only folios that hold a wanted frame matter; those are never cut by a lookahead
    last_wanted = wanted_end[np.searchsorted(wanted_start, pages.end[ahead], side="left") - 1] - 1
    known = (head >= 0) & (head <= last_wanted)
    ahead, head = ahead[known], head[known]
    ahead_start = pages.end[ahead]
    size = ahead_start - head
    power = 1 << (np.frexp(size.astype(np.float64) - 0.5)[1].astype(np.int64))
    whole = (power == size) & (head & (2 * size - 1) != 0)  # could not be larger and aligned
    ahead_end = np.where(power == size, ahead_start + 1, head + power + 1)
    start = np.concatenate([back_start, ahead_start[~whole]])
    end = np.concatenate([back_end, ahead_end[~whole]])
    by_start = np.argsort(start, kind="stable")
    start, end = pieces_of(start[by_start], end[by_start] - start[by_start], 0)
    return _without(start, end, pages)


def _last_heads(pages: Pages, pieces: I64) -> I64:
    """Frame of the last page that is not a tail, of each piece; -1 if there is none."""
    if not len(pieces):
        return pieces
    heads = np.flatnonzero(pages.flags & TAIL == 0)
    end = pages.offset[pieces] + pages.end[pieces] - pages.start[pieces]
    place = np.searchsorted(heads, end, side="left") - 1
    index = np.where(place >= 0, heads[place], -1) if len(heads) else np.full(len(pieces), -1)
    inside = index >= pages.offset[pieces]
    return np.where(inside, pages.start[pieces] + index - pages.offset[pieces], -1)


def _without(start: I64, end: I64, pages: Pages) -> tuple[I64, I64]:
    """The ranges [start, end) less the frames that were read already."""
    if not len(start):
        return start, end
    points = np.concatenate([start, end, pages.start, pages.end])
    change = np.repeat(np.array([1, -1, -2, 2]), [len(start)] * 2 + [len(pages.start)] * 2)
    by_point = np.argsort(points, kind="stable")
    points, depth = points[by_point], np.cumsum(change[by_point])
    free = np.flatnonzero((depth[:-1] == 1) & (points[1:] > points[:-1]))
    return points[free], points[free + 1]


def _joined(old: Pages, new: Pages) -> Pages:
    """Two disjoint sets of pieces as one; pieces that touch become one."""
    start = np.concatenate([old.start, new.start])
    size = np.concatenate([old.end - old.start, new.end - new.start])
    source = np.concatenate([old.offset, new.offset + len(old.flags)])
    by_start = np.argsort(start)
    start, size, source = start[by_start], size[by_start], source[by_start]
    offset = np.cumsum(size) - size
    order = np.arange(int(size.sum())) + np.repeat(source - offset, size)
    joined_start, joined_end = pieces_of(start, size, 0)
    sizes = joined_end - joined_start
    return Pages(
        joined_start,
        joined_end,
        np.cumsum(sizes) - sizes,
        np.concatenate([old.flags, new.flags])[order],
        np.concatenate([old.counts, new.counts])[order],
    )


def folios_of(pages: Pages) -> Folios:
    """Find the folios and add up their counts (which must be those of the mappings already)."""
    frames = len(pages.flags)
    is_head, is_tail = HEAD_MARK, TAIL_MARK
    marks = (pages.flags.astype(np.uint32) >> KPF_COMPOUND_HEAD).astype(np.uint8) & (is_head | is_tail)
    # also tails whose head is not there: where a piece begins, or after an order-0 frame
    begins = marks == is_head
    begins[pages.offset] |= marks[pages.offset] == is_tail
    begins[1:] |= (marks[1:] == is_tail) & (marks[:-1] == 0)
    index = np.flatnonzero(begins)
    if not len(index):
        none = np.zeros(0, np.int64)
        return Folios(np.zeros(frames, np.uint8), np.zeros(frames, bool), none, none, none)
    # a folio ends where another begins, or an order-0 frame stands
    others = np.flatnonzero(marks == 0)
    size = np.append(index[1:], frames) - index
    if len(others):
        place = np.searchsorted(others, index)
        size = np.minimum(size, np.append(others, frames)[place] - index)
    frame = pages.frames(index)
    whole = (marks[index] == is_head) & (size > 1) & (size & (size - 1) == 0) & (frame & (size - 1) == 0)
    orders = np.where(whole, np.frexp(size.astype(np.float64))[1] - 1, 0).astype(np.uint8)
    # the frames as segments: folios, and what lies between them
    gap_before = index != np.append(0, (index + size)[:-1])
    number = np.arange(len(index)) + np.cumsum(gap_before)
    start = np.zeros(len(index) + int(gap_before.sum()), np.int64)
    start[number] = index
    start[number[gap_before] - 1] = np.append(0, (index + size)[:-1])[gap_before]
    if index[-1] + size[-1] < frames:
        start = np.append(start, index[-1] + size[-1])
    length = np.diff(start, append=frames)

    def spread(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        of_segment = np.zeros(len(start), values.dtype)
        of_segment[number] = values
        return np.repeat(of_segment, length)

    # few frames of folios are not mapped
    unmapped = np.flatnonzero(pages.counts == 0)
    owner = np.searchsorted(index, unmapped, side="right") - 1
    owner = owner[(owner >= 0) & (unmapped < (index + size)[owner])]
    mapped = size - np.bincount(owner, minlength=len(index))
    return Folios(
        order=spread(orders),
        torn=np.zeros(frames, bool) if whole.all() else spread(~whole),
        place=index[whole],
        mapped=mapped[whole],
        mapcount=np.add.reduceat(pages.counts, start)[number][whole],
    )
