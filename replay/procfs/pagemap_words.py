# SPDX-License-Identifier: Apache-2.0
"""Reading of 64-bit words at many places of a file, without the interpreter between the system calls."""

from __future__ import annotations

from typing import Final

from replay.jit.compiled import I64, compiled
from replay.jit.pread import pread

MOST_WORDS: Final = 1 << 17
"""Words of one system call: more leave the processor's cache."""


@compiled
def read_pieces(fd: int, first: I64, size: I64, out: I64) -> int:
    """Read pieces [first, first + size) of a file into `out`, one after the other.

    Words that the file does not have are left alone. Returns how many these are; -1 - i if piece i could not
    be read.
    """
    missing = at = 0
    for piece in range(len(first)):
        begin, left = first[piece], size[piece]
        while left > 0:
            count = pread(fd, out, at, min(left, MOST_WORDS), begin)
            if count < 0:
                return -1 - piece
            if count == 0:
                break
            begin, at, left = begin + count, at + count, left - count
        at, missing = at + left, missing + left
    return missing
