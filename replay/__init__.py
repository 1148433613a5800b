# SPDX-License-Identifier: Apache-2.0
"""replay: how Linux tears down a process's memory, simulated over page-table dumps of real processes.

trace = replay.capture_process(pid).trace
replay.run(trace, algorithms=["baseline", "v2"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

__version__ = "0.2.0"

__all__ = [
    "capture_all",
    "capture_cgroup",
    "capture_process",
    "capture_processes",
    "compare",
    "read_trace",
    "record",
    "run",
]

if TYPE_CHECKING:
    from replay.capture.live import capture_all, capture_cgroup, capture_process, capture_processes
    from replay.recording.recorder import record
    from replay.report.compare import compare
    from replay.teardown.replayer import run
    from replay.trace.file import read as read_trace


_PLACES: Final = {
    "capture_all": ("replay.capture.live", "capture_all"),
    "capture_cgroup": ("replay.capture.live", "capture_cgroup"),
    "capture_process": ("replay.capture.live", "capture_process"),
    "capture_processes": ("replay.capture.live", "capture_processes"),
    "compare": ("replay.report.compare", "compare"),
    "read_trace": ("replay.trace.file", "read"),
    "record": ("replay.recording.recorder", "record"),
    "run": ("replay.teardown.replayer", "run"),
}
"""Name -> the module and the function behind it."""


def __getattr__(name: str) -> Any:
    """Load the library's functions when they are first used: importing polars and numba is slow."""
    import importlib

    if name in _PLACES:
        module, function = _PLACES[name]
        return getattr(importlib.import_module(module), function)
    raise AttributeError(f"module 'replay' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
