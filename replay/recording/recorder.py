# SPDX-License-Identifier: Apache-2.0
"""Address spaces right before their teardown: of a command and all its descendants, or of one process.

At PTRACE_EVENT_EXIT of a process's last task the page tables are what exit_mmap() will see. An exec tears
an address space down too: that is read while its task waits inside execve (see `process.exec_gate`), and kept
if the exec comes about.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from replay.capture import loops
from replay.capture.address_space import Options
from replay.errors import ProcessGoneError, ReplayError
from replay.process import command, exec_gate, follow, ptrace, rights, stop
from replay.process.command import Command
from replay.process.exec_gate import NoGateError
from replay.process.follow import AtExit, Execs, Followed, Missed
from replay.procfs import files, own_page, pagemap_scan
from replay.procfs.files import U64
from replay.procfs.source import INLINE, Tree, by_task, opened
from replay.recording import handover, snapshot
from replay.recording.handover import Done, Encoder, Large, Verdict
from replay.recording.snapshot import Snapshot
from replay.support.atomic_file import atomic_file
from replay.trace.metadata import Metadata

if TYPE_CHECKING:
    from replay.trace.frame import Trace

LINGER_SECONDS: Final = 2.0
"""How long descendants that outlive the command are waited for."""

TRACER_NICE: Final = -10


@dataclass(frozen=True)
class Recorded:
    """What became of a recording.

    status: the command's exit status, 128 + signal if it was killed, by `killed_by`. missed: address spaces
    that are not in the trace, by cause; replaced: and those that execs have torn down where no exec could be
    held, for the cause `no_execs`. trace: the rows, if they were not written to `path`.
    """

    status: int
    meta: Metadata
    extents: int
    missed: Mapping[Missed, int]
    path: Path | None = None
    trace: Trace | None = None
    killed_by: int = 0
    replaced: int = 0
    no_execs: str = ""

    @property
    def recorded(self) -> int:
        """Address spaces in the trace."""
        return len(self.meta.address_spaces)

    @property
    def execs(self) -> int:
        """Those of them that an exec has torn down."""
        return sum(space.ended_by == "exec" for space in self.meta.address_spaces)

    @property
    def changed(self) -> int:
        """Entries that changed while they were read."""
        return self.meta.changed_entries


LEFT_OUT: Final = "--no-exec leaves them out"


@dataclass
class _Recording:
    """A recording under way: where snapshots go, how many there were, and what ended it early.

    on_trial: what was read of processes inside execve, by PID; None for what the encoder has captured.
    judged: what is to be kept or dropped of it. A reading may be under way into the encoder's room when that
    is known, and so it waits for the next one. scratch: room for the words of one snapshot.
    """

    encoder: Encoder
    tree: Tree
    use_snapshots: bool
    count: int = 0
    failure: Exception | None = None
    on_trial: dict[int, tuple[Snapshot, U64] | None] = field(default_factory=dict)
    judged: list[tuple[Snapshot, U64] | Verdict] = field(default_factory=list)
    scratch: U64 = field(default_factory=lambda: np.empty(handover.SLAB_WORDS, np.uint64))


def record(
    argv: Sequence[str],
    out: str | Path | None = None,
    *,
    force: bool = False,
    use_scan: bool = True,
    execs: bool = True,
    linger_seconds: float = LINGER_SECONDS,
    progress: Callable[[int], None] | None = None,
) -> Recorded:
    """Run a command and capture each of its processes at its exit, into the trace file `out` or into memory.

    execs: also what an exec tears down, where the kernel lets it be held (see `Recorded.no_execs`).

    The command runs as without us: with our streams, group and terminal, its signals and exit status. When
    it has ended, descendants that it left are waited for, but no longer than `linger_seconds` and until
    an interrupt; then they run on unrecorded. progress: called with the number of address spaces recorded.

    Raises `ReplayError`: before the command starts if rights are missing or `out` cannot be made, with
    `status` 127 or 126 if the command cannot be started, after its end if the trace could not be written.
    """
    if out is None:
        return _in_memory(
            lambda path: record(
                argv,
                path,
                use_scan=use_scan,
                execs=execs,
                linger_seconds=linger_seconds,
                progress=progress,
            ),
            Path(argv[0]).name,
        )
    _check_rights()
    with (
        _recording(Path(out), force, Options(use_scan=use_scan)) as recording,
        command.held(argv) as started,
        command.signals_passed(started),
    ):

        def at_exit(pid: int, tid: int, meanwhile: Callable[[], None]) -> Missed | None:
            cause = _take(recording, pid, tid, meanwhile)
            if progress and not cause:
                progress(recording.count)
            return cause

        def before_exec(pid: int, tid: int, meanwhile: Callable[[], None]) -> Missed | None:
            return _take(recording, pid, tid, meanwhile, on_trial=True)

        def decide(pid: int, torn_down: bool) -> None:
            _judge(recording, pid, torn_down)
            if progress and torn_down:
                progress(recording.count)

        with contextlib.ExitStack() as stack:
            no_execs, held = "" if execs else LEFT_OUT, None
            if execs:
                try:
                    held = Execs(stack.enter_context(exec_gate.opened()), before_exec, decide)
                except NoGateError as error:
                    no_execs = str(error)
            followed = follow_command(started, at_exit, execs=held, linger_seconds=linger_seconds)
            if held and followed.replaced:
                no_execs = "the process that holds them was killed"
        done = _finish(recording)
    status = os.waitstatus_to_exitcode(followed.root_status or 0)
    return Recorded(
        status if status >= 0 else 128 - status,
        done.meta,
        done.extents,
        followed.missed,
        path=Path(out),
        killed_by=max(-status, 0),
        replaced=followed.replaced,
        no_execs=no_execs,
    )


def follow_command(
    started: Command,
    at_exit: AtExit,
    after_exit: Callable[[int, int], None] | None = None,
    *,
    execs: Execs | None = None,
    linger_seconds: float = LINGER_SECONDS,
) -> Followed:
    """Let a held command go and follow it and its descendants until they have ended.

    at_exit: called when a process's last task stands at its exit; after_exit: with (pid, tid), when that task
    has been let go. execs: what is done about execs. Raises `ReplayError` if the command cannot be traced or
    started.
    """
    followed = Followed(started.pid, at_exit, execs=execs)
    followed.on_signal = lambda number: started.seen.update([number])
    if after_exit:
        followed.after_exit = after_exit
    try:
        _seize(followed, started.pid)
        with _prompt():
            command.let_go(started)
            _run(followed, started, linger_seconds)
    finally:
        started.ended = True
        follow.release(followed)
    if not followed.execed:
        command.check_started(started)
    return followed


@contextlib.contextmanager
def _prompt() -> Iterator[None]:
    """While the block runs, this thread does not wait for a processor: what it traces waits for it."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(before, TRACER_NICE))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


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
    if out is None:
        return _in_memory(lambda path: capture_at_exit(pid, path, use_scan=use_scan), str(pid))
    _check_rights()
    _check_target(pid)
    if threading.current_thread() is threading.main_thread():
        # polars installs a SIGINT handler with SA_RESTART, with which waitpid() would never be interrupted
        signal.siginterrupt(signal.SIGINT, True)
    with (
        stop.interruptible(),
        _recording(Path(out), force, Options(use_scan=use_scan)) as recording,
    ):
        followed = Followed(
            pid,
            lambda pid, tid, meanwhile: _shared_outside(pid, tid) or _take(recording, pid, tid, meanwhile),
            whole_tree=False,
            execed=True,
        )
        try:
            _seize_all(followed, pid)
            while pid in followed.processes:
                follow.handle_next(followed, block=True)
        finally:
            follow.release(followed)
        if not recording.count and not recording.failure:
            cause = next(iter(followed.missed), Missed.KILLED)
            raise ProcessGoneError(f"process {pid} ended, but {cause}: nothing was captured")
        done = _finish(recording)
    return Recorded(0, done.meta, done.extents, followed.missed, path=Path(out))


def _in_memory(make: Callable[[Path], Recorded], name: str) -> Recorded:
    """What `make` writes to a file, read back."""
    from replay.trace.file import read

    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        path = Path(folder) / f"{name}.parquet"
        made = make(path)
        return dataclasses.replace(made, path=None, trace=read(path))


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
            number, followed.root_stopped = followed.root_stopped, 0
            if started.stopped_by or command.in_foreground():
                command.stop_with(started, started.stopped_by or number)
        elif time.monotonic() > deadline or started.interrupted:
            return
        else:
            time.sleep(follow.POLL_SECONDS)


def _check_target(pid: int) -> None:
    if pid == os.getpid():
        raise ReplayError(f"process {pid} is replay itself: capture another process")
    # its first thread may have ended before the others
    with contextlib.suppress(ProcessGoneError):
        status = files.read_status(files.PROC, pid, os.sysconf("SC_PAGE_SIZE"))
        if status.tracer:
            raise ReplayError(
                f"process {pid} is traced by process {status.tracer} (a debugger or strace): detach that"
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
    while new := [tid for tid in files.threads(files.PROC, pid) if tid not in tried]:
        for tid in new:
            tried.add(tid)
            with contextlib.suppress(ProcessLookupError):
                if not follow.is_dead(tid):
                    _seize(followed, tid)
    if not followed.processes:
        raise ProcessGoneError(f"no process {pid}: it has ended, or never was")


def _check_rights() -> None:
    """Raise unless page frames can be seen and a traced set-user-ID program keeps its rights."""
    files.require_procfs()
    if "CAP_SYS_PTRACE" in rights.missing():
        raise ReplayError(
            "CAP_SYS_PTRACE is missing: run replay as root, in a container with --cap-add SYS_PTRACE. "
            "Without it set-user-ID programs would lose their rights while they are traced"
        )
    with own_page.own_frame() as frame:
        if not frame:
            raise ReplayError(
                "page frames read as 0: CAP_SYS_ADMIN is missing: run replay as root of the host"
            )
    own_page.check(files.PROC)


@contextlib.contextmanager
def _recording(out: Path, force: bool, options: Options) -> Iterator[_Recording]:
    """A recording into `out`, a file that appears when the block ends without an error."""
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(atomic_file(out, force=force))
        tree = stack.enter_context(opened(files.PROC, os.getpid()))
        loops.prepare(snapshot)
        # threads would not outlive the encoder's fork
        tree = tree._replace(pool=INLINE, writer=INLINE)
        work = functools.partial(_write_trace, target, tree, options)
        encoder = stack.enter_context(handover.encoding(target, work))
        yield _Recording(encoder, tree, options.use_scan and pagemap_scan.supported())


def _write_trace(*arguments: Any) -> None:
    """In the encoder's process: what it needs is loaded there, while the command starts."""
    from replay.recording import encoder

    encoder.write_trace(*arguments)


def _take(
    recording: _Recording, pid: int, tid: int, meanwhile: Callable[[], None], on_trial: bool = False
) -> Missed | None:
    """Read the address space of a process; returns why it was missed.

    Its last task stands at its exit, or, if it is `on_trial`, waits inside execve.
    """
    if recording.failure:
        return Missed.UNREADABLE
    try:
        _settle(recording)
        with by_task(recording.tree, pid, tid) as tree:
            read = _read_on_trial if on_trial else _read
            taken = read(recording, tree, pid, tid, meanwhile)
    except (ProcessGoneError, ProcessLookupError):
        return Missed.KILLED
    except Exception as error:
        # told when the command has ended: whatever it is, the command goes on as if nothing had happened
        recording.failure = error
        return Missed.UNREADABLE
    recording.count += taken and not on_trial
    return None if taken else Missed.KILLED


def _read(recording: _Recording, tree: Tree, pid: int, tid: int, meanwhile: Callable[[], None]) -> bool:
    """Hand the address space to the encoder; False if the process ended meanwhile."""
    encoder = recording.encoder
    while recording.use_snapshots:
        room = handover.room(encoder)
        taken = snapshot.read(tree, pid, room, meanwhile)
        if taken:
            # SIGKILL ends even this stop before v5.17; what was read then may be torn
            ptrace.event_message(tid)
            handover.add(encoder, taken)
            return True
        if not handover.flush(encoder):
            break
    return handover.capture_large(encoder, Large(str(tree.root), pid))


def _read_on_trial(
    recording: _Recording, tree: Tree, pid: int, tid: int, meanwhile: Callable[[], None]
) -> bool:
    """Read the address space of a process inside execve; False if it ended meanwhile."""
    if recording.use_snapshots:
        taken = snapshot.read(tree, pid, recording.scratch, meanwhile, "exec")
        if taken:
            recording.on_trial[pid] = taken, recording.scratch[: taken.words].copy()
            return True
    if not handover.capture_large(recording.encoder, Large(str(tree.root), pid, on_trial=True)):
        return False
    recording.on_trial[pid] = None
    return True


def _judge(recording: _Recording, pid: int, torn_down: bool) -> None:
    """Keep what was read on trial of a process, or drop it."""
    taken = recording.on_trial.pop(pid)
    if taken is None:
        recording.judged.append(Verdict(pid, torn_down))
    elif torn_down:
        recording.judged.append(taken)
    recording.count += torn_down


def _settle(recording: _Recording) -> None:
    """Tell the encoder what was judged; no reading may be under way."""
    while recording.judged:
        verdict = recording.judged.pop(0)
        if isinstance(verdict, Verdict):
            handover.judge(recording.encoder, verdict)
        else:
            handover.add_copy(recording.encoder, *verdict)


def _finish(recording: _Recording) -> Done:
    """Wait until all is written."""
    if not recording.failure:
        _settle(recording)
        return handover.finish(recording.encoder)
    raise recording.failure


def _shared_outside(pid: int, tid: int) -> Missed | None:
    """Whether any other process, traced or not, uses the mm."""
    others = (other for other in files.pids(files.PROC) if other != pid)
    return Missed.SHARED if any(ptrace.same_memory(tid, other) for other in others) else None
