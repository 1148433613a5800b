# SPDX-License-Identifier: Apache-2.0
"""fanotify(7) permission events of execve(2): FAN_OPEN_EXEC_PERM.

The kernel raises one at each file that an exec opens as a program: the file itself, the interpreter of a
script, the ELF loader. The task waits inside execve, killable only, until the event is answered. When the
last descriptor of the group is closed, the kernel lets everything through.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final

FAN_CLOEXEC: Final = 0x1
FAN_CLASS_CONTENT: Final = 0x4
FAN_UNLIMITED_QUEUE: Final = 0x10
FAN_UNLIMITED_MARKS: Final = 0x20
FAN_REPORT_TID: Final = 0x100
FAN_MARK_ADD: Final = 0x1
FAN_MARK_IGNORED_MASK: Final = 0x20
FAN_MARK_FILESYSTEM: Final = 0x100
FAN_OPEN_EXEC_PERM: Final = 0x40000
FAN_ALLOW: Final = 1
"""include/uapi/linux/fanotify.h."""

AT_FDCWD: Final = -100

_EVENT: Final = struct.Struct("=IBBHQii")
"""struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid."""
_RESPONSE: Final = struct.Struct("=iI")

READ_BYTES: Final = 4096

_libc: Final = ctypes.CDLL(None, use_errno=True)


def group() -> int:
    """A new group, which reports thread ids, as a file descriptor that does not block; raises `OSError`."""
    flags = FAN_CLOEXEC | FAN_CLASS_CONTENT | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS | FAN_REPORT_TID
    fd = _libc.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(os.O_RDONLY | os.O_CLOEXEC))
    _check(fd)
    os.set_blocking(fd, False)
    return int(fd)


def watch(group: int, path: bytes) -> None:
    """Ask for the execs of all files of the file system at `path`; raises `OSError`."""
    _mark(group, FAN_MARK_FILESYSTEM, AT_FDCWD, path)


def ignore(group: int, fd: int) -> None:
    """Hear no more of the execs of one file, until it is modified; raises `OSError`."""
    _mark(group, FAN_MARK_IGNORED_MASK, fd, None)


def _mark(group: int, flags: int, fd: int, path: bytes | None) -> None:
    _check(
        _libc.fanotify_mark(
            group,
            ctypes.c_uint(FAN_MARK_ADD | flags),
            ctypes.c_uint64(FAN_OPEN_EXEC_PERM),
            ctypes.c_int(fd),
            ctypes.c_char_p(path),
        )
    )


def events(group: int) -> Iterator[tuple[int, int]]:
    """(thread id, file descriptor of the program) of the events that wait now.

    The descriptor is the event's name until it is answered. The thread id is 0 for a task of a foreign PID
    namespace. An event whose program cannot be opened is lost: the kernel denies it.
    """
    while True:
        try:
            content = os.read(group, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            continue
        place = 0
        while place < len(content):
            length, _, _, _, _, fd, tid = _EVENT.unpack_from(content, place)
            yield tid, fd
            place += length


def allow(group: int, fd: int) -> None:
    """Let the exec of an event go on, if its task was not killed meanwhile. The caller closes `fd`."""
    with contextlib.suppress(FileNotFoundError):
        os.write(group, _RESPONSE.pack(fd, FAN_ALLOW))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
