# SPDX-License-Identifier: Apache-2.0
"""A page of our own, of which everything is known: what procfs says of it shows whether procfs can be
believed.

A hardened container may cover a file of procfs with an empty one or with /dev/null. Such a file can be
opened, and reading it gives nothing, or zeros.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from replay.errors import ReplayError
from replay.procfs import files
from replay.trace.kpageflags import KPF_ANON, bit

EXPECTED: Final = {"kpageflags": "an anonymous page", "kpagecount": "one mapping"}
"""File -> what it must say of a private anonymous page that was just written."""


@contextlib.contextmanager
def own_frame() -> Iterator[int]:
    """A page of our own, mapped once, for as long as the block runs: its page frame, 0 if pagemap hides
    frames.

    Raises `ReplayError` if /proc/self/pagemap cannot be read or says nothing of the page.
    """
    with mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0] = 1
        word = np.zeros(1, np.uint64)
        descriptor = files.open_pagemap(files.PROC, os.getpid())
        try:
            address = np.frombuffer(page, np.uint8).ctypes.data
            found = files.read_words(descriptor, address // mmap.PAGESIZE, word)
        finally:
            os.close(descriptor)
        if not found or not int(word[0]) & files.PM_PRESENT:
            raise ReplayError(
                f"{files.PROC}/{os.getpid()}/pagemap says nothing of a page that is there: something "
                "covers it; run replay where the host's procfs is not covered"
            )
        yield int(word[0]) & files.PM_PFRAME


def check_kpage(descriptor: int, path: Path, frame: int) -> None:
    """Raise `ReplayError` if an open kpageflags or kpagecount does not say of our page what is known of it.

    frame: of `own_frame`; nothing is checked for 0.
    """
    if not frame:
        return
    word = np.zeros(1, np.uint64)
    try:
        found = files.read_words(descriptor, frame, word)
    except OSError as error:
        raise ReplayError(f"cannot read {path}: {error.strerror or os.strerror(errno.EIO)}") from None
    if not found:
        raise ReplayError(f"{path} ends before frame {frame}, which pagemap names: {REMEDY}")
    right = int(word[0]) & bit(KPF_ANON) != 0 if path.name == "kpageflags" else int(word[0]) == 1
    if not right:
        raise ReplayError(
            f"{path} says {int(word[0]):#x} of frame {frame}, expected {EXPECTED[path.name]}: {REMEDY}"
        )


REMEDY: Final = "something covers it; name the host's procfs with --procfs"


def check(root: Path) -> None:
    """Raise `ReplayError` if kpageflags or kpagecount of a live procfs cannot be opened or believed."""
    with own_frame() as frame:
        for name in EXPECTED:
            descriptor = files.open_kpage(root, name)
            try:
                check_kpage(descriptor, root / name, frame)
            finally:
                os.close(descriptor)
