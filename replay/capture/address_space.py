# SPDX-License-Identifier: Apache-2.0
"""One address space that the caller holds still: page tables, folios, extents, figures.

In three steps: the *survey* reads all pagemap words as runs; then, portion by portion of the runs in
address order, the folios behind them are read, the portion's pagemap words are read again, to count what
changed meanwhile, and extents are built. When all is read the process may run on: the extents of the last
portion, for most processes the only one, are built after that.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from replay.capture import extents as ex
from replay.capture import folios, pmd_mappings, runs
from replay.capture.cut import rows_of
from replay.capture.extents import Extents, Ranges
from replay.capture.rss import Figure, Totals, add_extents, reconcile, unaccounted
from replay.capture.run_store import Kept
from replay.capture.runs import Runs
from replay.errors import ProcessGoneError, ReplayError
from replay.procfs import files, pagemap_scan
from replay.procfs.files import PM_EXCLUSIVE, Status, Vma
from replay.procfs.pagemap_words import read_pieces
from replay.procfs.source import INLINE, Tree
from replay.trace.schema import MARKER, SWAP, ptes_per_table

I64 = npt.NDArray[np.int64]

BLOCK_PAGES: Final = 1 << 18
"""Words of one block: no page-table page and no huge page of hugetlb (at most 1 GiB) spans two."""

PORTION_PAGES: Final = 1 << 21
"""Pages whose folios are held at a time: the more, the fewer gaps are between their frames."""

BATCH_PAGES: Final = 1 << 16
"""Pages, about, whose extents are built together: they stay in the processor's cache."""

LONG_RUN_PAGES: Final = 8
"""Runs as long as this on average are read as well in portions of one block, one ahead of the other."""

SMALL_PAGES: Final = 1 << 13
"""Processes of fewer pages are read by one thread: threads would wait for each other for longer."""

WAITING_BATCHES: Final = 4
"""Batches that may wait for being written."""

T = TypeVar("T")
Portion = tuple[list[Runs], folios.Pages, list[I64]]
"""Blocks of runs, the words of their folios; for each block, the place of each run in them (-1: swap)."""
Emit = Callable[[Extents, Sequence[Vma], Status], None]
Progress = Callable[[int, int], None]
"""Called with pages done and pages in all."""


class Options(NamedTuple):
    """How to read an address space.

    use_scan: False leaves PAGEMAP_SCAN alone. held: the process stands still. known_pmd: page ranges
    [start, end) mapped by a PMD, known_dirty: page ranges dirty in the PTE; None where that is not known.
    """

    use_scan: bool = True
    held: bool = True
    known_pmd: tuple[tuple[int, int], ...] | None = None
    known_dirty: tuple[tuple[int, int], ...] | None = None


class Space(NamedTuple):
    """What was captured beside the extents.

    changed: pages or entries that changed while they were read. unaccounted: see `metadata.AddressSpace`.
    held_ms: milliseconds for which the process was held, if it was. shared_with: other processes that use it.
    """

    status: Status
    pmd_known: bool
    changed: int
    entries: int
    figures: tuple[Figure, ...]
    markers: int
    unaccounted: dict[str, int]
    command_line: str = ""
    held_ms: float = 0.0
    shared_with: tuple[int, ...] = ()


Steps = Generator[tuple[int, int], None, Space]
"""A capture that stops before each portion is built, with (pages read so far, pages in all)."""


class Survey(NamedTuple):
    """The page tables of a process.

    huge: ranges mapped by a PMD. own: frames mapped several times. entries: all frames, where kpagecount says
    averages.
    """

    vmas: list[Vma]
    facts: ex.VmaFacts
    starts: I64
    """First pages of the VMAs."""
    blocks: Kept
    huge: Ranges
    huge_known: bool
    own: Ranges
    entries: ex.Entries | None = None


def capture_in_steps(
    tree: Tree, pid: int, emit: Emit, options: Options, progress: Progress | None = None
) -> Steps:
    """Capture the address space of `pid`, which the caller holds still, handing extents to `emit` in order.

    `emit` is called by the thread of `tree.writer`, while the next extents are built. At the last step all is
    read, and the process may run on.

    Raises `ProcessGoneError` if the process has ended, `ReplayError` for a kernel thread, for missing
    rights and for a saved tree that is incomplete.
    """
    status = files.read_status(tree.root, pid, tree.page_size)
    if status.rss_anon + status.rss_file + status.rss_shmem < SMALL_PAGES:
        tree = tree._replace(pool=INLINE)
    command_line = files.command_line(tree.root, pid)
    fd = files.open_pagemap(tree.root, pid)
    emitting: deque[Future[None]] = deque()
    looking: list[Future[int]] = []
    try:
        with contextlib.closing(Kept()) as blocks:
            survey = _survey(tree, fd, pid, options, blocks)
            dirty = None if options.known_dirty is None else _ranges(options.known_dirty)
            totals = Totals()
            precise = tree.mapcounts == "precise"
            changed = read = done = 0
            if not blocks.pages:
                yield 0, 0
            for portion, pages, places in _read_ahead(tree, _portions(blocks)):
                read += sum(int(block.pages.sum()) for block in portion)
                if tree.live:
                    # those of the portion before have run while it was built
                    changed += sum(look.result() for look in looking)
                    looking = [tree.pool.submit(_second_look, fd, survey.starts, block) for block in portion]
                if read == blocks.pages:
                    # nothing keeps these reads from the processor: the process waits for them
                    wait(looking)
                yield read, blocks.pages
                own = ex.own_of_frames(pages, survey.own)
                for block, index in zip(portion, places, strict=True):
                    changed += ex.raise_counts(block, index, pages, own, precise)
                found = folios.folios_of(pages)
                if survey.entries is not None:
                    ex.count_exclusive(pages, found, survey.entries)
                for batch, index in _batches(portion, places):
                    rows, torn = rows_of(
                        batch, index, pages, found, survey.facts, own, survey.huge, dirty, tree.page_size
                    )
                    changed += torn
                    _check_saved(tree, rows, survey.vmas)
                    add_extents(totals, rows)
                    _await_one(emitting, WAITING_BATCHES)
                    emitting.append(tree.writer.submit(emit, rows, survey.vmas, status))
                    done += int(batch.pages.sum())
                    if progress:
                        progress(done, blocks.pages)
            changed += sum(look.result() for look in looking)
            while emitting:
                emitting.popleft().result()
            if not tree.live:
                _check_pagemap_whole(tree, fd, pid, survey.vmas, totals)
    finally:
        # what they use is closed only when they have ended
        futures: list[Future[Any]] = [*looking, *emitting]
        wait(futures)
        os.close(fd)
    figures = reconcile(totals, status, survey.vmas, changed)
    return Space(
        status,
        survey.huge_known,
        changed,
        blocks.pages,
        figures,
        totals.marker,
        unaccounted(totals, status),
        command_line,
    )


def capture_space(tree: Tree, pid: int, emit: Emit, options: Options) -> Space:
    """Capture an address space in one go; the rest as in `capture_in_steps`."""
    return finished(capture_in_steps(tree, pid, emit, options))


def read_all(steps: Steps) -> int:
    """Go on with a capture until all is read; returns pages."""
    for read, pages in steps:
        if read == pages:
            return pages
    raise AssertionError("the last step has all pages")


def finished(steps: Steps) -> Space:
    """Go on with a capture to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            space: Space = end.value
            return space


def _portions(blocks: Kept) -> Iterator[list[Runs]]:
    """Blocks in groups whose folios are read together, up to `PORTION_PAGES`, at least one each."""
    waiting: list[Runs] = []
    pages = count = 0
    for block in blocks.blocks():
        size = int(block.pages.sum())
        long = pages >= BLOCK_PAGES and pages >= LONG_RUN_PAGES * count
        if waiting and (long or pages + size > PORTION_PAGES):
            yield waiting
            waiting, pages, count = [], 0, 0
        waiting.append(block)
        pages += size
        count += len(block.vpn)
    if waiting:
        yield waiting


def _read_ahead(tree: Tree, portions: Iterator[list[Runs]]) -> Iterator[Portion]:
    """Portions with their folios; a small one is read while the one before is used."""
    reading: deque[tuple[list[Runs], Future[tuple[folios.Pages, list[I64]]]]] = deque()
    for portion in portions:
        if reading:
            wait([reading[0][1]])
            if sum(len(block.vpn) for block in portion) > BLOCK_PAGES:
                yield _first(reading)
        reading.append((portion, tree.pool.submit(_read_folios, tree, portion)))
        if len(reading) > 1:
            yield _first(reading)
    if reading:
        yield _first(reading)


def _first(reading: deque[tuple[list[Runs], Future[tuple[folios.Pages, list[I64]]]]]) -> Portion:
    portion, future = reading.popleft()
    return portion, *future.result()


def _await_one(futures: deque[Future[T]], most: int) -> T | None:
    """The result of the first future if there are `most`: that many may wait."""
    return futures.popleft().result() if len(futures) >= most else None


def _survey(tree: Tree, fd: int, pid: int, options: Options, blocks: Kept) -> Survey:
    """Read all page tables into `blocks`; smaps, the slowest of all files, is read meanwhile."""
    places = files.read_places(tree.root, pid, tree.page_size)
    starts = np.array([start for start, _ in places], np.int64)
    smaps = tree.pool.submit(files.read_vmas, tree.root, pid, tree.page_size)
    scanned = tree.live and options.use_scan and pagemap_scan.supported()
    huge = _ranges(())
    try:
        if scanned:
            begin, end, by_pmd = pagemap_scan.scanned(fd, places, tree.page_size, pid)
            huge = Ranges(begin[by_pmd], end[by_pmd], np.ones(int(by_pmd.sum()), np.int64))
            _keep(tree, fd, pid, begin, end, starts, blocks)
    finally:
        smaps.exception()
    vmas = smaps.result()
    _check_places(tree, pid, places, vmas)
    if scanned:
        maps_frames = [(vma.start, vma.end) for vma in vmas if vma.has("pf")]
        _keep(tree, fd, pid, *_columns(maps_frames), starts, blocks)
        blocks.sort()
    elif tree.live:
        _keep(tree, fd, pid, *pagemap_scan.unscanned(vmas), starts, blocks)
    else:
        data = [part for vma in vmas for part in pagemap_scan.data_extents(fd, vma.start, vma.end)]
        _keep(tree, fd, pid, *_columns(data), starts, blocks)
    if blocks.present and not blocks.frames:
        raise _hidden(tree)
    trust_exclusive = options.held and tree.mapcounts == "precise"
    facts = ex.vma_facts(vmas)
    size = ptes_per_table(tree.page_size)
    own = _own(blocks, facts, size, trust_exclusive)
    entries = _entries(blocks, facts, size) if tree.mapcounts == "average" else None
    known = (
        options.known_pmd if scanned or options.known_pmd is not None else pmd_mappings.saved_huge(tree, pid)
    )
    if known is not None:
        return Survey(vmas, facts, starts, blocks, _ranges(known), True, own, entries)
    if scanned:
        huge = pmd_mappings.still_whole(huge, blocks.blocks(), size)
        return Survey(vmas, facts, starts, blocks, huge, True, own, entries)
    huge, is_known = pmd_mappings.huge_by_smaps(tree, blocks, vmas)
    return Survey(vmas, facts, starts, blocks, huge, is_known, own, entries)


def _check_places(tree: Tree, pid: int, places: list[tuple[int, int]], vmas: list[Vma]) -> None:
    """Refuse an address space of which maps and smaps say different things."""
    if not vmas or not places:
        if tree.live:
            raise ProcessGoneError(f"process {pid} has ended: it has no memory left")
        raise ReplayError(f"maps or smaps of {tree.root / str(pid)} is cut: save the tree again")
    if [(vma.start, vma.end) for vma in vmas] != places:
        if tree.live:
            raise ReplayError(
                f"the address space of process {pid} changes while it is read: hold it still, or try again"
            )
        raise ReplayError(
            f"maps and smaps of {tree.root / str(pid)} name different VMAs: one is cut, save the tree again"
        )


def _keep(tree: Tree, fd: int, pid: int, begin: I64, end: I64, starts: I64, blocks: Kept) -> None:
    """Read regions of pagemap into `blocks`, all spans of a block together."""
    first, stop = pagemap_scan.spans(begin, end, starts, BLOCK_PAGES)
    buffer = np.zeros(BLOCK_PAGES if len(first) else 0, np.int64)
    bounds = [*np.flatnonzero(np.diff(first // BLOCK_PAGES, prepend=-1)).tolist(), len(first)]
    for here in itertools.starmap(slice, itertools.pairwise(bounds)):
        size = stop[here] - first[here]
        words = buffer[: size.sum()]
        if not tree.live:
            words[:] = 0  # a saved file may end before
        missing = read_pieces(fd, first[here], size, words)
        files.check_read(missing >= 0, fd)
        if missing and tree.live:
            raise ProcessGoneError(f"process {pid} ended while it was read")
        blocks.append(runs.runs_of(first[here], size, words.view(np.uint64), starts))


def _read_folios(tree: Tree, portion: list[Runs]) -> tuple[folios.Pages, list[I64]]:
    """Words of all folios that the runs touch; for each block, the place of each run in them (-1: swap)."""
    frames, sizes, order = runs.by_frame(portion)
    pages = folios.read(tree.flags_fd, tree.counts_fd, tree.memcg_fd, frames, sizes, tree.pool)
    ends = np.cumsum([len(block.vpn) for block in portion])
    index = folios.places_of(pages, frames, order, int(ends[-1]))
    return pages, np.split(index, ends[:-1])


def _batches(portion: list[Runs], places: list[I64]) -> Iterator[tuple[Runs, I64]]:
    """The runs of blocks with their places, about `BATCH_PAGES` pages together."""
    some: list[tuple[Runs, I64]] = []
    pages = 0
    for block, index in zip(portion, places, strict=True):
        ends = np.cumsum(block.pages)
        begin = before = 0
        while begin < len(ends):
            end = min(int(np.searchsorted(ends, before + BATCH_PAGES - pages)) + 1, len(ends))
            some.append((block.select(slice(begin, end)), index[begin:end]))
            pages += int(ends[end - 1]) - before
            begin, before = end, int(ends[end - 1])
            if pages >= BATCH_PAGES:
                yield _together(some)
                some, pages = [], 0
    if some:
        yield _together(some)


def _together(some: list[tuple[Runs, I64]]) -> tuple[Runs, I64]:
    return runs.concat([part for part, _ in some]), np.concatenate([index for _, index in some])


def _second_look(fd: int, starts: I64, block: Runs) -> int:
    """Entries of a block that are no longer as they were."""
    first, end = pagemap_scan.spans(block.vpn, block.vpn + block.pages, starts, BLOCK_PAGES)
    words = np.zeros(int((end - first).sum()), np.int64)
    files.check_read(read_pieces(fd, first, end - first, words) >= 0, fd)
    return runs.difference(block, first, end - first, words.view(np.uint64))


def _own(blocks: Kept, facts: ex.VmaFacts, entries: int, trust_exclusive: bool) -> Ranges:
    """Frames that the address space maps several times, with the number of times."""
    starts, ends = [], []
    for block in blocks.blocks():
        some = block.select(ex.maybe_mapped_again(block, facts, entries, trust_exclusive))
        starts.append(some.frame)
        ends.append(some.frame + some.pages)
    none = [np.zeros(0, np.int64)]
    return Ranges(*runs.cover(np.concatenate(starts or none), np.concatenate(ends or none), least=2))


def _entries(blocks: Kept, facts: ex.VmaFacts, size: int) -> ex.Entries:
    """All frames that the address space maps. size: PTEs of a page-table page."""
    some = runs.concat(
        [
            block.select(ex.maybe_mapped_again(block, facts, size, trust_exclusive=False))
            for block in blocks.blocks()
        ]
    )
    return ex.entries_of(some.frame, some.pages, some.word & PM_EXCLUSIVE != 0)


def _hidden(tree: Tree) -> ReplayError:
    """Frames read as 0: pagemap_read() hides them from who lacks CAP_SYS_ADMIN."""
    if tree.live:
        return ReplayError("page frames read as 0: CAP_SYS_ADMIN is missing: run replay as root of the host")
    return ReplayError(f"page frames in {tree.root} read as 0: it was saved without CAP_SYS_ADMIN")


def _check_saved(tree: Tree, rows: Extents, vmas: list[Vma]) -> None:
    """Refuse a saved tree whose kpageflags or kpagecount ends before a page that must be in it."""
    if tree.saved_frames is None:
        return
    beyond = rows.pfn + rows.pages > tree.saved_frames
    maps_frames = np.array([vma.has("pf") or vma.has("io") or vma.has("mm") for vma in vmas], bool)
    wrong = beyond & (rows.kind != SWAP) & (rows.kind != MARKER) & (rows.file | ~maps_frames[rows.vma])
    if wrong.any():
        frame = int(rows.pfn[np.flatnonzero(wrong)[0]])
        raise ReplayError(
            f"kpageflags or kpagecount in {tree.root} is cut: it ends before frame {frame}, which is mapped: "
            "save the tree again"
        )


def _check_pagemap_whole(tree: Tree, fd: int, pid: int, vmas: list[Vma], totals: Totals) -> None:
    """Refuse a saved pagemap that ends inside a VMA of which smaps says that more is resident."""
    end = files.saved_words(fd) or 0
    for number, vma in enumerate(vmas):
        resident = vma.rss + (vma.swap if vma.inode == 0 else 0)
        if end < vma.end and totals.by_vma.get(number, 0) < resident:
            raise ReplayError(
                f"{tree.root / str(pid) / 'pagemap'} is cut: smaps says that {vma.rss} pages are mapped at "
                f"{vma.start * tree.page_size:#x}: save the tree again"
            )


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[I64, I64]:
    start, end = np.array(sorted(pairs), np.int64).reshape(-1, 2).T.copy()
    return start, end


def _ranges(pairs: Sequence[tuple[int, int]]) -> Ranges:
    """Ranges with value 1; those that touch become one."""
    start, end = _columns(pairs)
    start, end = folios.pieces_of(start, (end - start).astype(np.int32), 0)
    return Ranges(start, end, np.ones_like(start))
