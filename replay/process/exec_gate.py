# SPDX-License-Identifier: Apache-2.0
"""Tasks held inside execve(2) with their old memory whole, until the tracer lets them go.

A process of our own, the gatekeeper, has the fanotify group: it lets every task through at once that the
tracer does not trace, and every program but the last that an exec opens. It does so whatever becomes of the
tracer meanwhile, even if that is stopped: no exec of the machine waits for it. If the gatekeeper dies, or the
tracer, the group is gone, and the kernel lets everything through.

The tracer waits in waitpid(2) and must hear of what the gatekeeper says. So a second process, the bell,
is traced too and does nothing: a signal to it makes it stop, and that ends the tracer's wait.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import resource
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from replay.errors import ReplayError
from replay.process import fanotify, programs, ptrace
from replay.process.programs import Next
from replay.support.parent import end_with

OLDEST: Final = (5, 7)
"""Kernel from which on the memory of a task inside execve can be read: before commit 3e74fabd39710 "exec: Fix
a deadlock in strace" a reader waits for the exec, and so for itself."""

NOT_WATCHED: Final = re.compile(r"fuse.*|nfs4?|cifs|smb3|9p|ceph|afs|coda|orangefs|autofs")
"""File systems behind which another process or machine stands. The gatekeeper would wait for it, and the
execs of this machine for the gatekeeper."""

GATEKEEPER_NICE: Final = -10

RING: Final = signal.SIGURG

MOST_FILES: Final = 1 << 20
"""Descriptors, one for each task that waits."""

RECEIVE_BYTES: Final = 1 << 16

STATUS_BYTES: Final = 4096
"""Of /proc/TID/status: more than stands before what is read of it."""

_WORD: Final = struct.Struct("=iiB")
_ANSWER: Final = struct.Struct("=i")


class NoGateError(ReplayError):
    """Execs cannot be held here; the text says why."""


class Waiting(NamedTuple):
    """A task that waits inside execve. number: of its event. began: whether its arguments are copied."""

    tid: int
    number: int
    began: bool


@dataclass
class Gate:
    """The tracer's side. bell: a process that stops when there is news; 0 when it has ended. waiting: events
    not yet answered.

    closed: nothing is held any more. partial: the beginning of a word that has not come whole.
    """

    channel: socket.socket
    bell: int
    waiting: set[int] = field(default_factory=set)
    closed: bool = False
    partial: bytes = b""


@contextlib.contextmanager
def opened() -> Iterator[Gate]:
    """Hold each task that this thread traces at the last program that an exec of it opens.

    Raises `NoGateError` where that cannot be.
    """
    if ptrace.kernel_version() < OLDEST:
        raise NoGateError("before Linux 5.7 memory cannot be read inside execve")
    ours, theirs = socket.socketpair()
    tracer = threading.get_native_id()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if not pid:
        _keep_gate(theirs, tracer)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    gate = Gate(ours, 0)
    try:
        gate.bell = _bell(ours)
        ours.setblocking(False)
        yield gate
    finally:
        close(gate)
        # whoever waits for all children may have reaped them
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if gate.bell:
                os.kill(gate.bell, signal.SIGKILL)
                while os.WIFSTOPPED(os.waitpid(gate.bell, ptrace.WALL)[1]):
                    pass


def _bell(channel: socket.socket) -> int:
    said = channel.recv(1024).decode()
    if not said.isdigit():
        raise NoGateError(said or "the process that watches execs was killed")
    bell = int(said)
    try:
        ptrace.call(ptrace.SEIZE, bell, ptrace.EXITKILL)
    except OSError as error:
        raise NoGateError(f"the process that watches execs cannot be traced ({error.strerror})") from None
    return bell


def news(gate: Gate, status: int) -> list[Waiting]:
    """Tasks that have come to the gate, when the bell has stopped or ended with `status`."""
    if not os.WIFSTOPPED(status):
        close(gate)
        # another process may get its number
        gate.bell = 0
    if gate.closed:
        return []
    with contextlib.suppress(ProcessLookupError):
        ptrace.call(ptrace.CONT, gate.bell)
    said = gate.partial
    # nothing more for now, or ever: then the bell ends next
    with contextlib.suppress(OSError):
        while part := gate.channel.recv(RECEIVE_BYTES):
            said += part
    whole = len(said) - len(said) % _WORD.size
    gate.partial = said[whole:]
    found = [Waiting(tid, number, bool(began)) for tid, number, began in _WORD.iter_unpack(said[:whole])]
    gate.waiting.update(waiting.number for waiting in found)
    return found


def let_go(gate: Gate, number: int) -> None:
    """Let a task go on with its exec."""
    if number not in gate.waiting:
        return
    gate.waiting.discard(number)
    try:
        gate.channel.setblocking(True)
        gate.channel.send(_ANSWER.pack(number))
        gate.channel.setblocking(False)
    except OSError:
        close(gate)


def close(gate: Gate) -> None:
    """Let all tasks go on, and hold none any more."""
    gate.closed = True
    gate.waiting.clear()
    gate.channel.close()


# ---------------------------------------------------------------------- the gatekeeper


def _keep_gate(channel: socket.socket, tracer: int) -> NoReturn:
    """In the child, until the tracer's side is closed."""
    try:
        _leave_all_but(channel.fileno())
        try:
            group = _group()
        except OSError as error:
            channel.send(_cause(error).encode())
            os._exit(0)
        bell = _forked_bell(group, channel)
        channel.send(str(bell).encode())
        _be_prompt()
        _serve(group, channel, b"\nTracerPid:\t%d\n" % tracer, bell)
    finally:
        os._exit(0)


def _leave_all_but(kept: int) -> None:
    """Be no part of the tracer's session, files and signals."""
    os.setsid()
    os.closerange(0, kept)
    os.closerange(kept + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with contextlib.suppress(OSError, ValueError):
        most = min(MOST_FILES, int(Path("/proc/sys/fs/nr_open").read_text()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _be_prompt() -> None:
    """Do not wait for a processor: execs wait for us, of all the machine."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, GATEKEEPER_NICE)
    # a collection would make them wait
    gc.freeze()
    gc.disable()


def _group() -> int:
    """The group, with the file systems that can be seen."""
    group = fanotify.group()
    fanotify.watch(group, b"/")
    for path in _mount_points():
        # one that is hidden below another, or of a kind that is never executed from
        with contextlib.suppress(OSError):
            fanotify.watch(group, path)
    return group


def _mount_points() -> Iterator[bytes]:
    """Where file systems are mounted that are to be watched: not where nothing can be executed."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        point, options = before.split(b" ")[4:6]
        kind = after.split(b" ")[0].decode(errors="replace")
        if b"noexec" not in options.split(b",") and not NOT_WATCHED.fullmatch(kind):
            yield re.sub(rb"\\(\d{3})", lambda octal: bytes([int(octal[1], 8)]), point)


def _cause(error: OSError) -> str:
    return {
        errno.EPERM: "fanotify needs CAP_SYS_ADMIN of the host",
        errno.ENOSYS: "this kernel has no fanotify (CONFIG_FANOTIFY), or a seccomp filter forbids it",
        errno.EINVAL: "this kernel has no fanotify permission events (CONFIG_FANOTIFY_ACCESS_PERMISSIONS)",
        errno.EMFILE: "there are as many fanotify groups as fs.fanotify.max_user_groups allows",
    }.get(error.errno or 0, f"fanotify fails: {error.strerror}")


def _forked_bell(group: int, channel: socket.socket) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        end_with(parent)
        os.close(group)
        channel.close()
        _be_prompt()
        # one that is blocked would not make it stop
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [RING])
        while True:
            signal.pause()
    finally:
        os._exit(0)


class _Seen(NamedTuple):
    """What the gatekeeper knows.

    beginning: what the execs of tasks open next. loaders: files, by device and
    inode, that were opened as ELF loaders.
    """

    beginning: dict[int, Next]
    loaders: set[tuple[int, int]]


def _serve(group: int, channel: socket.socket, traced: bytes, bell: int) -> None:
    """Answer events; those of the tracer's tasks when it says so. Returns when the tracer is gone."""
    poll = select.poll()
    poll.register(group, select.POLLIN)
    channel.setblocking(False)
    seen = _Seen({}, set())
    # what the tracer has not taken yet: we must not wait for it
    unsaid = bytearray()
    while True:
        poll.register(channel, select.POLLIN | (select.POLLOUT if unsaid else 0))
        ready = dict(poll.poll())
        if group in ready:
            # all that are not ours first
            ours = [event for event in fanotify.events(group) if not _is_foreign(group, *event, traced, seen)]
            for tid, fd in ours:
                unsaid += _held(group, tid, fd, seen)
        if ready.get(channel.fileno(), 0) & ~select.POLLOUT:
            answers = channel.recv(RECEIVE_BYTES)
            if not answers:
                return
            for (fd,) in _ANSWER.iter_unpack(answers):
                fanotify.allow(group, fd)
                os.close(fd)
        if unsaid:
            with contextlib.suppress(BlockingIOError):
                del unsaid[: channel.send(unsaid)]
                os.kill(bell, RING)


def _is_foreign(group: int, tid: int, fd: int, traced: bytes, seen: _Seen) -> bool:
    """Whether the tracer does not trace this task; then it is let go."""
    if traced in _status(tid):
        return False
    fanotify.allow(group, fd)
    _learn(group, tid, fd, seen)
    os.close(fd)
    return True


def _held(group: int, tid: int, fd: int, seen: _Seen) -> bytes:
    """What is to be said of a task of the tracer; nothing if it was let go.

    That is where its exec opens more, and where it has the memory of its parent (vfork), which stays.
    """
    is_last, began = _learn(group, tid, fd, seen)
    if is_last and not _has_memory_of_parent(tid):
        return _WORD.pack(tid, fd, began)
    fanotify.allow(group, fd)
    os.close(fd)
    return b""


def _has_memory_of_parent(tid: int) -> bool:
    _, _, parent = _status(tid).partition(b"\nPPid:\t")
    return ptrace.same_memory(tid, int(parent.partition(b"\n")[0] or 0))


def _status(tid: int) -> bytes:
    """/proc/TID/status; empty if the task is gone, or of a foreign PID namespace."""
    with contextlib.suppress(OSError):
        status = os.open(f"/proc/{tid}/status", os.O_RDONLY)
        try:
            return os.read(status, STATUS_BYTES)
        finally:
            os.close(status)
    return b""


def _learn(group: int, tid: int, fd: int, seen: _Seen) -> tuple[bool, bool]:
    """Whether a program is the last that an exec opens, and whether it is not the first.

    Of dynamic programs nothing is heard again, only of their loader. A loader that is executed by itself is
    not told from one that a program asks for.
    """
    file = _file(fd)
    before = seen.beginning.pop(tid, None)
    if file in seen.loaders:
        return True, True
    following = programs.next_of(fd)
    if following:
        seen.beginning[tid] = following
    elif before is Next.LOADER:
        seen.loaders.add(file)
    if following is Next.LOADER:
        with contextlib.suppress(OSError):
            fanotify.ignore(group, fd)
    return following is None, before is not None


def _file(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
