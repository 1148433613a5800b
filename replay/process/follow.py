# SPDX-License-Identifier: Apache-2.0
"""Processes followed by ptrace from their birth to their exit, undisturbed otherwise.

Every task of a process is traced, as any of them may be the last. Nothing stops at system calls: a task
stops at its birth, at exec, at signals (which are delivered unchanged) and at PTRACE_EVENT_EXIT, which
do_exit() (kernel/exit.c) raises before exit_mm(), with the page tables whole. There a task is let go for
good, so that its parent need not wait for the tracer to see the zombie.

An exec tears an address space down too. With a gate (see `exec_gate`) it is read while the task waits inside
execve, and PTRACE_EVENT_EXEC tells whether the exec came about. Other threads run on until the exec ends
them; then it is read when the last of them stands at its exit, where the task waits in de_thread()
(fs/exec.c).
"""

from __future__ import annotations

import contextlib
import enum
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from replay.process import arguments, exec_gate, nested_tracers, ptrace
from replay.process.exec_gate import Gate, Waiting
from replay.procfs import files

RELEASE_SECONDS: Final = 2.0
"""How long the release of running tasks may take: only uninterruptible sleep takes long."""

POLL_SECONDS: Final = 0.002

MOST_PASSED: Final = 16
"""How many events are handled before a task that stands at its exit."""

PATIENCE_SECONDS: Final = 1.0
"""How long a killed task may take to get past its exit stop."""

GIVE_WAY_SECONDS: Final = 1.0
"""How long a task that another tracer wants may take to stop; after that the other one's call fails, as it
does under any tracer."""

AUXV_BYTES: Final = 4096
"""More than an auxiliary vector has."""

SIGKILL_PENDING: Final = 1 << 8
"""SIGKILL in SigPnd of /proc/TID/status."""


class Missed(enum.StrEnum):
    """Why an address space is not in the trace."""

    SHARED = "its memory lives on in another process"
    KILLED = "it was killed before it could be read"
    TRACED = "the command itself traces it"
    RUNNING = "it still ran when the command had ended"
    UNREADABLE = "it could not be read"
    TOGETHER = "torn down by exec while another process that shared it was about to leave it"
    UNWATCHED = (
        "torn down by exec of a program that is not on a watched file system (memfd, FUSE, a new mount)"
    )


ELSEWHERE: Final = 0


class Reading(enum.Enum):
    """What is known of an address space that an exec is about to tear down."""

    DONE = enum.auto()
    SHARED = enum.auto()
    """It is not torn down: another process has it too."""
    LATER = enum.auto()
    """It is read when the other threads have come to their exit."""


@dataclass
class Exec:
    """An exec under way. reading: of the address space, or why there is none.

    began: whether its arguments had been copied. memory: by which the address space is told from another.
    """

    reading: Reading | Missed
    began: bool
    memory: bytes


@dataclass
class Process:
    """A process: its tasks that are traced, and those let go at their exit (in /proc still, perhaps).

    done: its last task was seen at its exit. borrows: it has the mm of its parent (vfork), until it execs.
    memory: a number that processes with one mm have in common, as far as they have been seen to leave it;
    `ELSEWHERE` if somebody has the mm whom we do not follow, or if what becomes of it is known already.
    execs: those that tasks of it were let go into, by task: of threads that exec, one ends the others.
    """

    pid: int
    tasks: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    done: bool = False
    borrows: bool = False
    memory: int = ELSEWHERE
    execs: dict[int, Exec] = field(default_factory=dict)


AtExit = Callable[[int, int, Callable[[], None]], Missed | None]
"""Called with the ids of process and task, and with what to call from time to time meanwhile.

Says why the address space was missed, if it was.
"""


@dataclass
class Execs:
    """What is done about execs.

    gate: holds the tasks. read: as `AtExit`, called with a task inside execve; the reading is one on trial.
    decide: called with a process read so, and whether its address space was torn down.
    """

    gate: Gate
    read: AtExit
    decide: Callable[[int, bool], None]


@dataclass
class Followed:
    """All processes followed. root: the first; its children are followed too if `whole_tree`.

    at_exit: called when the last task of a process stands at its exit. execs: None leaves them out.
    """

    root: int
    at_exit: AtExit
    whole_tree: bool = True
    processes: dict[int, Process] = field(default_factory=dict)
    process_of: dict[int, int] = field(default_factory=dict)
    missed: Counter[Missed] = field(default_factory=Counter)
    root_status: int | None = None
    root_stopped: int = 0
    """The signal of a group stop of the root that nothing has been done about."""
    standing: deque[int | Waiting] = field(default_factory=deque)
    """Tasks that stand at their exit or inside execve, first come first; `passed`: events handled before the
    first of them."""
    passed: int = 0
    attaching: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Tasks that stand at a call to attach -> the task that they want, and until when they wait for it."""
    memories: int = 0
    """Numbers given to memories."""
    given_up: set[int] = field(default_factory=set)
    """Tasks let go to other tracers: their memory lives on."""
    execed: bool = False
    """The root has become the command."""
    execs: Execs | None = None
    replaced: int = 0
    """Address spaces that execs have torn down while there was no gate."""
    on_signal: Callable[[int], None] = lambda number: None
    """Called with each signal that is delivered to the root."""
    after_exit: Callable[[int, int], None] = lambda pid, tid: None
    """Called with the ids that `at_exit` was called with, and missed nothing of, when the task was let go."""


def seize(followed: Followed, tid: int) -> None:
    """Begin to follow a task of the root; raises `OSError`."""
    options = ptrace.TREE_OPTIONS if followed.whole_tree else ptrace.PROCESS_OPTIONS
    ptrace.call(ptrace.SEIZE, tid, options)
    _learn(followed, tid)


def handle_next(followed: Followed, block: bool) -> bool:
    """Handle one event, waited for if `block`; False if there is none, or nothing is left to wait for.

    Exits and execs come last: reading them takes a thousand times as long as anything else that tasks wait
    for.
    """
    if followed.attaching:
        block = False
        _let_attach(followed)
    if followed.passed < MOST_PASSED and _handle_event(followed, block and not followed.standing):
        followed.passed += bool(followed.standing)
        return True
    if not followed.standing:
        return False
    followed.passed = 0
    next_one = followed.standing.popleft()
    # it may have been killed there
    with contextlib.suppress(ProcessLookupError):
        if isinstance(next_one, Waiting):
            _execing(followed, next_one)
        elif pid := followed.process_of.get(next_one):
            _exiting(followed, pid, next_one)
    return True


def handle_others(followed: Followed) -> None:
    """Handle what has happened, but for exits; for who handles one, from time to time."""
    for _ in range(MOST_PASSED):
        if not _handle_event(followed, block=False):
            return


def _handle_event(followed: Followed, block: bool) -> bool:
    flags = ptrace.WALL | ptrace.WNOTHREAD | (0 if block else os.WNOHANG)
    try:
        tid, status = os.waitpid(-1, flags)
    except ChildProcessError:
        return False
    if not tid:
        return False
    if followed.execs and tid == followed.execs.gate.bell:
        followed.standing += exec_gate.news(followed.execs.gate, status)
        return True
    if not os.WIFSTOPPED(status):
        _ended(followed, tid, status)
        return True
    # a task that is killed meanwhile does not stand still any more, and reports its exit next
    with contextlib.suppress(ProcessLookupError):
        _stopped(followed, tid, status)
    return True


def _stopped(followed: Followed, tid: int, status: int) -> None:
    pid = _learn(followed, tid)
    number, event = os.WSTOPSIG(status), ptrace.event(status)
    if event != ptrace.EVENT_EXEC:
        _failed_exec(followed, pid, tid)
    if event == ptrace.EVENT_EXIT:
        followed.standing.append(tid)
    elif not followed.whole_tree and pid != followed.root:
        _forget(followed, tid)
        ptrace.call(ptrace.DETACH, tid)
    elif event == ptrace.EVENT_STOP and _is_wanted(followed, tid):
        _give_up(followed, pid, tid)
    elif event == ptrace.EVENT_STOP and number in ptrace.STOP_SIGNALS:
        if pid == followed.root:
            followed.root_stopped = number
        ptrace.call(ptrace.LISTEN, tid)
    elif event == ptrace.EVENT_SECCOMP:
        _attaches(followed, pid, tid)
    elif event:
        if event in ptrace.NEW_TASK_EVENTS:
            _learn_new(followed, ptrace.event_message(tid))
        elif event == ptrace.EVENT_EXEC:
            _execed(followed, pid, ptrace.event_message(tid))
        _resume(followed, pid, tid)
    else:
        if pid == followed.root:
            followed.on_signal(number)
        _resume(followed, pid, tid, number)


def _resume(followed: Followed, pid: int, tid: int, signal: int = 0) -> None:
    """Let a task run on; to another tracer, if one wants it: a stop takes the request to stop back."""
    if _is_wanted(followed, tid):
        _give_up(followed, pid, tid, signal)
    else:
        ptrace.call(ptrace.CONT, tid, signal)


def _attaches(followed: Followed, pid: int, tid: int) -> None:
    """A task stands at a call that makes a tracer: give way, then let the call go ahead."""
    asked = nested_tracers.asked(tid)
    if isinstance(asked, nested_tracers.Clone):
        nested_tracers.keep_traced(tid, asked)
        _resume(followed, pid, tid)
    elif asked is None:
        nested_tracers.refuse(tid)
        _resume(followed, pid, tid)
    elif asked.target is None:
        _give_up(followed, pid, tid)
    else:
        wanted = nested_tracers.as_we_number(tid, asked.target, list(followed.process_of))
        followed.attaching[tid] = wanted, time.monotonic() + GIVE_WAY_SECONDS
        if wanted in followed.process_of and wanted != tid:
            with contextlib.suppress(OSError):
                ptrace.call(ptrace.INTERRUPT, wanted)
        else:
            _let_attach(followed)


def _is_wanted(followed: Followed, tid: int) -> bool:
    """Whether another tracer waits for a task to be let go."""
    return any(wanted == tid for wanted, _ in followed.attaching.values())


def _let_attach(followed: Followed) -> None:
    """Let calls to attach go ahead that nothing is in the way of any more, or that waited long enough."""
    now = time.monotonic()
    for tid, (wanted, until) in list(followed.attaching.items()):
        if wanted not in followed.process_of or wanted == tid or now > until:
            del followed.attaching[tid]
            with contextlib.suppress(ProcessLookupError):
                ptrace.call(ptrace.CONT, tid)


def _give_up(followed: Followed, pid: int, tid: int, signal: int = 0) -> None:
    """Let a task go to another tracer; its process cannot be caught any more."""
    process = followed.processes[pid]
    if not process.done:
        _say_no_more(followed, process)
        process.done = True
        followed.missed[Missed.TRACED] += 1
    followed.given_up.add(tid)
    ptrace.call(ptrace.DETACH, tid, signal)
    _forget(followed, tid)
    _let_attach(followed)


def _learn(followed: Followed, tid: int) -> int:
    """Note a task, at its first sight; returns its process."""
    pid = followed.process_of.get(tid)
    if pid is None:
        status = _status(tid)
        pid = int(files.field(status, "Tgid") or tid)
        followed.process_of[tid] = pid
        process = followed.processes.get(pid)
        if process is None:
            # it has not run yet
            parent = int(files.field(status, "PPid") or 0)
            borrows = ptrace.same_memory(tid, parent)
            memory = _memory_number(followed, tid, parent, borrows)
            process = followed.processes[pid] = Process(pid, borrows=borrows, memory=memory)
        process.tasks.add(tid)
        # the number may have been that of a task before
        process.gone.discard(tid)
    return pid


def _memory_number(followed: Followed, tid: int, parent: int, borrows: bool) -> int:
    """The number of a new process's memory: that of another process, or one of its own."""
    if borrows:
        lender = followed.processes.get(parent)
        return lender.memory if lender else ELSEWHERE
    # CLONE_PARENT: the new process has another parent than the one that it shares memory with
    for other in followed.processes.values():
        if any(ptrace.same_memory(tid, task) for task in other.tasks):
            return other.memory
    return _new_memory(followed)


def _new_memory(followed: Followed) -> int:
    followed.memories += 1
    return followed.memories


def _sharers(followed: Followed, process: Process) -> list[Process]:
    """The other processes that have not been seen to leave the memory of a process."""
    if process.memory == ELSEWHERE:
        return []
    return [
        other
        for other in followed.processes.values()
        if other is not process and not other.done and other.memory == process.memory
    ]


def _say_no_more(followed: Followed, process: Process) -> None:
    """What becomes of a memory is known, or cannot be: those who still seem to have it are not asked."""
    for sharer in _sharers(followed, process):
        sharer.memory = ELSEWHERE


def _learn_new(followed: Followed, tid: int) -> None:
    """Note a task at its birth: from then on it may share memory. It may have come and gone by now."""
    if tid not in followed.process_of and _is_traced(tid):
        _learn(followed, tid)


def _forget(followed: Followed, tid: int) -> Process | None:
    """Strike a task off; returns its process if that was known."""
    followed.attaching.pop(tid, None)
    process = followed.processes.get(followed.process_of.pop(tid, -1))
    if process:
        _failed_exec(followed, process.pid, tid)
        process.tasks.discard(tid)
        process.gone.add(tid)
        if not process.tasks:
            del followed.processes[process.pid]
    return process


def _execing(followed: Followed, waiting: Waiting) -> None:
    """A task waits inside execve: read what the exec is about to tear down, then let it go on."""
    assert followed.execs
    gate, tid = followed.execs.gate, waiting.tid
    pid = followed.process_of.get(tid)
    try:
        if pid is None or gate.closed or not (followed.execed or pid != followed.root):
            return
        process = followed.processes[pid]
        _failed_exec(followed, pid, tid)
        if not process.done:
            reading = _read_before_exec(followed, process, waiting)
            process.execs[tid] = Exec(reading, waiting.began, _memory(tid))
            # it stops if the exec fails; PTRACE_EVENT_EXEC takes the request back
            ptrace.call(ptrace.INTERRUPT, tid)
    finally:
        exec_gate.let_go(gate, waiting.number)


def _read_before_exec(followed: Followed, process: Process, waiting: Waiting) -> Reading | Missed:
    assert followed.execs
    pid, tid = process.pid, waiting.tid
    if _is_shared(followed, process, tid):
        return Reading.SHARED
    if _others_run(followed, process, tid):
        return Reading.LATER
    return _read_for_exec(followed, pid, tid, waiting.began)


def _read_for_exec(followed: Followed, pid: int, tid: int, began: bool) -> Reading | Missed:
    assert followed.execs
    if not began:
        arguments.touch(tid)
    cause = followed.execs.read(pid, tid, lambda: handle_others(followed))
    return cause or Reading.DONE


def _others_run(followed: Followed, process: Process, tid: int) -> bool:
    """Whether other tasks of a process may change its memory: none of them stands at its exit."""
    others = set(files.threads(files.PROC, process.pid)) - {tid} - process.gone - set(_exits(followed))
    return any(_will_exit(other) for other in others)


def _exits(followed: Followed) -> list[int]:
    """Tasks that stand at their exit."""
    return [one for one in followed.standing if not isinstance(one, Waiting)]


def _failed_exec(followed: Followed, pid: int, tid: int) -> None:
    """Anything but PTRACE_EVENT_EXEC happened to a task: an exec that it was let go into has failed.

    One that fails past the point of no return kills the process, with other memory than before.
    """
    process = followed.processes.get(pid)
    if process and (found := process.execs.pop(tid, None)):
        _decide(followed, pid, found, torn_down=_memory(tid) not in (found.memory, b""))


def _decide(followed: Followed, pid: int, found: Exec, *, torn_down: bool) -> None:
    """An exec has come about, or failed."""
    if found.reading is Reading.DONE and followed.execs:
        followed.execs.decide(pid, torn_down)


def _execed(followed: Followed, pid: int, former: int) -> None:
    """After an exec the process has one task, which has taken the process's id (fs/exec.c, de_thread())."""
    process = followed.processes[pid]
    if followed.execed or pid != followed.root:
        _count_exec(followed, process, former)
    process.borrows, process.memory = False, _new_memory(followed)
    for tid in process.tasks:
        followed.process_of.pop(tid, None)
    followed.process_of.pop(former, None)
    followed.process_of[pid] = pid
    process.tasks, process.gone = {pid}, set()
    # the first task may have stood at its exit, under the number that is another's now
    followed.standing = deque(one for one in followed.standing if one != pid)
    followed.execed |= pid == followed.root


def _count_exec(followed: Followed, process: Process, former: int) -> None:
    """Keep what was read before an exec, or note why there is nothing."""
    found = process.execs.pop(former, None)
    for tid in list(process.execs):
        _failed_exec(followed, process.pid, tid)
    if found:
        _decide(followed, process.pid, found, torn_down=True)
        if found.reading is Reading.LATER:
            # the other threads were killed at their exit, where it would have been read
            followed.missed[Missed.KILLED] += 1
        elif isinstance(found.reading, Missed):
            followed.missed[found.reading] += 1
        elif found.reading is Reading.SHARED and _is_last_sharer(followed, process):
            followed.missed[Missed.TOGETHER] += 1
        if found.reading is not Reading.SHARED:
            _say_no_more(followed, process)
    elif not process.done and _is_last_sharer(followed, process):
        if not followed.execs or followed.execs.gate.closed:
            followed.replaced += 1
        else:
            followed.missed[Missed.TOGETHER if process.borrows else Missed.UNWATCHED] += 1


def _is_last_sharer(followed: Followed, process: Process) -> bool:
    """Whether all others who shared its memory were seen to leave it, so that its exec has torn that down.

    Those who left it at the same moment took it for shared, and did not read it.
    """
    return process.memory != ELSEWHERE and not _sharers(followed, process)


def _exiting(followed: Followed, pid: int, tid: int) -> None:
    """A task stands at its exit: hand over the process if it is the last, then let the task go."""
    process = followed.processes[pid]
    handed_over = False
    started = followed.execed or pid != followed.root
    for execing, found in list(process.execs.items()):
        if found.reading is Reading.LATER and execing != tid and _is_last(process, tid, execing):
            found.reading = _read_for_exec(followed, pid, execing, found.began)
    if started and not process.done and _is_last(process, tid):
        process.done = True
        if _is_shared(followed, process, tid):
            followed.missed[Missed.SHARED] += 1
        elif cause := followed.at_exit(pid, tid, lambda: handle_others(followed)):
            followed.missed[cause] += 1
            _say_no_more(followed, process)
        else:
            handed_over = True
            _say_no_more(followed, process)
    _forget(followed, tid)
    ptrace.call(ptrace.DETACH, tid)
    if handed_over:
        followed.after_exit(pid, tid)


def _is_last(process: Process, tid: int, but: int = 0) -> bool:
    """Whether no other task of the process, `but` one, is going to stop at its exit."""
    others = set(files.threads(files.PROC, process.pid)) - {tid, but} - process.gone
    return not any(_will_exit(other) for other in others)


def _will_exit(tid: int) -> bool:
    """Whether a task is going to stop at its exit.

    One that stood there, not noticed by us yet, when another task called exit_group(2) does not: the kernel
    woke it with SIGKILL (kernel/signal.c, zap_other_threads()), and it is past that stop in a moment.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _is_traced(tid):
        status = _status(tid)
        pending = int(files.field(status, "SigPnd") or "0", 16)
        if files.field(status, "State")[:1] == "t" or not pending & SIGKILL_PENDING:
            return True
        if files.flags(files.PROC / str(tid)) & files.PF_EXITING:
            return False
        if time.monotonic() > deadline:
            return True
        time.sleep(POLL_SECONDS / 20)
    return False


def _is_traced(tid: int) -> bool:
    status = _status(tid)
    return files.field(status, "TracerPid") == str(threading.get_native_id()) and not _says_dead(status)


def is_dead(tid: int) -> bool:
    """Whether a task is gone, or waits to be reaped."""
    return _says_dead(_status(tid))


def _says_dead(status: str) -> bool:
    return (files.field(status, "State") or "X")[0] in "ZX"


def _is_shared(followed: Followed, process: Process, tid: int) -> bool:
    """Whether another process that has not come to its exit uses the same mm (vfork, CLONE_VM)."""
    others = (other for other in followed.processes.values() if other.pid != process.pid and not other.done)
    tasks = {task for other in others for task in other.tasks} | followed.given_up
    return any(ptrace.same_memory(tid, task) for task in tasks)


def _memory(tid: int) -> bytes:
    """The auxiliary vector of a task, whose addresses are those of one memory; zeros before there is one."""
    try:
        auxv = os.open(f"/proc/{tid}/auxv", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(auxv, AUXV_BYTES)
    except OSError:
        return b""
    finally:
        os.close(auxv)


def _has_memory_of_parent(tid: int) -> bool:
    """Whether a task still has the mm of its parent, whom we may not follow."""
    return ptrace.same_memory(tid, int(files.field(_status(tid), "PPid") or 0))


def _ended(followed: Followed, tid: int, status: int) -> None:
    """A task has ended; one that was not let go at its exit was killed past it."""
    process = _forget(followed, tid)
    started = followed.execed or tid != followed.root
    if process and not process.tasks and not process.done and started:
        followed.missed[Missed.KILLED] += 1
    if tid == followed.root:
        followed.root_status = status


def _status(tid: int) -> str:
    """/proc/TID/status; empty if the task is gone."""
    try:
        return files.read_file(f"/proc/{tid}/status")
    except OSError:
        return ""


def release(followed: Followed) -> None:
    """Let all tasks go, wherever they are, as they are: stopped ones stay stopped."""
    deadline = time.monotonic() + RELEASE_SECONDS
    if followed.execs:
        exec_gate.close(followed.execs.gate)
    exits, followed.attaching = _exits(followed), {}
    followed.standing.clear()
    for tid in exits:
        with contextlib.suppress(ProcessLookupError):
            _let_go(followed, tid, 0)
    asked: set[int] = set()
    while followed.process_of and time.monotonic() < deadline:
        for tid in followed.process_of.keys() - asked:
            asked.add(tid)
            with contextlib.suppress(OSError):
                ptrace.call(ptrace.INTERRUPT, tid)
        if not _release_next(followed):
            time.sleep(POLL_SECONDS)


def _release_next(followed: Followed) -> bool:
    try:
        tid, status = os.waitpid(-1, ptrace.WALL | ptrace.WNOTHREAD | os.WNOHANG)
    except ChildProcessError:
        followed.process_of.clear()
        return False
    if not tid:
        return False
    if not os.WIFSTOPPED(status):
        _ended(followed, tid, status)
        return True
    with contextlib.suppress(ProcessLookupError):
        _learn(followed, tid)
        if ptrace.event(status) in ptrace.NEW_TASK_EVENTS:
            _learn_new(followed, ptrace.event_message(tid))
        _let_go(followed, tid, 0 if ptrace.event(status) else os.WSTOPSIG(status))
    return True


def _let_go(followed: Followed, tid: int, signal: int) -> None:
    process = _forget(followed, tid)
    if process and not process.tasks and not process.done:
        followed.missed[Missed.RUNNING] += 1
    ptrace.call(ptrace.DETACH, tid, signal)
