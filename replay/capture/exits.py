"""Address spaces at the exit of their processes: of a command and all its descendants, or of one process.

At PTRACE_EVENT_EXIT of a process's last task the page tables are what exit_mmap() will see. An exec tears
an address space down too, without a stop before it: those are not recorded.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from replay.capture import command, follow, live, procfs, ptrace, space
from replay.capture.command import Command
from replay.capture.extents import Extents
from replay.capture.follow import Followed, Missed
from replay.capture.procfs import Status, Vma
from replay.capture.space import Options, Space, Tree
from replay.capture.table import frame_of, table
from replay.errors import ProcessGoneError, ReplayError
from replay.trace.file import ARROW_SCHEMA, ROW_GROUP_ROWS, AddressSpace, Metadata, Trace, open_writer

LINGER_SECONDS: Final = 2.0
"""How long descendants that outlive the command are waited for."""

CAP_SYS_PTRACE: Final = 19
"""include/uapi/linux/capability.h."""


@dataclass(frozen=True)
class Recorded:
    """What became of a recording.

    status: the command's exit status, 128 + signal if it was killed. spaces: address spaces in the trace.
    missed: those that are not, by cause. changed: entries that changed while they were read.
    trace: the rows, if they were not written to `path`.
    """

    status: int
    meta: Metadata
    extents: int
    missed: Mapping[Missed, int]
    path: Path | None = None
    trace: Trace | None = None

    @property
    def recorded(self) -> int:
        return len(self.meta.address_spaces)

    @property
    def changed(self) -> int:
        return self.meta.changed_entries


class _Inline(Executor):
    """Runs what is submitted at once: for short reads threads cost more than they save."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


_Part = tuple[int, int, Extents, Sequence[Vma], Status]
"""Number of the address space, pid, some of its rows, its VMAs and status."""


@dataclass
class _Recording:
    """What was read so far. Rows go to the writer as soon as they fill a row group."""

    writer: Any | None
    encoder: ThreadPoolExecutor
    spaces: list[AddressSpace] = field(default_factory=list)
    pmd_known: bool = True
    changed: int = 0
    extents: int = 0
    waiting: list[_Part] = field(default_factory=list)
    waiting_rows: int = 0
    writing: Future[None] | None = None
    tables: list[pa.Table] = field(default_factory=list)
    failure: BaseException | None = None


def record(
    argv: Sequence[str],
    out: str | Path | None = None,
    *,
    force: bool = False,
    use_scan: bool = True,
    linger_seconds: float = LINGER_SECONDS,
    progress: Callable[[int], None] | None = None,
) -> Recorded:
    """Run a command and capture each of its processes at its exit, into the trace file `out` or into memory.

    The command runs as without us: with our streams, group and terminal, its signals and exit status. When
    it has ended, descendants that it left are waited for, but no longer than `linger_seconds` and until
    an interrupt; then they run on unrecorded. progress: called with the number of address spaces recorded.

    Raises `ReplayError`: before the command starts if rights are missing or `out` cannot be made, with
    `status` 127 or 126 if the command cannot be started, after its end if the trace could not be written.
    """
    _check_rights()
    with (
        command.held(argv) as started,
        _recording(out, force) as (recording, tree),
        command.signals_passed(started),
    ):
        options = Options(use_scan=use_scan)

        def at_exit(pid: int, tid: int) -> Missed | None:
            cause = _take(recording, tree, pid, tid, options)
            if progress and not cause:
                progress(len(recording.spaces))
            return cause

        followed = follow_command(started, at_exit, linger_seconds=linger_seconds)
        status = os.waitstatus_to_exitcode(followed.root_status or 0)
        return _finish(
            recording, tree, options, out, followed.missed, status if status >= 0 else 128 - status, argv[0]
        )


def follow_command(
    started: Command,
    at_exit: Callable[[int, int], Missed | None],
    after_exit: Callable[[int, int], None] | None = None,
    *,
    linger_seconds: float = LINGER_SECONDS,
) -> Followed:
    """Let a held command go and follow it and its descendants until they have ended.

    at_exit: called with (pid, tid) when a process's last task stands at its exit; after_exit: when that task
    has been let go. Raises `ReplayError` if the command cannot be traced or started.
    """
    followed = Followed(started.pid, at_exit)
    followed.on_signal = lambda number: started.seen.update([number])
    if after_exit:
        followed.after_exit = after_exit
    try:
        _seize(followed, started.pid)
        command.let_go(started)
        _run(followed, started, linger_seconds)
    finally:
        started.ended = True
        follow.release(followed)
    if not followed.execed:
        command.check_started(started)
    return followed


def capture_at_exit(
    pid: int,
    out: str | Path | None = None,
    *,
    force: bool = False,
    use_scan: bool = True,
) -> Recorded:
    """Wait until a running process exits, and capture it there. Its children are not followed.

    An interrupt (KeyboardInterrupt) leaves the process running, and no file.

    Raises `ReplayError` if there is no such process, it is traced already, or rights are missing, and
    `ProcessGoneError` if it was killed before it could be read.
    """
    _check_rights()
    _check_target(pid)
    if threading.current_thread() is threading.main_thread():
        # polars installs a SIGINT handler with SA_RESTART, with which waitpid() would never be interrupted
        signal.siginterrupt(signal.SIGINT, True)
    with _recording(out, force) as (recording, tree):
        options = Options(use_scan=use_scan)
        followed = Followed(
            pid,
            lambda pid, tid: _shared_outside(pid, tid) or _take(recording, tree, pid, tid, options),
            whole_tree=False,
            execed=True,
        )
        try:
            _seize_all(followed, pid)
            while pid in followed.processes:
                follow.handle_next(followed, block=True)
        finally:
            follow.release(followed)
        if not recording.spaces:
            cause = next(iter(followed.missed), Missed.KILLED)
            raise ProcessGoneError(f"process {pid} ended, but {cause}: nothing was captured")
        return _finish(recording, tree, options, out, followed.missed, 0, f"{recording.spaces[0].comm}-{pid}")


def _run(followed: Followed, started: Command, linger_seconds: float) -> None:
    """Handle events until the command and its descendants have ended, or linger no longer."""
    deadline = float("inf")
    while followed.root_status is None or followed.processes:
        idle = followed.root_status is None and not followed.root_stopped
        if follow.handle_next(followed, block=False) or (idle and follow.handle_next(followed, block=True)):
            if followed.root_status is not None and not started.ended:
                started.ended = True
                deadline = time.monotonic() + linger_seconds
        elif followed.root_stopped:
            followed.root_stopped = False
            if started.stopped_by:
                command.stop_with(started)
        elif time.monotonic() > deadline or started.interrupted:
            return
        else:
            time.sleep(follow.POLL_SECONDS)


def _check_target(pid: int) -> None:
    if pid == os.getpid():
        raise ReplayError(f"process {pid} is replay itself: capture another process")
    # its first thread may have ended before the others
    with contextlib.suppress(ProcessGoneError):
        status = procfs.read_status(procfs.PROC, pid, os.sysconf("SC_PAGE_SIZE"))
        if status.tracer:
            raise ReplayError(
                f"process {pid} is traced by process {status.tracer} (a debugger or strace): detach that first"
            )


def _seize(followed: Followed, tid: int) -> None:
    try:
        follow.seize(followed, tid)
    except PermissionError:
        raise ReplayError(
            f"no right to trace process {tid}: kernel.yama.ptrace_scope is 3, a container's seccomp filter "
            "forbids ptrace, or another process traces it already: run replay as root of the host"
        ) from None


def _seize_all(followed: Followed, pid: int) -> None:
    """Seize all tasks of a process, until no new one appears."""
    tried: set[int] = set()
    while new := [tid for tid in procfs.threads(procfs.PROC, pid) if tid not in tried]:
        for tid in new:
            tried.add(tid)
            with contextlib.suppress(ProcessLookupError):
                if not follow.is_dead(tid):
                    _seize(followed, tid)
    if not followed.processes:
        raise ProcessGoneError(f"no process {pid}: it has ended, or never was")


def _check_rights() -> None:
    """Raise unless page frames can be seen and a traced set-user-ID program keeps its rights."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if not effective >> CAP_SYS_PTRACE & 1:
        raise ReplayError(
            "CAP_SYS_PTRACE is missing, without which set-user-ID programs lose their rights while they are "
            "traced: run replay as root, in a container with --cap-add SYS_PTRACE"
        )
    size = os.sysconf("SC_PAGE_SIZE")
    page = ctypes.create_string_buffer(b"present", size)
    word = np.zeros(1, np.uint64)
    fd = procfs.open_pagemap(procfs.PROC, os.getpid())
    try:
        procfs.read_words(fd, ctypes.addressof(page) // size, word)
    finally:
        os.close(fd)
    if not word[0] & procfs.PM_PFRAME:
        raise ReplayError("page frames read as 0: CAP_SYS_ADMIN is missing: run replay as root of the host")


@contextlib.contextmanager
def _recording(out: str | Path | None, force: bool) -> Iterator[tuple[_Recording, Tree]]:
    """A recording into `out`, and the open procfs tree to read from."""
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(open_writer(out, force=force)) if out is not None else None
        tree = stack.enter_context(space.opened(procfs.PROC, os.getpid()))
        encoder = stack.enter_context(ThreadPoolExecutor(1, "replay-encode"))
        yield _Recording(writer, encoder), dataclasses.replace(tree, pool=_Inline())  # type: ignore[arg-type]


def _take(recording: _Recording, tree: Tree, pid: int, tid: int, options: Options) -> Missed | None:
    """Read the address space of a process whose last task stands at its exit; returns why it was missed."""
    if recording.failure:
        return Missed.UNREADABLE
    number = len(recording.spaces)
    parts: list[_Part] = []
    try:
        with by_task(tree, pid, tid) as seen:
            captured = space.capture_space(
                seen, pid, lambda rows, vmas, status: parts.append((number, pid, rows, vmas, status)), options
            )
        # SIGKILL ends even this stop; what was read then may be torn
        ptrace.event_message(tid)
    except (ProcessGoneError, ProcessLookupError):
        return Missed.KILLED
    except ReplayError:
        return Missed.UNREADABLE
    _keep(recording, pid, captured, parts)
    return None


@contextlib.contextmanager
def by_task(tree: Tree, pid: int, tid: int) -> Iterator[Tree]:
    """The procfs tree in which `pid` is read through its last task.

    The first task of a process may have ended before the last one; its files in /proc are empty then.
    """
    if tid == pid:
        yield tree
        return
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        (Path(folder) / str(pid)).symlink_to(procfs.PROC / str(pid) / "task" / str(tid))
        yield dataclasses.replace(tree, root=Path(folder))


def _keep(recording: _Recording, pid: int, captured: Space, parts: list[_Part]) -> None:
    recording.spaces.append(live.address_space(pid, captured))
    recording.pmd_known &= captured.pmd_known
    recording.changed += captured.changed
    recording.waiting += parts
    recording.waiting_rows += sum(len(part[2].vpn) for part in parts)
    if recording.waiting_rows >= ROW_GROUP_ROWS:
        _flush(recording)


def _flush(recording: _Recording) -> None:
    """Hand what waits to the encoder, when it is done with what it got before."""
    _await_writing(recording)
    parts, recording.waiting, recording.waiting_rows = recording.waiting, [], 0
    if parts and not recording.failure:
        recording.writing = recording.encoder.submit(_encode, recording, parts)


def _await_writing(recording: _Recording) -> None:
    if recording.writing:
        try:
            recording.writing.result()
        except Exception as error:
            recording.failure = error


def _encode(recording: _Recording, parts: list[_Part]) -> None:
    rows = pa.concat_tables(
        table(extents, vmas, mm, pid, status.name) for mm, pid, extents, vmas, status in parts
    ).unify_dictionaries()
    recording.extents += len(rows)
    if recording.writer:
        recording.writer.append_table(rows)
    else:
        recording.tables.append(rows)


def _finish(
    recording: _Recording,
    tree: Tree,
    options: Options,
    out: str | Path | None,
    missed: Counter[Missed],
    status: int,
    name: str,
) -> Recorded:
    _flush(recording)
    _await_writing(recording)
    if recording.failure:
        raise recording.failure
    meta = dataclasses.replace(
        live.metadata(tree, [], options, held="ptrace", mode="exit"),
        address_spaces=tuple(recording.spaces),
        pmd="known" if recording.pmd_known else "unknown",
        changed_entries=recording.changed,
    )
    if recording.writer:
        recording.writer.meta = meta
        return Recorded(status, meta, recording.extents, missed, path=Path(out or ""))
    rows = pa.concat_tables(recording.tables or [ARROW_SCHEMA.empty_table()])
    return Recorded(status, meta, recording.extents, missed, trace=Trace(frame_of(rows), meta, name))


def _shared_outside(pid: int, tid: int) -> Missed | None:
    """Whether any other process, traced or not, uses the mm."""
    others = (other for other in procfs.pids(procfs.PROC) if other != pid)
    return Missed.SHARED if any(ptrace.same_memory(tid, other) for other in others) else None
