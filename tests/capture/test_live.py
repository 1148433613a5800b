# SPDX-License-Identifier: Apache-2.0
"""Live processes: each kind of memory, how they are held, and that they are released."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

import replay
from replay.capture import address_space, rss
from replay.capture.live import capture_all, capture_cgroup, capture_process
from replay.errors import ReplayError
from replay.process import stop
from replay.procfs import files, pagemap_scan
from replay.support.thp import THP
from replay.trace.check import check_frame
from replay.trace.kpageflags import KPF_ANON, KPF_SWAPBACKED, bit
from tests.capture import processes
from tests.capture.processes import needs_root, program
from tests.capture.test_address_space import small_process

pytestmark = needs_root()


def captured(pid: int, **options):
    """A capture, with and without PAGEMAP_SCAN: both say the same."""
    done = capture_process(pid, **options)
    check_frame(done.trace.frame, done.meta, "capture")
    assert done.meta.held == "ptrace"
    other = capture_process(pid, use_scan=False, **options)
    if other.meta.pmd == "known" and not done.meta.changed_entries + other.meta.changed_entries:
        # mapcounts of shared libraries change as other processes come and go
        steady = pl.exclude("mapcount", "folio_mapped", "folio_mapcount", "kpageflags", "exclusive")
        assert _pages(done.trace.frame.select(steady)) == _pages(other.trace.frame.select(steady))
    assert processes.state(pid) in "SR"
    return done


def _pages(frame: pl.DataFrame) -> list[tuple[int, str]]:
    return [(row["vpn"] + i, row["kind"]) for row in frame.iter_rows(named=True) for i in range(row["pages"])]


def at(frame: pl.DataFrame, address: int, size: int) -> pl.DataFrame:
    return frame.filter(pl.col("vpn").is_between(address // 4096, (address + size) // 4096 - 1))


def test_anonymous_pages_reconcile() -> None:
    code = "a = area(8 << 20); libc.madvise(a, 8 << 20, 15); libc.memset(a, 1, 4 << 20); ready(a)"
    with program(code) as (pid, [a]):
        done = captured(pid)
        rows = at(done.trace.frame, a, 8 << 20)
        assert rows["pages"].sum() == 1024
        assert set(rows["kind"].cast(str)) == {"page"}
        assert rows["kpageflags"].map_elements(lambda word: bool(word & bit(KPF_ANON)), pl.Boolean).all()
        for figure in done.figures[0]:
            assert figure.captured == figure.reported or figure.cause
        assert "RssAnon" in rss.text(done.figures[0], 4096)[0]
        assert done.meta.kernel_release == os.uname().release
        assert done.meta.thp["enabled"] in ("always", "madvise", "never")


def test_thp_by_pmd_and_by_ptes() -> None:
    code = """
a = area(8 * PMD); libc.madvise(a, 8 * PMD, 14); libc.memset(a, 1, 8 * PMD)
libc.mprotect(a + PMD, 4096, 1)           # second: split into PTEs, two VMAs
libc.munmap(a + 3 * PMD + 8192, 4096 * 10)   # fourth: partly unmapped
ready(a)
"""
    with processes.setting(THP / "enabled", "madvise"), program(code) as (pid, [a]):
        done = captured(pid)
        assert done.meta.pmd == "known"
        rows = at(done.trace.frame, a, 16 << 20)
        if not (rows["order"] == 9).all():
            pytest.skip("memory is too fragmented for huge pages")
        by_pmd = rows.filter(pl.col("kind") == "pmd")
        assert by_pmd["vpn"].to_list() == [(a >> 12) + 512 * n for n in (0, 2, 4, 5, 6, 7)]
        partial = at(rows, a + (6 << 20), 2 << 20)
        assert partial["pages"].to_list() == [2, 500]
        assert set(partial["folio_mapped"]) == {502}


def test_large_anonymous_folios() -> None:
    code = "a = area(1 << 20); libc.madvise(a, 1 << 20, 14); libc.memset(a, 1, 1 << 20); ready(a)"
    path = THP / "hugepages-32kB" / "enabled"
    if not path.exists():
        pytest.skip("no mTHP in this kernel")
    with processes.setting(path, "always"), processes.setting(THP / "hugepages-2048kB/enabled", "never"):  # noqa: SIM117
        with program(code) as (pid, [a]):
            rows = at(captured(pid).trace.frame, a, 1 << 20)
            assert rows["order"].to_list() == [3] * 32
            assert rows["pages"].to_list() == [8] * 32


def test_shared_by_fork() -> None:
    code = """
a = area(4 << 20); libc.madvise(a, 4 << 20, 15); libc.memset(a, 1, 4 << 20)
if os.fork() == 0:
    while os.getppid() != 1: time.sleep(0.05)
    os._exit(0)
ready(a)
"""
    with program(code) as (pid, [a]):
        rows = at(captured(pid).trace.frame, a, 4 << 20)
        assert set(rows["mapcount"]) == {2}
        assert set(rows["own"]) == {1}
        assert not rows["exclusive"].any()


def test_file_mappings(tmp_path: Path) -> None:
    path = tmp_path / "a file with  spaces"
    path.write_bytes(b"x" * (1 << 20))
    code = f"""
fd = os.open({str(path)!r}, os.O_RDWR)
a = area(1 << 20, 1, PRIVATE, fd); b = area(1 << 20, 3, SHARED, fd); c = area(1 << 20, 3, PRIVATE, fd)
sum(ctypes.string_at(a + i, 1)[0] for i in range(0, 1 << 20, 4096))
libc.memset(b, 1, 64 << 10); libc.memset(c, 1, 32 << 10)
ready(a, b, c)
"""
    with program(code) as (pid, [a, b, c]):
        frame = captured(pid).trace.frame
        private, shared, copied = (at(frame, start, 1 << 20) for start in (a, b, c))
        assert private["file"].all()
        assert not private["dirty"].any()
        assert set(private["vma_name"].cast(str)) == {str(path)}
        written = at(shared, b, 64 << 10)
        assert written["dirty"].all()
        assert written["own"].min() >= 2
        assert not at(copied, c, 32 << 10)["file"].any()


def test_shared_memory_mapped_twice() -> None:
    code = """
fd = os.memfd_create("m"); os.ftruncate(fd, 1 << 20)
a = area(1 << 20, 3, SHARED, fd); b = area(1 << 20, 3, SHARED, fd)
libc.memset(a, 1, 1 << 20); libc.memset(b, 2, 1 << 19)
ready(a, b)
"""
    with program(code) as (pid, [a, b]):
        done = captured(pid)
        rows = at(done.trace.frame, a, 1 << 19)
        assert set(rows["own"]) == {2}
        assert set(rows["mapcount"]) == {2}
        assert set(at(done.trace.frame, a + (1 << 19), 1 << 19)["own"]) == {1}
        assert (
            rows["kpageflags"].map_elements(lambda word: bool(word & bit(KPF_SWAPBACKED)), pl.Boolean).all()
        )
        assert {figure.name: figure.captured for figure in done.figures[0]}["RssShmem"] >= 256
        assert at(done.trace.frame, b, 1 << 19)["pages"].sum() == 128


def test_zero_pages() -> None:
    code = """
a = area(1 << 20); libc.madvise(a, 1 << 20, 15)
sum(ctypes.string_at(a + i, 1)[0] for i in range(0, 1 << 20, 4096))
b = area(2 * PMD); libc.madvise(b, 2 * PMD, 14); ctypes.string_at(b, 1); ctypes.string_at(b + PMD, 1)
ready(a, b)
"""
    with processes.setting(THP / "enabled", "madvise"), program(code) as (pid, [a, b]):
        frame = captured(pid).trace.frame
        rows = at(frame, a, 1 << 20)
        assert rows["pages"].to_list() == [1] * 256
        assert set(rows["kind"].cast(str)) == {"special"}
        huge = at(frame, b, 4 << 20)
        if (THP / "use_zero_page").read_text().strip() == "1":
            assert huge["kind"].cast(str).to_list() == ["special"] * 2
            assert huge["pages"].to_list() == [512] * 2
            assert huge["order"].to_list() == [9] * 2


def test_hugetlb() -> None:
    code = """
a = area(2 * PMD, flags=PRIVATE | ANONYMOUS | 0x40000); libc.memset(a, 1, 2 * PMD)
ready(a)
"""
    with processes.setting(Path("/proc/sys/vm/nr_hugepages"), "4"):
        if int(Path("/proc/sys/vm/nr_hugepages").read_text()) < 4:
            pytest.skip("no room for huge pages")
        with program(code) as (pid, [a]):
            done = captured(pid)
            rows = at(done.trace.frame, a, 4 << 20)
            assert rows["kind"].cast(str).to_list() == ["hugetlb"] * 2
            assert rows["order"].to_list() == [9] * 2
            figures = {figure.name: figure for figure in done.figures[0]}
            assert figures["HugetlbPages"].captured == figures["HugetlbPages"].reported == 1024


def test_terabytes_reserved() -> None:
    code = """
import random
a = area(20 << 40, 3, PRIVATE | ANONYMOUS | NORESERVE); libc.madvise(a, 20 << 40, 15)
for i in range(100): ctypes.memset(a + i * (200 << 30), 1, 1)
b = area(20 << 40, 0, PRIVATE | ANONYMOUS | NORESERVE)
ready(a)
"""
    with program(code) as (pid, [a]):
        capture_process(pid)
        if not pagemap_scan.supported():
            pytest.skip("no PAGEMAP_SCAN")
        begin = time.monotonic()
        done = capture_process(pid)
        assert time.monotonic() - begin < 2
        assert at(done.trace.frame, a, 20 << 40)["pages"].sum() == 100


def test_fallback_skips_empty_reservations() -> None:
    code = "a = area(20 << 40, 0, PRIVATE | ANONYMOUS | NORESERVE); ready(a)"
    with program(code) as (pid, _):
        capture_process(pid, use_scan=False)
        begin = time.monotonic()
        capture_process(pid, use_scan=False)
        assert time.monotonic() - begin < 2


# ---------------------------------------------------------------------- held and released


def test_all_threads_are_held() -> None:
    code = """
def spin():
    while True: time.sleep(0.0005)
threads = [threading.Thread(target=spin, daemon=True) for _ in range(40)]
for thread in threads: thread.start()
ready(0)
"""
    with program(code) as (pid, _):
        with stop.held(files.PROC, pid):
            tids = files.threads(files.PROC, pid)
            assert len(tids) == 41
            assert {processes.state(pid, tid) for tid in tids} == {"t"}
        assert "t" not in {processes.state(pid, tid) for tid in tids}


def test_threads_come_and_go() -> None:
    code = """
def brood():
    while True:
        thread = threading.Thread(target=time.sleep, args=(0.001,)); thread.start(); thread.join()
for _ in range(4): threading.Thread(target=brood, daemon=True).start()
ready(0)
"""
    with program(code) as (pid, _):
        for _ in range(10):
            with stop.held(files.PROC, pid):
                tids = files.threads(files.PROC, pid)
                assert {processes.state(pid, tid) for tid in tids} == {"t"}
                assert files.threads(files.PROC, pid) == tids


def test_stopped_stays_stopped() -> None:
    with program("ready(0)") as (pid, _):
        os.kill(pid, signal.SIGSTOP)
        while processes.state(pid) != "T":
            time.sleep(0.001)
        capture_process(pid)
        assert processes.state(pid) == "T"
        os.kill(pid, signal.SIGCONT)
        while processes.state(pid) == "T":
            time.sleep(0.001)


def test_signals_are_delivered_after() -> None:
    code = """
import signal
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
print(0, flush=True)
while not got: time.sleep(0.01)
os._exit(7)
"""
    child = subprocess.Popen([sys.executable, "-c", processes.PRELUDE + code], stdout=-1)
    child.stdout.readline()
    with stop.held(files.PROC, child.pid):
        os.kill(child.pid, signal.SIGUSR1)
        time.sleep(0.05)
        assert processes.state(child.pid) == "t"
    assert child.wait(10) == 7


def test_released_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_):
        assert processes.state(pid) == "t"
        raise KeyboardInterrupt

    monkeypatch.setattr(address_space, "_check_places", broken)
    with program("ready(0)") as (pid, _):
        with pytest.raises(KeyboardInterrupt):
            capture_process(pid, tmp_path / "t.parquet")
        assert processes.state(pid) in "SR"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_released_after_a_signal(number: int, tmp_path: Path) -> None:
    """The command is stopped while it holds a process: that runs on, and no file is left."""
    code = f"""
import sys, time
from replay.capture import address_space
from replay.capture.live import capture_process
def wait(*_):
    print("held", flush=True)
    time.sleep(600)
address_space._check_places = wait
capture_process(int(sys.argv[1]), {str(tmp_path / "t.parquet")!r})
"""
    with program("ready(0)") as (pid, _):
        command = subprocess.Popen([sys.executable, "-c", code, str(pid)], stdout=-1, stderr=-3)
        assert command.stdout.readline() == b"held\n"
        assert processes.state(pid) == "t"
        command.send_signal(number)
        assert command.wait(10) != 0
        assert processes.state(pid) in "SR"
        assert list(tmp_path.iterdir()) == []


def test_running_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not held, a busy process changes while it is read: counted, and still a valid trace."""
    code = """
a = area(64 << 20); libc.madvise(a, 64 << 20, 15)
def churn():
    while True:
        libc.memset(a, 1, 64 << 20); libc.madvise(a, 64 << 20, 4)
threading.Thread(target=churn, daemon=True).start()
ready(a)
"""
    real = address_space._read_folios

    def slow(*args):
        time.sleep(0.05)
        return real(*args)

    monkeypatch.setattr(address_space, "_read_folios", slow)
    with program(code) as (pid, _):
        changed = 0
        for _ in range(3):
            path = tmp_path / "t.parquet"
            try:
                done = capture_process(pid, path, hold=False, force=True)
            except ReplayError as error:
                assert "changes while it is read" in str(error)
                continue
            assert done.meta.held == "none"
            changed += done.meta.changed_entries
            replay.read_trace(path)
        assert changed


def test_two_captures_at_once() -> None:
    """The second either waits its turn or says that the process is traced."""
    with program("a = area(64 << 20); libc.memset(a, 1, 64 << 20); ready(a)") as (pid, _):
        problems: list[str] = []

        def one() -> None:
            for _ in range(3):
                try:
                    capture_process(pid)
                except ReplayError as error:
                    problems.append(str(error))

        both = [threading.Thread(target=one) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert all("traced by" in problem or "no right to hold" in problem for problem in problems)
        assert processes.state(pid) in "SR"


def test_library_entry() -> None:
    with program("ready(0)") as (pid, _):
        trace = replay.capture_process(pid).trace
        assert trace.meta.address_spaces[0].pid == pid
        assert trace.frame["pages"].sum() > 100


# ---------------------------------------------------------------------- several processes


@pytest.fixture(params=["unified", "freezer"])
def cgroup(request: pytest.FixtureRequest):
    """An empty cgroup of each kind of freezer."""
    path = Path("/sys/fs/cgroup") / request.param / f"replay-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"{path}: {error.strerror}")
    yield path
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            path.rmdir()
            return
        except OSError:
            time.sleep(0.01)


def test_cgroup(cgroup: Path, tmp_path: Path) -> None:
    with (
        program("ready(0)") as (one, _),
        program("a = area(1 << 20); libc.memset(a, 1, 1 << 20); ready(0)") as (
            two,
            _,
        ),
    ):
        for pid in (one, two):
            (cgroup / "cgroup.procs").write_text(str(pid))
        states = []
        done = capture_cgroup(
            cgroup.name, tmp_path / "t.parquet", progress=lambda *_: states.append(frozen_state(cgroup))
        )
        assert states == [True, True]
        assert not frozen_state(cgroup)
        assert done.meta.held == "cgroup"
        trace = replay.read_trace(tmp_path / "t.parquet")
        assert sorted(space.pid for space in trace.meta.address_spaces) == sorted((one, two))
        assert trace.frame["mm"].unique().sort().to_list() == [0, 1]
        assert len(done.figures) == 2


def test_cgroup_thawed_after_an_error(cgroup: Path, tmp_path: Path) -> None:
    def broken(*_):
        raise KeyboardInterrupt

    with program("ready(0)") as (pid, _):
        (cgroup / "cgroup.procs").write_text(str(pid))
        with pytest.raises(KeyboardInterrupt):
            capture_cgroup(cgroup, tmp_path / "t.parquet", progress=broken)
        assert not frozen_state(cgroup)
        assert list(tmp_path.iterdir()) == []


def test_cgroup_thawed_though_replay_is_killed(cgroup: Path) -> None:
    """SIGKILL lets nothing run; a service must not stand still for ever by it."""
    with program("ready(0)") as (pid, _):
        (cgroup / "cgroup.procs").write_text(str(pid))
        code = (
            "import signal, sys; from pathlib import Path; from replay.process import stop\n"
            "with stop.frozen(Path(sys.argv[1])):\n"
            "    print('frozen', flush=True); signal.pause()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(cgroup)], stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout and holder.stdout.readline() == "frozen\n"
            assert frozen_state(cgroup)
            holder.kill()
        deadline = time.monotonic() + 10
        while frozen_state(cgroup):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_cgroup_frozen_before_stays_frozen(cgroup: Path) -> None:
    with program("ready(0)") as (pid, _):
        (cgroup / "cgroup.procs").write_text(str(pid))
        with stop.frozen(cgroup):
            assert capture_cgroup(cgroup).extents
            assert frozen_state(cgroup)


def frozen_state(path: Path) -> bool:
    if (path / "cgroup.events").exists():
        return "frozen 1" in (path / "cgroup.events").read_text()
    return (path / "freezer.state").read_text().strip() == "FROZEN"


def test_cgroup_unknown_or_empty(cgroup: Path) -> None:
    with pytest.raises(ReplayError, match="no process in cgroup"):
        capture_cgroup(cgroup)
    with pytest.raises(ReplayError, match="no cgroup nothing-like-it"):
        capture_cgroup("nothing-like-it")


def test_all_processes_of_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel threads left out, the caller too, vanished ones counted, what is refused said."""
    with program("ready(0)") as (one, _), program("ready(0)") as (two, _), stop.held(files.PROC, two):
        monkeypatch.setattr(files, "pids", lambda root: [2, one, two, os.getpid(), 4194399])
        done = capture_all(tmp_path / "t.parquet")
        assert [space.pid for space in done.meta.address_spaces] == [one]
        assert done.vanished == 1
        assert len(done.refused) == 1
        assert f"process {two} is traced" in done.refused[0]
        assert replay.read_trace(tmp_path / "t.parquet").frame["mm"].unique().to_list() == [0]


def test_half_an_address_space_is_dropped(tmp_path: Path) -> None:
    """A process of a saved tree that is cut leaves no rows among those of the others."""
    cut, whole = small_process(), small_process()
    cut.pid = 1000
    cut.write(tmp_path / "proc")
    whole.write(tmp_path / "proc")
    os.truncate(tmp_path / "proc/1000/pagemap", (0x500 + 39) * 8)
    done = capture_all(tmp_path / "t.parquet", procfs_root=tmp_path / "proc")
    assert len(done.refused) == 1
    assert "pagemap is cut" in done.refused[0]
    assert replay.read_trace(tmp_path / "t.parquet").frame["pages"].sum() == 73


def test_a_process_whose_first_thread_has_ended() -> None:
    code = """
def work():
    a = area(1 << 20); libc.memset(a, 1, 1 << 20); ready(a)
threading.Thread(target=work).start()
libc.pthread_exit(None)
"""
    with program(code) as (pid, [a]):
        while processes.state(pid) != "Z":
            time.sleep(0.01)
        done = capture_process(pid)
        assert at(done.trace.frame, a, 1 << 20)["pages"].sum() == 256
        assert done.meta.address_spaces[0].comm == files.read_file(f"/proc/{pid}/comm").strip()


def test_a_name_with_other_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a\rb\x0cc\u2028d"
    path.write_bytes(bytes(1 << 13))
    code = f"fd = os.open({str(path)!r}, os.O_RDONLY); a = area(1 << 13, 1, PRIVATE, fd); "
    code += "ctypes.string_at(a, 1 << 13); ready(a)"
    with program(code) as (pid, [a]):
        names = at(capture_process(pid).trace.frame, a, 1 << 13)["vma_name"].cast(str).to_list()
        assert set(names) == {str(path)}


def test_without_machine_code(tmp_path: Path) -> None:
    """The remedy that messages name works for a whole capture."""
    with program("ready(0)") as (pid, _):
        out = tmp_path / "t.parquet"
        argv = [sys.executable, "-m", "replay", "capture", str(pid), "-o", str(out)]
        subprocess.run(argv, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, check=True, capture_output=True)
        assert len(replay.read_trace(out).frame)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    fifo, link, target = tmp_path / "fifo", tmp_path / "link", tmp_path / "target.parquet"
    os.mkfifo(fifo)
    link.symlink_to(target)
    with program("ready(0)") as (pid, _):
        with pytest.raises(ReplayError, match="no ordinary file"):
            capture_process(pid, fifo, force=True)
        capture_process(pid, link)
    assert link.is_symlink() and len(replay.read_trace(target).frame)


def test_a_process_that_a_v1_freezer_holds_is_read_at_once(tmp_path: Path) -> None:
    path = Path("/sys/fs/cgroup/freezer") / f"replay-test-{os.getpid()}-frozen"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"{path}: {error.strerror}")
    try:
        with program("ready(0)") as (pid, _):
            (path / "cgroup.procs").write_text(str(pid))
            (path / "freezer.state").write_text("FROZEN")
            try:
                began = time.monotonic()
                trace = capture_process(pid).trace
                assert time.monotonic() - began < 4
                assert trace is not None and trace.meta.held == "cgroup"
                assert (path / "freezer.state").read_text().strip() == "FROZEN"
            finally:
                (path / "freezer.state").write_text("THAWED")
    finally:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and path.exists():
            with contextlib.suppress(OSError):
                path.rmdir()
            time.sleep(0.01)


def test_several_processes_into_one_trace(tmp_path: Path) -> None:
    with program("ready(0)") as (one, _), program("ready(0)") as (two, _):
        argv = [sys.executable, "-m", "replay", "capture", str(two), str(one), str(two), "-o", "t.parquet"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    trace = replay.read_trace(tmp_path / "t.parquet")
    assert [space.pid for space in trace.meta.address_spaces] == [two, one]
    assert "captured 2 address spaces" in done.stderr
