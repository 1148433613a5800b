# SPDX-License-Identifier: Apache-2.0
"""Commands recorded: every process at its exit, and nothing that the command could notice."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from replay.errors import ProcessGoneError, ReplayError
from replay.process import command
from replay.process.follow import Missed
from replay.procfs import files
from replay.recording import encoder, handover
from replay.recording.recorder import Recorded, capture_at_exit, record
from replay.teardown.replayer import run
from replay.trace import file
from replay.trace.frame import Trace
from replay.trace.kpageflags import KPF_ANON, KPF_SWAPBACKED, bit
from tests.capture.processes import needs_root, program, state

pytestmark = needs_root()

REPLAY = [sys.executable, "-c", "from replay.cli import main; main()"]


def recorded(argv: list[str], out: Path, **options: float) -> tuple[Recorded, Trace]:
    """Record into `out`; the trace is read back, which checks every row."""
    result = record(argv, out, **options)  # type: ignore[arg-type]
    trace = file.read(out)
    assert result.recorded == len(trace.meta.address_spaces)
    assert trace.meta.mode == "exit"
    assert_reconciles(trace)
    return result, trace


def assert_reconciles(trace: Trace) -> None:
    """Every address space holds what its status says, up to what the kernel counts per CPU."""
    anon = pl.col("kpageflags") & bit(KPF_ANON) != 0
    swapbacked = pl.col("kpageflags") & bit(KPF_SWAPBACKED) != 0
    pages = pl.col("pages").cast(pl.Int64)
    by_mm = {
        row["mm"]: row
        for row in trace.frame.filter(pl.col("kind").cast(pl.String).is_in(["page", "pmd"]))
        .group_by("mm")
        .agg(
            rss_anon=pages.filter(anon).sum(),
            rss_shmem=pages.filter(~anon & swapbacked).sum(),
            rss_file=pages.filter(~anon & ~swapbacked).sum(),
        )
        .iter_rows(named=True)
    }
    slack = 32 * (os.cpu_count() or 1)
    for mm, space in enumerate(trace.meta.address_spaces):
        for figure in ("rss_anon", "rss_file", "rss_shmem"):
            assert abs(by_mm[mm][figure] - getattr(space, figure)) <= slack, (mm, space, by_mm[mm])


def pids(trace: Trace, ended_by: str = "") -> list[int]:
    return [space.pid for space in trace.meta.address_spaces if ended_by in ("", space.ended_by)]


def child_of(output: str) -> int:
    return int(output.split()[-1])


def status_without_us(argv: list[str]) -> int:
    code = subprocess.run(argv, capture_output=True, check=False).returncode
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def running(argv: list[str], out: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`replay record` in a process group of its own."""
    child = subprocess.Popen(
        [*REPLAY, "record", "-o", str(out), *options, "--", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def no_file(folder: Path) -> bool:
    return not list(folder.iterdir())


# which processes


def test_one(tree: str, tmp_path: Path) -> None:
    result, trace = recorded([tree], tmp_path / "t.parquet")
    assert result.status == 0
    assert [space.comm for space in trace.meta.address_spaces] == ["tree"]
    assert not result.missed


@pytest.mark.parametrize("name", ["bomb", "orphans"])
def test_fork_bomb(name: str, tree: str, tmp_path: Path) -> None:
    result, trace = recorded([tree, name, "200"], tmp_path / "t.parquet", linger_seconds=30)
    assert result.recorded == 201
    assert len(set(pids(trace))) == 201
    assert not result.missed


def test_nested(tree: str, tmp_path: Path) -> None:
    _, trace = recorded([tree, "nested", "20"], tmp_path / "t.parquet")
    # each waits for the next one: the last to begin is the first to end
    exits = pids(trace, "exit")
    assert len(exits) == 21
    assert exits == sorted(exits, reverse=True)
    assert sorted(pids(trace, "exec")) == sorted(exits)[1:]


def test_exec_chain(tree: str, tmp_path: Path) -> None:
    result, trace = recorded([tree, "chain", "30"], tmp_path / "t.parquet")
    assert (result.recorded, result.execs) == (31, 30)
    assert len(set(pids(trace))) == 1
    assert not result.missed


@pytest.mark.parametrize(
    ("name", "status", "least"),
    [
        ("threads-first", 0, 300),
        ("leader-first", 0, 900),
        ("group-exit", 5, 0),
        ("exec-by-thread", 0, 0),
        ("exec-after-leader", 0, 0),
    ],
)
def test_threads(name: str, status: int, least: int, tree: str, tmp_path: Path) -> None:
    """The process is caught once, when its last thread exits; least: anonymous pages it then has."""
    result, trace = recorded([tree, name], tmp_path / "t.parquet")
    assert result.status == status
    assert len(pids(trace, "exit")) == 1
    assert result.execs == name.startswith("exec-")
    anon = trace.frame.filter(pl.col("kpageflags") & bit(KPF_ANON) != 0)["pages"].sum()
    assert anon >= least
    assert not result.missed


@pytest.mark.parametrize("name", ["vfork", "vm-child-first"])
def test_child_that_shares_is_not_torn_down(
    name: str, tree: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result, trace = recorded([tree, name], tmp_path / "t.parquet")
    assert result.status == status_without_us([tree, name])
    assert child_of(capfd.readouterr().out) not in pids(trace)
    assert result.recorded == 1
    assert result.missed == {Missed.SHARED: 1}


def test_vfork_and_exec(tree: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, trace = recorded([tree, "vfork-exec"], tmp_path / "t.parquet")
    assert pids(trace)[0] == child_of(capfd.readouterr().out)
    assert result.recorded == 2
    assert result.replaced == 0


@pytest.mark.parametrize("execs", [True, False])
def test_what_execs_tear_down(execs: bool, tmp_path: Path) -> None:
    """The copy that a fork made of a shell, as often as it runs a program, and the shell itself."""
    script = "for i in 1 2 3; do /bin/true; done; exec /bin/true"
    result, trace = recorded(["bash", "-c", script], tmp_path / "t.parquet", execs=execs)
    assert len(pids(trace, "exit")) == 4
    assert (result.execs, result.replaced) == ((4, 0) if execs else (0, 4))
    assert {space.comm for space in trace.meta.address_spaces if space.ended_by == "exec"} <= {"bash"}


def test_last_user_of_shared_memory(tree: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, trace = recorded([tree, "vm-child-last"], tmp_path / "t.parquet")
    assert pids(trace) == [child_of(capfd.readouterr().out)]
    assert result.missed == {Missed.SHARED: 1}


def test_those_that_stay_run_on(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    out = tmp_path / "t.parquet"
    result, _ = recorded(
        ["sh", "-c", f"(sleep 3; touch {mark}) >/dev/null & exit 3"], out, linger_seconds=0.1
    )
    assert result.status == 3
    assert result.missed == {Missed.RUNNING: 2}
    assert not mark.exists()
    deadline = time.monotonic() + 20
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mark.exists()


# killed


def test_killed_before_exec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "let_go", lambda started: os.kill(started.pid, signal.SIGKILL))
    result = record(["true"], tmp_path / "t.parquet")
    assert result.status == 137
    assert result.recorded == 0


def test_killed_while_running(tmp_path: Path) -> None:
    result, _ = recorded(["sh", "-c", "sleep 100 & kill -9 $!; wait $!; kill -9 $$"], tmp_path / "t.parquet")
    assert result.status == 137
    assert result.recorded + result.missed.get(Missed.KILLED, 0) >= 2


def test_killed_at_its_exit(tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while it is read. Since v5.17 the kernel drops it: the process is dying already."""
    read_status = files.read_status

    def read_and_kill(root: Path, pid: int, page_size: int) -> files.Status:
        status = read_status(root, pid, page_size)
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        return status

    monkeypatch.setattr(files, "read_status", read_and_kill)
    result, _ = recorded([tree, "alone", "9"], tmp_path / "t.parquet")
    assert result.recorded + result.missed[Missed.KILLED] == 10


def test_gone_while_read(tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_status, seen = files.read_status, set[int]()

    def lose_every_second(root: Path, pid: int, page_size: int) -> files.Status:
        seen.add(pid)
        if len(seen) % 2:
            raise ProcessGoneError("gone")
        return read_status(root, pid, page_size)

    monkeypatch.setattr(files, "read_status", lose_every_second)
    result, _ = recorded([tree, "bomb", "9"], tmp_path / "t.parquet")
    assert result.recorded == 5
    assert result.missed == {Missed.KILLED: 5}


def test_we_are_killed(tmp_path: Path) -> None:
    """The command does not end with us."""
    mark = tmp_path / "mark"
    with running(["sh", "-c", f"echo on; sleep 1; touch {mark}"], tmp_path / "t.parquet") as child:
        assert child.stdout
        child.stdout.readline()
        child.kill()
        child.wait()
        time.sleep(1.5)
        assert mark.exists()


# as without us


@pytest.mark.parametrize(
    "script",
    [
        "exit 0",
        "exit 41",
        "kill -TERM $$",
        "kill -SEGV $$",
        "trap 'exit 9' USR1; kill -USR1 $$; sleep 5",
        "trap '' TERM; kill -TERM $$; exit 3",
        "kill -9 $$",
        "sleep 5 & kill $!; wait $!",
    ],
)
def test_exit_status(script: str, tmp_path: Path) -> None:
    argv = ["sh", "-c", script]
    assert record(argv, tmp_path / "t.parquet").status == status_without_us(argv)


def test_stop_and_continue(tree: str, tmp_path: Path) -> None:
    """A parent sees its child stop, continue and end."""
    assert status_without_us([tree, "stops"]) == 9
    result, _ = recorded([tree, "stops"], tmp_path / "t.parquet")
    assert result.status == 9
    assert result.recorded == 2


def test_streams_and_environment(tmp_path: Path) -> None:
    script = "cat; echo $REPLAY_TEST $(pwd) >&2; cat /proc/self/status | grep -E '^Sig(Blk|Ign)'"
    argv = ["sh", "-c", script]
    environment = {**os.environ, "REPLAY_TEST": "here"}
    plain = subprocess.run(argv, input="in\n", capture_output=True, text=True, env=environment, check=True)
    ours = subprocess.run(
        [*REPLAY, "record", "-o", str(tmp_path / "t.parquet"), "--", *argv],
        input="in\n",
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert ours.stdout == plain.stdout
    assert ours.stderr.splitlines()[0] == plain.stderr.strip()


def test_set_user_id(tree: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copy(tree, other)
    os.chown(other, 65534, 65534)
    other.chmod(0o4755)
    result, _ = recorded(["sh", "-c", f"{other} who; exit 0"], tmp_path / "t.parquet")
    assert capfd.readouterr().out == "effective 65534\n"
    assert result.recorded == 2


@pytest.mark.parametrize("name", ["tracer", "attacher"])
def test_command_that_traces(name: str, tree: str, tmp_path: Path) -> None:
    result, _ = recorded([tree, name], tmp_path / "t.parquet")
    assert result.status == status_without_us([tree, name])
    assert result.recorded == 1
    assert result.missed == {Missed.TRACED: 1}


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_strace(tree: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = ["strace", "-f", "-o", str(log), tree, "bomb", "3"]
    result, _ = recorded(argv, tmp_path / "t.parquet")
    assert result.status == 0
    assert log.read_text().count("exited with 0") == 4


# signals to us


def test_interrupt_reaches_the_command_once(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    script = """import signal, time
signal.signal(signal.SIGINT, lambda *_: print("caught", flush=True))
print("on", flush=True)
time.sleep(0.8)"""
    with running([sys.executable, "-c", script], out) as child:
        assert child.stdout
        assert child.stdout.readline() == "on\n"
        os.killpg(child.pid, signal.SIGINT)
        output, _ = child.communicate(timeout=20)
    assert child.returncode == 0
    assert output == "caught\n"
    assert len(file.read(out).meta.address_spaces) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [True, False], ids=["group", "alone"])
def test_signal_ends_the_command(group: bool, number: int, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    with running(["sh", "-c", "echo on; exec sleep 100"], out) as child:
        assert child.stdout
        child.stdout.readline()
        time.sleep(0.1)
        (os.killpg if group else os.kill)(child.pid, number)
        child.communicate(timeout=20)
    # ended by that signal, so that a shell script that runs it ends too
    assert child.returncode == -number
    assert [space.comm for space in file.read(out).meta.address_spaces] == ["sh", "sleep"]


def test_interrupt_before_the_command(tmp_path: Path) -> None:
    with running(["sh", "-c", "sleep 100"], tmp_path / "t.parquet") as child:
        time.sleep(0.15)
        os.killpg(child.pid, signal.SIGINT)
        child.communicate(timeout=20)
    assert child.returncode in (130, -signal.SIGINT)


def test_interrupt_while_lingering(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    script = (
        f"{sys.executable} -c 'import signal,time; signal.signal(2, signal.SIG_IGN); print(1); time.sleep(5)'"
    )
    with running(["sh", "-c", f"({script}) </dev/null >/dev/null 2>&1 & sleep 0.2; echo over"], out) as child:
        assert child.stdout
        child.stdout.readline()
        time.sleep(0.2)
        os.kill(child.pid, signal.SIGINT)
        child.communicate(timeout=20)
    assert child.returncode == 0
    assert file.read(out).meta.address_spaces


def test_terminal_stop(tmp_path: Path) -> None:
    """Control-Z stops the command and us; the shell continues both."""
    # no shell: one that is stopped in the middle of a vfork() cannot stop until its child goes on
    script = "import time; print('on', flush=True); time.sleep(0.3); print('over')"
    with running([sys.executable, "-c", script], tmp_path / "t.parquet") as child:
        assert child.stdout
        child.stdout.readline()
        os.killpg(child.pid, signal.SIGTSTP)
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert os.WSTOPSIG(status) == signal.SIGTSTP
        time.sleep(0.5)
        os.killpg(child.pid, signal.SIGCONT)
        output, _ = child.communicate(timeout=20)
    assert output == "over\n"
    assert child.returncode == 0


# failures


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("no-such-command", 127, "no command"),
        ("/etc/passwd", 126, "cannot execute"),
        ("/tmp", 126, "execute"),
    ],
)
def test_cannot_start(name: str, status: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=message) as caught:
        record([name], tmp_path / "t.parquet")
    assert caught.value.status == status
    assert no_file(tmp_path)


def test_existing_file_stays(tmp_path: Path) -> None:
    out, mark = tmp_path / "t.parquet", tmp_path / "mark"
    out.write_text("mine")
    with pytest.raises(ReplayError, match="--force"):
        record(["touch", str(mark)], out)
    assert out.read_text() == "mine"
    assert not mark.exists()


STORM = """
import os, signal, time
signal.signal(signal.SIGUSR1, lambda *_: None)
end = time.monotonic() + 2
while time.monotonic() < end:
    os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_exits_are_not_put_off_for_ever(tmp_path: Path) -> None:
    """Every signal stops a traced task: a process that lives on them does not keep others from ending."""
    command = f"{sys.executable} -c '{STORM}' & sh -c 'exit 3'; echo $? $(date +%s.%N); wait; date +%s.%N"
    done = subprocess.run(
        [*REPLAY, "record", "-o", tmp_path / "t.parquet", "--", "sh", "-c", command],
        capture_output=True,
        text=True,
        check=True,
    )
    status, first, last = done.stdout.split()
    assert status == "3"
    assert float(last) - float(first) > 1


def test_large_ones_between_small_ones(tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs that hold a few processes, or none."""
    monkeypatch.setattr(handover, "SLAB_WORDS", 3000)
    _, trace = recorded(
        ["sh", "-c", f"{tree} bomb 20; {sys.executable} -c pass; true"], tmp_path / "t.parquet"
    )
    assert len(trace.meta.address_spaces) == 23
    assert trace.meta.address_spaces[-1].comm == "sh"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=72k", "none", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("no right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(tree: str, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs to its end, then the failure is told; with rows that fill several row groups."""
    monkeypatch.setattr(encoder, "ROW_GROUP_ROWS", 1000)
    mark = tmp_path / "mark"
    with pytest.raises(ReplayError, match="No space left"):
        record(["sh", "-c", f"{tree} bomb 200; touch {mark}"], small_disk / "t.parquet")
    assert mark.exists()
    assert no_file(small_disk)


def test_two_at_once(tree: str, tmp_path: Path) -> None:
    outs = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with running([tree, "bomb", "50"], outs[0]) as a, running([tree, "bomb", "50"], outs[1]) as b:
        for child in (a, b):
            child.communicate(timeout=60)
            assert child.returncode == 0
    for out in outs:
        assert len(file.read(out).meta.address_spaces) == 51


def test_into_memory(tree: str) -> None:
    trace = record([tree, "bomb", "3"]).trace
    assert trace
    assert len(trace.meta.address_spaces) == 4
    assert_reconciles(trace)


def test_memory_does_not_grow_with_processes(
    tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several row groups are written on the way."""
    monkeypatch.setattr(encoder, "ROW_GROUP_ROWS", 2000)
    _, trace = recorded([tree, "bomb", "100"], tmp_path / "t.parquet")
    assert len(trace.frame) > 5000


# a running process, at its exit


def test_at_exit(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    child = subprocess.Popen(["sh", "-c", "sleep 0.5; exit 6"])
    time.sleep(0.1)
    result = capture_at_exit(child.pid, out)
    assert child.wait() == 6
    assert pids(file.read(out)) == [child.pid]
    assert result.recorded == 1


def test_at_exit_with_threads(tree: str) -> None:
    child = subprocess.Popen([tree, "leader-first"])
    time.sleep(0.02)
    trace = capture_at_exit(child.pid).trace
    assert child.wait() == 0
    assert trace
    assert pids(trace) == [child.pid]
    assert trace.frame.filter(pl.col("kpageflags") & bit(KPF_ANON) != 0)["pages"].sum() >= 900


def test_at_exit_interrupted(tmp_path: Path) -> None:
    """The process runs on, and no file is left."""
    with program("ready()") as (pid, _):
        child = subprocess.Popen(
            [*REPLAY, "capture", "--at-exit", "-o", str(tmp_path / "t.parquet"), str(pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr
        child.stderr.readline()
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=20)
        assert child.returncode == 130
        time.sleep(0.1)
        assert state(pid) == "S"
        assert "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text()
    assert no_file(tmp_path)


def test_at_exit_of_none() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(ReplayError, match="no process"):
        capture_at_exit(child.pid)


def test_at_exit_of_itself() -> None:
    with pytest.raises(ReplayError, match="itself"):
        capture_at_exit(os.getpid())


def test_environment_is_inherited_as_it_is(tmp_path: Path) -> None:
    alone = subprocess.run(["env"], capture_output=True, text=True, check=True)
    done = subprocess.run(
        [*REPLAY, "record", "-o", tmp_path / "t.parquet", "--", "env"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(done.stdout.splitlines()) == sorted(alone.stdout.splitlines())


def test_children_that_nobody_waits_for(tmp_path: Path) -> None:
    """SIGCHLD ignored, as by some who start daemons: the command ignores it too, and we see it end."""
    out = tmp_path / "t.parquet"
    argv = ["env", "--ignore-signal=CHLD", *REPLAY, "record", "-o", str(out), "--"]
    look = ["grep", "SigIgn", "/proc/self/status"]
    done = subprocess.run([*argv, *look], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout.split()[1], 16) >> signal.SIGCHLD - 1 & 1


def test_locale_of_the_command(tmp_path: Path) -> None:
    """Python exports LC_CTYPE where there is no locale; the command does not see it."""
    bare = {name: value for name, value in os.environ.items() if name != "LANG" and name[:3] != "LC_"}
    argv = [*REPLAY, "record", "-o", str(tmp_path / "t.parquet"), "--", "sh", "-c", "echo [$LC_CTYPE]"]
    done = subprocess.run(argv, env=bare, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("stream", [1, 2])
def test_a_closed_stream(stream: int, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    look = f"test -e /proc/self/fd/{stream}; exit $((6 + $?))"
    line = f"exec {stream}>&-; exec \"$@\" record -o {out} -- sh -c '{look}'"
    done = subprocess.run(["sh", "-c", line, "sh", *REPLAY], capture_output=True, timeout=60, check=False)
    assert done.returncode == 7
    assert len(file.read(out).meta.address_spaces) == 1


def test_a_process_is_called_what_its_first_thread_is(tmp_path: Path) -> None:
    code = """
import ctypes, os, threading
def work():
    ctypes.CDLL(None).prctl(15, b"worker", 0, 0, 0)
    os._exit(0)
threading.Thread(target=work).start()
threading.Event().wait()"""
    _, trace = recorded([sys.executable, "-c", code], tmp_path / "t.parquet")
    assert [space.comm for space in trace.meta.address_spaces] != ["worker"]


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    code = r"import ctypes; ctypes.CDLL(None).prctl(15, b'\xffx', 0, 0, 0)"
    _, trace = recorded([sys.executable, "-c", code], tmp_path / "t.parquet")
    assert [space.comm for space in trace.meta.address_spaces] == ["\\xffx"]
    assert run(trace)["comm"].unique().to_list() == ["\\xffx"]


def test_a_task_with_the_number_of_one_before(tree: str, tmp_path: Path) -> None:
    """A thread that gets the number of a thread that has ended is not taken for that one."""
    result, trace = recorded([tree, "thread-again"], tmp_path / "t.parquet")
    if result.status == 77:
        pytest.skip("the number cannot be chosen here: no ns_last_pid, or another task took it")
    assert trace.meta.address_spaces[0].rss_anon >= 16 << 8


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full"])
def test_the_status_is_kept_though_nobody_can_read_the_notes(redirected: str, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    command = f"{shlex.join(REPLAY)} record -o {out} -- sh -c 'exit 7' {redirected}"
    assert subprocess.run(command, shell=True, check=False).returncode == 7
    assert out.exists()
