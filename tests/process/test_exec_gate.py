# SPDX-License-Identifier: Apache-2.0
"""What execs tear down: read inside execve(2), kept if the exec comes about, unnoticed by the command."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from replay.process import exec_gate, fanotify, programs
from replay.process.follow import Missed
from replay.procfs.files import U64
from replay.procfs.source import Tree
from replay.recording import handover, snapshot
from replay.recording.recorder import record
from replay.trace import file
from replay.trace.frame import Trace
from replay.trace.kpageflags import KPF_ANON, bit
from tests.capture.processes import needs_root
from tests.recording.test_recorder import REPLAY, child_of, pids, recorded, running, status_without_us

pytestmark = needs_root()

TRUE = shutil.which("true") or "/bin/true"


@pytest.fixture(scope="session", autouse=True)
def gate() -> None:
    """Skip where this kernel holds no exec."""
    try:
        with exec_gate.opened():
            pass
    except exec_gate.NoGateError as error:
        pytest.skip(str(error))


def compiled(folder: Path, name: str, *flags: str) -> str:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    program = folder / name
    source = Path(__file__).with_name("execs.c")
    if subprocess.run(["cc", "-pthread", "-w", *flags, "-o", program, source], check=False).returncode:
        pytest.skip("no static C library")
    return str(program)


@pytest.fixture(scope="session")
def execs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compiled(tmp_path_factory.mktemp("execs"), "execs")


@pytest.fixture(scope="session")
def static(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compiled(tmp_path_factory.mktemp("static"), "static", "-static")


def anon(trace: Trace, ended_by: str) -> int:
    """Anonymous pages of the address spaces."""
    numbers = [mm for mm, space in enumerate(trace.meta.address_spaces) if space.ended_by == ended_by]
    flags = pl.col("kpageflags") & bit(KPF_ANON) != 0
    return int(trace.frame.filter(pl.col("mm").is_in(numbers) & flags)["pages"].sum())


def executable(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


def with_loader(program: str, loader: bytes) -> bytes:
    """A dynamic program whose loader is another one."""
    content = bytearray(Path(program).read_bytes())
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    for place in range(offset, offset + size * count, size):
        kind, _, where, _, _, length = struct.unpack_from("<IIQQQQ", content, place)
        if kind == 3:  # PT_INTERP
            assert len(loader) < length
            content[where : where + length] = loader.ljust(length, b"\0")
    return bytes(content)


# what is read


def test_the_copy_that_a_fork_made(execs: str, tmp_path: Path) -> None:
    result, trace = recorded([execs, "forks", TRUE], tmp_path / "t.parquet")
    assert (result.status, result.recorded, result.execs) == (0, 3, 1)
    assert not result.missed
    assert anon(trace, "exec") >= 750
    [copy] = pids(trace, "exec")
    assert copy in pids(trace, "exit")
    assert [space.comm for space in trace.meta.address_spaces if space.ended_by == "exec"] == ["execs"]


def test_spawned_child_has_no_memory_of_its_own(
    execs: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result, trace = recorded([execs, "spawn", TRUE], tmp_path / "t.parquet")
    assert (result.recorded, result.execs) == (2, 0)
    assert pids(trace)[0] == child_of(capfd.readouterr().out)
    assert not result.missed


@pytest.mark.parametrize("pause_ms", [0, 200])
def test_processes_with_one_memory_that_both_exec(pause_ms: int, execs: str, tmp_path: Path) -> None:
    """The memory is torn down once: it is recorded, or counted where both left it at the same moment."""
    pairs = 20 if not pause_ms else 3
    result, _ = recorded([execs, "sharers", str(pairs), str(pause_ms), TRUE], tmp_path / "t.parquet")
    spaces = result.meta.address_spaces
    torn_down = sum(space.ended_by == "exec" and space.comm == "execs" for space in spaces)
    assert torn_down + result.missed[Missed.TOGETHER] == pairs
    assert set(result.missed) <= ({Missed.TOGETHER} if not pause_ms else set())
    # both programs of each pair, and the command
    assert sum(space.ended_by == "exit" for space in spaces) == 2 * pairs + 1


def test_memory_that_two_leave_is_torn_down_once(execs: str, tmp_path: Path) -> None:
    for pause_ms in ("0", "200"):
        command = [execs, "sharers", "3", pause_ms, TRUE]
        result = record(command, tmp_path / f"{pause_ms}.parquet", execs=False)
        assert result.replaced == 3 and not result.missed


@pytest.mark.parametrize("interpreter", ["/bin/sh", f"/usr/bin/env {TRUE}"])
def test_script(interpreter: str, execs: str, tmp_path: Path) -> None:
    """Several programs are opened, one address space is torn down; `env` execs once more."""
    script = executable(tmp_path / "script", f"#!{interpreter}\n".encode())
    result, _ = recorded([execs, "forks", script], tmp_path / "t.parquet")
    assert (result.status, result.execs) == (0, 1 + ("env" in interpreter))
    assert not result.missed


def test_script_of_a_script(execs: str, tmp_path: Path) -> None:
    inner = executable(tmp_path / "inner", b"#!/bin/sh\n")
    outer = executable(tmp_path / "outer", f"#!{inner}\n".encode())
    result, _ = recorded([execs, "forks", outer], tmp_path / "t.parquet")
    assert (result.status, result.execs) == (0, 1)
    assert not result.missed


def test_static_program(execs: str, static: str, tmp_path: Path) -> None:
    result, trace = recorded([execs, "forks", static], tmp_path / "t.parquet")
    assert (result.status, result.recorded, result.execs) == (0, 3, 1)
    assert anon(trace, "exec") >= 750


def test_large_one(execs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large for a slab: captured by the encoder, on trial; also of an exec that fails."""
    monkeypatch.setattr(handover, "SLAB_WORDS", 300)
    broken = executable(tmp_path / "broken", with_loader(execs, b"/etc/passwd"))
    script = f"{execs} forks {TRUE}; {execs} forks {broken}; {execs} forks {TRUE}"
    result, trace = recorded(["bash", "-c", script], tmp_path / "t.parquet")
    assert result.execs == 5
    assert not result.missed
    assert trace.frame["mm"].n_unique() == result.recorded


def test_exec_ends_threads_that_change_memory(execs: str, tmp_path: Path) -> None:
    """It is read when all of them stand at their exit; `recorded` holds it against the kernel's figures."""
    result, trace = recorded([execs, "busy-threads", TRUE], tmp_path / "t.parquet")
    assert (result.status, result.recorded, result.execs) == (0, 2, 1)
    assert not result.missed
    assert trace.meta.changed_entries == 0


def test_one_of_many_threads_execs(execs: str, tmp_path: Path) -> None:
    """They come to their execs at the same time; the first ends the others, inside theirs."""
    result, trace = recorded(
        ["bash", "-c", f"for i in 1 2 3 4 5; do {execs} many-threads-exec {TRUE} || exit 1; done"],
        tmp_path / "t.parquet",
    )
    assert result.status == 0
    assert not result.missed
    assert len(pids(trace, "exec")) == 10


def test_arguments_are_copied_first(execs: str, static: str, tmp_path: Path) -> None:
    """The kernel maps what it copies from; a static program is opened before that."""
    for program in (TRUE, static):
        data = tmp_path / f"data-{Path(program).name}"
        data.write_bytes(b"x" * (34 << 12) + bytes(30 << 12))
        _, trace = recorded(
            ["bash", "-c", f"exec {execs} far-argument {data} {program}"], tmp_path / "t.parquet", force=True
        )
        last = max(mm for mm, space in enumerate(trace.meta.address_spaces) if space.ended_by == "exec")
        rows = trace.frame.filter((pl.col("mm") == last) & (pl.col("vma_name") == str(data)))
        begin = pl.col("vpn").cast(pl.Int64) - pl.col("vma_start").cast(pl.Int64)
        # around a page that is read the kernel maps others
        of_argument = pl.min_horizontal(begin + pl.col("pages"), 34) - pl.max_horizontal(begin, 32)
        found = rows.filter(pl.col("kind") == "page").select(of_argument.clip(0).sum()).item()
        assert found == 2, program


# execs that fail


def failing(execs: str, folder: Path) -> dict[str, str]:
    """Files that cannot be executed, by why."""
    no_right = folder / "no-right"
    shutil.copy(execs, no_right)
    no_right.chmod(0o644)
    return {
        "none": str(folder / "none"),
        "no-right": str(no_right),
        "text": executable(folder / "text", b"no program\n"),
        "no-interpreter": executable(folder / "no-interpreter", b"#!/no/such\n"),
        "no-loader": executable(folder / "no-loader", with_loader(execs, b"/no/such")),
        "bad-loader": executable(folder / "bad-loader", with_loader(execs, b"/etc/passwd")),
        "cut": executable(folder / "cut", Path(execs).read_bytes()[:40]),
    }


def test_failing(execs: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The errors are those that it meets without us, and nothing is recorded of it."""
    files = failing(execs, tmp_path)
    busy = executable(tmp_path / "busy", Path(execs).read_bytes())
    with Path(busy).open("r+b"):
        argv = [execs, "failing", *files.values(), busy]
        alone = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        result, _ = recorded(argv, tmp_path / "t.parquet")
    assert capfd.readouterr().out == alone
    assert len(alone.splitlines()) == len(files) + 1
    assert (result.status, result.recorded, result.execs) == (0, 1, 0)
    assert not result.missed


def test_failing_in_a_thread(execs: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = failing(execs, tmp_path)["bad-loader"]
    alone = subprocess.run([execs, "failing-thread", path], capture_output=True, text=True, check=True).stdout
    result, _ = recorded([execs, "failing-thread", path], tmp_path / "t.parquet")
    assert capfd.readouterr().out == alone
    assert (result.status, result.recorded, result.execs) == (0, 1, 0)


def test_failing_then_working(execs: str, tmp_path: Path) -> None:
    files = failing(execs, tmp_path)
    result, _ = recorded([execs, "failing", *files.values(), TRUE], tmp_path / "t.parquet")
    assert (result.status, result.recorded, result.execs) == (0, 2, 1)
    assert not result.missed


def test_reading_of_a_failed_exec_is_not_taken_for_another(execs: str, static: str, tmp_path: Path) -> None:
    """The one that follows is not seen: its program is a memfd."""
    path = failing(execs, tmp_path)["bad-loader"]
    result, _ = recorded([execs, "memfd", static, path], tmp_path / "t.parquet")
    assert (result.status, result.recorded, result.execs) == (0, 1, 0)
    assert result.missed == {Missed.UNWATCHED: 1}


def test_failing_past_the_point_of_no_return(execs: str, static: str, tmp_path: Path) -> None:
    """The old memory is gone, and the process killed: no PTRACE_EVENT_EXEC comes."""
    content = bytearray(Path(static).read_bytes())
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    for place in range(offset, offset + size * count, size):
        if struct.unpack_from("<I", content, place) == (1,):  # PT_LOAD, to where no process may map
            struct.pack_into("<Q", content, place + 16, 0xFFFF_8000_0000_0000)
    broken = executable(tmp_path / "broken", bytes(content))
    argv = ["sh", "-c", f"{execs} forks {broken}; exit 0"]
    _, trace = recorded(argv, tmp_path / "t.parquet")
    spaces = [(space.comm, space.ended_by) for space in trace.meta.address_spaces]
    assert sorted(spaces)[:3] == [("broken", "exit"), ("execs", "exec"), ("execs", "exit")]
    assert anon(trace, "exec") >= 750


def test_killed_inside_an_exec(execs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with its old memory, which is read once more at its exit."""
    read = snapshot.read

    def read_and_kill(
        tree: Tree, pid: int, room: U64, meanwhile: Callable[[], None], ended_by: str = "exit"
    ) -> snapshot.Snapshot | None:
        if ended_by == "exec":
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        return read(tree, pid, room, meanwhile, ended_by)

    monkeypatch.setattr(snapshot, "read", read_and_kill)
    result, trace = recorded([execs, "storm", "5", TRUE], tmp_path / "t.parquet")
    assert (result.status, result.execs) == (1, 0)
    assert len(pids(trace, "exit")) + result.missed.get(Missed.KILLED, 0) == 6
    assert {space.comm for space in trace.meta.address_spaces} == {"execs"}


def test_recorded_by_a_thread(execs: str, tmp_path: Path) -> None:
    """Its tracer is a thread, which the kernel names by its own number."""
    with ThreadPoolExecutor(1) as pool:
        argv = [execs, "forks", TRUE]
        result, trace = pool.submit(recorded, argv, tmp_path / "t.parquet").result(timeout=60)
    assert (result.status, len(pids(trace, "exit")), result.execs) == (0, 2, 1)
    assert not result.missed


# what cannot be seen


def test_memfd(execs: str, static: str, tmp_path: Path) -> None:
    result, _ = recorded([execs, "memfd", static], tmp_path / "t.parquet")
    assert (result.status, result.recorded, result.execs) == (0, 1, 0)
    assert result.missed == {Missed.UNWATCHED: 1}


def test_memfd_with_a_loader(execs: str, tmp_path: Path) -> None:
    result, _ = recorded([execs, "memfd", execs], tmp_path / "t.parquet")
    assert (result.status, result.recorded, result.execs) == (0, 2, 1)
    assert not result.missed


def test_mount_of_the_command(execs: str, static: str, tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    argv = ["unshare", "-m", execs, "mounts", str(folder), static]
    if status_without_us(argv):
        pytest.skip("no right to mount")
    result, _ = recorded(argv, tmp_path / "t.parquet")
    assert (result.status, result.recorded, result.execs) == (0, 2, 1)
    assert result.missed == {Missed.UNWATCHED: 1}


def test_where_no_exec_can_be_held(execs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_group() -> int:
        raise PermissionError(1, "no")

    monkeypatch.setattr(fanotify, "group", no_group)
    result, _ = recorded([execs, "forks", TRUE], tmp_path / "t.parquet")
    assert (result.status, result.recorded, result.execs, result.replaced) == (0, 2, 0, 1)
    assert "CAP_SYS_ADMIN" in result.no_execs


def test_said_in_one_line(execs: str, tmp_path: Path) -> None:
    argv = [*REPLAY, "record", "--no-exec", "-o", str(tmp_path / "t.parquet"), "--", execs, "forks", TRUE]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "not recorded: 1 address space that an exec replaced: --no-exec leaves them out\n" in done.stderr
    argv = [*REPLAY, "record", "-o", str(tmp_path / "u.parquet"), "--", execs, "forks", TRUE]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "3 address spaces: 2 exits, 1 execs" in done.stderr


# others, and the end


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gatekeeper_of(recorder: int) -> int:
    """The child of the recorder that has the fanotify group."""
    for pid in children(recorder):
        files = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115 - no path
        if "anon_inode:[fanotify]" in files:
            return pid
    raise AssertionError("no gatekeeper")


def seconds_of_an_exec() -> float:
    start = time.perf_counter()
    subprocess.run([TRUE], check=True, timeout=20)
    return time.perf_counter() - start


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGCONT])
def test_recorder_that_stands_still_during_an_exec(number: int, tmp_path: Path) -> None:
    """The command's exec waits for it, others of the machine do not. If it dies, the command goes on."""
    script = "read line; echo on; /bin/true & wait $!; echo $?"
    with subprocess.Popen(
        [*REPLAY, "record", "-o", tmp_path / "t.parquet", "--", "bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin and child.stdout
        deadline = time.monotonic() + 20
        while "bash" not in (names := [comm(pid) for pid in children(child.pid)]):
            assert time.monotonic() < deadline, names
            time.sleep(0.01)
        time.sleep(0.2)
        child.send_signal(signal.SIGSTOP)
        # each stop of the command waits for the recorder: it sleeps in read(2), and the fork waits
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "on\n"
        assert max(seconds_of_an_exec() for _ in range(20)) < 2
        child.send_signal(number)
        assert child.stdout.readline() == "0\n"
    if number == signal.SIGCONT:
        assert len(pids(file.read(tmp_path / "t.parquet"), "exec")) == 1


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_recorder_killed_inside_an_exec(tmp_path: Path) -> None:
    """A task waits at the gate when the recorder dies."""
    mark = tmp_path / "mark"
    code = f"""
import os, signal
from replay.recording import recorder, snapshot
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
snapshot.read = killed
recorder.record(["bash", "-c", "/bin/true; /bin/true && touch {mark}; exit 0"], {str(tmp_path / "t")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mark.exists()


def test_gatekeeper_killed(tmp_path: Path) -> None:
    """The command goes on, and what is not recorded is told."""
    script = "echo on; sleep 1; /bin/true; /bin/true; exit 3"
    with running(["bash", "-c", script], tmp_path / "t.parquet") as child:
        assert child.stdout
        child.stdout.readline()
        os.kill(gatekeeper_of(child.pid), signal.SIGKILL)
        _, said = child.communicate(timeout=30)
    assert child.returncode == 3
    assert "that an exec replaced: the process that holds them was killed\n" in said


def test_nothing_is_left(tmp_path: Path) -> None:
    """Neither gatekeeper nor bell outlives a recording."""
    before = set(names_of_all())
    recorded(["bash", "-c", "/bin/true; /bin/true; exit 0"], tmp_path / "t.parquet")
    assert not {name for name in set(names_of_all()) - before if name[1] == comm(os.getpid())}


def names_of_all() -> list[tuple[int, str]]:
    own = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [(pid, comm(pid)) for pid in own if pid in children(os.getpid())]


def test_storm(execs: str, tmp_path: Path) -> None:
    """More tasks wait than a process may have files open, or words fit into a socket."""
    argv = ["bash", "-c", f"ulimit -n 64; exec {execs} storm 400 {TRUE}"]
    result, trace = recorded(argv, tmp_path / "t.parquet")
    assert result.status == 0
    assert not result.missed
    assert len(pids(trace, "exit")) == 401
    assert len(set(pids(trace, "exec"))) == result.execs == 401


def test_foreign_execs_go_on(execs: str, tmp_path: Path) -> None:
    """While a storm of the command's own keeps the recorder busy."""
    alone = statistics.median(seconds_of_an_exec() for _ in range(20))
    with running([execs, "storm", "400", TRUE], tmp_path / "t.parquet") as child:
        time.sleep(0.3)
        during = []
        while child.poll() is None:
            during.append(seconds_of_an_exec())
    assert child.returncode == 0
    # they wait for a processor, not for the recorder
    assert len(during) > 10
    assert statistics.median(during) < alone + 0.1


def test_two_recordings_at_once(execs: str, tmp_path: Path) -> None:
    outs = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    argv = [execs, "storm", "50", TRUE]
    with running(argv, outs[0]) as a, running(argv, outs[1]) as b:
        for child in (a, b):
            child.communicate(timeout=60)
            assert child.returncode == 0
    for out in outs:
        trace = file.read(out)
        assert (len(pids(trace, "exit")), len(pids(trace, "exec"))) == (51, 50)


def test_programs() -> None:
    with Path("/proc/self/exe").open("rb") as dynamic:
        assert programs.next_of(dynamic.fileno()) is programs.Next.LOADER
    with Path("/etc/passwd").open("rb") as text:
        assert programs.next_of(text.fileno()) is None


# tracers and seccomp filters of the command


def test_leak_checker(tmp_path: Path) -> None:
    """It attaches from a task made with CLONE_UNTRACED."""
    source = tmp_path / "leak.c"
    source.write_text(
        "#include <stdlib.h>\nint main() { void *volatile p = malloc(100); p = 0; return 0; }\n"
    )
    program = tmp_path / "leak"
    if subprocess.run(["cc", "-fsanitize=address", "-o", program, source], check=False).returncode:
        pytest.skip("no AddressSanitizer")
    alone = subprocess.run([program], capture_output=True, text=True, check=False)
    if "100 byte(s) leaked" not in alone.stderr:
        pytest.skip("LeakSanitizer does not work here")
    argv = [*REPLAY, "record", "-o", str(tmp_path / "t.parquet"), "--", "sh", "-c", f"{program}; exit $?"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == alone.returncode
    assert "100 byte(s) leaked" in done.stderr
    # the task that attached has the memory of the process that it looked at
    assert "1 the command itself traces it\n" in done.stderr
    assert "1 its memory lives on in another process\n" in done.stderr


@pytest.mark.skipif(not shutil.which("gdb"), reason="no gdb")
def test_debugger(execs: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["gdb", "-nx", "-batch", "-ex", "run", "-ex", "info inferiors", "--args", execs, "quiet"]
    result, _ = recorded(argv, tmp_path / "t.parquet")
    assert result.status == 0
    assert "exited normally" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["listener", "untraced"])
def test_filters_of_the_command(
    name: str, execs: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A listener of its own, and a filter whose SECCOMP_RET_TRACE fails with ENOSYS untraced."""
    alone = subprocess.run([execs, name], capture_output=True, text=True, check=True).stdout
    assert alone.splitlines()[0].endswith(" 0")
    recorded([execs, name], tmp_path / "t.parquet")
    assert capfd.readouterr().out == alone
