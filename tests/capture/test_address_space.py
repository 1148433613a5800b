# SPDX-License-Identifier: Apache-2.0
"""Bad input: one line that names cause and remedy, and no file left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from replay.capture.live import capture_process
from replay.errors import ProcessGoneError, ReplayError
from replay.process import stop
from replay.procfs import files
from replay.trace.kpageflags import KPF_ANON, bit
from tests.capture.processes import needs_root, program
from tests.capture.trees import FILE, PRESENT, SWAP, FakeProcess, FakeVma


def small_process() -> FakeProcess:
    """Two VMAs: anonymous pages and a swap entry, then file pages up to the last one."""
    flags = np.zeros(600, np.uint64)
    flags[512:560] = bit(KPF_ANON)
    counts = np.zeros(600, np.uint64)
    counts[512:600] = 1
    anon = FakeVma(
        0x400, 40, words={0x400 + i: PRESENT | (512 + i) for i in range(32)} | {0x430 - 16: SWAP | 64}
    )
    file = FakeVma(0x500, 40, "r--p", words={0x500 + i: PRESENT | FILE | (560 + i) for i in range(40)})
    return FakeProcess([anon, file], flags, counts)


def refused(root: Path, pid: int, tmp_path: Path, kind: type[ReplayError] = ReplayError, **options) -> str:
    """The message of a refusal: one line, and no file."""
    out = tmp_path / "out" / "t.parquet"
    out.parent.mkdir(exist_ok=True)
    with pytest.raises(kind) as caught:
        capture_process(pid, out, procfs_root=root, **options)
    assert list(out.parent.iterdir()) == []
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_small_process_is_right(tmp_path: Path) -> None:
    process = small_process()
    trace = capture_process(process.pid, procfs_root=process.write(tmp_path)).trace
    assert trace.frame["pages"].sum() == 73


@pytest.mark.parametrize("name", ["maps", "smaps", "status", "pagemap"])
def test_file_missing(name: str, tmp_path: Path) -> None:
    process = small_process()
    root = process.write(tmp_path / "proc")
    (root / str(process.pid) / name).unlink()
    message = refused(root, process.pid, tmp_path)
    assert f"/{name}: the tree is incomplete" in message


@pytest.mark.parametrize("name", ["kpageflags", "kpagecount"])
def test_kpage_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = small_process()
    root = process.write(tmp_path / "proc")
    (root / name).unlink()
    assert f"/{name}: the saved tree is incomplete" in refused(root, process.pid, tmp_path)
    monkeypatch.setattr(files, "is_live", lambda root: True)
    assert "CONFIG_PROC_PAGE_MONITOR" in refused(root, process.pid, tmp_path)


@pytest.mark.parametrize("name", ["maps", "smaps", "status"])
def test_text_cut_anywhere(name: str, tmp_path: Path) -> None:
    """Wherever a text file is cut, it is noticed, or nothing that is needed is lost."""
    process = small_process()
    root = process.write(tmp_path / "proc")
    path = root / str(process.pid) / name
    whole = path.read_text()
    needed = len(whole) if name != "status" else whole.index("HugetlbPages")
    for size in range(0, needed, 7):
        path.write_text(whole[:size])
        message = refused(root, process.pid, tmp_path)
        assert "cut" in message or "damaged" in message or "ended" in message, message


@pytest.mark.parametrize("scan", [True, False])
def test_pagemap_cut(scan: bool, tmp_path: Path) -> None:
    process = small_process()
    root = process.write(tmp_path / "proc")
    path = root / str(process.pid) / "pagemap"
    if not scan:
        (root / str(process.pid) / "pagemap_scan").unlink(missing_ok=True)
    for words in (0x500 + 39, 0x500 + 1, 0x500, 0x420, 0x400, 0):
        os.truncate(path, words * 8)
        assert "pagemap is cut" in refused(root, process.pid, tmp_path)


@pytest.mark.parametrize("name", ["kpageflags", "kpagecount"])
@pytest.mark.parametrize("words", [599, 560, 530, 0])
def test_kpage_cut(name: str, words: int, tmp_path: Path) -> None:
    process = small_process()
    root = process.write(tmp_path / "proc")
    os.truncate(root / name, words * 8)
    assert "is cut: it ends before frame" in refused(root, process.pid, tmp_path)


def test_frames_hidden(tmp_path: Path) -> None:
    process = small_process()
    for vma in process.vmas:
        vma.words = {vpn: word & ~0xFFFF for vpn, word in vma.words.items()}
    assert "CAP_SYS_ADMIN" in refused(process.write(tmp_path / "proc"), process.pid, tmp_path)


def test_no_right_to_kpageflags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = small_process()
    root = process.write(tmp_path / "proc")
    real = os.open

    def denied(path, *args, **kwargs):
        if str(path).endswith("kpageflags"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    assert "run replay as root of the host" in refused(root, process.pid, tmp_path)


def test_no_such_process(tmp_path: Path) -> None:
    process = small_process()
    root = process.write(tmp_path / "proc")
    assert "no process 99" in refused(root, 99, tmp_path)
    assert "no process 4194399" in refused(files.PROC, 4194399, tmp_path, ProcessGoneError)


def test_not_a_tree(tmp_path: Path) -> None:
    assert "name a procfs tree" in refused(tmp_path / "nothing", 1, tmp_path)


def test_kernel_thread(tmp_path: Path) -> None:
    process = small_process()
    root = process.write(tmp_path / "proc")
    status = root / str(process.pid) / "status"
    kept = [
        line for line in status.read_text().splitlines(True) if not line.startswith(("Vm", "Rss", "Huge"))
    ]
    status.write_text("".join(kept))
    assert "is a kernel thread" in refused(root, process.pid, tmp_path)
    if Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_text() == "kthreadd\n":
        assert "process 2 (kthreadd) is a kernel thread" in refused(files.PROC, 2, tmp_path)


def test_zombie(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    try:
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.001)
        assert "zombie" in refused(files.PROC, child.pid, tmp_path, ProcessGoneError)
    finally:
        child.wait()


def test_itself(tmp_path: Path) -> None:
    assert "replay itself" in refused(files.PROC, os.getpid(), tmp_path)


@needs_root()
def test_thread(tmp_path: Path) -> None:
    code = "t = threading.Thread(target=time.sleep, args=(600,), daemon=True); t.start(); ready(t.native_id)"
    with program(code) as (pid, [tid]):
        assert f"is a thread of process {pid}" in refused(files.PROC, tid, tmp_path)


@needs_root()
def test_traced(tmp_path: Path) -> None:
    with program("ready(0)") as (pid, _), stop.held(files.PROC, pid):
        message = refused(files.PROC, pid, tmp_path)
        assert f"process {pid} is traced by process" in message
        assert "--no-freeze" in message


@needs_root()
@pytest.mark.parametrize("use_scan", [True, False])
@pytest.mark.parametrize("hold", [True, False])
def test_ends_while_read(use_scan: bool, hold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"], stdout=-1
    )
    child.stdout.readline()
    real = files.read_vmas

    def then_kill(root, pid, page_size):
        vmas = real(root, pid, page_size)
        child.kill()
        # held by ptrace it is reaped by the tracer first
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            time.sleep(0.001)
        return vmas

    monkeypatch.setattr(files, "read_vmas", then_kill)
    try:
        message = refused(files.PROC, child.pid, tmp_path, ProcessGoneError, use_scan=use_scan, hold=hold)
        assert "ended while it was read" in message
    finally:
        child.wait()


def test_output_exists(tmp_path: Path) -> None:
    process = small_process()
    root = process.write(tmp_path / "proc")
    out = tmp_path / "t.parquet"
    out.write_text("mine")
    with pytest.raises(ReplayError, match="exists: choose another name"):
        capture_process(process.pid, out, procfs_root=root)
    assert out.read_text() == "mine"
    capture_process(process.pid, out, procfs_root=root, force=True)
    assert out.stat().st_mode & 0o777 == 0o600


def test_sparse_saved_tree(tmp_path: Path) -> None:
    """A file that ends at the last mapped page is whole, and holes of terabytes cost nothing."""
    process = small_process()
    process.vmas.append(FakeVma(1 << 30, 5 << 30, "---p"))
    process.vmas.append(FakeVma(6 << 30, 8, words={(6 << 30) + 1: PRESENT | 513}))
    process.counts[513] = 2
    begin = time.monotonic()
    trace = capture_process(process.pid, procfs_root=process.write(tmp_path)).trace
    assert time.monotonic() - begin < 5
    assert trace.frame["pages"].sum() == 74
    assert trace.frame.filter(trace.frame["own"] == 2)["pages"].sum() == 2
