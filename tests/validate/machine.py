# SPDX-License-Identifier: Apache-2.0
"""The settings of this machine that validate touches, and whether it can run here at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from replay.errors import ReplayError
from replay.support.thp import THP, locked
from replay.validate import probes, tracefs


def unusable() -> str:
    """Why validate cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        with tracefs.mounted() as (root, _):
            if not (root / "events/kmem/mm_page_free").exists():
                return "the kernel has no tracepoint kmem:mm_page_free"
    except (ReplayError, OSError) as error:
        return str(error)
    return ""


def without_kprobes() -> str:
    """Why calls cannot be counted here; empty if they can."""
    reason = unusable()
    if reason:
        return reason
    with tracefs.mounted() as (root, _):
        return (
            ""
            if probes.available(root)
            else "the kernel has no kprobe events: kernel_lab --validate boots one"
        )


needs_kernel = [pytest.mark.live, pytest.mark.skipif(bool(unusable()), reason=unusable() or "usable")]

needs_kprobes = [
    pytest.mark.live,
    pytest.mark.skipif(bool(without_kprobes()), reason=without_kprobes() or "usable"),
]


def needs_validate(test: Callable[..., None]) -> Callable[..., None]:
    """The marks of `needs_kernel` for one test."""
    for mark in needs_kernel:
        test = mark(test)
    return test


def state() -> dict[str, object]:
    """All that must be as before; taken while no other run has THP switches changed."""
    with locked(), tracefs.mounted() as (root, _):
        files = [root / name for name in ("tracing_on", "current_tracer", "trace_clock", "set_event_pid")]
        files += [root / "events" / name / "enable" for name in ("kmem", "tlb", "mmap", "pagemap")]
        return switches() | {
            "tracing": {str(path.relative_to(root)): path.read_text() for path in files},
            "probes": kprobe_events(root),
            "mounts": Path("/proc/self/mounts").read_text(),
            "zram": sorted(path.name for path in Path("/sys/block").glob("zram*")),
        }


def kprobe_events(root: Path) -> list[str]:
    """Lines of kprobe_events, none where the kernel has no kprobes."""
    return (root / "kprobe_events").read_text().splitlines() if probes.available(root) else []


def switches() -> dict[str, object]:
    """What a workload may change, now."""
    return {
        "thp": {str(path): path.read_text() for path in sorted(THP.rglob("*enabled")) if path.is_file()},
        "swaps": Path("/proc/swaps").read_text(),
    }


def instances(pid: int) -> list[str]:
    """Tracing instances of a replay process."""
    with tracefs.mounted() as (root, _):
        return [path.name for path in (root / "instances").glob(f"replay-{pid}-*")]


def until(condition, seconds: float = 60, pause: float = 0.1):
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not as before"
        time.sleep(pause)
