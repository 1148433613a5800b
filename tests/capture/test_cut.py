# SPDX-License-Identifier: Apache-2.0
"""Saved trees, real and made up: every page as a slow, literal reading of the tree has it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.capture.extents import Entries, Ranges, count_exclusive
from replay.capture.folios import MAPCOUNT, MAPPED, Pages, folios_of
from replay.capture.live import capture_process
from replay.trace.check import check_frame
from replay.trace.kpageflags import (
    KPF_ANON,
    KPF_COMPOUND_HEAD,
    KPF_COMPOUND_TAIL,
    KPF_DIRTY,
    KPF_HUGE,
    KPF_IDLE,
    KPF_LRU,
    KPF_NOPAGE,
    KPF_SWAPBACKED,
    KPF_ZERO_PAGE,
    bit,
)
from tests.capture import literal, trees
from tests.capture.trees import EXCLUSIVE, FILE, GUARD, PRESENT, SWAP, UFFD_WP, FakeProcess, FakeVma

ANON = bit(KPF_ANON) | bit(KPF_SWAPBACKED) | bit(KPF_LRU)


def captured(root: Path, pid: int, **options):
    trace = capture_process(pid, procfs_root=root, **options).trace
    check_frame(trace.frame, trace.meta, "capture")
    assert literal.joinable(trace.frame, trace.meta.page_size // 8) == []
    return trace


def assert_same(trace, expected) -> None:
    found = literal.expand(trace.frame)
    assert found.keys() == expected.keys()
    for vpn, row in expected.items():
        assert found[vpn] == row, f"page {vpn:#x}"


@pytest.mark.parametrize("case", trees.truth_cases())
def test_truth_page_by_page(case: str, tmp_path: Path) -> None:
    pid, expected = trees.lay_out(trees.TRUTH / case, tmp_path)
    pmd = expected["pmd_mapped"]
    trace = captured(tmp_path, pid, known_pmd=pmd, known_dirty=expected["dirty_ptes"])
    assert (trace.meta.pmd, trace.meta.dirty, trace.meta.held) == ("known", "known", "none")
    page_size = trees.page_size_of(expected)
    assert trace.meta.page_size == page_size
    assert_same(trace, literal.pages(tmp_path, pid, set(pmd), expected["dirty_ptes"], page_size))


@pytest.mark.parametrize("case", trees.truth_cases())
def test_truth_pmd_by_itself(case: str, tmp_path: Path) -> None:
    """PMD mappings by pagemap_scan, and without it by smaps: right, or said to be unknown."""
    pid, expected = trees.lay_out(trees.TRUTH / case, tmp_path)
    page_size = trees.page_size_of(expected)
    literally = literal.pages(tmp_path, pid, set(expected["pmd_mapped"]), page_size=page_size)
    scan = tmp_path / str(pid) / "pagemap_scan"
    if scan.exists():
        trace = captured(tmp_path, pid)
        assert trace.meta.pmd == "known"
        assert_same(trace, literally)
        scan.unlink()
    trace = captured(tmp_path, pid)
    if trace.meta.pmd == "unknown":
        # whole folios mapped by PTEs beside PMD-mapped ones: as many as there are, maybe others
        found = literal.expand(trace.frame)
        by_pmd = page_size // 8 * len(expected["pmd_mapped"])
        assert sum(row["kind"] == "pmd" for row in found.values()) == by_pmd
        for vpn, row in found.items():
            if 1 << row["order"] >= page_size // 8:
                row["kind"] = literally[vpn]["kind"]
        assert found == literally
    else:
        assert_same(trace, literally)


FRAMES = 4096

MARKERS = (
    SWAP | GUARD | 31,  # as from v6.15 on
    SWAP | 4 << 5 | 31,  # a guard region before
    SWAP | UFFD_WP | 1 << 5 | 31,
    SWAP | 700 << 5 | 24,  # a migration entry, whose offset is the frame
    SWAP | 512 << 5 | 23,  # hardware poison
)

processes = st.integers(0, 1 << 32).map(lambda seed: fake_process(seed))


def fake_process(seed: int) -> FakeProcess:
    """An address space over a small memory: folios of all orders, holes, sharing, pages mapped repeatedly."""
    random = Random(seed)
    flags = np.zeros(FRAMES, np.uint64)
    counts = np.zeros(FRAMES, np.uint64)
    kinds = [
        (ANON, 0),
        (ANON | bit(KPF_DIRTY), 0),
        (bit(KPF_LRU) | bit(KPF_DIRTY), FILE),
        (bit(KPF_LRU) | bit(KPF_IDLE), FILE),
        (bit(KPF_SWAPBACKED) | bit(KPF_DIRTY), FILE),
        (bit(KPF_NOPAGE), FILE),
        (bit(KPF_ZERO_PAGE), 0),
    ]
    folios = []
    frame = 512
    while frame < FRAMES - 1024:
        order = min(random.choice([0, 0, 0, 1, 2, 3, 4, 9]), (frame & -frame).bit_length() - 1)
        word, pm = random.choice(kinds)
        if word & (bit(KPF_ZERO_PAGE) | bit(KPF_NOPAGE)):
            order = 0
        # v6.1 shows some flags on heads only
        on_tails = (word & bit(KPF_ANON)) if random.random() < 0.3 and not word & bit(KPF_HUGE) else None
        trees.folio(flags, frame, order, word, on_tails=on_tails)
        folios.append((frame, order, pm))
        frame += 1 << order
    vmas, vpn = [], random.choice([0x400, 0x10000])
    for _ in range(random.randint(1, 6)):
        vpn += random.choice([0, 0, 1, 100, 600])
        vma = FakeVma(vpn, 0, random.choice(["rw-p", "r--s", "rw-s", "r-xp"]))
        end = vpn
        for _ in range(random.randint(0, 12)):
            head, order, pm = random.choice(folios)
            size = 1 << order
            if order == 9 and random.random() < 0.5:
                end = -(-end // 512) * 512
                vma.pmd.add(end)
                first, count = 0, 512
            elif random.random() < 0.5:
                first, count = 0, min(size + random.choice([0, 0, 3]), FRAMES - 1024 - head)
            else:
                first = random.randrange(size)
                count = random.randint(1, size - first)
            for i in range(first, first + count):
                here = next(f for f in reversed(folios) if f[0] <= head + i)
                vma.words[end] = PRESENT | here[2] | (head + i)
                counts[head + i] += 1
                end += 1
            if random.random() < 0.3:
                for i in range(random.randint(1, 5)):
                    vma.words[end] = SWAP | (1000 + i) << 5 | random.choice([0, 1])
                    end += 1
            if random.random() < 0.3:
                word = random.choice(MARKERS)
                for i in range(random.randint(1, 5)):
                    vma.words[end] = word + (i << 5 if word & 31 == 24 else 0)
                    end += 1
            end += random.choice([0, 0, 1, 7])
        vma.pages = max(end - vpn, 1)
        vmas.append(vma)
        vpn = vma.start + vma.pages
    if random.random() < 0.3:
        vmas.append(hugetlb_vma(-(-vpn // 512) * 512, FRAMES - 1024, flags, counts))
    for vma in vmas:
        for place, word in vma.words.items():
            if word & PRESENT and counts[word & 0xFFFF] == 1 and random.random() < 0.9:
                vma.words[place] = word | EXCLUSIVE
    for _ in range(random.randint(0, 50)):
        frame = random.randrange(512, FRAMES)
        if not any(
            w & EXCLUSIVE and w & 0xFFFF == frame for vma in vmas for w in vma.words.values() if w & PRESENT
        ):
            counts[frame] += random.choice([1, 1, 5])
    counts[(flags & np.uint64(bit(KPF_ZERO_PAGE) | bit(KPF_NOPAGE))) != 0] = 0
    memcg = np.zeros(FRAMES, np.uint64)
    for head, _order, _ in folios:
        memcg[head] = random.choice([7, 7, 7, 35, 0])
    return FakeProcess(vmas, flags, counts, memcg if random.random() < 0.7 else None)


def hugetlb_vma(vpn: int, frame: int, flags: np.ndarray, counts: np.ndarray) -> FakeVma:
    """Two huge pages, the first of them mapped twice."""
    for head in (frame, frame + 512):
        trees.folio(flags, head, 9, bit(KPF_HUGE) | bit(KPF_ANON))
    vma = FakeVma(vpn, 1536, flags="rd wr mr mw me ht", page_size=2 << 20)
    for number, head in enumerate((frame, frame + 512, frame)):
        vma.words.update({vpn + 512 * number + i: PRESENT | (head + i) for i in range(512)})
        counts[head : head + 512] += np.uint64(1)
    return vma


@settings(max_examples=150, deadline=None)
@given(processes)
def test_made_up_page_by_page(process: FakeProcess) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = process.write(Path(folder))
        pmd = {vpn for vma in process.vmas for vpn in vma.pmd}
        trace = captured(root, process.pid)
        assert_same(trace, literal.pages(root, process.pid, pmd))


def averaged(process: FakeProcess) -> FakeProcess:
    """The process as a kernel with CONFIG_NO_PAGE_MAPCOUNT shows it: averages, bit 56 by the folio."""
    flags, counts = process.flags, process.counts.copy()
    own = np.zeros(len(counts), np.int64)
    by_pmd = np.zeros(len(counts), np.int64)
    for vma in process.vmas:
        for vpn, word in vma.words.items():
            if word & PRESENT:
                own[word & 0xFFFF] += 1
                by_pmd[word & 0xFFFF] += vpn in vma.pmd
    shared = np.zeros(len(counts), bool)
    frame, words_of_flags = 0, flags.tolist()
    while frame < len(counts):
        head, order = literal.folio(frame, words_of_flags)
        whole = slice(head, head + (1 << order))
        frame = whole.stop
        shared[whole] = (process.counts[whole] > own[whole]).any()
        if order and not flags[head] & np.uint64(bit(KPF_HUGE)):
            # the kernel counts a PMD mapping as one, beside the mappings of each page by PTEs
            entire = int(by_pmd[head])
            by_pte = int(process.counts[whole].sum()) - (entire << order)
            average = (by_pte + (1 << order >> 1)) >> order
            counts[whole] = max(average + entire, 1) if by_pte + entire else 0
    vmas = []
    for vma in process.vmas:
        words = {
            vpn: word & ~EXCLUSIVE | (0 if shared[word & 0xFFFF] else EXCLUSIVE) if word & PRESENT else word
            for vpn, word in vma.words.items()
        }
        vmas.append(replace(vma, words=words))
    config = "CONFIG_MM_ID=y\nCONFIG_NO_PAGE_MAPCOUNT=y\n"
    return replace(process, vmas=vmas, counts=counts, config=config)


@settings(max_examples=150, deadline=None)
@given(processes, st.sampled_from([1, 1 << 21]))
def test_averages_page_by_page(process: FakeProcess, portion: int) -> None:
    """Large folios that nobody else maps have their own mapcounts, however small the portions are read."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = averaged(process).write(Path(folder))
        patch.setattr("replay.capture.address_space.BLOCK_PAGES", 512 if portion == 1 else 1 << 18)
        patch.setattr("replay.capture.address_space.PORTION_PAGES", portion)
        pmd = {vpn for vma in process.vmas for vpn in vma.pmd}
        trace = captured(root, process.pid)
        assert trace.meta.mapcounts == "average"
        assert_same(trace, literal.pages(root, process.pid, pmd))


def test_an_average_is_at_least_what_the_address_space_maps_wherever_it_does() -> None:
    """Both pages of the folio, though one may be read with another portion of the page tables."""
    flags = np.array([bit(KPF_COMPOUND_HEAD), bit(KPF_COMPOUND_TAIL)], np.uint64)
    one = np.array([8], np.int64)
    pages = Pages(one, one + 2, one - 8, flags, np.array([1, 1], np.int64), np.zeros(0, np.int64))
    found = folios_of(pages)
    mapped = Ranges(np.array([8, 9]), np.array([9, 10]), np.array([3, 2]))
    count_exclusive(pages, found, Entries(mapped, mapped._replace(value=np.array([1, 1]))))
    assert pages.counts.tolist() == [3, 2]
    assert found.facts[[MAPPED, MAPCOUNT], 0].tolist() == [2, 5]


@settings(max_examples=100, deadline=None)
@given(processes)
def test_averages_of_what_nobody_else_maps_become_what_they_are(process: FakeProcess) -> None:
    """Without any other mapping the trace says what it says on a kernel that counts each page."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        alone = only_mapper(process)
        precise = literal.expand(captured(alone.write(Path(one)), process.pid).frame)
        average = literal.expand(captured(averaged(alone).write(Path(other)), process.pid).frame)
    for rows in (precise, average):
        for row in rows.values():
            del row["exclusive"]  # of the page in the one, of the folio in the other
    assert average == precise


def only_mapper(process: FakeProcess) -> FakeProcess:
    """The process with the mapcounts that it alone makes."""
    counts = np.zeros_like(process.counts)
    for vma in process.vmas:
        for word in vma.words.values():
            if word & PRESENT:
                counts[word & 0xFFFF] += np.uint64(1)
    counts[(process.flags & np.uint64(bit(KPF_ZERO_PAGE) | bit(KPF_NOPAGE))) != 0] = 0
    return replace(process, counts=counts)


@settings(max_examples=40, deadline=None)
@given(processes, st.sampled_from([1, 600]))
def test_portions_do_not_show(process: FakeProcess, portion: int) -> None:
    """However small the portions in which folios are read, the rows are the same."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = process.write(Path(folder))
        whole = captured(root, process.pid).frame
        patch.setattr("replay.capture.address_space.BLOCK_PAGES", 512)
        patch.setattr("replay.capture.address_space.BATCH_PAGES", 100)
        patch.setattr("replay.capture.address_space.PORTION_PAGES", portion)
        assert captured(root, process.pid).frame.equals(whole)


@settings(max_examples=80, deadline=None)
@given(processes)
def test_shared_reading_does_not_show(process: FakeProcess) -> None:
    """Two threads that share the reading, with too little room at first: the rows are the same."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = process.write(Path(folder))
        whole = captured(root, process.pid).frame
        patch.setattr("replay.capture.folios.SHARED_WORDS", 0)
        patch.setattr("replay.capture.folios.SPARE_WORDS", 0)
        assert captured(root, process.pid).frame.equals(whole)
