# SPDX-License-Identifier: Apache-2.0
"""The built-in workloads: small programs for every kind of memory and folio size."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from replay.validate.workload_settings import PMD_ORDER, PMD_SIZE, switch_of

_PROGRAMS: Final = Path(__file__).with_name("workload_programs.py")


@dataclass(frozen=True)
class Workload:
    """A workload. thp: what files below transparent_hugepage say meanwhile. swap: it needs a swap device.

    order: folios of this order must be there, or the workload did not test what it is for. cause: why the
    kernel must free other folios than predicted, by something that procfs does not show.
    """

    name: str
    title: str
    argv: tuple[str, ...]
    thp: Mapping[str, str] = field(default_factory=dict)
    swap: bool = False
    order: int | None = None
    cause: str = ""


def _program(name: str) -> tuple[str, ...]:
    return (sys.executable, "-I", str(_PROGRAMS), name)


_PMD_THP: Final = {PMD_SIZE: "madvise"}

WORKLOADS: Final = (
    Workload("sleep", "a small program", ("sleep", "0.01")),
    Workload("shell", "a shell with children", ("sh", "-c", "ls / | sort | tail -n 1 >/dev/null; (true)")),
    Workload(
        "python", "the interpreter, ended in order", (sys.executable, "-I", "-c", "import json, decimal")
    ),
    Workload("numpy", "NumPy", _program("numpy")),
    Workload("ordinary", "ordinary pages, more than a gather holds", _program("ordinary"), order=0),
    Workload("holes", "holes and zero pages", _program("holes")),
    Workload("mremap", "moved memory", _program("mremap")),
    Workload("mlock", "locked memory", _program("mlock")),
    Workload("pinned", "pages held by a pipe", _program("pinned"), cause="reference"),
    Workload("threads", "threads", _program("threads")),
    Workload("thp-pmd", "PMD-mapped THPs", _program("thp_pmd"), thp=_PMD_THP, order=PMD_ORDER),
    Workload("thp-pte", "PTE-mapped THPs", _program("thp_pte"), thp=_PMD_THP, order=PMD_ORDER),
    Workload("order-3", "folios of order 3", _program("mthp"), thp={switch_of(3): "madvise"}, order=3),
    Workload("order-4", "folios of order 4", _program("mthp"), thp={switch_of(4): "madvise"}, order=4),
    Workload("fork", "memory shared by fork", _program("fork")),
    Workload("fork-thp", "THPs shared by fork", _program("fork_thp"), thp=_PMD_THP, order=PMD_ORDER),
    Workload("shared", "shared memory", _program("shared_memory")),
    Workload("files", "private and shared file mappings", _program("files")),
    Workload("swap", "swapped pages", _program("swap"), swap=True),
    Workload(
        "swap-fork", "swap entries shared by fork", _program("swap_fork"), swap=True, cause="swap entry"
    ),
)
