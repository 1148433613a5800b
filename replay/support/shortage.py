# SPDX-License-Identifier: Apache-2.0
"""What to say when memory or threads run out, whoever notices it: Python, pyarrow, polars or the loader.

Of polars and pyarrow some failures end the process at once, with lines of their own. Where a limit is set, a
command runs in a process of its own, so that these become one line as well; see `supervised`.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Final

FEW_TASKS: Final = 1024
"""A limit of tasks below this may be in the way: pools of threads grow with the number of CPUs."""

NO_MEMORY: Final = (
    "memory allocation of",  # Rust
    "failed to map segment",  # ld.so
    "cannot allocate memory",
    "malloc of size",
    "realloc of size",
    "std::bad_alloc",
    "unable to allocate",  # NumPy
    "out of memory",
)

NO_THREADS: Final = (
    "failed to spawn",
    "failed to launch worker thread",
    "can't start new thread",
    "threadpoolbuilderror",
    "resource temporarily unavailable",
)

NOISE: Final = (
    b"memory allocation of ",
    b"thread '",
    b"stack backtrace:",
    b"<jemalloc>:",
    b"terminate called",
    b"\n",
)
"""How lines begin that Rust, jemalloc and C++ write before they give up."""


def told(error: BaseException) -> str | None:
    """What is missing, and the remedy, in one line; None if the error is of another kind."""
    line = _told(error)
    # llvmlite says only that it cannot load its library; why, is what it was told itself
    if line is None and isinstance(error, OSError | ImportError) and error.__context__ is not None:
        return told(error.__context__)
    return line


def _told(error: BaseException) -> str | None:
    text = f"{type(error).__name__}: {error}".lower()
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(part in text for part in NO_MEMORY):
        return f"not enough memory: {_memory_remedy()}"
    if number == errno.EAGAIN or any(part in text for part in NO_THREADS):
        if _memory_is_limited():
            # a thread needs room for its stack
            return f"not enough memory: {_memory_remedy()}"
        return f"no more threads can be started: {_threads_remedy()}"
    return None


def _memory_remedy() -> str:
    for number, option in ((resource.RLIMIT_AS, "-v"), (resource.RLIMIT_DATA, "-d")):
        limit = resource.getrlimit(number)[0]
        if limit != resource.RLIM_INFINITY:
            return f"the limit of this shell, 'ulimit {option} {limit // 1024}', is too low: raise it"
    return "free some, or use a machine with more"


def _threads_remedy() -> str:
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit != resource.RLIM_INFINITY and os.getuid():
        return f"raise the limit of this shell, 'ulimit -u {limit}', or of the container (pids.max)"
    return "raise the limit of the container (pids.max)"


def is_limited() -> bool:
    """Whether a limit of this process is likely to be met."""
    if any(
        resource.getrlimit(one)[0] != resource.RLIM_INFINITY
        for one in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    ):
        return True
    tasks = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    return bool(os.getuid()) and tasks != resource.RLIM_INFINITY and tasks < FEW_TASKS


def supervised(work: Callable[[], int]) -> int:
    """Do the work in a child, whose exit status is returned: 1 and one line if memory or threads run out.

    What the child writes to standard error is passed on, but for what libraries write before they give up.
    """
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        os.write(2, f"replay: {told(error) or error}\n".encode())
        return 1
    if not pid:
        os.close(reading)
        os.dup2(writing, 2)
        os.close(writing)
        os._exit(work())
    os.close(writing)
    said = b""
    for line in _lines(reading):
        os.write(2, line)
        said = line
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status >= 0:
        return status
    if -status in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):
        if not said.startswith(b"replay: n"):
            os.write(2, f"replay: {told(OSError(errno.EAGAIN, ''))}\n".encode())
        return 1
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status


def _memory_is_limited() -> bool:
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(one)[0] != resource.RLIM_INFINITY for one in limits)


def _lines(fd: int) -> Iterator[bytes]:
    """Lines read from a pipe; from one of `NOISE` on, only those of replay itself."""
    rest, is_noise = b"", False
    while part := os.read(fd, 1 << 16):
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            is_noise = (is_noise or (line + b"\n").startswith(NOISE)) and not line.startswith(b"replay:")
            if not is_noise:
                yield line + b"\n"
    if rest and not is_noise and not rest.startswith(NOISE):
        yield rest
