# SPDX-License-Identifier: Apache-2.0
"""The arguments of an execve(2) under way, which the kernel is about to copy out of the old memory."""

from __future__ import annotations

import contextlib
import os
import platform
import struct
from collections.abc import Callable, Iterator
from typing import Final

from replay.procfs import files

_CALLS: Final = {"x86_64": (59, 322), "aarch64": (221, 281), "riscv64": (221, 281)}
"""Numbers of execve(2) and execveat(2)."""

_POINTER: Final = struct.Struct("=Q")

MOST_ARGUMENTS: Final = 1 << 16
"""Strings looked at: more are not worth the time."""

MOST_PAGES: Final = 33
"""That a string may touch: MAX_ARG_STRLEN (include/uapi/linux/binfmts.h) is 32."""


def touch(tid: int) -> None:
    """Read the arguments and environment of the exec that a task waits in, as the kernel is about to.

    Pages that are not mapped yet, or swapped out, are mapped by that, as the kernel's own copying does after
    the first program was opened. Reads by /proc/PID/mem: process_vm_readv(2) would undo sharing by fork, as
    every FOLL_PIN does.
    """
    # it may have been killed, or be of another architecture
    with contextlib.suppress(OSError, ValueError, LookupError, struct.error):
        number, *values = files.read_file(f"/proc/{tid}/syscall").split()
        execve, execveat = _CALLS[platform.machine()]
        first = {execve: 1, execveat: 2}[int(number)]
        memory = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _touch_strings(memory, [int(value, 16) for value in values[first : first + 2]])
        finally:
            os.close(memory)


def _touch_strings(memory: int, arrays: list[int]) -> None:
    size = os.sysconf("SC_PAGE_SIZE")
    seen: dict[int, bytes] = {}

    def page(number: int) -> bytes:
        if number not in seen:
            seen[number] = os.pread(memory, size, number * size)
        return seen[number]

    for array in arrays:
        for text in _pointers(page, array, size):
            number, offset = divmod(text, size)
            for following in range(number, number + MOST_PAGES):
                if page(following).find(b"\0", offset) >= 0:
                    break
                offset = 0


def _pointers(page: Callable[[int], bytes], array: int, size: int) -> Iterator[int]:
    """The pointers of an array that ends with a null pointer; none of a null array."""
    for place in range(array, array + MOST_ARGUMENTS * _POINTER.size, _POINTER.size) if array else ():
        number, offset = divmod(place, size)
        (pointer,) = _POINTER.unpack_from(page(number), offset)
        if not pointer:
            return
        yield pointer
