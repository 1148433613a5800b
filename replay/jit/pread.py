# SPDX-License-Identifier: Apache-2.0
"""pread(2) for compiled functions; `build` has its compiled form."""

from __future__ import annotations

import os
from typing import Any


def pread(fd: int, out: Any, at: int, count: int, first: int) -> int:
    """Read 64-bit words from word `first` of a file into out[at : at + count].

    out: int64, one dimension. Returns how many words there were; -1 for an error.
    """
    try:
        return os.preadv(fd, [out[at : at + count].data], first * 8) // 8
    except OSError:
        return -1
