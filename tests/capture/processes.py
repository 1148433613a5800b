# SPDX-License-Identifier: Apache-2.0
"""Live processes for tests: small Python programs that map memory and wait."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PRELUDE = """
import ctypes, mmap, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for call in (libc.munmap, libc.mprotect, libc.madvise):
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int][: 3 if call is not libc.munmap else 2]
PMD = 2 << 20
PRIVATE, SHARED, ANONYMOUS, NORESERVE, FIXED = 2, 1, 0x20, 0x4000, 0x10
def area(size, prot=3, flags=PRIVATE | ANONYMOUS, fd=-1, align=PMD):
    'Address of a new mapping, aligned.'
    start = libc.mmap(None, size + align, 0, PRIVATE | ANONYMOUS | NORESERVE, -1, 0)
    start = (start + align - 1) & -align
    got = libc.mmap(start, size, prot, flags | FIXED, fd, 0)
    assert got == start, os.strerror(ctypes.get_errno())
    return start
def ready(*values):
    print(*values, flush=True)
    time.sleep(600)
"""


def needs_root() -> pytest.MarkDecorator:
    """A test of the running kernel: see `tests/conftest.py`."""
    return pytest.mark.live


@contextlib.contextmanager
def program(code: str) -> Iterator[tuple[int, list[int]]]:
    """Run PRELUDE and `code`, which ends with ready(...): (PID, the numbers it printed)."""
    child = subprocess.Popen([sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout
        line = child.stdout.readline()
        assert line, "the program failed"
        yield child.pid, [int(value) for value in line.split()]
    finally:
        child.kill()
        child.wait()


def state(pid: int, tid: int | None = None) -> str:
    """The state letter of a thread."""
    text = Path(f"/proc/{pid}/task/{tid or pid}/stat").read_text()
    return text.rpartition(")")[2].split()[0]


@contextlib.contextmanager
def setting(path: Path, value: str) -> Iterator[None]:
    """A kernel setting, put back afterwards; skips the test where it cannot be set."""
    try:
        before = path.read_text()
        path.write_text(value)
    except OSError as error:
        pytest.skip(f"{path}: {error.strerror}")
    if "[" in before:
        before = before.partition("[")[2].partition("]")[0]
    try:
        yield
    finally:
        path.write_text(before)
