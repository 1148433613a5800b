# SPDX-License-Identifier: Apache-2.0
"""The THP switches of the running kernel: where they are, what they say, and a lock for who changes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replay.errors import ReplayError

THP: Final = Path("/sys/kernel/mm/transparent_hugepage")

LOCK: Final = Path("/tmp/replay-thp.lock")
"""Held while switches are changed, so that another run does not take the changed ones for the user's. It is
the same file for everybody: TMPDIR does not move it.
"""
LOCK_SECONDS: Final = 300.0
"""How long to wait for the lock."""


def selected(text: str) -> str:
    """What a switch says: `always [madvise] never` -> `madvise`; a number as it is."""
    _, bracket, rest = text.partition("[")
    return rest.partition("]")[0] if bracket else text.strip()


def switches() -> dict[str, str]:
    """THP and mTHP switches by the names of their files below `THP`: what is selected, such as `madvise`."""
    files = [THP / name for name in ("enabled", "defrag", "shmem_enabled")]
    files += sorted(THP.glob("hugepages-*kB/*enabled"))
    return {str(path.relative_to(THP)): selected(path.read_text()) for path in files if path.is_file()}


@contextlib.contextmanager
def locked(*, shared: bool = False) -> Iterator[int]:
    """Hold the lock, alone or with others that only need the switches to stay; yields its descriptor.

    Raises `ReplayError` if another process holds it for `LOCK_SECONDS`.
    """
    try:
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        raise ReplayError(
            f"no right to open {LOCK}, the lock of the THP switches: run replay as root"
        ) from None
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ReplayError(
                        f"another process has held {LOCK} for {LOCK_SECONDS:.0f} s, to change THP switches: "
                        "wait for it to end"
                    ) from None
                time.sleep(0.05)
        yield fd
    finally:
        os.close(fd)
