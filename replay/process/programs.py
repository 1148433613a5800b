# SPDX-License-Identifier: Apache-2.0
"""What execve(2) does with a file: which other one it opens before it gives the old memory up."""

from __future__ import annotations

import enum
import os
import platform
import struct
from typing import Final

_HEADER: Final = {
    # EI_CLASS: e_machine, e_phoff, e_phentsize, e_phnum after the 16 bytes of e_ident
    1: struct.Struct("<16x2xH4x4xI4x4x2xHH"),
    2: struct.Struct("<16x2xH4x8xQ8x4x2xHH"),
}
_PT_INTERP: Final = 3

_NATIVE: Final = {"x86_64": (62, 3), "aarch64": (183, 40), "riscv64": (243,)}
"""e_machine of programs that the kernel runs by itself: EM_X86_64, EM_386, EM_AARCH64, EM_ARM, EM_RISCV."""

HEAD_BYTES: Final = 4096


class Next(enum.Enum):
    """What exec of a program opens next."""

    INTERPRETER = enum.auto()
    """Of a script, by #!."""
    LOADER = enum.auto()
    """Of a dynamic ELF program, by PT_INTERP."""


def next_of(fd: int) -> Next | None:
    """What exec of this program opens next; None if this is the last that it opens.

    None also for what this kernel does not run by itself: binfmt_misc may hand it to a program that is open
    already.
    """
    try:
        head = os.pread(fd, HEAD_BYTES, 0)
        if head[:2] == b"#!":
            return Next.INTERPRETER
        layout = _HEADER.get(head[4]) if head[:4] == b"\x7fELF" and head[5:6] == b"\x01" else None
        if layout is None:
            return None
        machine, offset, size, count = layout.unpack_from(head)
        if machine not in _NATIVE.get(platform.machine(), (machine,)):
            return None
        if offset + size * count > len(head):
            head, offset = os.pread(fd, size * count, offset), 0
        kinds = (struct.unpack_from("<I", head, offset + size * number)[0] for number in range(count))
        return Next.LOADER if _PT_INTERP in kinds else None
    except (OSError, struct.error, IndexError, OverflowError, ValueError):
        return None
