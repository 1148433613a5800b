# SPDX-License-Identifier: Apache-2.0
"""The processes that a calibration measures: one kind of memory each, and held-out mixtures."""

from __future__ import annotations

import mmap
import random
from typing import Final

from replay.cost.measure import Case
from replay.validate.workload_settings import PMD_ORDER, PMD_SIZE, switch_of

SIZES_MIB: Final = {
    "small": (320, 960),
    "scattered": (160, 480),
    "sparse": (160, 480),
    "tables": (8, 16),
    "split": (1200, 2400),
    "vmas": (200, 500),
    "file": (192, 384),
    "shared": (192, 384),
    "forked": (400, 1200),
}
"""Kind of memory -> sizes in MiB. Their exits took 5 to 60 ms on a machine of 2023; a smaller machine takes a
part.
"""

LARGE_MIB: Final = (1200, 3600)
"""Sizes in MiB of memory in PMD-sized folios, which exits fastest."""

MTHP_MIB: Final = (400, 1200)

MTHP_ORDERS: Final = (2, 3, 4, 6)

FILE_MIB: Final = max(SIZES_MIB["file"])

HELD_OUT: Final = 12
"""How many mixtures check the fit without being part of it."""

SHARE_OF_MEMORY: Final = 3
"""The largest process takes this part of the available memory: one in so many."""


def scale() -> float:
    """The factor, at most 1, by which the sizes above must shrink to fit this machine."""
    available = os_available_mib()
    return min(1.0, available / SHARE_OF_MEMORY / max(LARGE_MIB))


def os_available_mib() -> int:
    """MemAvailable of /proc/meminfo in MiB: what a process can have without swapping."""
    with open("/proc/meminfo") as lines:  # noqa: PTH123 - one line of a small file
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) >> 10
    return 0


def training(sizes: float, orders: list[int]) -> list[Case]:
    """The processes of one kind of memory. sizes: of `scale`; orders: folio orders that the kernel offers."""
    cases = [
        Case(f"{kind} {mib}", ((kind, _scaled(mib, sizes)),), PMD_ONLY)
        for kind, of_kind in SIZES_MIB.items()
        for mib in of_kind
    ]
    if PMD_ORDER in orders:
        cases += [Case(f"large {mib}", (("large", _scaled(mib, sizes)),), PMD_ONLY) for mib in LARGE_MIB]
    else:
        cases = [case for case in cases if case.memory[0][0] != "split"]
    for order in MTHP_ORDERS:
        if order in orders:
            thp = {PMD_SIZE: "never", switch_of(order): "madvise"}
            cases += [
                Case(f"order {order} {mib}", (("large", _scaled(mib, sizes)),), thp) for mib in MTHP_MIB
            ]
    return cases


def held_out(sizes: float, orders: list[int], seed: int = 1) -> list[Case]:
    """Mixtures of three kinds, of random sizes."""
    draw = random.Random(seed)
    kinds = [kind for kind in SIZES_MIB if PMD_ORDER in orders or kind != "split"]
    if PMD_ORDER in orders:
        kinds.append("large")
    cases = []
    for number in range(HELD_OUT):
        memory = []
        for kind in draw.sample(kinds, 3):
            low, high = SIZES_MIB.get(kind, LARGE_MIB)
            memory.append((kind, _scaled(draw.randrange(low // 3, high), sizes)))
        cases.append(Case(f"mixture {number}", tuple(memory), PMD_ONLY))
    return cases


PMD_ONLY: Final = {PMD_SIZE: "madvise"}


def _scaled(mib: int, sizes: float) -> int:
    return max(int(mib * sizes), 2 * mmap.PAGESIZE * (mmap.PAGESIZE // 8) >> 20)
