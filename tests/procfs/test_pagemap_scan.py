# SPDX-License-Identifier: Apache-2.0
"""Entries that are neither memory nor swap, and memory cgroups, of real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import replay
from replay.capture.live import capture_process
from replay.report import notes
from tests.capture.processes import needs_root, program

pytestmark = [needs_root(), pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")]

UNSUPPORTED = 77


@pytest.fixture(scope="module")
def markers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/procfs/markers.c, compiled."""
    binary = tmp_path_factory.mktemp("markers") / "markers"
    subprocess.run(["cc", "-w", "-o", binary, Path(__file__).with_name("markers.c")], check=True)
    return binary


@pytest.fixture(params=["guard", "wp", "poison"])
def marked(request: pytest.FixtureRequest, markers: Path) -> Iterator[tuple[int, int]]:
    """A process and the number of its markers."""
    with subprocess.Popen([markers, request.param], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            count = process.stdout.readline()
            if not count:
                assert process.wait(10) == UNSUPPORTED
                pytest.skip(f"the kernel has no {request.param} markers, or no right to make them")
            yield process.pid, int(count)
        finally:
            process.kill()


@pytest.mark.parametrize("scan", [True, False])
def test_markers_are_no_swap(marked: tuple[int, int], scan: bool, tmp_path: Path) -> None:
    pid, count = marked
    done = capture_process(pid, tmp_path / "t.parquet", use_scan=scan)
    swap = next(figure for figure in done.figures[0] if figure.name == "VmSwap")
    assert (swap.captured, swap.cause) == (swap.reported, "")
    trace = replay.read_trace(tmp_path / "t.parquet")
    rows = trace.frame.with_columns(pl.col("kind").cast(pl.String))
    found = rows.filter(pl.col("kind") == "marker")
    assert found["pages"].sum() == count
    assert rows.filter(pl.col("kind") == "swap")["pages"].sum() == swap.reported
    # neighbours are one row, cut only at the ends of page-table pages
    assert len(found) <= 1 + -(-count // 512)
    assert replay.run(trace, ["baseline"])["swap_entries"].item() == swap.reported
    assert any(line.startswith(f"note: {count:,} entries are markers") for line in notes.noticed(trace))
    space = trace.meta.address_spaces[0]
    assert space.unaccounted and space.unaccounted["marker"] == count
    assert str(count) not in space.cmdline and "markers" in space.cmdline
    assert space.held_ms > 0


def test_markers_are_shown(marked: tuple[int, int], tmp_path: Path) -> None:
    pid, count = marked
    call = [sys.executable, "-m", "replay"]
    path = tmp_path / "t.parquet"
    captured = subprocess.run(
        [*call, "capture", str(pid), "-o", path], capture_output=True, text=True, check=True
    )
    assert f"{count:,} entries are markers" in captured.stderr
    shown = subprocess.run([*call, "inspect", path], capture_output=True, text=True, check=True)
    assert any(line.split()[:3] == ["marker", "marker", f"{count:,}"] for line in shown.stdout.splitlines())
    assert f"{count:,} entries are markers" in shown.stderr


def test_memory_cgroups() -> None:
    """Anonymous pages are charged to the cgroup of the process, by the inode number of its folder."""
    with program("a = area(1 << 20)\nlibc.memset(a, 1, 1 << 20)\nready()") as (pid, _):
        trace = capture_process(pid).trace
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    assert trace
    groups = {line.split(":")[1]: line.split(":", 2)[2] for line in lines}
    base, name = (
        ("/sys/fs/cgroup/memory", groups["memory"])
        if "memory" in groups
        else ("/sys/fs/cgroup", groups.get("", ""))
    )
    folder = Path(base + name)
    if not os.access("/proc/kpagecgroup", os.R_OK) or not folder.exists():
        pytest.skip("no /proc/kpagecgroup, or another cgroup namespace")
    anon = trace.frame.filter(pl.col("kpageflags") & (1 << 12) != 0, pl.col("vma_name").cast(pl.String) == "")
    charged = anon.group_by("memcg").agg(pl.col("pages").sum()).sort("pages")
    assert charged["memcg"][-1] in (
        folder.stat().st_ino,
        *(parent.stat().st_ino for parent in folder.parents),
    )
