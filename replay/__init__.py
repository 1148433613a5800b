"""replay: how Linux tears down a process's memory, replayed over page-table dumps of real processes.

trace = replay.capture(pid)
replay.run(trace, algorithms=["baseline", "v2"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["capture", "compare", "read", "record", "run"]

if TYPE_CHECKING:
    from replay import capture
    from replay.capture.exits import record
    from replay.report.compare import compare
    from replay.teardown.replayer import run
    from replay.trace.file import read


_PLACES = {
    "compare": "replay.report.compare",
    "read": "replay.trace.file",
    "record": "replay.capture.exits",
    "run": "replay.teardown.replayer",
}


def __getattr__(name: str) -> Any:
    """Load the library's functions when they are first used: importing polars and numba is slow."""
    import importlib

    if name == "capture":
        return importlib.import_module("replay.capture")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'replay' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
