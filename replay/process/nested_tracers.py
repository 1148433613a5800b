# SPDX-License-Identifier: Apache-2.0
"""Way made for tracers inside the command: a debugger, strace, a leak checker.

A task has one tracer. Where one of the command's own is about to attach, we give way: a seccomp filter stops
the caller of ptrace(2) at the call (SECCOMP_RET_TRACE, PTRACE_EVENT_SECCOMP), we let the task in question go,
and then the call goes ahead. The filter has no listener, of which a task can have only one: the command may
install its own. seccomp(2), ptrace(2); needs Linux 5.3 (PTRACE_GET_SYSCALL_INFO) and CAP_SYS_ADMIN.

Only what we trace stops so. A leak checker attaches from a task that it makes with CLONE_UNTRACED: the filter
stops clone(2) with that flag too, which we take away.

The filter stays with the command's processes. In a process that we do not trace, because we have given way
or the recording is over, the calls that it stops fail with ENOSYS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import platform
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from replay.process import ptrace
from replay.procfs import files

_CALLS: Final = {
    # AUDIT_ARCH_* of include/uapi/linux/audit.h, numbers of seccomp(2), ptrace(2) and clone(2)
    "x86_64": (0xC000003E, 317, 101, 56),
    "aarch64": (0xC00000B7, 277, 117, 220),
    "riscv64": (0xC00000F3, 277, 117, 220),
}

_SET_MODE_FILTER: Final = 1
_ALLOW, _TRACE = 0x7FFF0000, 0x7FF00000
_LOAD, _EQUAL, _HAS, _RETURN = 0x20, 0x15, 0x45, 0x06
"""BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_JMP | BPF_JSET | BPF_K, BPF_RET | BPF_K."""

CLONE_UNTRACED: Final = 0x00800000
"""include/uapi/linux/sched.h."""

OLDEST: Final = (5, 3)
"""Kernel from which on there is PTRACE_GET_SYSCALL_INFO."""

MARK: Final = 0x7265
"""SECCOMP_RET_DATA of our filter, by which its stops are told from those of the command's own filters."""

_INFO: Final = struct.Struct("=B3xI2Q 7Q I4x")
"""struct ptrace_syscall_info of a seccomp stop: op, arch, two pointers, nr and args, ret_data."""

_RDI, _ORIG_RAX = 14 * 8, 15 * 8
"""Of struct user_regs_struct, x86."""
_NT_PRSTATUS, _NT_ARM_SYSTEM_CALL = 1, 0x404
"""include/uapi/linux/elf.h."""


class Attach(NamedTuple):
    """A call that would attach. target: as the caller numbers tasks; None: the caller itself, by TRACEME."""

    target: int | None


class Clone(NamedTuple):
    """A call that makes a task that is not traced."""

    flags: int


def install() -> bool:
    """Put the filter on the calling process; False if that cannot be."""
    numbers = _CALLS.get(platform.machine())
    if numbers is None or ptrace.kernel_version() < OLDEST:
        return False
    arch, seccomp, traces, clones = numbers
    program = [
        (_LOAD, 0, 0, 4),  # arch
        (_EQUAL, 0, 9, arch),
        (_LOAD, 0, 0, 0),  # nr
        (_EQUAL, 3, 0, traces),
        (_EQUAL, 0, 6, clones),
        (_LOAD, 0, 0, 16),  # the lower half of the first argument: flags
        (_HAS, 5, 4, CLONE_UNTRACED),
        (_LOAD, 0, 0, 16),  # the request
        (_EQUAL, 3, 0, ptrace.TRACEME),
        (_EQUAL, 2, 0, ptrace.ATTACH),
        (_EQUAL, 1, 0, ptrace.SEIZE),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _TRACE | MARK),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    libc.syscall.restype = ctypes.c_long
    return bool(
        libc.syscall(ctypes.c_long(seccomp), ctypes.c_long(_SET_MODE_FILTER), ctypes.c_long(0), filter_) == 0
    )


def asked(tid: int) -> Attach | Clone | None:
    """What a task that stands at a seccomp stop asks for; None if a filter of the command stopped it."""
    if ptrace.event_message(tid) != MARK:
        return None
    info = ctypes.create_string_buffer(_INFO.size)
    ptrace.call(ptrace.GET_SYSCALL_INFO, tid, ctypes.addressof(info), _INFO.size)
    number, first, second = _INFO.unpack(info.raw)[4:7]
    _, _, traces, clones = _CALLS[platform.machine()]
    if number == clones:
        return Clone(first)
    if number == traces:
        return Attach(None if first & 0xFFFFFFFF == ptrace.TRACEME else second & 0xFFFFFFFF)
    return None


def keep_traced(tid: int, clone: Clone) -> None:
    """Have the task traced that a task is about to make: on x86_64 and arm64."""
    flags = clone.flags & ~CLONE_UNTRACED
    if platform.machine() == "x86_64":
        ptrace.call(ptrace.POKEUSER, tid, flags, _RDI)
    elif platform.machine() == "aarch64":
        _set_x0(tid, flags)


def refuse(tid: int) -> None:
    """Make the call at which a task stands fail with ENOSYS, as a filter's SECCOMP_RET_TRACE does untraced.

    Elsewhere than on x86_64 and arm64 the call goes ahead.
    """
    if platform.machine() == "x86_64":
        # the result is -ENOSYS already
        ptrace.call(ptrace.POKEUSER, tid, -1, _ORIG_RAX)
    elif platform.machine() == "aarch64":
        _set_x0(tid, -errno.ENOSYS)
        number = ctypes.create_string_buffer(struct.pack("=i", -1), 4)
        _regset(ptrace.SETREGSET, tid, _NT_ARM_SYSTEM_CALL, number)


def _set_x0(tid: int, value: int) -> None:
    registers = ctypes.create_string_buffer(34 * 8)
    _regset(ptrace.GETREGSET, tid, _NT_PRSTATUS, registers)
    struct.pack_into("=q", registers, 0, value)
    _regset(ptrace.SETREGSET, tid, _NT_PRSTATUS, registers)


def _regset(request: int, tid: int, which: int, content: ctypes.Array[ctypes.c_char]) -> None:
    vector = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(content), len(content)))
    ptrace.call(request, tid, ctypes.addressof(vector), which)


def as_we_number(caller: int, target: int, tasks: Iterable[int]) -> int:
    """Our number of the task that the caller, maybe in another PID namespace, calls `target`.

    tasks: those to look at; 0: it is none of them.
    """
    with contextlib.suppress(OSError):
        theirs = Path(f"/proc/{caller}/ns/pid").readlink()
        if theirs == Path("/proc/self/ns/pid").readlink():
            return target
        for tid in tasks:
            # a task may end while we look
            with contextlib.suppress(OSError):
                numbers = files.field(files.read_file(f"/proc/{tid}/status"), "NSpid").split()
                if numbers[-1:] == [str(target)] and Path(f"/proc/{tid}/ns/pid").readlink() == theirs:
                    return tid
    return 0
