"""The kernel lab's own parts: archive, ring buffer, page tables, what is counted, what explains a difference.

What needs QEMU and Debian's packages is `scripts/kernel_lab --quick`.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from lab import catalogue, compare, counts, initramfs, pages, trace  # noqa: E402
from lab.case import Evidence  # noqa: E402
from lab.trace import Event  # noqa: E402

FORMAT = """name: free_calls
ID: 777
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;
\tfield:s32 nr;\toffset:16;\tsize:4;\tsigned:1;
"""


def record(nr: int, flags: int = 0, pid: int = 5) -> bytes:
    """One ring buffer record of FORMAT, its header in front."""
    data = struct.pack("<HBBiQi", 777, flags, 0, pid, 0, nr)
    return struct.pack("<I", len(data) // 4 | 9 << 5) + data


def page(content: bytes, commit_flags: int = 0) -> bytes:
    """One raw page of the ring buffer."""
    return (struct.pack("<QQ", 1, len(content) | commit_flags) + content).ljust(4096, b"\0")


def event(name: str, pid: int = 5, in_interrupt: bool = False, **args: int) -> Event:
    return Event(name, pid, in_interrupt, args)


def test_ring_buffer_is_decoded_with_its_paddings_and_time_records():
    extend = struct.pack("<II", 30 | 1 << 5, 2)
    discarded = struct.pack("<II", 29 | 1 << 5, 8) + bytes(4)
    long_form = struct.pack("<II", 0, 24) + record(-3)[4:]
    raw = page(record(7) + extend + discarded + long_form) + page(record(9, flags=0x10, pid=6))
    found = list(trace.events(raw, dict([trace.parse_format(FORMAT)])))
    assert [(e.args["nr"], e.pid, e.in_interrupt) for e in found] == [
        (7, 5, False),
        (-3, 5, False),
        (9, 6, True),
    ]


def test_lost_events_are_refused():
    with pytest.raises(trace.LostEventsError):
        list(trace.records(page(record(1), commit_flags=1 << 31)))
    with pytest.raises(trace.LostEventsError, match="overrun: 3"):
        trace.check_stats("entries: 9\noverrun: 3\n")
    trace.check_stats("entries: 9\noverrun: 0\ncommit overrun: 0\ndropped events: 0\n")


def test_only_the_exit_of_the_process_is_counted():
    stream = [
        event("free_calls", nr=1),
        event("exit_mmap", pid=6, mm=1),
        event("exit_mmap", mm=2),
        event("free_calls", nr=3),
        event("free_calls", in_interrupt=True, nr=4),
        event("flush_range", mm=9),
        event("tlb_finish"),
        event("tlb_finished"),
        event("free_calls", nr=5),
    ]
    inside, preempted = counts.window(stream, 5)
    assert [e.name for e in inside] == ["free_calls", "tlb_finish", "tlb_finished"]
    assert not preempted
    assert counts.window([*stream[:4], event("resched", pid=7), *stream[4:]], 5)[1]
    with pytest.raises(counts.NoExitError):
        counts.window(stream[:5], 5)


def test_drained_batches_and_swap_entries_are_told_apart():
    stream = [
        event("drain"),
        event("folios_put_refs", nr=3),
        event("mm_page_free", pfn=1, order=0),
        event("drained"),
        event("swap_entries", nr=1),
        event("swapcache_delete", page=1),
        event("rmap_ptes", page=1, nr=2),
        event("swapcache_delete", page=2),
    ]
    names = [e.name for e in counts.of_release(counts.without_drains(stream))]
    assert names == ["mm_page_free", "swap_entries", "rmap_ptes", "swapcache_delete"]


def test_flushes_group_the_pieces():
    stream = [
        *(event("free_calls", nr=8), event("tlb_flush_mmu"), event("free_calls", nr=7)),
        *(
            event("free_calls", nr=510),
            event("tlb_flush_mmu"),
            event("tlb_finish"),
            event("free_calls", nr=2),
        ),
    ]
    assert counts.flush_groups(stream) == [[8], [7, 510], [2]]


def test_page_table_leaves_are_decoded():
    flags = np.zeros(64, np.uint64)
    flags[8] = 1 << pages.HEAD | 1 << pages.ANON
    flags[9:16] = 1 << pages.TAIL | 1 << pages.ANON
    flags[32] = 1 << pages.HEAD | 1 << pages.HUGE
    flags[40] = 1 << pages.ZERO_PAGE
    level = [np.uint64(n << 60) for n in range(3)]
    present = pages.PRESENT
    prot_none = (~np.uint64(21 << 12) & pages.FRAME) | np.uint64(pages.PROT_NONE)
    entries = [
        (level[1] + np.uint64(100), 20 << 12 | present | pages.DIRTY),  # file, dirty
        (level[1] + np.uint64(101), prot_none),  # file, clean
        (level[1] + np.uint64(102), 9 << 12 | present | pages.DIRTY),  # anonymous: its dirty bit says nothing
        (level[1] + np.uint64(103), 41 << 12 | present | pages.SPECIAL),  # zero page
        (level[1] + np.uint64(104), 5 << 12),  # swap entry
        (level[1] + np.uint64(700), 22 << 12 | present | pages.SPECIAL),  # VM_PFNMAP
        (level[2] + np.uint64(512), 8 << 12 | present),
        (level[2] + np.uint64(1024), 32 << 12 | present),
        (level[2] + np.uint64(1536), 40 << 12 | present),
        (level[1] + np.uint64(2000), 23 << 12 | present | pages.SAVED_DIRTY),
    ]
    raw = np.array([(int(w), int(e)) for w, e in entries], pages._LEAF).tobytes()
    smaps = "2bc000-2bd000 r--p 00000000 00:00 0 [vvar]\nVmFlags: rd mr pf \n"
    found = pages.decode(raw, smaps, flags, saved_dirty=True)
    assert found.pte_vpn.tolist() == [100, 101, 102, 2000]
    assert found.pte_pfn.tolist() == [20, 21, 9, 23]
    assert found.pte_dirty_file.tolist() == [True, False, False, True]
    assert (found.pmd_vpn.tolist(), found.hugetlb, found.special) == ([512], 1, 2)
    assert not pages.decode(raw, smaps, flags, saved_dirty=False).pte_dirty_file[-1]
    assert pages.heads(flags)[[8, 9, 15, 16]].tolist() == [8, 8, 8, 16]
    assert pages.runs(np.array([3, 4, 5, 9])) == [[3, 3], [9, 1]]


def test_folios_held_by_others_need_their_references_as_proof():
    replayed = [[1, 0], [2, 0], [3, 0]]
    references, own = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1])
    proof = Evidence({}, references, own)
    assert compare.held_by_others([[1, 0], [3, 0]], replayed, proof) == 1
    assert compare.held_by_others([[3, 0], [1, 0]], replayed, proof) == 0  # another order
    assert compare.held_by_others([[1, 0], [2, 0]], replayed, proof) == 0  # 3 has no reference too many


def test_archive_is_what_cpio_reads():
    data = initramfs.cpio([("a", 0o40755, b""), ("a/b", 0o100644, b"12345")])
    assert len(data) % 4 == 0
    assert data.startswith(b"070701")
    assert data.index(b"a/b\0") < data.index(b"12345") < data.index(b"TRAILER!!!")


def test_catalogue():
    cases = catalogue.catalogue()
    assert len(cases) == len(set(cases)) > 100
    assert cases == catalogue.catalogue()
    assert set(catalogue.selected(["tiny_0000?", "ksm"])) == {
        "tiny_00000",
        "tiny_00005",
        "tiny_00006",
        "tiny_00007",
        "ksm",
    }


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--image", "/nowhere", "--algorithm", "v2"], 2, "no kernel image"),
        (["--image", __file__], 2, "go together"),
        (["--image", __file__, "--algorithm", "v9"], 2, "unknown algorithm"),
        (["--case", "no such case"], 1, "no case is called"),
        (["-o", "/nowhere/x.csv"], 2, "no folder"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], status: int, message: str):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "kernel_lab"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
