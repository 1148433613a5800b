"""Way made for tracers inside the command: a debugger, strace, a leak checker.

A task has one tracer. Where one of the command's own is about to be, we give way: a seccomp filter hands us
ptrace(2) calls that would attach, we let the task in question go, and then the call goes ahead. seccomp(2),
seccomp_unotify(2); needs Linux 5.5 (SECCOMP_USER_NOTIF_FLAG_CONTINUE) and CAP_SYS_ADMIN.

The filter stays with the command's processes. When we are gone, calls that it asks about fail with ENOSYS.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import select
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replay.process import follow, ptrace
from replay.process.follow import Followed
from replay.procfs import files

_CALLS: Final = {
    # AUDIT_ARCH_* of include/uapi/linux/audit.h, numbers of seccomp(2) and ptrace(2)
    "x86_64": (0xC000003E, 317, 101),
    "aarch64": (0xC00000B7, 277, 117),
    "riscv64": (0xC00000F3, 277, 117),
}

_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3
_ALLOW, _USER_NOTIF = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
"""BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K."""

_NOTIF: Final = struct.Struct("=QII iIQ6Q")
"""struct seccomp_notif: id, pid, flags; struct seccomp_data: nr, arch, instruction_pointer, args."""
_RESP: Final = struct.Struct("=QqiI")
"""struct seccomp_notif_resp: id, val, error, flags."""
_NOTIF_RECV: Final = 3 << 30 | _NOTIF.size << 16 | ord("!") << 8
_NOTIF_SEND: Final = 3 << 30 | _RESP.size << 16 | ord("!") << 8 | 1
_CONTINUE: Final = 1

WAKE: Final = signal.SIGURG
"""Wakes the tracer out of waitpid(2); ignored by default."""

GIVE_WAY_SECONDS: Final = 1.0
"""How long a task may take to stop and be let go; after that the call fails, as it does under any tracer."""


def install() -> int | None:
    """Put the filter on the calling process; a file descriptor to hear of calls, None if that cannot be."""
    numbers = _CALLS.get(platform.machine())
    if numbers is None:
        return None
    arch, seccomp, traces = numbers
    asked = [
        (_EQUAL, 4 - at, 0, request)
        for at, request in enumerate((ptrace.TRACEME, ptrace.ATTACH, ptrace.SEIZE), 1)
    ]
    program = [
        (_LOAD, 0, 0, 4),  # arch
        (_EQUAL, 0, 6, arch),
        (_LOAD, 0, 0, 0),  # nr
        (_EQUAL, 0, 4, traces),
        (_LOAD, 0, 0, 16),  # the lower half of the request
        *asked,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _USER_NOTIF),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    libc.syscall.restype = ctypes.c_long
    fd = libc.syscall(
        ctypes.c_long(seccomp), ctypes.c_long(_SET_MODE_FILTER), ctypes.c_long(_NEW_LISTENER), filter_
    )
    return None if fd < 0 else int(fd)


@contextlib.contextmanager
def giving_way(listener: int | None, followed: Followed) -> Iterator[None]:
    """While the block runs, let tasks go that others want to trace. Closes `listener`.

    To be called by the tracer, which must be the main thread, as it alone handles signals; in any other one
    those calls fail, as they do under any tracer.
    """
    if listener is None:
        yield
        return
    tracer = threading.current_thread()
    is_main = tracer is threading.main_thread()
    before = signal.signal(WAKE, lambda *_: follow.interrupt_wanted(followed)) if is_main else None
    end, ended = os.pipe()
    thread = threading.Thread(
        target=_listen,
        args=(listener, end, followed, tracer.ident if is_main else None),
        name="replay-guard",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        os.close(ended)
        thread.join()
        os.close(end)
        os.close(listener)
        if is_main:
            signal.signal(WAKE, before)


def _listen(listener: int, end: int, followed: Followed, tracer: int | None) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(end, 0)
    while all(fd == listener and not happened & select.POLLHUP for fd, happened in poll.poll()):
        # a call that was interrupted meanwhile is not there any more
        with contextlib.suppress(FileNotFoundError):
            _answer(listener, followed, tracer)


def _answer(listener: int, followed: Followed, tracer: int | None) -> None:
    """Take one call and let it go ahead, when nothing is in its way any more."""
    call = bytearray(_NOTIF.size)
    fcntl.ioctl(listener, _NOTIF_RECV, call)
    number, caller, *_, request, target = _NOTIF.unpack(call)[:8]
    wanted = caller if request & 0xFFFFFFFF == ptrace.TRACEME else _as_we_number(followed, caller, target)
    if tracer and wanted in followed.process_of:
        _give_way(followed, wanted, tracer)
    fcntl.ioctl(listener, _NOTIF_SEND, _RESP.pack(number, 0, 0, _CONTINUE))


def _as_we_number(followed: Followed, caller: int, target: int) -> int:
    """Our number of the task that the caller, maybe in another PID namespace, calls `target`; 0: of none."""
    with contextlib.suppress(OSError):
        theirs = Path(f"/proc/{caller}/ns/pid").readlink()
        if theirs == Path("/proc/self/ns/pid").readlink():
            return target
        for tid in list(followed.process_of):
            numbers = files.field(files.read_file(f"/proc/{tid}/status"), "NSpid").split()
            if numbers[-1:] == [str(target)] and Path(f"/proc/{tid}/ns/pid").readlink() == theirs:
                return tid
    return 0


def _give_way(followed: Followed, tid: int, tracer: int) -> None:
    """Have the tracer let a task go.

    If that is the caller, its call is interrupted, and begun again by the kernel afterwards.
    """
    followed.wanted.add(tid)
    deadline = time.monotonic() + GIVE_WAY_SECONDS
    while tid in followed.process_of and time.monotonic() < deadline:
        # again and again: it may come just before the tracer begins to wait
        signal.pthread_kill(tracer, WAKE)
        time.sleep(0.002)
    followed.wanted.discard(tid)
