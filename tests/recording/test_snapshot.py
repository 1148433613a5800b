# SPDX-License-Identifier: Apache-2.0
"""Snapshots of many processes made into rows together: as each of them captured by itself."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import polars as pl
import pytest

from replay.capture.arrow import table
from replay.capture.extents import Owner
from replay.capture.live import capture_process
from replay.procfs import files
from replay.procfs.pagemap_scan import supported
from replay.procfs.pagemap_words import read_pieces
from replay.procfs.source import opened
from replay.recording import snapshot
from replay.trace.frame import frame_of
from replay.trace.kpageflags import KPF_ANON, bit
from tests.capture.processes import needs_root, program
from tests.capture.trees import HEAD, TAIL

pytestmark = [
    needs_root(),
    pytest.mark.skipif(not supported(), reason="snapshots need PAGEMAP_SCAN (Linux 6.7)"),
]

PROGRAMS = {
    "ordinary": "a = area(8 << 20)\nfor i in range(0, 8 << 20, 12288): libc.memset(a + i, 1, 1)\nready()",
    "huge": "a = area(4 << 20)\nlibc.madvise(a, 4 << 20, 14)\nlibc.memset(a, 1, 4 << 20)\nready()",
    "partially unmapped": """
a = area(4 << 20)
libc.madvise(a, 4 << 20, 14)
libc.memset(a, 1, 4 << 20)
for i in range(3): libc.munmap(a + (i << 20), 40960)
ready()
""",
    "mapped twice": """
fd = os.memfd_create("shared")
os.ftruncate(fd, 1 << 20)
a, b = (area(1 << 20, flags=SHARED, fd=fd) for _ in range(2))
libc.memset(a, 1, 1 << 20)
libc.memset(b, 2, 1 << 19)
ready()
""",
    "forked": """
a = area(4 << 20)
libc.memset(a, 1, 4 << 20)
if os.fork(): ready()
time.sleep(600)
""",
}


@pytest.mark.parametrize("precise", [True, False])
def test_together_as_alone(precise: bool) -> None:
    """In one array page and frame numbers of several address spaces are told apart.

    Where mapcounts are not precise, pages of large folios that nothing maps count as mapped, as with
    CONFIG_NO_PAGE_MAPCOUNT; counted by entries, they are what this kernel counts.
    """
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(program(code))[0] for code in PROGRAMS.values()]
        tree = stack.enter_context(opened(files.PROC, os.getpid()))
        alone = [capture_process(pid).trace for pid in pids]
        taken, words = [], []
        for pid in pids:
            room = np.zeros(1 << 18, np.uint64)
            found = snapshot.read(tree, pid, room, lambda: None)
            assert found
            taken.append(found)
            words.append(room[: found.words])
            if not precise:
                flags, counts = (room[found.pages + n * found.frames :][: found.frames] for n in (0, 1))
                large = flags & np.uint64(HEAD | TAIL) != 0
                counts[large] = np.maximum(counts[large], 1)
    rows, vmas, changed, more = snapshot.build(taken, words, tree.page_size, precise)
    owners = [
        Owner(mm, one.pid, one.status.name, of_space)
        for mm, (one, of_space) in enumerate(zip(taken, vmas, strict=True))
    ]
    together = frame_of(table(rows, owners))
    assert changed == 0
    assert more == [trace.meta.address_spaces[0].unaccounted for trace in alone if trace]
    for mm, trace in enumerate(alone):
        assert trace
        # other programs come and go: the mapcounts of what all of them map do not stand still
        moving = ["mapcount", "folio_mapcount", "folio_mapped", "exclusive", "kpageflags"]
        private = pl.col("file").not_() | pl.col("vma_name").cast(pl.String).str.contains("memfd")
        expected = trace.frame.with_columns(mm=pl.lit(mm, pl.UInt32)).filter(private)
        found_rows = together.filter((pl.col("mm") == mm) & private)
        assert found_rows.drop(moving).equals(expected.drop(moving))
        assert found_rows["mapcount"].equals(expected["mapcount"])
        folio = ["vpn", "order", "folio_mapped", "folio_mapcount"]
        large = (pl.col("order") > 0) & pl.col("exclusive")
        assert found_rows.filter(large).select(folio).equals(expected.filter(large).select(folio))


def test_no_room() -> None:
    with program(PROGRAMS["ordinary"]) as (pid, _), opened(files.PROC, pid) as tree:
        assert snapshot.read(tree, pid, np.zeros(100, np.uint64), lambda: None) is None
        assert snapshot.read(tree, pid, np.zeros(4000, np.uint64), lambda: None) is None


SMAPS = """\
1000-3000 r--p 00000000 08:01 7                          /tmp/a pf b
Rss:                   8 kB
VmFlags: rd mr mw me sd \n\
7000-8000 r--s 00000000 00:05 9                          /dev/frames
VmFlags: rd mr pf io de dd \n\
9000-a000 r--p 00000000 00:00 0                          [vvar]
VmFlags: pf rd mr \n\
c000-e000 rw-p 00000000 00:00 0 \n\
VmFlags: rd wr mr mw me ac \n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
VmFlags: ex pf \n\
"""


def test_bounds_and_raw_frames() -> None:
    """Of all that smaps says, reading needs only this; vsyscall is in no page table of the process."""
    assert snapshot._bounds(SMAPS) == (0x1000, 0xE000)
    assert list(snapshot._raw_frames(SMAPS)) == [(0x7000, 0x8000), (0x9000, 0xA000)]
    for nothing in ("", SMAPS[SMAPS.index("ffffffffff6") :]):
        begin, end = snapshot._bounds(nothing)
        assert begin == end and not snapshot._vmas(nothing, 4096)
    names = ["/tmp/a pf b", "/dev/frames", "[vvar]", ""]
    assert [vma.name for vma in snapshot._vmas(SMAPS, 4096)] == names


@pytest.mark.parametrize("code", [PROGRAMS[name] for name in ("ordinary", "huge", "mapped twice", "forked")])
def test_counts_that_were_not_asked_for(code: str) -> None:
    """They are what kpagecount says, of all frames of large folios and all private ones that are mapped."""
    room = np.zeros(1 << 18, np.uint64)
    with program(code) as (pid, _), opened(files.PROC, pid) as tree:
        taken = snapshot.read(tree, pid, room, lambda: None)
        assert taken
        start, end = snapshot._places(taken, room)[2:4]
        expected = np.zeros(taken.frames, np.int64)
        read_pieces(tree.counts_fd, start, end - start, expected)
    flags, counts = (room[taken.pages + n * taken.frames :][: taken.frames] for n in (0, 1))
    words = room[: taken.pages]
    frames = np.concatenate([np.arange(*piece) for piece in zip(start, end, strict=True)])
    mapped = np.isin(frames, words[words >= files.PM_PRESENT] & np.uint64(files.PM_PFRAME))
    # other programs come and go, and map the same files
    private = flags & np.uint64(bit(KPF_ANON)) != 0
    looked_at = private & (mapped | (flags & np.uint64(HEAD | TAIL) != 0))
    assert looked_at.sum() >= 256
    assert np.array_equal(counts.view(np.int64)[looked_at], expected[looked_at])
