# SPDX-License-Identifier: Apache-2.0
"""Processes held still while they are read, and always released.

One process is held by ptrace: PTRACE_SEIZE and PTRACE_INTERRUPT of every thread, which neither the process
nor its parent notices. The tracer is a thread of its own: when it ends, however it ends, the kernel lets
all its tracees go (kernel/ptrace.c, exit_ptrace()). A cgroup is held by its freezer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from replay.errors import ProcessGoneError, ReplayError
from replay.process import ptrace, rights
from replay.procfs import files

PATIENCE_SECONDS: Final = 5.0
"""How long a thread or a cgroup gets to stop: only uninterruptible sleep takes long."""


class Hold(NamedTuple):
    """A process that stands still. how: `ptrace`, `cgroup` or `none`. let_go: ends it before the block does.

    held_ms: for how long it has stood still by ptrace, until now or until it was let go; waits until it is.
    """

    how: str
    let_go: Callable[[], None]
    held_ms: Callable[[], float]


def not_by_us(how: str) -> Hold:
    """What stands still by others, or does not."""
    return Hold(how, lambda: None, lambda: 0.0)


@contextlib.contextmanager
def held(root: Path, pid: int) -> Iterator[Hold]:
    """Hold all threads of a process still while the block runs, or until `let_go`, by ptrace or a cgroup.

    A process that was stopped before stays stopped, and signals that arrive meanwhile are delivered after.
    Raises `ProcessGoneError` if it ends, `ReplayError` if it is traced already, is the caller itself, or
    does not stop.
    """
    _check(root, pid)
    if is_frozen(root, pid):
        # the freezer of cgroup v1 lets a task neither run nor stop for ptrace
        yield not_by_us("cgroup")
        if not is_frozen(root, pid):
            raise ReplayError(f"the cgroup of process {pid} was thawed while it was read: capture it again")
        return
    release, stopped = threading.Event(), threading.Event()
    failure: list[BaseException] = []
    times: list[float] = []

    def tracer() -> None:
        signals: dict[int, int] = {}
        times.append(time.monotonic())
        try:
            _stop_all(root, pid, signals)
            stopped.set()
            release.wait()
        except BaseException as error:
            failure.append(error)
        finally:
            for tid, number in signals.items():
                with contextlib.suppress(OSError):
                    ptrace.call(ptrace.DETACH, tid, number)
            times.append(time.monotonic())
            stopped.set()

    thread = threading.Thread(target=tracer, name="replay-tracer", daemon=True)

    def held_ms() -> float:
        if release.is_set():
            thread.join()
        return ((times[1] if len(times) > 1 else time.monotonic()) - times[0]) * 1000

    thread.start()
    try:
        stopped.wait()
        if failure:
            raise failure[0]
        yield Hold("ptrace", release.set, held_ms)
    finally:
        release.set()
        thread.join()


def _check(root: Path, pid: int) -> None:
    if pid == files.own_pid(root):
        raise ReplayError(
            f"process {pid} is replay itself, which cannot hold itself still: capture another process"
        )
    if files.task_with_memory(root, pid) in (pid, None):
        files.read_status(root, pid, os.sysconf("SC_PAGE_SIZE"))
    tracer = files.tracer(root, pid)
    if tracer:
        raise ReplayError(
            f"process {pid} is traced by process {tracer} (a debugger or strace): detach that, "
            "or capture it running with --no-freeze"
        )


FREEZER: Final = Path("/sys/fs/cgroup/freezer")
"""Where the freezer of cgroup v1 is mounted."""


def is_frozen(root: Path, pid: int) -> bool:
    """Whether the freezer of cgroup v1 holds a process: its cgroup, or one above it, is FROZEN."""
    try:
        lines = files.read_text(root, pid, "cgroup").splitlines()
        [path] = [line.split(":", 2)[2] for line in lines if "freezer" in line.split(":", 2)[1].split(",")]
        return (FREEZER / path.lstrip("/") / "freezer.state").read_text().strip() == "FROZEN"
    except (OSError, ReplayError, ValueError, IndexError):
        return False


def _stop_all(root: Path, pid: int, signals: dict[int, int]) -> None:
    """Seize and stop threads until no new one appears.

    signals: filled with the signal that each thread's stop held back (0: none).
    """
    seized: set[int] = set()
    while new := [tid for tid in files.threads(root, pid) if tid not in seized]:
        for tid in new:
            seized.add(tid)
            try:
                ptrace.call(ptrace.SEIZE, tid)
                ptrace.call(ptrace.INTERRUPT, tid)
            except ProcessLookupError:
                continue
            except PermissionError:
                if not _lives(root, pid, tid):
                    continue
                raise ReplayError(
                    f"process {pid} may not be held still: {rights.why_not_traced(pid)}; "
                    "or capture it running with --no-freeze"
                ) from None
            # patience counts from the last progress: there may be thousands of threads
            held_back = _wait_stop(pid, tid, time.monotonic() + PATIENCE_SECONDS)
            if held_back is not None:
                signals[tid] = held_back
    if not signals:
        raise ProcessGoneError(f"process {pid} ended before it could be read")


def _lives(root: Path, pid: int, tid: int) -> bool:
    """Whether a thread is there and not a zombie."""
    try:
        text = (root / str(pid) / "task" / str(tid) / "stat").read_text(errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def _wait_stop(pid: int, tid: int, deadline: float) -> int | None:
    """Wait until a seized thread stops: the signal to deliver to it later (0: none), None if it ended."""
    pause = 0.0001
    while True:
        try:
            found, status = os.waitpid(tid, os.WNOHANG | ptrace.WALL)
        except ChildProcessError:
            return None
        if found and os.WIFSTOPPED(status):
            return 0 if ptrace.event(status) else os.WSTOPSIG(status)
        if found:
            return None
        if time.monotonic() > deadline:
            raise ReplayError(
                f"process {pid} does not stop: thread {tid} sleeps in the kernel: try again, "
                "or capture it running with --no-freeze"
            )
        time.sleep(pause)
        pause = min(pause * 2, 0.01)


# ---------------------------------------------------------------------- cgroups


HIERARCHIES: Final = tuple(Path("/sys/fs/cgroup") / name for name in ("", "unified", "freezer"))
"""Where cgroup v2 is mounted, alone or beside v1, and the freezer of v1."""


def cgroup_folder(cgroup: str | Path) -> Path:
    """The folder of a cgroup given by folder or by name; `ReplayError` if there is none."""
    name = str(cgroup).lstrip("/")
    for path in (Path(cgroup), *(hierarchy / name for hierarchy in HIERARCHIES)):
        if (path / "cgroup.procs").is_file():
            return path
    raise ReplayError(f"no cgroup {cgroup}: name its folder below /sys/fs/cgroup")


def members(cgroup: Path) -> list[int]:
    """Processes of a cgroup and of those below it."""
    found: set[int] = set()
    for procs in cgroup.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):  # removed meanwhile, or a threaded cgroup
            found.update(int(pid) for pid in procs.read_text().split())
    return sorted(found - {0})


def has_freezer(cgroup: Path) -> bool:
    """Whether a cgroup can be frozen: v2 but for its root, or the freezer of v1."""
    return (cgroup / "cgroup.freeze").exists() or (cgroup / "freezer.state").exists()


@contextlib.contextmanager
def frozen(cgroup: Path) -> Iterator[Hold]:
    """Freeze a cgroup and those below it while the block runs, or until `let_go`.

    One that was frozen before stays frozen.

    It is thawed even if this process is killed meanwhile. Raises `ReplayError` if it may not be frozen, or
    does not freeze in time.
    """
    if (cgroup / "cgroup.freeze").exists():
        control, freeze, thaw = cgroup / "cgroup.freeze", "1", "0"
        shows, word = cgroup / "cgroup.events", "frozen 1"
    else:
        control, freeze, thaw = cgroup / "freezer.state", "FROZEN", "THAWED"
        shows, word = control, "FROZEN"
    if control.read_text().strip() == freeze:
        yield not_by_us("cgroup")
        return
    from replay.support.restore import undone

    try:
        control.write_text(thaw)  # as it is: only to see whether that is allowed
    except OSError as error:
        raise ReplayError(
            f"cannot freeze cgroup {cgroup}: {error.strerror}: run replay as root, or use --no-freeze"
        ) from None
    ended: list[float] = []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: ended.append(time.monotonic()))
        stack.enter_context(undone()).write(control, thaw)
        began = time.monotonic()
        control.write_text(freeze)
        deadline = began + PATIENCE_SECONDS
        while word not in shows.read_text().splitlines():
            if time.monotonic() > deadline:
                raise ReplayError(
                    f"cgroup {cgroup} does not freeze: a process in it sleeps in the kernel: try again, "
                    "or use --no-freeze"
                )
            time.sleep(0.001)
        yield Hold("cgroup", stack.close, lambda: ((ended or [time.monotonic()])[0] - began) * 1000)


# ---------------------------------------------------------------------- signals


ENDING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn signals that end a process into an exception while the block runs: everything is released.

    SIGINT is one already. Does nothing outside the main thread, where no handler can be set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
