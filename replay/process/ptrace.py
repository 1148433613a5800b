# SPDX-License-Identifier: Apache-2.0
"""ptrace(2), kcmp(2) and wait statuses as functions; every failure is an `OSError`.

The tracer of a task is the thread that seized it: all calls for one task must come from that thread.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import re
import signal
from typing import Final

TRACEME: Final = 0
POKEUSER: Final = 6
CONT: Final = 7
ATTACH: Final = 16
DETACH: Final = 17
GETEVENTMSG: Final = 0x4201
GETREGSET: Final = 0x4204
SETREGSET: Final = 0x4205
SEIZE: Final = 0x4206
INTERRUPT: Final = 0x4207
LISTEN: Final = 0x4208
GET_SYSCALL_INFO: Final = 0x420E
"""Requests of include/uapi/linux/ptrace.h."""

EVENT_FORK: Final = 1
EVENT_VFORK: Final = 2
EVENT_CLONE: Final = 3
EVENT_EXEC: Final = 4
EVENT_EXIT: Final = 6
EVENT_SECCOMP: Final = 7
EVENT_STOP: Final = 128
"""Events, in bits 16 and up of a wait status."""

NEW_TASK_EVENTS: Final = (EVENT_FORK, EVENT_VFORK, EVENT_CLONE)

TREE_OPTIONS: Final = sum(1 << event for event in (*NEW_TASK_EVENTS, EVENT_EXEC, EVENT_EXIT, EVENT_SECCOMP))
"""PTRACE_O_* of a task and all that descends from it; an option's bit is its event's number."""
PROCESS_OPTIONS: Final = sum(1 << event for event in (EVENT_CLONE, EVENT_EXEC, EVENT_EXIT))
"""PTRACE_O_* of one process: CLONE for its new threads."""
EXITKILL: Final = 1 << 20
"""PTRACE_O_EXITKILL: the task ends with its tracer."""

WALL: Final = 0x40000000
WNOTHREAD: Final = 0x20000000
"""include/uapi/linux/wait.h: children of every kind; only children and tracees of this thread."""

STOP_SIGNALS: Final = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_KCMP_VM: Final = 1
_SYS_KCMP: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_libc.syscall.argtypes = (ctypes.c_long,) * 6
_libc.syscall.restype = ctypes.c_long


def kernel_version() -> tuple[int, ...]:
    """The running kernel's major and minor number."""
    return tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])


def call(request: int, tid: int, data: int = 0, address: int = 0) -> None:
    """One ptrace(2) request; raises `ProcessLookupError` for a task that is gone or does not stand still."""
    if _libc.ptrace(request, tid, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def event_message(tid: int) -> int:
    """What a stopped task's event says: of a new task its id, of an exec the former id of its thread."""
    message = ctypes.c_ulong()
    call(GETEVENTMSG, tid, ctypes.addressof(message))
    return message.value


def event(status: int) -> int:
    """The event of a stop by its wait status; 0: a signal is about to be delivered."""
    return status >> 16


def same_memory(tid: int, other: int) -> bool:
    """Whether two tasks have one mm; False where one of them is gone, or the kernel does not tell."""
    try:
        return compare_memory(tid, other) == 0
    except OSError:
        return False


@functools.cache
def _kcmp_number() -> int | None:
    return _SYS_KCMP.get(platform.machine())


def compare_memory(tid: int, other: int) -> int:
    """The order of the mm of two tasks: 0 for one and the same, -1 or 1.

    The order holds while both are there. Raises `OSError` if one is gone or the kernel does not tell.
    """
    number = _kcmp_number()
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    found = _libc.syscall(number, tid, other, _KCMP_VM, 0, 0)
    if found < 0:
        failure = ctypes.get_errno()
        raise OSError(failure, os.strerror(failure))
    return {0: 0, 1: -1}.get(found, 1)
