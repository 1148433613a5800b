# SPDX-License-Identifier: Apache-2.0
"""The kernel lab's own parts: archive, ring buffer, page tables, what is counted, what explains a difference.

What needs QEMU and Debian's packages is `scripts/kernel_lab --quick`.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from lab import (  # noqa: E402
    boot,
    build,
    case,
    catalogue,
    compare,
    counts,
    initramfs,
    packages,
    pages,
    probes,
    report,
    run,
    trace,
    validate,
    validate_report,
)
from lab.architecture import ARCHITECTURES, OWN, compiler  # noqa: E402
from lab.case import Boot, Evidence  # noqa: E402
from lab.errors import LabError  # noqa: E402

from replay.procfs.kernel import mapcounts  # noqa: E402
from replay.validate.tracefs import Event, parse_format  # noqa: E402

STRUCT_PAGES = 0xFFFFEA0000000000
FREE_TABLES = 0xFFFFFFFF816D0D80
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


def event(name: str, pid: int = 5, **fields: int | bytes) -> Event:
    return Event(0, 0, name, pid, False, fields)


def test_ring_buffer_is_decoded_with_its_paddings_and_time_records():
    extend = struct.pack("<II", 30 | 1 << 5, 2)
    discarded = struct.pack("<II", 29 | 1 << 5, 8) + bytes(4)
    long_form = struct.pack("<II", 0, 24) + record(-3)[4:]
    raw = page(record(7) + extend + discarded + long_form) + page(record(9, flags=0x10, pid=6))
    found = list(trace.events(raw, dict([parse_format(FORMAT)]), 4096))
    assert [(e.fields["nr"], e.pid, e.interrupt) for e in found] == [
        (7, 5, False),
        (-3, 5, False),
        (9, 6, True),
    ]


def test_lost_events_are_refused():
    with pytest.raises(trace.LostEventsError):
        list(trace.events(page(record(1), commit_flags=1 << 31), {}, 4096))
    with pytest.raises(trace.LostEventsError, match="overrun: 3"):
        trace.check_stats("entries: 9\noverrun: 3\n")
    trace.check_stats("entries: 9\noverrun: 0\ncommit overrun: 0\ndropped events: 0\n")


def test_what_one_exit_did():
    """Queue and locks beside what `replay validate` counts; two folios, one of them in the swap cache."""
    page = STRUCT_PAGES + counts.STRUCT_PAGE * 8
    cached = page + counts.STRUCT_PAGE * 8
    flags = np.zeros(32, np.uint64)
    flags[16] = 1 << pages.SWAPCACHE
    no = np.empty(0, np.int64)
    leaves = pages.Leaves(no, no, np.empty(0, bool), None, no, np.array([8, 16]), 0, 0)
    stream = [
        event("exit_mmap_entry", mm=2),
        event("rmap_ptes", nr=4),
        event("deferred_split", page=page, next=page + 144),
        event("deferred_split", page=page, next=page + 999),
        event("deferred_split", page=cached, next=cached + 144),
        event("free_calls", nr=2),
        event("folios_put_refs", nr=1),
        event("lruvec_lock"),
        event("split_dequeue", page=page, next=page + 999),
        event("split_dequeue", page=cached, next=cached + 144),
        event("mm_page_free", pfn=8, order=3),
        event("mm_page_free", pfn=9, order=0),
        event("tlb_finish"),
        event("tlb_finished"),
    ]
    probed = {each.name: each.name for each in stream} | {"deferred_split": "deferred_split_folio"}
    found = counts.observe(stream, 5, probed, leaves, flags, STRUCT_PAGES, FREE_TABLES)
    assert (found.counters["rmap_calls"], found.counters["free_calls"]) == (1, 1)
    assert found.counters["deferred_split_queued"] == found.counters["deferred_split_dequeued"] == 1
    assert (found.counters["lruvec_locks"], found.counters["pages_freed"]) == (1, 8)
    assert "page_tables" not in found.counters and "release_calls" not in found.counters
    assert (found.rmap_sizes, found.release_sizes, found.flush_groups) == ({4: 1}, [1], [[2]])
    assert (found.freed, found.preempted) == ([[8, 3]], False)
    other = [*stream[:3], event("resched", pid=7), *stream[3:]]
    assert counts.observe(other, 5, probed, leaves, flags, STRUCT_PAGES, FREE_TABLES).preempted
    with pytest.raises(counts.NoExitError):
        counts.observe(stream, 6, probed, leaves, flags, STRUCT_PAGES, FREE_TABLES)


def test_page_table_leaves_are_decoded():
    flags = np.zeros(64, np.uint64)
    flags[8] = 1 << pages.HEAD | 1 << pages.ANON
    flags[9:16] = 1 << pages.TAIL | 1 << pages.ANON
    flags[32] = 1 << pages.HEAD | 1 << pages.HUGE
    flags[40] = 1 << pages.ZERO_PAGE
    level = [n << 60 for n in range(3)]
    present, layout = pages.PRESENT, pages.layout_of("x86_64", (6, 12))
    dirty, saved_dirty = (mask for mask, _ in layout.dirty)
    prot_none = ~(21 << 12) & layout.frame | layout.prot_none
    entries = [
        (level[1] + 100, 20 << 12 | present | dirty),  # file, dirty
        (level[1] + 101, prot_none),  # file, clean
        (level[1] + 102, 9 << 12 | present | dirty),  # anonymous: its dirty bit says nothing
        (level[1] + 103, 41 << 12 | present | layout.special),  # zero page
        (level[1] + 104, 5 << 12),  # swap entry
        (level[1] + 700, 22 << 12 | present | layout.special),  # VM_PFNMAP
        (level[2] + 512, 8 << 12 | present),
        (level[2] + 1024, 32 << 12 | present),
        (level[2] + 1536, 40 << 12 | present),
        (level[1] + 2000, 23 << 12 | present | saved_dirty),
    ]
    raw = np.array(entries, pages._LEAF).tobytes()
    smaps = "2bc000-2bd000 r--p 00000000 00:00 0 [vvar]\nVmFlags: rd mr pf \n"
    found = pages.decode(raw, smaps, flags, layout, 4096)
    assert found.pte_vpn.tolist() == [100, 101, 102, 2000]
    assert found.pte_pfn.tolist() == [20, 21, 9, 23]
    assert found.pte_dirty_file.tolist() == [True, False, False, True]
    assert (found.pmd_vpn.tolist(), found.hugetlb, found.special) == ([512], 1, 2)
    assert found.pte_contiguous is None
    before = pages.layout_of("x86_64", (6, 1))
    assert not pages.decode(raw, smaps, flags, before, 4096).pte_dirty_file[-1]
    assert pages.heads(flags)[[8, 9, 15, 16]].tolist() == [8, 8, 8, 16]
    assert pages.runs(np.array([3, 4, 5, 9])) == [[3, 3], [9, 1]]


def test_page_table_leaves_of_arm64_are_decoded():
    flags = np.zeros(64, np.uint64)
    flags[16] = 1 << pages.HEAD
    valid, table, read_only, writable, contiguous = 1, 1 << 1, 1 << 7, 1 << 51, 1 << 52
    entries = [
        (
            (1 << 60) + 100,
            20 << 12 | valid | table | writable,
        ),  # written to: the processor took read-only away
        ((1 << 60) + 101, 21 << 12 | valid | table | writable | read_only),
        ((1 << 60) + 102, 22 << 12 | valid | table | read_only | 1 << 55),  # dirty by software
        ((1 << 60) + 103, 23 << 12 | valid | table | 1 << 56),  # special
        ((1 << 60) + 104, 24 << 12 | 1 << 58),  # PROT_NONE before v6.10
        ((1 << 60) + 105, 25 << 12 | 1 << 11),  # since
        ((1 << 60) + 106, 5 << 12),  # swap entry
        ((1 << 60) + 107, 26 << 12 | valid | table | read_only | contiguous),
        ((2 << 60) + 512, 16 << 12 | valid),  # a block
    ]
    raw = np.array(entries, pages._LEAF).tobytes()
    found = pages.decode(raw, "", flags, pages.layout_of("aarch64", (6, 12)), 4096)
    assert found.pte_vpn.tolist() == [100, 101, 102, 105, 107]
    assert found.pte_pfn.tolist() == [20, 21, 22, 25, 26]
    assert found.pte_dirty_file.tolist() == [True, False, True, False, False]
    assert found.pte_contiguous is not None
    assert found.pte_contiguous.tolist() == [False, False, False, False, True]
    assert (found.pmd_vpn.tolist(), found.special) == ([512], 1)
    before = pages.decode(raw, "", flags, pages.layout_of("aarch64", (6, 1)), 4096)
    assert before.pte_vpn.tolist() == [100, 101, 102, 104, 107]
    assert before.pte_contiguous is None  # its teardown does not look at the bit


def test_flushes_of_arm64_that_flush_nothing_do_not_count():
    fullmm, freed_tables = probes.FULL_MM, probes.FREED_TABLES
    events = [event("tlb_flush", bits=bits) for bits in (fullmm, 0, fullmm | freed_tables, fullmm | 1 << 4)]
    assert counts._tlb_flushes(events) == 2


def test_what_architectures_differ_in():
    text = {name: probes.lines(each.machine) for name, each in ARCHITECTURES.items()}
    assert "p free_calls free_pages_and_swap_cache nr=%si:s32\n" in text["amd64"]
    assert "p free_calls free_pages_and_swap_cache nr=%x1:s32\n" in text["arm64"]
    assert "c tlb_flush" not in text["amd64"]
    assert "c tlb_flush tlb_flush bits=+32(%x0):x32\n" in text["arm64"]
    for each in ARCHITECTURES.values():
        command = boot.command(each, Path("vmlinuz"), Path("initrd"), [Path("a"), Path("b")], memory_mib=512)
        assert command[0] == each.qemu
        assert f"console={each.console} " in command[command.index("-append") + 1]
        assert compiler(each) == ("gcc" if each is OWN else f"{each.triplet}-gcc")


def test_blocks_are_told_by_their_first_pages():
    assert compare._blocks([[32, 48], [160, 16]], 4096).tolist() == [32, 48, 64, 160]
    assert compare._blocks([], 4096).tolist() == []


def test_folios_held_by_others_need_their_references_as_proof():
    replayed = [[1, 0], [2, 0], [3, 0]]
    references, own = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1])
    proof = Evidence({}, references, own)
    assert compare.held_by_others([[1, 0], [3, 0]], replayed, proof) == 1
    assert compare.held_by_others([[3, 0], [1, 0]], replayed, proof) == 0  # another order
    assert compare.held_by_others([[1, 0], [2, 0]], replayed, proof) == 0  # 3 has no reference too many


def test_averages_explain_what_agrees_with_true_mapcounts():
    expected = {"preempted": False}
    proof = Evidence({}, np.zeros(1), np.zeros(1))
    assert (
        compare._cause("deferred_split_calls", expected, proof, 0, {"deferred_split_calls"})
        == compare.AVERAGES
    )
    assert compare._cause("folios_freed", expected, proof, 0, {"deferred_split_calls"}) == compare.UNEXPLAINED
    # a folio that others map has references, but these are no secret of the kernel's
    assert compare._cause("folios_freed", expected, proof, 1, {"folios_freed"}) == compare.AVERAGES


@pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler")
def test_files_of_the_guest_call_only_files_before_them(tmp_path: Path):
    defined: set[str] = set()
    for name in initramfs.INIT_SOURCES:
        built = tmp_path / f"{name}.o"
        subprocess.run(["gcc", "-c", "-o", str(built), str(initramfs.SOURCES / name)], check=True)
        listed = subprocess.run(["nm", str(built)], capture_output=True, text=True, check=True).stdout
        symbols = [line.split()[-2:] for line in listed.splitlines()]
        needed = {symbol for kind, symbol in symbols if kind == "U"}
        assert needed.isdisjoint(_functions_of_the_guest() - defined), name
        defined |= {symbol for kind, symbol in symbols if kind == "T"}


def _functions_of_the_guest() -> set[str]:
    """What lab.h declares."""
    text = (initramfs.SOURCES / "lab.h").read_text()
    return set(re.findall(r"^(?:void|int|uint64_t|size_t) (\w+)\(", text, re.MULTILINE))


def test_archive_is_what_cpio_reads():
    data = initramfs.cpio([("a", 0o40755, b""), ("a/b", 0o100644, b"12345")])
    assert len(data) % 4 == 0
    assert data.startswith(b"070701")
    assert data.index(b"a/b\0") < data.index(b"12345") < data.index(b"TRAILER!!!")


def test_the_newest_package_is_told_by_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = ["linux-image-6.18.9+deb13-cloud-amd64", "linux-image-6.18.15+deb13-cloud-amd64"]
    other = "linux-image-6.18.20+deb13-rt-amd64"
    apt = packages.Apt(OWN, cache=tmp_path)
    monkeypatch.setattr(apt, "_run", lambda *command, **_: "\n".join([*names, other]))
    assert apt.newest("linux-image-6.18.*-cloud-amd64") == names[1]
    assert apt.newest("linux-image-9.9.*-cloud-amd64") == ""


def test_a_kernel_is_made_of_the_packages_that_its_image_needs():
    needs = ["initramfs-tools", "linux-base-7.3.4-x", "linux-modules-7.3.4-x", "linux-binary-7.3.4-x", "kmod"]
    assert set(packages._parts(needs)) == {*needs[1:4]}
    assert packages._parts(["linux-base-x", "linux-image-7.3.4-x"])[0] == "linux-image-7.3.4-x"


def test_suites_have_caches_of_their_own(tmp_path: Path):
    homes = [
        packages.Apt(each, suite, tmp_path).home
        for each in ARCHITECTURES.values()
        for suite in packages.SUITES
    ]
    assert len(set(homes)) == len(homes)


def test_a_configuration_that_the_source_does_not_have_is_refused(tmp_path: Path):
    config = tmp_path / ".config"
    config.write_text("CONFIG_A=y\n# CONFIG_B is not set\n")
    build._check_config(config, "# why\nCONFIG_A=y\n")
    with pytest.raises(LabError, match="CONFIG_B=y"):
        build._check_config(config, "CONFIG_A=y\nCONFIG_B=y\n")


@pytest.mark.parametrize(
    ("config", "algorithm"),
    [
        ("", "v6.12"),
        ("CONFIG_MM_ID=y\nCONFIG_PT_RECLAIM=y\n", "mainline"),
        ("CONFIG_MM_ID=y\nCONFIG_NO_PAGE_MAPCOUNT=y\n", "mainline-nomapcount"),
    ],
)
def test_the_algorithm_of_a_kernel_is_what_it_shows(tmp_path: Path, config: str, algorithm: str):
    image = tmp_path / "vmlinuz"
    (tmp_path / "config-built").write_text(config)
    functions = frozenset({"tlb_flush_rmaps", "__tlb_remove_folio_pages", "schedule"})
    info = Boot("7.3.4", {}, {}, 0, 4096, -1, functions)
    assert run._algorithm(run.Kernel("x", OWN, image, None), info) == algorithm


@pytest.mark.parametrize(
    ("config", "algorithm", "averages"),
    [
        ("CONFIG_MM_ID=y\n", "mainline-nomapcount", False),
        ("CONFIG_NO_PAGE_MAPCOUNT=y\n", "mainline", True),
        ("", "mainline-nomapcount", True),
        ("", "v2", False),
    ],
)
def test_averages_are_told_by_the_configuration(tmp_path: Path, config: str, algorithm: str, averages: bool):
    (tmp_path / "config").write_text(config)
    assert run.Kernel("x", OWN, tmp_path / "vmlinuz", None, algorithm).averages == averages


def test_batches_of_page_tables_are_told_by_the_function_that_frees_them():
    calls = [event("table_batch", func=func) for func in (FREE_TABLES, 1, FREE_TABLES)]
    stream = [event("exit_mmap_entry", mm=2), *calls, event("tlb_finish"), event("tlb_finished")]
    no = np.empty(0, np.int64)
    leaves = pages.Leaves(no, no, np.empty(0, bool), None, no, no, 0, 0)
    probed = {each.name: each.name for each in stream}
    flags = np.zeros(1, np.uint64)
    found = counts.observe(stream, 5, probed, leaves, flags, STRUCT_PAGES, FREE_TABLES)
    assert found.counters["table_batches"] == 2


def test_the_report_tells_explained_from_unexplained_cases():
    def row(case: str, agrees: bool, cause: str) -> compare.Row:
        return compare.Row("v7.3", "7.3.4", case, "folios_freed", "1", "1" if agrees else "2", agrees, cause)

    rows = [
        row("a", True, ""),
        row("b", False, "1 folio has references"),
        row("c", False, compare.UNEXPLAINED),
    ]
    result = run.Result("v7.3", "7.3.4", "mainline", rows)
    assert (result.differing, result.unexplained) == (["b", "c"], ["c"])
    text = report.summary([result], ARCHITECTURES["amd64"], "x.csv")
    assert "| v7.3 | 7.3.4 | `mainline` | 3 | 1 | 1 | 1 | 3 | 1 |" in text


HEAD, TAIL, ANON = (np.uint64(1 << n) for n in (15, 16, 12))


def test_mapcounts_of_large_folios_come_from_the_kernel():
    """Three folios of 4 pages: with 2 pages mapped, shared by PTEs, shared by a PMD of another process."""
    no = np.empty(0, np.int64)
    mapped = np.array([8, 9, 12, 13, 16])
    leaves = pages.Leaves(mapped, mapped, np.zeros(5, bool), None, no, no, 0, 0)
    flags = np.zeros(20, np.uint64)
    flags[8:] = ANON | TAIL
    flags[8::4] = ANON | HEAD
    of_folios = np.full((20, 2), -1, np.int32)
    of_folios[[9, 13, 17], 0] = np.array([2, 2 + 3, 1 + 1]) - 1
    of_folios[17, 1] = 1 - 1
    found = case._mapcounts(np.ones(20, np.uint64), leaves, flags, pages.heads(flags), of_folios)
    assert found[:8].tolist() == [1] * 8
    assert found[8:12].tolist() == [1, 1, 0, 0]
    assert found[12:16].tolist() == [4, 1, 0, 0]
    assert found[16:].tolist() == [1 + 4, 0, 0, 0]


def test_a_kernel_that_says_averages_is_told_by_the_configuration_of_its_tree(tmp_path: Path):
    folder = tmp_path / "case"
    folder.mkdir()
    for name in ("maps", "smaps", "status", "comm", "pagemap_scan"):
        (folder / name).write_text("")
    for name in ("pagemap", "kpageflags", "kpagecount"):
        (folder / f"{name}.bin.gz").write_bytes(gzip.compress(b""))
    facts = {"pid": 7, "architecture": "x86_64", "page_size": 4096}
    for shown, instead, said in (
        ("precise", None, "precise"),
        ("average", None, "average"),
        ("average", np.array([3], "<u8"), "precise"),
    ):
        root = tmp_path / f"{shown}-{said}"
        case.lay_out(folder, root, {**facts, "mapcounts": shown}, instead)
        assert mapcounts(root) == said
    assert (root / "kpagecount").read_bytes() == bytes([3, 0, 0, 0, 0, 0, 0, 0])


def test_catalogue():
    cases = catalogue.catalogue("amd64")
    assert len(cases) == len(set(cases)) > 150
    for kind, least in (("pinned", 4), ("cold", 8), ("lazyfree", 6), ("mlock", 14)):
        assert sum(name.startswith(kind) for name in cases) >= least
    assert cases == catalogue.catalogue("amd64")
    assert cases.items() < catalogue.catalogue("arm64").items()
    assert set(catalogue.selected(["tiny_0000?", "ksm"], "amd64")) == {
        "tiny_00000",
        "tiny_00005",
        "tiny_00006",
        "tiny_00007",
        "ksm",
    }
    # as many entries of a page-table page, of a batch, of a block: other cases with other pages
    larger = catalogue.catalogue("arm64", 16384)
    assert "tiny_02044" in larger
    assert "tiny_00508" not in larger
    assert set(catalogue.names(["*"], "arm64")) >= larger.keys() | cases.keys()


def test_the_page_size_of_an_image_is_in_its_header(tmp_path: Path):
    def image(flags: int) -> bytes:
        return struct.pack("<24xQ24x4s", flags, b"ARM\x64") + bytes(4096)

    path = tmp_path / "vmlinuz"
    for flags, size in ((0b1010, 4096), (0b1100, 16384), (0b1110, 65536)):
        path.write_bytes(image(flags))
        assert run.page_size(path) == size
        path.write_bytes(gzip.compress(image(flags)))
        assert run.page_size(path) == size
    path.write_bytes(b"MZ" + bytes(4096))
    assert run.page_size(path) == 4096


def document(**altered: object) -> str:
    """What `replay validate --json` prints, as far as the lab reads it."""
    count = {"counter": "rmap_calls", "predicted": 7, "observed": 7, "cause": "", "evidence": ""}
    verdict = {
        "workload": "sleep",
        "comm": "sleep",
        "exact": True,
        "observed": 5,
        "differences": [],
        "counters": [
            count | {"agrees": True},
            count | {"counter": "free_calls", "observed": 8, "cause": "dirty rule", "agrees": False},
        ],
    }
    whole = {"kernel": "6.1.0", "agrees": True, "status": 0, "notes": {}, "calls_not_compared": ""}
    return json.dumps(whole | {"verdicts": [verdict]} | altered)


def guest_output(path: Path, files: dict[str, str]) -> Path:
    """An archive as the guest writes it."""
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def run_files(name: str, status: int, out: str, said: str = "") -> dict[str, str]:
    folder = f"programs/00-{name}"
    return {
        f"{folder}/stdout": out,
        f"{folder}/stderr": said,
        f"{folder}/status": f"{status}\n",
        f"{folder}/seconds": "9\n",
    }


def test_what_replay_validate_said_in_the_guest_is_reported(tmp_path: Path):
    files = run_files("workloads", 0, document()) | run_files("tests", 0, "....\n4 passed in 3 s\n")
    result = validate.read_results("v6.1", guest_output(tmp_path / "out", files | {"boot/done": ""}))
    assert result.agrees and not result.failed
    line = "v6.1 (6.1.0): 1 of 1 exits exact, 1 of 2 call counts agree, 0 differences without a known cause"
    assert validate_report.totals(result) == f"{line}; tests: 4 passed in 3 s"
    text = validate_report.summary([result])
    assert "| v6.1 | sleep | 1 | 1 | 5 |  | 2 | 1 | free_calls (dirty rule): 1 |" in text
    assert "| `rmap_calls` | 1 of 1; 1 |" in text
    assert "| v6.1 | sleep | sleep | `free_calls` | 7 | 8 | dirty rule |  |" in text


@pytest.mark.parametrize(
    ("name", "status", "out", "why"),
    [
        ("workloads", 1, "", "exit status 1 and no document; it said: b | c | d"),
        ("workloads", 3, document(), "exit status 3 does not go with its document"),
        ("workloads", 0, document(agrees=False), "exit status 0 does not go with its document"),
        ("build", 0, document(status=2), "its command failed with exit status 2"),
        ("tests", 1, "1 failed\n", "exit status 1"),
    ],
)
def test_a_run_that_fails_in_the_guest_is_told(tmp_path: Path, name: str, status: int, out: str, why: str):
    files = run_files(name, status, out, "a\nb\nc\nd\n") | {"boot/done": ""}
    result = validate.read_results("v6.1", guest_output(tmp_path / "out", files))
    assert result.failed[name].startswith(why)


def test_output_without_its_end_is_refused(tmp_path: Path):
    with pytest.raises(LabError, match="cut"):
        validate.read_results("v6.1", guest_output(tmp_path / "out", run_files("workloads", 0, document())))


def test_runs_are_what_the_disk_can_do():
    assert list(validate.runs([])) == ["workloads", "pipeline", "python"]
    assert tuple(validate.runs(["gcc", "pytest"])) == validate.NAMES
    assert "--no-drain" in validate.runs(["gcc"])[validate.UNDRAINED]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--image", "/nowhere", "--algorithm", "v2"], 2, "no kernel image"),
        (["--image", __file__], 1, "no configuration"),
        (["--algorithm", "v2"], 2, "is for a kernel given by --image"),
        (["--image", __file__, "--algorithm", "v9"], 2, "unknown algorithm"),
        (["--case", "no such case"], 1, "no case is called"),
        (["-o", "/nowhere/x.csv"], 2, "no folder"),
        (["--validate", "nonsense"], 2, "unknown run 'nonsense'"),
        (["--validate", "--quick"], 2, "its runs are no cases"),
        (["--validate", "--arch", next(name for name in ARCHITECTURES if name != OWN.name)], 2, "own Python"),
        (["--arch", "vax"], 2, "invalid choice"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], status: int, message: str):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "kernel_lab"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
