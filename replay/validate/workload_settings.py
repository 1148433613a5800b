# SPDX-License-Identifier: Apache-2.0
"""Kernel settings that a workload needs, changed for a while: folio sizes, a swap device."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from replay.errors import ReplayError
from replay.support.restore import Undo, undone
from replay.support.thp import THP, locked, selected
from replay.trace.schema import ptes_per_table

PMD_ORDER: Final = ptes_per_table(mmap.PAGESIZE).bit_length() - 1
"""The order of folios as large as what a PMD entry maps: 9 with pages of 4 KiB."""


def switch_of(order: int) -> str:
    """The switch of folios of one order."""
    return f"hugepages-{mmap.PAGESIZE << order >> 10}kB/enabled"


PMD_SIZE: Final = switch_of(PMD_ORDER)

ZRAM: Final = Path("/sys/class/zram-control")
SWAP_BYTES: Final = 64 << 20
SWAP_FLAG_PREFER: Final = 0x8000
HIGHEST_PRIORITY: Final = 0x7FFF
"""include/linux/swap.h."""


class UnavailableError(Exception):
    """The kernel or the machine lacks what a workload needs."""


@contextlib.contextmanager
def thp(switches: Mapping[str, str]) -> Iterator[None]:
    """Set files below transparent_hugepage while the block runs; they are put back however it ends.

    Raises `UnavailableError` if the kernel does not have one of them.
    """
    if not switches:
        yield
        return
    values = {_switch(name): value for name, value in switches.items()}
    with locked() as lock, put_back([lock]) as undo:
        for file, value in values.items():
            undo.write(file, selected(file.read_text()))
            file.write_text(value)
        yield


def _switch(name: str) -> Path:
    """The file of a switch: before v6.8, without one for each size, there is one for PMD-sized folios."""
    file = THP / name
    if not file.exists() and name == PMD_SIZE:
        file = THP / "enabled"
    if not file.exists():
        raise UnavailableError(f"this kernel has no {THP / name}")
    return file


@contextlib.contextmanager
def put_back(inherited: list[int]) -> Iterator[Undo]:
    """An `Undo` whose failures are `ReplayError`s."""
    try:
        with undone(inherited) as undo:
            yield undo
    except RuntimeError as error:
        raise ReplayError(f"a kernel setting could not be put back ({error}): put it back by hand") from None


@contextlib.contextmanager
def swap_device() -> Iterator[None]:
    """Have a swap device while the block runs: one of our own in memory (zram), else what there is.

    Raises `UnavailableError` if the kernel has no zram and the machine no swap.
    """
    if not (ZRAM / "hot_add").exists():
        if len(Path("/proc/swaps").read_text().splitlines()) > 1:
            yield
            return
        raise UnavailableError("no swap: this kernel has no zram, and no swap device is in use")
    with put_back([]) as undo:
        number = (ZRAM / "hot_add").read_text().strip()
        undo.write(ZRAM / "hot_remove", number)
        device = Path(f"/dev/zram{number}")
        try:
            Path(f"/sys/block/zram{number}/disksize").write_text(str(SWAP_BYTES))
            device.write_bytes(_swap_header(SWAP_BYTES, os.sysconf("SC_PAGE_SIZE")))
            undo.swapoff(device)
            _swapon(device)
        except OSError as error:
            raise UnavailableError(f"cannot swap to {device}: {error.strerror}") from None
        yield


def _swap_header(size: int, page_size: int) -> bytes:
    """The first page of a swap device (include/linux/swap.h, union swap_header)."""
    info = b"\0" * 1024 + struct.pack("=III", 1, size // page_size - 1, 0)
    magic = b"SWAPSPACE2"
    return info.ljust(page_size - len(magic), b"\0") + magic


def _swapon(device: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.swapon(os.fsencode(device), SWAP_FLAG_PREFER | HIGHEST_PRIORITY) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
