# SPDX-License-Identifier: Apache-2.0
"""Pagemap words -> runs: the compact form in which the page tables of a process are held.

A *run* is a longest sequence of pagemap words of one VMA at adjacent addresses in which every word is the
one before it plus one frame, and equal in all flags. A 2 MiB folio is one run, not 512 words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.jit.compiled import I32, I64, compiled, inline
from replay.procfs.files import (
    PM_GUARD_REGION,
    PM_MOVING,
    PM_PFRAME,
    PM_PRESENT,
    PM_SWAP,
    SWAP_TYPE_BITS,
    SWAP_TYPES,
    U64,
)

SWAP_STEP: Final = 1 << SWAP_TYPE_BITS
"""How much the next swap entry of a run is more."""

MARKER_TYPE: Final = SWAP_STEP - 1
"""The swap type under which all markers are kept, with offset 0: nothing more is known of them."""


class Runs(NamedTuple):
    """vpn: int64, word: uint64 (of the first page), pages: int32, vma: int32 (index); each of shape (n,)."""

    vpn: I64
    word: U64
    pages: I32
    vma: I32

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether the runs are of present PTEs; the others are swap entries."""
        return self.word >= PM_PRESENT  # the highest bit

    @property
    def frame(self) -> I64:
        """First page frame, or swap type and offset, or `MARKER_TYPE`."""
        return (self.word & PM_PFRAME).view(np.int64)

    def select(self, which: npt.NDArray[np.bool_] | I64 | slice) -> Runs:
        """Some of the runs, by mask, indices or slice."""
        return Runs(self.vpn[which], self.word[which], self.pages[which], self.vma[which])


def concat(parts: Sequence[Runs]) -> Runs:
    """Runs one after the other."""
    if len(parts) == 1:
        return parts[0]
    none = Runs(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.int32))
    vpn, word, pages, vma = zip(*(parts or [none]), strict=True)
    return Runs(np.concatenate(vpn), np.concatenate(word), np.concatenate(pages), np.concatenate(vma))


def runs_of(first: I64, size: I64, words: U64, vma_starts: I64) -> Runs:
    """Runs of the pagemap words of some spans of pages, which lie in VMAs that start at `vma_starts`.

    first, size: int64, shape (spans,), pages of each span, in address order. words: uint64, those of all
    spans one after the other. vma_starts: int64, sorted.
    """
    most = len(words)
    vpn, word = np.empty(most, np.int64), np.empty(most, np.int64)
    pages, vma = np.empty(most, np.int32), np.empty(most, np.int32)
    count = _find_runs(first, size, words.view(np.int64), vma_starts, vpn, word, pages, vma)
    # copies, so that the rest of the memory is given back
    return Runs(
        vpn[:count].copy(), word[:count].view(np.uint64).copy(), pages[:count].copy(), vma[:count].copy()
    )


@compiled
def _find_runs(
    first: I64, size: I64, words: I64, starts: I64, vpn: I64, word: I64, pages: I32, vma: I32
) -> int:
    """Fill in the columns of the runs; returns how many there are."""
    runs = at = 0
    area = -1
    for span in range(len(first)):
        before = 0
        for page in range(first[span], first[span] + size[span]):
            entry = _kept(words[at])
            at += 1
            # another VMA, another run
            while area + 1 < len(starts) and starts[area + 1] <= page:
                area += 1
                before = 0
            if not _is_taken(entry):
                before = 0
            elif before != 0 and entry == before + _step(entry):
                pages[runs - 1] += 1
                before = entry
            else:
                vpn[runs], word[runs], pages[runs], vma[runs] = page, entry, 1, area
                runs += 1
                before = entry
    return runs


@inline
def _is_taken(entry: int) -> bool:
    """Whether a word, as int64, is present, which makes it negative, or a swap entry or marker."""
    return entry < 0 or entry >= PM_SWAP


@inline
def _kept(entry: int) -> int:
    """The word as it is kept: markers are alike but for their flags."""
    if entry >= PM_SWAP and (entry & PM_GUARD_REGION != 0 or entry & MARKER_TYPE >= SWAP_TYPES):
        return (entry & ~(PM_PFRAME | PM_GUARD_REGION)) | MARKER_TYPE
    return entry


@inline
def _step(entry: int) -> int:
    """How much more the word of the next page is, if the run goes on: a frame, or an offset in swap."""
    if entry < 0:
        return 1
    return 0 if entry & MARKER_TYPE == MARKER_TYPE else SWAP_STEP


def by_frame(blocks: Sequence[Runs]) -> tuple[I64, I32, I64]:
    """The present runs of blocks: (frame, pages, number), sorted by frame; runs are numbered through all."""
    count = sum(len(block.vpn) for block in blocks)
    # frame and number sorted as one: many times faster than argsort()
    bits = count.bit_length()
    keys, pages = np.empty(count, np.int64), np.concatenate([block.pages for block in blocks])
    used = before = 0
    for block in blocks:
        used += _add_keys(block.word.view(np.int64), before, bits, keys[used:])
        before += len(block.vpn)
    keys = np.sort(keys[:used])
    number = keys & (1 << bits) - 1
    keys >>= bits
    return keys, pages[number], number


@compiled
def _add_keys(word: I64, before: int, bits: int, keys: I64) -> int:
    """Frame, then number, of present runs, of which the first is `before`; returns how many there are."""
    used = 0
    for run in range(len(word)):
        if word[run] < 0:
            keys[used] = (word[run] & PM_PFRAME) << bits | (before + run)
            used += 1
    return used


def distinct(values: I64) -> I64:
    """The values sorted, each once. `np.unique` would first load numpy.ma, which takes 7 ms."""
    values = np.sort(values)
    return values[np.diff(values, prepend=values[:1] - 1) != 0]


def cover(starts: I64, ends: I64, least: int) -> tuple[I64, I64, I64]:
    """Where at least `least` of the ranges [start, end) overlap: (start, end, how many), sorted, disjoint."""
    starts, ends = np.sort(starts), np.sort(ends)
    if least > 1:
        # where the next range starts behind the end of all before it, these overlap with none that follow
        alone = np.ones(len(starts) + 1, bool)
        alone[1:-1] = starts[1:] >= ends[:-1]
        some = ~(alone[1:] & alone[:-1])
        starts, ends = starts[some], ends[some]
    points = distinct(np.concatenate([starts, ends]))
    depth = np.searchsorted(starts, points, side="right") - np.searchsorted(ends, points, side="right")
    changes = np.flatnonzero(np.diff(depth, prepend=0))
    points, depth = points[changes], depth[changes]
    inside = np.flatnonzero(depth >= least)
    return points[inside], points[inside + 1], depth[inside]


def difference(before: Runs, first: I64, size: I64, words: U64) -> int:
    """Pages whose entry is no longer as it was.

    first, size, words: as in `runs_of`, of spans that hold all the runs. Changes of `PM_MOVING`
    do not count.
    """
    return _count_changed(
        before.vpn, before.word.view(np.int64), before.pages, first, size, words.view(np.int64)
    )


@compiled
def _count_changed(vpn: I64, word: I64, pages: I32, first: I64, size: I64, words: I64) -> int:
    changed = at = run = 0
    for span in range(len(first)):
        for page in range(first[span], first[span] + size[span]):
            entry = _kept(words[at]) if _is_taken(words[at]) else 0
            at += 1
            while run < len(vpn) and vpn[run] + pages[run] <= page:
                run += 1
            expected = 0
            if run < len(vpn) and vpn[run] <= page:
                expected = word[run] + (page - vpn[run]) * _step(word[run])
            changed += (entry ^ expected) & ~PM_MOVING != 0
    return changed


def contiguous(some: Runs) -> Runs:
    """Present runs joined where only `PM_MOVING` parts them, as inside a PMD mapping."""
    some = some.select(some.present)
    if not len(some.vpn):
        return some
    next_word = (some.word + some.pages.astype(np.uint64)) | PM_MOVING
    apart = np.ones(len(some.vpn), bool)
    apart[1:] = (
        (some.vpn[1:] != some.vpn[:-1] + some.pages[:-1])
        | (some.word[1:] | PM_MOVING != next_word[:-1])
        | (some.vma[1:] != some.vma[:-1])
    )
    begin = np.flatnonzero(apart)
    return Runs(some.vpn[begin], some.word[begin], np.add.reduceat(some.pages, begin), some.vma[begin])
