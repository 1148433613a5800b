# SPDX-License-Identifier: Apache-2.0
"""What-if: against a literal rule page by page, against real kernels, and against the bundled pairs."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import replay
from replay.capture.live import capture_process
from replay.errors import TraceError, UsageError
from replay.report.compare import total
from replay.support.thp import THP
from replay.trace.check import check_frame
from replay.trace.file import read
from replay.trace.frame import SCHEMA, Trace
from replay.trace.kpageflags import (
    KPF_ANON,
    KPF_KSM,
    KPF_LRU,
    KPF_SWAPBACKED,
    KPF_SWAPCACHE,
    KPF_ZERO_PAGE,
    bit,
)
from replay.trace.metadata import AddressSpace, Metadata
from replay.trace.redact import redact
from replay.trace.whatif import Policy, WhatIf, parse_orders, pmd_order, what_if
from replay.validate.workload_settings import UnavailableError, switch_of, thp
from tests.capture.processes import needs_root
from tests.teardown.address_spaces import Piece, pieces, trace_of

CAPTURES = Path(__file__).parent.parent.parent / "captures"
ANON = bit(KPF_ANON) | bit(KPF_SWAPBACKED) | bit(KPF_LRU)
SMALL = 1 << 20
"""The first page of the VMAs made up here: a multiple of every block."""


def small_pages(vpns: list[int], **columns: object) -> pl.DataFrame:
    """Order-0 private anonymous pages of one VMA of 2,048 pages, one row each."""
    rows = [
        {
            "mm": 0,
            "pid": 1,
            "comm": "made-up",
            "vma": 0,
            "vma_start": SMALL,
            "vma_pages": 2048,
            "vma_perms": "rw-p",
            "vma_flags": "rd wr mr mw me ac",
            "vma_name": "",
            "vpn": vpn,
            "pages": 1,
            "kind": "page",
            "pfn": 5000 + 3 * number,
            "file": False,
            "exclusive": True,
            "soft_dirty": False,
            "uffd_wp": False,
            "kpageflags": ANON,
            "mapcount": 1,
            "own": 1,
            "dirty": False,
            "folio": 5000 + 3 * number,
            "order": 0,
            "folio_mapped": 1,
            "folio_mapcount": 1,
        }
        | columns
        for number, vpn in enumerate(vpns)
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


def trace_with(*frames: pl.DataFrame, page_size: int = 4096) -> Trace:
    frame = pl.concat(frames).sort("mm", "vpn")
    rss = int(frame.filter(pl.col("kind") != "swap")["pages"].sum())
    spaces = (AddressSpace(1, "made-up", 4, rss_anon=rss),)
    trace = Trace(frame, Metadata(spaces, page_size=page_size), "made-up")
    check_frame(frame, trace.meta, "made-up")
    return trace


def folios(trace: Trace) -> list[tuple[int, int, int]]:
    """(first page number, order, pages) of each row that is a large folio."""
    large = trace.frame.filter(pl.col("order") > 0)
    return list(large.select("vpn", "order", "pages").iter_rows())


def literal_fault(trace: Trace, orders: list[int]) -> dict[int, tuple[int, bool]]:
    """The fault rule page by page: page number -> (order, whether a block made it), anonymous pages."""
    page: dict[int, dict] = {}
    for row in trace.frame.cast({pl.Categorical: pl.String}).iter_rows(named=True):
        for n in range(row["pages"]):
            page[row["vpn"] + n] = row
    shown: Counter[int] = Counter()
    for row in page.values():
        if row["kind"] in ("page", "pmd"):
            shown[row["folio"]] += 1

    def alone(row: dict) -> bool:
        if row["kind"] not in ("page", "pmd") or not row["kpageflags"] & ANON & bit(KPF_ANON):
            return False
        single = row["mapcount"] == row["own"] == 1 and not row["kpageflags"] & bit(KPF_SWAPCACHE)
        single &= "lo" not in row["vma_flags"].split(" ")
        return single and (row["order"] == 0 or shown[row["folio"]] == row["folio_mapcount"])

    stays = {row["folio"] for row in page.values() if row["order"] and not alone(row)}
    free = {
        vpn: row for vpn, row in page.items() if alone(row) and not (row["order"] and row["folio"] in stays)
    }
    result = dict.fromkeys(free, (0, False))
    taken: set[int] = set()
    for order in sorted(set(orders) - {0}, reverse=True):
        for block in sorted({vpn >> order << order for vpn in free}):
            span = range(block, block + (1 << order))
            row = next(free[vpn] for vpn in span if vpn in free)
            fits = row["vma_start"] <= block and span.stop <= row["vma_start"] + row["vma_pages"]
            if fits and not taken & set(span) and all(vpn in free or vpn not in page for vpn in span):
                taken |= set(span)
                result |= dict.fromkeys(span, (order, True))
    return result


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(pieces(), max_size=8),
    st.sampled_from([[0], [2], [3], [4], [9], [2, 4], [0, 3, 9]]),
    st.booleans(),
)
def test_as_the_literal_rule(some: list[Piece], orders: list[int], by_ptes: bool) -> None:
    trace = trace_of(some, 5)
    expected = literal_fault(trace, orders)
    found = what_if(trace, orders, by_ptes=by_ptes)
    assert_adds_up(found)
    check_frame(found.trace.frame, found.trace.meta, "what-if")
    kinds = {}
    for row in found.trace.frame.cast({pl.Categorical: pl.String}).iter_rows(named=True):
        for n in range(row["pages"]):
            kinds[row["vpn"] + n] = row
    for vpn, (order, made) in expected.items():
        assert kinds[vpn]["order"] == order
        assert kinds[vpn]["kind"] == ("pmd" if made and order == 9 and not by_ptes else "page")
    before = {
        row["vpn"] + n: row
        for row in trace.frame.cast({pl.Categorical: pl.String}).iter_rows(named=True)
        for n in range(row["pages"])
    }
    # all else is as it was
    for vpn in before.keys() - expected.keys():
        assert {k: v for k, v in kinds[vpn].items() if k not in ("vpn", "pages", "pfn", "folio")} == {
            k: v for k, v in before[vpn].items() if k not in ("vpn", "pages", "pfn", "folio")
        }
    assert kinds.keys() == before.keys() | expected.keys()
    assert found.added == len(kinds) - len(before)


@pytest.mark.parametrize("name", ["numpy", "redis", "postgresql", "jvm"])
def test_order_0_is_the_trace_itself(name: str) -> None:
    trace = read(CAPTURES / f"{name}.parquet")
    found = what_if(trace, [0])
    assert found.added == 0
    assert found.trace.frame.equals(trace.frame)
    assert replay.run(found.trace).equals(replay.run(trace))


def test_order_0_splits_huge_pages() -> None:
    trace = read(CAPTURES / "numpy-thp.parquet")
    split = what_if(trace, [0]).trace
    check_frame(split.frame, split.meta, "split")
    counts = total(replay.run(split, ["baseline"])).row(0, named=True)
    assert counts["pmd_mappings"] == 0
    before = total(replay.run(trace, ["baseline"])).row(0, named=True)
    assert counts["ptes"] == before["ptes"] + 512 * before["pmd_mappings"]


def test_fault_fills_a_block_and_leaves_the_edge() -> None:
    start = SMALL + 3
    pages = small_pages([start, start + 1, SMALL + 13, SMALL + 30], vma_start=start, vma_pages=29)
    found = what_if(trace_with(pages), [3])
    # 0xb, 0xc lie in a block that begins before the VMA; block 24 to 31 ends with it
    assert folios(found.trace) == [(SMALL + 8, 3, 8), (SMALL + 24, 3, 8)]
    assert found.folios == {3: 2}
    assert found.added == 14
    assert found.stays == {"edge": 2}
    assert (found.anonymous, found.pages, found.taken) == (4, 4, 2)
    assert found.trace.meta.address_spaces[0].rss_anon == 4 + 14
    assert found.trace.meta.what_if == "folios of order 3 (32k), policy fault"


def assert_adds_up(found: WhatIf) -> None:
    """Each private anonymous page is in a folio made or stays for a reason, and the rest of them is added."""
    made = sum(count << order for order, count in found.folios.items())
    assert made - found.taken == found.added
    if any(found.folios):
        assert found.taken + sum(found.stays.values()) == found.anonymous


@pytest.mark.parametrize("name", ["redis", "numpy-thp-split"])
@pytest.mark.parametrize(
    ("orders", "policy"), [([4], Policy.FAULT), ([0, 2, 9], Policy.FAULT), ([9], Policy.COLLAPSE)]
)
def test_the_pages_of_folios_made_less_those_taken_are_what_is_added(
    name: str, orders: list[int], policy: Policy
) -> None:
    trace = read(CAPTURES / f"{name}.parquet")
    found = what_if(trace, orders, policy=policy)
    assert_adds_up(found)
    assert found.anonymous == sum(space.rss_anon for space in trace.meta.address_spaces)
    before, after = (sum(space.rss_anon for space in one.meta.address_spaces) for one in (trace, found.trace))
    assert after - before == found.added


def test_several_orders_take_the_largest_that_fits() -> None:
    pages = small_pages([SMALL, SMALL + 20], vma_pages=24)
    assert folios(what_if(trace_with(pages), [2, 4]).trace) == [(SMALL, 4, 16), (SMALL + 20, 2, 4)]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"vma_flags": "rd wr mr mw me lo ac"}, "locked"),
        ({"vma_flags": "rd wr mr mw me ac nh"}, "nohugepage"),
        ({"vma_flags": "rd wr mr mw me ac uw"}, "special"),
        ({"vma_name": "/usr/lib/libc.so.6"}, "file"),
        ({"mapcount": 2, "folio_mapcount": 2}, "shared"),
        ({"kpageflags": ANON | bit(KPF_KSM)}, "shared"),
    ],
)
@pytest.mark.parametrize("policy", list(Policy))
def test_what_stays(columns: dict, why: str, policy: Policy) -> None:
    trace = trace_with(small_pages([SMALL, SMALL + 1], **columns))
    found = what_if(trace, [9], policy=policy)
    assert found.trace.frame.equals(trace.frame)
    assert found.stays == {why: 2}
    assert found.folios == {9: 0}


def test_zero_pages_are_taken_into_a_folio_and_swap_is_not() -> None:
    pages = small_pages([SMALL, SMALL + 8])
    not_normal = {"mapcount": 0, "own": 0, "folio_mapped": 0, "folio_mapcount": 0, "pfn": 9, "folio": 9}
    zero = small_pages([SMALL + 1], kind="special", **(not_normal | {"kpageflags": bit(KPF_ZERO_PAGE)}))
    swap = small_pages([SMALL + 9], kind="swap", **(not_normal | {"kpageflags": 0}))
    found = what_if(trace_with(pages, zero, swap), [3])
    assert folios(found.trace) == [(SMALL, 3, 8)]
    assert found.stays == {"mixed": 1}
    assert found.trace.frame["kind"].cast(str).to_list() == ["page", "page", "swap"]


@pytest.mark.parametrize(("used", "limit", "taken"), [(1, 511, 1), (1, 510, 0), (500, 12, 1), (500, 11, 0)])
def test_collapse_has_a_threshold(used: int, limit: int, taken: int) -> None:
    trace = trace_with(small_pages([SMALL + n for n in range(used)]))
    found = what_if(trace, [9], policy=Policy.COLLAPSE, max_ptes_none=limit)
    assert found.folios == {9: taken}
    assert found.added == taken * (512 - used)
    assert found.stays == ({} if taken else {"sparse": used})


@pytest.mark.parametrize(("swapped", "used", "taken"), [(64, 256, 1), (65, 300, 0), (1, 255, 0), (1, 256, 1)])
def test_collapse_and_swap(swapped: int, used: int, taken: int) -> None:
    pages = small_pages([SMALL + n for n in range(used)])
    swap = small_pages([SMALL + used + n for n in range(swapped)], kind="swap").with_columns(
        pl.lit(0).cast(SCHEMA[name]).alias(name)
        for name in ("kpageflags", "mapcount", "own", "folio_mapped", "folio_mapcount")
    )
    found = what_if(trace_with(pages, swap), [9], policy=Policy.COLLAPSE)
    assert found.folios == {9: taken}
    assert ("swap" in found.trace.frame["kind"].cast(str).to_list()) == (not taken)


def test_collapse_leaves_what_is_outside_its_blocks() -> None:
    """A folio that lies across the border of a block loses the pages that khugepaged takes."""
    across = small_pages(
        [SMALL + 508], pages=4, pfn=8192, folio=8192, order=3, folio_mapped=8, folio_mapcount=8
    )
    rest = small_pages(
        [SMALL + 512], pages=4, pfn=8196, folio=8192, order=3, folio_mapped=8, folio_mapcount=8
    )
    # the second block cannot be taken: its VMA ends
    frames = [frame.with_columns(vma_pages=pl.lit(600, pl.UInt64)) for frame in (across, rest)]
    found = what_if(trace_with(*frames), [9], policy=Policy.COLLAPSE)
    check_frame(found.trace.frame, found.trace.meta, "collapsed")
    left = found.trace.frame.filter(pl.col("order") == 3)
    assert left.select("vpn", "pages", "folio_mapped", "folio_mapcount").row(0) == (SMALL + 512, 4, 4, 4)


def test_page_cache_is_aligned_in_the_file() -> None:
    start = SMALL + 3
    columns = {
        "vma_start": start,
        "vma_pages": 40,
        "vma_name": "/data",
        "file": True,
        "kpageflags": bit(KPF_LRU),
    }
    pages = small_pages([start, start + 1, start + 7, start + 9], **(columns | {"vma_perms": "r--s"}))
    trace = trace_with(pages)
    found = what_if(trace, [3], page_cache=True)
    check_frame(found.trace.frame, found.trace.meta, "page cache")
    rows = found.trace.frame.with_columns(page=pl.col("pfn") - pl.col("folio"))
    assert rows.select("page", "order", "folio_mapped").rows() == [(0, 3, 3), (1, 3, 3), (7, 3, 3), (1, 3, 1)]
    assert found.added == 0
    assert what_if(trace, [3]).trace.frame.equals(trace.frame)


@pytest.mark.parametrize("name", ["numpy", "nodejs", "jvm", "postgresql-run"])
def test_page_cache_folios_lie_as_real_ones_do(name: str) -> None:
    """Where a file has folios of an order already, pages of the same order lie in the same folios."""
    trace = read(CAPTURES / f"{name}.parquet")
    page_cache = pl.col("file") & (pl.col("kpageflags") & ANON == bit(KPF_LRU))
    real = trace.frame.filter(page_cache & (pl.col("order") == 2))
    assert not real.is_empty()
    made = what_if(trace, [2], page_cache=True).trace.frame
    place = pl.col("pfn") - pl.col("folio")
    pages = pl.int_ranges(0, pl.col("pages").cast(pl.Int64)).alias("n")
    one, other = (
        frame.select("mm", "vpn", place.alias("place"), pages)
        .explode("n")
        .select("mm", pl.col("vpn") + pl.col("n"), pl.col("place") + pl.col("n"))
        for frame in (real, made.filter("file"))
    )
    both = one.join(other, on=["mm", "vpn"])
    assert len(both) == len(one)
    assert (both["place"] == both["place_right"]).all()


@pytest.mark.parametrize("name", ["build-32k", "postgresql-run", "jvm"])
def test_page_cache_of_real_programs_is_a_trace(name: str) -> None:
    trace = read(CAPTURES / f"{name}.parquet")
    for orders in ([0], [4]):
        found = what_if(trace, orders, page_cache=True)
        check_frame(found.trace.frame, found.trace.meta, name)
        assert found.trace.frame["pages"].sum() >= trace.frame["pages"].sum()
    calls = total(replay.run(found.trace, ["mainline"]))["rmap_calls"][0]
    assert calls < total(replay.run(trace, ["mainline"]))["rmap_calls"][0]


def test_redacted_counts_the_same() -> None:
    trace = read(CAPTURES / "postgresql.parquet")
    named = trace.frame.with_columns(
        pl.when(pl.col("vma_name").cast(str) == "[heap]")
        .then(pl.lit("[anon:secret]"))
        .otherwise(pl.col("vma_name").cast(str))
        .cast(pl.Categorical)
        .alias("vma_name")
    )
    trace = dataclasses.replace(trace, frame=named)
    shown = redact(trace)
    assert "secret" not in shown.frame["vma_name"].cast(str).to_list()
    one, other = (replay.run(what_if(some, [4]).trace) for some in (trace, shown))
    assert one.drop("pid", "comm").equals(other.drop("pid", "comm"))


def test_refusals() -> None:
    trace = trace_with(small_pages([SMALL]))
    with pytest.raises(TraceError, match="a what-if already"):
        what_if(what_if(trace, [3]).trace, [4])
    with pytest.raises(UsageError, match="khugepaged makes folios of order 9"):
        what_if(trace, [3], policy=Policy.COLLAPSE)
    with pytest.raises(UsageError, match="0 to 511"):
        what_if(trace, [9], policy=Policy.COLLAPSE, max_ptes_none=512)


@pytest.mark.parametrize(
    ("text", "page_size", "orders"),
    [
        ("0,2,3", 4096, [0, 2, 3]),
        ("64k,2m", 4096, [4, 9]),
        ("64K, 2MiB,64k", 4096, [4, 9]),
        ("64k", 65536, [0]),
        ("512m", 65536, [13]),
        ("11", 16384, [11]),
    ],
)
def test_orders_and_sizes(text: str, page_size: int, orders: list[int]) -> None:
    assert parse_orders(text, page_size) == orders


@pytest.mark.parametrize("text", ["1", "10", "8k", "48k", "3x", "", "-1", "1g", "2k"])
def test_orders_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_orders(text, 4096)


@pytest.mark.parametrize(
    ("text", "page_size", "says"),
    [
        ("3k", 4096, "'3k' is no folio size: give 4k, 16k, 32k ... 2m"),
        (
            "128k",
            65536,
            "no folios of order 1 (base pages of 64 KiB): give order 0 (64k), or 2 to 13 (256k to 512m)",
        ),
        ("1", 4096, "no folios of order 1 (base pages of 4 KiB): give order 0 (4k), or 2 to 9 (16k to 2m)"),
        ("32k", 65536, "'32k' is no folio size: give 64k, 256k, 512k ... 512m"),
    ],
)
def test_a_wrong_size_is_told_with_the_right_ones(text: str, page_size: int, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_orders(text, page_size)
    assert says in str(caught.value)


def test_pmd_order() -> None:
    assert [pmd_order(size) for size in (4096, 16384, 65536)] == [9, 11, 13]


# ------------------------------------------------------------------ against the kernel

CLOSE = 5.0
"""Percent by which a prediction may differ from what the kernel did."""


def off(predicted: Trace, measured: Trace, counters: list[str]) -> dict[str, float]:
    """By how many percent each algorithm's counters differ: 'algorithm counter' -> percent.

    Counts below 40 may differ by 2.
    """
    one, other = (total(replay.run(trace)) for trace in (predicted, measured))
    return {
        f"{row['algorithm']} {name}": (row[name] - real[name]) / max(real[name], 40) * 100
        for row, real in zip(one.iter_rows(named=True), other.iter_rows(named=True), strict=True)
        for name in counters
    }


COUNTED = ["ptes", "rmap_calls", "atomics", "locks", "release_entries", "release_calls", "pages_freed"]


@pytest.mark.parametrize(("before", "after"), [("numpy", "numpy-32k"), ("build", "build-32k")])
def test_bundled_pairs(before: str, after: str) -> None:
    """Two runs of a program. Where a VMA grows in steps, the blocks at its end come in single pages.

    A block does not fit while its VMA ends in it; what was touched of it then keeps it from being a folio
    later. So 5 % of the heap of NumPy and 15 % of those of the compilers stay small, which a trace of
    ordinary pages does not show. Locks feel it most: a single page and a folio take one each.
    """
    predicted = what_if(read(CAPTURES / f"{before}.parquet"), [3]).trace
    measured = read(CAPTURES / f"{after}.parquet")
    found = off(predicted, measured, COUNTED)
    # pages of large folios have no mapcount there: its atomics are those of its calls
    calls = ("rmap_calls", "release_entries", "release_calls", "mainline-nomapcount atomics")
    limits = {
        name: 9.0 if name.endswith(calls) else 16.0 if name.endswith("locks") else 2.0 for name in found
    }
    assert {name: off for name, off in found.items() if abs(off) > limits[name]} == {}


def test_bundled_huge_pages() -> None:
    """Of arrays in huge pages by madvise: only the VMAs with VM_HUGEPAGE have them."""
    measured = read(CAPTURES / "numpy-thp.parquet")
    advised = measured.frame["vma_flags"].cast(str).str.split(" ").list.contains("hg")
    whole = measured.as_part(measured.frame.filter(advised), "VMAs with VM_HUGEPAGE")
    split = what_if(whole, [0]).trace
    single = dataclasses.replace(split, meta=dataclasses.replace(split.meta, what_if=""))
    found = what_if(single, [9]).trace
    rest = off(found, whole, COUNTED)
    assert max(map(abs, rest.values())) < CLOSE, rest


PROGRAM = r"""
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#define PAGE 4096L
#define MIB (1L << 20)
static char *area(long size) {
    char *start = mmap(0, size + 2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    start = (char *)(((uintptr_t)start + 2 * MIB - 1) & -(2 * MIB));
    return mmap(start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}
int main(int argc, char **argv) {
    char *a = area(48 * MIB), *b = area(16 * MIB), *c = area(13 * PAGE + 6 * MIB);
    memset(a, 1, 48 * MIB);                       /* dense */
    for (long n = 0; n < 4096; n += 5)            /* every fifth page */
        b[n * PAGE] = 1;
    munmap(c, 3 * PAGE);                          /* no block begins where this VMA does */
    for (long n = 3; n < 1450; n += 90)           /* holes of nine pages */
        memset(c + n * PAGE, 1, 81 * PAGE);
    printf("%ld %ld %ld\n", (long)a, (long)b, (long)c);
    fflush(stdout);
    char text[100] = "";
    while (argc > 1 && !strstr(text, "[madvise]")) {  /* until khugepaged may look at this process */
        FILE *file = fopen(argv[1], "r");
        text[fread(text, 1, 99, file)] = 0;
        fclose(file);
        usleep(20000);
    }
    madvise(a, 48 * MIB, MADV_HUGEPAGE);
    madvise(b, 16 * MIB, MADV_HUGEPAGE);
    madvise(c + 3 * PAGE, 10 * PAGE + 6 * MIB, MADV_HUGEPAGE);
    sleep(600);
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("whatif") / "touch"
    subprocess.run(["cc", "-O1", "-o", path, "-xc", "-"], input=PROGRAM, text=True, check=True)
    return path


@contextlib.contextmanager
def running(command: list[str | Path]) -> Iterator[tuple[int, list[int]]]:
    """The program once it has touched its areas: its PID, and where they begin."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child.pid, [int(word) for word in child.stdout.readline().split()]
    finally:
        child.kill()
        child.wait()


SWITCHES = {f"hugepages-{4 << order}kB/enabled": "never" for order in range(2, 10)}


def only(order: int) -> dict[str, str]:
    """THP switches with folios of one order for all anonymous memory, and no others."""
    return SWITCHES | ({switch_of(order): "always"} if order else {})


SWITCH = THP / switch_of(9)

Areas = dict[int, tuple[int, str, int]]


def areas_of(trace: Trace, starts: list[int]) -> Areas:
    """What the program touched: page number from the start of its area -> (order, kind, area)."""
    sizes = [48 << 8, 16 << 8, 13 + (6 << 8)]
    found: Areas = {}
    for row in trace.frame.cast({pl.Categorical: pl.String}).iter_rows(named=True):
        for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            page = row["vpn"] - start // 4096
            if 0 <= page < size:
                where = (number << 20) + page
                found |= {where + n: (row["order"], row["kind"], number) for n in range(row["pages"])}
    return found


def anonymous(trace: Trace) -> Trace:
    return trace.as_part(trace.frame.filter(~pl.col("file")), "no page cache")


def captured(program: Path, order: int) -> tuple[Trace, list[int]]:
    """The program run with folios of one order, and where its areas begin."""
    try:
        with thp(only(order)), running([program]) as (pid, starts):
            trace = capture_process(pid).trace
    except (UnavailableError, OSError) as error:
        pytest.skip(f"folio sizes cannot be chosen here: {error}")
    assert trace is not None
    return trace, starts


@needs_root()
@pytest.mark.parametrize("order", [3, 4, 9])
def test_fault_as_the_kernel_does(compiled: Path, order: int) -> None:
    """The program's own memory page by page, and all counters of the process."""
    small, small_starts = captured(compiled, 0)
    large, large_starts = captured(compiled, order)
    real = areas_of(large, large_starts)
    if sum(page[0] == order for page in real.values()) < 40 << 8:
        pytest.skip("memory is too fragmented for folios of this order")
    found = what_if(small, [order])
    assert areas_of(found.trace, small_starts) == real
    # of page cache, fault-around maps what is in memory: not the same in each run
    rest = off(anonymous(found.trace), anonymous(large), COUNTED)
    assert max(map(abs, rest.values())) < CLOSE, rest


@needs_root()
@pytest.mark.parametrize("max_ptes_none", [511, 200])
def test_collapse_as_khugepaged_does(compiled: Path, max_ptes_none: int) -> None:
    """Of a block of area b, 409 entries are empty; of one of c, at most 54."""
    quick = {
        "khugepaged/scan_sleep_millisecs": "10",
        "khugepaged/max_ptes_none": str(max_ptes_none),
    }
    try:
        with thp(only(0) | quick), running([compiled, SWITCH]) as (pid, starts):
            before = capture_process(pid).trace
            assert before is not None
            predicted = what_if(before, [9], policy=Policy.COLLAPSE, max_ptes_none=max_ptes_none)
            after = _collapsed(pid, predicted.folios[9])
    except (UnavailableError, OSError) as error:
        pytest.skip(f"khugepaged cannot be asked here: {error}")
    assert areas_of(predicted.trace, starts) == areas_of(after, starts)
    rest = off(predicted.trace, after, COUNTED)
    assert max(map(abs, rest.values())) < CLOSE, rest


def _collapsed(pid: int, wanted: int) -> Trace:
    """The process once khugepaged has been through it."""
    SWITCH.write_text("madvise")
    deadline = time.monotonic() + 60
    while True:
        trace = capture_process(pid).trace
        assert trace is not None
        made = trace.frame.filter(pl.col("kind").cast(str) == "pmd")["pages"].sum() // 512
        if made >= wanted or time.monotonic() > deadline:
            return trace
        time.sleep(0.5)
