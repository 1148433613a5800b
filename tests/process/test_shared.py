# SPDX-License-Identifier: Apache-2.0
"""One address space is captured once, however many processes use it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import replay
from replay.process import shared
from replay.procfs import files
from replay.report import notes
from tests.capture.processes import needs_root, program

pytestmark = needs_root()

PAGES = (8 << 20) // os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def clones(tmp_path: Path) -> Iterator[list[int]]:
    """Four processes with one address space; the parent comes first."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    binary = tmp_path / "clones"
    subprocess.run(["cc", "-o", binary, Path(__file__).with_name("clones.c")], check=True)
    with subprocess.Popen([binary, "3"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield [int(word) for word in process.stdout.readline().split()]
        process.kill()


def test_kcmp_tells_who_shares(clones: list[int]) -> None:
    with program("ready(0)") as (alone, _):
        found = shared.sharing([alone, *clones, 4194399])
    assert found == {pid: tuple(sorted(set(clones) - {pid})) for pid in clones}


def test_all_captures_it_once(clones: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with program("ready(0)") as (alone, _):
        monkeypatch.setattr(files, "pids", lambda root: sorted([alone, *clones]))
        trace = replay.capture_all().trace
    assert trace is not None and len(trace.meta.address_spaces) == 2
    [space] = [space for space in trace.meta.address_spaces if space.pid in clones]
    assert sorted([space.pid, *space.shared_with]) == sorted(clones)
    rows = trace.frame.filter(trace.frame["pid"] == space.pid)
    assert PAGES <= rows["pages"].sum() < 2 * PAGES
    [line] = [line for line in notes.limits(trace.meta) if "share" in line]
    assert "3 more processes share the address space of clones" in line
    assert all(str(pid) in line for pid in space.shared_with)


def test_a_single_capture_names_the_others(clones: list[int]) -> None:
    trace = replay.capture_process(clones[0]).trace
    assert trace is not None and trace.meta.address_spaces[0].shared_with == tuple(sorted(clones[1:]))


def test_a_vfork_parent_shares_with_its_child(tmp_path: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    source, binary = tmp_path / "v.c", tmp_path / "v"
    source.write_text(
        '#include <unistd.h>\nint main(void) { if (!vfork()) { write(1, "x", 1); pause(); } return 0; }'
    )
    subprocess.run(["cc", "-w", "-o", binary, source], check=True)
    with subprocess.Popen([binary], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(1) == b"x"
        [child] = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        try:
            assert shared.sharing([process.pid, child]) == {process.pid: (child,), child: (process.pid,)}
        finally:
            os.kill(child, 9)
            process.kill()
