"""One address space that the caller holds still: page tables, folios, extents, figures.

In three steps: the *survey* reads all pagemap words as runs; then, portion by portion of the runs in
address order, the folios behind them are read and extents built; last, each portion's words are read again
to count what changed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from replay.capture import extents as ex
from replay.capture import folios, procfs, runs, scan, settings
from replay.capture.extents import Extents, Ranges
from replay.capture.procfs import Status, Vma
from replay.capture.reconcile import Figure, Totals, add_extents, other_entries, reconcile
from replay.capture.runs import Runs
from replay.errors import ProcessGoneError, ReplayError
from replay.trace.kpageflags import bit
from replay.trace.schema import ptes_per_table

I64 = npt.NDArray[np.int64]

BLOCK_PAGES: Final = 1 << 18
"""Words of one block: no page-table page and no huge page of hugetlb (at most 1 GiB) spans two."""

PORTION_PAGES: Final = 1 << 20
"""Pages whose folios are held at a time."""

UPTODATE: Final = np.uint64(bit(3))
"""KPF_UPTODATE."""

Emit = Callable[[Extents, Sequence[Vma], Status], None]
Progress = Callable[[int, int], None]
"""Called with pages done and pages in all."""


@dataclass(frozen=True)
class Tree:
    """An open procfs tree. Make one with `opened`."""

    root: Path
    live: bool
    page_size: int
    flags_fd: int
    counts_fd: int
    saved_frames: int | None
    mapcounts: str
    pool: ThreadPoolExecutor


@dataclass(frozen=True)
class Options:
    """How to read an address space.

    use_scan: False leaves PAGEMAP_SCAN alone. held: the process stands still. known_pmd: page ranges
    [start, end) mapped by a PMD, known_dirty: page ranges dirty in the PTE; None where that is not known.
    """

    use_scan: bool = True
    held: bool = True
    known_pmd: tuple[tuple[int, int], ...] | None = None
    known_dirty: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Space:
    """What was captured beside the extents. changed: pages or entries that changed while they were read."""

    status: Status
    pmd_known: bool
    changed: int
    entries: int
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Survey:
    """The page tables of a process. huge: ranges mapped by a PMD; own: frames mapped several times."""

    vmas: list[Vma]
    runs: Runs
    huge: Ranges
    huge_known: bool
    own: Ranges


@contextlib.contextmanager
def opened(root: Path, pid: int) -> Iterator[Tree]:
    """Open kpageflags and kpagecount of a tree; `pid` is a process by which a saved tree's page size is told.

    Raises `ReplayError` if there is no such tree, no such process, or no right to read them.
    """
    live = procfs.is_live(root)
    with contextlib.ExitStack() as stack:
        page_size = procfs.base_page_size(root, pid)
        flags_fd = procfs.open_kpage(root, "kpageflags")
        stack.callback(os.close, flags_fd)
        counts_fd = procfs.open_kpage(root, "kpagecount")
        stack.callback(os.close, counts_fd)
        saved = min(procfs.saved_words(fd) or 0 for fd in (flags_fd, counts_fd))
        pool = stack.enter_context(ThreadPoolExecutor(2, "replay-read"))
        yield Tree(
            root=root,
            live=live,
            page_size=page_size,
            flags_fd=flags_fd,
            counts_fd=counts_fd,
            saved_frames=None if live else saved,
            mapcounts=settings.mapcounts(root),
            pool=pool,
        )


def capture_space(
    tree: Tree, pid: int, emit: Emit, options: Options, progress: Progress | None = None
) -> Space:
    """Capture the address space of `pid`, which the caller holds still, handing extents to `emit` in order.

    Raises `ProcessGoneError` if the process has ended, `ReplayError` for a kernel thread, for missing
    rights and for a saved tree that is incomplete.
    """
    status = procfs.read_status(tree.root, pid, tree.page_size)
    fd = procfs.open_pagemap(tree.root, pid)
    try:
        survey = _survey(tree, fd, pid, options)
        facts = ex.vma_facts(survey.vmas)
        dirty = None if options.known_dirty is None else _ranges(options.known_dirty)
        totals = Totals(other_entries=other_entries(survey.runs))
        changed = done = 0
        total = int(survey.runs.pages.sum())
        for portion in _portions(survey.runs):
            pages = _read_folios(tree, portion)
            changed += _second_look(fd, survey.vmas, portion) if tree.live else 0
            rows, torn = ex.build(
                portion,
                pages,
                facts,
                survey.own,
                survey.huge,
                dirty,
                tree.page_size,
                tree.mapcounts == "precise",
            )
            changed += torn
            _check_saved(tree, rows, survey.vmas)
            add_extents(totals, rows)
            emit(rows, survey.vmas, status)
            done += int(portion.pages.sum())
            if progress:
                progress(done, total)
        if not tree.live:
            _check_pagemap_whole(tree, fd, pid, survey.vmas, totals)
    finally:
        os.close(fd)
    figures = reconcile(totals, status, survey.vmas, changed)
    return Space(status, survey.huge_known, changed, total, figures)


def _survey(tree: Tree, fd: int, pid: int, options: Options) -> Survey:
    vmas = procfs.read_vmas(tree.root, pid, tree.page_size)
    if not vmas:
        raise ProcessGoneError(f"process {pid} has ended: it has no memory left")
    starts = np.array([vma.start for vma in vmas], np.int64)
    huge: list[tuple[I64, I64]] = []
    parts: list[Runs] = []
    use_scan = tree.live and options.use_scan and scan.supported()
    for begin, end in _populated(tree, fd, pid, vmas, huge if use_scan else None):
        for first, words in _words(fd, begin, end):
            if words is None:
                if tree.live and _inside(vmas, first):
                    raise ProcessGoneError(f"process {pid} ended while it was read")
                continue
            parts.append(runs.runs_of(first, words, starts))
    found = runs.concat(parts)
    _check_rights(tree, found)
    own = _own(found, ex.vma_facts(vmas), trust_exclusive=options.held and tree.mapcounts == "precise")
    known = options.known_pmd
    if known is None and not use_scan:
        known = _saved_huge(tree, pid)
    if known is not None:
        return Survey(vmas, found, _ranges(known), True, own)
    if use_scan:
        return Survey(vmas, found, _joined(huge), True, own)
    ranges, is_known = _huge_by_smaps(tree, found, vmas)
    return Survey(vmas, found, ranges, is_known, own)


def _populated(
    tree: Tree, fd: int, pid: int, vmas: list[Vma], huge: list[tuple[I64, I64]] | None
) -> Iterator[tuple[I64, I64]]:
    """Regions to read, in address order. huge: where PAGEMAP_SCAN puts PMD mappings; None: do not use it."""
    if huge is not None:
        for start, end, by_pmd in scan.scanned(fd, vmas, tree.page_size, pid):
            huge.append((start[by_pmd], end[by_pmd]))
            yield scan.spans(start, end, BLOCK_PAGES)
    elif tree.live:
        yield scan.spans(*scan.unscanned(vmas), BLOCK_PAGES)
    else:
        data = [part for vma in vmas for part in scan.data_extents(fd, vma.start, vma.end)]
        yield scan.spans(*_columns(data), BLOCK_PAGES)


def _words(fd: int, starts: I64, ends: I64) -> Iterator[tuple[int, procfs.U64 | None]]:
    """(first page, words) of each span; None instead of words where the file has none."""
    buffer = np.empty(BLOCK_PAGES, np.uint64)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        count = procfs.read_words(fd, start, buffer[: end - start])
        if count:
            yield start, buffer[:count]
        if count < end - start:
            yield start + count, None


def _inside(vmas: list[Vma], vpn: int) -> bool:
    return any(vma.start <= vpn < vma.end for vma in vmas)


def _portions(all_runs: Runs) -> Iterator[Runs]:
    """Runs in address order, about `PORTION_PAGES` at a time, cut where a block begins."""
    if not len(all_runs.vpn):
        return
    total = np.cumsum(all_runs.pages)
    block = all_runs.vpn // BLOCK_PAGES
    begins = np.flatnonzero(np.diff(block)) + 1
    start = 0
    while start < len(total):
        full = (total[start - 1] if start else 0) + PORTION_PAGES
        # the last block that ends before the portion is full, but at least one
        after = begins[begins > start]
        fitting = after[total[after - 1] <= full]
        stop = int(fitting[-1]) if len(fitting) else int(after[0]) if len(after) else len(total)
        if total[-1] <= full:
            stop = len(total)
        yield all_runs.select(slice(start, stop))
        start = stop


def _read_folios(tree: Tree, portion: Runs) -> folios.Pages:
    present = portion.select(portion.present)
    order = np.argsort(present.frame, kind="stable")
    return folios.read(tree.flags_fd, tree.counts_fd, present.frame[order], present.pages[order], tree.pool)


def _second_look(fd: int, vmas: list[Vma], portion: Runs) -> int:
    """Entries of the portion that are no longer as they were; changes of PM_EXCLUSIVE alone do not count."""
    starts = np.array([vma.start for vma in vmas], np.int64)
    spans = scan.spans(portion.vpn, portion.vpn + portion.pages, BLOCK_PAGES)
    again = runs.concat(
        [runs.runs_of(first, words, starts) for first, words in _words(fd, *spans) if words is not None]
    )
    return runs.difference(portion, again)


def _own(found: Runs, facts: ex.VmaFacts, trust_exclusive: bool) -> Ranges:
    """Frames that the address space maps several times, with the number of times.

    PM_EXCLUSIVE says that a page is mapped once in all, but for hugetlb, and where the kernel does not
    count the mappings of each page.
    """
    several = found.present & ~facts.raw_frames[found.vma]
    if trust_exclusive:
        several &= (found.word & procfs.PM_EXCLUSIVE == 0) | facts.hugetlb[found.vma]
    some = found.select(several)
    return Ranges(*runs.cover(some.frame, some.frame + some.pages, least=2))


def _saved_huge(tree: Tree, pid: int) -> tuple[tuple[int, int], ...] | None:
    """PMD mappings by a `pagemap_scan` file of a saved tree, if it has one."""
    if tree.live or not (tree.root / str(pid) / "pagemap_scan").exists():
        return None
    start, end = scan.saved_huge(procfs.read_text(tree.root, pid, "pagemap_scan"), tree.page_size)
    return tuple(zip(start.tolist(), end.tolist(), strict=True))


def _huge_by_smaps(tree: Tree, found: Runs, vmas: list[Vma]) -> tuple[Ranges, bool]:
    """PMD mappings by the totals of smaps, and whether these leave only one reading.

    A candidate is an aligned, whole PMD-sized folio mapped as a whole. v6.1 leaves PMD mappings of a
    PROT_NONE VMA out of Rss and of AnonHugePages alike (follow_trans_huge_pmd() refuses them).
    """
    size = ptes_per_table(tree.page_size)
    huge: list[I64] = []
    known = True
    candidates, is_dirty = _pmd_candidates(tree, found, size)
    for number, vma in enumerate(vmas):
        if vma.has("ht"):
            continue
        place = slice(*np.searchsorted(candidates, (vma.start, vma.end)))
        # clean ones first: __split_huge_pmd_locked() hands the dirty bit of a PMD to the folio
        here = candidates[place][np.argsort(is_dirty[place], kind="stable")]
        total = vma.pmd_mapped
        if vma.perms.startswith("---") and len(here):
            total += _mapped_pages(tree, found.select(found.vma == number)) - vma.rss
        count = min(max(total // size, 0), len(here))
        known &= total == count * size and count in (0, len(here))
        huge.append(np.sort(here[:count]))
    start = np.concatenate(huge) if huge else np.zeros(0, np.int64)
    return Ranges(start, start + size, np.ones_like(start)), known


def _pmd_candidates(tree: Tree, found: Runs, size: int) -> tuple[I64, folios.Bools]:
    """Aligned, whole folios of `size` pages or more, mapped in order at an aligned address.

    Returns the first page of each and whether the folio is dirty.
    """
    vpn, frame = _aligned_parts(runs.contiguous(found), size)
    # an aligned power of two: head first and a tail in the middle means that no folio begins between
    flags = np.zeros((len(frame), 2), np.uint64)
    for row, head in enumerate(frame.tolist()):
        procfs.read_words(tree.flags_fd, head, flags[row, :1])
        procfs.read_words(tree.flags_fd, head + size // 2, flags[row, 1:])
    head, middle = flags.T
    whole = (head & folios.HEAD != 0) & (middle & folios.TAIL != 0) & (head & ex.ZERO_PAGE == 0)
    # PM_EXCLUSIVE is that of the head for all pages of a PMD mapping up to Linux kernel commit 2c1f057e5be6
    # "fs/proc/task_mmu: properly detect PM_MMAP_EXCLUSIVE per page of PMD-mapped THPs" (in v6.11); kernels
    # that show UPTODATE on heads only are older still (v6.10)
    per_page = (head ^ middle) & UPTODATE == 0
    alike = np.isin(vpn, _aligned_parts(found.select(found.present), size)[0])
    taken = whole & (per_page | alike)
    return vpn[taken], (head & ex.DIRTY != 0)[taken]


def _aligned_parts(mapped: Runs, size: int) -> tuple[I64, I64]:
    """(first page, first frame) of all aligned parts of `size` pages whose frames are aligned too."""
    first = -(-mapped.vpn // size) * size
    counts = np.maximum((mapped.vpn + mapped.pages - first) // size, 0)
    index = np.repeat(np.arange(len(first)), counts)
    vpn = first[index] + (np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)) * size
    frame = mapped.frame[index] + vpn - mapped.vpn[index]
    aligned = frame % size == 0
    return vpn[aligned], frame[aligned]


def _mapped_pages(tree: Tree, of_vma: Runs) -> int:
    """Present pages of a VMA that are not zero pages."""
    present = of_vma.select(of_vma.present)
    frames, inverse = np.unique(present.frame, return_inverse=True)
    flags = np.zeros(len(frames), np.uint64)
    for row, frame in enumerate(frames.tolist()):
        procfs.read_words(tree.flags_fd, frame, flags[row : row + 1])
    zero = flags & ex.ZERO_PAGE != 0
    return int(present.pages[~zero[inverse]].sum())


def _check_rights(tree: Tree, found: Runs) -> None:
    """Refuse frames that read as 0: pagemap_read() hides them from who lacks CAP_SYS_ADMIN."""
    present = found.present
    if present.any() and not (found.frame[present]).any():
        raise ReplayError(
            "page frames read as 0: CAP_SYS_ADMIN is missing: run replay as root of the host"
            if tree.live
            else f"page frames in {tree.root} read as 0: the tree was saved without CAP_SYS_ADMIN"
        )


def _check_saved(tree: Tree, rows: Extents, vmas: list[Vma]) -> None:
    """Refuse a saved tree whose kpageflags or kpagecount ends before a page that must be in it."""
    if tree.saved_frames is None:
        return
    beyond = rows.pfn + rows.pages > tree.saved_frames
    maps_frames = np.array([vma.has("pf") or vma.has("io") or vma.has("mm") for vma in vmas], bool)
    wrong = beyond & (rows.kind != ex.SWAP) & (rows.file | ~maps_frames[rows.vma])
    if wrong.any():
        frame = int(rows.pfn[np.flatnonzero(wrong)[0]])
        raise ReplayError(
            f"kpageflags or kpagecount in {tree.root} is cut: it ends before frame {frame}, which is mapped: "
            "save the tree again"
        )


def _check_pagemap_whole(tree: Tree, fd: int, pid: int, vmas: list[Vma], totals: Totals) -> None:
    """Refuse a saved pagemap that ends inside a VMA of which smaps says that more is resident."""
    end = procfs.saved_words(fd) or 0
    for number, vma in enumerate(vmas):
        resident = vma.rss + (vma.swap if vma.inode == 0 else 0)
        if end < vma.end and totals.by_vma.get(number, 0) < resident:
            raise ReplayError(
                f"{tree.root / str(pid) / 'pagemap'} is cut: smaps says that {vma.rss} pages are mapped at "
                f"{vma.start * tree.page_size:#x}: save the tree again"
            )


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[I64, I64]:
    table = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _ranges(pairs: Sequence[tuple[int, int]]) -> Ranges:
    """Ranges with value 1; those that touch become one."""
    start, end = _columns(pairs)
    start, end = folios.pieces_of(start, end - start, 0)
    return Ranges(start, end, np.ones_like(start))


def _joined(parts: list[tuple[I64, I64]]) -> Ranges:
    start = np.concatenate([part[0] for part in parts]) if parts else np.zeros(0, np.int64)
    end = np.concatenate([part[1] for part in parts]) if parts else start
    return Ranges(start, end, np.ones_like(start))
