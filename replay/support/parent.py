# SPDX-License-Identifier: Apache-2.0
"""A child process that is of no use without its parent."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """Have the kernel end this process with the one that started it, even by SIGKILL; prctl(2).

    parent: its PID. If it has ended already, this process ends at once: the kernel would send nothing.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
