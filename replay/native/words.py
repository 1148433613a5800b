"""Reading of 64-bit words at many places of a file, without the interpreter between the system calls."""

from __future__ import annotations

import os
from typing import Final

from replay.native.function import I64, native

MOST_WORDS: Final = 1 << 17
"""Words of one system call: more leave the processor's cache."""


def pread(fd: int, out: I64, at: int, count: int, first: int) -> int:
    """Read words `first`.. of a file into out[at : at + count]: how many there were, -1 for an error.

    Compiled, this is pread(2).
    """
    try:
        return os.preadv(fd, [out[at : at + count].data], first * 8) // 8
    except OSError:
        return -1


@native
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
